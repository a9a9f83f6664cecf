"""Questions whose true answer is "not there": made only where the annotations prove absence, each of a named kind.

What proves absence: a picture whose categories were annotated one by one and all (detection rows of COCO, VOC, YOLO and
the like; COCO's boxes beside RefCOCO's expressions).  A category of the list without a box is then absent.  The rest is
shown from the boxes: a thing is wholly on the other side, too small or too large for what is said of it, or the only
one of its category.  Nothing is proved of a picture with a rejected annotation, nor by a category that is never boxed.
"""

import random
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from qwenft.core.samples import Sample
from qwenft.prepare.composed import NAMED, Phrase, positions, relations, sizes, within
from qwenft.prepare.rows import RawRow, counted
from qwenft.prepare.scene import Annotated, Pool, Scene, annotated_pictures, key_of, pool_of
from qwenft.prepare.splits import Division
from qwenft.prepare.swaps import NEGATION, SwapKind, is_chinese, names, side_swaps, worded_swaps
from qwenft.prepare.twins import Twins

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
TRIES: Final = 24
"""Expressions of other pictures that are looked at for one picture in one turn."""


Maker = Callable[[Scene, Pool, random.Random], Iterator[Phrase]]
"""Yields texts of one kind of which nothing is in the picture, in a drawn order."""


def _absent_categories(scene: Scene, pool: Pool, draw: random.Random) -> Iterator[Phrase]:
    for label in draw.sample(scene.categories, len(scene.categories)):
        if key_of(label) in pool.shown and scene.lacks(label):
            yield Phrase(label, NAMED, label)


def _wrong_attributes(scene: Scene, pool: Pool, draw: random.Random) -> Iterator[Phrase]:
    """Of an expression, or of a category's own name (red car, where blue car is a category too and absent)."""
    for label in scene.by_label:
        noun = label.rpartition("的")[2] if is_chinese(label) else label.rpartition(" ")[2]
        for kind, text in worded_swaps(label, noun) if noun != label else ():
            other = scene.known.get(key_of(text))
            if kind == "wrong_attribute" and other and key_of(other) in pool.shown and scene.lacks(other):
                yield Phrase(other, NAMED, other)
    yield from _worded(scene, "wrong_attribute")


def _wrong_sizes(scene: Scene, pool: Pool, draw: random.Random) -> Iterator[Phrase]:
    """No thing of the category is so wide, or so tiny: boxes bound the things in them."""
    yield from _drawn([*_worded(scene, "wrong_size"), *_meaning_nothing(sizes(scene))], draw)


def _worded(scene: Scene, kind: SwapKind) -> Iterator[Phrase]:
    """A word of a true expression exchanged, where all the categories it names are there once."""
    for label, expression in _of_single_things(scene):
        yield from (Phrase(text) for found, text in worded_swaps(expression, label) if found == kind)


def _of_single_things(scene: Scene) -> Iterator[tuple[str, str]]:
    """(category, expression) of the only thing of its category, with a text that names it and denies nothing."""
    for sample in scene.expressions:
        label, text = scene.category_of(sample), sample.query or ""
        if label is None or NEGATION.search(text.casefold()):
            continue
        named = [other for other in scene.by_label if names(text, other)]
        person = key_of(label) == "person" and not named
        if (person or key_of(label) in named) and all(
            len(scene.by_label[name]) == 1 for name in (*named, key_of(label))
        ):
            yield label, text


def _wrong_positions(scene: Scene, pool: Pool, draw: random.Random) -> Iterator[Phrase]:
    """Every thing of the category lies wholly in the other half."""
    found = [
        Phrase(text)
        for label, expression in _of_single_things(scene)
        for side, text in side_swaps(expression, label)
        if all(within(item.bbox, side, scene.sample.image_wh) for item in scene.by_label[key_of(label)])
    ]
    yield from _drawn([*found, *_meaning_nothing(positions(scene))], draw)


def _wrong_relations(scene: Scene, pool: Pool, draw: random.Random) -> Iterator[Phrase]:
    """Every thing of one category lies wholly on the other side of every thing of another."""
    yield from _drawn(_meaning_nothing(relations(scene)), draw)


