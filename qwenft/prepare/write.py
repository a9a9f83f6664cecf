"""What `prepare` says and writes: manifest, splits, rejected rows, preview."""

import platform
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from qwenft import __version__
from qwenft.core.files import jsonable, write_array, write_json, write_jsonl
from qwenft.core.samples import SCHEMA_VERSION, Manifest, Sample, SplitInfo
from qwenft.prepare import preview
from qwenft.prepare.audit import Audit, result_of
from qwenft.prepare.convention import MIN_FIT, Verdict
from qwenft.prepare.questions import Questions
from qwenft.prepare.rows import EXPLANATIONS, BadObject, BadRow, Source, counted
from qwenft.prepare.splits import Division
from qwenft.prepare.spool import tally
from qwenft.prepare.survey import Frame, Sizes

Said = tuple[Literal["note", "warning"], str]


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that was found out, ready to be said and written."""

    name: str
    source: Source
    options_command: str
    division: Division
    audit: Audit
    verdict: Verdict | None
    sizes: Sizes
    frame: Frame
    exif_votes: Mapping[str, int]
    turned: int
    converted: int
    repeated_ids: int
    counts: Mapping[str, int]
    reasons: Counter[str]
    limit: int | None
    questions: Questions
    exported: tuple[str, ...] = ()


def spoken(report: Report) -> list[Said]:
    """What is said aloud, and kept in the manifest's notes."""
    return [*_notes(report), *_warnings(report)]


def _notes(report: Report) -> Iterator[Said]:
    yield from (("note", text) for text in report.source.notes)
    if report.verdict:
        yield "note", report.verdict.sentence()
    if report.turned and report.frame != "undecided":
        yield (
            "note",
            (
                f"{counted(report.turned, 'picture')} stored turned (EXIF), now rewritten upright; "
                f"their boxes are meant {_FRAMES[report.frame]} ({_votes(report.exif_votes)})"
            ),
        )
    if report.converted:
        yield "note", f"{counted(report.converted, 'picture')} with 16 bits a channel, now rewritten with 8"
    if report.limit is not None:
        yield "note", f"no more than the first {counted(report.limit, 'row')} of each split read (--limit)"
    yield from (("note", text) for text in (*report.audit.notes(), *report.division.notes, *report.exported))
    yield from (("note", text) for text in report.questions.notes)


_FRAMES: Mapping[Frame, str] = {
    "upright": "as a viewer shows them",
    "stored": "as the file stores them, and were turned with them",
}


def _votes(votes: Mapping[str, int]) -> str:
    said = [f"{number:,} x {what}" for what, number in votes.items() if number and what != "turned"]
    return ", ".join(said) or "given with --exif, or without boxes"


def _warnings(report: Report) -> Iterator[Said]:
    verdict, sizes = report.verdict, report.sizes
    if verdict:
        fits = next(item.fits for item in verdict.evidence if item.reading == verdict.convention)
        if fits < MIN_FIT * verdict.boxes:
            yield "warning", f"only {fits:,} of {verdict.boxes:,} boxes fit {verdict.convention}: look at preview/"
    if report.turned and report.frame == "undecided" and report.reasons["orientation-undecided"]:
        number = report.reasons["orientation-undecided"]
        yield (
            "warning",
            (
                f"{counted(number, 'row')} with pictures stored turned (EXIF) rejected: nothing tells which way up "
                "their boxes are meant: say --exif upright (drawn in a viewer) or --exif stored"
            ),
        )
    if sizes.exchanged:
        yield "warning", "the declared sizes are (height, width): read so"
    if sizes.declared > sizes.agree:
        yield (
            "warning",
            (
                f"{sizes.declared - sizes.agree:,} of {sizes.declared:,} declared sizes differ from the pictures: "
                + ("rows with boxes were rejected" if sizes.trusted else "the pictures are trusted")
            ),
        )
    yield from (("warning", text) for text in report.questions.warnings)
    if report.repeated_ids:
        yield "warning", f"{report.repeated_ids:,} ids repeat, so they are not taken for ids of rows"
    yield from (("warning", text) for text in report.audit.warnings())
    if report.reasons:
        counts = report.counts
        table = ", ".join(f"{reason} {number:,}" for reason, number in report.reasons.most_common())
        objects = f" and {counted(counts['objects_rejected'], 'object')}" if counts["objects_rejected"] else ""
        yield "warning", f"{counts['rejected']:,} of {counted(counts['rows_read'], 'row')}{objects} rejected: {table}"


