"""What each split is for: something to train on and something held out, divided by picture; pure."""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from typing import Final

from qwenft.core.samples import Role, Sample, picture_of
from qwenft.prepare.rows import WHOLE, counted
from qwenft.prepare.spool import Samples, tally

Keep = Callable[[Iterable[Sample]], list[Sample] | Samples]

NAMES: Final[Mapping[str, str]] = {
    "training": "train",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "minival": "val",
}
"""Other words for the same split."""
TAKEN: Final = ("rejected", "manifest")
"""Stems of files that a prepared data set has already."""
BENCHMARKS: Final = ("refcoco", "refcoco+", "refcocog", "refcocoplus", "refcoco-m")
"""Published test beds: whoever trains on their val or test must say so."""


@dataclass(frozen=True, slots=True)
class Division:
    """The splits as they are written, in order."""

    samples: Mapping[str, Sequence[Sample]]
    roles: Mapping[str, Role]
    notes: tuple[str, ...]


def file_name_of(split: str) -> str:
    """The split's name as the stem of its file: a data set's own words may not lead out of the folder.

    >>> file_name_of("test-A"), file_name_of("../../etc"), file_name_of("rejected")
    ('test-A', 'etc', 'rejected-rows')
    """
    plain = re.sub(r"[^\w.-]+", "-", split).strip(".-")[:80] or "split"
    return f"{plain}-rows" if plain.lower() in TAKEN else plain


def role_of(name: str) -> Role:
    """What a split of this name is for.

    >>> role_of("train"), role_of("val"), role_of("testA")
    ('train', 'held-out', 'test')
    """
    if name == "train":
        return "train"
    return "test" if name.lower().startswith("test") else "held-out"


def divide(
    by_split: Mapping[str, Sequence[Sample]],
    *,
    val_fraction: float,
    seed: int,
    source: str,
    keep: Keep = list,
) -> Division:
    """Give every data set a split to train on and one held out.

    by_split: samples by the source's split names.  A source without one of the two has one of its splits divided by
    picture: `val_fraction` of the pictures to `val`, the rest to `train`.  The same seed gives the same division.
    keep: how samples are held, in memory or on the disk.
    """
    filled: dict[str, Sequence[Sample]] = {}
    for name, samples in by_split.items():
        if samples:
            key = file_name_of(NAMES.get(name.lower(), name))
            filled[key] = keep(chain(filled[key], samples)) if key in filled else samples
    roles = {name: role_of(name) for name in filled}
    notes: list[str] = []
    parent = _to_divide(filled, roles)
    if parent is not None:
        train, held = _by_picture(filled[parent], val_fraction, seed, keep)
        notes += _division_notes(parent, train, held, filled, source)
        others = {name: samples for name, samples in filled.items() if name != parent}
        filled = {"train": train, **({"val": held} if held else {}), **others}
        roles = {name: role_of(name) for name in filled}
    return Division(_ordered(filled), roles, tuple(notes))


def _to_divide(filled: Mapping[str, Sequence[Sample]], roles: Mapping[str, Role]) -> str | None:
    """The split that must give both train and held-out samples; None where the source has both."""
    held = [name for name in filled if roles[name] == "held-out"]
    if "train" in filled:
        return None if held else "train"
    return held[0] if held else next(iter(filled), None)


def _by_picture(
    samples: Sequence[Sample], val_fraction: float, seed: int, keep: Keep
) -> tuple[Sequence[Sample], Sequence[Sample]]:
    pictures = sorted(map(picture_of, tally(samples).images), key=lambda name: _lot(name, seed))
    count = round(val_fraction * len(pictures))
    if val_fraction > 0 and len(pictures) > 1:
        count = min(max(count, 1), len(pictures) - 1)
    chosen = set(pictures[:count])
    train, held = keep(()), keep(())
    for sample in samples:
        (held if sample.picture in chosen else train).append(sample)
    return train, held


def _lot(picture: str, seed: int) -> str:
    """A picture's place in the draw hangs on itself and the seed only, not on what else is in the data set."""
    return hashlib.sha256(f"{seed}/{picture}".encode()).hexdigest()


def _division_notes(
    parent: str, train: Sequence[Sample], held: Sequence[Sample], filled: Mapping[str, Sequence[Sample]], source: str
) -> list[str]:
    lacks = "no split of its own" if parent == WHOLE else "no train split" if parent != "train" else "no held-out split"
    others = [name for name in filled if name != parent]
    left = f"; {', '.join(others)} left alone" if others else ""
    whole = "the rows" if parent == WHOLE else parent
    notes = [
        f"the source has {lacks}: {whole} divided by picture into train ({counted(len(train), 'sample')}) and "
        f"val ({len(held):,}){left}"
    ]
    if not held:
        notes.append("nothing is held out: there is too little to divide, or --val-fraction is 0")
    if any(source.lower().split("/")[-1].startswith(name) for name in BENCHMARKS) and parent != "train":
        notes.append(
            f"{source} is a benchmark and {parent} one of its published splits: scores on {parent} cannot be compared "
            "with published ones once it was trained on"
        )
    return notes


def _ordered(splits: Mapping[str, Sequence[Sample]]) -> dict[str, Sequence[Sample]]:
    first = [name for name in ("train", "val") if name in splits]
    return {name: splits[name] for name in (*first, *(name for name in splits if name not in first))}


@dataclass(frozen=True, slots=True)
class Overlap:
    """Two splits that share pictures."""

    one: str
    other: str
    pictures: int
    questions: int
    """Same picture and same expression."""


def overlaps(splits: Mapping[str, Sequence[Sample]]) -> list[Overlap]:
    """Find the pairs of splits in which the same picture (by content) stands."""
    images = {name: tally(samples).images.keys() for name, samples in splits.items()}
    found = []
    for one, other in combinations(splits, 2):
        shared = images[one] & images[other]
        if shared:
            asked, again = ({(s.image, s.query) for s in splits[name] if s.image in shared} for name in (one, other))
            found.append(Overlap(one, other, len(shared), len(asked & again)))
    return found