def _meaning_nothing(phrases: Iterator[Phrase]) -> list[Phrase]:
    return [phrase for phrase in phrases if not phrase.objects]


def _drawn(phrases: Sequence[Phrase], draw: random.Random) -> list[Phrase]:
    return draw.sample(phrases, len(phrases))


def _foreign_expressions(scene: Scene, pool: Pool, draw: random.Random) -> Iterator[Phrase]:
    """What is true of another picture, of a category that is proved to be absent here."""
    if not scene.categories:
        return
    for _ in range(TRIES):
        if pool.expressions:
            other, sample = draw.choice(pool.expressions)
            label, found = other.category_of(sample), Phrase(sample.query or "")
        else:
            other = draw.choice(pool.scenes)
            true = [phrase for phrase in positions(other) if phrase.objects]
            found = draw.choice(true)._replace(objects=()) if true else Phrase("")
            label = found.label
        if label and found.text and other.sample.picture != scene.sample.picture and scene.lacks(label):
            yield found


def _unproved_expressions(scene: Scene, pool: Pool, draw: random.Random) -> Iterator[Phrase]:
    """An expression of another picture that shares no longer word with any that is asked here: likely absent."""
    own = {word for text in scene.asked for word in _words(text)}
    for _ in range(TRIES if pool.expressions else 0):
        other, sample = draw.choice(pool.expressions)
        if other.sample.picture != scene.sample.picture and not own & _words(sample.query or ""):
            yield Phrase(sample.query or "")


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

    made: Mapping[str, tuple[Sample, ...]]
    """split -> its negatives, and behind them the positives of their forms."""
    counts: Mapping[str, int]
    """kind -> how many negatives."""
    positives: tuple[Sample, ...]
    """The positives that were made."""
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def searched_in_full(row: RawRow, kind: str) -> bool:
    """Whether a detection row of a source of this kind means every object of its categories."""
    if row.task != "detection" or any(key in row.original for key in FEDERATED):
        return False
    return not row.bad_objects and (kind in FORMATS or (kind in LISTED and row.categories is not None))


def make_negatives(
    division: Division,
    name: str,
    *,
    ratio: float,
    unproved: bool,
    doubtful: Collection[str],
    around: Mapping[str, Annotated],
    seed: int,
) -> Negatives:
    """Make for each split `ratio` negatives for each of its questions that has an answer, from its own pictures only.

    A negative that is composed of category names comes with a positive of the same form, or not at all.
    doubtful: pictures (`Sample.image`) that were not searched in full, or of which an annotation was rejected.
    around: picture -> all that is in it, where a source of expressions knows.  unproved: where too few can be proved,
    take expressions of other pictures, marked `unproved_…`.  The same seed gives the same questions.
    """
    splits = {split: tuple(samples) for split, samples in division.samples.items()}
    annotated = annotated_pictures(splits.values(), doubtful, around)
    shown = frozenset(key_of(item.label) for _, objects in annotated.values() for item in objects)
    counts: Counter[str] = Counter()
    made: dict[str, tuple[Sample, ...]] = {}
    every_positive: list[Sample] = []
    wanted = answered = 0
    for split, samples in splits.items():
        own = sum(any(not item.crowd for item in sample.objects) for sample in samples)
        number = round(ratio * own)
        answered, wanted = answered + own, wanted + number
        draw = random.Random(f"{seed}/{split}")  # noqa: S311 - a draw
        pool = pool_of(samples, annotated, shown)
        pairs = list(_make(pool, number, f"{name}/{split}", draw, unproved=unproved))
        negatives, positives = [pair[0] for pair in pairs], [pair[1] for pair in pairs if pair[1] is not None]
        counts.update(str(sample.negative) for sample in negatives)
        every_positive += positives
        made[split] = (*negatives, *positives)
    notes, warnings = _said(counts, len(every_positive), wanted, answered, annotated=bool(annotated), unproved=unproved)
    return Negatives(made, counts, tuple(every_positive), tuple(notes), tuple(warnings))


