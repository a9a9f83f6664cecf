"""COCO: a folder or a JSON file with images, annotations and categories; captions files too."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from qwenft.core.errors import DataError, nearest
from qwenft.prepare.columns import read_boxes
from qwenft.prepare.rows import WHOLE, BadObject, BadRow, PictureFile, RawBox, RawRow, Reason, Request, Row, Source
from qwenft.prepare.sources.cocofile import CocoFile, Original, hashable, holds_captions, looks_like_coco

PLACES: Final = ("*.json", "annotations/*.json", "*/*.json")
"""Where a COCO folder keeps its files: beside the pictures, as COCO itself, or one folder a split."""
SPLIT_WORD: Final = re.compile(r"(?<![a-z])(train|valid|validation|val|test|dev|minival)(?![a-z])")


def matches(path: Path) -> bool:
    """Whether it is a COCO file, or a folder that holds one."""
    return bool(_files(path)) if path.is_dir() else looks_like_coco(path)


def _files(folder: Path) -> list[Path]:
    for pattern in PLACES:
        found = [path for path in sorted(folder.glob(pattern)) if looks_like_coco(path)]
        if found:
            return found
    return []


def open_source(path: Path, request: Request) -> Source:
    """Read the files of the splits asked for and describe the source."""
    files, notes = _of_one_kind(path, _files(path) if path.is_dir() else [path], request)
    documents = {split: CocoFile.read(file) for split, file in _by_split(files, request).items()}
    if request.task == "caption" and not any(document.is_captions for document in documents.values()):
        raise DataError(f"{path} holds no captions", hint=f"qwenft prepare --dataset {path} --task detection")
    root = root_of(path)
    return Source(
        kind="coco captions" if all(document.is_captions for document in documents.values()) else "coco",
        about={"path": str(path.absolute()), "files": [document.path.name for document in documents.values()]},
        splits=tuple(documents),
        rows=lambda: _rows(documents, root, request),
        total=sum(min(len(d.images), request.limit or len(d.images)) for d in documents.values()),
        stated="xywh",
        notes=tuple(notes),
        loose_objects=tuple(_loose(documents)),
    )


def _of_one_kind(path: Path, files: Sequence[Path], request: Request) -> tuple[list[Path], list[str]]:
    """Boxes and captions are two data sets: which files are read, and what is said of the others."""
    captions = [file for file in files if holds_captions(file)] if len(files) > 1 else []
    if request.task == "caption":
        return captions or list(files), []
    if not 0 < len(captions) < len(files):
        return list(files), []
    left = ", ".join(file.name for file in captions)
    note = f"{left} was left alone: qwenft prepare --dataset {captions[0]} takes the captions"
    return [file for file in files if file not in captions], [note]


def root_of(path: Path) -> Path:
    """The folder that a source's pictures must not leave: `annotations/` has its pictures beside itself."""
    if path.is_dir():
        return path
    return path.parent.parent if path.absolute().parent.name == "annotations" else path.parent


def _by_split(files: Sequence[Path], request: Request) -> dict[str, Path]:
    """Name the splits by file or folder; two files of one name are an error."""
    found: dict[str, Path] = {}
    for path in files:
        split = split_of(path) if len(files) > 1 else split_of(path, WHOLE)
        if split in found:
            raise DataError(
                f"{found[split]} and {path} are both split {split!r}", hint=f"qwenft prepare --dataset {path}"
            )
        found[split] = path
    unknown = [name for name in request.splits if name not in found]
    if unknown:
        raise DataError(f"no split {unknown[0]!r} in {', '.join(map(str, files))}", hint=nearest(unknown[0], found))
    return {name: path for name, path in found.items() if not request.splits or name in request.splits}


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


def _rows(documents: Mapping[str, CocoFile], root: Path, request: Request) -> Iterator[Row]:
    for split, document in documents.items():
        folders = _folders(document.path, root)
        seen = set()
        for image in document.images[: request.limit]:
            key, name = hashable(image.get("id")), image.get("file_name")
            where = f"{document.path.name}, image {image.get('id')}"
            if key in seen:
                yield BadRow(split, where, Reason.DUPLICATE_ID, f"image id {key}", image)
                continue
            seen.add(key)
            if not isinstance(name, str) or not name:
                yield BadRow(split, where, Reason.PICTURE_MISSING, "no file_name", image)
                continue
            make = _captions if document.is_captions else _objects
            yield make(document, split, where, PictureFile(name, folders, root), image)


def _declared(image: Mapping[str, Any]) -> tuple[int, int] | None:
    width, height = image.get("width"), image.get("height")
    return (width, height) if isinstance(width, int) and isinstance(height, int) else None


def _captions(document: CocoFile, split: str, where: str, picture: PictureFile, image: dict[str, Any]) -> RawRow:
    numbers = document.annotations.of_image(image.get("id"))
    texts = [(document.annotations.captions or ())[number] for number in numbers]
    bad = tuple(
        BadObject(f"{where}, caption {number}", Reason.CAPTION_EMPTY, "", {"caption": text})
        for number, text in enumerate(texts, 1)
        if not text
    )
    kept, key = tuple(filter(None, texts)), str(image.get("id"))
    return RawRow(split, where, picture, "caption", image, key, _declared(image), None, (), bad, (), kept)


def _objects(document: CocoFile, split: str, where: str, picture: PictureFile, image: dict[str, Any]) -> RawRow:
    boxes: list[RawBox] = []
    bad: list[BadObject] = []
    seen: set[Any] = set()
    for number in document.annotations.of_image(image.get("id")):
        found = _object(document, number, seen)
        boxes += [found] if isinstance(found, RawBox) else []
        bad += [found] if isinstance(found, BadObject) else []
    asked, key = tuple(dict.fromkeys(document.names.values())), str(image.get("id"))
    return RawRow(
        split, where, picture, "detection", image, key, _declared(image), None, tuple(boxes), tuple(bad), asked
    )


def _object(document: CocoFile, number: int, seen: set[Any]) -> RawBox | BadObject:
    """One annotation.  seen: ids of the picture's earlier ones."""
    annotations = document.annotations
    odd = annotations.odd.get(number)
    key = annotations.keys[number] if odd is None else hashable(odd.get("id"))
    where, original = f"annotation {key}", Original(annotations, number)
    if key is not None and key in seen:
        return BadObject(where, Reason.DUPLICATE_ID, f"annotation id {key}", original)
    seen.add(key)
    category = annotations.category_ids[annotations.categories[number]]
    if category not in document.names:
        return BadObject(where, Reason.LABEL_UNKNOWN, f"category_id {category}", original)
    if odd is None:
        numbers: tuple[float, ...] = annotations.box(number)
    else:
        read, _ = read_boxes([odd.get("bbox")], None, (), where)
        if not read:
            return BadObject(where, Reason.BOX_UNREADABLE, str(odd.get("bbox"))[:80], original)
        numbers = read[0].numbers
    return RawBox(numbers, document.names[category], bool(annotations.crowds[number]), where, original)


def _loose(documents: Mapping[str, CocoFile]) -> Iterator[BadObject]:
    """Annotations of pictures that the file does not list."""
    for document in documents.values():
        known = {hashable(image.get("id")) for image in document.images}
        for image_id in (found for found in document.annotations.image_numbers if found not in known):
            for number in document.annotations.of_image(image_id):
                original = document.annotations.original(number)
                where = f"{document.path.name}, annotation {original.get('id')}"
                yield BadObject(where, Reason.IMAGE_ID_UNKNOWN, f"image_id {image_id}", original)
