"""The body of `qwenft prepare`: from any source to a prepared data set, whole or absent."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from qwenft.core.boxes import CONVENTIONS
from qwenft.core.errors import DataError, UsageError, nearest
from qwenft.core.events import Emit, ignore, note, printable, progress, warning
from qwenft.core.files import whole_folder
from qwenft.core.samples import Manifest, PreparedDataset, Sample, as_task
from qwenft.prepare import checks, convention, exports, splits, write
from qwenft.prepare.audit import audit
from qwenft.prepare.card import write_card
from qwenft.prepare.checks import Frame, Rules, Taken
from qwenft.prepare.negatives import Annotated, Negatives, add_negatives, searched_in_full
from qwenft.prepare.pictures import PictureError
from qwenft.prepare.rename import Renaming
from qwenft.prepare.rows import (
    EXPLANATIONS,
    BadObject,
    BadRow,
    PictureFile,
    Reason,
    Request,
    Row,
    Source,
    counted,
)
from qwenft.prepare.sources import HubOptions, Target, open_source, resolve
from qwenft.prepare.store import PictureStore

REPORT_EVERY = 50
"""Rows between two reports of progress."""
MOST_NEGATIVES = 100
"""For each question with an answer."""
FRAMES: Mapping[str, Frame | None] = {"auto": None, "upright": "upright", "stored": "stored"}


@dataclass(frozen=True, slots=True)
class Options:
    """What `prepare` was asked to do, apart from the source."""

    bbox_format: str | None = None
    exif: Frame | None = None
    val_fraction: float = 0.1
    seed: int = 0
    clip: bool = False
    follow_links: bool = False
    output_format: str = "jsonl"
    preview: int = 8
    command: str = ""
    export: tuple[str, ...] = ()
    num_proc: int = 1
    negatives: float = 0.0
    negatives_unproved: bool = False
    rename: Mapping[str, str] = field(default_factory=dict)
    earlier: Path | None = None
    """A prepared data set that is being replaced: its pictures need not be decoded again."""


def prepare_dataset(
    dataset: str,
    *,
    out: Path | None = None,
    root: Path | None = None,
    hf_endpoint: str | None = None,
    revision: str | None = None,
    splits: Sequence[str] = (),
    limit: int | None = None,
    task: str = "auto",
    bbox_format: str = "auto",
    columns: Mapping[str, str] | None = None,
    rename: Mapping[str, str] | None = None,
    output_format: str = "jsonl",
    val_fraction: float = 0.1,
    seed: int = 0,
    overwrite: bool = False,
    preview: int = 8,
    send_token: bool = False,
    follow_links: bool = False,
    clip: bool = False,
    exif: str = "auto",
    export: Sequence[str] = (),
    num_proc: int = 1,
    negatives: float = 0.0,
    negatives_unproved: bool = False,
    dry_run: bool = False,
    command: str = "",
    emit: Emit = ignore,
) -> PreparedDataset:
    """Read a source, find out its format and its boxes' convention, check every row and write a prepared data set.

    dataset: a hub id (`owner/name[:config]`), a folder or a file.  out: where to write; default `root`/data/<name>.
    root: where relative paths start; default the current folder.  rename: category -> its new name.  exif: which way
    up the boxes of turned pictures are meant, where the data do not tell (`upright`, `stored`).  export: other tools'
    forms to write too, under exports/.  num_proc: processes that decode pictures; with more than one a script that
    calls this needs `if __name__ == "__main__":`.  negatives: how many questions about what is not in the picture are
    made for each one that has an answer; negatives_unproved: also where nothing proves it, marked.  dry_run: check and
    report; what is returned has samples, but no files.
    Nothing stands at `out` unless all went well; an interrupted call goes on from the pictures it had stored, and one
    that replaces a data set from that one's.  Raises DataError, HubError or UsageError.

    >>> from qwenft import prepare_dataset
    >>> data = prepare_dataset("scenes")
    >>> data.path.name, {split: info.role for split, info in data.manifest.splits.items()}
    ('scenes', {'train': 'train', 'val': 'held-out'})
    >>> data.manifest.bbox["convention"], data.manifest.counts["rejected"]
    ('xyxy', 0)
    """
    base = (root or Path.cwd()).absolute()
    request = Request(tuple(splits), limit, None if task == "auto" else as_task(task), columns or {})
    _check_options(limit, val_fraction, output_format, exif, preview)
    _check_more_options(num_proc, export)
    _check_negatives(negatives, unproved=negatives_unproved)
    options = Options(
        bbox_format=_bbox_format(bbox_format),
        exif=FRAMES[exif],
        val_fraction=val_fraction,
        seed=seed,
        clip=clip,
        follow_links=follow_links,
        output_format=output_format,
        preview=preview,
        command=command or f"prepare_dataset({dataset!r})",
        export=tuple(dict.fromkeys(export)) if not dry_run else (),
        num_proc=num_proc,
        negatives=negatives,
        negatives_unproved=negatives_unproved,
        rename=rename or {},
    )
    target = resolve(dataset, base, emit)
    folder = (base / out.expanduser()) if out is not None else base / "data" / target.name
    if not dry_run:
        _check_out(folder, target, dataset, overwrite=overwrite)
    if (folder / "manifest.json").is_file():
        options = replace(options, earlier=folder)
    source = open_source(target, request, HubOptions(hf_endpoint, revision, send_token), emit)
    if dry_run:
        made = _build(None, folder.name, source, request=request, options=options, emit=emit)
        sizes = ", ".join(f"{split} {len(samples):,}" for split, samples in made.samples.items())
        emit(note(f"a dry run, nothing was written; samples it would give: {sizes}"))
        return PreparedDataset(folder, made.manifest, dict(made.samples))
    try:
        with whole_folder(folder, keep="images") as staging:
            _check_out(folder, target, dataset, overwrite=overwrite)  # another prepare may have come in between
            _build(staging, folder.name, source, request=request, options=options, emit=emit)
    except OSError as error:
        raise _disk_error(folder, error) from error
    return PreparedDataset.open(folder)


def _disk_error(folder: Path, error: OSError) -> DataError:
    """A full disk, a folder that may not be written: what was stored so far stays for the next try."""
    where = f" ({error.filename})" if error.filename else ""
    return DataError(
        f"{folder} cannot be made: {error.strerror or error}{where}",
        hint="make room and type it again (pictures that are stored are kept), or --out /a/larger/disk/NAME",
    )


def _check_options(limit: int | None, val_fraction: float, output_format: str, exif: str, preview: int) -> None:
    if limit is not None and limit < 1:
        raise UsageError(f"--limit must be at least 1, got {limit}", hint="leave it out to take every row")
    if not 0 <= val_fraction < 1:
        raise UsageError(f"--val-fraction must be from 0 to under 1, got {val_fraction}", hint="--val-fraction 0.1")
    if output_format not in ("jsonl", "json"):
        raise UsageError(f"unknown format {output_format!r}", hint=nearest(output_format, ("jsonl", "json")))
    if exif not in FRAMES:
        raise UsageError(f"unknown --exif {exif!r}", hint=nearest(exif, FRAMES))
    if preview < 0:
        raise UsageError(f"--preview must be 0 or more, got {preview}", hint="--preview 8")


def _check_more_options(num_proc: int, forms: Sequence[str]) -> None:
    if num_proc < 1:
        raise UsageError(f"--num-proc must be at least 1, got {num_proc}", hint="--num-proc 4")
    for form in forms:
        if form not in exports.FORMS:
            raise UsageError(f"unknown --export {form!r}", hint=nearest(form, exports.FORMS))


def _check_negatives(ratio: float, *, unproved: bool) -> None:
    if not 0 <= ratio <= MOST_NEGATIVES:
        raise UsageError(f"--negatives must be from 0 to {MOST_NEGATIVES}, got {ratio}", hint="--negatives 0.5")
    if unproved and not ratio:
        raise UsageError("--negatives-unproved without --negatives makes none", hint="--negatives 0.5")


def _bbox_format(text: str) -> str | None:
    if text == "auto":
        return None
    if text not in CONVENTIONS:
        raise UsageError(f"unknown --bbox-format {text!r}", hint=nearest(text, ("auto", *CONVENTIONS)))
    return text


def _check_out(folder: Path, target: Target, dataset: str, *, overwrite: bool) -> None:
    """Refuse to touch what is no prepared data set, or the source itself."""
    if target.path is not None and target.path.resolve().is_relative_to(folder.resolve()):
        other = f"qwenft prepare --dataset {dataset} --out data/{target.name}-prepared"
        raise DataError(f"{folder} is, or holds, the source itself", hint=other)
    if not folder.exists():
        return
    if not folder.is_dir() or (any(folder.iterdir()) and not (folder / "manifest.json").is_file()):
        other = f"qwenft prepare --dataset {dataset} --out data/{target.name}-prepared"
        raise DataError(f"{folder} exists and is no prepared data set: it is not replaced", hint=other)
    if not overwrite and any(folder.iterdir()):
        raise DataError(f"{folder} exists already", hint=f"qwenft prepare --dataset {dataset} --overwrite")


@dataclass
class Collected:
    """Pass 1: every row of the source, with its picture stored or the reason why not."""

    taken: list[tuple[int, Taken]] = field(default_factory=list)
    """(running number within its split, row)."""
    bad_rows: list[BadRow] = field(default_factory=list)
    rows_read: int = 0
    objects_read: int = 0
    objects_lost: int = 0
    """Objects of rows that were rejected in this pass."""


def _collect(source: Source, request: Request, store: PictureStore, emit: Emit) -> Collected:
    found = Collected()
    for (number, row), stored in store.each(_numbered(source, request)):
        found.rows_read += 1
        if isinstance(row, BadRow):
            found.bad_rows.append(row)
        else:
            objects = len(row.boxes) + len(row.bad_objects)
            found.objects_read += objects
            if isinstance(stored, PictureError):
                found.bad_rows.append(BadRow(row.split, row.where, stored.reason, stored.detail, row.original))
                found.objects_lost += objects
            elif stored is not None:
                found.taken.append((number, Taken(row, stored)))
        if found.rows_read % REPORT_EVERY == 0:
            emit(progress("reading rows", found.rows_read, source.total))
    emit(progress("reading rows", found.rows_read, found.rows_read))
    return found


def _numbered(source: Source, request: Request) -> Iterator[tuple[tuple[int, Row], bytes | PictureFile | None]]:
    """Each row with its number in its split, without its picture's bytes, and the picture."""
    seen: Counter[str] = Counter()
    for row in source.rows():
        if request.limit is not None and seen[row.split] >= request.limit:
            continue
        number = seen[row.split]
        seen[row.split] += 1
        if isinstance(row, BadRow):
            yield (number, row), None
        else:
            # The bytes go to the disk: a table of pictures must not fill the memory.
            yield (number, checks.without_bytes(row)), row.picture


