"""The body of `qwenft prepare`: from any source to a prepared data set, whole or absent."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from qwenft.core.errors import DataError
from qwenft.core.events import Emit, ignore, note, warning
from qwenft.core.files import whole_folder
from qwenft.core.samples import Manifest, PreparedDataset, Sample, as_task
from qwenft.prepare import exports, splits, write
from qwenft.prepare.audit import audit
from qwenft.prepare.card import write_card
from qwenft.prepare.options import (
    FRAMES,
    Options,
    check_choices,
    check_counts,
    known_bbox_format,
    wanted_questions,
)
from qwenft.prepare.passes import Collected, Result, Settled, assemble, collect, nothing_left, settle
from qwenft.prepare.questions import more_questions
from qwenft.prepare.rename import Renaming
from qwenft.prepare.rows import EXPLANATIONS, BadObject, BadRow, Reason, Request, Source, counted
from qwenft.prepare.sources import HubOptions, Target, open_source, resolve
from qwenft.prepare.spool import Samples, Tally, tally
from qwenft.prepare.store import PictureStore


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
    subsets: float = 0.0,
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
    made for each one that has an answer; negatives_unproved: also where nothing proves it, marked.  subsets: how many
    questions about some of the categories are made for each about all of them, to train on.  dry_run: check and report;
    what is returned has samples, but no files.
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
    check_counts(dataset, limit=limit, num_proc=num_proc, preview=preview)
    check_choices(val_fraction, output_format, exif, export)
    wanted = wanted_questions(negatives, subsets, seed, unproved=negatives_unproved)
    options = Options(
        bbox_format=known_bbox_format(bbox_format),
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
        wanted=wanted,
        rename=rename or {},
    )
    target = resolve(dataset, base, emit)
    folder = (base / out.expanduser()) if out is not None else base / "data" / target.name
    if not dry_run:
        _check_out(folder, target, dataset, overwrite=overwrite)
    if (folder / "manifest.json").is_file():
        options = replace(options, earlier=folder)
    source = open_source(target, request, HubOptions(hf_endpoint, revision, send_token), emit)
    try:
        if dry_run:
            made = _build(None, folder.name, source, request=request, options=options, emit=emit)
            samples = {split: tuple(found) for split, found in made.samples.items()}
            sizes = ", ".join(f"{split} {len(found):,}" for split, found in samples.items())
            emit(note(f"a dry run, nothing was written; samples it would give: {sizes}"))
            return PreparedDataset(folder, made.manifest, samples)
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


class Made(NamedTuple):
    """What was built."""

    manifest: Manifest
    samples: Mapping[str, Sequence[Sample]]


def _build(staging: Path | None, name: str, source: Source, *, request: Request, options: Options, emit: Emit) -> Made:
    """Both passes.  staging: where all is written; None writes nothing."""
    store = PictureStore(staging, options.follow_links, options.num_proc, options.earlier)
    renaming = Renaming(options.rename)
    try:
        found = collect(renaming.over(source), request, store, emit)
        source = renaming.told(source)
        if store.reused:
            emit(note(f"{counted(store.reused, 'picture')} of an earlier prepare used again"))
        settled = settle(found, source, options)
        made = options.wanted.negatives + options.wanted.subsets > 0
        result = assemble(found, settled, source, name, folder=staging, searched=made)
        if not any(result.by_split.values()):
            raise nothing_left(result.bad_rows, found.rows_read, source.kind)
        report = _report(
            name, source, found, settled, result, request=request, options=options, staging=staging, emit=emit
        )
        for kind, text in write.spoken(report):
            emit(warning(text) if kind == "warning" else note(text))
        manifest, samples = write.manifest(report, options.output_format), report.division.samples
        if staging is None:
            for text in _examples(result):
                emit(note(text))
        else:
            write_card(staging, manifest, samples)
            write.write_dataset(
                staging, manifest, samples, result.bad_rows, result.bad_objects, num_previews=options.preview
            )
            store.sweep({image for part in samples.values() for image in tally(part).images})
        return Made(manifest, samples)
    finally:
        store.close()


def _examples(result: Result) -> Iterator[str]:
    """One of each reason, where no rejected.jsonl is written that would list all."""
    first: Mapping[Reason, BadRow | BadObject] = {**result.bad_objects.examples, **result.bad_rows.examples}
    for reason, number in (result.bad_rows.reasons + result.bad_objects.reasons).most_common():
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
    keep = partial(Samples, staging)
    real = splits.divide(
        result.by_split, val_fraction=options.val_fraction, seed=options.seed, source=origin, keep=keep
    )
    made = more_questions(real, name, options.wanted, doubtful=result.doubtful, around=result.around, keep=keep)
    division, survey = made.division, found.survey
    counts = _counts(found, result, list(map(tally, division.samples.values())), source, made.counts)
    _check_books(counts)
    said: list[str] = []
    for form in options.export:
        if staging is not None:
            said += exports.export(staging, division.samples, form, emit)
    return write.Report(
        name=name,
        source=source,
        options_command=options.command,
        division=division,
        audit=audit(real.samples, survey.looks),
        verdict=settled.verdict,
        sizes=settled.rules.sizes,
        frame=settled.rules.frame,
        exif_votes=settled.exif_votes,
        turned=survey.turned,
        converted=survey.converted,
        repeated_ids=0 if survey.ids_are_unique else survey.repeated_ids,
        counts=counts,
        reasons=Counter(map(str, (result.bad_rows.reasons + result.bad_objects.reasons).elements())),
        limit=request.limit,
        exported=tuple(said),
        questions=made,
    )


def _counts(
    found: Collected, result: Result, tallies: Sequence[Tally], source: Source, made: Mapping[str, int]
) -> dict[str, int]:
    return {
        "rows_read": found.rows_read,
        "samples": sum(part.samples for part in tallies),
        "rejected": len(result.bad_rows),
        "objects_read": found.objects_read + len(source.loose_objects),
        "objects": sum(part.objects for part in tallies),
        "objects_rejected": len(result.bad_objects),
        "objects_in_rejected_rows": result.objects_lost,
        "negatives": sum(part.absent for part in tallies),
        **made,
        "pictures": len({image for part in tallies for image in part.images}),
    }


def _check_books(counts: Mapping[str, int]) -> None:
    """Nothing is dropped silently.  A row is one question about one picture (detection, captions: one picture)."""
    objects = counts["objects"] + counts["objects_rejected"] + counts["objects_in_rejected_rows"]
    rows = counts["rows_read"] + counts.get("questions_made", 0)
    objects_asked = counts["objects_read"] + counts.get("objects_repeated", 0)
    if rows != counts["samples"] + counts["rejected"] or objects_asked != objects:
        raise DataError(
            f"rows were lost, which is a fault of qwenft: {dict(counts)}", hint="please report it with the command line"
        )
