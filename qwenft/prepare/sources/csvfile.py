"""CSV: an object a line with its corners in columns (filename, class, xmin, …), or a question a line."""

import csv
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Final

from qwenft.core.errors import DataError, nearest
from qwenft.core.files import Record
from qwenft.prepare.columns import ROLES, Place, find_layout, picture_of, read_record
from qwenft.prepare.origin import Origin, judge_origin
from qwenft.prepare.rows import BadObject, BadRow, RawBox, RawRow, Reason, Request, Row, Source
from qwenft.prepare.sources.coco import root_of
from qwenft.prepare.sources.records import PEEKED, files_in, narrowed, place_of, unused_note

SUFFIXES: Final = (".csv", ".tsv")
CORNERS: Final = (
    ("xmin", "ymin", "xmax", "ymax"),
    ("x1", "y1", "x2", "y2"),
    ("x_min", "y_min", "x_max", "y_max"),
    ("left", "top", "right", "bottom"),
)
"""Names of the columns with a box's corners, whatever their case."""
PICTURES: Final = ("filename", "file_name", "image", "image_path", "img", "img_path", "path", "image_id", "imageid")
LABELS: Final = ("class", "label", "class_name", "category", "name", "labelname")
DELIMITERS: Final = ",;\t|"
BBOX: Final = "bbox"


def matches(path: Path) -> bool:
    """Whether it is such a file, or a folder of them."""
    return bool(files_in(path, SUFFIXES))