class Settled(NamedTuple):
    """What was found out about the data set as a whole."""

    rules: Rules
    verdict: convention.Verdict | None
    exif_votes: Mapping[str, int]
    repeated_ids: int


def _settle(taken: Sequence[Taken], source: Source, options: Options) -> Settled:
    sizes = checks.judge_sizes(taken)
    observed = checks.observe(taken, sizes)
    verdict = None
    if observed and options.bbox_format:
        verdict = convention.obey(observed, options.bbox_format)
    elif observed and source.stated:
        verdict = convention.confirm(observed, source.stated, source.kind, source.readings)
    elif observed:
        verdict = convention.decide(observed, source.readings)
    name = verdict.convention if verdict else None
    frame, votes = checks.judge_frame(taken, name, sizes)
    unique, repeated = checks.ids_are_unique(taken)
    labels = {box.label or checks.NO_LABEL for row, _ in taken if row.task == "detection" for box in row.boxes}
    rules = Rules(name, options.exif or frame, sizes, options.clip, tuple(sorted(labels)), unique)
    return Settled(rules, verdict, votes, repeated)


@dataclass
class Result:
    """Pass 2: samples by the source's splits, and everything that was not taken."""

    by_split: dict[str, list[Sample]]
    bad_rows: list[BadRow]
    bad_objects: list[BadObject]
    objects_lost: int = 0
    doubtful: set[str] = field(default_factory=set)
    """Pictures (`Sample.image`) whose annotations prove no absence: not all searched for, or not all taken."""
    around: dict[str, Annotated] = field(default_factory=dict)
    """What a source of expressions knows of a picture (`Sample.image`) beside them."""


