"""Grounding figures, matching and answer statistics; pure.

The readings chosen here are the strict ones:

- A sample with one true box is scored by the first box that the model wrote, the RefCOCO protocol; that needs no
  scores, so answers with and without them are read alike.
- A sample with several true boxes is right only if all of them are matched and no box is left over, which is
  gRefCOCO's "F1 = 1" (https://github.com/henghuiding/gRefCOCO).  "One of them was hit" is not enough.
- An answer that could not be read is a box of IoU 0; for something absent it is neither a rejection nor a false alarm.
- What cannot be measured is None, never 0.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from qwenft.core.boxes import Box, iou
from qwenft.core.predictions import STATUSES, Detected, Prediction, PredictionStatus, Question
from qwenft.core.samples import Sample
from qwenft.evaluate.rejection import Verdict, kind_of, negative_figures, share

READABLE: Final = frozenset(STATUSES) - {"unparsable", "error"}


def answer_figures(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Count answers: `n`, `parse_rate` (those that are READABLE) and the number of each status."""
    statuses = {status: sum(p.status == status for p in predictions) for status in STATUSES}
    readable = sum(count for status, count in statuses.items() if status in READABLE)
    return {"n": len(predictions), "parse_rate": share(readable, len(predictions)), "statuses": statuses}


def readable_objects(prediction: Prediction) -> tuple[Detected, ...]:
    """The boxes that count: none of an answer that could not be read."""
    return prediction.objects if prediction.status in READABLE else ()


def match_boxes(
    predicted_xyxy: Sequence[Box], true_xyxy: Sequence[Box], threshold: float
) -> list[tuple[int, int, float]]:
    """Match one to one, greedily: each predicted box in turn takes the free true box that it overlaps most.

    Both in one frame; the order of the predictions is their rank.  Returns (predicted index, true index, IoU) for each
    pair of an IoU over 0 and not under `threshold`.  Source: pycocotools, COCOeval.evaluateImg.

    >>> match_boxes([(0, 0, 2, 2), (0, 0, 2, 2)], [(0, 0, 2, 2), (8, 8, 9, 9)], 0.5)
    [(0, 0, 1.0)]
    """
    free = set(range(len(true_xyxy)))
    pairs = []
    for number, box in enumerate(predicted_xyxy):
        overlaps = [(iou(box, true_xyxy[other]), -other) for other in free]
        best, other = max(overlaps, default=(0.0, 0))
        if best > 0 and best >= threshold:
            pairs.append((number, -other, best))
            free.remove(-other)
    return pairs


def match_best_first(
    predicted_xyxy: Sequence[Box], true_xyxy: Sequence[Box], threshold: float
) -> list[tuple[int, int, float]]:
    """Match one to one: of all pairs that are free the one of the highest IoU comes first, whatever the boxes' rank.

    Returns as `match_boxes` does.  Source: the greedy matching of gRefCOCO's evaluator (mdetr/datasets/refexp.py at
    b4b1e55), by IoU as its paper (arXiv 2308.16182) says; the code itself takes the generalized IoU there.

    >>> match_best_first([(0, 0, 3, 2), (0, 0, 2, 2)], [(0, 0, 2, 2)], 0.5)
    [(1, 0, 1.0)]
    """
    pairs = [(iou(box, other), -n, -m) for n, box in enumerate(predicted_xyxy) for m, other in enumerate(true_xyxy)]
    free_predicted, free_true = set(range(len(predicted_xyxy))), set(range(len(true_xyxy)))
    found = []
    for overlap, n, m in sorted(pairs, reverse=True):
        if overlap > 0 and overlap >= threshold and -n in free_predicted and -m in free_true:
            found.append((-n, -m, overlap))
            free_predicted.remove(-n)
            free_true.remove(-m)
    return found


