"""Scoring: predictions against samples, each task apart, and two predictors against each other.

The same scorer serves training, `eval` and the report.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwenft.core.answer import Task
from qwenft.core.errors import DataError, UsageError
from qwenft.core.files import read_records
from qwenft.core.predictions import Prediction
from qwenft.core.samples import TASKS, PreparedDataset, Sample
from qwenft.evaluate.bootstrap import Interval, paired_difference, score_interval
from qwenft.evaluate.captions import CAPTION_NAMES, score_captions
from qwenft.evaluate.detection import COCO_NAMES, detection_counts, score_coco_files, score_detection
from qwenft.evaluate.metrics import (
    READABLE,
    GroundingOutcome,
    answer_figures,
    constant_box_baseline,
    grounding_figures,
    grounding_outcomes,
    negatives_of,
    positives_of,
)

_NUM_IDS_SHOWN = 5


def load_predictions(path: Path) -> list[Prediction]:
    """Read the JSON lines that `predict` and `eval` write.  Raises DataError naming the line that is none."""
    predictions = []
    for record in read_records(path):
        try:
            prediction = Prediction.from_json(record.value)
            _check_finite(prediction)
        except KeyError as error:
            raise _no_prediction(path, record.where, f"it has no {error}") from error
        except (TypeError, ValueError, DataError) as error:
            raise _no_prediction(path, record.where, str(error)) from error
        predictions.append(prediction)
    return predictions


def _no_prediction(path: Path, where: str, why: str) -> DataError:
    return DataError(
        f"{path}, {where}: not a prediction ({why})",
        hint='a line is {"id": …, "image": …, "task": …, "objects": [{"bbox": [x1, y1, x2, y2], "label": …}], '
        '"status": "ok", "text": …}; for a COCO results file add --references instances.json',
    )


def _check_finite(prediction: Prediction) -> None:
    for found in prediction.objects:
        if not all(abs(v) < float("inf") for v in (*found.box_xyxy, found.score or 0.0)):
            raise ValueError(f"a box needs finite numbers, got {found.box_xyxy}, score {found.score}")


def match_predictions(samples: Sequence[Sample], predictions: Sequence[Prediction]) -> list[tuple[Sample, Prediction]]:
    """Put each sample's prediction beside it, in the samples' order, by id.

    Raises DataError naming the ids of which none or several are there, that belong to no sample, or of another task.
    """
    by_id = {prediction.question.id: prediction for prediction in predictions}
    counts = Counter(prediction.question.id for prediction in predictions)
    sample_ids = {sample.id for sample in samples}
    problems: tuple[tuple[str, list[str]], ...] = (
        ("samples have no prediction", [s.id for s in samples if s.id not in by_id]),
        ("ids have several predictions", [id_ for id_, count in counts.items() if count > 1]),
        ("predictions belong to no sample", [id_ for id_ in by_id if id_ not in sample_ids]),
        (
            "predictions are of another task than their sample",
            [s.id for s in samples if s.id in by_id and by_id[s.id].question.task != s.task],
        ),
    )
    for what, ids in problems:
        if ids:
            shown = ", ".join(repr(id_) for id_ in ids[:_NUM_IDS_SHOWN]) + (" …" if len(ids) > _NUM_IDS_SHOWN else "")
            raise DataError(
                f"{len(ids)} {what}: {shown}", hint="predict exactly the samples of this split: qwenft eval"
            )
    return [(sample, by_id[sample.id]) for sample in samples]


def score_predictions(samples: Sequence[Sample], predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Score predictions against samples, matched by id; a task that no sample has is left out.

    Returns {"n", "parse_rate", "statuses", "grounding": …, "detection": …, "caption": …}; every task has its own `n`,
    `parse_rate` and `statuses`.  Figures that cannot be measured are None.  The order of the samples does not matter.
    Raises DataError where predictions and samples do not match one to one.
    """
    pairs = match_predictions(samples, predictions)
    scores: dict[str, Any] = answer_figures([prediction for _, prediction in pairs])
    for task in TASKS:
        of_task = _of_task(pairs, task)
        if of_task:
            scores[task] = {**answer_figures([prediction for _, prediction in of_task]), **_SCORERS[task](of_task)}
    return scores


