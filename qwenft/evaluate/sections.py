"""Sections of the report: figures of metrics.json as the rows, cells and words that its template shows; pure."""

from collections.abc import Mapping
from typing import Any, Final

from qwenft.evaluate.charts import strip
from qwenft.evaluate.score import headline
from qwenft.evaluate.table import FigureRow, figure_name, figure_rows, interval_text, number, with_interval

_CONFUSED_SHOWN: Final = 16
"""Categories in the confusion matrix: the most frequent ones."""
_GROUPS_SHOWN: Final = 40
EXPLANATIONS: Final[Mapping[str, str]] = {
    "Acc@0.5": "the first box overlaps the true one by an IoU of 0.5 or more",
    "Acc@0.75": "the same at an IoU of 0.75",
    "mean_iou": "mean overlap of the first box with the true one; an unreadable answer is 0",
    "F1@0.5": "precision and recall of all boxes that were answered, in one",
    "precision@F1=1": "all things named are found and no box is left over",
    "precision@0.5_of_several": "boxes that are right, where several things are named",
    "recall@0.5_of_several": "things that are found there",
    "F1@0.5_of_several": "both in one",
    "count_accuracy_of_several": "as many boxes as things, where several are named",
    "discrimination": "what is there is still found: a box of an IoU of 0.5 or more",
    "rejection_rate": "says “none” where nothing is",
    "false_alarm_rate": "answers a box where nothing is",
    "parse_rate": "answers that could be read",
    "AP": "COCO's average precision, IoU 0.5 to 0.95",
    "AP50": "the same at an IoU of 0.5",
    "AP75": "the same at an IoU of 0.75",
    "APs": "of things under 32² px",
    "APm": "of things from 32² to 96² px",
    "APl": "of things over 96² px",
    "AR1": "average recall with one box a category and picture",
    "AR10": "with ten",
    "AR100": "with a hundred",
    "precision@0.5": "boxes that are right",
    "recall@0.5": "things that are found",
    "ROUGE_L": "longest common word sequence with a reference",
    "CIDEr": "rare words shared with the references; can be over 1",
}


def warnings(metrics: Mapping[str, Any]) -> list[str]:
    """What a reader must know before the figures: trained on, a part of the split, the training split."""
    seen, part = metrics["trained_on"], metrics["samples"]
    found = []
    if seen and seen["pictures"]:
        found.append(
            f"{seen['pictures']:,} of {seen['of']:,} pictures were trained on ({seen['samples']:,} questions, marked "
            "“trained on” below): these figures are no held-out ones."
        )
    if part["scored"] < part["of"]:
        found.append(f"A part of the split: {part['scored']:,} of {part['of']:,} samples, evenly spread.")
    if metrics["role"] == "train":
        found.append("This is the training split.")
    return found


