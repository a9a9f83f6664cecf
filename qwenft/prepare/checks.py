"""Raw rows become samples or are rejected with a reason; declared sizes and EXIF are judged for the whole data set."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from qwenft.core.boxes import Box, Size, area, clip, to_xyxy
from qwenft.core.events import printable
from qwenft.core.samples import Sample, SceneObject
from qwenft.prepare.convention import TOLERANCE_PX, Observed, misfit
from qwenft.prepare.pictures import Stored, turn_box
from qwenft.prepare.rows import BadObject, BadRow, RawBox, RawRow, Reason

Frame = Literal["upright", "stored", "undecided"]
"""Which way up the boxes of EXIF-turned pictures are meant: as a viewer shows them, or as the file stores them."""
MAX_REPEATED_IDS = 0.05
"""Where more ids than this share repeat, the column is no id of rows (often it numbers pictures)."""

NO_LABEL = "object"
"""Label of a detection box for which the source has none."""


class Taken(NamedTuple):
    """A raw row whose picture was stored."""

    row: RawRow
    stored: Stored


def without_bytes(row: RawRow) -> RawRow:
    """The row without its picture's bytes, once those are stored."""
    return replace(row, picture=b"") if isinstance(row.picture, bytes) else row


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the sizes that the source declares are worth."""

    declared: int
    agree: int
    exchanged: bool
    """They are (height, width)."""
    trusted: bool
    """Most agree, so a row whose size differs is suspect."""


def judge_sizes(taken: Iterable[Taken]) -> Sizes:
    """Compare declared sizes with the pictures, either way up; the majority tells whether to trust the column."""
    declared = agree = exchanged = 0
    for row, stored in taken:
        if row.declared_wh is not None:
            declared += 1
            ways = {stored.image_wh, stored.file_wh}
            agree += row.declared_wh in ways
            exchanged += row.declared_wh[::-1] in ways
    turned = exchanged > agree and exchanged * 2 > declared
    right = exchanged if turned else agree
    return Sizes(declared, right, turned, trusted=right * 2 > declared)


def observe(taken: Sequence[Taken], sizes: Sizes) -> list[Observed]:
    """The boxes that can speak for a convention: finite, in pictures whose way up is certain if there are such."""
    certain = [item for item in taken if item.stored.orientation < 5]
    return list(_observed(certain)) or [
        Observed(item.numbers, item.image_wh, item.where) for item in _observed_turned(taken, sizes)
    ]


def _observed(taken: Iterable[Taken]) -> Iterator[Observed]:
    for row, stored in taken:
        for box in row.boxes:
            four = _four(box)
            if four is not None:
                yield Observed(four, stored.image_wh, printable(box.where or row.where))


def _observed_turned(taken: Iterable[Taken], sizes: Sizes) -> Iterator[Observed]:
    """Only turned pictures: the declared size says the frame, else the larger side stands for both."""
    for row, stored in taken:
        declared = _declared(row, sizes)
        side = max(stored.image_wh)
        frame = declared if declared in (stored.image_wh, stored.file_wh) else (side, side)
        yield from _observed([Taken(row, stored._replace(image_wh=frame, orientation=1))])


def judge_frame(taken: Iterable[Taken], convention: str | None, sizes: Sizes) -> tuple[Frame, dict[str, int]]:
    """Decide which way up the boxes of EXIF-turned pictures are meant, by declared sizes, else by which boxes fit.

    Returns the decision and the votes behind it.  Undecided where nothing speaks, or both do.
    """
    votes: Counter[str] = Counter()
    for row, stored in taken:
        if stored.orientation == 1:
            continue
        votes["turned"] += 1
        declared = _declared(row, sizes)
        if stored.image_wh != stored.file_wh and declared is not None:
            votes["size upright"] += declared == stored.image_wh
            votes["size stored"] += declared == stored.file_wh
        for numbers in filter(None, map(_four, row.boxes)):
            if convention is not None:
                fits_upright = not misfit(numbers, convention, stored.image_wh)
                fits_stored = not misfit(numbers, convention, stored.file_wh)
                votes["box upright"] += fits_upright and not fits_stored
                votes["box stored"] += fits_stored and not fits_upright
    for kind in ("box", "size"):
        upright, stored_way = votes[f"{kind} upright"], votes[f"{kind} stored"]
        if max(upright, stored_way) > 9 * min(upright, stored_way):
            return ("upright" if upright > stored_way else "stored"), dict(votes)
    return "undecided", dict(votes)


def _declared(row: RawRow, sizes: Sizes) -> Size | None:
    if row.declared_wh is None:
        return None
    return row.declared_wh[::-1] if sizes.exchanged else row.declared_wh


def _four(box: RawBox) -> Box | None:
    if len(box.numbers) != 4 or not all(math.isfinite(n) for n in box.numbers):
        return None
    a, b, c, d = box.numbers
    return (a, b, c, d)


@dataclass(frozen=True, slots=True)
class Rules:
    """What was found out about the whole data set, and what the user allowed."""

    convention: str | None
    frame: Frame
    sizes: Sizes
    clip: bool
    categories: tuple[str, ...]
    ids_are_unique: bool


def ids_are_unique(taken: Iterable[Taken]) -> tuple[bool, int]:
    """Whether the id column names rows (nearly none repeats within a split), and how many repeat."""
    seen: set[tuple[str, str]] = set()
    total = repeated = 0
    for row, _ in taken:
        if row.key is not None:
            total += 1
            repeated += (row.split, row.key) in seen
            seen.add((row.split, row.key))
    return repeated <= max(1, MAX_REPEATED_IDS * total), repeated


class Checked(NamedTuple):
    """A sample and what of its objects was left out, or a rejected row."""

    sample: Sample | None
    bad_row: BadRow | None
    bad_objects: tuple[BadObject, ...]


def check(item: Taken, sample_id: str, rules: Rules) -> Checked:
    """Turn one row into a sample, or say why not.

    Detection: a bad box is left out with a line of its own, its picture stays.  Grounding: it takes its row with it,
    for half an answer is a wrong one.
    """
    row, stored = item
    problem = _row_problem(row, stored, rules)
    if problem:
        return Checked(None, _bad(row, *problem), ())
    objects, bad = _objects(row, stored, rules)
    if bad and row.task == "grounding":
        return Checked(None, _bad(row, bad[0].reason, bad[0].detail), ())
    categories = (row.categories if row.categories is not None else rules.categories) if row.task == "detection" else ()
    sample = Sample(
        id=sample_id,
        task=row.task,
        image=stored.image,
        width=stored.image_wh[0],
        height=stored.image_wh[1],
        query=row.query if row.task == "grounding" else None,
        objects=objects,
        categories=categories,
        captions=row.captions,
    )
    return Checked(sample, None, (*row.bad_objects, *bad))


def objects_around(item: Taken, rules: Rules) -> tuple[SceneObject, ...] | None:
    """Every object in an expression's picture; None where the source has not all, or one of them cannot be taken."""
    row, stored = item
    undecided = stored.orientation != 1 and rules.frame == "undecided"
    if row.around is None or rules.convention is None or undecided:
        return None
    objects, bad = _objects(replace(row, task="detection", boxes=row.around), stored, rules)
    return None if bad else objects