_Pairs = Sequence[tuple[Sample, Prediction]]


def _of_task(pairs: _Pairs, task: Task) -> _Pairs:
    return [pair for pair in pairs if pair[0].task == task]


def _score_grounding(pairs: _Pairs) -> dict[str, Any]:
    outcomes = grounding_outcomes(pairs)
    figures = grounding_figures(outcomes)
    for side, names in (("positives", ("Acc@0.5", "mean_iou")), ("negatives", ("rejection_rate",))):
        figures[side]["intervals"] = {name: _interval_of(_GROUNDING[name], outcomes).to_json() for name in names}
    return {**figures, "not_scored": len(pairs) - len(outcomes)}


def _score_detection(pairs: _Pairs) -> dict[str, Any]:
    return score_detection([sample for sample, _ in pairs], [prediction for _, prediction in pairs])


def _score_captions(pairs: _Pairs) -> dict[str, Any]:
    return score_captions(
        {sample.id: sample.captions for sample, _ in pairs},
        {sample.id: prediction.text if prediction.status in READABLE else "" for sample, prediction in pairs},
    )


_SCORERS: Mapping[Task, Callable[[_Pairs], dict[str, Any]]] = {
    "grounding": _score_grounding,
    "detection": _score_detection,
    "caption": _score_captions,
}


@dataclass(frozen=True, slots=True)
class _Measure:
    """A grounding figure that is a mean over samples."""

    choose: Callable[[Sequence[GroundingOutcome]], list[GroundingOutcome]]
    value: Callable[[GroundingOutcome], float]


_GROUNDING: Mapping[str, _Measure] = {
    "Acc@0.5": _Measure(positives_of, lambda outcome: float(outcome.hit_50)),
    "mean_iou": _Measure(positives_of, lambda outcome: outcome.iou),
    "rejection_rate": _Measure(negatives_of, lambda outcome: float(outcome.rejected)),
}


def _interval_of(measure: _Measure, outcomes: Sequence[GroundingOutcome]) -> Interval:
    chosen = measure.choose(outcomes)
    return score_interval([o.picture for o in chosen], [measure.value(o) for o in chosen])


def compare_predictions(
    samples: Sequence[Sample], ours: Sequence[Prediction], theirs: Sequence[Prediction]
) -> dict[str, Any]:
    """How much higher `ours` score than `theirs`, a task each: {figure: {"estimate", "low", "high", "pictures"}}.

    The 95 % interval is a paired bootstrap over pictures; figures that are no mean over samples (AP, BLEU, CIDEr) have
    an estimate alone, their `low` and `high` are None.  Raises DataError as `score_predictions` does.
    """
    our_pairs, their_pairs = match_predictions(samples, ours), match_predictions(samples, theirs)
    differences: dict[str, Any] = {}
    for task in TASKS:
        mine, other = _of_task(our_pairs, task), _of_task(their_pairs, task)
        if mine:
            differences[task] = {name: found.to_json() for name, found in _COMPARERS[task](mine, other).items()}
    return differences


def _compare_grounding(ours: _Pairs, theirs: _Pairs) -> dict[str, Interval]:
    mine, other = grounding_outcomes(ours), grounding_outcomes(theirs)
    found = {}
    for name, measure in _GROUNDING.items():
        our_part, their_part = measure.choose(mine), measure.choose(other)
        pictures = [outcome.picture for outcome in our_part]
        found[name] = paired_difference(pictures, [*map(measure.value, our_part)], [*map(measure.value, their_part)])
    return found


