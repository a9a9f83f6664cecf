"""A model asked for known boxes: whether weights, transformers and frame agree, in a minute."""

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from qwenft.core.answer import read_answer
from qwenft.core.boxes import Box, iou, to_image_px
from qwenft.core.config import DEFAULT_MODEL
from qwenft.core.events import Emit, ignore
from qwenft.core.predictions import Prediction, Question
from qwenft.doctor.findings import Finding
from qwenft.doctor.shapes import Known, check_budget, draw_known
from qwenft.model.fetch import check_answerable

COUNT: Final = 20
ENOUGH_IOU: Final = 0.5
"""Mean over all pictures: a model that sees two large shapes is far above it in the right frame."""
ENOUGH_PARSED: Final = 0.9
INPUT: Final = "input pixels"
READINGS: Final[Mapping[str, Callable[[Box, Known], Box]]] = {
    INPUT: lambda box, known: to_image_px(box, known.image_wh, known.input_wh),
    "image pixels": lambda box, known: box,
    "0-1000": lambda box, known: to_image_px(box, known.image_wh, (1000, 1000)),
}
"""What an answered box could mean -> that box in image px.  Qwen2.5-VL answers in input pixels; Qwen2-VL and Qwen3-VL
in 0-1000."""


@dataclass(frozen=True, slots=True)
class ModelCheck:
    """What a model answered."""

    findings: tuple[Finding, ...]
    readings: dict[str, float]
    """Mean IoU with the known boxes under each reading of the answers."""
    parse_rate: float
    questions_per_s: float
    load_s: float

    def to_json(self) -> dict[str, Any]:
        """One JSON object, without the findings."""
        return {key: value for key, value in asdict(self).items() if key != "findings"}


def check_model(model: str, *, gpus: str | None = None, emit: Emit = ignore) -> ModelCheck:
    """Ask a base model for COUNT known boxes.  Raises ModelError, HubError, DeviceError where it cannot be loaded."""
    check_answerable(model, gpus)
    from qwenft.predict.generate import Predictor

    began = time.monotonic()
    predictor = Predictor.load(model, gpus=gpus, emit=emit)
    budget = check_budget(predictor.contract.min_pixels, predictor.contract.max_pixels)
    predictor.encoder.contract = predictor.contract.with_budget(*budget)
    load_s = time.monotonic() - began
    with tempfile.TemporaryDirectory(prefix="qwenft-") as folder:
        known = list(draw_known(Path(folder), COUNT, *budget))
        began = time.monotonic()
        answers = list(predictor.answer([Question(one.path, "grounding", one.query) for one in known], emit=emit))
        seconds = time.monotonic() - began
    readings = {name: round(_mean_iou(known, answers, read), 4) for name, read in READINGS.items()}
    parsed = sum(answer.status in ("ok", "salvaged", "empty") for answer in answers) / len(answers)
    speed = len(answers) / max(seconds, 1e-6)
    findings = (*_findings(readings, parsed, answers), Finding("speed", "ok", _speed(speed, load_s)))
    return ModelCheck(findings, readings, parsed, round(speed, 2), round(load_s, 1))


def _mean_iou(known: list[Known], answers: list[Prediction], read: Callable[[Box, Known], Box]) -> float:
    """Over all pictures; an answer without a box counts 0."""
    total = 0.0
    for one, answer in zip(known, answers, strict=True):
        said = read_answer(answer.text).objects  # as the numbers stand in the text, in no frame yet
        total += iou(read(said[0].box_xyxy, one), one.box_xyxy) if said else 0.0
    return total / len(known)


def _speed(speed: float, load_s: float) -> str:
    return f"{speed:.1f} questions/s, one a picture; loaded in {load_s:.1f} s"


def _findings(readings: Mapping[str, float], parsed: float, answers: list[Prediction]) -> list[Finding]:
    best = max(readings, key=lambda name: readings[name])
    shown = ", ".join(f"{value:.2f} as {name}" for name, value in readings.items())
    if parsed < ENOUGH_PARSED:
        said = next(answer.text for answer in answers if answer.status == "unparsable")
        text = f"{parsed:.0%} can be read as boxes; e.g. {said[:60]!r}"
        answering = Finding("answers", "broken", text, f"an -Instruct model of Qwen2.5-VL: --model {DEFAULT_MODEL}")
    else:
        answering = Finding("answers", "ok", f"{parsed:.0%} can be read as boxes")
    text = f"mean IoU {shown}"
    if readings[INPUT] >= ENOUGH_IOU and best == INPUT:
        return [answering, Finding("frame", "ok", text)]
    if readings[best] >= ENOUGH_IOU:
        mend = f"qwenft reads {INPUT}, as Qwen2.5-VL answers: --model {DEFAULT_MODEL}"
        return [answering, Finding("frame", "broken", f"{text}: it answers in {best}", mend)]
    mend = "qwenft doctor says whether the versions fit; hf cache verify whether the weights are whole"
    return [answering, Finding("frame", "broken", f"{text}: its boxes lie elsewhere under each reading", mend)]
