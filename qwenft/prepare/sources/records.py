"""JSON and JSONL records, one question each, in any of the usual column names."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Final

from qwenft.core.errors import DataError, nearest
from qwenft.core.files import Record, read_records
from qwenft.prepare.columns import Layout, Place, find_layout, read_record
from qwenft.prepare.rows import WHOLE, Request, Row, Source
from qwenft.prepare.sources.coco import SPLIT_WORD, root_of

SUFFIXES: Final = (".jsonl", ".json", ".ndjson")
PEEKED: Final = 200
"""So many records tell the columns."""
NO_DATA: Final = frozenset({"manifest.json", "rejected.jsonl", "dataset_info.json", "dataset_infos.json"})
"""Files in a folder of records that hold none."""


def files_in(path: Path, suffixes: Sequence[str] = SUFFIXES) -> dict[str, Path]:
    """Split -> file: one file is one split; in a folder each file is the split of its name."""
    if path.is_file():
        match = SPLIT_WORD.search(path.stem.lower())
        return {match.group(1) if match else WHOLE: path} if path.suffix.lower() in suffixes else {}
    found = [file for file in sorted(path.glob("*")) if file.suffix.lower() in suffixes and file.name not in NO_DATA]
    words = [match.group(1) if (match := SPLIT_WORD.search(file.stem.lower())) else file.stem for file in found]
    if len(found) == 1:
        return files_in(found[0], suffixes)
    return dict(zip(words if len(set(words)) == len(found) else [file.stem for file in found], found, strict=True))


def matches(path: Path) -> bool:
    """Whether it is a file of records, or a folder of such files; what they hold is seen when they are read."""
    return bool(files_in(path))


def open_source(path: Path, request: Request) -> Source:
    """Tell the columns from the first records and describe the source.  Raises DataError where they cannot be told."""
    files = narrowed(files_in(path), request, path)
    root = root_of(path)
    first = [record.value for file in files.values() for record in islice(read_records(file), PEEKED)]
    if not first:
        raise DataError(f"{path.absolute()} holds no records")
    layout = find_layout(first, request.columns, request.task, str(path))
    notes = unused_note(layout)
    own = layout.columns.get("task") is not None and layout.columns.get("image") == "image" and "bbox" not in first[0]
    return Source(
        kind="records",
        about={"path": str(path.absolute()), "files": [file.name for file in files.values()]},
        splits=tuple(files),
        rows=lambda: _rows(files, root, layout, request),
        stated="xyxy" if own and layout.columns.get("bbox") == "objects" else None,
        notes=notes,
    )


def narrowed(files: dict[str, Path], request: Request, path: Path) -> dict[str, Path]:
    """Only the splits asked for.  Raises DataError that names the nearest."""
    for name in request.splits:
        if name not in files:
            raise DataError(f"{path} has no split {name!r}", hint=nearest(name, files))
    return {name: file for name, file in files.items() if not request.splits or name in request.splits}


def unused_note(layout: Layout) -> tuple[str, ...]:
    """Which columns were taken for what, and which were left."""
    taken = ", ".join(f"{role}={name}" for role, name in layout.columns.items())
    left = f"; not used: {', '.join(layout.unused)}" if layout.unused else ""
    return (f"columns: {taken}{left}",)


def place_of(record: Record, split: str, file: Path, root: Path) -> Place:
    """Where a record stands; its picture lies beside the file, in images/, or below the folder given."""
    folders = tuple(dict.fromkeys((file.parent, file.parent / "images", root, root / "images")))
    return Place(split, f"{file.name}, {record.where}", folders, root, record.value)


def _rows(files: dict[str, Path], root: Path, layout: Layout, request: Request) -> Iterator[Row]:
    for split, file in files.items():
        for record in islice(read_records(file), request.limit):
            yield from read_record(record.value, layout, place_of(record, split, file, root))


def first_record(path: Path) -> dict[str, Any] | None:
    """The first record of a file or folder; None where there is none or it is broken (its reader will say where)."""
    return next((first_record_of(file) for file in files_in(path).values()), None)


def first_record_of(file: Path) -> dict[str, Any] | None:
    """The first record of a file; None where there is none or it is broken."""
    status = file.stat()
    return _first_record(file, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=8)
def _first_record(file: Path, _mtime_ns: int, _size: int) -> dict[str, Any] | None:
    """Several formats look at it in turn: a file is parsed once for that."""
    try:
        return next((record.value for record in read_records(file)), None)
    except DataError:
        return None