def write_dataset(
    folder: Path,
    made: Manifest,
    samples_of: Mapping[str, Sequence[Sample]],
    bad_rows: Iterable[BadRow],
    bad_objects: Iterable[BadObject],
    *,
    num_previews: int,
) -> None:
    """Write all files of a prepared data set but its pictures, the manifest last."""
    for split, samples in samples_of.items():
        write_samples(folder / made.splits[split].file, samples)
    write_jsonl(folder / "rejected.jsonl", chain(map(_bad_row, bad_rows), map(_bad_object, bad_objects)))
    if num_previews:
        preview.draw(folder, samples_of.values(), num_previews)
    write_json(folder / "manifest.json", made.model_dump(mode="json"))


def write_samples(path: Path, samples: Iterable[Sample]) -> None:
    """Write samples one a line: as JSONL, or as one array where the name ends in .json."""
    rows = (sample.to_json() for sample in samples)
    if path.suffix == ".jsonl":
        write_jsonl(path, rows)
    else:
        write_array(path, rows)


def _bad_row(bad: BadRow) -> Any:
    about = {"source": bad.where, "split": bad.split, "what": "row", "reason": bad.reason, "detail": _detail(bad)}
    return jsonable(about | {"row": dict(bad.original)})


def _bad_object(bad: BadObject) -> Any:
    about = {"source": bad.where, "what": "object", "reason": bad.reason, "detail": _detail(bad)}
    return jsonable(about | {"row": dict(bad.original)})


def _detail(bad: BadRow | BadObject) -> str:
    return ": ".join(filter(None, (EXPLANATIONS[bad.reason], bad.detail)))


def manifest(report: Report, output_format: str) -> Manifest:
    """Put together the manifest."""
    division = report.division
    source = report.source
    about = jsonable({"kind": source.kind, **source.about, "splits": source.splits})
    bbox = {} if report.verdict is None else report.verdict.to_json()
    if report.turned:
        bbox |= {"exif": report.frame, "exif_votes": dict(report.exif_votes)}
    return Manifest(
        schema_version=SCHEMA_VERSION,
        name=report.name,
        source=about,
        command=jsonable(report.options_command),
        versions=_versions(report.source.kind),
        splits={
            split: SplitInfo(
                file=f"{split}.{output_format}",
                role=division.roles[split],
                samples=found.samples,
                pictures=len(found.images),
                tasks=dict(found.tasks),
            )
            for split, found in ((split, tally(samples)) for split, samples in division.samples.items())
        },
        bbox=jsonable(bbox),
        counts={**report.counts, "turned": report.turned, "converted": report.converted},
        checks=_checks(report),
        notes=jsonable([text for _, text in spoken(report)]),
    )


def _versions(kind: str) -> dict[str, str]:
    used = ["pillow", *(("datasets", "pyarrow") if kind in ("hub", "table") else ())]
    return {"qwenft": __version__, "python": platform.python_version(), **{name: version(name) for name in used}}


def _checks(report: Report) -> list[dict[str, Any]]:
    """Every check with its result and the numbers behind it."""
    counts, sizes = report.counts, report.sizes
    return [
        {"check": "every row is a sample or rejected", "result": "ok"}
        | {key: counts[key] for key in ("rows_read", "samples", "rejected", "questions_made") if key in counts},
        {"check": "every object is in a sample or rejected", "result": "ok"}
        | {key: number for key, number in counts.items() if key.startswith("objects")},
        {"check": "rows rejected", "result": result_of(report.reasons), "reasons": dict(report.reasons)},
        {
            "check": "declared sizes agree with the pictures",
            "result": result_of(sizes.declared > sizes.agree or sizes.exchanged),
            "declared": sizes.declared,
            "agree": sizes.agree,
            "height_first": sizes.exchanged,
        },
        *report.audit.checks(),
        {"check": "ids name rows", "result": result_of(report.repeated_ids), "repeated": report.repeated_ids},
    ]
