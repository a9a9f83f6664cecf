"""Detection figures: COCO's twelve, F1@0.5 and per category, through faster-coco-eval.

AP ranks boxes by score.  Without scores every box counts 1.0, AP then ranks nothing, and `scores: false` says so.
F1@0.5 takes every box that was answered: a threshold chosen on the scored data would flatter.

A label that was never asked for belongs to no category of the truth: COCO's protocol has no class to hold it against,
so AP does not see it.  It is counted in `unknown_labels`, and precision and F1@0.5 take it for a false positive.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from qwenft.core.boxes import Box, area
from qwenft.core.errors import DataError
from qwenft.core.files import read_json
from qwenft.core.predictions import Detected, Prediction
from qwenft.core.samples import Sample
from qwenft.evaluate.metrics import box_figures, match_boxes, negative_figures, readable_objects

COCO_NAMES: Final = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""COCO's twelve, in the order of COCOeval.stats (https://cocodataset.org/#detection-eval)."""
_NUM_LABELS_SHOWN: Final = 20


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


_AnyBox = TypeVar("_AnyBox", TrueBox, FoundBox)


@dataclass(frozen=True, slots=True)
class Scene:
    """One picture with one question about it: COCO's "image"."""

    true: tuple[TrueBox, ...]
    found: tuple[FoundBox, ...]
    rejected: bool | None = None
    """The model said that there is none; None where that cannot be known (a COCO results file has only boxes)."""


@dataclass(frozen=True, slots=True)
class MatchCounts:
    """Boxes of one scene at an IoU of 0.5; what falls on a crowd is in none of them."""

    matched: int
    num_predicted: int
    num_true: int


def score_detection(samples: Sequence[Sample], predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Score answers to detection samples, one prediction a sample in the same order.

    Labels and categories are compared after strip and without case.  A prepared sample knows no masks: its small,
    medium and large go by the area of the box.  An answer that could not be read has no boxes.
    """
    names = _category_names(samples)
    # Ties in score are broken by the pictures' order, so that order must not be the caller's.
    pairs = sorted(zip(samples, predictions, strict=True), key=lambda pair: pair[0].id)
    scenes = [_scene(sample, prediction, names) for sample, prediction in pairs]
    found = [item for _, prediction in pairs for item in readable_objects(prediction)]
    unknown = Counter(item.label.strip() for item in found if _key(item.label) not in names)
    return _figures(scenes, list(names.values()), _have_scores(item.score for item in found), unknown)


def detection_counts(samples: Sequence[Sample], predictions: Sequence[Prediction]) -> list[MatchCounts]:
    """What F1@0.5 is made of, a sample each, for the bootstrap."""
    names = _category_names(samples)
    return [_count_matches(_scene(s, p, names)) for s, p in zip(samples, predictions, strict=True)]


def score_coco_files(results: Path, references: Path) -> dict[str, Any]:
    """Score a COCO results file (a list of image_id, category_id, bbox x y w h, score) against an instances file.

    Equal to pycocotools' figures, but for an annotation of id 0, which that library takes for "not matched".
    A missing score counts as 1.0.  Raises DataError naming the file and the entry that does not fit.
    """
    truth, answers = read_json(references), read_json(results)
    if not isinstance(truth, dict) or not all(isinstance(truth.get(k), list) for k in _PARTS):
        raise DataError(
            f"{references} is no COCO instances file: it needs the lists {', '.join(_PARTS)}",
            hint="give the file that the pictures were annotated in, e.g. instances_val2017.json",
        )
    if not isinstance(answers, list):
        raise DataError(
            f"{results} is no COCO results file: it must be one list of objects",
            hint="for predictions of qwenft: qwenft eval --predictions FILE --data …",
        )
    known = _by_id(truth["categories"], references)
    categories = {id_: number for number, id_ in enumerate(known)}
    images = list(_by_id(truth["images"], references))
    true = _read_boxes(truth["annotations"], references, images, lambda item: _true_box(item, categories))
    found = _read_boxes(answers, results, images, lambda item: _found_box(item, categories))
    unknown = Counter(str(item["category_id"]) for item in answers if item["category_id"] not in categories)
    scenes = [Scene(tuple(true[image]), tuple(found[image])) for image in images]
    return _figures(scenes, _shown_names(known), _have_scores(item.get("score") for item in answers), unknown)


_PARTS: Final = ("images", "annotations", "categories")


def _by_id(items: list[Any], path: Path) -> dict[Any, dict[str, Any]]:
    """Sorted, as COCOeval goes through them: their order decides between equal scores."""
    try:
        return {item["id"]: item for item in sorted(items, key=lambda item: item["id"])}
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: an image or a category without a usable id ({error!r})") from error


def _shown_names(categories: Mapping[Any, Mapping[str, Any]]) -> list[str]:
    """The categories' names, with the id behind a name that stands twice."""
    names = [str(item.get("name", id_)) for id_, item in categories.items()]
    return [f"{name} ({id_})" if names.count(name) > 1 else name for name, id_ in zip(names, categories, strict=True)]


def _read_boxes(
    items: list[Any], path: Path, images: list[Any], read: Callable[[Mapping[str, Any]], _AnyBox]
) -> dict[Any, list[_AnyBox]]:
    boxes: dict[Any, list[_AnyBox]] = {image: [] for image in images}
    for number, item in enumerate(items, 1):
        try:
            box, image = read(item), item["image_id"]
            is_known = image in boxes
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}, entry {number}: not a box ({error!r})") from error
        if not is_known:
            raise DataError(
                f"{path}, entry {number}: image_id {image!r} is none of the {len(images)} images",
                hint="are results and references of the same pictures?",
            )
        boxes[image].append(box)
    return boxes


