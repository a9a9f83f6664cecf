"""Grounding figures by category, by the true box's size and by the length of the expression; pure.

Only what is there is broken down: absent things have figures of their own and are never mixed in.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from qwenft.core.boxes import area
from qwenft.core.samples import Sample
from qwenft.evaluate.bootstrap import score_interval
from qwenft.evaluate.captions import tokenize
from qwenft.evaluate.metrics import GroundingOutcome
from qwenft.evaluate.rejection import share

SIZES: Final[Mapping[str, float]] = {"small": 32.0**2, "medium": 96.0**2, "large": float("inf")}
"""COCO's three: name -> areas under so many px² (pycocotools, Params.areaRng)."""
LENGTHS: Final[Mapping[str, float]] = {
    "1-3 words": 3,
    "4-7 words": 7,
    "8-12 words": 12,
    "13 words or more": float("inf"),
}
"""Name -> up to so many words; a Chinese or Japanese sign counts as a word."""
_RESAMPLES: Final = 1000


def size_of(sample: Sample) -> str | None:
    """Small, medium or large by the mean area of the true boxes, px² of the stored picture; None: there is no box."""
    areas = [area(item.bbox) for item in sample.objects if not item.crowd]
    if not areas:
        return None
    mean = sum(areas) / len(areas)
    return next(name for name, limit in SIZES.items() if mean < limit)


def length_of(sample: Sample) -> str | None:
    """How long the expression is; None where the sample has none."""
    words = len(tokenize(sample.query or ""))
    return next(name for name, limit in LENGTHS.items() if words <= limit) if words else None


def category_of(sample: Sample) -> str | None:
    """The label that all true boxes share, where it says more than the expression itself."""
    labels = {item.label.strip() for item in sample.objects if not item.crowd}
    label = labels.pop() if len(labels) == 1 else ""
    return label if label and label.casefold() != (sample.query or "").strip().casefold() else None


BREAKDOWNS: Final[Mapping[str, Callable[[Sample], str | None]]] = {
    "category": category_of,
    "size": size_of,
    "length": length_of,
}
"""What answers are grouped by -> the group of a sample; None: it belongs to none."""


def grounding_breakdown(samples: Iterable[Sample], outcomes: Sequence[GroundingOutcome]) -> dict[str, Any]:
    """Figures of the positives by group: {breakdown: {group: {"n", "pictures", "Acc@0.5", "mean_iou", "interval"}}}.

    `interval` is that of Acc@0.5 over pictures.  Groups stand in their natural order, categories by how many there are.
    """
    by_id = {sample.id: sample for sample in samples}
    positives = [outcome for outcome in outcomes if outcome.num_true]
    return {name: _groups(positives, by_id, group) for name, group in BREAKDOWNS.items()}


def _groups(
    outcomes: Sequence[GroundingOutcome], samples: Mapping[str, Sample], group_of: Callable[[Sample], str | None]
) -> dict[str, Any]:
    members: dict[str, list[GroundingOutcome]] = {}
    for outcome in outcomes:
        group = group_of(samples[outcome.sample_id])
        if group is not None:
            members.setdefault(group, []).append(outcome)
    order = [*SIZES, *LENGTHS]
    names = sorted(members, key=lambda n: (order.index(n) if n in order else -len(members[n]), n))
    return {name: _figures(members[name]) for name in names}


def _figures(outcomes: Sequence[GroundingOutcome]) -> dict[str, Any]:
    pictures, hits = [o.picture for o in outcomes], [float(o.hit_50) for o in outcomes]
    return {
        "n": len(outcomes),
        "pictures": len(set(pictures)),
        "Acc@0.5": share(sum(hits), len(hits)),
        "mean_iou": share(sum(o.iou for o in outcomes), len(outcomes)),
        "interval": score_interval(pictures, hits, resamples=_RESAMPLES).to_json(),
    }
