"""Questions whose true answer is "not there": made only where the annotations prove absence, each of a named kind.

What proves absence: a picture whose categories were annotated one by one and all (detection rows of COCO, VOC, YOLO and
the like; COCO's boxes beside RefCOCO's expressions).  A category of the list without a box is then absent.  The rest is
shown from the boxes: a thing is wholly on the other side, too small or too large for what is said of it, or the only
one of its category.  Nothing is proved of a picture with a rejected annotation, nor by a category that is never boxed.
"""

import random
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import permutations
from typing import Final, NamedTuple

from qwenft.core.boxes import Box, Size, area, iou
from qwenft.core.samples import Sample, SceneObject
from qwenft.prepare.rows import RawRow, counted
from qwenft.prepare.splits import Division
from qwenft.prepare.survey import NO_LABEL
from qwenft.prepare.swaps import (
    FILLS,
    NEGATION,
    OPPOSITE,
    POSITION,
    RELATION,
    TINY,
    Side,
    is_chinese,
    names,
    side_swaps,
    worded_swaps,
)

KINDS: Final = (
    "absent_category",
    "wrong_attribute",
    "wrong_size",
    "wrong_position",
    "wrong_relation",
    "foreign_expression",
)
"""In the order in which they take turns."""
UNPROVED: Final = "unproved_"
"""Stands before the kind of a negative that nothing proves (--negatives-unproved)."""
FORMATS: Final = frozenset({"coco", "yolo", "voc", "labelme", "label studio"})
"""Kinds of source whose form means that every object of the categories has its box."""
LISTED: Final = frozenset({"records", "table", "hub"})
"""Kinds of source that mean it where a row itself lists the categories that were looked for: labels may be phrases."""
FEDERATED: Final = ("neg_category_ids", "not_exhaustive_category_ids")
"""With one of these a COCO file says that a picture was searched for some categories only: LVIS (lvisdataset.org)."""
SAME_BOX: Final = 0.9
"""IoU from which on an expression's box is that of an annotated object."""
OTHER_BOX: Final = 0.5
"""IoU with a second object from which on it is not certain which of the two is meant."""
FILLED: Final = 1 / 4
"""A thing whose box has less of the picture's area than this does not fill most of it."""
LARGE: Final = 1 / 4
"""A thing whose box has more of the picture's area than this covers no less than a fiftieth of it."""
TRIES: Final = 24
"""Expressions of other pictures that are looked at for one picture in one turn."""


@dataclass(frozen=True)
class Scene:
    """All that is known of one picture."""

    sample: Sample
    """One of the picture's samples, for its path and size."""
    categories: tuple[str, ...] = ()
    """Annotated in full in this picture; none: nothing can be proved."""
    objects: tuple[SceneObject, ...] = ()
    asked: frozenset[str] = frozenset()
    """Texts that are asked already."""
    expressions: tuple[Sample, ...] = ()
    """The picture's grounding questions that have an answer."""

    @cached_property
    def by_label(self) -> Mapping[str, tuple[SceneObject, ...]]:
        """The objects of each category that is there, crowds included."""
        found: dict[str, list[SceneObject]] = {}
        for item in self.objects:
            found.setdefault(_key(item.label), []).append(item)
        return {label: tuple(items) for label, items in found.items()}

    @cached_property
    def known(self) -> Mapping[str, str]:
        """The categories by the form in which they are compared."""
        return {_key(label): label for label in self.categories}

    @cached_property
    def apart(self) -> Mapping[str, tuple[SceneObject, ...]]:
        """The categories whose things are boxed one by one: a crowd's single things are not known."""
        return {
            self.known[key]: items
            for key, items in self.by_label.items()
            if key in self.known and not any(item.crowd for item in items)
        }

    def lacks(self, label: str) -> bool:
        """Whether it is proved that nothing of the category is in the picture.

        Where a present category's name holds this one's, or the other way about (animal, farm animal), it is not.
        """
        key = _key(label)
        return (
            key in self.known
            and key != NO_LABEL
            and not any(names(present, key) or names(key, present) for present in self.by_label)
        )

    def category_of(self, expression: Sample) -> str | None:
        """The category of the one object that an expression of this picture means, by its box; None if uncertain."""
        if len(expression.objects) != 1:
            return None
        near = [(iou(item.bbox, expression.objects[0].bbox), item) for item in self.objects]
        best = [item for value, item in near if value >= SAME_BOX]
        doubtful = {_key(item.label) for value, item in near if value >= OTHER_BOX}
        return best[0].label if best and len(doubtful) == 1 and not best[0].crowd else None


def _key(label: str) -> str:
    return label.strip().casefold()


