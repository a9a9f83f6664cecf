"""What a source that fits no format probably is, and what can be done with it."""

import shlex
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Final

from qwenft.prepare.sources.folders import is_picture_name

LOOKED_AT: Final = 2000
"""Entries of a folder that are looked at."""
ARCHIVES: Final[Mapping[str, str]] = {
    ".zip": "unzip {path} -d {folder}",
    ".tar": "mkdir {folder} && tar -xf {path} -C {folder}",
    ".tgz": "mkdir {folder} && tar -xf {path} -C {folder}",
    ".gz": "gunzip -k {path}",
    ".7z": "7z x {path} -o{folder}",
    ".rar": "unrar x {path} {folder}/",
}
"""How each is unpacked: archives are not read, whatever they hold."""
OTHERS: Final[Mapping[str, str]] = {
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "save the sheet as CSV, with names in its first line"),
    **dict.fromkeys(
        (".p", ".pkl", ".pickle", ".pt", ".pth", ".npy", ".npz"), "a pickle could run code: save it as JSON"
    ),
    **dict.fromkeys((".mat", ".h5", ".hdf5", ".tfrecord"), "convert it to one of these, for example to COCO"),
    ".xml": "give the folder that holds it (VOC)",
    ".arrow": "give the folder that save_to_disk wrote",
    ".txt": "give the data.yaml of its data set (YOLO), or the folder",
}


def advice(path: Path) -> str:
    """The next line to type, or the next thing to do; empty where nothing is known."""
    if path.is_file():
        suffix = path.suffix.lower()
        folder = path.name.split(".")[0]
        command = ARCHIVES.get(".tar" if path.name.lower().endswith((".tar.gz", ".tar.xz", ".tar.bz2")) else suffix)
        if command:
            return command.format(path=shlex.quote(str(path)), folder=shlex.quote(folder))
        return OTHERS.get(suffix, "")
    return next(_of_folder(path), "")


def _of_folder(folder: Path) -> Iterator[str]:
    found = list(islice(folder.iterdir(), LOOKED_AT))
    if not found:
        yield "it is empty: was its download or copy interrupted?"
    archive = next((path for path in found if path.suffix.lower() in ARCHIVES), None)
    if archive is not None:
        yield advice(archive)
    if any(path.name == "labels" and path.is_dir() for path in found) or _labels(found):
        yield f"YOLO needs {folder / 'data.yaml'}: train: images/train, val: images/val, names: [first, second]"
    inner = [path for path in found if path.is_dir() and not path.name.startswith(".")]
    if len(inner) == 1 and len(found) == 1:
        yield f"qwenft prepare --dataset {shlex.quote(str(inner[0]))}"
    if any(is_picture_name(path.name) for path in found) or any(map(_has_pictures, inner)):
        yield f"pictures alone say nothing: put {folder / 'metadata.jsonl'} beside them, one line a question"


def _labels(found: list[Path]) -> bool:
    """Whether texts lie beside pictures of the same name."""
    stems = {path.stem for path in found if is_picture_name(path.name)}
    return any(path.suffix == ".txt" and path.stem in stems for path in found)


def _has_pictures(folder: Path) -> bool:
    return any(is_picture_name(path.name) for path in islice(folder.iterdir(), LOOKED_AT))