def _true_box(item: Mapping[str, Any], categories: Mapping[Any, int]) -> TrueBox:
    box = _xywh(item["bbox"])
    own_area = item.get("area")
    return TrueBox(
        categories[item["category_id"]],
        box,
        box[2] * box[3] if own_area is None else float(own_area),
        bool(item.get("iscrowd", 0)),
    )


def _found_box(item: Mapping[str, Any], categories: Mapping[Any, int]) -> FoundBox:
    category, box, score = categories.get(item["category_id"]), _xywh(item["bbox"]), item.get("score")
    return FoundBox(category, box, 1.0 if score is None else float(score))


def _xywh(numbers: Any) -> Box:
    x, y, w, h = (float(n) for n in numbers)
    if not math.isfinite(x + y + w + h):
        raise ValueError(f"a box needs four finite numbers, got {numbers}")
    return (x, y, w, h)


def _have_scores(scores: Iterable[float | None]) -> bool | None:
    """Does every box have its own score?  None where there is no box."""
    known = [score is not None for score in scores]
    return all(known) if known else None


def _key(label: str) -> str:
    return label.strip().casefold()


def _category_names(samples: Iterable[Sample]) -> dict[str, str]:
    """Every category asked for or annotated, sorted: how it is compared -> how it is shown."""
    spellings: dict[str, set[str]] = {}
    for sample in samples:
        for name in (*sample.categories, *(item.label for item in sample.objects)):
            spellings.setdefault(_key(name), set()).add(name.strip())
    return {key: min(spellings[key]) for key in sorted(spellings)}


def _scene(sample: Sample, prediction: Prediction, names: Mapping[str, str]) -> Scene:
    index = {key: number for number, key in enumerate(names)}
    true = tuple(
        TrueBox(index[_key(item.label)], _to_xywh(item.bbox), area(item.bbox), item.crowd) for item in sample.objects
    )
    found = tuple(
        FoundBox(index.get(_key(item.label)), _to_xywh(item.box_xyxy), _score(item))
        for item in readable_objects(prediction)
    )
    return Scene(true, found, rejected=prediction.status == "empty" and not found)


def _score(item: Detected) -> float:
    return 1.0 if item.score is None else item.score


def _to_xywh(box_xyxy: Box) -> Box:
    x1, y1, x2, y2 = box_xyxy
    return (x1, y1, max(0.0, x2 - x1), max(0.0, y2 - y1))


def _to_xyxy(box_xywh: Box) -> Box:
    x, y, w, h = box_xywh
    return (x, y, x + w, y + h)


def _figures(
    scenes: Sequence[Scene], names: Sequence[str], scores: bool | None, unknown: Counter[str]
) -> dict[str, Any]:
    counts = [_count_matches(scene) for scene in scenes]
    coco, per_category = _coco_figures(scenes, names)
    return {
        **coco,
        **box_figures(
            sum(c.matched for c in counts), sum(c.num_predicted for c in counts), sum(c.num_true for c in counts)
        ),
        "scores": scores,
        "unknown_labels": {"n": unknown.total(), "labels": dict(unknown.most_common(_NUM_LABELS_SHOWN))},
        "negatives": _negatives([scene for scene in scenes if not scene.true]),
        "categories": per_category,
    }