@dataclass(frozen=True, slots=True)
class GroundingOutcome:
    """How one grounding answer did."""

    sample_id: str
    picture: str
    status: PredictionStatus
    num_true: int
    """0: the expression names nothing in this picture (a negative)."""
    num_predicted: int
    matched_50: int
    """Pairs of all predicted with all true boxes at an IoU of 0.5 or more, the pair of the highest IoU first."""
    iou: float
    """First box with the one true box; several true boxes: sum of matched IoUs / the larger number of boxes."""
    hit_50: bool
    hit_75: bool
    exact_50: bool
    """gRefCOCO's "F1 = 1", also where one box is true: all are matched at an IoU of 0.5 and none is left over."""
    kind: str = ""
    """Of a negative, as of `kind_of`."""

    @property
    def rejected(self) -> bool:
        """The model said that there is none."""
        return self.status == "empty" and not self.num_predicted

    @property
    def found(self) -> bool:
        """Something that is there was found."""
        return self.matched_50 > 0

    @property
    def verdict(self) -> Verdict:
        """What the answer says about whether anything is there."""
        return Verdict(self.picture, self.kind, self.rejected, self.num_predicted > 0, self.found)


def grounding_outcome(sample: Sample, prediction: Prediction) -> GroundingOutcome | None:
    """Compare an answer with the truth; None where only a crowd region is true, which nothing can be held against."""
    true = [item.bbox for item in sample.objects if not item.crowd]
    if sample.objects and not true:
        return None
    found = [item.box_xyxy for item in readable_objects(prediction)]
    if len(true) == 1:
        overlap = iou(found[0], true[0]) if found else 0.0
        hits = (overlap >= 0.5, overlap >= 0.75)
    else:
        overlap = sum(pair[2] for pair in match_best_first(found, true, 0.0)) / max(len(found), len(true), 1)
        hits = (_all_matched(found, true, 0.5), _all_matched(found, true, 0.75))
    return GroundingOutcome(
        sample_id=sample.id,
        picture=sample.picture,
        status=prediction.status,
        num_true=len(true),
        num_predicted=len(found),
        matched_50=len(match_best_first(found, true, 0.5)),
        iou=overlap,
        hit_50=hits[0],
        hit_75=hits[1],
        exact_50=_all_matched(found, true, 0.5),
        kind=kind_of(sample),
    )


def _all_matched(found: Sequence[Box], true: Sequence[Box], threshold: float) -> bool:
    return len(true) == len(found) == len(match_best_first(found, true, threshold))


def grounding_outcomes(pairs: Iterable[tuple[Sample, Prediction]]) -> list[GroundingOutcome]:
    """The outcomes of all pairs that can be scored, in their order."""
    outcomes = (grounding_outcome(sample, prediction) for sample, prediction in pairs)
    return [outcome for outcome in outcomes if outcome is not None]


def positives_of(outcomes: Iterable[GroundingOutcome]) -> list[GroundingOutcome]:
    """Those whose expression names something in the picture."""
    return [outcome for outcome in outcomes if outcome.num_true]


def negatives_of(outcomes: Iterable[GroundingOutcome]) -> list[GroundingOutcome]:
    """Those whose expression names nothing in the picture."""
    return [outcome for outcome in outcomes if not outcome.num_true]


def several_of(outcomes: Iterable[GroundingOutcome]) -> list[GroundingOutcome]:
    """Those whose expression names several things in the picture."""
    return [outcome for outcome in outcomes if outcome.num_true > 1]


def positive_figures(outcomes: Sequence[GroundingOutcome]) -> dict[str, Any]:
    """Accuracy of the answers about things that are there; precision, recall and F1 are over all their boxes."""
    n = len(outcomes)
    return {
        "n": n,
        "Acc@0.5": share(sum(o.hit_50 for o in outcomes), n),
        "Acc@0.75": share(sum(o.hit_75 for o in outcomes), n),
        "mean_iou": share(sum(o.iou for o in outcomes), n),
        **_all_boxes(outcomes),
        "discrimination": share(sum(o.found for o in outcomes), n),
        "count_accuracy": _count_accuracy(outcomes),
        "several_true_boxes": len(several_of(outcomes)),
    }


def _all_boxes(outcomes: Sequence[GroundingOutcome]) -> dict[str, Any]:
    num_true, num_predicted = sum(o.num_true for o in outcomes), sum(o.num_predicted for o in outcomes)
    return box_figures(sum(o.matched_50 for o in outcomes), num_predicted, num_true)