@dataclass(frozen=True)
class Pool:
    """The pictures of one split, and what their questions look like."""

    scenes: tuple[Scene, ...]
    shown: frozenset[str]
    """Categories that some picture of the data set shows: others may be headings that nobody drew boxes for."""
    expressions: tuple[tuple[Scene, Sample], ...] = field(default=())


class Annotated(NamedTuple):
    """What a picture was searched for, and everything that was found."""

    categories: tuple[str, ...] = ()
    objects: tuple[SceneObject, ...] = ()


Maker = Callable[[Scene, Pool, random.Random], Iterator[str]]
"""Yields texts of one kind of which nothing is in the picture, in a drawn order."""


def _absent_categories(scene: Scene, pool: Pool, draw: random.Random) -> Iterator[str]:
    for label in draw.sample(scene.categories, len(scene.categories)):
        if _key(label) in pool.shown and scene.lacks(label):
            yield label


def _wrong_attributes(scene: Scene, pool: Pool, draw: random.Random) -> Iterator[str]:
    """Of an expression, or of a category's own name (red car, where blue car is a category too and absent)."""
    for label in scene.by_label:
        noun = label.rpartition("的")[2] if is_chinese(label) else label.rpartition(" ")[2]
        for kind, text in worded_swaps(label, noun) if noun != label else ():
            other = scene.known.get(_key(text))
            if kind == "wrong_attribute" and other and _key(other) in pool.shown and scene.lacks(other):
                yield other
    yield from _worded(scene, "wrong_attribute")


def _wrong_sizes(scene: Scene, pool: Pool, draw: random.Random) -> Iterator[str]:
    """No thing of the category fills most of the picture, or none is tiny: boxes bound the things in them."""
    whole = scene.sample.width * scene.sample.height
    found = list(_worded(scene, "wrong_size"))
    for label, items in scene.apart.items():
        shares = [area(item.bbox) / whole for item in items]
        if max(shares) < FILLED:
            found.append(_say(FILLS, label))
        if min(shares) > LARGE:
            found.append(_say(TINY, label))
    yield from draw.sample(found, len(found))


def _worded(scene: Scene, kind: str) -> Iterator[str]:
    """A word of a true expression exchanged, where all the categories it names are there once."""
    for label, expression in _of_single_things(scene):
        yield from (text for found, text in worded_swaps(expression, label) if found == kind)


def _of_single_things(scene: Scene) -> Iterator[tuple[str, str]]:
    """(category, expression) of the only thing of its category, with a text that names it and denies nothing."""
    for sample in scene.expressions:
        label, text = scene.category_of(sample), sample.query or ""
        if label is None or NEGATION.search(text.casefold()):
            continue
        named = [other for other in scene.by_label if names(text, other)]
        person = _key(label) == "person" and not named
        if (person or _key(label) in named) and all(len(scene.by_label[name]) == 1 for name in (*named, _key(label))):
            yield label, text


def _wrong_positions(scene: Scene, pool: Pool, draw: random.Random) -> Iterator[str]:
    """Every thing of the category lies wholly in the other half."""
    found = [
        text
        for label, expression in _of_single_things(scene)
        for side, text in side_swaps(expression, label)
        if all(_within(item.bbox, side, scene.sample.image_wh) for item in scene.by_label[_key(label)])
    ]
    found += [
        _say(POSITION[OPPOSITE[side]], label)
        for label, items in scene.apart.items()
        for side in OPPOSITE
        if all(_within(item.bbox, side, scene.sample.image_wh) for item in items)
    ]
    yield from draw.sample(found, len(found))


def _wrong_relations(scene: Scene, pool: Pool, draw: random.Random) -> Iterator[str]:
    """Every thing of one category lies wholly on the other side of every thing of another."""
    found = [
        _say(RELATION[OPPOSITE[side]], one, other)
        for one, other in permutations(scene.apart, 2)
        for side in OPPOSITE
        if all(_beside(a.bbox, b.bbox, side) for a in scene.apart[one] for b in scene.apart[other])
    ]
    yield from draw.sample(found, len(found))


def _foreign_expressions(scene: Scene, pool: Pool, draw: random.Random) -> Iterator[str]:
    """What is true of another picture, of a category that is proved to be absent here."""
    if not scene.categories:
        return
    for _ in range(TRIES):
        if pool.expressions:
            other, sample = draw.choice(pool.expressions)
            label, text = other.category_of(sample), sample.query or ""
        else:
            other = draw.choice(pool.scenes)
            label, text = _true_phrase(other, draw)
        if label is not None and text and other.sample.picture != scene.sample.picture and scene.lacks(label):
            yield text


def _true_phrase(scene: Scene, draw: random.Random) -> tuple[str | None, str]:
    """Something composed that is there in a picture, with its category."""
    found = [
        (label, _say(POSITION[side], label))
        for label, items in scene.apart.items()
        for side in OPPOSITE
        if any(_within(item.bbox, side, scene.sample.image_wh) for item in items)
    ]
    return draw.choice(found) if found else (None, "")


