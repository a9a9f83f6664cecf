"""What is found out about a data set as a whole, from its rows as they go by: declared sizes, turned pictures, ids."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from qwenft.core.boxes import Box, Size
from qwenft.prepare.convention import Observed, fits
from qwenft.prepare.pictures import Stored
from qwenft.prepare.rows import RawBox, RawRow
from qwenft.prepare.spool import Ledger

Frame = Literal["upright", "stored", "undecided"]
"""Which way up the boxes of EXIF-turned pictures are meant: as a viewer shows them, or as the file stores them."""
MAX_REPEATED_IDS: Final = 0.05
"""Where more ids than this share repeat, the column is no id of rows (often it numbers pictures)."""
NO_LABEL: Final = "object"
"""Label of a detection box for which the source has none."""
SURROGATE: Final = re.compile("[\ud800-\udfff]")
"""Half of a character: JSON can spell it ("\\ud83d"), a text file cannot hold it."""


class Taken(NamedTuple):
    """A raw row whose picture was stored."""

    row: RawRow
    stored: Stored
    number: int = 0
    """Of the rows of its split."""
    repeats_id: bool = False
    """An earlier row of its split has the same id."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the sizes that the source declares are worth."""

    declared: int
    agree: int
    exchanged: bool
    """They are (height, width)."""
    trusted: bool
    """Most agree, so a row whose size differs is suspect."""


@dataclass
class Survey:
    """Counts of the rows that went by: something is kept of each picture, nothing of a row."""

    looks: dict[str, int] = field(default_factory=dict)
    """Picture (`Stored.image`) -> its dhash."""
    turned: int = 0
    """Pictures that were stored turned."""
    converted: int = 0
    labels: set[str] = field(default_factory=set)
    """Of detection boxes."""
    certain_boxes: int = 0
    """Boxes of four finite numbers, in pictures whose way up is certain."""
    turned_boxes: int = 0
    """Likewise, in pictures whose width and height may be exchanged."""
    repeated_ids: int = 0
    _ids: int = 0
    _declared: int = 0
    _agree: int = 0
    _exchanged: int = 0
    _ledger: Ledger = field(default_factory=Ledger)

    def add(self, row: RawRow, stored: Stored, number: int) -> Taken:
        """Look at one row; returns it with what is known of its id."""
        self._look_at_picture(stored)
        if row.declared_wh is not None:
            ways = {stored.image_wh, stored.file_wh}
            self._declared += 1
            self._agree += row.declared_wh in ways
            self._exchanged += row.declared_wh[::-1] in ways
        finite = sum(four(box) is not None for box in row.boxes)
        if stored.orientation < 5:
            self.certain_boxes += finite
        else:
            self.turned_boxes += finite
        if row.task == "detection":
            self.labels.update(box.label or NO_LABEL for box in row.boxes)
        repeats = row.key is not None and self._ledger.keep(row.split, row.key) is not None
        self._ids += row.key is not None
        self.repeated_ids += repeats
        return Taken(row, stored, number, repeats)

    def _look_at_picture(self, stored: Stored) -> None:
        if stored.image not in self.looks:
            self.looks[stored.image] = stored.dhash
            self.turned += stored.orientation != 1
            self.converted += stored.converted

    @property
    def sizes(self) -> Sizes:
        """Declared sizes against the pictures', either way up; the majority tells whether to trust the column."""
        exchanged = self._exchanged > self._agree and self._exchanged * 2 > self._declared
        right = self._exchanged if exchanged else self._agree
        return Sizes(self._declared, right, exchanged, trusted=right * 2 > self._declared)

    @property
    def ids_are_unique(self) -> bool:
        """Whether the id column names rows: nearly none repeats within a split."""
        return self.repeated_ids <= max(1, MAX_REPEATED_IDS * self._ids)

    @property
    def categories(self) -> tuple[str, ...]:
        """Every label that a sample can have."""
        return tuple(sorted(label for label in self.labels if not is_broken(label)))


@dataclass(frozen=True, slots=True)
class Boxes:
    """The boxes that can speak for a convention: finite, in pictures whose way up is certain if there are such."""

    taken: Iterable[Taken]
    """Read again each time."""
    survey: Survey

    def __bool__(self) -> bool:
        return self.survey.certain_boxes + self.survey.turned_boxes > 0

    def __iter__(self) -> Iterator[Observed]:
        sizes, certain = self.survey.sizes, self.survey.certain_boxes > 0
        for row, stored, *_ in self.taken:
            if certain and stored.orientation >= 5:
                continue
            frame_wh = stored.image_wh if certain else _either_way(row, stored, sizes)
            for box in row.boxes:
                numbers = four(box)
                if numbers is not None:
                    yield Observed(numbers, frame_wh, box.where or row.where)


def _either_way(row: RawRow, stored: Stored, sizes: Sizes) -> Size:
    """Of a turned picture: the declared size says the frame, else the larger side stands for both."""
    stated, side = declared(row, sizes), max(stored.image_wh)
    return stated if stated is not None and stated in (stored.image_wh, stored.file_wh) else (side, side)


def judge_frame(taken: Iterable[Taken], convention: str | None, sizes: Sizes) -> tuple[Frame, dict[str, int]]:
    """Decide which way up the boxes of EXIF-turned pictures are meant, by declared sizes, else by which boxes fit.

    Returns the decision and the votes behind it.  Undecided where nothing speaks, or both do.
    """
    votes: Counter[str] = Counter()
    for row, stored, *_ in taken:
        if stored.orientation == 1:
            continue
        votes["turned"] += 1
        stated = declared(row, sizes)
        if stored.image_wh != stored.file_wh and stated is not None:
            votes["size upright"] += stated == stored.image_wh
            votes["size stored"] += stated == stored.file_wh
        for numbers in filter(None, map(four, row.boxes)):
            if convention is not None:
                fits_upright = fits(numbers, convention, stored.image_wh)
                fits_stored = fits(numbers, convention, stored.file_wh)
                votes["box upright"] += fits_upright and not fits_stored
                votes["box stored"] += fits_stored and not fits_upright
    for kind in ("box", "size"):
        upright, stored_way = votes[f"{kind} upright"], votes[f"{kind} stored"]
        if max(upright, stored_way) > 9 * min(upright, stored_way):
            return ("upright" if upright > stored_way else "stored"), dict(votes)
    return "undecided", dict(votes)


def declared(row: RawRow, sizes: Sizes) -> Size | None:
    """The size that a row declares, as (width, height)."""
    if row.declared_wh is None:
        return None
    return row.declared_wh[::-1] if sizes.exchanged else row.declared_wh


def is_broken(text: str) -> bool:
    """Whether a text holds half of a character."""
    return not text.isascii() and SURROGATE.search(text) is not None


def four(box: RawBox) -> Box | None:
    """The numbers of a box where they are four and finite."""
    if len(box.numbers) != 4 or not all(math.isfinite(n) for n in box.numbers):
        return None
    a, b, c, d = box.numbers
    return (a, b, c, d)
