"""Whether the pixels of a source count from 0 or from 1, by what its boxes show; pure.

Pascal VOC counts pixels from 1 and includes the last one (the challenge's development kit): its box 1, 1, w, h is the
whole picture, here 0, 0, w, h.  Many tools write the same files from 0.  Only the first corner differs.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from qwenft.prepare.rows import counted


@dataclass(frozen=True, slots=True)
class Origin:
    """The number of the first pixel, and what speaks for it."""

    first: int
    evidence: str

    def sentence(self) -> str:
        """As it is said aloud."""
        return f"pixels count from {self.first}: {self.evidence}"

    def to_json(self) -> dict[str, Any]:
        """As it stands in the manifest."""
        return {"first_pixel": self.first, "evidence": self.evidence}

    def shifted(self, corners: Sequence[float]) -> tuple[float, ...]:
        """Corners as written, counted from 0.  A box that is flat as written stays so, to be rejected as that.

        >>> Origin(1, "").shifted((1, 1, 640, 480)), Origin(1, "").shifted((7, 7, 7, 9))
        ((0, 0, 640, 480), (7, 7, 7, 9))
        """
        x1, y1, x2, y2 = corners
        if x2 <= x1 or y2 <= y1:
            return (x1, y1, x2, y2)
        return (x1 - self.first, y1 - self.first, x2, y2)


def judge_origin(boxes_xyxy: Iterable[tuple[Sequence[float], str]], otherwise: int) -> Origin:
    """Decide from (corners as written, where) of the whole source.

    A box that starts at 0 refutes counting from 1.  Where none does, boxes that crowd at 1, as they do at a picture's
    border, speak for it; where neither shows, `otherwise`, the format's own definition, is taken and said.
    """
    starts: Counter[int] = Counter()
    example = ""
    for (x1, y1, x2, y2), where in boxes_xyxy:
        first = min(x1, y1)
        if x2 > x1 and y2 > y1 and 0 <= first < 3:
            starts[int(first)] += 1
            example = example or (f", e.g. {where}" if first < 1 else "")
    if starts[0]:
        return Origin(0, f"{counted(starts[0], 'box starts', 'boxes start')} at 0{example}")
    if starts[1] > 2 * starts[2] + 2:
        return Origin(1, f"{counted(starts[1], 'box starts', 'boxes start')} at 1 and none at 0")
    return Origin(otherwise, "too few boxes touch the left or upper border to tell; the format defines it so (1 px)")
