"""What is measured while a run goes on: on which samples, and the one figure by which the best adapter is chosen."""

from collections.abc import Mapping
from typing import Any, Final

from qwenft.core.samples import TASKS, Sample
from qwenft.evaluate.run import spread
from qwenft.evaluate.score import headline
from qwenft.train.mixture import Mixture, whole

BOUNDED: Final = "ROUGE_L"
"""Judges captions beside other tasks: CIDEr, which judges them alone, has no upper end and would outweigh the rest."""


def held_out_samples(mixture: Mixture, most: int) -> list[Sample]:
    """At most so many held-out samples, each data set the same number of them, evenly spread over its split."""
    sets = mixture.held_out
    found: list[Sample] = []
    for number, (dataset, split) in enumerate(sets):
        limit = most * (number + 1) // len(sets) - most * number // len(sets)
        found += whole(dataset, spread(dataset.samples(split), limit))
    return found


def measure(scores: Mapping[str, Any]) -> tuple[str, float | None, dict[str, dict[str, Any]]]:
    """The name of the figure, its value (None: not measured), and {task: {"metric", "value"}}.

    scores: of `score_predictions`.  One task: its headline; of grounding the mean of it and the rejection rate where
    something that is absent is asked for too, else an adapter that answers always, or never, could be the best.
    Several tasks: the mean over those that could be measured, each counting the same.
    """
    tasks = [task for task in TASKS if task in scores]
    found: dict[str, dict[str, Any]] = {}
    for task in tasks:
        metric, value = headline({task: scores[task]})
        if task == "caption" and len(tasks) > 1:
            metric, value = BOUNDED, scores[task][BOUNDED]
        rejected = scores[task].get("negatives", {}).get("rejection_rate")
        if task == "grounding" and None not in (value, rejected):
            metric, value = f"mean of {metric}, rejection_rate", (value + rejected) / 2
        found[task] = {"metric": metric, "value": value}
    names: list[str] = [part["metric"] for part in found.values()]
    values: list[float] = [part["value"] for part in found.values() if part["value"] is not None]
    name = names[0] if len(names) == 1 else f"mean of {', '.join(names)}"
    return name, sum(values) / len(values) if values else None, found
