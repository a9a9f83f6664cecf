"""What predict leaves behind: drawings, crops, COCO results that others can read, answers kept across kills."""

import contextlib
import io
import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageChops
from prepare_inputs import picture

from qwenft.core.errors import DataError, UsageError
from qwenft.core.files import to_line
from qwenft.core.predictions import Detected, Prediction, Question
from qwenft.core.samples import PreparedDataset
from qwenft.predict import draw, outputs
from qwenft.predict.draw import draw_boxes, font_for, missing_characters
from qwenft.predict.find import find, find_each, unreadable_error
from qwenft.predict.generate import Predictor
from qwenft.predict.outputs import AnswerFile, Drawings, file_stems, write_coco
from qwenft.predict.verify import RED, rescored, with_red_box

DOG = Detected((10.4, 20.0, 50.2, 60.9), "dog", 0.75)
CAT = Detected((100.0, 5.0, 130.0, 25.0), "cat", None)


def answered(question: Question, *objects: Detected, **changes: Any) -> Prediction:
    made = Prediction(question, "ok" if objects else "empty", objects, text="…", prompt="?", model="m")
    return replace(made, **changes)


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "in" / f"{number:012}.png" for number in (139, 7, 42)]
    for number, path in enumerate(paths):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(picture(number))
    return paths


# Drawings and crops


def test_each_box_is_cut_out_and_files_never_overwrite_each_other(tmp_path: Path, pictures: list[Path]) -> None:
    questions = [Question(pictures[0], "grounding", query) for query in ("dog", "cat")]
    drawings = Drawings(questions, tmp_path / "drawn", tmp_path / "cut", lambda _: None)
    for number, question in enumerate(questions):
        drawings.take(number, answered(question, DOG, CAT))
    stem = pictures[0].stem
    assert {path.name for path in (tmp_path / "drawn").iterdir()} == {f"{stem}-boxes.png", f"{stem}-2-boxes.png"}
    assert {path.name for path in (tmp_path / "cut").iterdir()} == {
        f"{stem}-1.png", f"{stem}-2.png", f"{stem}-2-1.png", f"{stem}-2-2.png"
    }  # fmt: skip
    whole = Image.open(pictures[0]).convert("RGB")
    cut = Image.open(tmp_path / "cut" / f"{stem}-1.png")
    assert ImageChops.difference(cut, whole.crop((10, 20, 51, 61))).getbbox() is None


@given(st.lists(st.sampled_from(["a/x.png", "b/x.png", "a/x-2.png", "x.jpg", "a/x-2-2.png"]), max_size=8))
def test_file_names_are_all_different_and_a_single_one_is_its_pictures(paths: list[str]) -> None:
    stems = file_stems([Question(Path(path), "grounding") for path in paths])
    assert len(set(stems)) == len(paths)
    own = [Path(path).stem for path in paths]
    assert all(stem == mine for stem, mine in zip(stems, own, strict=True) if own.count(mine) == 1)


def test_a_label_that_no_font_can_show_is_drawn_as_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    bundled = draw._fonts()[:1]
    monkeypatch.setattr(draw, "_fonts", lambda: bundled)
    odd = replace(DOG, label="红色的车")
    assert font_for("Größe, cañón, собака") is not None
    assert missing_characters([replace(DOG, label="собака")]) == ""
    assert missing_characters([odd]) == "红色的车"
    upright = Image.new("RGB", (500, 400), "white")
    numbered = draw_boxes(upright, [CAT, replace(CAT, label="#2", box_xyxy=odd.box_xyxy, score=odd.score)])
    assert ImageChops.difference(draw_boxes(upright, [CAT, odd]), numbered).getbbox() is None


def test_a_font_with_chinese_is_taken_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = {"dejavu": frozenset(map(ord, "abc")), "noto": frozenset(map(ord, "abc红车"))}
    monkeypatch.setattr(draw, "_fonts", lambda: ("dejavu", "noto"))
    monkeypatch.setattr(draw, "_shows", shown.__getitem__)
    assert (font_for("a b"), font_for("红 车"), font_for("红猫")) == ("dejavu", "noto", None)
    assert missing_characters([replace(DOG, label="红")]) == ""


