"""A COCO file read once, as a stream: its pictures as they are listed, its annotations packed into arrays."""

import sys
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from qwenft.core.errors import DataError
from qwenft.core.files import read_members

LEFT_OUT: Final = frozenset({"segmentation", "keypoints"})
"""Long values of an annotation that are not kept, not even for rejected.jsonl."""
MAX_INT: Final = 2**63 - 1
NO_BOX: Final = (0.0, 0.0, 0.0, 0.0)
LOOKED_AT: Final = ("images", "annotations", "categories")


def looks_like_coco(path: Path) -> bool:
    """Tell a COCO file by its keys and by the first items behind them, without reading it whole."""
    if path.suffix.lower() != ".json" or not path.is_file() or not _is_object(path):
        return False
    seen = set()
    try:
        for key, value in read_members(path):
            if not isinstance(value, Iterator):
                continue
            seen.add(key)
            first = next(value, None)
            if key == "images" and first is not None:
                return _is_listed(first)
            if key == "annotations" and first is not None:
                return isinstance(first, dict) and "image_id" in first
    except DataError:  # broken further on: if it began as COCO, its reader says where
        return "categories" in seen or {"images", "annotations"} <= seen
    return {"images", "annotations"} <= seen


def _is_listed(image: Any) -> bool:
    """Whether it is an entry of COCO's list of pictures, or the picture of one record of another tool."""
    return bool({"id", "file_name"} & image.keys()) if isinstance(image, dict) else not isinstance(image, str)


