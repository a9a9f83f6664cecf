"""Scenes: one picture with one question about it, its true and its predicted boxes by category; pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from qwenft.core.boxes import Box, area
from qwenft.core.predictions import Detected, Prediction
from qwenft.core.samples import Sample
from qwenft.evaluate.metrics import readable_objects
from qwenft.evaluate.rejection import SOURCE, kind_of


@dataclass(frozen=True, slots=True)
class TrueBox:
    """One annotation."""

    category: int
    """Index into the scene set's categories."""
    box_xywh: Box
    area: float
    """px²; a COCO file's own (of the mask), else that of the box.  It decides between small, medium and large."""
    crowd: bool


@dataclass(frozen=True, slots=True)
class FoundBox:
    """One predicted box."""

    category: int | None
    """None: a label that is no category here."""
    box_xywh: Box
    score: float


@dataclass(frozen=True, slots=True)
class Scene:
    """One picture with one question about it: COCO's "image"."""

    true: tuple[TrueBox, ...]
    found: tuple[FoundBox, ...]
    rejected: bool | None = None
    """The model said that there is none; None where that cannot be known (a COCO results file has only boxes)."""
    kind: str = SOURCE
    """Of a negative, as of `kind_of`; it says something only where nothing is true."""


def detection_scenes(
    samples: Sequence[Sample], predictions: Sequence[Prediction], names: Mapping[str, str]
) -> list[Scene]:
    """The scenes of detection samples, one prediction a sample in the same order; `names` as of `category_names`."""
    return [_scene(s, p, names) for s, p in zip(samples, predictions, strict=True)]


def grounding_scenes(samples: Sequence[Sample], predictions: Sequence[Prediction]) -> list[Scene]:
    """The scenes of grounding samples: one category, whatever the labels say."""
    return [
        Scene(
            tuple(TrueBox(0, _to_xywh(o.bbox), area(o.bbox), o.crowd) for o in sample.objects),
            tuple(FoundBox(0, _to_xywh(o.box_xyxy), _score(o)) for o in readable_objects(prediction)),
            rejected=prediction.status == "empty" and not prediction.objects,
            kind=kind_of(sample),
        )
        for sample, prediction in zip(samples, predictions, strict=True)
    ]


def without_scores(scenes: Iterable[Scene]) -> list[Scene]:
    """The same scenes with every box as sure as any other."""
    return [replace(scene, found=tuple(replace(box, score=1.0) for box in scene.found)) for scene in scenes]


def label_key(label: str) -> str:
    """A label as it is compared: after strip and without case."""
    return label.strip().casefold()


def category_names(samples: Iterable[Sample]) -> dict[str, str]:
    """Every category asked for or annotated, sorted: how it is compared -> how it is shown."""
    spellings: dict[str, set[str]] = {}
    for sample in samples:
        for name in (*sample.categories, *(item.label for item in sample.objects)):
            spellings.setdefault(label_key(name), set()).add(name.strip())
    return {key: min(spellings[key]) for key in sorted(spellings)}


def _scene(sample: Sample, prediction: Prediction, names: Mapping[str, str]) -> Scene:
    index = {key: number for number, key in enumerate(names)}
    true = tuple(
        TrueBox(index[label_key(item.label)], _to_xywh(item.bbox), area(item.bbox), item.crowd)
        for item in sample.objects
    )
    found = tuple(
        FoundBox(index.get(label_key(item.label)), _to_xywh(item.box_xyxy), _score(item))
        for item in readable_objects(prediction)
    )
    return Scene(true, found, rejected=prediction.status == "empty" and not found, kind=kind_of(sample))


def _score(item: Detected) -> float:
    return 1.0 if item.score is None else item.score


def _to_xywh(box_xyxy: Box) -> Box:
    x1, y1, x2, y2 = box_xyxy
    return (x1, y1, max(0.0, x2 - x1), max(0.0, y2 - y1))


def to_xyxy(box_xywh: Box) -> Box:
    """x, y, width, height as x1, y1, x2, y2."""
    x, y, w, h = box_xywh
    return (x, y, x + w, y + h)


def overlap(one_xyxy: Box, other_xyxy: Box) -> float:
    """Area that two boxes share, px²."""
    width = min(one_xyxy[2], other_xyxy[2]) - max(one_xyxy[0], other_xyxy[0])
    height = min(one_xyxy[3], other_xyxy[3]) - max(one_xyxy[1], other_xyxy[1])
    return max(0.0, width) * max(0.0, height)
