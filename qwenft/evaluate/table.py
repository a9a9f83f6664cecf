"""Scores as rows for people."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

_FIGURES: Final[Mapping[str, Sequence[tuple[str, ...]]]] = {
    "grounding": (
        ("positives", "Acc@0.5"), ("positives", "Acc@0.75"), ("positives", "mean_iou"), ("positives", "F1@0.5"),
        ("negatives", "rejection_rate"), ("negatives", "false_alarm_rate"), ("parse_rate",),
    ),
    "detection": (
        ("AP",), ("AP50",), ("AP75",), ("APs",), ("APm",), ("APl",), ("AR1",), ("AR10",), ("AR100",), ("ARs",),
        ("ARm",), ("ARl",), ("F1@0.5",), ("precision@0.5",), ("recall@0.5",), ("parse_rate",),
    ),
    "caption": (("Bleu_1",), ("Bleu_4",), ("ROUGE_L",), ("CIDEr",), ("parse_rate",)),
}  # fmt: skip
"""Task -> the figures that the table shows, as paths into its scores."""


def score_rows(metrics: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the table that `eval` shows: its content is that of metrics.json, rounded.

    With a baseline: base, adapter and their difference with its 95 % interval; beside it the constant box, if any.
    """
    scores, baseline = metrics["scores"], metrics.get("baseline")
    constant = metrics.get("constant_box")
    columns = ["figure", *(["base", "adapter", "difference"] if baseline else ["score"])]
    columns += ["constant box"] if constant else []
    rows = []
    for task, figures in _FIGURES.items():
        for path in figures if task in scores else ():
            if path[0] not in scores[task] or (path[0] == "negatives" and not scores[task]["negatives"]["n"]):
                continue  # a COCO results file has no parse rate
            cells = [f"{task} {figure_name(path[-1])}"]
            if baseline:
                cells.append(number(_at(baseline[task], path)))
            cells.append(number(_at(scores[task], path)))
            if baseline:
                cells.append(with_interval(metrics["difference"].get(task, {}).get(path[-1])))
            if constant:
                cells.append(number(_at(constant, path)) if task == "grounding" and path[0] == "positives" else "")
            rows.append(cells)
    return columns, rows


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


def _at(value: Any, path: Sequence[str]) -> Any:
    for key in path:
        value = value[key] if value is not None else None
    return value