def _count_accuracy(outcomes: Sequence[GroundingOutcome]) -> float | None:
    """The share of answers with as many boxes as are true, wherever these are."""
    return share(sum(o.num_predicted == o.num_true for o in outcomes), len(outcomes))


MATCHING: Final = "one to one, the pair of the highest IoU first, at an IoU of 0.5 or more"
"""How boxes are matched where an expression names several things."""


def several_figures(outcomes: Sequence[GroundingOutcome]) -> dict[str, Any]:
    """Where an expression names several things: gRefCOCO's figures, the boxes' precision, recall and F1, the count.

    gRefCOCO's are apart: `precision@F1=1` over what is there, `N-acc` (answered "none") over what is absent, and
    `T-acc` (answered with any box) over what is there.  The released evaluator counts absent things into the first as
    well, and takes an answer that could not be read for "none"; here it is neither.
    """
    positives, negatives = positives_of(outcomes), negatives_of(outcomes)
    several = several_of(positives)
    boxes = _all_boxes(several)
    return {
        "matching": MATCHING,
        "precision@F1=1": share(sum(o.exact_50 for o in positives), len(positives)),
        "precision@F1=1_of_several": share(sum(o.exact_50 for o in several), len(several)),
        **{f"{name}_of_several": boxes[name] for name in ("precision@0.5", "recall@0.5", "F1@0.5")},
        "count_accuracy_of_several": _count_accuracy(several),
        "N-acc": share(sum(o.rejected for o in negatives), len(negatives)),
        "T-acc": share(sum(o.num_predicted > 0 for o in positives), len(positives)),
        "n": {"there": len(positives), "several": len(several), "absent": len(negatives)},
    }


def box_figures(matched: int, num_predicted: int, num_true: int) -> dict[str, Any]:
    """Precision, recall and F1 at an IoU of 0.5, and the counts behind them."""
    return {
        "precision@0.5": share(matched, num_predicted),
        "recall@0.5": share(matched, num_true),
        "F1@0.5": share(2 * matched, num_predicted + num_true),
        "true_boxes": num_true,
        "predicted_boxes": num_predicted,
    }


def grounding_figures(outcomes: Sequence[GroundingOutcome]) -> dict[str, Any]:
    """Score outcomes: positives and negatives apart, never in one figure."""
    return {
        "positives": positive_figures(positives_of(outcomes)),
        "negatives": negative_figures([o.verdict for o in outcomes]),
    }


def constant_box(train_samples: Iterable[Sample]) -> Box | None:
    """The mean corners of all true boxes of grounding samples: x1, y1, x2, y2 in shares of the picture's sides.

    None where there is no true box.
    """
    boxes_norm = [
        (item.bbox[0] / s.width, item.bbox[1] / s.height, item.bbox[2] / s.width, item.bbox[3] / s.height)
        for s in train_samples
        if s.task == "grounding"
        for item in s.objects
        if not item.crowd
    ]
    if not boxes_norm:
        return None
    x1, y1, x2, y2 = (sum(corner) / len(boxes_norm) for corner in zip(*boxes_norm, strict=True))
    return (x1, y1, x2, y2)


def constant_box_baseline(train_samples: Iterable[Sample], samples: Iterable[Sample]) -> dict[str, Any] | None:
    """Score the answer that looks at nothing: the same box of the training split in every picture.

    An adapter that is not clearly over these figures has learned where things usually are, not what they look like.
    Returns the box (shares of the sides) and the figures of the positives; None without a true box to train on or a
    grounding sample to score.
    """
    box_norm = constant_box(train_samples)
    grounding = [sample for sample in samples if sample.task == "grounding"]
    if box_norm is None or not grounding:
        return None
    pairs = [(sample, _always(box_norm, sample)) for sample in grounding]
    figures = positive_figures(positives_of(grounding_outcomes(pairs)))
    return {"box_norm": [round(v, 4) for v in box_norm], "positives": figures}


def _always(box_norm: Box, sample: Sample) -> Prediction:
    width, height = sample.image_wh
    box = (box_norm[0] * width, box_norm[1] * height, box_norm[2] * width, box_norm[3] * height)
    question = Question.of(sample, Path())
    return Prediction(question, "ok", (Detected(box, sample.query or "", None),), text="", prompt="")