def _assemble(found: Collected, settled: Settled, source: Source, name: str) -> Result:
    result = Result({split: [] for split in source.splits}, list(found.bad_rows), list(source.loose_objects))
    result.objects_lost = found.objects_lost
    seen: set[tuple[str, str]] = set()
    for number, item in found.taken:
        row = item.row
        key = (row.split, row.key or "")
        if row.key is not None and settled.rules.ids_are_unique and key in seen:
            bad = BadRow(row.split, row.where, Reason.DUPLICATE_ID, f"id {row.key}", row.original)
            checked = checks.Checked(None, bad, ())
        else:
            checked = checks.check(item, f"{name}/{row.split}/{number}", settled.rules)
        seen.add(key)
        if row.task == "detection" and (
            checked.sample is None or checked.bad_objects or not searched_in_full(row, source.kind)
        ):
            result.doubtful.add(item.stored.image)
        if row.around is not None and item.stored.image not in result.around:
            _keep_around(item, settled.rules, result)
        result.bad_objects += checked.bad_objects
        if checked.sample is not None:
            result.by_split.setdefault(row.split, []).append(checked.sample)
        elif checked.bad_row is not None:
            result.bad_rows.append(checked.bad_row)
            result.objects_lost += len(row.boxes) + len(row.bad_objects)
    return result


