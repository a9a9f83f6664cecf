"""What `prepare` was asked to do, apart from the source, and which of it cannot be."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from qwenft.core.boxes import CONVENTIONS
from qwenft.core.errors import UsageError, nearest
from qwenft.prepare import exports
from qwenft.prepare.questions import Wanted
from qwenft.prepare.survey import Frame

MOST_MADE: Final = 100
"""Negatives for each question with an answer; questions about some of the categories for each about all."""
FRAMES: Final[Mapping[str, Frame | None]] = {"auto": None, "upright": "upright", "stored": "stored"}


@dataclass(frozen=True, slots=True)
class Options:
    """What `prepare` was asked to do, apart from the source."""

    bbox_format: str | None = None
    exif: Frame | None = None
    val_fraction: float = 0.1
    seed: int = 0
    clip: bool = False
    follow_links: bool = False
    output_format: str = "jsonl"
    preview: int = 8
    command: str = ""
    export: tuple[str, ...] = ()
    num_proc: int = 1
    wanted: Wanted = field(default_factory=Wanted)
    rename: Mapping[str, str] = field(default_factory=dict)
    earlier: Path | None = None
    """A prepared data set that is being replaced: its pictures need not be decoded again."""


def check_counts(dataset: str, *, limit: int | None, num_proc: int, preview: int) -> None:
    """Refuse numbers that are too small.  Raises UsageError."""
    for option, value, least in (("limit", limit, 1), ("num-proc", num_proc, 1), ("preview", preview, 0)):
        if value is not None and value < least:
            hint = f"qwenft prepare --dataset {dataset} --{option} {least}"
            raise UsageError(f"'--{option}' must be at least {least}, got {value}", hint=hint)


def check_choices(val_fraction: float, output_format: str, exif: str, forms: Sequence[str]) -> None:
    """Refuse a value that is none of those there are.  Raises UsageError that names the nearest."""
    if not 0 <= val_fraction < 1:
        raise UsageError(f"--val-fraction must be from 0 to under 1, got {val_fraction}", hint="--val-fraction 0.1")
    if output_format not in ("jsonl", "json"):
        raise UsageError(f"unknown format {output_format!r}", hint=nearest(output_format, ("jsonl", "json")))
    if exif not in FRAMES:
        raise UsageError(f"unknown --exif {exif!r}", hint=nearest(exif, FRAMES))
    for form in forms:
        if form not in exports.FORMS:
            raise UsageError(f"unknown --export {form!r}", hint=nearest(form, exports.FORMS))


def wanted_questions(negatives: float, subsets: float, seed: int, *, unproved: bool) -> Wanted:
    """What is to be made.  Raises UsageError for an impossible number."""
    for name, ratio in (("negatives", negatives), ("subsets", subsets)):
        if not 0 <= ratio <= MOST_MADE:
            raise UsageError(f"--{name} must be from 0 to {MOST_MADE}, got {ratio}", hint=f"--{name} 0.5")
    if unproved and not negatives:
        raise UsageError("--negatives-unproved without --negatives makes none", hint="--negatives 0.5")
    return Wanted(negatives, unproved, subsets, seed)


def known_bbox_format(text: str) -> str | None:
    """The convention named; None where it is to be found out.  Raises UsageError that names the nearest."""
    if text == "auto":
        return None
    if text not in CONVENTIONS:
        raise UsageError(f"unknown --bbox-format {text!r}", hint=nearest(text, ("auto", *CONVENTIONS)))
    return text
