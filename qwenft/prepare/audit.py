"""What is wrong with a data set as a whole: leaks, contradictions, boxes too small to be seen."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Final

from qwenft.core.boxes import PATCH, Box, Size, iou, smart_resize, to_input_px
from qwenft.core.samples import Sample
from qwenft.prepare.rows import counted
from qwenft.prepare.splits import Overlap, overlaps
from qwenft.prepare.spool import Ledger, tally

MIN_PIXELS: Final = 3136
MAX_PIXELS: Final = 1003520
"""The pixel budget that training uses unless told otherwise."""
ALIKE_BITS: Final = 20
"""Two pictures look the same where at most so many of the 256 bits of their looks differ.

Measured: COCO photos at two thirds of their size and JPEG quality 60 differ from themselves in up to 23 bits; no two of
36 photos in under 92, no two of 124 blood-cell pictures in under 81.
"""
PLAIN_BITS: Final = 24
"""A look with fewer bits set, or unset, is that of a picture with hardly anything in it: it tells nothing."""
BAND_BITS: Final = 16
CROWDED: Final = 200
"""A band shared by more pictures than this is too common to be followed (skies, white backgrounds)."""
SAME_BOX: Final = 0.9
"""IoU from which on two boxes for the same expression are taken for the same."""
SHOWN_LABELS: Final = 200

Splits = Mapping[str, Sequence[Sample]]


@dataclass(frozen=True, slots=True)
class Alike:
    """Two pictures of two splits that look the same without being the same file."""

    one: str
    other: str
    images: tuple[str, str]


@dataclass(frozen=True, slots=True)
class Small:
    """Boxes that are narrower or lower than a patch in the frame of the model."""

    boxes: int
    shrunk: int
    """Of these, in pictures that the budget makes smaller: a larger one would help them."""
    total: int

    def sentence(self) -> str:
        """What there is, and what can be done."""
        text = f"{self.boxes:,} of {self.total:,} boxes are under {PATCH} px in the model's frame"
        rest = self.boxes - self.shrunk
        ways = [f"{self.shrunk:,} in pictures that max_pixels {MAX_PIXELS} shrinks: raise it"] if self.shrunk else []
        ways += [f"{rest:,} in pictures that it leaves: a higher min_pixels enlarges them"] if rest else []
        return f"{text} ({'; '.join(ways)})"


@dataclass(frozen=True, slots=True)
class Audit:
    """Everything found."""

    shared: tuple[Overlap, ...]
    alike: tuple[Alike, ...]
    contradictions: tuple[tuple[str, str], ...]
    """(expression, ids) asked of one picture with different boxes."""
    repeated: int
    """Questions asked again of the same picture."""
    small: Small
    labels: Mapping[str, int]
    spellings: tuple[tuple[str, ...], ...]
    """Labels that differ in case or white space only."""

    def notes(self) -> Iterator[str]:
        """What is worth saying, though nothing may be wrong."""
        if self.labels:
            shown = ", ".join(f"{name} {number:,}" for name, number in list(self.labels.items())[:10])
            more = f" and {len(self.labels) - 10:,} more" if len(self.labels) > 10 else ""
            yield f"{counted(len(self.labels), 'label')}: {shown}{more}"
        if self.small.boxes:
            yield self.small.sentence()

    def warnings(self) -> Iterator[str]:
        """What makes a training worse or a score too good."""
        for shared in self.shared:
            yield (
                f"{counted(shared.pictures, 'picture')} in both {shared.one} and {shared.other} "
                f"({shared.questions:,} with the same question): scores on {shared.other} are too good"
            )
        pairs = Counter((item.one, item.other) for item in self.alike)
        for (one, other), number in pairs.items():
            first = next(item for item in self.alike if (item.one, item.other) == (one, other))
            yield (
                f"{counted(number, 'picture')} of {other} look like one of {one}, e.g. {first.images[1]} like "
                f"{first.images[0]}: if they are the same, scores on {other} are too good"
            )
        if self.contradictions:
            text, ids = self.contradictions[0]
            yield (
                f"{counted(len(self.contradictions), 'expression')} asked twice of a picture with different boxes, "
                f"e.g. {text[:80]!r} ({ids})"
            )
        if self.spellings:
            shown = "; ".join(" = ".join(map(repr, names)) for names in self.spellings[:3])
            one, *_, other = self.spellings[0]
            yield f"labels that differ in case or white space only: {shown}; --rename '{one}={other}' makes two one"

    def checks(self) -> list[dict[str, Any]]:
        """Every check with its result and the numbers behind it."""
        pairs = [
            {"splits": [s.one, s.other], "pictures": s.pictures, "same_question": s.questions} for s in self.shared
        ]
        alike = [{"splits": [a.one, a.other], "images": list(a.images)} for a in self.alike[:50]]
        contradictions = [{"expression": text, "samples": ids} for text, ids in self.contradictions[:50]]
        small = {"boxes": self.small.boxes, "in_shrunk_pictures": self.small.shrunk, "max_pixels": MAX_PIXELS}
        return [
            {"check": "no picture in two splits", "result": result_of(self.shared), "pairs": pairs},
            {
                "check": "no picture that looks like one of another split",
                "result": result_of(self.alike),
                "number": len(self.alike),
                "pairs": alike,
            },
            {
                "check": "no question asked twice of a picture",
                "result": result_of(self.repeated),
                "repeated": self.repeated,
            },
            {
                "check": "no expression with different boxes in one picture",
                "result": result_of(self.contradictions),
                "number": len(self.contradictions),
                "examples": contradictions,
            },
            {
                "check": f"boxes at least {PATCH} px in the model's frame",
                "result": result_of(self.small.boxes),
                **small,
            },
            {
                "check": "labels are spelled in one way",
                "result": result_of(self.spellings),
                "spellings": [list(names) for names in self.spellings[:50]],
                "labels": dict(list(self.labels.items())[:SHOWN_LABELS]),
                "number": len(self.labels),
            },
        ]


def result_of(problem: object) -> str:
    """How a check ended."""
    return "warning" if problem else "ok"


def audit(splits: Splits, looks: Mapping[str, int]) -> Audit:
    """Look at the samples of all splits.  looks: picture's path -> its dhash."""
    seen = _Seen()
    for samples in splits.values():
        for sample in samples:
            seen.add(sample)
    return Audit(
        shared=tuple(overlaps(splits)),
        alike=tuple(alike(splits, looks)),
        contradictions=tuple(seen.contradictions.values()),
        repeated=seen.repeated,
        small=Small(seen.small, seen.shrunk, seen.boxes),
        labels=dict(sorted(seen.labels.items(), key=lambda item: (-item[1], item[0]))),
        spellings=tuple(_spellings(seen.labels)),
    )


