"""YOLO: a data.yaml in the Ultralytics form, or its folder, with a text file of normalized boxes beside each picture.

Source of the form: docs.ultralytics.com/datasets/detect, and for the way from a picture to its labels
ultralytics/data/utils.py (img2label_paths: the last `images` of the path becomes `labels`).
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from qwenft.core.errors import DataError, nearest
from qwenft.prepare.rows import (
    BadObject,
    BadRow,
    PictureFile,
    RawBox,
    RawRow,
    Reason,
    Request,
    Row,
    Source,
    counted,
    parted,
)
from qwenft.prepare.sources.folders import is_picture_name, pictures_in

SPLITS: Final = ("train", "val", "valid", "validation", "test", "minival")
SUFFIXES: Final = (".yaml", ".yml")
MAX_YAML_BYTES: Final = 4 * 1024 * 1024
MAX_LABEL_BYTES: Final = 64 * 1024 * 1024
LABELS: Final = "labels"


@dataclass(frozen=True, slots=True)
class Listed:
    """A picture of a split: its name as listed, and where to look for it."""

    name: str
    folders: tuple[Path, ...]

    def places(self) -> Iterator[Path]:
        """Where it may lie, likeliest first."""
        return (folder / self.name for folder in self.folders)


@dataclass
class Reader:
    """Reads lines of label files, and counts what is worth saying."""

    names: Mapping[int, str]
    keypoints: bool
    """Lines go on behind the box with the points of a pose."""
    polygons: int = 0
    without: int = 0

    @property
    def asked(self) -> tuple[str, ...]:
        """Every category, in order."""
        return tuple(dict.fromkeys(self.names.values()))

    def object_of(self, line: str, where: str) -> RawBox | BadObject:
        """Read one line: a category's number, then a box, or the corners of a polygon."""
        original = {"line": line[:400]}
        try:
            category, *numbers = (float(word) for word in line.split())
        except ValueError:
            return BadObject(where, Reason.BOX_UNREADABLE, line[:80], original)
        if not math.isfinite(category) or int(category) != category or int(category) not in self.names:
            detail = f"category {category:g} of {len(self.names)} names"
            return BadObject(where, Reason.LABEL_UNKNOWN, detail, original)
        label = self.names[int(category)]
        if len(numbers) == 4 or (self.keypoints and len(numbers) > 4):
            return RawBox(tuple(numbers[:4]), label, False, where, original)
        if len(numbers) >= 6 and len(numbers) % 2 == 0:
            self.polygons += 1
            return RawBox(around(numbers), label, False, where, original)
        return BadObject(where, Reason.BOX_UNREADABLE, f"{len(numbers)} numbers behind the category", original)


def matches(path: Path) -> bool:
    """Whether it is a data.yaml of that form, or a folder with one."""
    return settings_file(path) is not None


def settings_file(path: Path) -> Path | None:
    """The YAML file that names splits and categories; None where there is none."""
    candidates = sorted(path.glob("*.y*ml")) if path.is_dir() else [path]
    likely = [file for file in candidates if file.suffix.lower() in SUFFIXES and file.is_file()]
    likely.sort(key=lambda file: (not file.stem.lower().startswith("data"), file.name))
    for file in likely:
        try:
            document = read_settings(file)
        except DataError:
            if file.stem.lower() == "data" or file == path:
                return file  # its reader says what is wrong with it
            continue
        if "names" in document and any(document.get(split) for split in SPLITS):
            return file
    return None


