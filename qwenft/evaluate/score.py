"""Scoring: predictions against samples, each task apart.

The same scorer serves training, `eval` and the report.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from qwenft.core.answer import Task
from qwenft.core.errors import DataError
from qwenft.core.predictions import Prediction
from qwenft.core.samples import TASKS, PreparedDataset, Sample
from qwenft.evaluate.bootstrap import Interval, score_interval
from qwenft.evaluate.breakdown import grounding_breakdown
from qwenft.evaluate.captions import caption_values, score_captions
from qwenft.evaluate.detection import score_detection
from qwenft.evaluate.match import match_predictions
from qwenft.evaluate.metrics import (
    READABLE,
    GroundingOutcome,
    answer_figures,
    constant_box_baseline,
    grounding_figures,
    grounding_outcomes,
    positives_of,
    several_figures,
    several_of,
)
from qwenft.evaluate.ranking import rank_scenes, ranking_figures
from qwenft.evaluate.rejection import discrimination
from qwenft.evaluate.scene import grounding_scenes, without_scores

Pairs = Sequence[tuple[Sample, Prediction]]
"""Samples with their predictions, of one task."""


def score_predictions(samples: Sequence[Sample], predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Score predictions against samples, matched by id; a task that no sample has is left out.

    Returns {"n", "parse_rate", "statuses", "grounding": …, "detection": …, "caption": …}; every task has its own `n`,
    `parse_rate` and `statuses`.  Figures that cannot be measured are None.  The order of the samples does not matter.
    Raises DataError where predictions and samples do not match one to one.
    """
    pairs = match_predictions(samples, predictions)
    scores: dict[str, Any] = answer_figures([prediction for _, prediction in pairs])
    for task in TASKS:
        chosen = of_task(pairs, task)
        if chosen:
            scores[task] = {
                **answer_figures([prediction for _, prediction in chosen]),
                "parse_interval": _parse_interval(chosen).to_json(),
                **_SCORERS[task](chosen),
            }
    return scores


def of_task(pairs: Pairs, task: Task) -> Pairs:
    """Those of one task."""
    return [pair for pair in pairs if pair[0].task == task]


def split_pairs(pairs: Pairs) -> tuple[list[Sample], list[Prediction]]:
    """The samples and the predictions, each in order."""
    return [sample for sample, _ in pairs], [prediction for _, prediction in pairs]


def _parse_interval(pairs: Pairs) -> Interval:
    readable = [float(prediction.status in READABLE) for _, prediction in pairs]
    return score_interval([sample.picture for sample, _ in pairs], readable)


def _score_grounding(pairs: Pairs) -> dict[str, Any]:
    outcomes = grounding_outcomes(pairs)
    figures = grounding_figures(outcomes)
    figures["several"] = several_figures(outcomes)
    for place, measures in GROUNDING.items():
        intervals = {name: measure.interval(outcomes).to_json() for name, measure in measures.items()}
        figures[place]["intervals"] = intervals
    figures["positives"]["intervals"]["discrimination"] = discrimination([o.verdict for o in outcomes]).to_json()
    return {
        **figures,
        "by": grounding_breakdown([sample for sample, _ in pairs], outcomes),
        "ranking": _grounding_ranking(pairs),
        "not_scored": len(pairs) - len(outcomes),
    }


def _grounding_ranking(pairs: Pairs) -> dict[str, Any] | None:
    """What the scores are worth on what is there; None where a box has none."""
    there = [pair for pair in pairs if pair[0].objects]
    boxes = [box for _, prediction in there for box in prediction.objects]
    if not boxes or any(box.score is None for box in boxes):
        return None
    samples, predictions = split_pairs(sorted(there, key=lambda pair: pair[0].id))
    scenes, pictures = grounding_scenes(samples, predictions), [sample.picture for sample in samples]
    return ranking_figures(rank_scenes(scenes, pictures, 1), rank_scenes(without_scores(scenes), pictures, 1))


def _score_detection(pairs: Pairs) -> dict[str, Any]:
    return score_detection(*split_pairs(pairs))