def _within(box_xyxy: Box, side: Side, image_wh: Size) -> bool:
    """Whether a box lies wholly in a half of the picture."""
    x1, y1, x2, y2 = box_xyxy
    half_x, half_y = image_wh[0] / 2, image_wh[1] / 2
    return {"left": x2 <= half_x, "right": x1 >= half_x, "top": y2 <= half_y, "bottom": y1 >= half_y}[side]


def _beside(one_xyxy: Box, other_xyxy: Box, side: Side) -> bool:
    """Whether one box lies wholly on a side of another: left means that it ends before the other begins."""
    return {
        "left": one_xyxy[2] <= other_xyxy[0],
        "right": one_xyxy[0] >= other_xyxy[2],
        "top": one_xyxy[3] <= other_xyxy[1],
        "bottom": one_xyxy[1] >= other_xyxy[3],
    }[side]


def _say(forms: tuple[str, str], *labels: str) -> str:
    return forms[is_chinese(labels[0])].format(*labels)


def _unproved_expressions(scene: Scene, pool: Pool, draw: random.Random) -> Iterator[str]:
    """An expression of another picture that shares no longer word with any that is asked here: likely absent."""
    own = {word for text in scene.asked for word in _words(text)}
    for _ in range(TRIES if pool.expressions else 0):
        other, sample = draw.choice(pool.expressions)
        if other.sample.picture != scene.sample.picture and not own & _words(sample.query or ""):
            yield sample.query or ""


def _words(text: str) -> set[str]:
    if is_chinese(text):
        return {text[at : at + 2] for at in range(len(text) - 1)}
    return {word for word in text.casefold().split() if len(word) > 3}


MAKERS: Final[Mapping[str, Maker]] = {
    "absent_category": _absent_categories,
    "wrong_attribute": _wrong_attributes,
    "wrong_size": _wrong_sizes,
    "wrong_position": _wrong_positions,
    "wrong_relation": _wrong_relations,
    "foreign_expression": _foreign_expressions,
}


@dataclass(frozen=True, slots=True)
class Negatives:
    """What was made."""

    division: Division
    """The splits with the negatives at their ends."""
    counts: Mapping[str, int]
    """kind -> how many."""
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def searched_in_full(row: RawRow, kind: str) -> bool:
    """Whether a detection row of a source of this kind means every object of its categories."""
    if row.task != "detection" or any(key in row.original for key in FEDERATED):
        return False
    return not row.bad_objects and (kind in FORMATS or (kind in LISTED and row.categories is not None))


def add_negatives(
    division: Division,
    name: str,
    *,
    ratio: float,
    unproved: bool,
    doubtful: Collection[str],
    around: Mapping[str, Annotated],
    seed: int,
) -> Negatives:
    """Give each split `ratio` negatives for each of its questions that has an answer, from its own pictures only.

    doubtful: pictures (`Sample.image`) that were not searched in full, or of which an annotation was rejected.
    around: picture -> all that is in it, where a source of expressions knows.  unproved: where too few can be proved,
    take expressions of other pictures, marked `unproved_…`.  The same seed gives the same negatives.
    """
    annotated = _annotated(division.samples.values(), doubtful, around)
    shown = frozenset(_key(item.label) for _, objects in annotated.values() for item in objects)
    counts: Counter[str] = Counter()
    made: dict[str, tuple[Sample, ...]] = {}
    wanted = positives = 0
    for split, samples in division.samples.items():
        answered = sum(any(not item.crowd for item in sample.objects) for sample in samples)
        number = round(ratio * answered)
        positives, wanted = positives + answered, wanted + number
        pool = _pool(samples, annotated, shown)
        grounding = any(sample.task == "grounding" for sample in samples)
        draw = random.Random(f"{seed}/{split}")  # noqa: S311 - a draw
        new = list(_make(pool, number, f"{name}/{split}/negative", draw, unproved=unproved, grounding=grounding))
        counts.update(str(sample.negative) for sample in new)
        made[split] = (*samples, *new)
    notes, warnings = _said(counts, wanted, positives, annotated=bool(annotated), unproved=unproved)
    if counts and all(sample.task != "grounding" for samples in division.samples.values() for sample in samples):
        warnings.append(
            "every question with an answer asks for all categories, every negative for one thing: add questions for "
            "single things that are there (grounding), or a short question alone will mean `not there` to the model"
        )
    return Negatives(replace(division, samples=made), counts, tuple(notes), tuple(warnings))


