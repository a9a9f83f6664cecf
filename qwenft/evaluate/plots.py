"""Which charts an evaluation has: training curves, overlaps, precision and recall, scores; pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from qwenft.core.predictions import Prediction
from qwenft.core.samples import Sample
from qwenft.evaluate.charts import Series, histogram, line_chart
from qwenft.evaluate.ranking import Ranked, rank_scenes
from qwenft.evaluate.scene import category_names, detection_scenes, grounding_scenes, without_scores


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawing with its words."""

    title: str
    svg: str
    """Empty: there is nothing to show."""
    legend: Sequence[tuple[str, str]] = ()
    """Colour class and name."""
    note: str = ""


_WHO: Final = (("base", "base model"), ("ours", "adapter"))


def draw_charts(
    metrics: Mapping[str, Any],
    samples: Sequence[Sample],
    sides: Mapping[str, Sequence[Prediction]],
    events: Sequence[Mapping[str, Any]],
    records: Sequence[Mapping[str, Any]],
) -> list[Chart]:
    """The charts of an evaluation, without those that have nothing to show.

    metrics: the content of metrics.json.  sides: `ours`, and `base` if it was asked; in the samples' order.  events: of
    the run's training.  records: as of `answer_records`.
    """
    charts = [*_curves(events), _overlaps(records)]
    for task in ("grounding", "detection"):
        if metrics["scores"].get(task, {}).get("ranking"):
            charts += _ranked_charts(task, _rankings(task, samples, sides))
        charts += _threshold_chart(task, metrics["threshold"].get(task))
    return [chart for chart in charts if chart.svg]


def _curves(events: Sequence[Mapping[str, Any]]) -> list[Chart]:
    steps = [(e["step"], e["loss"]) for e in events if e["event"] == "step" and isinstance(e["loss"], (int, float))]
    evals = [e for e in events if e["event"] == "eval" and e["value"] is not None]
    metric = evals[0]["metric"] if evals else ""
    measured = [(e["step"], e["value"]) for e in evals]
    return [
        Chart(
            "Training loss",
            line_chart([Series("loss", "ours", steps)], x_name="update", y_name="loss a target token"),
            note=f"{len(steps):,} updates",
        ),
        Chart(
            f"{metric} during training",
            line_chart([Series(metric, "ours", measured)], x_name="update", y_name=metric, unit_y=True, dots=True),
            note="held-out part, step 0 is the base model",
        ),
    ]


def _overlaps(records: Sequence[Mapping[str, Any]]) -> Chart:
    there = [record for record in records if record["task"] == "grounding" and not record["absent"]]
    series = [
        Series(name, side, values=values)
        for side, name in _who(records)
        if (values := [r[side]["value"] for r in there if r[side] and r[side]["value"] is not None])
    ]
    chart = histogram(series, x_name="IoU with the true box", y_name="answers")
    return Chart("Overlap with the truth", chart, [(s.colour, s.name) for s in series], "at 0: missed or unreadable")


def _who(records: Sequence[Mapping[str, Any]]) -> Sequence[tuple[str, str]]:
    return _WHO if records and records[0]["base"] else (("ours", "answers"),)


def _threshold_chart(task: str, figures: Mapping[str, Any] | None) -> list[Chart]:
    """Rejection never without discrimination: no chart where nothing is absent."""
    if figures is None or any(figures["without"][name]["estimate"] is None for name in _BOTH):
        return []
    lines = [
        Series(name, colour, [(point["threshold"], point[key]) for point in figures["curve"]])
        for key, name, colour in (
            ("rejection_rate", "rejected, of what is absent", "base"),
            ("discrimination", "found, of what is there", "hit"),
            ("F1@0.5", "F1@0.5 of all boxes", "plain"),
        )
    ]
    marked = figures["contract"] or figures["chosen"]
    chart = line_chart(
        lines, x_name="boxes under this score are left out", y_name="share", unit_y=True,
        mark_x=marked["threshold"] if marked else None,
    )  # fmt: skip
    note = "dotted: the contract's threshold" if figures["contract"] else "dotted: chosen here" if marked else ""
    return [Chart(f"Threshold on the score, {task}", chart, [(s.colour, s.name) for s in lines], note)]


_BOTH: Final = ("rejection_rate", "discrimination")


def _rankings(task: str, samples: Sequence[Sample], sides: Mapping[str, Sequence[Prediction]]) -> dict[str, Ranked]:
    """The ranked boxes of each side, and ours with every score 1.0."""
    found = {name: _ranked(task, samples, sides[name]) for name in ("base", "ours") if name in sides}
    return {**found, "plain": _ranked(task, samples, sides["ours"], scored=False)}


def _ranked(task: str, samples: Sequence[Sample], predictions: Sequence[Prediction], *, scored: bool = True) -> Ranked:
    pairs = sorted(
        (
            (s, p)
            for s, p in zip(samples, predictions, strict=True)
            if s.task == task and (task != "grounding" or s.objects)
        ),
        key=lambda pair: pair[0].id,
    )
    chosen, answers = [sample for sample, _ in pairs], [prediction for _, prediction in pairs]
    names = category_names(chosen) if task == "detection" else {"": ""}
    scenes = detection_scenes(chosen, answers, names) if task == "detection" else grounding_scenes(chosen, answers)
    return rank_scenes(scenes if scored else without_scores(scenes), [s.picture for s in chosen], len(names))


def _ranked_charts(task: str, ranked: Mapping[str, Ranked]) -> list[Chart]:
    hits, misses = ranked["ours"].scores_of(hit=True), ranked["ours"].scores_of(hit=False)
    boxes = [Series("right", "hit", values=hits), Series("wrong", "miss", values=misses)]
    names = {**dict(_WHO), "plain": "all scores 1.0"}
    if "base" not in ranked:
        names["ours"] = "by score"
    lines = [Series(names[side], side, found.precision_recall()) for side, found in ranked.items()]
    return [
        Chart(
            f"Precision and recall, {task}",
            line_chart(lines, x_name="recall", y_name="precision", unit_x=True, unit_y=True),
            [(line.colour, line.name) for line in lines if line.points],
            "boxes at an IoU of 0.5, the surest first",
        ),
        Chart(
            f"Scores, {task}",
            histogram(boxes, x_name="score", y_name="boxes", stacked=True),
            [(item.colour, item.name) for item in boxes],
            "how sure that there is a box, times how sure of where",
        ),
    ]