def _keep_around(item: Taken, rules: Rules, result: Result) -> None:
    objects = checks.objects_around(item, rules)
    if objects is None:
        result.doubtful.add(item.stored.image)
    result.around[item.stored.image] = Annotated(item.row.categories or (), objects or ())


class Made(NamedTuple):
    """What was built."""

    manifest: Manifest
    samples: Mapping[str, tuple[Sample, ...]]


def _build(staging: Path | None, name: str, source: Source, *, request: Request, options: Options, emit: Emit) -> Made:
    """Both passes.  staging: where all is written; None writes nothing."""
    store = PictureStore(staging, options.follow_links, options.num_proc, options.earlier)
    renaming = Renaming(options.rename)
    try:
        found = _collect(renaming.over(source), request, store, emit)
        source = renaming.told(source)
        if store.reused:
            emit(note(f"{counted(store.reused, 'picture')} of an earlier prepare used again"))
        settled = _settle([item for _, item in found.taken], source, options)
        result = _assemble(found, settled, source, name)
        if not any(result.by_split.values()):
            raise _nothing_left(result.bad_rows, found.rows_read, source.kind)
        report = _report(
            name, source, found, settled, result, request=request, options=options, staging=staging, emit=emit
        )
        for kind, text in write.spoken(report):
            emit(warning(text) if kind == "warning" else note(text))
        manifest, samples = write.manifest(report, options.output_format), report.division.samples
        if staging is None:
            for text in _examples([*result.bad_rows, *result.bad_objects]):
                emit(note(text))
        else:
            write_card(staging, manifest, samples)
            write.write_dataset(
                staging, manifest, samples, result.bad_rows, result.bad_objects, num_previews=options.preview
            )
            store.sweep({sample.image for part in samples.values() for sample in part})
        return Made(manifest, samples)
    finally:
        store.close()


def _examples(bad: Sequence[BadRow | BadObject]) -> Iterator[str]:
    """One of each reason, where no rejected.jsonl is written that would list all."""
    first = {item.reason: item for item in reversed(bad)}
    for reason, number in Counter(item.reason for item in bad).most_common():
        item = first[reason]
        yield f"{reason} {number:,}: {EXPLANATIONS[reason]}, e.g. {item.where}: {item.detail}".rstrip(": ")


