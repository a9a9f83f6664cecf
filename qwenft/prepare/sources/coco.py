"""COCO: a folder or a JSON file with images, annotations and categories; captions files too."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import ijson

from qwenft.core.errors import DataError, nearest
from qwenft.core.files import read_json
from qwenft.prepare.columns import read_boxes
from qwenft.prepare.rows import WHOLE, BadObject, BadRow, PictureFile, RawBox, RawRow, Reason, Request, Row, Source

PLACES: Final = ("*.json", "annotations/*.json", "*/*.json")
"""Where a COCO folder keeps its files: beside the pictures, as COCO itself, or one folder a split."""
SPLIT_WORD: Final = re.compile(r"(?<![a-z])(train|valid|validation|val|test|dev|minival)(?![a-z])")
LEFT_OUT: Final = frozenset({"segmentation", "keypoints"})
"""Long values of an annotation that rejected.jsonl does without."""


def matches(path: Path) -> bool:
    """Whether it is a COCO file, or a folder that holds one."""
    return bool(_files(path)) if path.is_dir() else looks_like_coco(path)


def looks_like_coco(path: Path) -> bool:
    """Tell a COCO file by its first top-level keys, without reading it whole."""
    if path.suffix.lower() != ".json" or not path.is_file():
        return False
    keys = set()
    try:
        with path.open("rb") as file:
            for prefix, event, value in ijson.parse(file):
                if prefix == "" and event == "start_array":
                    return False
                if prefix == "" and event == "map_key":
                    keys.add(value)
                if prefix == "annotations.item" and event == "map_key" and value == "image_id":
                    return True
                if {"images", "annotations"} <= keys:
                    return True
    except (ijson.JSONError, UnicodeDecodeError):
        # Broken further on: if it began as COCO, its reader names the line and column.
        return "images" in keys or "categories" in keys
    return "images" in keys


def _files(folder: Path) -> list[Path]:
    for pattern in PLACES:
        found = [path for path in sorted(folder.glob(pattern)) if looks_like_coco(path)]
        if found:
            return found
    return []


def open_source(path: Path, request: Request) -> Source:
    """Read the annotations (whole: they are joined by id) and describe the source."""
    root = root_of(path)
    files = _files(path) if path.is_dir() else [path]
    documents = {file: _read(file) for file in files}
    captions = [file for file in files if is_captions(documents[file])]
    notes = []
    if request.task == "caption":
        documents = {file: documents[file] for file in captions}
    elif 0 < len(captions) < len(documents):
        documents = {file: document for file, document in documents.items() if file not in captions}
        left = ", ".join(file.name for file in captions)
        notes.append(f"{left} was left alone: qwenft prepare --dataset {captions[0]} takes the captions")
    if not documents:
        raise DataError(f"{path} holds no captions", hint=f"qwenft prepare --dataset {path} --task detection")
    by_split = _by_split(documents, request)
    return Source(
        kind="coco captions" if all(map(is_captions, documents.values())) else "coco",
        about={"path": str(path.absolute()), "files": [file.name for file in documents]},
        splits=tuple(by_split),
        rows=lambda: _rows(by_split, root, request),
        total=sum(min(len(d["images"]), request.limit or len(d["images"])) for _, d in by_split.values()),
        stated="xywh",
        notes=tuple(notes),
        loose_objects=tuple(_loose(by_split, request)),
    )


def root_of(path: Path) -> Path:
    """The folder that a source's pictures must not leave: `annotations/` has its pictures beside itself."""
    if path.is_dir():
        return path
    return path.parent.parent if path.absolute().parent.name == "annotations" else path.parent


def _read(path: Path) -> dict[str, Any]:
    document = read_json(path)
    for key in ("images", "annotations"):
        value = document.get(key)
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise DataError(f"{path} looks like COCO, but its {key!r} is no list of objects")
    return dict(document)


def is_captions(document: Mapping[str, Any]) -> bool:
    """Whether the annotations are captions (a file without annotations is detection without objects)."""
    return bool(document["annotations"]) and "caption" in document["annotations"][0]


def _by_split(documents: Mapping[Path, dict[str, Any]], request: Request) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Name the splits by file or folder; two files of one name are an error."""
    found: dict[str, tuple[Path, dict[str, Any]]] = {}
    for path, document in documents.items():
        split = split_of(path) if len(documents) > 1 else split_of(path, WHOLE)
        if split in found:
            raise DataError(
                f"{found[split][0]} and {path} are both split {split!r}", hint=f"qwenft prepare --dataset {path}"
            )
        found[split] = (path, document)
    unknown = [name for name in request.splits if name not in found]
    if unknown:
        raise DataError(f"no split {unknown[0]!r} in {', '.join(map(str, documents))}", hint=nearest(unknown[0], found))
    return {name: item for name, item in found.items() if not request.splits or name in request.splits}


def split_of(path: Path, otherwise: str | None = None) -> str:
    """Tell the split from a file's name, else from its folder's: instances_val2017.json, train/_annotations.coco.json.

    >>> split_of(Path("annotations/instances_val2017.json")), split_of(Path("valid/_annotations.coco.json"))
    ('val', 'valid')
    """
    for name in (path.stem, path.parent.name):
        match = SPLIT_WORD.search(name.lower())
        if match:
            return match.group(1)
    return path.stem if otherwise is None else otherwise


def _folders(file: Path, root: Path) -> tuple[Path, ...]:
    """Where the pictures of a file may lie, likeliest first: COCO's own `val2017` beside `annotations` included."""
    tail = file.stem.rsplit("_", 1)[-1]
    places = [file.parent / "images", file.parent, root / "images", root, root / tail, root / "images" / tail]
    return tuple(dict.fromkeys(places))


