"""The score under which a box is left out: chosen by F1, with what it does to rejection and discrimination; pure.

The criterion is F1@0.5 over all boxes of all questions, those about absent things included: 2 hits / (boxes that are
left + true boxes).  A box answered where nothing is costs as much as one that misses.  Of equal thresholds the lowest.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from qwenft.core.answer import Task
from qwenft.core.predictions import Prediction
from qwenft.core.runs import Threshold
from qwenft.core.samples import Sample
from qwenft.evaluate.bootstrap import score_interval
from qwenft.evaluate.detection import JudgedBox, is_judged, judged_boxes
from qwenft.evaluate.rejection import Verdict, discrimination, negative_figures, share
from qwenft.evaluate.scene import Scene, category_names, detection_scenes, grounding_scenes, label_key

MIN_EACH: Final = 20
"""Questions about what is there, and about what is absent, that a choice needs."""
_POINTS: Final = 50
"""Of the curve, about."""


@dataclass(frozen=True, slots=True)
class Scored:
    """One answer with its boxes' scores."""

    picture: str
    kind: str
    """Of a negative, as of `kind_of`; empty: something is there."""
    absent: bool
    """Something that was asked for is not there: a negative, or one of several categories."""
    said_none: bool
    num_true: int
    boxes: tuple[JudgedBox, ...]

    def kept(self, threshold: float) -> list[JudgedBox]:
        """The boxes that are left."""
        return [box for box in self.boxes if box.score >= threshold]

    def verdict(self, threshold: float) -> Verdict:
        """What the answer says once the others are left out: without any box that it had, it says "none"."""
        kept = self.kept(threshold)
        rejected = self.said_none or bool(self.boxes and not kept)
        return Verdict(self.picture, self.kind, rejected, bool(kept), any(box.hit for box in kept))


def threshold_figures(
    samples: Sequence[Sample], predictions: Sequence[Prediction], contract: Mapping[str, Threshold]
) -> dict[str, Any]:
    """What a threshold does, a task each that has boxes with scores: {task: {without, chosen, contract, curve}}.

    predictions: one a sample, in the same order.  contract: the thresholds that the model brings.
    `without`, `chosen` (None: too few questions of either side to choose on) and `contract` (None: it brings none) are
    rows of a threshold and its figures with intervals; `curve` are plain rows over all thresholds.
    """
    found: dict[str, Any] = {}
    for task, scenes_of in _SCENES.items():
        pairs = [pair for pair in zip(samples, predictions, strict=True) if pair[0].task == task]
        if any(box.score is None for _, prediction in pairs for box in prediction.objects):
            continue
        answers = _scored([sample for sample, _ in pairs], scenes_of(pairs))
        if any(answer.boxes for answer in answers):
            best, given = best_threshold(answers), contract.get(task)
            found[task] = {
                "without": _row(answers, 0.0),
                "chosen": None if best is None else _row(answers, best),
                "contract": None if given is None else {"chosen_on": given.chosen_on, **_row(answers, given.score)},
                "curve": [_point(answers, threshold) for threshold in _thresholds(answers)],
            }
    return found


def best_threshold(answers: Sequence[Scored]) -> float | None:
    """The threshold of the largest F1@0.5, half way between two scores; 0: none is better than leaving nothing out.

    None where fewer than MIN_EACH questions are about something that is there, or about something absent.

    >>> sure, unsure = JudgedBox(0, 0.9, True), JudgedBox(0, 0.5, False)
    >>> there = [Scored("a", "", False, False, 1, (sure,))] * MIN_EACH
    >>> best_threshold([*there, *[Scored("b", "source", True, False, 0, (unsure,))] * MIN_EACH])
    0.7
    """
    if min(sum(a.num_true > 0 for a in answers), sum(a.absent for a in answers)) < MIN_EACH:
        return None
    boxes = sorted((box for answer in answers for box in answer.boxes), key=lambda box: -box.score)
    num_true, hits = sum(answer.num_true for answer in answers), 0
    best, threshold = 0.0, 0.0
    for number, box in enumerate(boxes, 1):
        hits += box.hit
        after = boxes[number].score if number < len(boxes) else 0.0
        f1 = 2 * hits / (number + num_true)
        if f1 >= best and (after < box.score or number == len(boxes)):
            best, threshold = f1, (box.score + after) / 2 if number < len(boxes) else 0.0
    return threshold


def _scored(samples: Sequence[Sample], scenes: Sequence[Scene]) -> list[Scored]:
    return [
        Scored(
            sample.picture,
            "" if scene.true else scene.kind,
            _asks_for_absent(sample),
            bool(scene.rejected),
            sum(not box.crowd for box in scene.true),
            tuple(judged_boxes(scene)),
        )
        for sample, scene in zip(samples, scenes, strict=True)
        if is_judged(scene)
    ]


def _asks_for_absent(sample: Sample) -> bool:
    there = {label_key(item.label) for item in sample.objects}
    return not there or any(label_key(name) not in there for name in sample.categories)


_Pairs = Sequence[tuple[Sample, Prediction]]


def _grounding(pairs: _Pairs) -> list[Scene]:
    return grounding_scenes([sample for sample, _ in pairs], [prediction for _, prediction in pairs])


def _detection(pairs: _Pairs) -> list[Scene]:
    samples = [sample for sample, _ in pairs]
    return detection_scenes(samples, [prediction for _, prediction in pairs], category_names(samples))


_SCENES: Final[Mapping[Task, Callable[[_Pairs], list[Scene]]]] = {"grounding": _grounding, "detection": _detection}


def _thresholds(answers: Sequence[Scored]) -> list[float]:
    """Some of the scores, evenly chosen, and the largest."""
    scores = sorted({box.score for answer in answers for box in answer.boxes})
    return sorted({*scores[:: max(1, len(scores) // _POINTS)], scores[-1]})


def _row(answers: Sequence[Scored], threshold: float) -> dict[str, Any]:
    verdicts = [answer.verdict(threshold) for answer in answers]
    f1 = score_interval([answer.picture for answer in answers], *_f1_parts(answers, threshold))
    return {
        "threshold": threshold,
        **negative_figures(verdicts)["intervals"],
        "discrimination": discrimination(verdicts).to_json(),
        "F1@0.5": f1.to_json(),
    }


def _f1_parts(answers: Sequence[Scored], threshold: float) -> tuple[list[float], list[float]]:
    kept = [answer.kept(threshold) for answer in answers]
    hits = [2.0 * sum(box.hit for box in boxes) for boxes in kept]
    return hits, [float(len(boxes) + answer.num_true) for boxes, answer in zip(kept, answers, strict=True)]


def _point(answers: Sequence[Scored], threshold: float) -> dict[str, float | None]:
    verdicts = [answer.verdict(threshold) for answer in answers]
    absent, there = ([v for v in verdicts if bool(v.kind) is negative] for negative in (True, False))
    hits, weights = _f1_parts(answers, threshold)
    return {
        "threshold": threshold,
        "rejection_rate": share(sum(bool(v.rejected) for v in absent), len(absent)),
        "discrimination": share(sum(v.found for v in there), len(there)),
        "F1@0.5": share(sum(hits), sum(weights)),
    }
