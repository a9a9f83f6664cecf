"""Answers that exist already: lines of predict and of other tools, two runs side by side, several data sets at once."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_score import (
    BOX,
    ELSEWHERE,
    HELD_OUT,
    TRAIN,
    FakePredictor,
    House,
    detection,
    grounding,
    house,
    prepared,
    says,
)

from qwenft.core.errors import DataError, RunError, UsageError
from qwenft.core.files import write_json, write_jsonl
from qwenft.core.predictions import Prediction, Question
from qwenft.core.runs import choose_answerer
from qwenft.core.samples import PreparedDataset, Sample
from qwenft.evaluate.asking import kept_answers
from qwenft.evaluate.existing import compare_runs, evaluate_predictions
from qwenft.evaluate.match import load_predictions, match_predictions
from qwenft.evaluate.run import command_of, evaluate_data
from qwenft.evaluate.score import score_predictions
from qwenft.evaluate.table import score_rows

__all__ = ["house"]  # a fixture


def test_lines_of_predict_are_matched_by_picture_and_question(tmp_path: Path) -> None:
    content = b"a picture of the user's"
    (tmp_path / "photo.jpg").write_bytes(content)
    picture = hashlib.sha256(content).hexdigest()
    samples = [grounding("s1", BOX, picture=picture), grounding("s2", ELSEWHERE, picture="0" * 64)]
    lines = []
    for sample, image in zip(samples, (tmp_path / "photo.jpg", "elsewhere/" + "0" * 64 + ".png"), strict=True):
        line = {**says(sample, BOX).to_json(), "image": str(image), "query": " The Dog "}
        del line["id"]
        lines.append(line)
    write_jsonl(tmp_path / "p.jsonl", reversed(lines))
    pairs = match_predictions(samples, load_predictions(tmp_path / "p.jsonl"))
    assert [(sample.id, prediction.question.id) for sample, prediction in pairs] == [("s1", "s1"), ("s2", "s2")]


def test_a_line_without_an_id_that_fits_no_sample_is_named(tmp_path: Path) -> None:
    line = {"image": "b.jpg", "query": "the cat", "objects": [], "status": "empty", "text": ""}
    write_jsonl(tmp_path / "p.jsonl", [line])
    with pytest.raises(DataError, match=r"b\.jpg \(the cat\) has no id") as error:
        match_predictions([grounding("g1", BOX)], load_predictions(tmp_path / "p.jsonl"))
    assert '"id"' in error.value.hint


def test_another_tool_needs_to_give_no_more_than_ids_and_boxes(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "p.jsonl", [{"id": "g1", "objects": [{"bbox": BOX}]}, {"id": "none", "objects": []}])
    data = prepared(tmp_path / "dogs", train=TRAIN, val=[grounding("g1", BOX), grounding("none")])
    scores = evaluate_predictions(tmp_path / "p.jsonl", data=data, root=tmp_path).metrics["scores"]["grounding"]
    assert (scores["positives"]["Acc@0.5"], scores["negatives"]["rejection_rate"]) == (1.0, 1.0)
    assert scores["ranking"] is None


def test_an_unreadable_picture_is_counted_and_is_no_answer() -> None:
    samples = [grounding("g1", BOX), grounding("none")]
    scores = score_predictions(samples, [says(sample, status="error") for sample in samples])
    assert (scores["statuses"]["error"], scores["parse_rate"]) == (2, 0.0)
    assert scores["grounding"]["negatives"]["rejection_rate"] == 0.0


# COCO results of any tool


def picture_file(folder: Path, name: str) -> str:
    """A file of a user's, and what a prepared data set calls its picture."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(name.encode())
    return hashlib.sha256(name.encode()).hexdigest()