def _rows(by_split: Mapping[str, tuple[Path, dict[str, Any]]], root: Path, request: Request) -> Iterator[Row]:
    for split, (path, document) in by_split.items():
        names = _category_names(document)
        grouped: dict[Any, list[dict[str, Any]]] = {}
        for annotation in document["annotations"]:
            grouped.setdefault(annotation.get("image_id"), []).append(annotation)
        folders = _folders(path, root)
        seen = set()
        for image in document["images"][: request.limit]:
            where = f"{path.name}, image {image.get('id')}"
            if image.get("id") in seen:
                yield BadRow(split, where, Reason.DUPLICATE_ID, f"image id {image.get('id')}", image)
                continue
            seen.add(image.get("id"))
            annotations = grouped.get(image.get("id"), [])
            name = image.get("file_name")
            if not isinstance(name, str) or not name:
                yield BadRow(split, where, Reason.PICTURE_MISSING, "no file_name", image)
                continue
            picture = PictureFile(name, folders, root)
            yield _row(
                split,
                where,
                picture=picture,
                image=image,
                annotations=annotations,
                names=names,
                captions=is_captions(document),
            )


def _row(
    split: str,
    where: str,
    *,
    picture: PictureFile,
    image: dict[str, Any],
    annotations: Iterable[dict[str, Any]],
    names: Mapping[Any, str],
    captions: bool,
) -> RawRow:
    width, height = image.get("width"), image.get("height")
    declared = (width, height) if isinstance(width, int) and isinstance(height, int) else None
    if captions:
        texts = [str(item.get("caption") or "").strip() for item in annotations]
        kept = tuple(text for text in texts if text)
        bad = tuple(
            BadObject(f"{where}, caption {number}", Reason.CAPTION_EMPTY, "", {"caption": text})
            for number, text in enumerate(texts, 1)
            if not text
        )
        return RawRow(split, where, picture, "caption", image, str(image.get("id")), declared, None, (), bad, (), kept)
    boxes, bad_objects = _objects(annotations, names)
    asked = tuple(dict.fromkeys(names.values()))
    return RawRow(
        split, where, picture, "detection", image, str(image.get("id")), declared, None, boxes, bad_objects, asked
    )


def _objects(
    annotations: Iterable[dict[str, Any]], names: Mapping[Any, str]
) -> tuple[tuple[RawBox, ...], tuple[BadObject, ...]]:
    boxes: list[RawBox] = []
    bad: list[BadObject] = []
    seen = set()
    for annotation in annotations:
        key = annotation.get("id")
        where = f"annotation {key}"
        original = {name: value for name, value in annotation.items() if name not in LEFT_OUT}
        category = annotation.get("category_id")
        found, unread = read_boxes([annotation.get("bbox")], None, (), where)
        if key is not None and key in seen:
            bad.append(BadObject(where, Reason.DUPLICATE_ID, f"annotation id {key}", original))
        elif category not in names:
            bad.append(BadObject(where, Reason.LABEL_UNKNOWN, f"category_id {category}", original))
        elif unread or not found:
            bad.append(BadObject(where, Reason.BOX_UNREADABLE, str(annotation.get("bbox"))[:80], original))
        else:
            crowd = bool(annotation.get("iscrowd"))
            boxes.append(RawBox(found[0].numbers, names[category], crowd, where, original))
        seen.add(key)
    return tuple(boxes), tuple(bad)


def _category_names(document: Mapping[str, Any]) -> dict[Any, str]:
    """Category id -> name; ids may have holes."""
    categories = document.get("categories") or []
    return {item.get("id"): str(item["name"]) for item in categories if isinstance(item, dict) and item.get("name")}


def _loose(by_split: Mapping[str, tuple[Path, dict[str, Any]]], request: Request) -> Iterator[BadObject]:
    for path, document in by_split.values():
        known = {image.get("id") for image in document["images"]}
        for annotation in document["annotations"]:
            if annotation.get("image_id") not in known:
                original = {name: value for name, value in annotation.items() if name not in LEFT_OUT}
                where = f"{path.name}, annotation {annotation.get('id')}"
                yield BadObject(where, Reason.IMAGE_ID_UNKNOWN, f"image_id {annotation.get('image_id')}", original)
