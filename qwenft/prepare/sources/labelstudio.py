"""Label Studio's two JSON exports, whole and JSON-MIN: tasks with rectangles in percent of the picture.

Source of the form: labelstud.io/guide/export and labelstud.io/tags/rectanglelabels (x, y, width, height in percent;
`rotation` in degrees, clockwise, about the upper left corner of the rectangle).  JSON-MIN is written by
label_studio_sdk's converter (converter.py, convert_to_json_min): a record an annotation, its regions in lists named
after the labelling tags, the regions' type left out.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

from qwenft.core.boxes import Size
from qwenft.core.errors import DataError
from qwenft.core.files import Record, read_records
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
from qwenft.prepare.sources.coco import root_of
from qwenft.prepare.sources.folders import is_picture_name
from qwenft.prepare.sources.records import PEEKED, files_in, first_record, narrowed

SHAPES: Final = ("rectangle", "polygon", "ellipse")
"""Of a region's value: `rectanglelabels`, `polygonlabels`, `ellipselabels`, or the bare shape without labels."""
LABELS: Final = tuple(f"{shape}labels" for shape in (*SHAPES, "brush", "keypoint"))
BARE: Final[Mapping[tuple[str, ...], str]] = {
    ("x", "y", "radiusX", "radiusY"): "ellipse",
    ("x", "y", "width", "height"): "rectangle",
    ("points",): "polygon",
}
"""How a region without labels is told."""


MINIMAL: Final = frozenset({"annotator", "annotation_id", "lead_time"})
"""Keys that every record of JSON-MIN has."""


def matches(path: Path) -> bool:
    """Whether the first record is a task with the results of its annotators, or an annotation of JSON-MIN."""
    first = first_record(path)
    if first is None:
        return False
    if first.keys() >= MINIMAL:
        return True
    annotations = first.get("annotations", first.get("completions"))
    if not isinstance(first.get("data"), dict) or not isinstance(annotations, list):
        return False
    return all(isinstance(item, dict) and "result" in item for item in annotations)


def open_source(path: Path, request: Request) -> Source:
    """Find the pictures' key in the tasks and describe the source."""
    if request.task not in (None, "detection"):
        raise DataError(f"{path} is a Label Studio export: boxes", hint=f"qwenft prepare --dataset {path}")
    files = narrowed(files_in(path), request, path)
    first = [as_task(record.value) for file in files.values() for record in islice(read_records(file), PEEKED)]
    key = request.columns.get("image") or _picture_key(first)
    if key is None:
        raise DataError(f"{path.absolute()}: no picture among the tasks' data", hint="--columns image=NAME")
    if not any(_regions(annotation) for task in first for annotation in _finished(task)):
        raise DataError(
            f"{path.absolute()} is a Label Studio export without one region in its first {len(first)} tasks",
            hint="texts and choices: export CSV, then qwenft prepare --dataset FILE.csv --columns image=…,captions=…",
        )
    further = sum(len(_finished(task)) - 1 for task in first if len(_finished(task)) > 1)
    about = f"the first annotation of each task is taken: {counted(further, 'further one')} left alone"
    return Source(
        kind="label studio",
        about={"path": str(path.absolute()), "files": [file.name for file in files.values()], "image": key},
        splits=tuple(files),
        rows=lambda: _rows(files, root_of(path), key, request),
        stated="xyxy_norm",
        notes=(about,) if further else (),
    )