def _annotated(
    splits: Collection[Sequence[Sample]], doubtful: Collection[str], around: Mapping[str, Annotated]
) -> dict[str, Annotated]:
    """picture -> categories annotated in full and all objects, over every split in which the picture stands."""
    found: dict[str, Annotated] = {}
    for sample in (sample for samples in splits for sample in samples if sample.image not in doubtful):
        if sample.task == "detection":
            before = found.get(sample.picture, Annotated())
            categories = tuple(dict.fromkeys((*before.categories, *sample.categories)))
            found[sample.picture] = Annotated(categories, (*before.objects, *sample.objects))
        elif sample.image in around:
            found.setdefault(sample.picture, around[sample.image])
    return found


def _pool(
    samples: Sequence[Sample],
    annotated: Mapping[str, Annotated],
    shown: frozenset[str],
) -> Pool:
    by_picture: dict[str, list[Sample]] = {}
    for sample in samples:
        by_picture.setdefault(sample.picture, []).append(sample)
    scenes = []
    for picture, own in by_picture.items():
        categories, objects = annotated.get(picture, Annotated())
        asked = frozenset(_key(sample.query) for sample in own if sample.query)
        answered = tuple(sample for sample in own if sample.task == "grounding" and sample.objects)
        scenes.append(Scene(own[0], categories, objects, asked, answered))
    expressions = tuple((scene, sample) for scene in scenes for sample in scene.expressions)
    return Pool(tuple(scenes), shown, expressions)


def _make(
    pool: Pool, number: int, prefix: str, draw: random.Random, *, unproved: bool, grounding: bool
) -> Iterator[Sample]:
    """The kinds take turns while they have something to offer; pictures too, so that none is asked far more often."""
    used: set[tuple[str, str]] = set()
    proving = tuple(scene for scene in pool.scenes if scene.categories)
    offers = {kind: _offers(maker, proving, pool, used, draw) for kind, maker in MAKERS.items()}
    done = 0
    for kind, scene, text in _in_turn(offers, number):
        yield _sample(scene, text, kind, f"{prefix}/{done}", grounding=grounding)
        done += 1
    if unproved and done < number:
        rest = tuple(scene for scene in pool.scenes if scene.expressions)
        more = {UNPROVED + "foreign_expression": _offers(_unproved_expressions, rest, pool, used, draw)}
        for kind, scene, text in _in_turn(more, number - done):
            yield _sample(scene, text, kind, f"{prefix}/{done}", grounding=True)
            done += 1


def _offers(
    maker: Maker, scenes: Sequence[Scene], pool: Pool, used: set[tuple[str, str]], draw: random.Random
) -> Iterator[tuple[Scene, str]]:
    """One text a picture and turn, until a turn through all pictures gives nothing new."""
    fresh = True
    while fresh:
        fresh = False
        for scene in draw.sample(scenes, len(scenes)):
            for text in maker(scene, pool, draw):
                key = (scene.sample.picture, _key(text))
                if key not in used and key[1] not in scene.asked:
                    used.add(key)
                    fresh = True
                    yield scene, text
                    break


def _in_turn(offers: Mapping[str, Iterator[tuple[Scene, str]]], number: int) -> Iterator[tuple[str, Scene, str]]:
    waiting = dict(offers)
    done = 0
    while waiting and done < number:
        for kind in list(waiting):
            offer = next(waiting[kind], None) if done < number else None
            if offer is not None:
                done += 1
                yield kind, *offer
            elif done < number:
                del waiting[kind]


def _sample(scene: Scene, text: str, kind: str, sample_id: str, *, grounding: bool) -> Sample:
    like = scene.sample
    return Sample(
        id=sample_id,
        task="grounding" if grounding else "detection",
        image=like.image,
        width=like.width,
        height=like.height,
        query=text if grounding else None,
        categories=() if grounding else (text,),
        negative=kind,
    )


def _said(
    counts: Counter[str], wanted: int, positives: int, *, annotated: bool, unproved: bool
) -> tuple[list[str], list[str]]:
    notes, warnings = [], []
    total = counts.total()
    if total:
        table = ", ".join(f"{kind.replace('_', ' ')} {number:,}" for kind, number in counts.most_common())
        notes.append(f"{counted(total, 'negative')} made for {counted(positives, 'question')} with an answer: {table}")
    doubted = sum(number for kind, number in counts.items() if kind.startswith(UNPROVED))
    if doubted:
        warnings.append(f"{counted(doubted, 'negative')} that nothing proves (--negatives-unproved): look at them")
    if total < wanted:
        why = (
            "the annotations prove no more"
            if annotated
            else "the source has no categories annotated in full, so nothing proves that a thing is absent"
        )
        way = (
            ", and no further expression of another picture is unlike enough"
            if unproved
            else "; --negatives-unproved takes expressions of other pictures, marked as such"
        )
        warnings.append(f"{total:,} of {counted(wanted, 'negative')} made: {why}{way}")
    return notes, warnings
