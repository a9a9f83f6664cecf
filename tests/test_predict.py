"""Prediction: the model's own answer, in pixels of the file as a viewer shows it."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageChops, ImageOps
from prepare_inputs import write_coco
from transformers import AutoModelForImageTextToText, AutoProcessor

from qwenft.core.answer import read_answer
from qwenft.core.errors import DataError, UsageError
from qwenft.core.predictions import Prediction, Question
from qwenft.core.samples import PreparedDataset
from qwenft.evaluate.run import evaluate_run
from qwenft.model.fetch import TINY_FOLDER
from qwenft.predict.draw import READABLE_PX
from qwenft.predict.find import find
from qwenft.predict.generate import Predictor, _scores
from qwenft.predict.inputs import make_questions
from qwenft.prepare.build import prepare_dataset
from qwenft.prepare.pictures import open_upright

SHARED = Path(__file__).parents[2] / "shared" / "data"
ORIENTATION = 0x0112


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor.load("tiny", gpus="cpu")


@pytest.fixture(scope="module")
def plain() -> tuple:
    """Model and processor as a plain transformers script loads them."""
    model = AutoModelForImageTextToText.from_pretrained(TINY_FOLDER, dtype=torch.float32)
    return model.eval(), AutoProcessor.from_pretrained(TINY_FOLDER)


def plain_answer(plain: tuple, path: Path, prompt: str) -> tuple[str, list[float]]:
    """What a script without qwenft gets: text, and the box in pixels of the upright picture."""
    model, processor = plain
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}]
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    inputs = processor(text=[text], images=[image], return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=100, do_sample=False)[0, inputs.input_ids.shape[1] :]
    answer = processor.decode(tokens, skip_special_tokens=True)
    box = json.loads(answer)[0]["bbox_2d"]
    rows, columns = (int(n) for n in inputs.image_grid_thw[0, 1:])
    scale = (image.width / (columns * 14), image.height / (rows * 14))
    return answer, [v * scale[i % 2] for i, v in enumerate(box)]


def scene_picture(scenes: PreparedDataset, folder: Path, wh: tuple[int, int], orientation: int) -> Path:
    """A picture with something in it, of any size, stored turned as a phone stores it."""
    source = Image.open(scenes.picture_path(scenes.samples("train")[0])).convert("RGB").resize(wh)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = folder / f"{wh[0]}x{wh[1]}-{orientation}.jpg"
    source.save(path, quality=95, exif=exif)
    return path


@pytest.mark.parametrize("orientation", [1, 3, 6, 8], ids=lambda o: f"exif{o}")
@pytest.mark.parametrize("wh", [(140, 112), (641, 480), (97, 333)], ids=str)
def test_a_box_is_the_models_own_answer_mapped_back_to_the_pixel(
    predictor: Predictor, plain: tuple, scenes: PreparedDataset, tmp_path: Path, wh: tuple[int, int], orientation: int
) -> None:
    path = scene_picture(scenes, tmp_path, wh, orientation)
    (ours,) = predictor.answer([Question(path, "grounding", "the red star")])
    text, box = plain_answer(plain, path, ours.prompt)
    assert ours.text == text
    assert list(ours.objects[0].box_xyxy) == pytest.approx(box, abs=1e-6)
    upright = open_upright(path)
    assert upright.size == (wh if orientation in (1, 3) else wh[::-1])


def test_a_batch_answers_as_one_by_one(predictor: Predictor, scenes: PreparedDataset) -> None:
    questions = [Question.of(sample, scenes.path) for sample in scenes.samples("train")[:7]]
    together = list(predictor.answer(questions, batch_size=7))
    one_by_one = list(predictor.answer(questions, batch_size=1))
    assert [p.text for p in together] == [p.text for p in one_by_one]
    for a, b in zip(together, one_by_one, strict=True):
        assert a.question == b.question
        assert a.objects[0].score == pytest.approx(b.objects[0].score, rel=1e-3)


def test_a_score_is_the_mean_probability_of_the_digits_times_that_of_a_box_at_all(
    predictor: Predictor, plain: tuple, scenes: PreparedDataset
) -> None:
    question = Question.of(scenes.samples("train")[0], scenes.path)
    (found,) = predictor.answer([question])
    model, processor = plain
    asked = predictor.encoder.question(question)
    answer = processor.tokenizer(found.text, add_special_tokens=False).input_ids
    ids = torch.tensor([asked.input_ids + answer])
    with torch.no_grad():
        logits = model(
            input_ids=ids, pixel_values=asked.picture.pixel_values_PD, image_grid_thw=asked.picture.grid_thw[None],
            mm_token_type_ids=(ids == model.config.image_token_id).int(),
        ).logits[0]  # fmt: skip
    start, end = read_answer(found.text).objects[0].span
    at, digits, lead = 0, [], []
    for position, token in enumerate(answer):
        piece = processor.decode([token])
        log = torch.log_softmax(logits[len(asked.input_ids) + position - 1], -1)[token].item()
        if start < at + len(piece) and at < end and any(c.isdigit() for c in piece):
            digits.append(log)
        elif at + len(piece) <= start:
            lead.append(log)
        at += len(piece)
    assert at == len(found.text)
    expected = torch.tensor(digits).mean().exp() * torch.tensor(lead).min().exp()
    assert found.objects[0].score == pytest.approx(expected.item(), rel=1e-3)


def test_each_box_is_scored_by_its_own_choice_and_its_own_digits() -> None:
    """Read from the parts of an answer: [, {, numbers, label, then a comma or the end."""
    parts = [
        ("[{", 0.8), ('"bbox_2d": [', 1.0), ("10, 20, ", 0.9), ("30, 40", 0.4), ("], ", 1.0), ('"label": "a"', 0.1),
        ("}, {", 0.5), ('"bbox_2d": [', 1.0), ("1, 2, 3, 4", 0.7), ('], "label": "b"}]', 0.2),
    ]  # fmt: skip
    pieces, probs = [piece for piece, _ in parts], [prob for _, prob in parts]
    text = "".join(pieces)
    spans = [found.span for found in read_answer(text).objects]
    expected = [0.8 * (0.9 * 0.4) ** 0.5, 0.5 * 0.7]
    assert _scores(text, pieces, probs, spans) == pytest.approx(expected)
    assert _scores(text, pieces, probs, [spans[1], None, spans[0]])[1] is None
    prose = ["The dog is ", "at ", "(1, 2), ", "(30, 40)", "."]
    span = read_answer("".join(prose)).objects[0].span
    assert _scores("".join(prose), prose, [0.5, 0.3, 1.0, 1.0, 0.1], [span]) == pytest.approx([0.3])


def test_find_draws_and_answers_for_folders_and_globs(scenes: PreparedDataset, tmp_path: Path) -> None:
    pictures = tmp_path / "in"
    pictures.mkdir()
    for number in range(3):
        scene_picture(scenes, pictures, (140, 112 + 28 * number), 1)
    (pictures / "notes.txt").write_text("no picture")
    by_folder = find([pictures], "find the red star", model="tiny", gpus="cpu", save=tmp_path / "drawn", root=tmp_path)
    by_glob = find([str(pictures / "*.jpg")], "the red star", model="tiny", gpus="cpu", root=tmp_path)
    assert [p.to_json() for p in by_folder] == [p.to_json() for p in by_glob]
    drawn = sorted((tmp_path / "drawn").iterdir())
    assert len(drawn) == 3
    for prediction in by_folder:
        before = open_upright(prediction.question.image)
        after = Image.open(tmp_path / "drawn" / f"{prediction.question.image.stem}-boxes.png")
        factor = after.width // before.width
        assert after.size == (before.width * factor, before.height * factor)
        assert max(after.size) >= READABLE_PX
        plain = before.resize(after.size, Image.Resampling.NEAREST)
        changed = ImageChops.difference(plain, after).getbbox()
        x1, y1, x2, y2 = (v * factor for v in prediction.objects[0].box_xyxy)
        assert changed is not None
        assert changed[0] <= x1 + 4 and changed[1] <= y1 + 4 and changed[2] >= x2 - 4 and changed[3] >= y2 - 4


def test_a_json_line_is_read_back_as_it_was(predictor: Predictor, scenes: PreparedDataset) -> None:
    (found,) = predictor.answer([Question.of(scenes.samples("train")[0], scenes.path)])
    line = found.to_json()
    assert {"image", "query", "objects", "status", "text", "prompt"} <= line.keys()
    assert Prediction.from_json(json.loads(json.dumps(line))).to_json() == line


@pytest.mark.parametrize(
    ("images", "text", "task", "says"),
    [
        ([], "the dog", "grounding", "no picture"),
        (["a.jpg"], None, "grounding", "TEXT is missing"),
        (["a.jpg"], "  ", "grounding", "TEXT is missing"),
        (["a.jpg"], "b.JPG", "grounding", "TEXT is missing"),
        (["a.jpg"], "a dog", "caption", "needs no text"),
    ],
    ids=["no-picture", "no-text", "blank", "picture-in-its-place", "caption-with-text"],
)
def test_what_cannot_be_asked_is_refused(images: list[str], text: str | None, task: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        make_questions(images, text, task)
    assert caught.value.hint


def test_unreadable_pictures_are_named_before_a_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "page.jpg").write_text("<html></html>")
    for name, says in (("empty.jpg", "0 bytes"), ("page.jpg", "no picture"), ("absent.jpg", "does not exist")):
        with pytest.raises(DataError, match=says):
            find([tmp_path / name], "the dog", model="a model that is not there", root=tmp_path)


def test_categories_are_divided_at_commas_of_both_scripts(tmp_path: Path) -> None:
    Image.new("RGB", (30, 30)).save(tmp_path / "a.png")
    (question,) = make_questions([tmp_path / "a.png"], "dog, 猫，  red car,", "detection")
    assert question.categories == ("dog", "猫", "red car")


@pytest.mark.parametrize(
    ("file", "task", "figure"),
    [("instances.json", "detection", "AP50"), ("captions.json", "caption", "CIDEr")],
    ids=["detection", "caption"],
)
def test_detection_and_captions_of_coco_are_asked_and_scored(tmp_path: Path, file: str, task: str, figure: str) -> None:
    real = SHARED / "coco36"
    root = real if real.is_dir() else write_coco(tmp_path / "coco")
    prepared = prepare_dataset(str(root / file), out=tmp_path / task, root=tmp_path)
    result = evaluate_run(model="tiny", data=prepared.path, limit=4, gpus="cpu", root=tmp_path)
    scores = result.metrics["scores"]
    assert scores["n"] == min(4, prepared.manifest.splits[result.metrics["split"]].samples)
    assert figure in scores[task]
    assert 0 <= scores["parse_rate"] <= 1
    assert len((result.folder / "predictions.jsonl").read_text().splitlines()) == scores["n"]
