"""Questions beside the source's own: what is not there, some of the categories; and those about too many divided."""

import math
import random
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Final

from qwenft.core.answer import MOST_BOXES, MOST_CATEGORIES, divided
from qwenft.core.samples import Sample, SceneObject
from qwenft.prepare.negatives import Negatives, make_negatives
from qwenft.prepare.rows import counted
from qwenft.prepare.scene import Annotated, key_of
from qwenft.prepare.splits import Division, Keep
from qwenft.prepare.swaps import names

TRIES: Final = 8
"""Draws for one question about some of the categories, until it is one that is not asked of the picture yet."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be made."""

    negatives: float = 0.0
    """For each question with an answer."""
    unproved: bool = False
    subsets: float = 0.0
    """For each detection question, in splits to train on."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Questions:
    """What is asked in the end."""

    division: Division
    counts: Mapping[str, int]
    """questions_made: how many more there are than the source has rows; of what kinds; objects_repeated: that stand in
    made questions too; objects_not_learned: beyond what one answer lists."""
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def more_questions(
    division: Division,
    name: str,
    wanted: Wanted,
    *,
    doubtful: Collection[str] = (),
    around: Mapping[str, Annotated] | None = None,
    keep: Keep = list,
) -> Questions:
    """Make what is wanted of the source's own questions, and divide those about too many categories.

    name: the data set's.  doubtful, around: as of `make_negatives`.  The same seed gives the same questions.
    """
    negatives: Negatives | None = None
    if wanted.negatives:
        negatives = make_negatives(
            division,
            name,
            ratio=wanted.negatives,
            unproved=wanted.unproved,
            doubtful=doubtful,
            around=around or {},
            seed=wanted.seed,
        )
    made = _Made(negatives)
    splits: dict[str, Sequence[Sample]] = {}
    for split, samples in division.samples.items():
        own, extra = samples, [*negatives.made[split]] if negatives else []
        if division.roles.get(split) == "train":
            subsets = list(_subsets(samples, wanted, doubtful)) if wanted.subsets else []
            made.add_subsets(subsets, samples if wanted.subsets else ())
            extra += subsets
            if any(len(sample.categories) > MOST_CATEGORIES for sample in samples):
                own = keep(part for sample in samples for part in made.parts_of(sample, wanted.seed))
        splits[split] = keep(chain(own, extra)) if extra else own
        if division.roles.get(split) == "train":
            made.look_at_answers(splits[split])
    asked = replace(division, samples=splits)
    return Questions(asked, made.counts(), tuple(made.notes()), tuple(made.warnings(wanted)))


class _Made:
    """Counts what is made, and says it."""

    def __init__(self, negatives: Negatives | None) -> None:
        self._negatives = negatives
        self._count: Counter[str] = Counter()

    def add_subsets(self, subsets: Collection[Sample], samples: Iterable[Sample]) -> None:
        self._count["subsets"] += len(subsets)
        self._count["asked"] += sum(sample.task == "detection" for sample in samples)
        self._count["repeated"] += sum(len(sample.objects) for sample in subsets)

    def parts_of(self, sample: Sample, seed: int) -> list[Sample]:
        """A training question divided as it will be asked: the parts with something, and one of those with nothing."""
        lists = divided(sample.categories)
        if len(lists) == 1:
            return [sample]
        home = {label: number for number, part in enumerate(lists) for label in part}
        objects: list[list[SceneObject]] = [[] for _ in lists]
        for item in sample.objects:
            objects[home.get(item.label, 0)].append(item)
        empty = [number for number, inside in enumerate(objects) if not inside]
        drawn = random.Random(f"{seed}/{sample.id}").choice(empty) if empty else None  # noqa: S311 - a draw
        parts = [
            replace(sample, id=f"{sample.id}/part-{number}", categories=part, objects=tuple(inside))
            for number, (part, inside) in enumerate(zip(lists, objects, strict=True), 1)
            if inside or number - 1 == drawn
        ]
        self._count["long"] += 1
        self._count["parts"] += len(parts)
        return parts

    def look_at_answers(self, samples: Iterable[Sample]) -> None:
        """Count what one answer does not list."""
        for sample in samples:
            boxes = [(item.bbox, item.label) for item in sample.objects if not item.crowd]
            beyond = max(0, len(set(boxes)) - MOST_BOXES)
            self._count["twice"] += len(boxes) - len(set(boxes))
            self._count["cut"] += beyond > 0
            self._count["beyond"] += beyond

    def counts(self) -> dict[str, int]:
        """As they stand in the manifest: what was not asked for, or did not happen, is left out."""
        count, found = self._count, dict[str, int]()
        if self._negatives:
            kinds = self._negatives.counts
            found = {"negatives_made": sum(kinds.values()), "positives_made": len(self._negatives.positives)}
            count["repeated"] += sum(len(sample.objects) for sample in self._negatives.positives)
            found |= {f"negatives_{kind}": number for kind, number in sorted(kinds.items())}
        if count["asked"]:
            found["subsets_made"] = count["subsets"]
        if count["long"]:
            found["parts_made"] = count["parts"] - count["long"]
        total = sum(found.get(name, 0) for name in ("negatives_made", "positives_made", "subsets_made", "parts_made"))
        if found:
            found = {"questions_made": total, **found, "objects_repeated": count["repeated"]}
        return found | ({"objects_not_learned": count["beyond"]} if count["beyond"] else {})

    def notes(self) -> Iterator[str]:
        count = self._count
        yield from self._negatives.notes if self._negatives else ()
        if count["subsets"]:
            yield f"{counted(count['subsets'], 'question')} made about some of the categories (train)"
        if count["long"]:
            yield (
                f"{counted(count['long'], 'question')} about more than {MOST_CATEGORIES} categories divided (train): "
                f"{count['parts']:,} in their place, those with something to find and one more a picture"
            )
        if count["twice"]:
            yield f"{counted(count['twice'], 'box', 'boxes')} that stand twice in one question are learned once"
        if count["cut"]:
            yield (
                f"{counted(count['cut'], 'answer')} with more than {MOST_BOXES} boxes: the {count['beyond']:,} beyond "
                "are not learned; scores know them"
            )

    def warnings(self, wanted: Wanted) -> Iterator[str]:
        count = self._count
        yield from self._negatives.warnings if self._negatives else ()
        number = math.floor(wanted.subsets * count["asked"])
        if count["subsets"] < number:
            yield (
                f"{count['subsets']:,} of {counted(number, 'question')} about some of the categories made: the others' "
                "pictures were not searched for all of them, or nothing new is left to ask"
            )


def _subsets(samples: Iterable[Sample], wanted: Wanted, doubtful: Collection[str]) -> Iterator[Sample]:
    """Questions about some of the categories: `wanted.subsets` for each detection question."""
    at = 0
    for sample in samples:
        if sample.task != "detection":
            continue
        number = math.floor((at + 1) * wanted.subsets) - math.floor(at * wanted.subsets)
        at += 1
        asked = {frozenset(sample.categories)}
        draw = random.Random(f"{wanted.seed}/{sample.id}")  # noqa: S311 - a draw
        for place in range(number if sample.image not in doubtful and sample.categories else 0):
            drawn = (_some_of(sample, draw) for _ in range(TRIES))
            categories = next((found for found in drawn if frozenset(found) not in asked), None)
            if categories is not None:
                asked.add(frozenset(categories))
                objects = tuple(item for item in sample.objects if item.label in categories)
                yield replace(sample, id=f"{sample.id}/some-{place}", categories=categories, objects=objects)


def _some_of(sample: Sample, draw: random.Random) -> tuple[str, ...]:
    """Categories in a drawn order: few as often as many, and of those that are there none, some or all."""
    there = {key_of(item.label) for item in sample.objects}
    present = [label for label in sample.categories if key_of(label) in there]
    absent = [
        label
        for label in sample.categories
        if key_of(label) not in there and not any(names(other, label) or names(label, other) for other in there)
    ]
    most = min(len(present) + len(absent), MOST_CATEGORIES)
    number = round(math.exp(draw.uniform(0, math.log(most))))
    of_these = draw.randint(max(0, number - len(absent)), min(number, len(present)))
    chosen = draw.sample(present, of_these) + draw.sample(absent, number - of_these)
    return tuple(draw.sample(chosen, len(chosen)))