@pytest.fixture
def coco(tmp_path: Path) -> House:
    """A data set of two questions about one photo, two about others, and what some tool found in them."""
    house = House(tmp_path)
    photos = {number: picture_file(tmp_path, f"coco/images/{number}.jpg") for number in (7, 8, 9)}
    both = replace(detection("both"), image=f"images/aa/{photos[7]}.jpg")
    val = [
        both,
        replace(both, id="cup", objects=(), categories=("cup",)),
        replace(grounding("dog", BOX), image=f"images/aa/{photos[8]}.jpg", query="Dog"),
        replace(detection("none"), image=f"images/aa/{photos[8]}.jpg", objects=()),
        Sample("text", "caption", f"images/aa/{photos[8]}.jpg", 100, 100, captions=("a dog",)),
    ]
    prepared(tmp_path / "data" / "dogs", train=TRAIN, val=val)
    images = [{"id": number, "file_name": f"{number}.jpg"} for number in photos]
    names = [{"id": number, "name": name} for number, name in ((1, "dog"), (2, "cup"), (3, "elk"))]
    write_json(tmp_path / "coco" / "instances_val.json", {"images": images, "categories": names, "annotations": []})
    found = [(7, 1, 0.9), (7, 3, 0.4), (8, 1, 0.8), (9, 1, 0.7)]
    write_json(
        tmp_path / "found.json",
        [{"image_id": i, "category_id": c, "bbox": [10, 10, 50, 50], "score": s} for i, c, s in found],
    )
    return house


def test_coco_results_answer_a_prepared_data_set(
    coco: House, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "eval --predictions found.json --data dogs --references coco/instances_val.json --json"
    assert typed(words, coco, monkeypatch) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    lines = [json.loads(line) for line in (Path(found["folder"]) / "predictions.jsonl").read_text().splitlines()]
    answers = {line["id"]: [box["label"] for box in line["objects"]] for line in lines}
    assert answers == {"both": ["dog", "elk"], "cup": [], "dog": ["dog"], "none": ["dog"]}
    assert lines[0]["objects"][0] == {"bbox": [10.0, 10.0, 60.0, 60.0], "label": "dog", "score": 0.9}
    detected = found["scores"]["detection"]
    assert (detected["AP"], detected["unknown_labels"]["n"]) == (pytest.approx(1.0), 1)
    assert (detected["negatives"]["rejection_rate"], detected["negatives"]["n"]) == (0.5, 2)
    assert found["scores"]["grounding"]["positives"]["Acc@0.5"] == 1.0
    assert "1 boxes of other pictures are left out" in said.err
    assert found["samples"] == {"scored": 4, "of": 5}
    page = (Path(found["folder"]) / "report.html").read_text(encoding="utf-8")
    assert "found.json on dogs, val" in page
    assert "--references coco/instances_val.json" in page


def test_what_predict_wrote_brings_its_ids_along(coco: House) -> None:
    (coco.root / "coco" / "instances_val.json").rename(coco.root / "found.images.json")
    for number in (7, 8, 9):
        (coco.root / f"{number}.jpg").write_bytes((coco.root / "coco" / "images" / f"{number}.jpg").read_bytes())
    data = PreparedDataset.open(coco.root / "data" / "dogs")
    result = evaluate_predictions(coco.root / "found.json", data=data, root=coco.root)
    assert result.folder == coco.root / "runs" / "predictions-found" / "eval" / "dogs-val"
    assert result.metrics["scores"]["detection"]["AP"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda root: (root / "coco" / "instances_val.json").unlink(), "no found.images.json", id="no ids"),
        pytest.param(
            lambda root: (root / "coco" / "images" / "8.jpg").unlink(), "1 pictures of this split", id="photo"
        ),
        pytest.param(
            lambda root: write_json(root / "found.json", [{"image_id": 7, "category_id": 5, "bbox": [0, 0, 1, 1]}]),
            "entry 1: nothing says what category_id 5 is",
            id="an unknown category",
        ),
        pytest.param(
            lambda root: write_json(root / "found.json", [{"image_id": 7, "category_id": 1, "bbox": [0, 0, 1]}]),
            "entry 1: not a box",
            id="three numbers",
        ),
    ],
)
def test_what_does_not_fit_the_ids_is_named(coco: House, change: Callable[[Path], None], message: str) -> None:
    change(coco.root)
    named = coco.root / "coco" / "instances_val.json"
    data = PreparedDataset.open(coco.root / "data" / "dogs")
    references = named if named.is_file() else None
    with pytest.raises(DataError, match=message) as caught:
        evaluate_predictions(coco.root / "found.json", data=data, references=references, root=coco.root)
    assert caught.value.hint or "box" in message