def headlines(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The figure that each task is judged by, large."""
    found = []
    rows = list(figure_rows(metrics))
    for task in dict.fromkeys(row.task for row in rows):
        name, _ = headline({task: metrics["scores"][task]})
        row = next(row for row in rows if (row.task, row.key) == (task, name))
        both = {row.key: number(row.score) for row in rows if row.task == task and row.key in _BOTH}
        found.append({"row": row, "cell": _cells(row), "both": both})
    return found


_BOTH: Final = ("discrimination", "rejection_rate")
"""Shown together or not at all."""


def tables(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All figures but those of single kinds of negatives, a table each task."""
    found = []
    rows = [row for row in figure_rows(metrics) if not row.of_kind]
    for task in dict.fromkeys(row.task for row in rows):
        own = [row for row in rows if row.task == task]
        cells, constant = [_cells(row) for row in own], any(row.constant is not None for row in own)
        found.append({"task": task, "rows": cells, "n": _amount(metrics["scores"][task]), "constant": constant})
    return found


def _amount(scores: Mapping[str, Any]) -> str:
    if "positives" not in scores:
        return f"{scores['n']:,} questions"
    there, absent = scores["positives"]["n"], scores["negatives"]["n"]
    return f"{there:,} questions about things that are there" + (f", {absent:,} about absent ones" if absent else "")


def _cells(row: FigureRow) -> dict[str, Any]:
    difference = row.difference
    decided = difference and difference["low"] is not None and (difference["low"] > 0 or difference["high"] < 0)
    return {
        "name": figure_name(row.key),
        "means": EXPLANATIONS.get(row.key, ""),
        "score": number(row.score),
        "interval": interval_text(row.interval),
        "base": number(row.base),
        "base_interval": interval_text(row.base_interval),
        "difference": with_interval(difference),
        "trend": ("up" if difference["estimate"] > 0 else "down") if difference and decided else "",
        "constant": "" if row.constant is None else number(row.constant),
        "strip": strip([("base", row.base, row.base_interval), ("ours", row.score, row.interval)]),
    }


def ranking(scores: Mapping[str, Any]) -> list[dict[str, Any]]:
    """AP by score beside AP with every score 1.0."""
    return [
        {"task": task, "name": name, "by_score": number(row["by_score"]), "flat": number(row["all_scores_one"]),
         "difference": with_interval(row["difference"])}
        for task in ("grounding", "detection")
        for name, row in ((scores.get(task) or {}).get("ranking") or {}).items()
    ]  # fmt: skip


def kinds(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of each task with negatives: what is still found of what is there, above what is rejected of each kind."""
    rows = [row for row in figure_rows(metrics) if row.key in _BOTH or row.of_kind]
    found = []
    for task in dict.fromkeys(row.task for row in rows):
        scores = metrics["scores"][task]
        absent = {"": scores["negatives"], **scores["negatives"]["kinds"]}
        own = sorted((row for row in rows if row.task == task), key=lambda row: row.key != "discrimination")
        found.append({"task": task, "rows": [_kind_row(row, scores, absent) for row in own]})
    return found


def _kind_row(row: FigureRow, scores: Mapping[str, Any], absent: Mapping[str, Any]) -> dict[str, Any]:
    if row.key == "discrimination":
        n = scores["n"] - scores["negatives"]["n"] - scores.get("not_scored", 0)
        plain = {"kind": False, "alarms": "", "alarms_interval": ""}
        return {**_cells(row), "name": "what is there: found", "n": n, **plain}
    figures = absent[row.of_kind]
    return {
        **_cells(row),
        "name": figure_name(row.of_kind) or "what is absent: rejected",
        "kind": bool(row.of_kind),
        "n": figures["n"],
        "alarms": number(figures["false_alarm_rate"]),
        "alarms_interval": interval_text(figures["intervals"]["false_alarm_rate"]),
    }


_THRESHOLDS: Final = ("rejection_rate", "discrimination", "false_alarm_rate", "F1@0.5")


def thresholds(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of each task with a threshold, chosen here or brought: what it does to rejection and discrimination."""
    found = []
    for task, figures in metrics["threshold"].items():
        if not (figures["chosen"] or figures["contract"]):
            continue
        names = {"without": "none", "chosen": "for the largest F1@0.5 here"}
        if figures["contract"]:
            own = figures["contract"]["chosen_on"]
            names["contract"] = f"the contract’s, chosen on {own}"
        found.append(
            {"task": task, "rows": [_threshold_row(names[key], figures[key]) for key in names if figures[key]]}
        )
    return found


def _threshold_row(name: str, row: Mapping[str, Any]) -> dict[str, Any]:
    cells = [(number(row[key]["estimate"]), interval_text(row[key])) for key in _THRESHOLDS]
    return {"name": f"{row['threshold']:.4f}, {name}" if row["threshold"] else name, "cells": cells}


def groups(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Grounding by category, size and length, base beside adapter."""
    ours = metrics["scores"].get("grounding", {}).get("by", {})
    base = (metrics.get("baseline") or {}).get("grounding", {}).get("by", {})
    titles = {"category": "By category", "size": "By size of the thing", "length": "By length of the expression"}
    return [
        {
            "title": titles[name],
            "left_out": max(0, len(groups) - _GROUPS_SHOWN),
            "rows": [
                _group_row(group, row, base.get(name, {}).get(group))
                for group, row in list(groups.items())[:_GROUPS_SHOWN]
            ],
        }
        for name, groups in ours.items()
        if groups
    ]


def _group_row(name: str, ours: Mapping[str, Any], base: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        "name": name,
        "n": ours["n"],
        "score": number(ours["Acc@0.5"]),
        "interval": interval_text(ours["interval"]),
        "base": number(base["Acc@0.5"]) if base else "",
        "iou": number(ours["mean_iou"]),
        "strip": strip(
            [
                ("base", base["Acc@0.5"] if base else None, base["interval"] if base else None),
                ("ours", ours["Acc@0.5"], ours["interval"]),
            ]
        ),
    }


def categories(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Detection by category, those with the most true boxes first."""
    ours = metrics["scores"].get("detection", {}).get("categories", {})
    base = (metrics.get("baseline") or {}).get("detection", {}).get("categories", {})
    order = sorted(ours, key=lambda name: (-ours[name]["true_boxes"], name))
    names = ("AP", "AP50", "precision@0.5", "recall@0.5", "F1@0.5")
    return [
        {
            "name": name,
            "counts": (ours[name]["true_boxes"], ours[name]["predicted_boxes"]),
            "cells": [number(ours[name][key]) if ours[name][key] is not None else "–" for key in names],
            "base": number(base[name]["AP50"]) if name in base and base[name]["AP50"] is not None else "",
            "strip": strip([("base", base.get(name, {}).get("AP50"), None), ("ours", ours[name]["AP50"], None)]),
        }
        for name in order
    ]


def confusion(scores: Mapping[str, Any]) -> dict[str, Any] | None:
    """The matrix of the most frequent categories: rows are true, columns are answered; shares of a row."""
    cells = scores.get("detection", {}).get("confusion")
    if not cells:
        return None
    counts = {(cell["true"], cell["predicted"]): cell["n"] for cell in cells}
    totals: dict[str, int] = {}
    for cell in cells:
        for name in {cell["true"], cell["predicted"]} - {None}:
            totals[name] = totals.get(name, 0) + cell["n"]
    names: list[str | None] = [*sorted(totals, key=lambda name: (-totals[name], name))[:_CONFUSED_SHOWN], None]
    rows = []
    for true in names:
        values = [counts.get((true, predicted), 0) for predicted in names]
        whole = sum(n for (row, _), n in counts.items() if row == true) or 1
        rows.append(
            {"name": true, "cells": [(n, round(n / whole, 3), true == p) for n, p in zip(values, names, strict=True)]}
        )
    return {"names": names, "rows": rows, "left_out": max(0, len(totals) - _CONFUSED_SHOWN)}