def _score_captions(pairs: Pairs) -> dict[str, Any]:
    pictures = {sample.id: sample.picture for sample, _ in pairs}
    intervals = {
        name: score_interval([pictures[key] for key in values], [*values.values()], bounded=False).to_json()
        for name, values in caption_values(*caption_texts(pairs)).items()
    }
    return {**score_captions(*caption_texts(pairs)), "intervals": intervals}


def caption_texts(pairs: Pairs) -> tuple[dict[str, Sequence[str]], dict[str, str]]:
    """References and captions by sample id; an answer that could not be read is an empty caption."""
    return (
        {sample.id: sample.captions for sample, _ in pairs},
        {sample.id: prediction.text if prediction.status in READABLE else "" for sample, prediction in pairs},
    )


_SCORERS: Final[Mapping[Task, Callable[[Pairs], dict[str, Any]]]] = {
    "grounding": _score_grounding,
    "detection": _score_detection,
    "caption": _score_captions,
}


@dataclass(frozen=True, slots=True)
class Measure:
    """A grounding figure that is a sum of values over a sum of weights, one of each a sample."""

    value: Callable[[GroundingOutcome], float]
    weight: Callable[[GroundingOutcome], float] | None = None
    """None: each sample weighs 1, the figure is a mean."""
    of: Callable[[Sequence[GroundingOutcome]], list[GroundingOutcome]] = positives_of
    """Which outcomes it is over: what is there or what is absent, never both."""

    def columns(self, outcomes: Sequence[GroundingOutcome]) -> tuple[list[str], list[float], list[float] | None]:
        """Pictures, values and weights of the samples that it is over."""
        chosen = self.of(outcomes)
        weights = None if self.weight is None else [self.weight(o) for o in chosen]
        return [o.picture for o in chosen], [self.value(o) for o in chosen], weights

    def interval(self, outcomes: Sequence[GroundingOutcome]) -> Interval:
        """The figure with its interval over pictures."""
        return score_interval(*self.columns(outcomes))


def _matched(outcome: GroundingOutcome) -> float:
    return float(outcome.matched_50)


def _counted(outcome: GroundingOutcome) -> float:
    return float(outcome.num_predicted == outcome.num_true)


_BOXES: Final[Mapping[str, tuple[Callable[[GroundingOutcome], float], Callable[[GroundingOutcome], float]]]] = {
    "precision@0.5": (_matched, lambda o: float(o.num_predicted)),
    "recall@0.5": (_matched, lambda o: float(o.num_true)),
    "F1@0.5": (lambda o: 2.0 * o.matched_50, lambda o: float(o.num_true + o.num_predicted)),
}
GROUNDING: Final[Mapping[str, Mapping[str, Measure]]] = {
    "positives": {
        "Acc@0.5": Measure(lambda o: float(o.hit_50)),
        "Acc@0.75": Measure(lambda o: float(o.hit_75)),
        "mean_iou": Measure(lambda o: o.iou),
        **{name: Measure(*both) for name, both in _BOXES.items()},
        "count_accuracy": Measure(_counted),
    },
    "several": {
        "precision@F1=1": Measure(lambda o: float(o.exact_50)),
        "precision@F1=1_of_several": Measure(lambda o: float(o.exact_50), of=several_of),
        **{f"{name}_of_several": Measure(*both, of=several_of) for name, both in _BOXES.items()},
        "count_accuracy_of_several": Measure(_counted, of=several_of),
        "T-acc": Measure(lambda o: float(o.num_predicted > 0)),
    },
}
"""Grounding figures with intervals: where they stand in the scores -> name -> figure.  Rates of what is absent, and
discrimination, are rejection.py's."""


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


_HEADLINES: Mapping[Task, Callable[[Mapping[str, Any]], tuple[str, float | None]]] = {
    "grounding": lambda s: ("Acc@0.5", s["positives"]["Acc@0.5"]),
    "detection": lambda s: ("F1@0.5", s["F1@0.5"]),
    "caption": lambda s: ("CIDEr", s["CIDEr"]),
}


def headline(scores: Mapping[str, Any]) -> tuple[str, float | None]:
    """The one figure that a run's best adapter is chosen by: of the first task that was scored; None: not measured."""
    task = next(task for task in TASKS if task in scores)
    return _HEADLINES[task](scores[task])