def test_coco_results_are_scored_against_references_alone(
    house: House, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    box = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9]}
    write_json(house.root / "r.json", [{**box, "score": 0.5}])
    parts = {"images": [{"id": 1}], "categories": [{"id": 1, "name": "dog"}], "annotations": [{"id": 1, **box}]}
    write_json(house.root / "i.json", parts)
    assert typed("eval --predictions r.json --references i.json --json", house, monkeypatch) == 0
    assert json.loads(capsys.readouterr().out)["scores"]["detection"]["AP"] == pytest.approx(1.0)


def test_answers_from_a_file_have_a_report_and_are_compared_with_a_run(house: House) -> None:
    run = house.add_run("first", "p0")
    house.evaluate(run="first")
    answers = house.root / "theirs.jsonl"
    answers.write_bytes((run.evals / "dogs-val" / "predictions.jsonl").read_bytes())
    data = PreparedDataset.open(house.root / "data" / "dogs")
    result = evaluate_predictions(answers, data=data, root=house.root)
    assert result.metrics["adapter"] == str(run.adapter)
    assert result.metrics["trained_on"] == {"pictures": 1, "of": 5, "samples": 2}, "what its adapter was trained on"
    page = result.report.read_text(encoding="utf-8")
    assert "answers from a file" in page
    assert "Prompts and pixels" not in page
    found = compare_runs("first", "predictions-theirs", root=house.root)
    assert found[0]["difference"]["grounding"]["Acc@0.5"]["estimate"] == 0.0


# Two runs


def test_two_runs_are_compared_on_what_both_were_asked(house: House) -> None:
    house.add_run("first")
    house.evaluate(run="first", baseline=True)
    house.add_run("second")
    house.evaluate(run="second")
    house.evaluate(run="second", limit=3)
    found = compare_runs("first", "second", root=house.root)
    assert [(item["data"], item["split"], item["samples"]) for item in found] == [("dogs", "val", len(HELD_OUT))]
    difference = found[0]["difference"]["grounding"]["Acc@0.5"]
    assert (difference["estimate"], difference["low"], difference["high"]) == (0.0, 0.0, 0.0)
    columns, rows = score_rows(found[0])
    assert columns == ["figure", "first", "second", "difference"]
    assert rows[0][0] == "grounding Acc@0.5"


def test_the_difference_is_the_second_less_the_first(house: House) -> None:
    house.add_run("first")
    house.evaluate(run="first", baseline=True)
    run = house.add_run("worse")
    house.evaluate(run="worse", baseline=True)
    folder = run.evals / "dogs-val"
    (folder / "predictions.jsonl").write_bytes((folder / "baseline-predictions.jsonl").read_bytes())
    found = compare_runs("first", "worse", root=house.root)[0]["difference"]["grounding"]
    assert found["Acc@0.5"]["estimate"] == -0.5


def test_runs_that_were_not_evaluated_or_share_nothing_are_errors_with_a_hint(house: House) -> None:
    house.add_run("first")
    house.evaluate(run="first")
    with pytest.raises(RunError, match="no evaluation of a run 'frist'") as error:
        compare_runs("first", "frist", root=house.root)
    assert "first" in error.value.hint
    house.add_run("second")
    house.evaluate(run="second", limit=2)
    with pytest.raises(RunError, match="not evaluated on the same split") as error:
        compare_runs("first", "second", root=house.root)
    assert error.value.hint == "qwenft eval --run second --data dogs"


# Several data sets


def test_several_data_sets_stand_in_one_table_and_the_model_is_loaded_once(house: House) -> None:
    run = house.add_run("first")
    prepared(house.root / "data" / "cups", train=TRAIN, val=[grounding("c1", BOX), grounding("c2", ELSEWHERE)])
    results = evaluate_data(data=["dogs", "cups"], baseline=True, root=house.root, emit=house.said.append)
    assert [result.folder for result in results] == [run.evals / "dogs-val", run.evals / "cups-val"]
    assert len(house.loaded) == 1
    columns, rows = score_rows(*(result.to_json() for result in results))
    assert columns[:5] == ["data", "figure", "base", "adapter", "difference"]
    assert [row[0] for row in rows if row[1] == "grounding Acc@0.5"] == ["dogs/val", "cups/val"]
    for result in results:
        assert "data:," in result.report.read_text(encoding="utf-8")
        assert json.loads((result.folder / "metrics.json").read_text(encoding="utf-8"))["inputs"]["baseline"] is True