def _negatives(scenes: Sequence[Scene]) -> dict[str, Any]:
    rejected, alarms = sum(s.rejected is True for s in scenes), sum(bool(s.found) for s in scenes)
    figures = negative_figures(rejected, alarms, len(scenes))
    return figures if all(s.rejected is not None for s in scenes) else {**figures, "rejection_rate": None}


def _count_matches(scene: Scene) -> MatchCounts:
    matched = num_predicted = num_true = 0
    for category in {box.category for box in scene.true} | {box.category for box in scene.found}:
        true = [_to_xyxy(box.box_xywh) for box in scene.true if box.category == category and not box.crowd]
        crowds = [_to_xyxy(box.box_xywh) for box in scene.true if box.category == category and box.crowd]
        ranked = sorted((box for box in scene.found if box.category == category), key=lambda box: -box.score)
        found = [_to_xyxy(box.box_xywh) for box in ranked]
        pairs = match_boxes(found, true, 0.5)
        taken = {pair[0] for pair in pairs}
        neutral = sum(number not in taken and _in_crowd(box, crowds) for number, box in enumerate(found))
        matched += len(pairs)
        num_predicted += len(found) - neutral
        num_true += len(true)
    return MatchCounts(matched, num_predicted, num_true)


def _in_crowd(box_xyxy: Box, crowds_xyxy: Iterable[Box]) -> bool:
    """COCO's rule: at least half of the box lies in a crowd region."""
    own = area(box_xyxy)
    return own > 0 and any(_overlap(box_xyxy, crowd) >= 0.5 * own for crowd in crowds_xyxy)


def _overlap(one_xyxy: Box, other_xyxy: Box) -> float:
    width = min(one_xyxy[2], other_xyxy[2]) - max(one_xyxy[0], other_xyxy[0])
    height = min(one_xyxy[3], other_xyxy[3]) - max(one_xyxy[1], other_xyxy[1])
    return max(0.0, width) * max(0.0, height)


def _coco_figures(scenes: Sequence[Scene], names: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """COCO's twelve by name, and AP, AP50 and counts a category.  -1, COCO's "nothing to measure", becomes None."""
    true_counts = Counter(box.category for scene in scenes for box in scene.true if not box.crowd)
    found_counts = Counter(box.category for scene in scenes for box in scene.found)
    stats, precision = _run_coco(scenes, len(names)) if scenes and names else ([-1.0] * 12, None)
    per_category = {
        name: {
            "AP": None if precision is None else _mean_measured(precision[:, :, number, 0, -1]),
            "AP50": None if precision is None else _mean_measured(precision[0, :, number, 0, -1]),
            "true_boxes": true_counts[number],
            "predicted_boxes": found_counts[number],
        }
        for number, name in enumerate(names)
    }
    figures = {name: None if value < 0 else float(value) for name, value in zip(COCO_NAMES, stats, strict=True)}
    return figures, per_category


def _mean_measured(precision: Any) -> float | None:
    measured = precision[precision > -1]
    return float(measured.mean()) if measured.size else None


def _run_coco(scenes: Sequence[Scene], num_categories: int) -> tuple[Sequence[float], Any]:
    """Returns the twelve, and precision as an array (IoU thresholds, recalls, categories, areas, limits)."""
    from faster_coco_eval import COCO, COCOeval_faster

    images = [{"id": number, "width": 1, "height": 1} for number in range(1, len(scenes) + 1)]
    categories = [{"id": number, "name": str(number)} for number in range(1, num_categories + 1)]
    truth = {"info": {}, "images": images, "categories": categories, "annotations": list(_annotations(scenes))}
    found = [
        {"image_id": image, "category_id": box.category + 1, "bbox": list(box.box_xywh), "score": box.score}
        for image, scene in enumerate(scenes, 1)
        for box in scene.found
        if box.category is not None
    ]
    reference = COCO(truth)
    evaluation = COCOeval_faster(reference, reference.loadRes(found), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats[:12], evaluation.eval["precision"]


def _annotations(scenes: Sequence[Scene]) -> Iterator[dict[str, Any]]:
    number = 0
    for image, scene in enumerate(scenes, 1):
        for box in scene.true:
            number += 1  # from 1: to COCOeval, id 0 means "not matched"
            yield {
                "id": number,
                "image_id": image,
                "category_id": box.category + 1,
                "bbox": list(box.box_xywh),
                "area": box.area,
                "iscrowd": int(box.crowd),
            }
