"""The doctor asks a model for known boxes: the frame it answers in is told, whatever it is."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from qwenft.core.answer import read_answer, write_answer
from qwenft.core.boxes import Box, smart_resize
from qwenft.core.predictions import Prediction, Question
from qwenft.doctor import model as model_check
from qwenft.doctor.diagnose import diagnose
from qwenft.doctor.shapes import Known, check_budget, draw_known


def test_the_embedded_model_finds_the_known_boxes_in_its_own_frame() -> None:
    found = diagnose(model="tiny", gpus="cpu")
    assert found.model is not None
    assert found.model.readings["input pixels"] > 0.9
    assert max(found.model.readings["image pixels"], found.model.readings["0-1000"]) < 0.2
    assert found.model.parse_rate == 1
    assert {row.verdict for row in found.findings} == {"ok"}
    assert found.to_json()["model"]["readings"] == found.model.readings


class Told:
    """Stands for a model that knows the boxes and writes them in a frame of its own, or says something else."""

    def __init__(self, say: Callable[[Known], str], known: list[Known]) -> None:
        from qwenft.model.load import base_contract

        self.contract, self.encoder = base_contract("tiny"), SimpleNamespace(contract=None)
        self._say, self._known = say, known

    def answer(self, questions: list[Question], *, emit: object) -> Iterator[Prediction]:
        for question, known in zip(questions, self._known, strict=True):
            text = self._say(known)
            yield Prediction(question, read_answer(text).status, (), text, "")


def written(box: Box, query: str) -> str:
    return write_answer([(box, query)], (5000, 5000))


def in_input_px(known: Known) -> str:
    return written(tuple(v / 2 for v in known.box_xyxy), known.query)  # type: ignore[arg-type]


def in_image_px(known: Known) -> str:
    return written(known.box_xyxy, known.query)


def in_thousandths(known: Known) -> str:
    (w, h), (x1, y1, x2, y2) = known.image_wh, known.box_xyxy
    return written((x1 * 1000 / w, y1 * 1000 / h, x2 * 1000 / w, y2 * 1000 / h), known.query)


ANSWERS = [
    ("input pixels", in_input_px, "ok", "ok", "input pixels"),
    ("image pixels", in_image_px, "ok", "broken", "it answers in image pixels"),
    ("0-1000", in_thousandths, "ok", "broken", "it answers in 0-1000"),
    ("boxes elsewhere", lambda known: written((0, 0, 3, 3), known.query), "ok", "broken", "under each reading"),
    ("prose", lambda known: "I see two shapes.", "broken", "broken", "under each reading"),
]


@pytest.mark.parametrize(("say", "answers", "frame", "says"), [pytest.param(*row[1:], id=row[0]) for row in ANSWERS])
def test_the_frame_that_a_model_answers_in_is_told(
    monkeypatch: pytest.MonkeyPatch, say: Callable[[Known], str], answers: str, frame: str, says: str
) -> None:
    known: list[Known] = []

    def drawn(*arguments: Any) -> Iterator[Known]:
        for one in draw_known(*arguments):
            known.append(one)
            yield one

    monkeypatch.setattr(model_check, "draw_known", drawn)
    monkeypatch.setattr("qwenft.predict.generate.Predictor.load", lambda *_, **__: Told(say, known))
    found = {row.check: row for row in model_check.check_model("tiny").findings}
    assert (found["answers"].verdict, found["frame"].verdict) == (answers, frame), found
    assert says in found["frame"].found


@pytest.mark.parametrize(
    "budget",
    [(3136, 12845056), (3136, 1003520), (112 * 112, 168 * 168), (3136, 84 * 84), (300_000, 400_000)],
    ids=["processor's", "default", "embedded", "small", "narrow"],
)
def test_known_boxes_are_tight_and_the_pictures_are_halved_by_any_budget(
    tmp_path: Path, budget: tuple[int, int]
) -> None:
    low, high = check_budget(*budget)
    made = list(draw_known(tmp_path, 12, low, high))
    assert len({one.query for one in made}) > 6
    for one in made:
        assert smart_resize(one.image_wh, low, high) == one.input_wh
        image = Image.open(one.path)
        assert image.size == one.image_wh == (one.input_wh[0] * 2, one.input_wh[1] * 2)
        ground = image.getpixel((0, 0))
        x1, y1, x2, y2 = (round(v) for v in one.box_xyxy)
        inside = image.crop((x1, y1, x2, y2))
        for side in ((0, 0, inside.width, 1), (0, 0, 1, inside.height)):
            assert len(inside.crop(side).getcolors() or ()) >= 1
            assert inside.crop(side).getcolors() != [(side[2] * side[3], ground)], "the box is not tight"