def read_settings(file: Path) -> dict[str, Any]:
    """Read the YAML, plain values only.  Raises DataError with line and column; a tag that would run code is one."""
    try:
        if file.stat().st_size > MAX_YAML_BYTES:
            raise DataError(f"{file.absolute()} has {file.stat().st_size:,} bytes: that is no list of names")
        document = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{file.absolute()} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise DataError(f"{file.absolute()} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        what = getattr(error, "problem", None) or str(error)
        raise DataError(f"{file.absolute()}{where}: broken YAML ({what})", hint="mend the file there") from error
    if not isinstance(document, dict):
        raise DataError(f"{file.absolute()} holds {type(document).__name__}, not settings")
    return document


def open_source(path: Path, request: Request) -> Source:
    """List the pictures of the splits asked for and describe the source."""
    file = settings_file(path)
    if file is None:
        raise DataError(f"{path} has no data.yaml")
    if request.task not in (None, "detection"):
        raise DataError(f"{path} is YOLO: boxes with categories", hint=f"qwenft prepare --dataset {path}")
    settings = read_settings(file)
    names = _names(settings.get("names"), file)
    root, notes = _root(settings, file)
    parts = _parts(settings, root, file, request)
    reader = Reader(names, "kpt_shape" in settings)
    rows = [row for split, pictures in parts.items() for row in _read(split, pictures, file.parent, reader)]
    if reader.polygons:
        notes.append(f"{counted(reader.polygons, 'polygon')} taken as the boxes around them")
    if reader.without:
        notes.append(f"{counted(reader.without, 'picture')} without a label file or with an empty one: nothing in them")
    return Source(
        kind="yolo",
        about={"path": str(path.absolute()), "settings": file.name, "names": len(names), "polygons": reader.polygons},
        splits=tuple(parts),
        rows=lambda: rows,
        total=len(rows),
        stated="cxcywh_norm",
        notes=tuple(notes),
    )


def _names(value: Any, file: Path) -> dict[int, str]:
    """Number -> name, from a list or a dict."""
    pairs = enumerate(value) if isinstance(value, list) else value.items() if isinstance(value, dict) else ()
    found = {}
    for number, name in pairs:
        # Neither is shown whole: a few bytes of YAML aliases can stand for gigabytes of text.
        if not isinstance(name, (str, int, float)) or not isinstance(number, (int, str)):
            kinds = f"{type(number).__name__}: {type(name).__name__}"
            raise DataError(f"{file.absolute()}: names holds {kinds}, no number and name")
        if not str(number).strip().isdecimal():
            raise DataError(f"{file.absolute()}: names holds {str(number)[:40]!r}, no number and name")
        found[int(number)] = str(name).strip()
    if not found:
        raise DataError(f"{file.absolute()} has no names of categories", hint="add names: [first, second]")
    return found


def _root(settings: Mapping[str, Any], file: Path) -> tuple[Path, list[str]]:
    """Where relative paths start: `path`, or the folder of the file where that is not on this machine."""
    stated = settings.get("path")
    if not isinstance(stated, str) or not stated.strip():
        return file.parent, []
    root = file.parent / Path(stated).expanduser()
    if root.is_dir():
        return root, []
    return file.parent, [f"path: {stated[:200]} is not there; {file.parent.absolute()} is taken"]


def _parts(settings: Mapping[str, Any], root: Path, file: Path, request: Request) -> dict[str, list[Listed]]:
    found: dict[str, list[Listed]] = {}
    for split in (name for name in SPLITS if settings.get(name)):
        if request.splits and split not in request.splits:
            continue
        value = settings[split]
        pictures: list[Listed] = []
        for item in value if isinstance(value, list) else [value]:
            if not isinstance(item, str):
                raise DataError(f"{file.absolute()}: {split} holds {type(item).__name__}, no path")
            pictures += _pictures(item, root, file, split)
        found[split] = pictures[: request.limit]
    for name in request.splits:
        if name not in found:
            raise DataError(
                f"{file.absolute()} has no split {name!r}", hint=nearest(name, filter(settings.get, SPLITS))
            )
    return found


def _pictures(item: str, root: Path, file: Path, split: str) -> list[Listed]:
    """The pictures of one entry: a folder, a text file that lists them, or one picture."""
    place = _place(item, root, file)
    if place is None:
        raise DataError(
            f"{file.absolute()}: {split}: {item[:200]} is neither a folder nor a file below {root.absolute()}",
            hint=f"mend {file.name}, or take the other splits with --split",
        )
    if place.is_dir():
        return [Listed(path.name, (path.parent,)) for path in pictures_in(place)]
    if is_picture_name(place.name):
        return [Listed(place.name, (place.parent,))]
    text = place.read_text(encoding="utf-8-sig", errors="replace")
    lines = [line.strip() for line in text.splitlines()]
    return [Listed(line, (place.parent, root, file.parent)) for line in lines if line]


def _place(item: str, root: Path, file: Path) -> Path | None:
    """Roboflow writes ../train/images for the folder beside data.yaml: Ultralytics takes that too."""
    tries = [root / item, file.parent / item]
    if item.startswith("../"):
        tries += [root / item[3:], file.parent / item[3:]]
    return next((path for path in tries if path.exists()), None)


def _read(split: str, pictures: Sequence[Listed], within: Path, reader: Reader) -> Iterator[Row]:
    """The rows of one split.  Where it has not one label file, its pictures are unlabelled, not empty."""
    files = [_label_file(listed) for listed in pictures]
    labelled = any(found is not None for found in files)
    for listed, labels in zip(pictures, files, strict=True):
        original = {"picture": listed.name, "labels": labels.name if labels else None}
        if not labelled:
            yield BadRow(split, listed.name, Reason.ANNOTATION_MISSING, f"{split} has no label file at all", original)
            continue
        lines = _lines(labels) if labels else []
        if isinstance(lines, str):
            yield BadRow(split, listed.name, Reason.ROW_UNREADABLE, lines, original)
            continue
        reader.without += not lines
        at = labels.name if labels else ""
        boxes, bad = parted(reader.object_of(line, f"{at}, line {number}") for number, line in lines)
        picture = PictureFile(listed.name, listed.folders, within)
        yield RawRow(split, listed.name, picture, "detection", original, None, None, None, boxes, bad, reader.asked)


def _label_file(listed: Listed) -> Path | None:
    for path in listed.places():
        for candidate in _label_places(path):
            if candidate.is_file():
                return candidate
    return None


def _label_places(picture: Path) -> Iterator[Path]:
    """…/images/train/a.jpg has …/labels/train/a.txt; without `images` in the path the text lies beside its picture."""
    parts = picture.parts
    for number in range(len(parts) - 2, -1, -1):
        if parts[number] == "images":
            yield Path(*parts[:number], LABELS, *parts[number + 1 :]).with_suffix(".txt")
            break
    yield picture.with_suffix(".txt")


def _lines(file: Path) -> list[tuple[int, str]] | str:
    """Numbered lines that are not blank; a text saying what is wrong."""
    try:
        if file.stat().st_size > MAX_LABEL_BYTES:
            return f"{file.name} has {file.stat().st_size:,} bytes"
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        return f"{file.name} is not UTF-8 text: {error.reason} at byte {error.start}"
    except OSError as error:
        return f"{file.name} cannot be read: {error.strerror}"
    return [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]


def around(polygon: Iterable[float]) -> tuple[float, float, float, float]:
    """The box (centre and sides) around x1, y1, x2, y2, x3, y3, ….  NaN stays visible.

    >>> around([0.2, 0.2, 0.4, 0.2, 0.4, 0.6])
    (0.30000000000000004, 0.4, 0.2, 0.39999999999999997)
    """
    numbers = list(polygon)
    if not all(math.isfinite(n) for n in numbers):
        return (math.nan, math.nan, math.nan, math.nan)
    xs, ys = numbers[0::2], numbers[1::2]
    x1, x2, y1, y2 = min(xs), max(xs), min(ys), max(ys)
    return ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
