"""Raw rows become samples or are rejected with a reason, by what was found out about the data set as a whole."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from qwenft.core.boxes import CONVENTIONS, Box, Size, area, clip
from qwenft.core.samples import Sample, SceneObject
from qwenft.prepare.convention import TOLERANCE_PX
from qwenft.prepare.pictures import Stored, turn_box
from qwenft.prepare.rows import BadObject, BadRow, RawBox, RawRow, Reason
from qwenft.prepare.survey import NO_LABEL, Frame, Sizes, Taken, declared, four, is_broken


@dataclass(frozen=True, slots=True)
class Rules:
    """What was found out about the whole data set, and what the user allowed."""

    convention: str | None
    frame: Frame
    sizes: Sizes
    clip: bool
    categories: tuple[str, ...]
    ids_are_unique: bool


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
    row, stored, *_ = item
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
    row, stored, *_ = item
    undecided = stored.orientation != 1 and rules.frame == "undecided"
    if row.around is None or rules.convention is None or undecided:
        return None
    objects, bad = _objects(replace(row, task="detection", boxes=row.around), stored, rules)
    return None if bad else objects


def _bad(row: RawRow, reason: Reason, detail: str) -> BadRow:
    return BadRow(row.split, row.where, reason, detail, row.original)


def _row_problem(row: RawRow, stored: Stored, rules: Rules) -> tuple[Reason, str] | None:
    problem = _text_problem(row)
    if problem or not row.boxes:
        return problem
    stated = declared(row, rules.sizes)
    in_px = rules.convention is not None and "_" not in rules.convention
    if in_px and rules.sizes.trusted and stated is not None and stated not in (stored.image_wh, stored.file_wh):
        return Reason.SIZE_DIFFERS, f"{_x(stated)} is declared, the picture is {_x(stored.image_wh)}"
    if stored.orientation != 1 and rules.frame == "undecided":
        return Reason.ORIENTATION_UNDECIDED, f"EXIF orientation {stored.orientation}"
    return None


def _text_problem(row: RawRow) -> tuple[Reason, str] | None:
    if row.task == "grounding" and not row.query:
        return Reason.QUERY_EMPTY, ""
    if row.task == "caption" and not row.captions:
        return Reason.CAPTION_EMPTY, ""
    texts = (row.split, row.query or "", *(row.categories or ()), *row.captions)
    return next(((Reason.TEXT_BROKEN, repr(text[:80])) for text in texts if is_broken(text)), None)


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
    if is_broken(raw.label):
        return Reason.TEXT_BROKEN, repr(raw.label[:80])
    numbers = four(raw)
    if numbers is None:
        return Reason.BOX_NOT_FINITE, str(list(raw.numbers))
    if rules.convention is None:
        raise ValueError("boxes without a convention")
    from_file = stored.orientation != 1 and rules.frame == "stored"
    frame_wh = stored.file_wh if from_file else stored.image_wh
    box = CONVENTIONS[rules.convention](numbers, frame_wh)
    if box[2] < box[0] or box[3] < box[1]:
        return Reason.BOX_REVERSED, f"{_shown(box)} as {rules.convention}"
    if area(box) == 0:
        return Reason.BOX_FLAT, f"{_shown(box)} as {rules.convention}"
    inside = clip(box, frame_wh)
    leaves = 0.0 if inside == box else max(abs(a - b) for a, b in zip(box, inside, strict=True))
    if (leaves > TOLERANCE_PX and not rules.clip) or area(inside) == 0:
        return Reason.BOX_OUTSIDE, f"{_shown(box)} in {_x(frame_wh)} px, by {leaves:.4g} px (--clip cuts it)"
    return (turn_box(inside, stored.orientation, frame_wh) if from_file else inside), ""


def _shown(box_xyxy: Box) -> str:
    return f"[{', '.join(f'{v:g}' for v in box_xyxy)}]"
