"""Phrases composed of category names, of which the boxes alone decide what they mean: nothing, or which boxes; pure."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import permutations
from typing import Final, NamedTuple

from qwenft.core.boxes import Box, Size, area
from qwenft.core.samples import SceneObject
from qwenft.prepare.scene import Scene, key_of
from qwenft.prepare.swaps import OPPOSITE, Side, is_chinese

WIDE: Final = (0.45, 0.55)
"""Shares of the picture's width: a box under the first is not wider than half of it, one over the second is."""
TINY: Final = (1 / 50, 1 / 4)
"""Shares of the picture's area: a thing whose box has less than the first is tiny, one that has more than the second
is not, how little of its box it may fill."""

NAMED: Final = "{}"
"""The bare category."""
POSITIONS: Final[Mapping[Side, tuple[str, str]]] = {
    "left": ("{} in the left half of the picture", "图片左半部分的{}"),
    "right": ("{} in the right half of the picture", "图片右半部分的{}"),
    "top": ("{} in the upper half of the picture", "图片上半部分的{}"),
    "bottom": ("{} in the lower half of the picture", "图片下半部分的{}"),
}
"""side -> (English, Chinese)."""
WIDER: Final = ("{} wider than half of the picture", "比半张图片还宽的{}")
TINIER: Final = ("tiny {} that covers less than a fiftieth of the picture", "不到画面五十分之一的小{}")
RELATIONS: Final[Mapping[Side, tuple[str, str]]] = {
    "left": ("{} to the left of the {}", "{1}左边的{0}"),
    "right": ("{} to the right of the {}", "{1}右边的{0}"),
    "top": ("{} above the {}", "{1}上方的{0}"),
    "bottom": ("{} below the {}", "{1}下方的{0}"),
}


class Phrase(NamedTuple):
    """A text about a picture, and what it means there."""

    text: str
    form: str = ""
    """What of the text stays when the categories are others; empty for an expression that was not composed."""
    label: str = ""
    """The category that is asked for."""
    objects: tuple[SceneObject, ...] = ()
    """All that it means; empty: it is proved that nothing in the picture is meant."""


def _phrase(forms: tuple[str, str], labels: Sequence[str], objects: Sequence[SceneObject]) -> Phrase:
    form = forms[is_chinese(labels[0])]
    return Phrase(form.format(*labels), form, labels[0], tuple(objects))


def categories(scene: Scene) -> Iterator[Phrase]:
    """A category that is there, by its name alone."""
    for label, items in scene.clear.items():
        yield Phrase(label, NAMED, label, items)


def positions(scene: Scene) -> Iterator[Phrase]:
    """The things of a category in a half of the picture, where each lies wholly in it or wholly in the other."""
    for label, items in scene.clear.items():
        for side, other in OPPOSITE.items():
            inside = [item for item in items if within(item.bbox, side, scene.sample.image_wh)]
            outside = sum(within(item.bbox, other, scene.sample.image_wh) for item in items)
            if len(inside) + outside == len(items):
                yield _phrase(POSITIONS[side], (label,), inside)


def sizes(scene: Scene) -> Iterator[Phrase]:
    """The wide or the tiny things of a category, where the box of each decides it."""
    width, height = scene.sample.image_wh
    for label, items in scene.clear.items():
        wide = [(item.bbox[2] - item.bbox[0]) / width for item in items]
        if not any(WIDE[0] <= share <= WIDE[1] for share in wide):
            yield _phrase(WIDER, (label,), [i for i, share in zip(items, wide, strict=True) if share > WIDE[1]])
        shares = [area(item.bbox) / (width * height) for item in items]
        if not any(TINY[0] <= share <= TINY[1] for share in shares):
            yield _phrase(TINIER, (label,), [i for i, share in zip(items, shares, strict=True) if share < TINY[0]])


def relations(scene: Scene) -> Iterator[Phrase]:
    """The things of a category beside those of another: all wholly on that side of all, or all on the opposite one."""
    for one, other in permutations(scene.clear, 2):
        for side in OPPOSITE:
            if _all_beside(scene.clear[one], scene.clear[other], side):
                yield _phrase(RELATIONS[side], (one, other), scene.clear[one])
                yield _phrase(RELATIONS[OPPOSITE[side]], (one, other), ())


def _all_beside(ones: Sequence[SceneObject], others: Sequence[SceneObject], side: Side) -> bool:
    return all(_beside(one.bbox, other.bbox, side) for one in ones for other in others)


def within(box_xyxy: Box, side: Side, image_wh: Size) -> bool:
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


COMPOSED: Final[tuple[Callable[[Scene], Iterator[Phrase]], ...]] = (categories, positions, sizes, relations)
"""Every way to compose a phrase that may mean something."""


def meant(scene: Scene, most: int) -> Iterator[Phrase]:
    """Every composed phrase that means something, at most `most` boxes, and is not asked of the picture already."""
    for compose in COMPOSED:
        for phrase in compose(scene):
            if 0 < len(phrase.objects) <= most and key_of(phrase.text) not in scene.asked:
                yield phrase