def _bad(row: RawRow, reason: Reason, detail: str) -> BadRow:
    return BadRow(row.split, row.where, reason, detail, row.original)


def _row_problem(row: RawRow, stored: Stored, rules: Rules) -> tuple[Reason, str] | None:
    if row.task == "grounding" and not row.query:
        return Reason.QUERY_EMPTY, ""
    if row.task == "caption" and not row.captions:
        return Reason.CAPTION_EMPTY, ""
    if not row.boxes:
        return None
    declared = _declared(row, rules.sizes)
    in_px = rules.convention is not None and "_" not in rules.convention
    if in_px and rules.sizes.trusted and declared is not None and declared not in (stored.image_wh, stored.file_wh):
        return Reason.SIZE_DIFFERS, f"{_x(declared)} is declared, the picture is {_x(stored.image_wh)}"
    if stored.orientation != 1 and rules.frame == "undecided":
        return Reason.ORIENTATION_UNDECIDED, f"EXIF orientation {stored.orientation}"
    return None


def _x(wh: Size) -> str:
    return f"{wh[0]} x {wh[1]}"


def _objects(row: RawRow, stored: Stored, rules: Rules) -> tuple[tuple[SceneObject, ...], tuple[BadObject, ...]]:
    good: list[SceneObject] = []
    bad: list[BadObject] = []
    for raw in row.boxes:
        result = _image_px(raw, stored, rules)
        if isinstance(result[0], Reason):
            original: Any = raw.original if raw.original is not None else {"bbox": list(raw.numbers)}
            bad.append(BadObject(raw.where or row.where, result[0], str(result[1]), original))
        else:
            label = row.query or "" if row.task == "grounding" else raw.label or NO_LABEL
            good.append(SceneObject(result[0], label, raw.crowd))
    return tuple(good), tuple(bad)


def _image_px(raw: RawBox, stored: Stored, rules: Rules) -> tuple[Box | Reason, str]:
    """A raw box in px of the stored picture, or the reason why it is none."""
    numbers = _four(raw)
    if numbers is None:
        return Reason.BOX_NOT_FINITE, str(list(raw.numbers))
    if rules.convention is None:
        raise ValueError("boxes without a convention")
    from_file = stored.orientation != 1 and rules.frame == "stored"
    frame_wh = stored.file_wh if from_file else stored.image_wh
    box = to_xyxy(numbers, rules.convention, frame_wh)
    shown = f"[{', '.join(f'{v:g}' for v in box)}]"
    if box[2] < box[0] or box[3] < box[1]:
        return Reason.BOX_REVERSED, f"{shown} as {rules.convention}"
    if area(box) == 0:
        return Reason.BOX_FLAT, f"{shown} as {rules.convention}"
    inside = clip(box, frame_wh)
    leaves = max(abs(a - b) for a, b in zip(box, inside, strict=True))
    if (leaves > TOLERANCE_PX and not rules.clip) or area(inside) == 0:
        return Reason.BOX_OUTSIDE, f"{shown} in {_x(frame_wh)} px, by {leaves:.4g} px (--clip cuts it)"
    return (turn_box(inside, stored.orientation, frame_wh) if from_file else inside), ""