def test_the_same_data_twice_is_wrong_usage(house: House) -> None:
    house.add_run("first")
    with pytest.raises(UsageError, match="written as dogs-val"):
        evaluate_data(data=["dogs", "dogs"], root=house.root)


def test_the_report_shows_the_command_that_asks_again() -> None:
    inputs = {"run": "my run", "data": None, "baseline": True, "limit": 5, "batch_size": 8, "gpus": "cpu"}
    assert command_of(inputs) == "qwenft eval --run 'my run' --baseline --limit 5 --batch-size 8 --gpus cpu"


# A killed evaluation


def test_a_killed_evaluation_goes_on_with_whole_portions(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    run = house.add_run("first")
    monkeypatch.setattr("qwenft.predict.outputs.PORTION", 4)
    asked: list[str] = []
    real = FakePredictor.answer

    def until(last: int) -> None:
        def answer(self: FakePredictor, questions: list[Question], **options: Any) -> Iterator[Prediction]:
            for prediction in real(self, questions, **options):
                if len(asked) == last:
                    raise KeyboardInterrupt
                asked.append(prediction.question.id)
                yield prediction

        monkeypatch.setattr(FakePredictor, "answer", answer)

    until(6)  # of nine: one portion of four is whole
    with pytest.raises(KeyboardInterrupt):
        house.evaluate(baseline=True)
    assert [path.suffix for path in run.evals.iterdir()] == [".jsonl"]
    asked.clear()
    until(14)  # the rest, and all of the base model
    result = house.evaluate(baseline=True)
    assert asked == [sample.id for sample in HELD_OUT[4:]] + [sample.id for sample in HELD_OUT]
    assert "4 answers are kept" in house.texts()
    assert result.metrics["samples"]["scored"] == len(HELD_OUT)
    assert [path.name for path in run.evals.iterdir()] == ["dogs-val"]  # nothing is left over


def test_an_adapter_that_was_trained_on_begins_anew(house: House) -> None:
    run = house.add_run("first")
    weights = run.adapter / "adapter_model.safetensors"
    found = set()
    for content in ("one", "two, longer"):
        weights.write_text(content)
        found.add(kept_answers(run.evals, "dogs-val", choose_answerer("first", None, house.root), None))
    assert len(found) == 2


# At the command line


def typed(words: str, house: House, monkeypatch: pytest.MonkeyPatch) -> int:
    from qwenft.cli import main

    monkeypatch.chdir(house.root)
    monkeypatch.setattr("sys.argv", ["qwenft", *words.split()])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_compare_prints_the_paired_table(
    house: House, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("first", "second"):
        house.add_run(name)
        house.evaluate(run=name)
    assert typed("eval --compare first second", house, monkeypatch) == 0
    table = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert table[0] == ["figure", "first", "second", "difference"]
    assert table[1] == ["grounding Acc@0.5", "0.500", "0.500", "+0.000 [+0.000, +0.000]"]
    assert typed("eval --compare first second --json", house, monkeypatch) == 0
    assert json.loads(capsys.readouterr().out)["comparisons"][0]["names"] == ["first", "second"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        pytest.param("eval --compare first", 2, "--compare", id="one run"),
        pytest.param("eval --compare first none", 1, "no evaluation of a run 'none'", id="a run that is not there"),
        pytest.param("eval --predictions p.jsonl --data a --data b", 2, "one data set", id="one file, two data sets"),
    ],
)
def test_what_cannot_be_compared_is_said(
    words: str,
    code: int,
    message: str,
    house: House,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    house.add_run("first")
    house.evaluate(run="first")
    assert typed(words, house, monkeypatch) == code
    assert message in capsys.readouterr().err


def test_several_data_sets_are_one_table_at_the_command_line(
    house: House, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    house.add_run("first")
    prepared(house.root / "data" / "cups", train=TRAIN, val=[grounding("c1", BOX), grounding("c2", ELSEWHERE)])
    assert typed("eval --run first --data dogs --data cups --baseline", house, monkeypatch) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("\t")[:3] == ["data", "figure", "base"]
    assert {line.split("\t")[0] for line in lines[1:]} == {"dogs/val", "cups/val"}
    assert typed("eval --run first --data dogs --data cups --json", house, monkeypatch) == 0
    assert [e["data"] for e in json.loads(capsys.readouterr().out)["evaluations"]] == ["dogs", "cups"]
