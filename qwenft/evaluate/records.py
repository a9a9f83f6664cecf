"""Answers as the report shows them: what was asked, what is true, what each model said, and how it did; pure."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from qwenft.core.answer import Task
from qwenft.core.predictions import Prediction
from qwenft.core.samples import Sample
from qwenft.evaluate.breakdown import BREAKDOWNS
from qwenft.evaluate.captions import caption_values
from qwenft.evaluate.detection import detection_counts
from qwenft.evaluate.metrics import READABLE, grounding_outcome
from qwenft.evaluate.rejection import kind_of, share

GALLERY: Final = 12
"""Pictures in each of the galleries."""
Values = Sequence[float | None]


def answer_values(samples: Sequence[Sample], predictions: Sequence[Prediction]) -> Values:
    """How good each answer is, in [0, 1], in the order given; None: it cannot be held against anything.

    IoU where something is there, 1 or 0 for a rejection of what is absent; detection: F1@0.5; caption: ROUGE-L.
    """
    found: list[float | None] = [None] * len(samples)
    for task, score in _VALUES.items():
        at = [number for number, sample in enumerate(samples) if sample.task == task]
        for number, value in zip(at, score([samples[n] for n in at], [predictions[n] for n in at]), strict=True):
            found[number] = value
    return found


def _grounding(samples: Sequence[Sample], predictions: Sequence[Prediction]) -> Values:
    outcomes = [grounding_outcome(sample, prediction) for sample, prediction in zip(samples, predictions, strict=True)]
    return [None if o is None else o.iou if o.num_true else float(o.rejected) for o in outcomes]


def _detection(samples: Sequence[Sample], predictions: Sequence[Prediction]) -> Values:
    counts = detection_counts(samples, predictions)
    readable = [prediction.status in READABLE for prediction in predictions]
    f1s = [share(2 * c.matched, c.num_predicted + c.num_true) for c in counts]
    return [float(ok) if f1 is None else f1 for f1, ok in zip(f1s, readable, strict=True)]


def _captions(samples: Sequence[Sample], predictions: Sequence[Prediction]) -> Values:
    values = caption_values(
        {sample.id: sample.captions for sample in samples},
        {s.id: p.text if p.status in READABLE else "" for s, p in zip(samples, predictions, strict=True)},
    ).get("ROUGE_L", {})
    return [values.get(sample.id) for sample in samples]


_VALUES: Final[Mapping[Task, Callable[[Sequence[Sample], Sequence[Prediction]], Values]]] = {
    "grounding": _grounding,
    "detection": _detection,
    "caption": _captions,
}


def answer_records(
    samples: Sequence[Sample],
    ours: Sequence[Prediction],
    theirs: Sequence[Prediction] | None,
    trained_on: frozenset[str] = frozenset(),
) -> list[dict[str, Any]]:
    """One record an answer, in the samples' order, fit for JSON.  trained_on: pictures that the adapter has seen."""
    our_values = answer_values(samples, ours)
    their_values = answer_values(samples, theirs) if theirs is not None else [None] * len(samples)
    others: Sequence[Prediction | None] = theirs if theirs is not None else [None] * len(samples)
    return [
        {
            **_asked(sample),
            "seen": sample.picture in trained_on,
            "ours": _said(mine, value),
            "base": None if other is None else _said(other, their_value),
        }
        for sample, mine, value, other, their_value in zip(samples, ours, our_values, others, their_values, strict=True)
    ]


def _asked(sample: Sample) -> dict[str, Any]:
    absent = sample.task == "grounding" and not sample.objects
    return {
        "id": sample.id,
        "task": sample.task,
        "absent": absent,
        "query": {"grounding": sample.query, "detection": ", ".join(sample.categories)}.get(sample.task) or "",
        "picture": sample.picture,
        "wh": list(sample.image_wh),
        "truth": [[*(round(v, 1) for v in item.bbox), item.label, int(item.crowd)] for item in sample.objects],
        "captions": list(sample.captions),
        "groups": _groups(sample),
    }


def _groups(sample: Sample) -> list[str]:
    """What the page's filter knows a question by: its groups, or which kind of negative it is."""
    if kind := kind_of(sample) if sample.task != "caption" else "":
        return [f"absent: {kind}"]
    if sample.task != "grounding":
        return []
    return [group for name in BREAKDOWNS if (group := BREAKDOWNS[name](sample)) is not None]


def _said(prediction: Prediction, value: float | None) -> dict[str, Any]:
    scores = [item.score for item in prediction.objects if item.score is not None]
    return {
        "boxes": [[*(round(v, 1) for v in item.box_xyxy), item.label, item.score] for item in prediction.objects],
        "status": prediction.status,
        "how": prediction.how,
        "text": prediction.text,
        "score": max(scores) if scores else None,
        "value": None if value is None else round(value, 4),
    }


def galleries(records: Sequence[Mapping[str, Any]], most: int = GALLERY) -> dict[str, list[int]]:
    """Which records show most, as indexes: the worst (the surest first), the best, and what differs most from the base.

    Each gallery shows a picture once, and only answers that can be judged.
    """
    judged = [number for number, record in enumerate(records) if record["ours"]["value"] is not None]

    def value(number: int) -> float:
        return float(records[number]["ours"]["value"])

    def score(number: int) -> float:
        return float(records[number]["ours"]["score"] or 0.0)

    def change(number: int) -> float:
        base = records[number]["base"]
        return 0.0 if base is None or base["value"] is None else value(number) - float(base["value"])

    gained = sorted((n for n in judged if change(n) > 0), key=lambda n: (-change(n), n))
    lost = sorted((n for n in judged if change(n) < 0), key=lambda n: (change(n), n))
    return {
        "worst": _distinct(records, sorted(judged, key=lambda n: (value(n), -score(n), n)), most),
        "best": _distinct(records, sorted(judged, key=lambda n: (-value(n), -score(n), n)), most),
        "gained": _distinct(records, gained, most),
        "lost": _distinct(records, lost, most),
    }


def _distinct(records: Sequence[Mapping[str, Any]], order: Sequence[int], most: int) -> list[int]:
    chosen: dict[str, int] = {}
    for number in order:
        if len(chosen) == most:
            break
        chosen.setdefault(records[number]["picture"], number)
    return list(chosen.values())
