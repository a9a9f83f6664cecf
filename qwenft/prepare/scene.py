"""Scenes: all that is known of one picture, what it was searched for and what is asked of it; pure."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, NamedTuple

from qwenft.core.boxes import iou
from qwenft.core.samples import Sample, SceneObject
from qwenft.prepare.survey import NO_LABEL
from qwenft.prepare.swaps import names

SAME_BOX: Final = 0.9
"""IoU from which on an expression's box is that of an annotated object."""
OTHER_BOX: Final = 0.5
"""IoU with a second object from which on it is not certain which of the two is meant."""


def key_of(label: str) -> str:
    """A category's name as it is compared."""
    return label.strip().casefold()


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
            found.setdefault(key_of(item.label), []).append(item)
        return {label: tuple(items) for label, items in found.items()}

    @cached_property
    def known(self) -> Mapping[str, str]:
        """The categories by the form in which they are compared."""
        return {key_of(label): label for label in self.categories}

    @cached_property
    def apart(self) -> Mapping[str, tuple[SceneObject, ...]]:
        """The categories whose things are boxed one by one: a crowd's single things are not known."""
        return {
            self.known[key]: items
            for key, items in self.by_label.items()
            if key in self.known and not any(item.crowd for item in items)
        }

    @cached_property
    def clear(self) -> Mapping[str, tuple[SceneObject, ...]]:
        """Those of them whose name is part of no other present one's, nor the other way about."""
        return {
            label: items
            for label, items in self.apart.items()
            if key_of(label) != NO_LABEL
            and not any(names(other, label) or names(label, other) for other in self.by_label if other != key_of(label))
        }

    def lacks(self, label: str) -> bool:
        """Whether it is proved that nothing of the category is in the picture.

        Where a present category's name holds this one's, or the other way about (animal, farm animal), it is not.
        """
        key = key_of(label)
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
        doubtful = {key_of(item.label) for value, item in near if value >= OTHER_BOX}
        return best[0].label if best and len(doubtful) == 1 and not best[0].crowd else None


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


def annotated_pictures(
    splits: Collection[Sequence[Sample]], doubtful: Collection[str], around: Mapping[str, Annotated]
) -> dict[str, Annotated]:
    """picture -> categories annotated in full and all objects, over every split in which the picture stands.

    doubtful: pictures (`Sample.image`) that were not searched in full.  around: what a source of expressions knows.
    """
    found: dict[str, Annotated] = {}
    for sample in (sample for samples in splits for sample in samples if sample.image not in doubtful):
        if sample.task == "detection":
            before = found.get(sample.picture, Annotated())
            categories = tuple(dict.fromkeys((*before.categories, *sample.categories)))
            found[sample.picture] = Annotated(categories, (*before.objects, *sample.objects))
        elif sample.image in around:
            found.setdefault(sample.picture, around[sample.image])
    return found


def pool_of(samples: Sequence[Sample], annotated: Mapping[str, Annotated], shown: frozenset[str]) -> Pool:
    """The scenes of one split."""
    by_picture: dict[str, list[Sample]] = {}
    for sample in samples:
        by_picture.setdefault(sample.picture, []).append(sample)
    scenes = []
    for picture, own in by_picture.items():
        categories, objects = annotated.get(picture, Annotated())
        asked = frozenset(key_of(sample.query) for sample in own if sample.query)
        answered = tuple(sample for sample in own if sample.task == "grounding" and sample.objects)
        scenes.append(Scene(own[0], categories, objects, asked, answered))
    expressions = tuple((scene, sample) for scene in scenes for sample in scene.expressions)
    return Pool(tuple(scenes), shown, expressions)
