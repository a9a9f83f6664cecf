"""Scores as rows for people."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from qwenft.core.answer import Task
from qwenft.core.events import printable
from qwenft.core.samples import TASKS
from qwenft.evaluate.rejection import of_kind

_REJECTION: Final = (("negatives", "rejection_rate"), ("negatives", "false_alarm_rate"))
_FIGURES: Final[Mapping[Task, Sequence[tuple[str, ...]]]] = {
    "grounding": (
        ("positives", "Acc@0.5"), ("positives", "Acc@0.75"), ("positives", "mean_iou"), ("positives", "F1@0.5"),
        ("several", "precision@F1=1"), ("several", "precision@0.5_of_several"), ("several", "recall@0.5_of_several"),
        ("several", "F1@0.5_of_several"), ("several", "count_accuracy_of_several"),
        *_REJECTION, ("positives", "discrimination"), ("parse_rate",),
    ),
    "detection": (
        ("AP",), ("AP50",), ("AP75",), ("APs",), ("APm",), ("APl",), ("AR1",), ("AR10",), ("AR100",), ("ARs",),
        ("ARm",), ("ARl",), ("F1@0.5",), ("precision@0.5",), ("recall@0.5",), *_REJECTION, ("discrimination",),
        ("parse_rate",),
    ),
    "caption": (("Bleu_1",), ("Bleu_4",), ("ROUGE_L",), ("CIDEr",), ("parse_rate",)),
}  # fmt: skip
"""Task -> the figures that are shown, as paths into its scores."""


@dataclass(frozen=True, slots=True)
class FigureRow:
    """One figure of an evaluation; None where it was not measured or there is nothing to put beside it."""

    task: Task
    key: str
    score: float | None
    interval: Mapping[str, Any] | None
    base: float | None
    base_interval: Mapping[str, Any] | None
    difference: Mapping[str, Any] | None
    constant: float | None
    """Of the constant box, which looks at no picture."""
    of_kind: str = ""
    """Of this kind of negative alone."""


def figure_rows(metrics: Mapping[str, Any]) -> Iterator[FigureRow]:
    """The figures of metrics.json that are shown, in order."""
    scores, baseline = metrics["scores"], metrics.get("baseline")
    constant = metrics.get("constant_box")
    for task in TASKS:
        for key, path in _paths(task, scores[task]) if task in scores else ():
            base = baseline[task] if baseline else None
            yield FigureRow(
                task,
                key,
                _at(scores[task], path),
                _interval(scores[task], path),
                _at(base, path),
                _interval(base, path),
                metrics["difference"].get(task, {}).get(key) if baseline else None,
                _at(constant, path) if task == "grounding" and path[0] == "positives" else None,
                path[2] if path[:2] == ("negatives", "kinds") else "",
            )


def _paths(task: Task, scores: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """What is shown, in order: its name and its place; behind the rejection of all negatives that of each kind."""
    for path in _FIGURES[task]:
        if not _is_shown(scores, path):
            continue
        yield path[-1], path
        kinds = scores["negatives"]["kinds"] if path == _REJECTION[0] else {}
        for kind in kinds if len(kinds) > 1 else ():
            yield of_kind(kind), ("negatives", "kinds", kind, "rejection_rate")


def _is_shown(scores: Mapping[str, Any], path: Sequence[str]) -> bool:
    """A COCO results file has no parse rate; what is asked of nobody has no figure.

    Rejection and discrimination stand together or not at all.
    """
    if path[0] == "several":
        return bool(scores["several"]["n"]["several"])
    if path[0] == "negatives" or path[-1] == "discrimination":
        return bool(scores["negatives"]["n"])
    return path[0] in scores


def _interval(scores: Mapping[str, Any] | None, path: Sequence[str]) -> Mapping[str, Any] | None:
    if scores is None:
        return None
    if path == ("parse_rate",):
        return scores.get("parse_interval")
    found: Mapping[str, Any] = _at(scores, path[:-1]) or {}
    interval: Mapping[str, Any] | None = found.get("intervals", {}).get(path[-1])
    return interval


def score_rows(*evaluations: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the table that `eval` shows: its content is that of metrics.json, rounded.

    With a baseline: base, adapter (or `names`, of two runs) and their difference with its 95 % interval; else the score
    with its own; beside them the constant box, if any.  Several evaluations: one below the other, each
    row with the name of its data.
    """
    with_base = any(metrics.get("baseline") for metrics in evaluations)
    with_constant = any(metrics.get("constant_box") for metrics in evaluations)
    columns = ["data"] if len(evaluations) > 1 else []
    names = next((metrics["names"] for metrics in evaluations if "names" in metrics), ("base", "adapter"))
    columns += ["figure", *([*names, "difference"] if with_base else ["score", "95 %"])]
    columns += ["constant box"] if with_constant else []
    rows = []
    for metrics in evaluations:
        for row in figure_rows(metrics):
            cells = [printable(f"{metrics['data']}/{metrics['split']}")] if len(evaluations) > 1 else []
            cells.append(f"{row.task} {figure_name(row.key)}")
            if with_base:
                cells += [number(row.base), number(row.score), with_interval(row.difference)]
            else:
                cells += [number(row.score), interval_text(row.interval)]
            if with_constant:
                cells.append("" if row.constant is None else number(row.constant))
            rows.append(cells)
    return columns, rows


def interval_text(interval: Mapping[str, Any] | None) -> str:
    """An interval alone; empty where there is none.

    >>> interval_text({"low": 0.125, "high": 0.375})
    '[0.125, 0.375]'
    """
    return "" if interval is None or interval["low"] is None else f"[{interval['low']:.3f}, {interval['high']:.3f}]"


def figure_name(key: str) -> str:
    """A key of metrics.json as people write it.

    >>> figure_name("mean_iou"), figure_name("rejection_rate")
    ('mean IoU', 'rejection rate')
    """
    return key.replace("_", " ").replace("iou", "IoU")


def number(value: float | None) -> str:
    """Three places; what was not measured says so.

    >>> number(0.5), number(None)
    ('0.500', 'not measured')
    """
    return "not measured" if value is None else f"{value:.3f}"


def with_interval(difference: Mapping[str, Any] | None) -> str:
    """A difference with its interval, if there is one.

    >>> with_interval({"estimate": 0.25, "low": 0.125, "high": 0.375})
    '+0.250 [+0.125, +0.375]'
    """
    if difference is None or difference["estimate"] is None:
        return ""
    text = f"{difference['estimate']:+.3f}"
    return text if difference["low"] is None else f"{text} [{difference['low']:+.3f}, {difference['high']:+.3f}]"


def threshold_text(task: str, figures: Mapping[str, Any]) -> str:
    """What the chosen threshold of a task does; figures: of metrics.json, `threshold.<task>`."""
    before, after = figures["without"], figures["chosen"]

    def change(name: str) -> str:
        return f"{number(before[name]['estimate'])} to {number(after[name]['estimate'])}"

    if not after["threshold"]:
        return f"no threshold on the score of {task} has a larger F1@0.5: predict leaves no box out"
    return (
        f"threshold {after['threshold']:.4f} on the score of {task}, for the largest F1@0.5: "
        f"rejection rate {change('rejection_rate')}, discrimination {change('discrimination')}; "
        "it stands in the contract now, and predict leaves boxes under it out (--threshold 0 does not)"
    )


def _at(value: Any, path: Sequence[str]) -> Any:
    for key in path:
        value = value[key] if value is not None else None
    return value