def alike(splits: Splits, looks: Mapping[str, int]) -> Iterator[Alike]:
    """Pictures of two splits whose looks differ in at most ALIKE_BITS; each picture of the later split once.

    Looks that differ in fewer bits than there are bands share one, and nearly all do that differ in a few more: only
    those are compared.
    """
    homes: dict[str, set[str]] = defaultdict(set)
    for split, samples in splits.items():
        for image in tally(samples).images:
            homes[image].add(split)
    bands: dict[tuple[int, int], list[str]] = defaultdict(list)
    telling = [image for image in homes if PLAIN_BITS <= looks[image].bit_count() <= 256 - PLAIN_BITS]
    for image in telling:
        for band in _bands(looks[image]):
            bands[band].append(image)
    order = {split: number for number, split in enumerate(splits)}
    found: dict[tuple[str, str, str], Alike] = {}
    for members in bands.values():
        for one, other in combinations(members, 2) if 1 < len(members) <= CROWDED else ():
            if homes[one] == homes[other] and len(homes[one]) == 1:
                continue
            if (looks[one] ^ looks[other]).bit_count() > ALIKE_BITS:
                continue
            for first, second, images in _pairs(homes, order, one, other):
                found.setdefault((first, second, images[1]), Alike(first, second, images))
    yield from found.values()


def _bands(look: int) -> Iterator[tuple[int, int]]:
    for number in range(256 // BAND_BITS):
        value = (look >> (number * BAND_BITS)) & ((1 << BAND_BITS) - 1)
        if value not in (0, (1 << BAND_BITS) - 1):
            yield number, value


def _pairs(
    homes: Mapping[str, set[str]], order: Mapping[str, int], one: str, other: str
) -> Iterator[tuple[str, str, tuple[str, str]]]:
    """The pairs of splits in which two pictures stand, the earlier one first."""
    for first in homes[one]:
        for second in homes[other]:
            if order[first] < order[second]:
                yield first, second, (one, other)
            elif order[first] > order[second]:
                yield second, first, (other, one)


@dataclass
class _Seen:
    """Samples looked at one by one."""

    labels: Counter[str] = field(default_factory=Counter)
    contradictions: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)
    repeated: int = 0
    small: int = 0
    shrunk: int = 0
    boxes: int = 0
    _asked: Ledger = field(default_factory=Ledger)
    """(picture, question) -> who asked it first, with which boxes."""
    _input_wh: dict[Size, Size] = field(default_factory=dict)

    def add(self, sample: Sample) -> None:
        if sample.query:
            self._look_at_question(sample, sample.query)
        if sample.task == "detection":
            self.labels.update(item.label for item in sample.objects)
        wh = sample.image_wh
        if wh not in self._input_wh:
            self._input_wh[wh] = smart_resize(wh, MIN_PIXELS, MAX_PIXELS)
        for item in sample.objects:
            x1, y1, x2, y2 = to_input_px(item.bbox, wh, self._input_wh[wh])
            self.boxes += 1
            if min(x2 - x1, y2 - y1) < PATCH:
                self.small += 1
                self.shrunk += wh[0] * wh[1] > MAX_PIXELS

    def _look_at_question(self, sample: Sample, query: str) -> None:
        folded = " ".join(query.casefold().split())
        boxes = [item.bbox for item in sample.objects]
        first = self._asked.keep(sample.image, folded, value=json.dumps([sample.id, query, boxes]))
        if first is not None:
            first_id, first_query, first_boxes = json.loads(first)
            self.repeated += query == first_query or self._asked.keep(sample.image, query, "as it is") is not None
            if not _agree(first_boxes, boxes):
                self.contradictions.setdefault((sample.image, folded), (first_query, f"{first_id}, {sample.id}"))


def _agree(one: Sequence[Box], other: Sequence[Box]) -> bool:
    return len(one) == len(other) and all(max((iou(box, b) for b in other), default=0) >= SAME_BOX for box in one)


def _spellings(labels: Mapping[str, int]) -> Iterator[tuple[str, ...]]:
    same: dict[str, list[str]] = defaultdict(list)
    for label in labels:
        same[" ".join(label.casefold().replace("_", " ").split())].append(label)
    yield from (tuple(sorted(names)) for names in same.values() if len(names) > 1)
