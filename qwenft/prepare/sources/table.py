"""Tables of the `datasets` library: a hub data set, a hub-style folder or a parquet file."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from qwenft.core.errors import DataError
from qwenft.core.events import Emit
from qwenft.prepare.columns import Layout, Place, find_layout, read_record
from qwenft.prepare.rows import Request, Row, Source
from qwenft.prepare.sources.records import PEEKED, unused_note

if TYPE_CHECKING:
    from datasets import Dataset

    from qwenft.prepare.sources.parquet import ParquetTable
    from qwenft.prepare.sources.remote import PicturedTable, RemoteTable

    Table: TypeAlias = Dataset | ParquetTable | PicturedTable | RemoteTable

SAVED: Final = ("dataset_dict.json", "state.json")
"""What `save_to_disk` leaves."""
PREPARED: Final = ("manifest.json", "rejected.jsonl")
"""A prepared data set has tables for others (prepare/card.py); here its own lines are read."""


def matches(path: Path) -> bool:
    """Whether it is a parquet file, or a folder with parquet files or a card that lists data files."""
    if path.is_file():
        return path.suffix.lower() == ".parquet"
    if all((path / name).is_file() for name in PREPARED):
        return False
    if any((path / name).is_file() for name in SAVED):
        return True
    return any(path.glob("*.parquet")) or any(path.glob("*/*.parquet")) or _card_lists_files(path / "README.md")


def _card_lists_files(card: Path) -> bool:
    return card.is_file() and "data_files:" in card.read_text(encoding="utf-8", errors="replace")[:20_000]


def open_folder(path: Path, request: Request, emit: Emit) -> Source:
    """Read a local hub-style folder or a parquet file."""
    from qwenft.prepare.sources.hub import load_folder

    data = load_folder(path, request.splits, emit=emit)
    about = {"path": str(path.absolute())}
    return make_source("table", about, data.splits, request, path if path.is_dir() else path.parent)


def open_hub(
    dataset_id: str,
    config: str | None,
    request: Request,
    *,
    revision: str | None,
    endpoint: str | None,
    send_token: bool,
    emit: Emit,
) -> Source:
    """Fetch a data set from the hub or a mirror."""
    from qwenft.prepare.sources.hub import load_hub

    data = load_hub(
        dataset_id,
        config=config,
        revision=revision,
        splits=request.splits,
        limit=request.limit,
        endpoint=endpoint,
        send_token=send_token,
        emit=emit,
    )
    about = {"id": dataset_id, "config": config, "revision": data.revision, "endpoint": data.endpoint}
    return make_source("hub", about, data.splits, request, None)


def make_source(
    kind: str,
    about: Mapping[str, Any],
    tables: "Mapping[str, Table]",
    request: Request,
    folder: Path | None,
) -> Source:
    """Tell the columns from the features and the first rows.  Pictures stay undecoded: their own bytes are kept."""
    first = [row for table in tables.values() for row in _head(table)]
    if not first:
        raise DataError(f"{about.get('id') or about.get('path')} has no rows")
    features = next(iter(tables.values())).features
    names = _names(features)
    layout = find_layout(first, request.columns, request.task, str(about.get("id") or about.get("path")), names)
    known = [len(table) for table in tables.values() if hasattr(table, "__len__")]
    total = sum(min(count, request.limit or count) for count in known) if len(known) == len(tables) else None
    one_query = layout.columns.get("query") != "answer"
    return Source(
        kind=kind,
        about={**about, "columns": list(features)},
        splits=tuple(tables),
        rows=lambda: _rows(tables, layout, request, folder),
        total=total if one_query else None,
        notes=unused_note(layout),
    )


def _head(table: "Table") -> list[dict[str, Any]]:
    """The first rows, which tell the columns; nothing that is fetched for them is fetched again."""
    from qwenft.prepare.sources.remote import PicturedTable, RemoteTable

    return table.head(PEEKED) if isinstance(table, (PicturedTable, RemoteTable)) else list(islice(table, PEEKED))


def _names(feature: Any) -> Sequence[str]:
    """The category names of the first ClassLabel anywhere in the features, but not of a column `split`."""
    from datasets import ClassLabel

    if isinstance(feature, ClassLabel):
        return tuple(str(name) for name in feature.names)
    if isinstance(feature, Mapping):
        inner = [value for key, value in feature.items() if key != "split"]
    else:
        inner = [feature.feature] if hasattr(feature, "feature") else list(feature) if isinstance(feature, list) else []
    return next((found for found in map(_names, inner) if found), ())


def _rows(tables: "Mapping[str, Table]", layout: Layout, request: Request, folder: Path | None) -> Iterator[Row]:
    image = layout.columns["image"]
    folders = (folder, folder / "images") if folder else ()
    for split, table in tables.items():
        for number, row in enumerate(islice(table, request.limit)):
            original = {name: value for name, value in row.items() if name != image}
            original[image] = _without_bytes(row.get(image))
            yield from read_record(row, layout, Place(split, f"{split}, row {number}", folders, folder, original))


def _without_bytes(value: Any) -> Any:
    """What stands in rejected.jsonl for a picture: how long it is, not its bytes."""
    if isinstance(value, Mapping) and isinstance(value.get("bytes"), bytes):
        return {**value, "bytes": f"<{len(value['bytes'])} bytes>"}
    return value
