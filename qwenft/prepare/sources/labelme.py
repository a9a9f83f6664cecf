"""LabelMe: a folder with one JSON file a picture; rectangles, polygons and circles become boxes.

Source of the form: github.com/wkentaro/labelme (labelme/label_file.py and its shape types).
"""

import base64
import binascii
import math
from collections.abc import Iterator, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any, Final

import ijson

from qwenft.core.errors import DataError, nearest
from qwenft.core.files import read_json
from qwenft.prepare.rows import (
    WHOLE,
    BadObject,
    BadRow,
    PictureFile,
    RawBox,
    RawRow,
    Reason,
    Request,
    Row,
    Source,
    parted,
)
from qwenft.prepare.sources.coco import SPLIT_WORD

PEEKED_EVENTS: Final = 4000
"""So much of a file is read to tell its form."""
FLAT: Final = frozenset({"point", "line", "linestrip", "points"})
"""Shapes that enclose nothing."""


def matches(path: Path) -> bool:
    """Whether it is such a file, or a folder with such files, all together or one folder a split."""
    if path.is_file():
        return looks_like_labelme(path)
    return any(looks_like_labelme(first) for first in map(_first, (path, *_split_folders(path))) if first)


def _first(folder: Path) -> Path | None:
    return min(folder.glob("*.json"), default=None)


def _split_folders(path: Path) -> list[Path]:
    return [folder for folder in sorted(path.glob("*/")) if SPLIT_WORD.search(folder.name.lower())]


def looks_like_labelme(path: Path) -> bool:
    """Tell it by its top-level keys, from the beginning of the file: the picture inside it may be large."""
    if path.suffix.lower() != ".json":
        return False
    keys = set()
    try:
        with path.open("rb") as file:
            for number, (prefix, event, value) in enumerate(ijson.parse(file, use_float=True)):
                if (prefix == "" and event == "start_array") or number > PEEKED_EVENTS:
                    return False
                if prefix == "" and event == "map_key":
                    keys.add(value)
                    if "shapes" in keys and keys & {"version", "imagePath", "imageData", "imageHeight"}:
                        return True
                    if value in ("images", "annotations"):
                        return False
    except (ijson.JSONError, UnicodeDecodeError, OSError):
        return False
    return False


def open_source(path: Path, request: Request) -> Source:
    """List the files of the splits asked for and describe the source."""
    if request.task not in (None, "detection"):
        raise DataError(f"{path} is LabelMe: boxes with categories", hint=f"qwenft prepare --dataset {path}")
    parts = _parts(path)
    for wanted in request.splits:
        if wanted not in parts:
            raise DataError(f"{path} has no split {wanted!r}", hint=nearest(wanted, parts))
    parts = {name: files[: request.limit] for name, files in parts.items() if name in (request.splits or parts)}
    root = path if path.is_dir() else path.parent
    return Source(
        kind="labelme",
        about={"path": str(path.absolute())},
        splits=tuple(parts),
        rows=lambda: (_row(split, file, root) for split, files in parts.items() for file in files),
        total=sum(map(len, parts.values())),
        stated="xyxy",
    )


def _parts(path: Path) -> dict[str, list[Path]]:
    if path.is_file():
        return {WHOLE: [path]}
    here = sorted(path.glob("*.json"))
    folders = {folder.name: sorted(folder.glob("*.json")) for folder in _split_folders(path)}
    inside = {name: files for name, files in folders.items() if files}
    return inside if inside and not here else {WHOLE: here}


def _row(split: str, file: Path, root: Path) -> Row:
    where = file.name
    try:
        document = read_json(file)
    except DataError as error:
        return BadRow(split, where, Reason.ROW_UNREADABLE, str(error), {"file": where})
    if not isinstance(document, dict) or not isinstance(document.get("shapes"), list):
        return BadRow(split, where, Reason.ROW_UNREADABLE, "no list of shapes", {"file": where})
    original = {name: value for name, value in document.items() if name not in ("imageData", "shapes")}
    boxes, bad = parted(_object(shape, f"{where}, shape {n}") for n, shape in enumerate(document["shapes"], 1))
    sides = document.get("imageWidth"), document.get("imageHeight")
    declared = (sides[0], sides[1]) if isinstance(sides[0], int) and isinstance(sides[1], int) else None
    picture = _picture(document, file, root)
    return RawRow(split, where, picture, "detection", original, file.stem, declared, None, boxes, bad)


def _picture(document: Mapping[str, Any], file: Path, root: Path) -> bytes | PictureFile:
    """The picture's file, else the copy inside the JSON.  Paths may be Windows'."""
    stated = document.get("imagePath")
    name = PureWindowsPath(stated).as_posix() if isinstance(stated, str) and stated else f"{file.stem}.jpg"
    folders = (file.parent, file.parent / "images", root, root / "images")
    plain = PureWindowsPath(name).name
    for candidate in (name, plain):
        if any(_is_file(folder / candidate) for folder in folders):
            return PictureFile(candidate, folders, root)
    inside = document.get("imageData")
    if isinstance(inside, str) and inside:
        try:
            return base64.b64decode(inside, validate=True)
        except (binascii.Error, ValueError):
            return b"?"  # no picture, and counted as that
    return PictureFile(name, folders, root)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _object(shape: Any, where: str) -> RawBox | BadObject:
    original = {key: shape.get(key) for key in ("label", "shape_type", "points")} if isinstance(shape, dict) else {}
    points = (
        [_point(point) for point in original.get("points") or ()] if isinstance(original.get("points"), list) else []
    )
    kind = str(original.get("shape_type") or "polygon")
    if kind in FLAT or len(points) < 2 or None in points:
        return BadObject(where, Reason.BOX_UNREADABLE, f"{kind} of {len(points)} points", original)
    label = str(original.get("label") or "").strip()
    if not label:
        return BadObject(where, Reason.LABEL_UNKNOWN, "no label", original)
    return RawBox(tuple(_around(kind, [point for point in points if point])), label, False, where, original)


def _around(kind: str, points: list[tuple[float, float]]) -> Iterator[float]:
    """The box around a shape.  A circle is its centre and a point on it; a rectangle may be drawn from any corner."""
    if kind == "circle":
        (x, y), edge = points[0], points[1]
        radius = math.dist((x, y), edge)
        points = [(x - radius, y - radius), (x + radius, y + radius)]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    yield from (min(xs), min(ys), max(xs), max(ys))


def _point(value: Any) -> tuple[float, float] | None:
    if not isinstance(value, list) or len(value) != 2 or any(isinstance(v, bool) for v in value):
        return None
    if not all(isinstance(v, (int, float)) for v in value):
        return None
    return (float(value[0]), float(value[1]))