def test_missing_characters_are_said_once(
    tmp_path: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundled = draw._fonts()[:1]
    monkeypatch.setattr(draw, "_fonts", lambda: bundled)
    said: list[str] = []
    questions = [Question(path, "grounding", "车") for path in pictures]
    drawings = Drawings(questions, tmp_path / "drawn", None, lambda e: said.append(f"{e['event']}: {e['text']}"))
    for number, question in enumerate(questions):
        drawings.take(number, answered(question, replace(DOG, label="车")))
    warnings = [text for text in said if text.startswith("warning")]
    assert len(warnings) == 1
    assert "车" in warnings[0] and "number" in warnings[0]


@pytest.mark.parametrize(
    ("save", "crop", "task", "says"),
    [
        ("a.gif", None, "grounding", r"cannot write \.gif"),
        ("a.png", None, "grounding", "one file, but there are 3"),
        ("taken", None, "grounding", "--save .*taken is a file"),
        (None, "taken", "grounding", "--crop .*taken is a file"),
        (None, "taken.png", "grounding", "--crop .*taken.png is a file"),
        (None, "cut", "caption", "a caption has none"),
    ],
)
def test_what_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, pictures: list[Path], save: str | None, crop: str | None, task: str, says: str
) -> None:
    for name in ("taken", "taken.png"):
        (tmp_path / name).write_text("")
    questions = [Question(path, task) for path in pictures]  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=says):
        Drawings(questions, save and tmp_path / save, crop and tmp_path / crop, lambda _: None)  # type: ignore[arg-type]


def test_a_folder_that_takes_no_file_is_an_error_of_ours(tmp_path: Path, pictures: list[Path]) -> None:
    (tmp_path / "taken").write_text("")
    question = Question(pictures[0], "grounding", "dog")
    for options in ((tmp_path / "taken" / "a.png", None), (None, tmp_path / "taken" / "cut")):
        with pytest.raises(DataError, match=r"taken.* cannot be written"):
            Drawings([question], *options, lambda _: None).take(0, answered(question, DOG))
    with pytest.raises(DataError, match="cannot be written"):
        write_coco(tmp_path / "taken" / "a.json", [answered(question, DOG)])
    with pytest.raises(DataError, match="cannot be written"):
        AnswerFile(tmp_path / "taken" / "a.jsonl", [question], ("m", None, "tokens"))


def test_a_line_that_the_disk_does_not_take_whole_is_an_error_and_cut_off_next_time(tmp_path: Path) -> None:
    import resource

    questions = [Question(Path(f"/{n}.png"), "grounding", "dog") for n in range(2)]
    path, before = tmp_path / "a.jsonl", resource.getrlimit(resource.RLIMIT_FSIZE)
    handled = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    file = AnswerFile(path, questions, ("m", None, "tokens"))
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50, before[1]))
        with pytest.raises(DataError, match="cannot be written"):
            file.append(answered(questions[0], DOG))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handled)
        file.close()
    again = AnswerFile(path, questions, ("m", None, "tokens"))
    again.close()
    assert again.kept == []
    assert not path.exists(), "nothing whole was in it"


# COCO


def test_coco_results_are_read_by_the_cocos_own_reader(tmp_path: Path, pictures: list[Path]) -> None:
    from faster_coco_eval import COCO

    questions = [Question(path, "detection", categories=("cat", "dog")) for path in pictures]
    answers = [
        answered(questions[0], DOG, CAT),
        answered(questions[1]),
        answered(questions[2], replace(DOG, label="wolf")),
    ]
    companion = write_coco(tmp_path / "found.json", answers)
    with contextlib.redirect_stdout(io.StringIO()):
        images = COCO(str(companion))
        read = images.loadRes(str(tmp_path / "found.json"))
    assert {image["id"]: Path(image["file_name"]).name for image in images.imgs.values()} == {
        int(path.stem): path.name for path in pictures
    }
    assert [(c["id"], c["name"]) for c in images.cats.values()] == [(1, "cat"), (2, "dog"), (3, "wolf")]
    by_picture = {i: [(a["category_id"], a["bbox"], a["score"]) for a in read.imgToAnns[i]] for i in images.imgs}
    assert by_picture == {
        139: [(2, [10.4, 20.0, 39.8, 40.9], 0.75), (1, [100.0, 5.0, 30.0, 20.0], 0.0)],
        7: [],
        42: [(3, [10.4, 20.0, 39.8, 40.9], 0.75)],
    }


