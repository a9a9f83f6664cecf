"""The RefCOCO family as its makers publish it: refs in JSON beside the instances.json that holds boxes and pictures.

A ref has several sentences, and one annotation (RefCOCO), several or none (gRefCOCO: `ann_id` is a list, [-1] where
nothing is meant, `no_target`).  Sources: github.com/lichengunc/refer (README.md) and github.com/henghuiding/gRefCOCO
(mdetr/scripts/fine-tuning/grefexp_coco_format.py).  The makers' `refs(unc).p` are pickles, which could run code.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from qwenft.core.errors import DataError, nearest
from qwenft.core.files import Record, read_members, read_records
from qwenft.prepare.columns import SENTENCE_KEYS, read_boxes
from qwenft.prepare.rows import BadRow, PictureFile, RawBox, RawRow, Reason, Request, Row, Source
from qwenft.prepare.sources.cocofile import hashable
from qwenft.prepare.sources.records import first_record_of

NAMES: Final = "*refs*.json"
INSTANCES: Final = (
    "instances.json",
    "instances*.json",
    "annotations/instances*.json",
    "../annotations/instances*.json",
)
"""Where the annotations lie, seen from the refs: beside them, or as COCO has them."""
PLACES: Final = ("images", "", "train2014", "images/train2014", "images/mscoco/images/train2014")
"""Where the pictures lie below the folder: the last as in the refer toolbox."""
NUMBERED: Final = re.compile(r"(_\d{6,})_\d+(\.\w+)$")
"""A ref's `file_name`: behind the picture's own number stands that of the annotation."""
NOTHING: Final = -1
SPARE: Final = 0.2
"""Where this share of the annotated objects or more is meant by no expression, the file is no extract for the refs.

