"""What is asked about generated pictures, and the true answers: one box, several, none, a sentence; pure."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from qwenft.core.boxes import Size
from qwenft.prepare.composed import POSITIONS, within
from qwenft.prepare.swaps import OPPOSITE

Point = tuple[float, float]
Pixels = tuple[float, float, float, float]
"""x1, y1, x2, y2 in image px; x2 and y2 are the first column and row outside."""

SHAPES: Final = ("circle", "square", "triangle", "star", "cross", "diamond", "ring", "heart")
COLOURS: Final = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black")
ANYTHING: Final = "object"
"""The word for a figure of whatever shape."""
SIZE_RATIO: Final = 1.6
"""A figure is the smallest or largest of its kind when its box's area differs so many times from the next."""
POSITION_MARGIN: Final = 8.0
"""... the leftmost when its centre is so many px further left than the next."""
RELATION_MARGIN: Final = 10.0
"""... above another when its centre is so many px higher; one that is not must be at least level with it."""
NUMBERS: Final = ("a", "two", "three", "four", "five", "six", "seven", "eight")


@dataclass(frozen=True, slots=True)
class Figure:
    """One thing in a picture."""

    colour: str
    shape: str
    box_xyxy: Pixels
    """Tight around its pixels, image px."""

    @property
    def centre(self) -> Point:
        """x, y in image px."""
        x1, y1, x2, y2 = self.box_xyxy
        return ((x1 + x2) / 2, (y1 + y2) / 2)

    @property
    def area(self) -> float:
        """Of its box, px²."""
        x1, y1, x2, y2 = self.box_xyxy
        return (x2 - x1) * (y2 - y1)

    @property
    def look(self) -> str:
        """Colour and shape."""
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True, slots=True)
class Expression:
    """Words that name figures of a picture, and those that they name."""

    text: str
    figures: tuple[Figure, ...]
    """None at all where the words name nothing in this picture."""
    kind: str
    """look, size, position, relation; of one that names nothing what makes it false, as in docs/negatives.md."""


_ORDERS: Final[Mapping[str, Callable[[Figure], float]]] = {
    "leftmost": lambda figure: figure.centre[0],
    "rightmost": lambda figure: -figure.centre[0],
    "topmost": lambda figure: figure.centre[1],
    "bottommost": lambda figure: -figure.centre[1],
}
"""Word -> what is least for the figure that it names."""
_RELATIONS: Final[Mapping[str, str]] = {
    "to the left of": "leftmost",
    "to the right of": "rightmost",
    "above": "topmost",
    "below": "bottommost",
}
"""Words between two figures -> the order that decides it."""


def by_look(figures: Sequence[Figure]) -> Iterator[Expression]:
    """ "the red circle", "the circle": where only one is like that."""
    for name, group in _groups(figures):
        if len(group) == 1:
            yield Expression(f"the {name}", tuple(group), "look")


def by_size(figures: Sequence[Figure]) -> Iterator[Expression]:
    """ "the smallest red circle": by the area of the boxes."""
    for name, group in _groups(figures):
        ordered = sorted(group, key=lambda figure: figure.area)
        if len(group) > 1 and ordered[0].area * SIZE_RATIO <= ordered[1].area:
            yield Expression(f"the smallest {name}", (ordered[0],), "size")
        if len(group) > 1 and ordered[-2].area * SIZE_RATIO <= ordered[-1].area:
            yield Expression(f"the largest {name}", (ordered[-1],), "size")


def by_position(figures: Sequence[Figure]) -> Iterator[Expression]:
    """ "the leftmost star": by the centres of the boxes."""
    for name, group in _groups(figures):
        for word, order in _ORDERS.items():
            ordered = sorted(group, key=order)
            if len(group) > 1 and order(ordered[0]) + POSITION_MARGIN <= order(ordered[1]):
                yield Expression(f"the {word} {name}", (ordered[0],), "position")


def by_relation(figures: Sequence[Figure]) -> Iterator[Expression]:
    """ "the circle above the red star": one, or none where there are circles but none is above it."""
    looks = [figure.look for figure in figures]
    for landmark in figures:
        if looks.count(landmark.look) > 1:
            continue
        for words, position in _RELATIONS.items():
            order = _ORDERS[position]
            for shape in sorted({figure.shape for figure in figures}):
                others = [figure for figure in figures if figure.shape == shape and figure is not landmark]
                there = tuple(figure for figure in others if order(figure) < order(landmark))
                if len(there) > 1 or not others:
                    continue
                is_clear = all(order(figure) + RELATION_MARGIN <= order(landmark) for figure in there)
                if is_clear:
                    kind = "relation" if there else "wrong_relation"
                    yield Expression(f"the {shape} {words} the {landmark.look}", there, kind)


