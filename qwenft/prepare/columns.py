"""Which column of a record means what, and a record read as raw rows."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from qwenft.core.answer import Task
from qwenft.core.boxes import Size
from qwenft.core.errors import DataError, nearest
from qwenft.core.phrases import phrase_of
from qwenft.prepare.rows import BadObject, BadRow, PictureFile, RawBox, RawRow, Reason, Row

ROLES: Final[Mapping[str, tuple[str, ...]]] = {
    "image": ("image", "img", "picture", "photo", "image_path", "img_path", "image_file", "file_name", "filename",
              "path", "images"),
    "query": ("query", "expression", "referring_expression", "phrase", "question", "instruction", "sentence", "ref",
              "prompt", "text", "caption", "expressions", "sentences"),
    "bbox": ("bbox", "bbox_2d", "bboxes", "box", "boxes", "bounding_box", "bounding_boxes", "objects", "annotations"),
    "label": ("label", "labels", "category", "categories_of_boxes", "class", "class_name", "name"),
    "captions": ("captions", "caption", "references", "sentences", "description", "text"),
    "categories": ("categories",),
    "id": ("id", "question_id", "sample_id", "uid"),
    "split": ("split",),
    "width": ("width", "image_width", "img_width"),
    "height": ("height", "image_height", "img_height"),
    "size": ("image_size", "size"),
    "task": ("task",),
}  # fmt: skip
"""Role -> the names under which data sets have it, likeliest first.  `--columns role=name` overrides."""
SENTENCE_KEYS: Final = ("sent", "raw", "text", "expression", "caption")
BOX_KEYS: Final = ("bbox", "bbox_2d", "box", "bounding_box")
LABEL_KEYS: Final = ("label", "category", "category_name", "name", "class", "category_id", "labels", "categories")


@dataclass(frozen=True, slots=True)
class Layout:
    """What the records of one source hold."""

    task: Task
    columns: Mapping[str, str]
    """role -> column; only roles that the source has."""
    unused: tuple[str, ...]
    names: Sequence[str] = ()
    """Category names by number (a ClassLabel's)."""
    strip: bool = False
    """Whether the query is an instruction to be stripped to its phrase."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record stands, and how its picture is found."""

    split: str
    where: str
    folders: tuple[Path, ...] = ()
    within: Path | None = None
    """None: the source has no folder, only bytes."""
    original: Mapping[str, Any] = field(default_factory=dict)


def find_layout(
    records: Sequence[Mapping[str, Any]],
    wanted: Mapping[str, str],
    task: Task | None,
    what: str,
    names: Sequence[str] = (),
) -> Layout:
    """Tell the columns' roles from the first records.

    Raises DataError that lists the columns where picture, question and boxes (or captions) are not all there.
    """
    present = list(dict.fromkeys(key for record in records for key in record))
    columns = _given(wanted, present, what)
    for role, known in ROLES.items():
        free = [name for name in known if name in present and name not in columns.values()]
        if role not in columns and free:
            columns[role] = free[0]
    columns, found = _roles_for(task, columns, present, records, wanted)
    missing = [role for role in _NEEDED[found] if role not in columns] if found else ["bbox"]
    if found is None or missing:
        raise DataError(
            f"{what}: no column for {' and '.join(missing)} among {', '.join(present) or 'none'}",
            hint="--columns " + ",".join(f"{role}=NAME" for role in missing),
        )
    unused = tuple(name for name in present if name not in columns.values())
    return Layout(found, columns, unused, names, strip=columns.get("query") in ("instruction", "prompt"))


_NEEDED: Final[Mapping[Task, tuple[str, ...]]] = {
    "grounding": ("image", "query", "bbox"),
    "detection": ("image", "bbox"),
    "caption": ("image", "captions"),
}


def _given(wanted: Mapping[str, str], present: Sequence[str], what: str) -> dict[str, str]:
    for role, name in wanted.items():
        if role not in ROLES:
            raise DataError(f"--columns {role}={name}: unknown role {role!r}", hint=nearest(role, ROLES))
        if name not in present:
            raise DataError(f"--columns {role}={name}: {what} has no column {name!r}", hint=nearest(name, present))
    return dict(wanted)


def _roles_for(
    task: Task | None,
    columns: dict[str, str],
    present: Sequence[str],
    records: Sequence[Mapping[str, Any]],
    wanted: Mapping[str, str],
) -> tuple[dict[str, str], Task | None]:
    """Settle what depends on the task: `caption` is a question beside a box, and a caption without one."""
    if task is None:
        task = _stated_task(records, columns)
    if task is None and "bbox" in columns:
        task = "grounding" if "query" in columns else "detection"
    if task is None and (columns.get("query") in ROLES["captions"] or "captions" in columns):
        task = "caption"
    if task == "caption":
        text = next((name for name in ROLES["captions"] if name in present), None)
        if "captions" not in wanted and text:
            columns["captions"] = text
        columns = {role: name for role, name in columns.items() if role not in ("query", "bbox", "label", "categories")}
    elif task is not None:
        _take_expressions(columns, present, records, wanted)
        unused = {"captions", "query"} if task == "detection" else {"captions", "categories"}
        columns = {role: name for role, name in columns.items() if role not in unused}
    return columns, task


def _stated_task(records: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> Task | None:
    """A `task` column (a prepared data set's own samples have one), where all the first records agree."""
    values = {str(record.get(columns["task"])) for record in records} if "task" in columns else set()
    for task in _NEEDED:
        if values == {task}:
            return task
    return None


def _take_expressions(
    columns: dict[str, str], present: Sequence[str], records: Sequence[Mapping[str, Any]], wanted: Mapping[str, str]
) -> None:
    """lmms-lab/RefCOCO and its kin: one constant sentence as question, the expressions in the list `answer`."""
    if "query" in wanted or "answer" not in present or "query" not in columns:
        return
    questions = {str(record.get(columns["query"])) for record in records}
    if len(questions) == 1 and all(isinstance(record.get("answer"), list) for record in records):
        columns["query"] = "answer"


def read_record(record: Mapping[str, Any], layout: Layout, place: Place) -> Iterator[Row]:
    """Yield the questions of one record: usually one, several where it lists several expressions."""
    get = {role: record.get(name) for role, name in layout.columns.items()}
    picture = picture_of(get.get("image"), place)
    if isinstance(picture, BadRow):
        yield picture
        return
    split = str(get["split"]) if get.get("split") else place.split
    common: dict[str, Any] = {"split": split, "picture": picture, "task": layout.task, "original": place.original}
    common |= {"declared_wh": _declared(get), "key": None if get.get("id") is None else str(get["id"])}
    if layout.task == "caption":
        captions = tuple(text.strip() for text in _texts(get.get("captions")) if text.strip())
        yield RawRow(where=place.where, captions=captions, **common)
        return
    if layout.columns["bbox"] not in record:
        yield BadRow(split, place.where, Reason.BOX_ABSENT, f"no {layout.columns['bbox']!r}", place.original)
        return
    boxes, bad = read_boxes(get["bbox"], get.get("label"), layout.names, place.where)
    if layout.task == "detection":
        asked = get.get("categories")
        categories = tuple(_texts(asked)) if isinstance(asked, list) else None
        yield RawRow(where=place.where, boxes=boxes, bad_objects=bad, categories=categories, **common)
        return
    if bad:
        yield BadRow(split, place.where, bad[0].reason, bad[0].detail, place.original)
        return
    yield from _questions(_texts(get.get("query")), boxes, layout, place, common)


def _questions(
    queries: Sequence[str], boxes: tuple[RawBox, ...], layout: Layout, place: Place, common: dict[str, Any]
) -> Iterator[RawRow]:
    for number, text in enumerate(queries or [""], 1):
        query = phrase_of(text) if layout.strip else text.strip()
        several = len(queries) > 1
        where = f"{place.where}, expression {number}" if several else place.where
        key = f"{common['key']}#{number}" if several and common["key"] is not None else common["key"]
        yield RawRow(where=where, query=query, boxes=boxes, **{**common, "key": key})


def picture_of(value: Any, place: Place) -> bytes | PictureFile | BadRow:
    """A picture's bytes, or its name and where it may lie; a BadRow where the record has none, or several."""
    if isinstance(value, list):
        if len(value) > 1:
            return BadRow(place.split, place.where, Reason.PICTURE_SEVERAL, f"{len(value)} pictures", place.original)
        value = value[0] if value else None
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if isinstance(value, str) and value and place.within is None:
        detail = f"{value[:200]!r} without its bytes"
        return BadRow(place.split, place.where, Reason.PICTURE_MISSING, detail, place.original)
    if isinstance(value, str) and value and place.within is not None:
        return PictureFile(value, place.folders, place.within)
    return BadRow(place.split, place.where, Reason.PICTURE_MISSING, "no picture is named", place.original)


def _declared(get: Mapping[str, Any]) -> Size | None:
    pair = get.get("size") if isinstance(get.get("size"), list) else [get.get("width"), get.get("height")]
    if not isinstance(pair, list) or len(pair) != 2:
        return None
    if not all(isinstance(n, (int, float)) and math.isfinite(n) and n > 0 for n in pair):
        return None
    return (round(pair[0]), round(pair[1]))


def _texts(value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, Mapping):  # a sentence of the RefCOCO family's own files, with its tokens and ids
        return [str(value[key]) for key in SENTENCE_KEYS if value.get(key)][:1]
    return [text for item in value for text in _texts(item)] if isinstance(value, (list, tuple)) else [str(value)]


def read_boxes(
    value: Any, labels: Any, names: Sequence[str], where: str
) -> tuple[tuple[RawBox, ...], tuple[BadObject, ...]]:
    """Read whatever a box column holds: numbers, lists of them, objects, a dict of lists, or JSON text of any of these.

    None and [] mean "not in the picture".  Returns the boxes, and what was there but is none.

    >>> read_boxes("[1, 2, 3, 4]", None, (), "line 1")[0][0].numbers
    (1.0, 2.0, 3.0, 4.0)
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            found = re.findall(r"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?", value)
            if len(found) != 4:
                return (), (_unreadable(value, where),)
            value = [float(n) for n in found]
    items = _items(value, labels)
    if items is None:
        return (), (_unreadable(value, where),)
    boxes, bad = [], []
    for number, (numbers, label, crowd) in enumerate(items, 1):
        at = f"{where}, object {number}" if len(items) > 1 else where
        four = _numbers(numbers)
        original = {"bbox": numbers, "label": label}
        if four is None:
            bad.append(_unreadable(numbers, at))
        elif label is not None and (name := _name(label, names)) is None:
            bad.append(BadObject(at, Reason.LABEL_UNKNOWN, f"number {label} of {len(names)} names", original))
        else:
            boxes.append(RawBox(four, "" if label is None else name or "", crowd, at, original))
    return tuple(boxes), tuple(bad)


Item = tuple[Any, Any, bool]
"""Numbers, label and crowd of one object, not yet checked."""


def _items(value: Any, labels: Any) -> list[Item] | None:
    """The objects of a box column; None where the form is not known."""
    if value is None or value == []:
        return []
    if isinstance(value, Mapping):
        return _items_of_object(value, labels)
    if not isinstance(value, list):
        return None
    if all(isinstance(item, (int, float)) for item in value):
        return [(value, labels[0] if isinstance(labels, list) and labels else labels, False)]
    many = labels if isinstance(labels, list) and len(labels) == len(value) else [labels] * len(value)
    found: list[Item] = []
    for item, label in zip(value, many, strict=True):
        nested = _items_of_object(item, label) if isinstance(item, Mapping) else None
        found += [(item, label, False)] if nested is None else nested
    return found


def _items_of_object(value: Mapping[str, Any], labels: Any) -> list[Item] | None:
    """One object with its box and label, or (as `datasets` has it) a dict of the lists of both."""
    key = next((k for k in BOX_KEYS if k in value), None)
    if key is None:
        corners = [value.get(k) for k in ("x1", "y1", "x2", "y2")]
        return None if None in corners else [(corners, labels, False)]
    label = next((value[k] for k in LABEL_KEYS if k in value), labels)
    inner = value[key]
    if not isinstance(inner, list):
        return None
    if not inner or not isinstance(inner[0], list):
        return [(inner, label, bool(value.get("crowd") or value.get("iscrowd")))] if inner else []
    crowds = value.get("iscrowd") or [0] * len(inner)
    many = label if isinstance(label, list) else [label] * len(inner)
    if len(many) != len(inner) or len(crowds) != len(inner):
        return None
    return [(box, name, bool(crowd)) for box, name, crowd in zip(inner, many, crowds, strict=True)]


def _numbers(value: Any) -> tuple[float, ...] | None:
    """Four numbers, or None.  NaN passes here: it is counted under its own reason."""
    if not isinstance(value, (list, tuple)) or len(value) != 4:
        return None
    try:
        return tuple(float(n) for n in value) if not any(isinstance(n, bool) for n in value) else None
    except (TypeError, ValueError, OverflowError):
        return None


def _name(label: Any, names: Sequence[str]) -> str | None:
    if isinstance(label, int) and not isinstance(label, bool) and names:
        return names[label] if 0 <= label < len(names) else None
    return str(label)


def _unreadable(value: Any, where: str) -> BadObject:
    return BadObject(where, Reason.BOX_UNREADABLE, f"{str(value)[:80]}", {"bbox": value})