RefCOCO's own instances.json holds all of COCO's boxes in its pictures; an extract holds only what is meant.
"""


def matches(path: Path) -> bool:
    """Whether it is a file of refs, or a folder that holds one."""
    return any(map(_holds_refs, path.glob(NAMES))) if path.is_dir() else _holds_refs(path)


def _holds_refs(path: Path) -> bool:
    if path.suffix.lower() != ".json" or not path.is_file():
        return False
    with path.open("rb") as file:  # an object may be an instances.json of gigabytes
        if file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] != b"[":
            return False
    first = first_record_of(path)
    return first is not None and {"ann_id", "image_id", "sentences"} <= first.keys()


@dataclass(frozen=True)
class Wanted:
    """What the refs name, so that no more of the annotations is kept."""

    splits: tuple[str, ...]
    annotations: frozenset[Any]
    images: frozenset[Any]
    sentences: int


@dataclass(frozen=True)
class Instances:
    """Boxes (as they are written) and pictures by their ids."""

    boxes: Mapping[Any, Any]
    images: Mapping[Any, Mapping[str, Any]]
    around: Mapping[Any, tuple[RawBox, ...]]
    """picture -> all its objects; empty where the file may not have all."""
    categories: tuple[str, ...]


def open_source(path: Path, request: Request) -> Source:
    """Read which annotations the refs name, and those, and describe the source."""
    if request.task not in (None, "grounding"):
        raise DataError(f"{path} holds referring expressions", hint=f"qwenft prepare --dataset {path}")
    file = _only(path) if path.is_dir() else path
    wanted = _wanted(file)
    for name in request.splits:
        if name not in wanted.splits:
            raise DataError(f"{file} has no split {name!r}", hint=nearest(name, wanted.splits))
    annotations = _instances_of(file)
    instances = _read(annotations, wanted)
    return Source(
        kind="refs",
        about={"path": str(path.absolute()), "files": [file.name, annotations.name]},
        splits=tuple(name for name in wanted.splits if not request.splits or name in request.splits),
        rows=lambda: _rows(file, instances, request),
        total=None if request.splits or request.limit else wanted.sentences,
        stated="xywh",
    )


def _only(folder: Path) -> Path:
    found = [file for file in sorted(folder.glob(NAMES)) if _holds_refs(file)]
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise DataError(f"{folder} holds several files of refs: {names}", hint=f"qwenft prepare --dataset '{found[0]}'")
    return found[0]


def _instances_of(file: Path) -> Path:
    for place in INSTANCES:
        found = sorted(file.parent.glob(place))
        if len(found) == 1:
            return found[0]
    raise DataError(
        f"{file.absolute()} names annotations by their ids, and no instances.json with them lies beside it",
        hint=f"put COCO's instances_train2014.json there: {file.absolute().parent / 'instances.json'}",
    )


def _annotation_ids(ref: Mapping[str, Any]) -> list[Any]:
    """The annotations that a ref means; empty where it means nothing that is there."""
    value = ref.get("ann_id")
    ids = value if isinstance(value, list) else [value]
    return [hashable(item) for item in ids if item != NOTHING]


def _sentences(ref: Mapping[str, Any]) -> list[str]:
    listed = ref.get("sentences")
    found = []
    for item in listed if isinstance(listed, list) else []:
        texts = [item.get(key) for key in SENTENCE_KEYS] if isinstance(item, Mapping) else [item]
        found.append(next((text.strip() for text in texts if isinstance(text, str) and text.strip()), ""))
    return found


def _wanted(file: Path) -> Wanted:
    splits: dict[str, None] = {}
    annotations, images, sentences = set(), set(), 0
    for record in read_records(file):
        splits.setdefault(str(record.value.get("split") or "train"))
        annotations.update(_annotation_ids(record.value))
        images.add(hashable(record.value.get("image_id")))
        sentences += max(1, len(_sentences(record.value)))
    return Wanted(tuple(splits), frozenset(annotations), frozenset(images), sentences)


def _read(path: Path, wanted: Wanted) -> Instances:
    """What is wanted of an instances.json, which is read as a stream."""
    boxes: dict[Any, Any] = {}
    around: dict[Any, list[dict[str, Any]]] = {number: [] for number in wanted.images}
    names: dict[Any, str] = {}
    images: dict[Any, Mapping[str, Any]] = {}
    for key, value in read_members(path):
        if key not in ("images", "annotations", "categories") or not isinstance(value, Iterator):
            continue
        for item in value:
            number = hashable(item.get("id")) if isinstance(item, dict) else None
            if key == "images" and number in wanted.images:
                images[number] = {name: item.get(name) for name in ("file_name", "width", "height")}
            elif key == "annotations" and number is not None:
                picture = hashable(item.get("image_id"))
                if number in wanted.annotations:
                    boxes[number] = item.get("bbox")
                if picture in around:
                    around[picture].append({name: item.get(name) for name in ("id", "category_id", "bbox", "iscrowd")})
            elif key == "categories" and number is not None:
                names[number] = str(item.get("name"))
    total = sum(map(len, around.values()))
    whole = bool(names) and total - len(boxes) >= SPARE * total > 0
    objects = {number: _around(found, names) for number, found in around.items()} if whole else {}
    return Instances(
        boxes, images, {n: found for n, found in objects.items() if found is not None}, tuple(names.values())
    )


def _around(annotations: Sequence[Mapping[str, Any]], names: Mapping[Any, str]) -> tuple[RawBox, ...] | None:
    """All objects of a picture; None where one of them cannot be read."""
    found: list[RawBox] = []
    for item in annotations:
        read, _ = read_boxes([item["bbox"]], None, (), f"annotation {item['id']}")
        label = names.get(hashable(item["category_id"]))
        if label is None or len(read) != 1:
            return None
        found.append(replace(read[0], label=label, crowd=bool(item["iscrowd"])))
    return tuple(found)


def _rows(file: Path, instances: Instances, request: Request) -> Iterator[Row]:
    taken: dict[str, int] = {}
    for record in read_records(file):
        split = str(record.value.get("split") or "train")
        if request.splits and split not in request.splits:
            continue
        for row in _of_ref(record, split, file, instances):
            taken[split] = taken.get(split, 0) + 1
            if request.limit is None or taken[split] <= request.limit:
                yield row


def _of_ref(record: Record, split: str, file: Path, instances: Instances) -> Iterator[Row]:
    """A question for each sentence of a ref; where its boxes are not all there, as many rejected rows."""
    ref, ids = record.value, _annotation_ids(record.value)
    picture, declared = _picture(ref, file, instances)
    boxes: list[RawBox] = []
    problem = _contradiction(ref, ids)
    for number in ids:
        if number not in instances.boxes:
            problem = problem or (Reason.ANNOTATION_UNKNOWN, f"annotation {number}")
            continue
        read, bad = read_boxes([instances.boxes[number]], None, (), f"annotation {number}")
        boxes += read
        problem = problem or next(((item.reason, item.detail) for item in bad), None)
    key = None if ref.get("ref_id") is None else str(ref["ref_id"])
    for number, text in enumerate(_sentences(ref) or [""], 1):
        where = f"{file.name}, {record.where}, sentence {number}"
        own = None if key is None else f"{key}#{number}"
        if problem or picture is None:
            reason, detail = problem or (Reason.PICTURE_MISSING, f"image {ref.get('image_id')} has no file_name")
            yield BadRow(split, where, reason, detail, ref)
        else:
            row = RawRow(split, where, picture, "grounding", ref, own, declared, text, tuple(boxes))
            around = instances.around.get(hashable(ref.get("image_id")))
            yield row if around is None else replace(row, categories=instances.categories, around=around)


def _contradiction(ref: Mapping[str, Any], ids: list[Any]) -> tuple[Reason, str] | None:
    stated = ref.get("no_target")
    if isinstance(stated, (bool, int)) and bool(stated) == bool(ids):
        return Reason.ROW_UNREADABLE, f"no_target is {bool(stated)}, and ann_id is {str(ref.get('ann_id'))[:80]}"
    return None


def _picture(
    ref: Mapping[str, Any], file: Path, instances: Instances
) -> tuple[PictureFile | None, tuple[int, int] | None]:
    """The picture by the annotations' own list, else by the name in the ref without the number behind it."""
    image = instances.images.get(hashable(ref.get("image_id")), {})
    name = image.get("file_name") or NUMBERED.sub(r"\1\2", str(ref.get("file_name") or ""))
    width, height = image.get("width"), image.get("height")
    declared = (width, height) if isinstance(width, int) and isinstance(height, int) else None
    if not isinstance(name, str) or not name:
        return None, declared
    folder = file.parent
    beside = not (folder / "images").is_dir() and (folder.parent / "images").is_dir()
    root = folder.parent if beside else folder
    return PictureFile(name, tuple(root / place for place in PLACES), root), declared