def _is_object(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{"


def holds_captions(path: Path) -> bool:
    """Whether the first annotation is a caption (a file without annotations is detection without objects)."""
    for key, value in read_members(path):
        if key == "annotations" and isinstance(value, Iterator):
            first = next(value, None)
            return isinstance(first, dict) and "caption" in first
    return False


@dataclass
class Annotations:
    """The annotations of a file in 50 bytes each; as dicts with their outlines those of COCO's train2017 take 6 GB.

    Number n is the n-th of the file.  What does not fit the arrays is kept as it is, in `odd`.
    """

    keys: "array[int]" = field(default_factory=lambda: array("q"))
    """id; 0 where it is odd."""
    images: "array[int]" = field(default_factory=lambda: array("i"))
    """Its picture, numbered in the order in which picture ids were first met."""
    categories: "array[int]" = field(default_factory=lambda: array("i"))
    """Its category, numbered likewise."""
    boxes: "array[float]" = field(default_factory=lambda: array("d"))
    """Four numbers each."""
    crowds: bytearray = field(default_factory=bytearray)
    captions: list[str] | None = None
    """One each where the first annotation is a caption."""
    odd: dict[int, dict[str, Any]] = field(default_factory=dict)
    image_numbers: dict[Any, int] = field(default_factory=dict)
    category_numbers: dict[Any, int] = field(default_factory=dict)

    def add(self, value: dict[str, Any]) -> None:
        """Take one annotation in."""
        if not self.keys and "caption" in value:
            self.captions = []
        key, box = value.get("id"), value.get("bbox")
        fits = type(key) is int and abs(key) <= MAX_INT
        if self.captions is not None:
            self.captions.append(str(value.get("caption") or "").strip())
        else:
            fits = fits and _is_box(box)
        self.images.append(number_of(value.get("image_id"), self.image_numbers))
        self.categories.append(number_of(value.get("category_id"), self.category_numbers))
        if not fits:
            self.odd[len(self.keys)] = {name: item for name, item in value.items() if name not in LEFT_OUT}
        self.keys.append(key if fits and key is not None else 0)
        self.boxes.extend(box if fits and isinstance(box, list) and self.captions is None else NO_BOX)
        self.crowds.append(bool(value.get("iscrowd")))

    def of_image(self, image_id: Any) -> list[int]:
        """Numbers of a picture's annotations, in the order of the file."""
        number = self.image_numbers.get(hashable(image_id))
        if number is None:
            return []
        order, starts = self._by_image
        found: list[int] = order[starts[number] : starts[number + 1]].tolist()
        return found

    @cached_property
    def _by_image(self) -> tuple[Any, Any]:
        import numpy as np

        images = np.frombuffer(self.images, dtype=np.int32) if self.images else np.empty(0, np.int32)
        counts = np.bincount(images, minlength=len(self.image_numbers))
        starts = np.concatenate(([0], np.cumsum(counts)))
        return np.argsort(images, kind="stable").astype(np.int32), starts

    @cached_property
    def image_ids(self) -> list[Any]:
        """Picture ids by their numbers."""
        return list(self.image_numbers)

    @cached_property
    def category_ids(self) -> list[Any]:
        """Category ids by their numbers."""
        return list(self.category_numbers)

    def box(self, number: int) -> tuple[float, float, float, float]:
        """x, y, width, height."""
        x, y, width, height = self.boxes[4 * number : 4 * number + 4]
        return (x, y, width, height)

    def original(self, number: int) -> dict[str, Any]:
        """The annotation as it stood in the file, as far as it was read."""
        if number in self.odd:
            return self.odd[number]
        found = {"id": self.keys[number], "image_id": self.image_ids[self.images[number]]}
        if self.captions is not None:
            return found | {"caption": self.captions[number]}
        found |= {"category_id": self.category_ids[self.categories[number]], "bbox": list(self.box(number))}
        return found | {"iscrowd": self.crowds[number]}


def _is_box(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 4:
        return False
    return all(type(n) is float or (type(n) is int and abs(n) <= MAX_INT) for n in value)


def hashable(value: Any) -> Any:
    """An id as a key: what cannot be one is told by how it is written."""
    return value if value is None or isinstance(value, (int, float, str)) else repr(value)


def number_of(value: Any, numbers: dict[Any, int]) -> int:
    """The number of an id, given out in the order in which they are met."""
    return numbers.setdefault(hashable(value), len(numbers))


class Original(Mapping[str, Any]):
    """An annotation that is put together only when someone looks: most are never rejected."""

    __slots__ = ("_annotations", "_number")

    def __init__(self, annotations: Annotations, number: int) -> None:
        self._annotations, self._number = annotations, number

    def __getitem__(self, key: str) -> Any:
        return self._annotations.original(self._number)[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._annotations.original(self._number))

    def __len__(self) -> int:
        return len(self._annotations.original(self._number))

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[dict[str, Any]]]:
        """Written down, it is the annotation alone, without all the others of its file."""
        return (dict, (self._annotations.original(self._number),))


@dataclass(frozen=True)
class CocoFile:
    """What a COCO file holds."""

    path: Path
    images: list[dict[str, Any]]
    names: Mapping[Any, str]
    """Category id -> name; ids may have holes."""
    annotations: Annotations

    @property
    def is_captions(self) -> bool:
        """Whether its annotations are captions."""
        return self.annotations.captions is not None

    @classmethod
    def read(cls, path: Path) -> "CocoFile":
        """Read a file to its end.  Raises DataError with the place where it is broken or not COCO."""
        images: list[dict[str, Any]] = []
        names: dict[Any, str] = {}
        annotations, seen = Annotations(), set()
        for key, value in read_members(path):
            if key not in LOOKED_AT:
                continue
            seen.add(key)
            for item in value if isinstance(value, Iterator) else (value,):
                if not isinstance(value, Iterator) or not isinstance(item, dict):
                    raise DataError(f"{path} looks like COCO, but its {key!r} is no list of objects")
                if key == "images":
                    images.append({sys.intern(name): found for name, found in item.items()})
                elif key == "annotations":
                    annotations.add(item)
                elif item.get("name"):
                    names[hashable(item.get("id"))] = str(item["name"])
        missing = {"images", "annotations"} - seen
        if missing:
            raise DataError(f"{path} looks like COCO, but it has no {sorted(missing)[0]!r}")
        return cls(path, images, names, annotations)
