"""Two predictors against each other: paired differences with their intervals over pictures."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from qwenft.core.answer import Task
from qwenft.core.predictions import Prediction
from qwenft.core.samples import TASKS, Sample
from qwenft.evaluate.bootstrap import Interval, paired_difference
from qwenft.evaluate.captions import CAPTION_NAMES, caption_values, score_captions
from qwenft.evaluate.detection import COCO_NAMES, detection_counts, detection_verdicts, score_detection
from qwenft.evaluate.match import match_predictions
from qwenft.evaluate.metrics import READABLE, grounding_outcomes
from qwenft.evaluate.ranking import Ranked, rank_scenes
from qwenft.evaluate.rejection import rejection_differences
from qwenft.evaluate.scene import category_names, detection_scenes
from qwenft.evaluate.score import GROUNDING, Pairs, caption_texts, of_task, split_pairs


def compare_predictions(
    samples: Sequence[Sample], ours: Sequence[Prediction], theirs: Sequence[Prediction]
) -> dict[str, Any]:
    """How much higher `ours` score than `theirs`, a task each: {figure: {"estimate", "low", "high", "pictures"}}.

    The 95 % interval is a paired bootstrap over pictures; most of COCO's twelve and BLEU have an estimate alone, their
    `low` and `high` are None.  Raises DataError where predictions and samples do not match.
    """
    our_pairs, their_pairs = match_predictions(samples, ours), match_predictions(samples, theirs)
    differences: dict[str, Any] = {}
    for task in TASKS:
        mine, other = of_task(our_pairs, task), of_task(their_pairs, task)
        if mine:
            found = {**_COMPARERS[task](mine, other), "parse_rate": _compare_parsing(mine, other)}
            differences[task] = {name: interval.to_json() for name, interval in found.items()}
    return differences


def _compare_parsing(ours: Pairs, theirs: Pairs) -> Interval:
    mine, other = ([float(p.status in READABLE) for _, p in pairs] for pairs in (ours, theirs))
    return paired_difference([sample.picture for sample, _ in ours], mine, other)


def _compare_grounding(ours: Pairs, theirs: Pairs) -> dict[str, Interval]:
    mine, other = grounding_outcomes(ours), grounding_outcomes(theirs)
    found = {}
    measures = {name: measure for placed in GROUNDING.values() for name, measure in placed.items()}
    for name, measure in measures.items():
        pictures, values, weights = measure.columns(mine)
        _, their_values, their_weights = measure.columns(other)
        found[name] = paired_difference(
            pictures, values, their_values, our_weights=weights, their_weights=their_weights
        )
    return found | rejection_differences([o.verdict for o in mine], [o.verdict for o in other])


def _compare_detection(ours: Pairs, theirs: Pairs) -> dict[str, Interval]:
    samples, our_predictions = split_pairs(ours)
    predictions = (our_predictions, split_pairs(theirs)[1])
    mine, other = (detection_counts(samples, side) for side in predictions)
    pictures = [sample.picture for sample in samples]
    f1 = paired_difference(
        pictures,
        [2.0 * c.matched for c in mine],
        [2.0 * c.matched for c in other],
        our_weights=[float(c.num_predicted + c.num_true) for c in mine],
        their_weights=[float(c.num_predicted + c.num_true) for c in other],
    )
    scores = [score_detection(samples, side) for side in predictions]
    plain = _plain_differences(COCO_NAMES, scores[0], scores[1], len(set(pictures)))
    ranked = [_ranked(sorted(pairs, key=lambda pair: pair[0].id)) for pairs in (ours, theirs)]
    rejections = rejection_differences(*(detection_verdicts(samples, side) for side in predictions))
    return {"F1@0.5": f1, **plain, **ranked[0].minus(ranked[1]), **rejections}


def _ranked(pairs: Pairs) -> Ranked:
    samples, predictions = split_pairs(pairs)
    names = category_names(samples)
    return rank_scenes(detection_scenes(samples, predictions, names), [s.picture for s in samples], len(names))


def _compare_captions(ours: Pairs, theirs: Pairs) -> dict[str, Interval]:
    pictures = {sample.id: sample.picture for sample, _ in ours}
    scores = [score_captions(*caption_texts(pairs)) for pairs in (ours, theirs)]
    found = _plain_differences(CAPTION_NAMES, scores[0], scores[1], len(set(pictures.values())))
    mine, other = (caption_values(*caption_texts(pairs)) for pairs in (ours, theirs))
    for name in mine:
        keys = [*mine[name]]
        found[name] = paired_difference(
            [pictures[key] for key in keys], [*mine[name].values()], [other[name][key] for key in keys]
        )
    return found


def _plain_differences(
    names: Sequence[str], ours: Mapping[str, Any], theirs: Mapping[str, Any], num_pictures: int
) -> dict[str, Interval]:
    def difference(name: str) -> float | None:
        if ours[name] is None or theirs[name] is None:
            return None
        return float(ours[name] - theirs[name])

    return {name: Interval(difference(name), None, None, num_pictures) for name in names}


_COMPARERS: Final[Mapping[Task, Callable[[Pairs, Pairs], dict[str, Interval]]]] = {
    "grounding": _compare_grounding,
    "detection": _compare_detection,
    "caption": _compare_captions,
}