def _report(
    name: str,
    source: Source,
    found: Collected,
    settled: Settled,
    result: Result,
    *,
    request: Request,
    options: Options,
    staging: Path | None,
    emit: Emit,
) -> write.Report:
    origin = str(source.about.get("id") or source.about["path"])
    division = splits.divide(result.by_split, val_fraction=options.val_fraction, seed=options.seed, source=origin)
    real = division
    made = _negatives(division, name, result, options)
    division = made.division if made else division
    counts = _counts(found, result, division, source, made)
    _check_books(counts)
    shown = _one_per_picture(found.taken)
    said: list[str] = []
    for form in options.export:
        if staging is not None:
            said += exports.export(staging, division.samples, form, emit)
    return write.Report(
        name=name,
        source=source,
        options_command=options.command,
        division=division,
        audit=audit(real.samples, {item.stored.image: item.stored.dhash for item in shown}),
        verdict=settled.verdict,
        sizes=settled.rules.sizes,
        frame=settled.rules.frame,
        exif_votes=settled.exif_votes,
        turned=sum(item.stored.orientation != 1 for item in shown),
        converted=sum(item.stored.converted for item in shown),
        repeated_ids=0 if settled.rules.ids_are_unique else settled.repeated_ids,
        counts=counts,
        reasons=Counter([str(bad.reason) for bad in result.bad_rows] + [str(bad.reason) for bad in result.bad_objects]),
        limit=request.limit,
        exported=tuple(said),
        negatives=made,
    )


def _negatives(division: splits.Division, name: str, result: Result, options: Options) -> Negatives | None:
    if not options.negatives:
        return None
    return add_negatives(
        division,
        name,
        ratio=options.negatives,
        unproved=options.negatives_unproved,
        doubtful=result.doubtful,
        around=result.around,
        seed=options.seed,
    )


def _one_per_picture(taken: Sequence[tuple[int, Taken]]) -> list[Taken]:
    return list({item.stored.image: item for _, item in taken}.values())


def _counts(
    found: Collected, result: Result, division: splits.Division, source: Source, made: Negatives | None
) -> dict[str, int]:
    kinds = made.counts if made else {}
    samples = [sample for part in division.samples.values() for sample in part]
    return {
        "rows_read": found.rows_read,
        "samples": len(samples),
        "rejected": len(result.bad_rows),
        "objects_read": found.objects_read + len(source.loose_objects),
        "objects": sum(len(sample.objects) for sample in samples),
        "objects_rejected": len(result.bad_objects),
        "objects_in_rejected_rows": result.objects_lost,
        "negatives": sum(not sample.objects for sample in samples if sample.task != "caption"),
        **({"negatives_made": sum(kinds.values())} if made else {}),
        **{f"negatives_{kind}": number for kind, number in sorted(kinds.items())},
        "pictures": len({sample.image for sample in samples}),
    }


def _check_books(counts: Mapping[str, int]) -> None:
    """Nothing is dropped silently.  A row is one question about one picture (detection, captions: one picture)."""
    objects = counts["objects"] + counts["objects_rejected"] + counts["objects_in_rejected_rows"]
    rows = counts["rows_read"] + counts.get("negatives_made", 0)
    if rows != counts["samples"] + counts["rejected"] or counts["objects_read"] != objects:
        raise DataError(
            f"rows were lost, which is a fault of qwenft: {dict(counts)}", hint="please report it with the command line"
        )


def _nothing_left(bad_rows: Sequence[BadRow], rows_read: int, kind: str) -> DataError:
    lines = [f"none of {counted(rows_read, 'row')} can be used:"]
    for reason, number in Counter(bad.reason for bad in bad_rows).most_common(5):
        example = next(bad for bad in bad_rows if bad.reason == reason)
        lines.append(f"  {number:,} x {EXPLANATIONS[reason]}, e.g. {example.where}: {example.detail}")
    first = bad_rows[0].reason if bad_rows else None
    hint = _HINTS.get(first, "mend the source, then prepare it again")
    if first is Reason.PICTURE_MISSING and kind == "records":
        hint += ", or name their column: --columns image=NAME"
    return DataError(printable("\n".join(lines)), hint=hint)


_HINTS: Mapping[Any, str] = {
    Reason.PICTURE_MISSING: "put the pictures beside the file or in images/",
    Reason.PICTURE_OUTSIDE: "qwenft prepare --follow-links … takes pictures outside the folder",
    Reason.ORIENTATION_UNDECIDED: "qwenft prepare --exif upright … if drawn in a viewer, else --exif stored",
}
