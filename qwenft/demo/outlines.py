"""The outline of each shape, as closed lines in the unit square; pure."""

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Final

from qwenft.demo.language import Point


def _arc(x: float, y: float, radius: float, steps: int = 48) -> list[Point]:
    angles = (2 * math.pi * i / steps for i in range(steps))
    return [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles]


def _star() -> list[Point]:
    radii = [1.0, 0.42] * 5
    return [(r * math.sin(i * math.pi / 5), -r * math.cos(i * math.pi / 5)) for i, r in enumerate(radii)]


def _heart() -> list[Point]:
    # The usual heart curve: x = 16 sin³ a, y = 13 cos a - 5 cos 2a - 2 cos 3a - cos 4a.
    angles = [2 * math.pi * i / 60 for i in range(60)]
    return [
        (16 * math.sin(a) ** 3, -(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)))
        for a in angles
    ]


def _cross() -> list[Point]:
    a, b = 0.32, 0.68
    return [(a, 0), (b, 0), (b, a), (1, a), (1, b), (b, b), (b, 1), (a, 1), (a, b), (0, b), (0, a), (a, a)]


OUTLINES: Final[Mapping[str, Callable[[], list[list[Point]]]]] = {
    "circle": lambda: [_arc(0.5, 0.5, 0.5)],
    "square": lambda: [[(0, 0), (1, 0), (1, 1), (0, 1)]],
    "triangle": lambda: [[(0, 1), (0.5, 0), (1, 1)]],
    "star": lambda: [_star()],
    "cross": lambda: [_cross()],
    "diamond": lambda: [[(0, 0.5), (0.5, 0), (1, 0.5), (0.5, 1)]],
    "ring": lambda: [_arc(0.5, 0.5, 0.5), _arc(0.5, 0.5, 0.25)],
    "heart": lambda: [_heart()],
}
"""Closed lines of each of language.SHAPES, y downwards; the first one spans the shape's box, a second is a hole."""


@cache
def outline(shape: str) -> tuple[tuple[Point, ...], ...]:
    """The shape's lines, stretched so that the first fills the unit square."""
    lines = OUTLINES[shape]()
    xs, ys = [x for x, _ in lines[0]], [y for _, y in lines[0]]
    left, top, width, height = min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)
    return tuple(tuple(((x - left) / width, (y - top) / height) for x, y in line) for line in lines)