def missed_relation(figures: Sequence[Figure]) -> Iterator[Expression]:
    """Those of `by_relation` that name nothing."""
    return (one for one in by_relation(figures) if not one.figures)


def by_kind(figures: Sequence[Figure]) -> Iterator[Expression]:
    """ "red circle", "all circles": every figure that is like that, however many there are."""
    for name, group in _groups(figures):
        yield Expression(name, tuple(group), "look")
        yield Expression(f"all {_plural(name)}", tuple(group), "look")
        if len(group) > 1:
            yield Expression(f"the {_plural(name)}", tuple(group), "look")


def by_half(figures: Sequence[Figure], image_wh: Size) -> Iterator[Expression]:
    """As `prepare --negatives` words it, "circle in the left half of the picture": where none lies on the line."""
    for name, group in _groups(figures):
        for side, other in OPPOSITE.items():
            there = tuple(figure for figure in group if within(figure.box_xyxy, side, image_wh))
            elsewhere = sum(within(figure.box_xyxy, other, image_wh) for figure in group)
            if len(there) + elsewhere == len(group):
                text = POSITIONS[side][0].format(name)
                yield Expression(text, there, "position" if there else "wrong_position")


def absent(figures: Sequence[Figure], colours: Sequence[str] = COLOURS) -> Iterator[Expression]:
    """What names nothing here: a shape that is absent, and a shape that is there in another colour."""
    shapes = {figure.shape for figure in figures}
    looks = {figure.look for figure in figures}
    for shape in SHAPES:
        if shape not in shapes:
            for text in (
                f"the {shape}",
                shape,
                f"all {_plural(shape)}",
                f"the largest {shape}",
                f"the leftmost {shape}",
            ):
                yield Expression(text, (), "absent_category")
        for colour in colours:
            if shape in shapes and f"{colour} {shape}" not in looks:
                for text in (f"the {colour} {shape}", f"{colour} {shape}", f"all {colour} {_plural(shape)}"):
                    yield Expression(text, (), "wrong_attribute")


def _groups(figures: Sequence[Figure]) -> Iterator[tuple[str, list[Figure]]]:
    """Each name that figures answer to, with all of them: a shape, a coloured shape, a colour, everything."""
    names: dict[str, list[Figure]] = {}
    for figure in figures:
        for name in (figure.shape, figure.look, f"{figure.colour} {ANYTHING}", ANYTHING):
            names.setdefault(name, []).append(figure)
    return iter(names.items())


def _plural(name: str) -> str:
    return f"{name}s" if not name.endswith("s") else f"{name}es"


SINGLE: Final = (by_look, by_size, by_position, by_relation)
"""Kinds of expressions that name one figure, or none."""


def draw_expressions(
    rng: random.Random, kinds: Sequence[Callable[[Sequence[Figure]], Iterator[Expression]]],
    figures: Sequence[Figure], count: int, *, none: bool = False,
) -> Iterator[Expression]:  # fmt: skip
    """Pick a kind first and then one expression of it, so that the rarer kinds are asked too; none twice.

    none: whether expressions that name nothing are taken.  Fewer than `count` where the picture has not so many.
    """
    lists = [[one for one in kind(figures) if none or one.figures] for kind in kinds]
    for _ in range(count):
        lists = [expressions for expressions in lists if expressions]
        if not lists:
            return
        expressions = rng.choice(lists)
        yield expressions.pop(rng.randrange(len(expressions)))


def sentence(figures: Sequence[Figure]) -> str:
    """What is in the picture, in one sentence that has one right form: looks in alphabetical order, counted.

    >>> sentence([Figure("red", "star", (0, 0, 9, 9)), Figure("blue", "ring", (9, 9, 20, 20))])
    'A blue ring and a red star.'
    """
    counts: dict[str, int] = {}
    for look in sorted(figure.look for figure in figures):
        counts[look] = counts.get(look, 0) + 1
    parts = [
        f"{_article(look)} {look}" if n == 1 else f"{NUMBERS[n - 1]} {_plural(look)}" for look, n in counts.items()
    ]
    text = " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
    return f"{text[0].upper()}{text[1:]}."


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
