"""One file a source format, and the table that tells them apart."""

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qwenft.core.errors import DataError
from qwenft.core.events import Emit, note
from qwenft.prepare.rows import Request, Source
from qwenft.prepare.sources import (
    coco,
    conversations,
    csvfile,
    hubfolder,
    imagefolder,
    labelme,
    labelstudio,
    llamafactory,
    records,
    refs,
    table,
    unknown,
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
    convention: str = "found out"
    """Of its boxes."""
    example: str = ""
    """What follows `qwenft prepare --dataset`."""
    limits: str = ""
    """For people: what is not read, or read in a way that is worth knowing."""


def _quiet(read: Callable[[Path, Request], Source]) -> Callable[[Path, Request, Emit], Source]:
    """A reader that has nothing to report while it opens."""
    return lambda path, request, _: read(path, request)


LOADERS: Final[Mapping[str, Loader]] = {
    "table": Loader(
        table.matches,
        table.open_folder,
        "a folder with parquet files, as on the hub, or a .parquet file",
        example="Kangheng/refcocog",
        limits="data sets with a loading script are refused; `save_to_disk` folders are read; image folders and JSON "
        "on the hub may name pictures of their repository; with --limit, or where a hub set does not fit on the disk, "
        "its files are fetched one at a time",
    ),
    "yolo": Loader(
        yolo.matches,
        _quiet(yolo.open_source),
        "a YOLO data.yaml, or the folder that holds it",
        "centre and sides, in shares of the picture's",
        "cells/data.yaml",
        "polygons and turned boxes become the box around them; a picture without a label file holds nothing, a split "
        "without one is unlabelled and rejected",
    ),
    "voc": Loader(
        voc.matches,
        _quiet(voc.open_source),
        "a Pascal VOC folder (Annotations/*.xml, JPEGImages/)",
        "corners in px, from 1 or from 0 by what the boxes show",
        "bccd",
        "splits by ImageSets/Main, else by folders; `difficult` objects are kept; files with entities are refused",
    ),
    "labelme": Loader(
        labelme.matches,
        _quiet(labelme.open_source),
        "a folder with LabelMe's JSON files",
        "corners in px",
        "labelled/",
        "polygons and circles become the box around them; points and lines are rejected",
    ),
    "refs": Loader(
        refs.matches,
        _quiet(refs.open_source),
        "a RefCOCO or gRefCOCO folder: grefs(unc).json or other refs in JSON, and instances.json",
        "corner and sides in px; several or none an expression",
        "grefcoco/",
        "splits as the refs have them; `refs(unc).p` is a pickle, which could run code: convert it to JSON first",
    ),
    "coco": Loader(
        coco.matches,
        _quiet(coco.open_source),
        "a COCO folder, or its instances.json or captions.json",
        "corner and sides in px",
        "coco/annotations/instances_val2017.json",
        "masks and keypoints are left; read as a stream: 50 bytes of memory an annotation",
    ),
    "labelstudio": Loader(
        labelstudio.matches,
        _quiet(labelstudio.open_source),
        "a JSON or JSON-MIN export of Label Studio",
        "percent of the picture",
        "export/project.json",
        "pictures are not downloaded: put them beside the file or in images/; turned boxes become the box around them",
    ),
    "imagefolder": Loader(
        imagefolder.matches,
        _quiet(imagefolder.open_source),
        "a folder of pictures with metadata.jsonl or metadata.csv",
        example="photos/",
    ),
    "llamafactory": Loader(
        llamafactory.matches,
        _quiet(llamafactory.open_source),
        "a folder with LLaMA-Factory's dataset_info.json, or a file that it names",
        "as in conversations",
        "LLaMA-Factory/data --split my_boxes",
        "files in that folder only; columns and roles are read from dataset_info.json; several data sets are asked for "
        "with --split",
    ),
    "conversations": Loader(
        conversations.matches,
        _quiet(conversations.open_source),
        "a .json or .jsonl file with conversations (Qwen's, LLaMA-Factory's or ms-swift's form)",
        "corners in px of the picture, in shares or in thousandths: found out",
        "train.json",
        "boxes that were written for a resized input cannot be told from others: look at preview/; of a record with "
        "several pictures the questions that show one of them are taken",
    ),
    "csv": Loader(
        csvfile.matches,
        _quiet(csvfile.open_source),
        "a .csv file with an object or a question in each line",
        "found out; px from 1 or from 0 by what the boxes show",
        "labels.csv",
        "it needs a first line with names",
    ),
    "records": Loader(
        records.matches,
        _quiet(records.open_source),
        "a .json or .jsonl file with a picture, a question and a box in each record",
        example="expressions.jsonl --columns image=img,query=text,bbox=box",
        limits="columns are told by their usual names, else with --columns",
    ),
}
"""Tried in this order; the first that says "mine" reads it (a COCO folder may hold other JSON files too)."""

FORMS_OF_TOOLS: Final = (
    "yolo", "voc", "labelme", "refs", "coco", "labelstudio", "llamafactory", "conversations"
)  # fmt: skip
"""A repository of the hub in one of these is read as the folder that it is; `datasets` knows none of them."""
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
    hint = unknown.advice(path) or "qwenft prepare --help"
    raise DataError(f"{path.absolute()} has no known format. Known are:\n{lines}", hint=hint)


def _form_of(folder: Path) -> str | None:
    """The tool's form that a folder's texts are in (its pictures need not be there yet); None where it is none."""
    return next((name for name in FORMS_OF_TOOLS if LOADERS[name].matches(folder)), None)


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
        siblings = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, siblings, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "check the path; from the hub: --dataset OWNER/NAME"
        raise DataError(f"{path.absolute()} does not exist", hint=hint)
    name = "-".join(filter(None, (match["id"].split("/")[1], match["config"])))
    return Target(plain_name(name), None, match["id"], match["config"])


def open_source(target: Target, request: Request, hub: HubOptions, emit: Emit) -> Source:
    """Open a folder or file in its format, or fetch from the hub.  Raises DataError or HubError."""
    if target.path is not None:
        return LOADERS[detect(target.path)].open(target.path, request, emit)
    if target.config is None:
        folder = hubfolder.fetch_folder(
            target.hub_id,
            _form_of,
            revision=hub.revision,
            endpoint=hub.endpoint,
            send_token=hub.send_token,
            emit=emit,
        )
        if folder is not None:
            return hubfolder.told_of_hub(LOADERS[folder.form].open(folder.path, request, emit), folder)
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