def read_csv(path: Path) -> Iterator[Record]:
    """Yield the lines of a CSV file by the names of its first one; an empty cell is None.

    A BOM, CRLF, quoted line breaks and `;` or tabs as delimiters are fine; the record's place is its first line.
    Raises DataError with the line.
    """
    if path.stat().st_size == 0:
        raise DataError(f"{path.absolute()} is empty (0 bytes)", hint="was its download or copy interrupted?")
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = None
        try:
            reader = csv.reader(file, delimiter=_delimiter(path), strict=True)
            names = [name.strip() for name in next(reader, [])]
            if sum(map(_is_number, names)) > 1:
                raise DataError(
                    f"{path.absolute()} has no names in its first line: {', '.join(names)[:200]}",
                    hint="put them there, for example: filename,xmin,ymin,xmax,ymax,class",
                )
            repeated = [name for name, number in Counter(names).items() if number > 1]
            if repeated:
                raise DataError(f"{path.absolute()} has two columns {repeated[0]!r}")
            before = reader.line_num
            for cells in reader:
                line, before = before + 1, reader.line_num
                if not cells:
                    continue
                if len(cells) > len(names):
                    raise DataError(
                        f"{path.absolute()}, line {line}: {len(cells)} cells under {len(names)} names",
                        hint="put a text with a comma between quotes",
                    )
                values = [cell.strip() or None for cell in cells] + [None] * (len(names) - len(cells))
                yield Record(f"line {line}", dict(zip(names, values, strict=True)))
        except csv.Error as error:
            where = f", line {reader.line_num}" if reader else ""
            raise DataError(f"{path.absolute()}{where}: broken CSV ({error})", hint="mend the file there") from error
        except UnicodeDecodeError as error:
            raise DataError(f"{path.absolute()} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _delimiter(path: Path) -> str:
    """The one of DELIMITERS that stands most often in the first line."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        first = file.readline(65_536)
    return max(DELIMITERS, key=first.count)


def open_source(path: Path, request: Request) -> Source:
    """Tell objects from questions by the columns and describe the source."""
    files = narrowed(files_in(path, SUFFIXES), request, path)
    first = [record.value for file in files.values() for record in islice(read_csv(file), PEEKED)]
    if not first:
        raise DataError(f"{path.absolute()} holds no records")
    columns = _columns(first[0], request)
    asks = request.task == "grounding" or (request.task is None and _asks(first[0], request, columns))
    if {"corners", "image"} <= set(columns) and not asks and request.task != "caption":
        return _objects_source(path, files, columns, request)
    return _records_source(path, files, first, columns.get("corners", ()), request)


def _columns(record: Mapping[str, Any], request: Request) -> dict[str, Any]:
    """picture, label, width, height -> column, and the four with the corners; only what is there."""
    by_lower = {name.lower(): name for name in record}
    found: dict[str, Any] = {}
    known = {"image": PICTURES, "label": LABELS, "width": ROLES["width"], "height": ROLES["height"]}
    for role, names in known.items():
        present = [by_lower[name] for name in names if name in by_lower]
        if present:
            found[role] = present[0]
    for names in CORNERS:
        if all(name in by_lower for name in names):
            found["corners"] = tuple(by_lower[name] for name in names)
            break
    for role, name in request.columns.items():
        if name not in record:
            raise DataError(f"--columns {role}={name}: there is no column {name!r}", hint=nearest(name, record))
    return found | {role: name for role, name in request.columns.items() if role in known}


def _asks(record: Mapping[str, Any], request: Request, columns: Mapping[str, Any]) -> bool:
    """Whether a line has a text that asks for its box."""
    taken = {columns.get(role) for role in ("image", "label")}
    return "query" in request.columns or any(name in record and name not in taken for name in ROLES["query"])


# One object a line


def _objects_source(path: Path, files: Mapping[str, Path], columns: Mapping[str, Any], request: Request) -> Source:
    parts = {split: _grouped(file, columns, request.limit) for split, file in files.items()}
    boxes = [box for part in parts.values() for _, found, _ in part.values() for box in found]
    pixels = any(max(box.numbers) > 1 for box in boxes if all(map(math.isfinite, box.numbers)))
    origin = (
        judge_origin(((box.numbers, box.where) for box in boxes), 0) if pixels else Origin(0, "shares of the sides")
    )
    root = root_of(path)
    said = ", ".join(f"{role}={name}" for role, name in columns.items() if role != "corners")
    return Source(
        kind="csv",
        about={"path": str(path.absolute()), "files": [f.name for f in files.values()], "origin": origin.to_json()},
        splits=tuple(files),
        rows=lambda: (
            _picture_row(name, part, place_of(part[0], split, files[split], root), columns, origin)
            for split, pictures in parts.items()
            for name, part in pictures.items()
        ),
        total=sum(map(len, parts.values())),
        readings=("xyxy", "xyxy_norm", "xyxy_1000"),
        notes=(f"columns: {said}, box={' '.join(columns['corners'])}", *((origin.sentence(),) if pixels else ())),
    )


Grouped = tuple[Record, list[RawBox], list[BadObject]]
"""The first line of a picture, and its objects."""


def _grouped(file: Path, columns: Mapping[str, Any], limit: int | None) -> dict[str, Grouped]:
    """Picture -> its lines, wherever they stand in the file.  A line without any corner says: nothing in it."""
    found: dict[str, Grouped] = {}
    for record in read_csv(file):
        name = str(record.value.get(columns["image"]) or "")
        if limit is not None and name not in found and len(found) >= limit:
            continue
        _, boxes, bad = found.setdefault(name, (record, [], []))
        written = [record.value.get(column) for column in columns["corners"]]
        if not any(written):
            continue
        where = f"{file.name}, {record.where}"
        label = record.value.get(columns["label"]) if "label" in columns else None
        try:
            numbers = tuple(float(text or "") for text in written)
        except ValueError:
            bad.append(BadObject(where, Reason.BOX_UNREADABLE, str(written)[:80], record.value))
            continue
        if "label" in columns and not label:
            bad.append(BadObject(where, Reason.LABEL_UNKNOWN, f"no {columns['label']}", record.value))
        else:
            boxes.append(RawBox(numbers, label or "", False, where, record.value))
    return found


def _picture_row(name: str, part: Grouped, place: Place, columns: Mapping[str, Any], origin: Origin) -> Row:
    record, boxes, bad = part
    place = replace(place, original={"picture": name, "objects": len(boxes) + len(bad)})
    picture = picture_of(name, place)
    if isinstance(picture, BadRow):
        return picture
    sides = [_side(record.value.get(columns.get(role, ""))) for role in ("width", "height")]
    declared = (sides[0], sides[1]) if all(sides) else None
    shifted = tuple(replace(box, numbers=origin.shifted(box.numbers)) for box in boxes)
    return RawRow(
        place.split, place.where, picture, "detection", place.original, None, declared, None, shifted, tuple(bad)
    )


def _side(text: Any) -> int:
    try:
        return max(0, round(float(text or "")))
    except (ValueError, OverflowError):
        return 0


# One question a line


def _records_source(
    path: Path, files: Mapping[str, Path], first: Sequence[dict[str, Any]], corners: Sequence[str], request: Request
) -> Source:
    layout = find_layout([_record(value, corners) for value in first], request.columns, request.task, str(path))
    root = root_of(path)

    def rows() -> Iterator[Row]:
        for split, file in files.items():
            for record in islice(read_csv(file), request.limit):
                plain = Record(record.where, _record(record.value, corners))
                yield from read_record(plain.value, layout, place_of(plain, split, file, root))

    return Source(
        kind="csv",
        about={"path": str(path.absolute()), "files": [file.name for file in files.values()]},
        splits=tuple(files),
        rows=rows,
        notes=unused_note(layout),
    )


def _record(value: Mapping[str, Any], corners: Sequence[str]) -> dict[str, Any]:
    """A line as a record of JSON would be: its corners in one column, its sides as numbers."""
    found = {name: cell for name, cell in value.items() if name not in corners}
    for name in (*ROLES["width"], *ROLES["height"]):
        if found.get(name) is not None:
            found[name] = _side(found[name]) or None
    written = [value.get(name) for name in corners]
    if corners:
        found[BBOX] = list(map(_number, written)) if any(written) else None
    return found


def _number(text: Any) -> Any:
    """A cell as a number; what is none stays as it is, to be rejected as that."""
    try:
        return float(text)
    except (TypeError, ValueError):
        return text
