"""Detection figures: COCO's twelve, F1@0.5 and per category, through faster-coco-eval.

AP ranks boxes by score.  Without scores every box counts 1.0, AP then ranks nothing, and `scores: false` says so.
F1@0.5 takes every box that was answered: a threshold chosen on the scored data would flatter.

A label that was never asked for belongs to no category of the truth: COCO's protocol has no class to hold it against,
so AP does not see it.  It is counted in `unknown_labels`, and precision and F1@0.5 take it for a false positive.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from qwenft.core.boxes import Box, area
from qwenft.core.predictions import Prediction
from qwenft.core.samples import Sample
from qwenft.evaluate.bootstrap import score_interval
from qwenft.evaluate.metrics import box_figures, match_best_first, match_boxes, readable_objects
from qwenft.evaluate.ranking import rank_scenes, ranking_figures
from qwenft.evaluate.rejection import Verdict, discrimination, negative_figures
from qwenft.evaluate.scene import Scene, category_names, detection_scenes, label_key, overlap, to_xyxy, without_scores

COCO_NAMES: Final = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""COCO's twelve, in the order of COCOeval.stats (https://cocodataset.org/#detection-eval)."""
_NUM_LABELS_SHOWN: Final = 20
OTHER_LABEL: Final = "(another label)"
"""In the confusion matrix: a label that is no category here."""


@dataclass(frozen=True, slots=True)
class MatchCounts:
    """Boxes at an IoU of 0.5; what falls on a crowd is in none of them."""

    matched: int
    num_predicted: int
    num_true: int

    def __add__(self, other: "MatchCounts") -> "MatchCounts":
        return MatchCounts(
            self.matched + other.matched, self.num_predicted + other.num_predicted, self.num_true + other.num_true
        )


_NONE: Final = MatchCounts(0, 0, 0)


