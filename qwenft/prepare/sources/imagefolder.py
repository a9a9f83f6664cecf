"""A folder of pictures with a metadata.jsonl (or .csv) beside them, as the hub's ImageFolder has it.

Source of the form: huggingface.co/docs/datasets/image_dataset (`file_name` is relative to the metadata's own folder).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, Final

from qwenft.core.errors import DataError, nearest
from qwenft.core.files import Record, read_records
from qwenft.prepare.columns import Layout, find_layout, read_record
from qwenft.prepare.rows import WHOLE, Request, Row, Source
from qwenft.prepare.sources.coco import SPLIT_WORD
from qwenft.prepare.sources.csvfile import read_csv
from qwenft.prepare.sources.records import PEEKED, place_of, unused_note

NAMES: Final = ("metadata.jsonl", "metadata.csv")
PLACES: Final = ("", "*/", "data/*/", "images/*/")
FILE_NAME: Final = "file_name"


@dataclass(frozen=True, slots=True)
class Metadata:
    """One metadata file; `split` is empty where its rows tell their splits by the folders of their pictures."""

    file: Path
    split: str

    def records(self) -> Iterator[Record]:
        """Its records, whichever of the two forms it has."""
        return read_csv(self.file) if self.file.suffix == ".csv" else read_records(self.file)


def matches(path: Path) -> bool:
    """Whether metadata stand in the folder or in folders of it."""
    return path.is_dir() and bool(_files(path))


def _files(path: Path) -> list[Metadata]:
    for place in PLACES:
        found = [file for name in NAMES for file in sorted(path.glob(place + name))]
        if found:
            return [Metadata(file, file.parent.name if place else "") for file in found]
    return []


def open_source(path: Path, request: Request) -> Source:
    """Tell the columns from the first records and describe the source."""
    files = _files(path)
    first = [record.value for metadata in files for record in islice(metadata.records(), PEEKED)]
    if not first:
        raise DataError(f"{path.absolute()} has metadata without records")
    splits = _splits(files, first)
    for name in request.splits:
        if name not in splits:
            raise DataError(f"{path} has no split {name!r}", hint=nearest(name, splits))
    layout = find_layout(first, request.columns, request.task, str(path))
    return Source(
        kind="image folder",
        about={"path": str(path.absolute()), "files": [str(m.file.relative_to(path)) for m in files]},
        splits=tuple(name for name in splits if not request.splits or name in request.splits),
        rows=lambda: _rows(files, path, layout, request),
        notes=unused_note(layout),
    )


def _splits(files: list[Metadata], first: list[dict[str, Any]]) -> list[str]:
    named = [metadata.split for metadata in files if metadata.split]
    return list(dict.fromkeys(named or [split_of(record) for record in first]))


def split_of(record: Mapping[str, Any]) -> str:
    """The first folder of the picture's name where that is a word for a split.

    >>> split_of({"file_name": "train/1.png"}), split_of({"file_name": "1.png"})
    ('train', 'all')
    """
    parts = PurePosixPath(str(record.get(FILE_NAME) or "")).parts
    match = SPLIT_WORD.fullmatch(parts[0].lower()) if len(parts) > 1 else None
    return match.group(1) if match else WHOLE


def _rows(files: list[Metadata], root: Path, layout: Layout, request: Request) -> Iterator[Row]:
    for metadata in files:
        taken: dict[str, int] = {}
        for record in metadata.records():
            split = metadata.split or split_of(record.value)
            if request.splits and split not in request.splits:
                continue
            taken[split] = taken.get(split, 0) + 1
            if request.limit is None or taken[split] <= request.limit:
                yield from read_record(record.value, layout, place_of(record, split, metadata.file, root))
