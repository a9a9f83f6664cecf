"""Which convention a data set's boxes follow, found by refutation, with the evidence; pure.

Rules: x2 <= x1 or y2 <= y1 refutes corners; a box that leaves its picture by more than 1 px refutes the reading;
numbers that are all at most 1 refute pixels.  One dirty row must not decide, so a reading stays possible while it fails
on hardly more rows than the best one, and where more than one stays possible the user is asked.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from qwenft.core.boxes import CONVENTIONS, Box, Size, to_xyxy
from qwenft.core.errors import DataError
from qwenft.core.events import printable
from qwenft.prepare.rows import counted

TOLERANCE_PX: Final = 1.0
"""How far a box may leave its picture: annotation tools round and some count from 1."""
DIRTY_SHARE: Final = 0.02
"""A rival must fail on this share of the boxes more than the best reading (and on one at least) to be refuted."""
MIN_FIT: Final = 0.8
"""The best reading must fit at least this share of the boxes."""


@dataclass(frozen=True, slots=True)
class Observed:
    """Four finite numbers of the source, the size of their picture and where they stood."""

    numbers: Box
    image_wh: Size
    where: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """How one reading fares on the whole data set."""

    reading: str
    fits: int
    refuted: int
    example: str = ""
    """The first row that refutes it, and how."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The reading taken, and why."""

    convention: str
    how: str
    """`found by refutation`, or who said so."""
    boxes: int
    evidence: tuple[Evidence, ...]

    def sentence(self) -> str:
        """The evidence as it is said aloud."""
        by_name = {item.reading: item for item in self.evidence}
        chosen = by_name[self.convention]
        parts = [f"{self.convention}: {chosen.fits:,} of {self.boxes:,} boxes fit ({self.how})"]
        rivals = sorted((e for e in self.evidence if e.reading != self.convention and e.refuted), key=_failures)
        parts += [f"{e.reading} is refuted by {e.refuted:,}, e.g. {e.example}" for e in rivals[:2]]
        return "; ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """As it stands in the manifest."""
        table = {
            item.reading: {"fits": item.fits, "refuted": item.refuted, "example": item.example}
            for item in self.evidence
        }
        return {"convention": self.convention, "how": self.how, "boxes": self.boxes, "readings": table}


def _failures(item: Evidence) -> int:
    return item.refuted


def fits(numbers: Box, reading: str, image_wh: Size) -> bool:
    """Whether a reading of four finite numbers gives a box of the picture."""
    x1, y1, x2, y2 = CONVENTIONS[reading](numbers, image_wh)
    width, height = image_wh
    if not (-TOLERANCE_PX <= x1 < x2 <= width + TOLERANCE_PX and -TOLERANCE_PX <= y1 < y2 <= height + TOLERANCE_PX):
        return False
    return not _too_small(numbers, reading)


def _too_small(numbers: Box, reading: str) -> bool:
    return not reading.endswith("_norm") and max(numbers) <= 1 and min(numbers) >= -1


def misfit(numbers: Box, reading: str, image_wh: Size) -> str:
    """Say how four finite numbers refute a reading; empty where they fit.

    >>> misfit((10, 20, 5, 50), "xyxy", (100, 100)), misfit((10, 20, 5, 50), "xywh", (100, 100))
    ('x2 <= x1', '')
    """
    if _too_small(numbers, reading):
        return "all numbers are at most 1"
    x1, y1, x2, y2 = CONVENTIONS[reading](numbers, image_wh)
    width, height = image_wh
    for bad, why in (
        (x2 <= x1, "x2 <= x1"),
        (y2 <= y1, "y2 <= y1"),
        (x1 < -TOLERANCE_PX, f"x1 = {x1:g} is left of the picture"),
        (y1 < -TOLERANCE_PX, f"y1 = {y1:g} is above the picture"),
        (x2 > width + TOLERANCE_PX, f"x2 = {x2:g} in a picture {width} px wide"),
        (y2 > height + TOLERANCE_PX, f"y2 = {y2:g} in a picture {height} px high"),
    ):
        if bad:
            return why
    return ""


class Weighed(NamedTuple):
    """What the boxes say of each reading."""

    boxes: int
    evidence: tuple[Evidence, ...]
    beyond: float
    """How many of them would pass the sides of their pictures if they were spread over a frame of 1000."""


def weigh(observed: Iterable[Observed], readings: Iterable[str]) -> Weighed:
    """Count for each reading how many boxes fit and how many refute it."""
    refuted, examples = dict.fromkeys(readings, 0), dict.fromkeys(readings, "")
    boxes, beyond = 0, 0.0
    for item in observed:
        boxes += 1
        width, height = item.image_wh
        beyond += 1 - min(1, width / 1000) * min(1, height / 1000)
        for reading in refuted:
            if not fits(item.numbers, reading, item.image_wh):
                refuted[reading] += 1
                if not examples[reading]:
                    why = misfit(item.numbers, reading, item.image_wh)
                    examples[reading] = f"{printable(item.where)}: {_numbers(item.numbers)}, {why}"
    evidence = tuple(Evidence(name, boxes - bad, bad, examples[name]) for name, bad in refuted.items())
    return Weighed(boxes, evidence, beyond)


def decide(observed: Iterable[Observed], readings: Sequence[str] = tuple(CONVENTIONS)) -> Verdict:
    """Find the one reading that the boxes leave.  observed: can be read more than once.

    Raises DataError where none fits, and where more than one is left: it then shows three rows under each and the
    option to type.  Needs at least one box (ValueError).
    """
    weighed = weigh(observed, readings)
    if not weighed.boxes:
        raise ValueError("no boxes to decide by")
    candidates = _candidates(weighed)
    best = min(item.refuted for item in candidates)
    if best > (1 - MIN_FIT) * weighed.boxes:
        raise DataError(_none_fits(weighed), hint=f"--bbox-format {_fittest(weighed.evidence).reading}")
    margin = max(1, math.ceil(DIRTY_SHARE * weighed.boxes))
    left = [item.reading for item in candidates if item.refuted < best + margin]
    if len(left) > 1 and not _same_boxes(left, observed):
        text = _undecided(left, observed, weighed.boxes)
        raise DataError(text, hint=" or ".join(f"--bbox-format {name}" for name in left))
    return Verdict(left[0], "found by refutation", weighed.boxes, weighed.evidence)


def confirm(
    observed: Iterable[Observed], stated: str, by: str, readings: Sequence[str] = tuple(CONVENTIONS)
) -> Verdict:
    """Check a stated convention.  Raises DataError where the boxes refute it and fit another one."""
    boxes, evidence, _ = weigh(observed, dict.fromkeys((stated, *readings)))
    mine = next(item for item in evidence if item.reading == stated)
    rival = _fittest(evidence)
    if mine.fits < MIN_FIT * boxes and rival.fits >= MIN_FIT * boxes:
        raise DataError(
            f"the boxes should be {stated} ({by}), but only {mine.fits:,} of {boxes:,} fit that, "
            f"e.g. {mine.example}; {rival.fits:,} fit {rival.reading}",
            hint=f"--bbox-format {rival.reading}, or --bbox-format {stated} to insist",
        )
    return Verdict(stated, f"stated by {by}", boxes, evidence)


def obey(observed: Iterable[Observed], convention: str) -> Verdict:
    """Take what the user said, and count how well it fits."""
    boxes, evidence, _ = weigh(observed, dict.fromkeys((convention, *CONVENTIONS)))
    return Verdict(convention, "given with --bbox-format", boxes, evidence)


def _fittest(evidence: Sequence[Evidence]) -> Evidence:
    return min(evidence, key=_failures)


def _candidates(weighed: Weighed) -> list[Evidence]:
    """All readings, but 0-1000 only where the numbers look like it.

    Under 0-1000 nearly anything fits, so no dirty row ever speaks against it.  But boxes spread over a frame of 1000
    would pass the sides of a smaller picture about as often as that frame passes the picture: where they hardly do, the
    numbers are pixels.
    """
    pixels = next((item for item in weighed.evidence if item.reading == "xyxy"), None)
    if pixels is None or weighed.beyond < 0.5 or pixels.refuted >= weighed.beyond / 2:
        return list(weighed.evidence)
    return [item for item in weighed.evidence if item.reading != "xyxy_1000"]


def _same_boxes(readings: Sequence[str], observed: Iterable[Observed]) -> bool:
    """Whether the readings left give the same boxes, so that nothing hangs on the choice."""
    return all(
        math.dist(to_xyxy(item.numbers, readings[0], item.image_wh), to_xyxy(item.numbers, name, item.image_wh)) < 1e-6
        for item in observed
        for name in readings[1:]
    )


def _none_fits(weighed: Weighed) -> str:
    lines = [f"no bbox convention fits the {weighed.boxes:,} boxes:"]
    lines += [f"  {e.reading}: {e.fits:,} fit; refuted by {e.example}" for e in sorted(weighed.evidence, key=_failures)]
    lines.append(
        "Were the pictures resized after the boxes were drawn? --bbox-format takes what fits and rejects the rest."
    )
    return "\n".join(lines)


def _undecided(left: Sequence[str], observed: Iterable[Observed], total: int) -> str:
    boxes, names = counted(total, "box", "boxes"), ", ".join(left)
    lines = [f"{boxes} fit more than one convention ({names}). Look at three rows under each:"]
    shown: dict[Box, Observed] = {}
    for item in observed:
        shown.setdefault(item.numbers, item)
        if len(shown) == 3:
            break
    for name in left:
        lines.append(f"  {name}")
        for item in shown.values():
            box = _numbers(to_xyxy(item.numbers, name, item.image_wh))
            size = f"{item.image_wh[0]} x {item.image_wh[1]}"
            lines.append(
                f"    {printable(item.where)}: {_numbers(item.numbers)} -> x1, y1, x2, y2 = {box} of {size} px"
            )
    return "\n".join(lines)


def _numbers(box: Sequence[float]) -> str:
    return f"[{', '.join(f'{n:.6g}' for n in box)}]"