def as_task(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """A record of JSON-MIN as the task that the whole export would have; any other record as it is.

    >>> regions = [{"x": 1, "y": 2, "width": 3, "height": 4, "rectanglelabels": ["cup"]}]
    >>> task = as_task({"image": "a.png", "box": regions, "annotator": 1, "annotation_id": 7, "lead_time": 3.5})
    >>> task["data"], task["annotations"][0]["result"][0]["type"]
    ({'image': 'a.png'}, 'rectanglelabels')
    """
    if not record.keys() >= MINIMAL:
        return record
    listed = {key: value for key, value in record.items() if isinstance(value, list) and any(map(_kind, value))}
    result = [
        {**{name: region.get(name) for name in ("original_width", "original_height")}, "type": kind, "value": region}
        for regions in listed.values()
        for region in regions
        if (kind := _kind(region))
    ]
    data = {key: value for key, value in record.items() if key not in listed and key not in MINIMAL and key != "id"}
    annotations = [] if record["annotation_id"] is None else [{"result": result}]
    return {"id": record.get("id"), "data": data, "annotations": annotations}


def _kind(region: Any) -> str:
    """The type of a region of JSON-MIN, by its keys; empty where it is none (a choice, a text)."""
    if not isinstance(region, Mapping):
        return ""
    labels = next((key for key in region if key in LABELS), "")
    shape = next((shape for keys, shape in BARE.items() if set(keys) <= region.keys()), "")
    return labels or shape


def _picture_key(records: Sequence[Mapping[str, Any]]) -> str | None:
    """The key of `data` whose values end as a picture's name."""
    keys = dict.fromkeys(str(key) for record in records for key in record.get("data") or ())
    for key in keys:
        values = [record["data"].get(key) for record in records if isinstance(record.get("data"), dict)]
        if any(isinstance(value, str) and is_picture_name(picture_name(value)) for value in values):
            return key
    return next((key for key in ("image", "img") if key in keys), None)


def picture_name(value: str) -> str:
    """The file that an address of Label Studio means.

    >>> picture_name("/data/upload/3/ab12cd34-cup.jpg"), picture_name("/data/local-files/?d=set/a%20b.png")
    ('ab12cd34-cup.jpg', 'set/a b.png')
    """
    parts = urlsplit(value)
    local = parse_qs(parts.query).get("d")
    if local:
        return local[0]
    if parts.scheme in ("http", "https", "s3", "gs", "azure-blob") or value.startswith("/data/"):
        return PurePosixPath(unquote(parts.path)).name
    return value


def _finished(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The annotations of a task that were not cancelled."""
    found = record.get("annotations", record.get("completions")) or ()
    return [item for item in found if isinstance(item, Mapping) and not item.get("was_cancelled")]


def _rows(files: Mapping[str, Path], root: Path, key: str, request: Request) -> Iterator[Row]:
    for split, file in files.items():
        seen: set[str] = set()
        for record in islice(read_records(file), request.limit):
            row = _row(split, record, file, root, key)
            again = isinstance(row, RawRow) and row.key in seen and record.value.keys() >= MINIMAL
            if isinstance(row, RawRow) and again:  # JSON-MIN has a record for each annotator
                yield BadRow(split, row.where, Reason.DUPLICATE_ID, "a further annotation of the task", row.original)
                continue
            if isinstance(row, RawRow) and row.key is not None:
                seen.add(row.key)
            yield row


def _regions(annotation: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [item for item in annotation.get("result") or () if isinstance(item, Mapping) and _shape(item)]


def _row(split: str, record: Record, file: Path, root: Path, key: str) -> Row:
    task = as_task(record.value)
    where = f"{file.name}, task {record.where if task.get('id') is None else task['id']}"
    data = task.get("data")
    address = data.get(key) if isinstance(data, dict) else None
    original = {"id": task.get("id"), "data": data}
    annotations = _finished(task)
    if not isinstance(address, str) or not address:
        return BadRow(split, where, Reason.PICTURE_MISSING, f"no data.{key}", original)
    if not annotations:
        return BadRow(split, where, Reason.ANNOTATION_MISSING, "no annotation, or a cancelled one", original)
    regions = _regions(annotations[0])
    boxes, bad = parted(
        found for number, region in enumerate(regions, 1) for found in _objects(region, f"{where}, region {number}")
    )
    name = picture_name(address)
    folders = (file.parent, file.parent / "images", root, root / "images")
    short = PurePosixPath(name).name
    found = next((n for n in (name, short, short.partition("-")[2]) if n and _there(n, folders)), name)
    picture = PictureFile(found, folders, root)
    declared = next(filter(None, map(_size, regions)), None)
    key_of_row = None if task.get("id") is None else str(task["id"])
    return RawRow(split, where, picture, "detection", original, key_of_row, declared, None, boxes, bad)


def _there(name: str, folders: tuple[Path, ...]) -> bool:
    """An uploaded picture has eight characters and a dash before its own name: both are looked for."""
    try:
        return any((folder / name).is_file() for folder in folders)
    except (OSError, ValueError):
        return False


def _shape(region: Mapping[str, Any]) -> str:
    """Which shape a region is; empty for choices, texts and relations."""
    kind = str(region.get("type") or "").removesuffix("labels")
    return kind if kind in (*SHAPES, "brush", "keypoint") else ""


def _size(region: Mapping[str, Any]) -> Size | None:
    width, height = region.get("original_width"), region.get("original_height")
    return (width, height) if isinstance(width, int) and isinstance(height, int) and min(width, height) > 0 else None


def _objects(region: Mapping[str, Any], where: str) -> Iterator[RawBox | BadObject]:
    """One object a label: a region may carry several."""
    kind, value = _shape(region), region.get("value")
    original = {"type": region.get("type"), "value": value}
    if region.get("image_rotation"):
        detail = f"drawn on a picture turned by {region['image_rotation']} degrees"
        yield BadObject(where, Reason.BOX_UNREADABLE, detail, original)
        return
    box = _box(kind, value, _size(region)) if isinstance(value, dict) else None
    if box is None:
        yield BadObject(where, Reason.BOX_UNREADABLE, f"{kind} without a box", original)
        return
    labels = value.get(f"{kind}labels") if isinstance(value, dict) else None
    for label in labels if isinstance(labels, list) and labels else [""]:
        yield RawBox(box, str(label), False, where, original)


def _box(kind: str, value: Mapping[str, Any], wh: Size | None) -> tuple[float, ...] | None:
    """x1, y1, x2, y2 in shares of the sides; None where the shape has none."""
    try:
        if kind == "rectangle":
            points = _turned(value, wh)
        elif kind == "ellipse":
            x, y, rx, ry = (float(value[name]) for name in ("x", "y", "radiusX", "radiusY"))
            points = [(x - rx, y - ry), (x + rx, y + ry)] if not float(value.get("rotation") or 0) else None
        else:
            points = [(float(x), float(y)) for x, y in value["points"]] if kind == "polygon" else None
    except (KeyError, TypeError, ValueError):
        return None
    if not points or not all(math.isfinite(n) for point in points for n in point):
        return None
    xs, ys = [x / 100 for x, _ in points], [y / 100 for _, y in points]
    return (min(xs), min(ys), max(xs), max(ys))


def _turned(value: Mapping[str, Any], wh: Size | None) -> list[tuple[float, float]] | None:
    """The four corners in percent; turning needs the picture's sides, since percent are not square."""
    x, y, width, height = (float(value[name]) for name in ("x", "y", "width", "height"))
    degrees = float(value.get("rotation") or 0)
    if not degrees:
        return [(x, y), (x + width, y + height)]
    if wh is None:
        return None
    angle, (full_w, full_h) = math.radians(degrees), wh
    across = (width * full_w * math.cos(angle), width * full_w * math.sin(angle))
    down = (-height * full_h * math.sin(angle), height * full_h * math.cos(angle))
    steps = [(0.0, 0.0), across, down, (across[0] + down[0], across[1] + down[1])]
    return [(x + dx / full_w, y + dy / full_h) for dx, dy in steps]