def score_detection(samples: Sequence[Sample], predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Score answers to detection samples, one prediction a sample in the same order.

    Labels and categories are compared after strip and without case.  A prepared sample knows no masks: its small,
    medium and large go by the area of the box.  An answer that could not be read has no boxes.
    """
    names = category_names(samples)
    # Ties in score are broken by the pictures' order, so that order must not be the caller's.
    pairs = sorted(zip(samples, predictions, strict=True), key=lambda pair: pair[0].id)
    ordered = [sample for sample, _ in pairs]
    scenes = detection_scenes(ordered, [prediction for _, prediction in pairs], names)
    found = [item for _, prediction in pairs for item in readable_objects(prediction)]
    unknown = Counter(item.label.strip() for item in found if label_key(item.label) not in names)
    scores = have_scores(item.score for item in found)
    return detection_figures(scenes, [sample.picture for sample in ordered], list(names.values()), scores, unknown)


def detection_verdicts(samples: Sequence[Sample], predictions: Sequence[Prediction]) -> list[Verdict]:
    """What rejection and discrimination are made of, a sample each, without those of which only crowds are there."""
    scenes = detection_scenes(samples, predictions, category_names(samples))
    judged = [(scene, sample.picture) for scene, sample in zip(scenes, samples, strict=True) if is_judged(scene)]
    return [_verdict(scene, picture, count_matches(scene)) for scene, picture in judged]


def detection_counts(samples: Sequence[Sample], predictions: Sequence[Prediction]) -> list[MatchCounts]:
    """What F1@0.5 is made of, a sample each, for the bootstrap."""
    return [count_matches(scene) for scene in detection_scenes(samples, predictions, category_names(samples))]


def have_scores(scores: Iterable[float | None]) -> bool | None:
    """Does every box have its own score?  None where there is no box."""
    known = [score is not None for score in scores]
    return all(known) if known else None


def detection_figures(
    scenes: Sequence[Scene], pictures: Sequence[str], names: Sequence[str], scores: bool | None, unknown: Counter[str]
) -> dict[str, Any]:
    """All figures of scenes.

    pictures: which one each scene is of.  names: of the categories.  scores: as of `have_scores`.  unknown: labels that
    are no category here, with their counts.
    """
    by_category = [_matches_by_category(scene) for scene in scenes]
    counts = [sum(found.values(), start=_NONE) for found in by_category]
    ranked = rank_scenes(scenes, pictures, len(names))
    verdicts = [_verdict(*each) for each in zip(scenes, pictures, counts, strict=True) if is_judged(each[0])]
    still_found = discrimination(verdicts)
    return {
        **_coco_figures(scenes, names, by_category),
        **_box_figures(sum(counts, start=_NONE)),
        "discrimination": still_found.estimate,
        "intervals": {
            "discrimination": still_found.to_json(),
            "F1@0.5": score_interval(
                pictures, [2.0 * c.matched for c in counts], [float(c.num_predicted + c.num_true) for c in counts]
            ).to_json(),
            **{name: interval.to_json() for name, interval in ranked.intervals().items()},
        },
        "scores": scores,
        "ranking": ranking_figures(ranked, rank_scenes(without_scores(scenes), pictures, len(names)))
        if scores
        else None,
        "unknown_labels": {"n": unknown.total(), "labels": dict(unknown.most_common(_NUM_LABELS_SHOWN))},
        "negatives": negative_figures(verdicts),
        "confusion": confusion(scenes, names),
    }


def _box_figures(counts: MatchCounts) -> dict[str, Any]:
    return box_figures(counts.matched, counts.num_predicted, counts.num_true)


def is_judged(scene: Scene) -> bool:
    """A crowd alone is neither there nor absent."""
    return not scene.true or not all(box.crowd for box in scene.true)


def _verdict(scene: Scene, picture: str, counts: MatchCounts) -> Verdict:
    kind = "" if scene.true else scene.kind
    return Verdict(picture, kind, scene.rejected, bool(scene.found), counts.matched > 0)


def count_matches(scene: Scene) -> MatchCounts:
    """Boxes of one scene that were matched, each category for itself."""
    return sum(_matches_by_category(scene).values(), start=_NONE)


@dataclass(frozen=True, slots=True)
class JudgedBox:
    """A predicted box at an IoU of 0.5."""

    category: int | None
    score: float
    hit: bool


def judged_boxes(scene: Scene) -> list[JudgedBox]:
    """The boxes of a scene, each category for itself, the surest first; what falls on a crowd is left out.

    Whether one is a hit depends on surer ones alone: without the least sure boxes the verdicts on the others stay.
    """
    judged = []
    for category in sorted({box.category for box in scene.found}, key=str):
        true = [to_xyxy(box.box_xywh) for box in scene.true if box.category == category and not box.crowd]
        crowds = [to_xyxy(box.box_xywh) for box in scene.true if box.category == category and box.crowd]
        ranked = sorted((box for box in scene.found if box.category == category), key=lambda box: -box.score)
        found = [to_xyxy(box.box_xywh) for box in ranked]
        hits = {pair[0] for pair in match_boxes(found, true, 0.5)}
        judged += [
            JudgedBox(category, ranked[number].score, number in hits)
            for number, box in enumerate(found)
            if number in hits or not _in_crowd(box, crowds)
        ]
    return judged


def _matches_by_category(scene: Scene) -> dict[int | None, MatchCounts]:
    judged = judged_boxes(scene)
    true: Counter[int | None] = Counter(box.category for box in scene.true if not box.crowd)
    found = Counter(box.category for box in judged)
    hits = Counter(box.category for box in judged if box.hit)
    categories = {box.category for box in scene.true} | {box.category for box in scene.found}
    return {category: MatchCounts(hits[category], found[category], true[category]) for category in categories}


def confusion(scenes: Iterable[Scene], names: Sequence[str]) -> list[dict[str, Any]]:
    """What was taken for what: cells {"true", "predicted", "n"}, the largest first, without those of 0.

    Boxes are matched whatever their category, the pair of the highest IoU first, at an IoU of 0.5.  `true` None: a box
    where nothing is; `predicted` None: a thing that was missed.  Crowds and what falls on them are left out.
    """
    cells: Counter[tuple[str | None, str | None]] = Counter()
    for scene in scenes:
        true = [box for box in scene.true if not box.crowd]
        crowds = [to_xyxy(box.box_xywh) for box in scene.true if box.crowd]
        found = [to_xyxy(box.box_xywh) for box in scene.found]
        said = [OTHER_LABEL if box.category is None else names[box.category] for box in scene.found]
        pairs = match_best_first(found, [to_xyxy(box.box_xywh) for box in true], 0.5)
        cells.update((names[true[m].category], said[n]) for n, m, _ in pairs)
        hit, met = {n for n, _, _ in pairs}, {m for _, m, _ in pairs}
        cells.update((names[box.category], None) for m, box in enumerate(true) if m not in met)
        cells.update((None, said[n]) for n, box in enumerate(found) if n not in hit and not _in_crowd(box, crowds))
    ordered = sorted(cells.items(), key=lambda cell: (-cell[1], str(cell[0])))
    return [{"true": true, "predicted": predicted, "n": n} for (true, predicted), n in ordered]


def _in_crowd(box_xyxy: Box, crowds_xyxy: Iterable[Box]) -> bool:
    """COCO's rule: at least half of the box lies in a crowd region."""
    own = area(box_xyxy)
    return own > 0 and any(overlap(box_xyxy, crowd) >= 0.5 * own for crowd in crowds_xyxy)


def _coco_figures(
    scenes: Sequence[Scene], names: Sequence[str], by_category: Sequence[Mapping[int | None, MatchCounts]]
) -> dict[str, Any]:
    """COCO's twelve by name, and `categories`.  -1, COCO's "nothing to measure", becomes None."""
    stats, precision = _run_coco(scenes, len(names)) if scenes and names else ([-1.0] * 12, None)
    found_counts = Counter(box.category for scene in scenes for box in scene.found)
    categories = {}
    for number, name in enumerate(names):
        counts = sum((found.get(number, _NONE) for found in by_category), start=_NONE)
        categories[name] = {
            "AP": None if precision is None else _mean_measured(precision[:, :, number, 0, -1]),
            "AP50": None if precision is None else _mean_measured(precision[0, :, number, 0, -1]),
            **_box_figures(counts),
            "predicted_boxes": found_counts[number],
        }
    figures = {name: None if value < 0 else float(value) for name, value in zip(COCO_NAMES, stats, strict=True)}
    return {**figures, "categories": categories}


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
