"""report.html: everything that an evaluation found, in one file that opens from disk and loads nothing else."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from qwenft.core.predictions import Prediction
from qwenft.core.samples import Sample
from qwenft.evaluate import sections
from qwenft.evaluate.plots import draw_charts
from qwenft.evaluate.records import answer_records, galleries
from qwenft.evaluate.thumbnails import BUDGET_BYTES, SIDE_PX, thumbnails

TEMPLATES: Final = Path(__file__).parent / "template"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a report is made of."""

    metrics: Mapping[str, Any]
    """The content of metrics.json."""
    samples: Sequence[Sample]
    ours: Sequence[Prediction]
    """In the samples' order, as `theirs`."""
    theirs: Sequence[Prediction] | None
    """The base model's; None: it was not asked."""
    folder: Path
    """Of the prepared data set: the pictures lie there."""
    command: str
    contract: Mapping[str, Any] | None = None
    """The adapter's; None for a base model."""
    events: Sequence[Mapping[str, Any]] = field(default=())
    """Of the run's training."""


def render_report(evaluation: Evaluation, *, thumbnail_bytes: int = BUDGET_BYTES) -> str:
    """The page as HTML; every text of data and model is escaped, and its policy lets only its own script run.

    thumbnail_bytes: of all thumbnails together; pictures beyond it are left out, and the page says so.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
    environment.filters["percent"] = "{:.1%}".format
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    answers = _answers(evaluation, thumbnail_bytes)
    sides = {"ours": evaluation.ours} | ({} if evaluation.theirs is None else {"base": evaluation.theirs})
    page: str = environment.get_template("report.html").render(
        style=(TEMPLATES / "report.css").read_text(encoding="utf-8"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=_embedded(answers),
        metrics=evaluation.metrics,
        title=_title(evaluation.metrics),
        warnings=sections.warnings(evaluation.metrics),
        headlines=sections.headlines(evaluation.metrics),
        tables=sections.tables(evaluation.metrics),
        charts=draw_charts(evaluation.metrics, evaluation.samples, sides, evaluation.events, answers["records"]),
        kinds=sections.kinds(evaluation.metrics),
        thresholds=sections.thresholds(evaluation.metrics),
        ranking=sections.ranking(evaluation.metrics["scores"]),
        groups=sections.groups(evaluation.metrics),
        categories=sections.categories(evaluation.metrics),
        confusion=sections.confusion(evaluation.metrics["scores"]),
        pictures=_pictures(answers),
        unreadable=sum("unparsable" in _statuses(record) for record in answers["records"]),
        file=evaluation.metrics["inputs"].get("predictions"),
        command=evaluation.command,
        contract=_contract_text(evaluation.contract),
    )
    return page


def _embedded(value: object) -> str:
    """JSON that can stand in a script element: no text in it can end the element or begin a tag."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _title(metrics: Mapping[str, Any]) -> str:
    """Who answered what; answers from a file go by its name."""
    file = metrics["inputs"].get("predictions")
    who = metrics["run"] or (Path(file).name if file else metrics["model"])
    return f"{who} on {metrics['data']}, {metrics['split']}"


def _answers(evaluation: Evaluation, thumbnail_bytes: int) -> dict[str, Any]:
    trained_on = frozenset((evaluation.contract or {}).get("pictures", ()))
    records = answer_records(evaluation.samples, evaluation.ours, evaluation.theirs, trained_on)
    shown = galleries(records)
    first = [number for chosen in shown.values() for number in chosen]
    order = [evaluation.samples[number] for number in [*first, *range(len(records))]]
    files = ((sample.picture, evaluation.folder / sample.image) for sample in order)
    return {"records": records, "galleries": shown, "thumbnails": thumbnails(files, thumbnail_bytes)}


def _pictures(answers: Mapping[str, Any]) -> dict[str, Any]:
    found = answers["thumbnails"]
    return {
        "n": len({record["picture"] for record in answers["records"]}),
        "shown": len(found),
        "mb": sum(map(len, found.values())) / 1e6,
        "side_px": SIDE_PX,
    }


def _statuses(record: Mapping[str, Any]) -> list[str]:
    return [record[side]["status"] for side in ("ours", "base") if record[side]]


def _contract_text(contract: Mapping[str, Any] | None) -> str:
    """The contract as JSON, the list of picture hashes as their number."""
    if contract is None:
        return ""
    shown = {**contract, "pictures": f"{len(contract['pictures']):,} hashes of training pictures"}
    return json.dumps(shown, indent=2, ensure_ascii=False)
