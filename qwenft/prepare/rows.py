"""Raw rows as every source yields them, and the reasons for which one is not taken."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from qwenft.core.answer import Task
from qwenft.core.boxes import CONVENTIONS, Size

WHOLE = "all"
"""Name of the split of a source that names none."""


def counted(number: int, word: str, several: str = "") -> str:
    """A number and its noun.

    >>> counted(1, "picture"), counted(4896, "box", "boxes")
    ('1 picture', '4,896 boxes')
    """
    return f"{number:,} {word if number == 1 else several or word + 's'}"


class Reason(StrEnum):
    """Why a row or an object stands in rejected.jsonl; the text for people is in EXPLANATIONS."""

    PICTURE_MISSING = "picture-missing"
    PICTURE_EMPTY = "picture-empty"
    PICTURE_NOT_ONE = "picture-not-a-picture"
    PICTURE_BROKEN = "picture-broken"
    PICTURE_TOO_LARGE = "picture-too-large"
    PICTURE_TOO_THIN = "picture-too-thin"
    PICTURE_DEPTH = "picture-depth"
    PICTURE_OUTSIDE = "picture-outside-folder"
    PICTURE_REMOTE = "picture-remote"
    PICTURE_SEVERAL = "picture-several"
    SIZE_DIFFERS = "size-differs"
    ORIENTATION_UNDECIDED = "orientation-undecided"
    QUERY_EMPTY = "expression-empty"
    CAPTION_EMPTY = "caption-empty"
    TEXT_BROKEN = "text-broken"
    BOX_ABSENT = "box-absent"
    BOX_UNREADABLE = "box-unreadable"
    BOX_NOT_FINITE = "box-not-finite"
    BOX_REVERSED = "box-reversed"
    BOX_FLAT = "box-flat"
    BOX_OUTSIDE = "box-outside"
    LABEL_UNKNOWN = "label-unknown"
    IMAGE_ID_UNKNOWN = "image-id-unknown"
    DUPLICATE_ID = "duplicate-id"
    ROW_UNREADABLE = "row-unreadable"
    ROW_UNSAFE = "row-unsafe"
    ANNOTATION_MISSING = "annotation-missing"
    ANNOTATION_UNKNOWN = "annotation-unknown"


EXPLANATIONS: Mapping[Reason, str] = {
    Reason.PICTURE_MISSING: "the picture is not there",
    Reason.PICTURE_EMPTY: "the picture has 0 bytes",
    Reason.PICTURE_NOT_ONE: "the file is no picture, whatever its name says",
    Reason.PICTURE_BROKEN: "the picture cannot be decoded to its end",
    Reason.PICTURE_TOO_LARGE: "the picture has more pixels than are decoded here",
    Reason.PICTURE_TOO_THIN: "one side is over 200 times the other, which the model refuses",
    Reason.PICTURE_DEPTH: "the picture's numbers have no agreed brightness (32-bit or float)",
    Reason.PICTURE_OUTSIDE: "the picture's path leaves the data set's folder",
    Reason.PICTURE_REMOTE: "the picture is an address; nothing is downloaded from rows",
    Reason.PICTURE_SEVERAL: "the row has several pictures",
    Reason.SIZE_DIFFERS: "the size given with the row is not the picture's",
    Reason.ORIENTATION_UNDECIDED: "the picture is stored turned and nothing says which way its boxes are meant",
    Reason.QUERY_EMPTY: "the expression is empty",
    Reason.CAPTION_EMPTY: "there is no caption",
    Reason.TEXT_BROKEN: "a text holds half of a character (a lone surrogate), which no UTF-8 file can hold",
    Reason.BOX_ABSENT: "the row has no box column (null or [] would mean: not in the picture)",
    Reason.BOX_UNREADABLE: "the box is not four numbers",
    Reason.BOX_NOT_FINITE: "the box holds NaN or infinity",
    Reason.BOX_REVERSED: "the box ends before it starts",
    Reason.BOX_FLAT: "the box has no area",
    Reason.BOX_OUTSIDE: "the box leaves the picture",
    Reason.LABEL_UNKNOWN: "the object's category is not known",
    Reason.IMAGE_ID_UNKNOWN: "the object belongs to no picture of the file",
    Reason.DUPLICATE_ID: "an earlier one has the same id",
    Reason.ROW_UNREADABLE: "the row does not have the form of its file",
    Reason.ROW_UNSAFE: "the file defines entities, with which a few bytes can fill a machine's memory",
    Reason.ANNOTATION_MISSING: "the picture has no annotation, which is not the same as nothing to be found in it",
    Reason.ANNOTATION_UNKNOWN: "the expression means an annotation that is not in the file",
}


@dataclass(frozen=True, slots=True)
class PictureFile:
    """A picture named by a row: where it may lie, and the folder it must not leave."""

    name: str
    folders: tuple[Path, ...]
    """Tried in this order."""
    within: Path


@dataclass(frozen=True, slots=True)
class RawBox:
    """One box as the source has it."""

    numbers: tuple[float, ...]
    """In the source's own convention and frame; how many and how sound is not yet checked."""
    label: str = ""
    crowd: bool = False
    where: str = ""
    original: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class BadObject:
    """An object that cannot be one; its picture may still be a sample."""

    where: str
    reason: Reason
    detail: str
    original: Mapping[str, Any]


def parted(objects: Iterable[RawBox | BadObject]) -> tuple[tuple[RawBox, ...], tuple[BadObject, ...]]:
    """The boxes of a picture, and what is none."""
    found = list(objects)
    boxes = tuple(item for item in found if isinstance(item, RawBox))
    return boxes, tuple(item for item in found if isinstance(item, BadObject))


@dataclass(frozen=True, slots=True)
class RawRow:
    """One question about one picture, as the source has it."""

    split: str
    where: str
    """file and line, row or annotation."""
    picture: bytes | PictureFile
    task: Task
    original: Mapping[str, Any]
    key: str | None = None
    """The row's own id, where the source has one."""
    declared_wh: Size | None = None
    query: str | None = None
    boxes: tuple[RawBox, ...] = ()
    bad_objects: tuple[BadObject, ...] = ()
    categories: tuple[str, ...] | None = None
    """What was asked for; None: every label of the data set.  Beside an expression: what `around` is complete for."""
    captions: tuple[str, ...] = ()
    around: tuple[RawBox, ...] | None = None
    """Every object in an expression's picture, where the source has them all."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be a sample, whatever its picture and its data set look like."""

    split: str
    where: str
    reason: Reason
    detail: str
    original: Mapping[str, Any]


Row = RawRow | BadRow


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asked of a source."""

    splits: tuple[str, ...] = ()
    """Only these; empty: all."""
    limit: int | None = None
    """The first so many rows of each split."""
    task: Task | None = None
    """None: found out."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """role -> column, where the guess is wrong."""


@dataclass(frozen=True, slots=True)
class Source:
    """A source that was recognized and can be read once."""

    kind: str
    about: Mapping[str, Any]
    """For the manifest: path or hub id, revision."""
    splits: tuple[str, ...]
    """In the source's own words, in its order."""
    rows: Callable[[], Iterable[Row]]
    total: int | None = None
    """How many rows `rows` yields, where that is known before."""
    stated: str | None = None
    """The bbox convention that the format itself defines."""
    readings: Sequence[str] = tuple(CONVENTIONS)
    """The bbox conventions that can occur in this format."""
    notes: tuple[str, ...] = ()
    loose_objects: tuple[BadObject, ...] = ()
    """Objects that belong to no row."""
