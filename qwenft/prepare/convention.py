"""Which convention a data set's boxes follow, found by refutation, with the evidence; pure.

Rules: x2 <= x1 or y2 <= y1 refutes corners; a box that leaves its picture by more than 1 px refutes the reading;
numbers that are all at most 1 refute pixels.  One dirty row must not decide, so a reading stays possible while it fails
on hardly more rows than the best one, and where more than one stays possible the user is asked.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from qwenft.core.boxes import CONVENTIONS, Box, Size, to_xyxy
from qwenft.core.errors import DataError
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


def misfit(numbers: Box, reading: str, image_wh: Size) -> str:
    """Say how four numbers refute a reading; empty where they fit.

    >>> misfit((10, 20, 5, 50), "xyxy", (100, 100)), misfit((10, 20, 5, 50), "xywh", (100, 100))
    ('x2 <= x1', '')
    """
    if not reading.endswith("_norm") and max(abs(n) for n in numbers) <= 1:
        return "all numbers are at most 1"
    x1, y1, x2, y2 = to_xyxy(numbers, reading, image_wh)
    width, height = image_wh
    if -TOLERANCE_PX <= x1 < x2 <= width + TOLERANCE_PX and -TOLERANCE_PX <= y1 < y2 <= height + TOLERANCE_PX:
        return ""  # no sentence is made for the many that fit
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


def weigh(observed: Sequence[Observed], readings: Iterable[str]) -> tuple[Evidence, ...]:
    """Count for each reading how many boxes fit and how many refute it."""
    found = []
    for reading in readings:
        refuted, example = 0, ""
        for item in observed:
            why = misfit(item.numbers, reading, item.image_wh)
            if why:
                refuted += 1
                example = example or f"{item.where}: {_numbers(item.numbers)}, {why}"
        found.append(Evidence(reading, len(observed) - refuted, refuted, example))
    return tuple(found)


def decide(observed: Sequence[Observed], readings: Sequence[str] = tuple(CONVENTIONS)) -> Verdict:
    """Find the one reading that the boxes leave.

    Raises DataError where none fits, and where more than one is left: it then shows three rows under each and the
    option to type.  Needs at least one box (ValueError).
    """
    if not observed:
        raise ValueError("no boxes to decide by")
    evidence = weigh(observed, readings)
    candidates = _candidates(evidence, observed)
    best = min(item.refuted for item in candidates)
    if best > (1 - MIN_FIT) * len(observed):
        raise DataError(_none_fits(evidence, len(observed)), hint=f"--bbox-format {_fittest(evidence).reading}")
    margin = max(1, math.ceil(DIRTY_SHARE * len(observed)))
    left = [item.reading for item in candidates if item.refuted < best + margin]
    if len(left) > 1 and not _same_boxes(left, observed):
        raise DataError(_undecided(left, observed), hint=" or ".join(f"--bbox-format {name}" for name in left))
    return Verdict(left[0], "found by refutation", len(observed), evidence)


def confirm(
    observed: Sequence[Observed], stated: str, by: str, readings: Sequence[str] = tuple(CONVENTIONS)
) -> Verdict:
    """Check a stated convention.  Raises DataError where the boxes refute it and fit another one."""
    evidence = weigh(observed, dict.fromkeys((stated, *readings)))
    mine = next(item for item in evidence if item.reading == stated)
    rival = _fittest(evidence)
    if mine.fits < MIN_FIT * len(observed) and rival.fits >= MIN_FIT * len(observed):
        raise DataError(
            f"the boxes should be {stated} ({by}), but only {mine.fits:,} of {len(observed):,} fit that, "
            f"e.g. {mine.example}; {rival.fits:,} fit {rival.reading}",
            hint=f"--bbox-format {rival.reading}, or --bbox-format {stated} to insist",
        )
    return Verdict(stated, f"stated by {by}", len(observed), evidence)


def obey(observed: Sequence[Observed], convention: str) -> Verdict:
    """Take what the user said, and count how well it fits."""
    readings = dict.fromkeys((convention, *CONVENTIONS))
    return Verdict(convention, "given with --bbox-format", len(observed), weigh(observed, readings))


def _fittest(evidence: Sequence[Evidence]) -> Evidence:
    return min(evidence, key=_failures)


def _candidates(evidence: Sequence[Evidence], observed: Sequence[Observed]) -> list[Evidence]:
    """All readings, but 0-1000 only where the numbers look like it.

    Under 0-1000 nearly anything fits, so no dirty row ever speaks against it.  But boxes spread over a frame of 1000
    would pass the sides of a smaller picture about as often as that frame passes the picture: where they hardly do, the
    numbers are pixels.
    """
    pixels = next((item for item in evidence if item.reading == "xyxy"), None)
    expected = sum(1 - min(1, w / 1000) * min(1, h / 1000) for w, h in (item.image_wh for item in observed))
    if pixels is None or expected < 0.5 or pixels.refuted >= expected / 2:
        return list(evidence)
    return [item for item in evidence if item.reading != "xyxy_1000"]


def _same_boxes(readings: Sequence[str], observed: Sequence[Observed]) -> bool:
    """Whether the readings left give the same boxes, so that nothing hangs on the choice."""
    return all(
        math.dist(to_xyxy(item.numbers, readings[0], item.image_wh), to_xyxy(item.numbers, name, item.image_wh)) < 1e-6
        for name in readings[1:]
        for item in observed
    )


def _none_fits(evidence: Sequence[Evidence], total: int) -> str:
    lines = [f"no bbox convention fits the {total:,} boxes:"]
    lines += [f"  {e.reading}: {e.fits:,} fit; refuted by {e.example}" for e in sorted(evidence, key=_failures)]
    lines.append(
        "Were the pictures resized after the boxes were drawn? --bbox-format takes what fits and rejects the rest."
    )
    return "\n".join(lines)


def _undecided(left: Sequence[str], observed: Sequence[Observed]) -> str:
    boxes, names = counted(len(observed), "box", "boxes"), ", ".join(left)
    lines = [f"{boxes} fit more than one convention ({names}). Look at three rows under each:"]
    for name in left:
        lines.append(f"  {name}")
        for item in list({item.numbers: item for item in reversed(observed)}.values())[:-4:-1]:
            box = _numbers(to_xyxy(item.numbers, name, item.image_wh))
            size = f"{item.image_wh[0]} x {item.image_wh[1]}"
            lines.append(f"    {item.where}: {_numbers(item.numbers)} -> x1, y1, x2, y2 = {box} of {size} px")
    return "\n".join(lines)


def _numbers(box: Sequence[float]) -> str:
    return f"[{', '.join(f'{n:.6g}' for n in box)}]"
