"""A question about more categories than one prompt takes is asked in several, and their answers become one."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Final

from qwenft.core.answer import divided
from qwenft.core.boxes import iou
from qwenft.core.predictions import Detected, Prediction, PredictionStatus, Question

SAME_BOX: Final = 0.9
"""IoU from which on two boxes of one label, from two of the questions, are the same thing said twice."""


def in_parts(question: Question) -> list[Question]:
    """What is asked in its place: itself, or several with at most MOST_CATEGORIES each; own prompts stay whole."""
    parts = divided(question.categories) if question.task == "detection" and not question.ask else []
    return [replace(question, categories=part) for part in parts] if len(parts) > 1 else [question]


def put_together(questions: Sequence[Question], answers: Iterable[Prediction]) -> Iterator[Prediction]:
    """One answer a question, as soon as its parts are there.  answers: to the parts of all questions, in order.

    The boxes stand from top to bottom, then from left to right; `text` and `prompt` have a line a part.
    """
    left = iter(answers)
    for question in questions:
        parts = list(islice(left, len(in_parts(question))))
        yield parts[0] if len(parts) == 1 else _joined(question, parts)


def _joined(question: Question, parts: Sequence[Prediction]) -> Prediction:
    return replace(
        parts[0],
        question=question,
        status=_status(parts),
        objects=tuple(sorted(_once(parts), key=lambda item: (item.box_xyxy[1], item.box_xyxy[0]))),
        text="\n".join(part.text for part in parts),
        prompt="\n".join(part.prompt for part in parts),
        how="; ".join(f"part {number}: {part.how}" for number, part in enumerate(parts, 1) if part.how),
    )


def _status(parts: Sequence[Prediction]) -> PredictionStatus:
    """What all say; else ok where every part can be read, or salvaged: something is missing, as of a list cut off."""
    found = {part.status for part in parts}
    if len(found) == 1:
        return found.pop()
    return "ok" if found == {"ok", "empty"} else "salvaged"


def _once(parts: Sequence[Prediction]) -> list[Detected]:
    """Every box; the surer one where two parts say the same."""
    kept: list[Detected] = []
    for item in (item for part in parts for item in part.objects):
        twin = next((k for k in kept if k.label == item.label and iou(k.box_xyxy, item.box_xyxy) >= SAME_BOX), None)
        if twin is None:
            kept.append(item)
        elif (item.score or 0.0) > (twin.score or 0.0):
            kept[kept.index(twin)] = item
    return kept