class _Offer(NamedTuple):
    scene: Scene
    phrase: Phrase
    twin: tuple[Scene, Phrase] | None


def _make(
    pool: Pool, number: int, prefix: str, draw: random.Random, *, unproved: bool
) -> Iterator[tuple[Sample, Sample | None]]:
    """The kinds take turns while they have something to offer; pictures too, so that none is asked far more often."""
    proving = tuple(scene for scene in pool.scenes if scene.categories) if number else ()
    stock = _Stock(pool, Twins(proving, draw), set(), draw)
    offers = {kind: _offers(maker, proving, stock) for kind, maker in MAKERS.items()}
    done = 0
    for kind, offer in _in_turn(offers, number):
        yield _pair(offer, kind, prefix, done)
        done += 1
    if unproved and done < number:
        rest = tuple(scene for scene in pool.scenes if scene.expressions)
        more = {UNPROVED + "foreign_expression": _offers(_unproved_expressions, rest, stock)}
        for kind, offer in _in_turn(more, number - done):
            yield _pair(offer, kind, prefix, done)
            done += 1


@dataclass(frozen=True, slots=True)
class _Stock:
    """What a split has to offer, and what was taken of it."""

    pool: Pool
    twins: Twins
    used: set[tuple[str, str]]
    """(picture, text)."""
    draw: random.Random


def _offers(maker: Maker, scenes: Sequence[Scene], stock: _Stock) -> Iterator[_Offer]:
    """One text a picture and turn, until a turn through all pictures gives nothing new."""
    fresh = True
    while fresh:
        fresh = False
        for scene in stock.draw.sample(scenes, len(scenes)):
            for phrase in maker(scene, stock.pool, stock.draw):
                key = (scene.sample.picture, key_of(phrase.text))
                if key in stock.used or key[1] in scene.asked:
                    continue
                twin = stock.twins.take(phrase.form, phrase.label) if phrase.form else None
                if twin is not None or not phrase.form:
                    stock.used.add(key)
                    fresh = True
                    yield _Offer(scene, phrase, twin)
                    break


def _in_turn(offers: Mapping[str, Iterator[_Offer]], number: int) -> Iterator[tuple[str, _Offer]]:
    waiting = dict(offers)
    done = 0
    while waiting and done < number:
        for kind in list(waiting):
            offer = next(waiting[kind], None) if done < number else None
            if offer is not None:
                done += 1
                yield kind, offer
            elif done < number:
                del waiting[kind]


def _pair(offer: _Offer, kind: str, prefix: str, number: int) -> tuple[Sample, Sample | None]:
    """The negative, and the positive of its form where it was composed."""
    negative = _sample(offer.scene, offer.phrase, f"{prefix}/negative/{number}", kind)
    return negative, _sample(*offer.twin, f"{prefix}/positive/{number}") if offer.twin else None


def _sample(scene: Scene, phrase: Phrase, sample_id: str, negative: str | None = None) -> Sample:
    return Sample(
        id=sample_id,
        task="grounding",
        image=scene.sample.image,
        width=scene.sample.width,
        height=scene.sample.height,
        query=phrase.text,
        objects=tuple(replace(item, label=phrase.text) for item in phrase.objects),
        negative=negative,
    )


def _said(
    counts: Counter[str], positives: int, wanted: int, answered: int, *, annotated: bool, unproved: bool
) -> tuple[list[str], list[str]]:
    notes, warnings = [], []
    total = counts.total()
    if total:
        table = ", ".join(f"{kind.replace('_', ' ')} {number:,}" for kind, number in counts.most_common())
        notes.append(f"{counted(total, 'negative')} made for {counted(answered, 'question')} with an answer: {table}")
    if positives:
        notes.append(
            f"{counted(positives, 'positive')} made of the same forms, so that what a question looks like does not "
            "tell its answer"
        )
    doubted = sum(number for kind, number in counts.items() if kind.startswith(UNPROVED))
    if doubted:
        warnings.append(f"{counted(doubted, 'negative')} that nothing proves (--negatives-unproved): look at them")
    if total < wanted:
        why = (
            "the annotations prove no more, or show nothing of the same form"
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