def _compare_detection(ours: _Pairs, theirs: _Pairs) -> dict[str, Interval]:
    samples = [sample for sample, _ in ours]
    mine, other = (detection_counts(samples, [prediction for _, prediction in pairs]) for pairs in (ours, theirs))
    pictures = [sample.picture for sample in samples]
    f1 = paired_difference(
        pictures,
        [2.0 * c.matched for c in mine],
        [2.0 * c.matched for c in other],
        our_weights=[float(c.num_predicted + c.num_true) for c in mine],
        their_weights=[float(c.num_predicted + c.num_true) for c in other],
    )
    plain = _plain_differences(COCO_NAMES, _score_detection(ours), _score_detection(theirs), len(set(pictures)))
    return {"F1@0.5": f1, **plain}


def _compare_captions(ours: _Pairs, theirs: _Pairs) -> dict[str, Interval]:
    num_pictures = len({sample.picture for sample, _ in ours})
    return _plain_differences(CAPTION_NAMES, _score_captions(ours), _score_captions(theirs), num_pictures)


def _plain_differences(
    names: Sequence[str], ours: Mapping[str, Any], theirs: Mapping[str, Any], num_pictures: int
) -> dict[str, Interval]:
    def difference(name: str) -> float | None:
        if ours[name] is None or theirs[name] is None:
            return None
        return float(ours[name] - theirs[name])

    return {name: Interval(difference(name), None, None, num_pictures) for name in names}


_COMPARERS: Mapping[Task, Callable[[_Pairs, _Pairs], dict[str, Interval]]] = {
    "grounding": _compare_grounding,
    "detection": _compare_detection,
    "caption": _compare_captions,
}


def eyeless_baseline(dataset: PreparedDataset, split: str, samples: Sequence[Sample]) -> dict[str, Any] | None:
    """The constant box of the training split, scored on `samples` of `split`.

    None where there is no such box, and on the training split itself: there it is scored on what it was made of.
    """
    train = next((name for name, info in dataset.manifest.splits.items() if info.role == "train"), None)
    if train is None or split == train:
        return None
    return constant_box_baseline(dataset.samples(train), samples)


def scored_split(dataset: PreparedDataset, split: str | None) -> str:
    """The split that is scored: the one named, else the held-out one.  Raises DataError if there is none."""
    chosen = split or dataset.held_out
    if chosen is None:
        raise DataError(
            f"{dataset.path} has no held-out split", hint=f"--split, one of: {', '.join(dataset.manifest.splits)}"
        )
    return chosen


def evaluate_predictions(
    predictions: Path,
    *,
    data: PreparedDataset | None = None,
    split: str | None = None,
    references: Path | None = None,
) -> dict[str, Any]:
    """Score answers that exist already; no model is read and nothing is written.

    With `data`: JSON lines of `predict` against a split (unset: the held-out one).  With `references`: a COCO results
    file against an instances file.  Raises UsageError unless it is exactly one of the two, DataError for their content.
    """
    if references is not None and data is None:
        scores = {"detection": score_coco_files(predictions, references)}
        return {"predictions": str(predictions.absolute()), "references": str(references.absolute()), "scores": scores}
    if data is not None and references is None:
        chosen = scored_split(data, split)
        samples = data.samples(chosen)
        return {
            "predictions": str(predictions.absolute()),
            "data": str(data.path),
            "split": chosen,
            "scores": score_predictions(samples, load_predictions(predictions)),
            "constant_box": eyeless_baseline(data, chosen, samples),
        }
    raise UsageError(
        "predictions are scored either against a prepared data set or against --references",
        hint=f"qwenft eval --predictions {predictions} --data …",
    )


_HEADLINES: Mapping[Task, Callable[[Mapping[str, Any]], tuple[str, float | None]]] = {
    "grounding": lambda s: ("Acc@0.5", s["positives"]["Acc@0.5"]),
    "detection": lambda s: ("F1@0.5", s["F1@0.5"]),
    "caption": lambda s: ("CIDEr", s["CIDEr"]),
}


def headline(scores: Mapping[str, Any]) -> tuple[str, float | None]:
    """The one figure that a run's best adapter is chosen by: of the first task that was scored; None: not measured."""
    task = next(task for task in TASKS if task in scores)
    return _HEADLINES[task](scores[task])