def test_coco_ids_count_from_one_where_names_are_no_numbers_and_errors_have_no_entry(
    tmp_path: Path, pictures: list[Path]
) -> None:
    named = pictures[1].rename(tmp_path / "dog.png")
    phrase = Question(named, "grounding", "the big dog")
    absent = Question(tmp_path / "nowhere.png", "grounding", "the big dog")
    numbered = Question(pictures[0], "grounding", "a cat")
    answers = [answered(absent, status="error"), answered(phrase, DOG), answered(numbered, CAT)]
    written = json.loads(write_coco(tmp_path / "found.json", answers).read_text())
    assert [(i["id"], i["width"], i["height"]) for i in written["images"]] == [(1, 160, 120), (2, 160, 120)]
    assert [c["name"] for c in written["categories"]] == ["the big dog", "a cat"]
    assert [r["category_id"] for r in json.loads((tmp_path / "found.json").read_text())] == [1, 2]


@pytest.mark.parametrize(
    ("path", "task", "kind", "says"),
    [
        ("a.json", "caption", UsageError, "a caption has none"),
        (".", "grounding", UsageError, "is a folder"),
        ("in/000000000007.png/a.json", "grounding", DataError, "cannot be written"),
    ],
    ids=["caption", "folder", "no-place"],
)
def test_a_coco_file_that_could_not_be_written_is_refused_before_the_work(
    stub: "Stub", tmp_path: Path, pictures: list[Path], path: str, task: Any, kind: type[Exception], says: str
) -> None:
    text = None if task == "caption" else "dog"
    with pytest.raises(kind, match=says):
        find(pictures, text, task=task, coco=tmp_path / path, model="tiny", root=tmp_path)
    assert stub.asked == []


# Answers that are kept


