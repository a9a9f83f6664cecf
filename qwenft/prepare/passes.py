"""A source read twice: its rows with their pictures stored, then, once all is known of them as a whole, its samples."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from qwenft.core.errors import DataError
from qwenft.core.events import Emit, printable, progress
from qwenft.prepare import convention
from qwenft.prepare.checks import Rules, check, objects_around
from qwenft.prepare.negatives import searched_in_full
from qwenft.prepare.options import Options
from qwenft.prepare.pictures import PictureError
from qwenft.prepare.rows import (
    EXPLANATIONS,
    BadObject,
    BadRow,
    PictureFile,
    RawRow,
    Reason,
    Request,
    Row,
    Source,
    counted,
)
from qwenft.prepare.scene import Annotated
from qwenft.prepare.spool import Rejected, Samples, Spool
from qwenft.prepare.store import PictureStore
from qwenft.prepare.survey import Boxes, Survey, Taken, judge_frame

REPORT_EVERY = 50
"""Rows between two reports of progress."""


class TakenRows(Spool[Taken]):
    """Rows whose pictures were stored."""

    def parts(self, item: Taken) -> int:
        """The row and its objects."""
        return 1 + len(item.row.boxes) + len(item.row.bad_objects)


@dataclass
class Collected:
    """Pass 1: every row of the source, with its picture stored or the reason why not."""

    taken: TakenRows
    bad_rows: Rejected[BadRow]
    survey: Survey = field(default_factory=Survey)
    rows_read: int = 0
    objects_read: int = 0
    objects_lost: int = 0
    """Objects of rows that were rejected in this pass."""


def collect(source: Source, request: Request, store: PictureStore, emit: Emit) -> Collected:
    """Read every row and store its picture."""
    found = Collected(TakenRows(store.folder), Rejected(store.folder))
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
                found.taken.append(found.survey.add(row, stored, number))
        if found.rows_read % REPORT_EVERY == 0:
            emit(progress("reading rows", found.rows_read, source.total))
    emit(progress("reading rows", found.rows_read, found.rows_read))
    return found


def _numbered(source: Source, request: Request) -> Iterator[tuple[tuple[int, Row], bytes | PictureFile | None]]:
    """Each row with its number in its split, without its picture, and the picture."""
    seen: Counter[str] = Counter()
    for row in source.rows():
        if request.limit is not None and seen[row.split] >= request.limit:
            continue
        number = seen[row.split]
        seen[row.split] += 1
        if isinstance(row, BadRow):
            yield (number, row), None
        else:
            yield (number, replace(row, picture=b"")), row.picture


class Settled(NamedTuple):
    """What was found out about the data set as a whole."""

    rules: Rules
    verdict: convention.Verdict | None
    exif_votes: Mapping[str, int]


def settle(found: Collected, source: Source, options: Options) -> Settled:
    """Decide what the rows mean.  Raises DataError where that cannot be decided."""
    survey, boxes = found.survey, Boxes(found.taken, found.survey)
    verdict = None
    if boxes and options.bbox_format:
        verdict = convention.obey(boxes, options.bbox_format)
    elif boxes and source.stated:
        verdict = convention.confirm(boxes, source.stated, source.kind, source.readings)
    elif boxes:
        verdict = convention.decide(boxes, source.readings)
    name = verdict.convention if verdict else None
    frame, votes = judge_frame(found.taken if survey.turned else (), name, survey.sizes)
    rules = Rules(
        convention=name,
        frame=options.exif or frame,
        sizes=survey.sizes,
        clip=options.clip,
        categories=survey.categories,
        ids_are_unique=survey.ids_are_unique,
    )
    return Settled(rules, verdict, votes)


@dataclass
class Result:
    """Pass 2: samples by the source's splits, and everything that was not taken."""

    by_split: dict[str, Samples]
    bad_rows: Rejected[BadRow]
    bad_objects: Rejected[BadObject]
    objects_lost: int = 0
    doubtful: set[str] = field(default_factory=set)
    """Pictures (`Sample.image`) whose annotations prove no absence: not all searched for, or not all taken."""
    around: dict[str, Annotated] = field(default_factory=dict)
    """What a source of expressions knows of a picture (`Sample.image`) beside them, where questions are to be made."""


def assemble(
    found: Collected, settled: Settled, source: Source, name: str, *, folder: Path | None, searched: bool
) -> Result:
    """Make samples of the rows taken.  name: the data set's.  folder: whose disk holds them until they are written."""
    result = Result(
        {split: Samples(folder) for split in source.splits},
        found.bad_rows,
        Rejected(folder, source.loose_objects),
        found.objects_lost,
    )
    for item in found.taken:
        row = item.row
        if item.repeats_id and settled.rules.ids_are_unique:
            _reject(row, BadRow(row.split, row.where, Reason.DUPLICATE_ID, f"id {row.key}", row.original), result)
            continue
        checked = check(item, f"{name}/{row.split}/{item.number}", settled.rules)
        if searched:
            whole = checked.sample is not None and not checked.bad_objects and searched_in_full(row, source.kind)
            _note_what_is_around(item, settled.rules, result, whole=whole)
        for bad in checked.bad_objects:
            result.bad_objects.append(bad)
        if checked.sample is not None:
            if row.split not in result.by_split:
                result.by_split[row.split] = Samples(folder)
            result.by_split[row.split].append(checked.sample)
        elif checked.bad_row is not None:
            _reject(row, checked.bad_row, result)
    return result


def _reject(row: RawRow, bad: BadRow, result: Result) -> None:
    result.bad_rows.append(bad)
    result.objects_lost += len(row.boxes) + len(row.bad_objects)


def _note_what_is_around(item: Taken, rules: Rules, result: Result, *, whole: bool) -> None:
    """What a picture's annotations prove about what is not in it."""
    row, image = item.row, item.stored.image
    if row.task == "detection" and not whole:
        result.doubtful.add(image)
    if row.around is not None and image not in result.around:
        objects = objects_around(item, rules)
        if objects is None:
            result.doubtful.add(image)
        result.around[image] = Annotated(row.categories or (), objects or ())


def nothing_left(bad_rows: Rejected[BadRow], rows_read: int, kind: str) -> DataError:
    """The error where no row gives a sample."""
    lines = [f"none of {counted(rows_read, 'row')} can be used:"]
    for reason, number in bad_rows.reasons.most_common(5):
        example = bad_rows.examples[reason]
        lines.append(f"  {number:,} x {EXPLANATIONS[reason]}, e.g. {example.where}: {example.detail}")
    first = next(iter(bad_rows.examples), None)
    hint = _HINTS.get(first, "mend the source, then prepare it again")
    if first is Reason.PICTURE_MISSING and kind == "records":
        hint += ", or name their column: --columns image=NAME"
    return DataError(printable("\n".join(lines)), hint=hint)


_HINTS: Mapping[Reason | None, str] = {
    Reason.PICTURE_MISSING: "put the pictures beside the file or in images/",
    Reason.PICTURE_OUTSIDE: "qwenft prepare --follow-links … takes pictures outside the folder",
    Reason.ORIENTATION_UNDECIDED: "qwenft prepare --exif upright … if drawn in a viewer, else --exif stored",
}
