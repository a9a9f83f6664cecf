"""One file a source format, and the table that tells them apart."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qwenft.core.errors import DataError, nearest
from qwenft.core.events import Emit, note
from qwenft.prepare.rows import Request, Source
from qwenft.prepare.sources import (
    coco,
    conversations,
    csvfile,
    imagefolder,
    labelme,
    labelstudio,
    records,
    table,
    voc,
    yolo,
)


@dataclass(frozen=True, slots=True)
class Loader:
    """A format: how it is recognized and how it is read."""

    matches: Callable[[Path], bool]
    open: Callable[[Path, Request, Emit], Source]
    what: str
    """For people: what such a source looks like."""


def _quiet(read: Callable[[Path, Request], Source]) -> Callable[[Path, Request, Emit], Source]:
    """A reader that has nothing to report while it opens."""
    return lambda path, request, _: read(path, request)


LOADERS: Final[Mapping[str, Loader]] = {
    "table": Loader(table.matches, table.open_folder, "a folder with parquet files, as on the hub, or a .parquet file"),
    "yolo": Loader(yolo.matches, _quiet(yolo.open_source), "a YOLO data.yaml, or the folder that holds it"),
    "voc": Loader(voc.matches, _quiet(voc.open_source), "a Pascal VOC folder (Annotations/*.xml, JPEGImages/)"),
    "labelme": Loader(labelme.matches, _quiet(labelme.open_source), "a folder with LabelMe's JSON files"),
    "coco": Loader(coco.matches, _quiet(coco.open_source), "a COCO folder, or its instances.json or captions.json"),
    "labelstudio": Loader(labelstudio.matches, _quiet(labelstudio.open_source), "a JSON export of Label Studio"),
    "imagefolder": Loader(
        imagefolder.matches, _quiet(imagefolder.open_source), "a folder of pictures with metadata.jsonl or metadata.csv"
    ),
    "conversations": Loader(
        conversations.matches,
        _quiet(conversations.open_source),
        "a .json or .jsonl file with conversations (Qwen's, LLaMA-Factory's or ms-swift's form)",
    ),
    "csv": Loader(
        csvfile.matches, _quiet(csvfile.open_source), "a .csv file with an object or a question in each line"
    ),
    "records": Loader(
        records.matches,
        _quiet(records.open_source),
        "a .json or .jsonl file with a picture, a question and a box in each record",
    ),
}
"""Tried in this order; the first that says "mine" reads it (a COCO folder may hold other JSON files too)."""

HUB_ID: Final = re.compile(r"(?P<id>[\w][\w.-]*/[\w][\w.-]*)(?::(?P<config>[\w.-]+))?")
FILE_SUFFIXES: Final = (".json", ".jsonl", ".ndjson", ".parquet", ".csv", ".tsv", ".yaml", ".yml")
GENERIC: Final = re.compile(
    r"(instances|annotations|_annotations|data|dataset|metadata|train|val|valid|validation|test).*"
)
"""A file of such a name is named after its folder alone."""


@dataclass(frozen=True, slots=True)
class HubOptions:
    """What only a fetch from the hub needs."""

    endpoint: str | None = None
    revision: str | None = None
    send_token: bool = False


def detect(path: Path) -> str:
    """Name the format of a local folder or file.  Raises DataError with what would be known."""
    for name, loader in LOADERS.items():
        if loader.matches(path):
            return name
    if path.is_file() and path.stat().st_size == 0:
        raise DataError(f"{path.absolute()} is empty (0 bytes)", hint="was its download or copy interrupted?")
    lines = "\n".join(f"  {loader.what}" for loader in LOADERS.values())
    raise DataError(f"{path.absolute()} has no known format. Known are:\n{lines}", hint="qwenft prepare --help")


@dataclass(frozen=True, slots=True)
class Target:
    """What `--dataset` names, before anything of it is read or fetched."""

    name: str
    """Of the prepared data set to be."""
    path: Path | None = None
    hub_id: str = ""
    config: str | None = None


def resolve(dataset: str, base: Path, emit: Emit) -> Target:
    """Tell a local path from a hub id; the path goes first, and it is said.  Raises DataError where it is neither."""
    path = base / Path(dataset).expanduser()
    match = HUB_ID.fullmatch(dataset)
    if path.exists():
        if match:
            emit(note(f"{dataset} is taken from the local {path.absolute()}, not from the hub"))
        return Target(name_of(path), path)
    if not match or path.suffix.lower() in FILE_SUFFIXES:
        siblings = sorted(item.name for item in path.parent.iterdir()) if path.parent.is_dir() else []
        hint = (
            nearest(path.name, siblings[:20])
            if siblings
            else "qwenft prepare --dataset OWNER/NAME takes it from the hub"
        )
        raise DataError(f"{path.absolute()} does not exist", hint=hint)
    name = "-".join(filter(None, (match["id"].split("/")[1], match["config"])))
    return Target(plain_name(name), None, match["id"], match["config"])


def open_source(target: Target, request: Request, hub: HubOptions, emit: Emit) -> Source:
    """Open a folder or file in its format, or fetch from the hub.  Raises DataError or HubError."""
    if target.path is not None:
        return LOADERS[detect(target.path)].open(target.path, request, emit)
    return table.open_hub(
        target.hub_id,
        target.config,
        request,
        revision=hub.revision,
        endpoint=hub.endpoint,
        send_token=hub.send_token,
        emit=emit,
    )


def name_of(path: Path) -> str:
    """A folder's name; for a file its folder's name and its own, unless that is a generic one.

    >>> name_of(Path("coco36/instances.json")), name_of(Path("coco36/captions.json"))
    ('coco36', 'coco36-captions')
    """
    absolute = path.absolute()
    if absolute.is_dir():
        return plain_name(absolute.resolve().name if path.name in ("", ".", "..") else absolute.name)
    folder = absolute.parent.parent if absolute.parent.name == "annotations" else absolute.parent
    stem = absolute.stem
    return plain_name(folder.name if GENERIC.fullmatch(stem.lower()) else f"{folder.name}-{stem}")


def plain_name(text: str) -> str:
    """Make a plain folder name of any text."""
    return re.sub(r"[^\w.-]+", "-", text).strip(".-") or "data"