class Stub:
    """Stands in for a predictor: an answer for each question, one after another."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def answer(self, questions: Sequence[Question], **_: Any) -> Iterator[Prediction]:
        for question in questions:
            self.asked.append(question.query or "")
            draw_boxes_of = random.Random(question.query)
            yield answered(question, replace(DOG, score=draw_boxes_of.random()), model="tiny")


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Stub:
    made = Stub()
    monkeypatch.setattr("qwenft.predict.generate.Predictor.load", lambda *_, **__: made)
    return made


def lines_of(pictures: list[Path], count: int) -> list[str]:
    return [json.dumps({"image": str(pictures[n % 3]), "query": f"thing {n}"}) for n in range(count)]


def test_an_answer_is_given_before_the_next_one_is_made(stub: Stub, pictures: list[Path], tmp_path: Path) -> None:
    found = find_each(["-"], lines=lines_of(pictures, 3), model="tiny", root=tmp_path, out=tmp_path / "a.jsonl")
    assert next(found).question.query == "thing 0"
    assert stub.asked == ["thing 0"]
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 1, "it stands in the file as soon as it is made"


@given(st.integers(0, 9), st.integers(1, 4), st.floats(0, 1))
def test_wherever_the_file_was_cut_it_ends_the_same(count: int, portion: int, share: float) -> None:
    import tempfile

    questions = [Question(Path(f"/pictures/{n}.png"), "grounding", f"thing {n} 车") for n in range(count)]
    answers = [answered(question, DOG) for question in questions]
    whole = "".join(to_line(answer.to_json()) + "\n" for answer in answers).encode()
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(outputs, "PORTION", portion)
        path = Path(folder) / "a.jsonl"
        path.write_bytes(whole[: round(share * len(whole))])
        file = AnswerFile(path, questions, ("m", None, "tokens"))
        assert len(file.kept) % portion == 0 or len(file.kept) == count
        assert [answer.to_json() for answer in file.kept] == [a.to_json() for a in answers[: len(file.kept)]]
        assert whole[: round(share * len(whole))].startswith(path.read_bytes()), "only an end is cut off"
        for answer in answers[len(file.kept) :]:
            file.append(answer)
        file.close()
        assert (path.read_bytes() if path.exists() else b"") == whole


OTHERS = [
    ("another question", lambda line: {**line, "query": "the cat"}, "line 1 answers another question"),
    ("another model", lambda line: {**line, "model": "other"}, "was answered by other and tokens, now answers m"),
    (
        "an adapter",
        lambda line: {**line, "adapter": "runs/x"},
        "answered by m and runs/x and tokens, now answers m and",
    ),
    ("another kind of score", lambda line: {**line, "score_by": "yes-no"}, "m and yes-no, now answers m and tokens"),
    ("something else", lambda _: {"image": "a.png"}, "line 1 is no answer"),
]


@pytest.mark.parametrize(("change", "says"), [row[1:] for row in OTHERS], ids=[row[0] for row in OTHERS])
def test_answers_of_another_call_are_never_mixed_nor_destroyed(
    tmp_path: Path, change: Callable[[dict], dict], says: str
) -> None:
    question = Question(Path("/a.png"), "grounding", "the dog")
    path = tmp_path / "a.jsonl"
    before = to_line(change(answered(question, DOG).to_json())) + "\n"
    path.write_text(before)
    with pytest.raises(DataError, match=says) as caught:
        AnswerFile(path, [question], ("m", None, "tokens"))
    assert caught.value.hint
    assert path.read_text() == before


def test_answers_with_another_threshold_are_not_taken_for_the_same(
    stub: Stub, pictures: list[Path], tmp_path: Path
) -> None:
    call = {"lines": lines_of(pictures, 3), "model": "tiny", "root": tmp_path, "out": tmp_path / "a.jsonl"}
    first = find(["-"], **call, threshold=0.5)
    assert find(["-"], **call, threshold=0.5) == first
    with pytest.raises(DataError, match=r"under a score of 0\.5, now it is 0$") as caught:
        find(["-"], **call)
    assert caught.value.hint.startswith("--threshold 0.5")


def test_a_picture_whose_name_is_no_text_is_answered_and_kept(stub: Stub, tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"caf\xe9.png")
    odd.write_bytes(picture(1))
    for _ in range(2):
        (found,) = find([odd], "the dog", model="tiny", root=tmp_path, out=tmp_path / "a.jsonl")
        assert found.question.image == odd
    assert stub.asked == ["the dog"]


def test_two_processes_never_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    questions = [Question(Path("/a.png"), "grounding", "the dog")]
    file = AnswerFile(path, questions, ("m", None, "tokens"))
    context = multiprocessing.get_context("fork")
    told = context.Queue()

    def second() -> None:
        try:
            AnswerFile(path, questions, ("m", None, "tokens"))
        except DataError as error:
            told.put(str(error))

    process = context.Process(target=second)
    process.start()
    assert "another process is writing" in told.get(timeout=20)
    process.join()
    file.close()


def test_one_unreadable_picture_among_a_hundred_is_one_counted_error(scenes: PreparedDataset, tmp_path: Path) -> None:
    source = scenes.picture_path(scenes.samples("train")[0]).read_bytes()
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(100):
        (folder / f"{number:03}.png").write_bytes(source if number != 41 else source[: len(source) // 2])
    said: list[Any] = []
    answers = find([folder], "the red star", model="tiny", gpus="cpu", batch_size=50, root=tmp_path, emit=said.append)
    counts = [(e["done"], e["total"]) for e in said if e["event"] == "progress"]
    assert counts == sorted(counts) and counts[-1] == (100, 100), "one count of all questions, whatever broke"
    assert [answer.question.image.stem for answer in answers] == [f"{n:03}" for n in range(100)]
    failed = [answer for answer in answers if answer.status == "error"]
    assert [answer.question.image.name for answer in failed] == ["041.png"]
    assert "041.png: the picture cannot be decoded to its end" in failed[0].how
    assert Prediction.from_json(failed[0].to_json()) == failed[0]
    error = unreadable_error(answers)
    assert error is not None and "1 question of 100" in str(error) and error.exit_code == 1
    assert unreadable_error([answer for answer in answers if answer.status != "error"]) is None


def ask_all(pictures: list[Path], out: Path, root: Path) -> None:
    """In a process of its own: ends with status 0, or is killed."""
    os.setsid()
    status = 1
    try:
        find(["-"], lines=lines_of(pictures, 48), model="tiny", gpus="cpu", batch_size=4, out=out, root=root)
        status = 0
    finally:
        os._exit(status)


def test_kills_at_random_moments_change_nothing_in_the_file(
    pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs, "PORTION", 8)
    pictures[2].write_bytes(pictures[2].read_bytes()[:300])  # an error in its place every time, too
    context = multiprocessing.get_context("fork")  # torch is loaded already

    def start(out: Path) -> Any:
        process = context.Process(target=ask_all, args=(pictures, out, tmp_path))
        process.start()
        return process

    undisturbed = start(tmp_path / "whole.jsonl")
    undisturbed.join(120)
    whole = (tmp_path / "whole.jsonl").read_bytes()
    assert undisturbed.exitcode == 0
    assert whole.count(b"\n") == 48 and whole.count(b'"status": "error"') == 16
    torn, kills = tmp_path / "torn.jsonl", 0
    for part in range(4):  # killed once it is somewhere in each quarter of the file
        moment = round(random.Random(part).uniform(part / 4, (part + 0.9) / 4) * len(whole))
        process = start(torn)
        while process.is_alive() and (torn.stat().st_size if torn.exists() else 0) < moment:
            time.sleep(0.0005)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.join()
        assert whole.startswith(torn.read_bytes() if torn.exists() else b""), "the same lines in the same order"
    assert kills >= 2
    last = start(torn)
    last.join(120)
    assert last.exitcode == 0
    assert torn.read_bytes() == whole


# The model asked back


def test_a_box_is_asked_about_in_red_and_scored_by_yes_against_no(scenes: PreparedDataset) -> None:
    predictor = Predictor.load("tiny", gpus="cpu")
    questions = [Question.of(sample, scenes.path) for sample in scenes.samples("train")[:5]]
    plain = list(predictor.answer(questions))
    error = answered(Question(Path("/absent.png"), "grounding", "dog"), status="error")
    asked_back = list(rescored(predictor, [*plain[:2], error, *plain[2:]]))
    assert asked_back.pop(2) == error
    for before, after in zip(plain, asked_back, strict=True):
        assert after.score_by == "yes-no"
        assert replace(after, objects=before.objects, score_by="tokens") == before
        assert [item.box_xyxy for item in after.objects] == [item.box_xyxy for item in before.objects]
        assert all(0 < (item.score or 0) < 1 for item in after.objects)
    while_answering = list(rescored(predictor, predictor.answer(questions)))
    assert [answer.to_json() for answer in while_answering] == [answer.to_json() for answer in asked_back]
    one_by_one = [next(iter(rescored(predictor, [answer]))) for answer in plain]
    for together, alone in zip(asked_back, one_by_one, strict=True):
        assert together.objects[0].score == pytest.approx(alone.objects[0].score, rel=1e-3)


def test_out_of_memory_asks_about_fewer_boxes_at_once(scenes: PreparedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    sizes: list[int] = []

    def yes(_: Any, asked: Sequence[Any]) -> list[float]:
        sizes.append(len(asked))
        if len(asked) > 2:
            raise torch.cuda.OutOfMemoryError
        return [0.5] * len(asked)

    monkeypatch.setattr("qwenft.predict.verify._yes", yes)
    question = Question.of(scenes.samples("train")[0], scenes.path)
    (answer,) = rescored(Predictor.load("tiny", gpus="cpu"), [answered(question, *[DOG, CAT] * 5)])
    assert sizes == [10, 8, 4, 2, 2, 2, 2, 2]
    assert [item.score for item in answer.objects] == [0.5] * 10


def test_the_red_box_lies_on_the_box_and_nowhere_else() -> None:
    upright = Image.new("RGB", (300, 200), "white")
    marked = with_red_box(upright, (20.0, 30.0, 120.0, 90.0))
    assert ImageChops.difference(upright, marked).getbbox() == (20, 30, 120, 90)
    assert marked.getpixel((20, 50)) == RED and marked.getpixel((60, 60)) == (255, 255, 255)
    assert upright.getpixel((20, 50)) == (255, 255, 255), "a copy"
