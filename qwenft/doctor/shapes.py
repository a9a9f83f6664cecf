"""Pictures with known boxes for any model's pixel budget: two filled shapes on a light ground, one question each.

They are drawn twice as large as the model will see them, so that the frames a box could be read in lie far apart.
"""

import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from PIL import Image, ImageDraw

from qwenft.core.boxes import FACTOR, Box, Size, smart_resize
from qwenft.demo.outlines import OUTLINES

COLOURS: Final = {
    "red": (210, 40, 40),
    "green": (40, 150, 60),
    "blue": (45, 80, 215),
    "yellow": (230, 200, 30),
    "purple": (140, 50, 180),
    "orange": (240, 130, 25),
    "black": (20, 20, 20),
}
NAMES: Final = ("circle", "square", "triangle", "star", "cross", "diamond", "heart")
"""Of demo.outlines.OUTLINES: those that are told apart when they are filled."""
SCALE: Final = 2
"""How many times larger than the model sees it a picture is."""
SIDE: Final = 448
"""At most, of what the model sees, px: 256 tokens, so that twenty pictures are asked in seconds."""


class Known(NamedTuple):
    """A picture on disk, what is asked about it, and where that lies."""

    path: Path
    query: str
    box_xyxy: Box
    """In image px."""
    image_wh: Size
    input_wh: Size


def check_budget(min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """The pixel budget in which a model is asked: its own, at most SIDE x SIDE."""
    return min(min_pixels, SIDE * SIDE), min(max_pixels, SIDE * SIDE)


def draw_known(folder: Path, count: int, min_pixels: int, max_pixels: int, seed: int = 0) -> Iterator[Known]:
    """Draw pictures that smart_resize brings to exactly half their size in this budget."""
    rng = random.Random(seed)  # noqa: S311  pictures, no secrets
    sizes = _sizes(min_pixels, max_pixels)
    for number in range(count):
        input_wh = rng.choice(sizes)
        image, query, box_xyxy = _draw(rng, input_wh)
        path = folder / f"{number:02}.png"
        # Each pixel becomes a square of its own: reduced again, the shapes are as sharp as they were drawn.
        image_wh = (input_wh[0] * SCALE, input_wh[1] * SCALE)
        image.resize(image_wh, Image.Resampling.NEAREST).save(path)
        x1, y1, x2, y2 = (v * SCALE for v in box_xyxy)
        yield Known(path, query, (x1, y1, x2, y2), image_wh, input_wh)


def _sizes(min_pixels: int, max_pixels: int) -> list[Size]:
    """Input sizes that a picture twice as large is resized to, exactly."""
    longest = max(2, math.isqrt(max_pixels) // FACTOR + 1)
    sides = [FACTOR * n for n in range(max(2, longest // 2), longest + 1)]
    return [
        (w, h) for w in sides for h in sides if smart_resize((w * SCALE, h * SCALE), min_pixels, max_pixels) == (w, h)
    ]


def _draw(rng: random.Random, wh: Size) -> tuple[Image.Image, str, Box]:
    """Two shapes of different kind and colour, one in each half; the question is about one of them."""
    ground = rng.randint(225, 250)
    image = Image.new("RGB", wh, (ground, ground, ground))
    halves = [(0, 0, wh[0] // 2, wh[1]), (wh[0] // 2, 0, wh[0], wh[1])]
    rng.shuffle(halves)
    drawn = []
    for half, colour, name in zip(halves, rng.sample(list(COLOURS), 2), rng.sample(NAMES, 2), strict=True):
        side = round(min(half[2] - half[0], half[3] - half[1]) * rng.uniform(0.45, 0.8))
        x = rng.randint(half[0] + 2, half[2] - side - 2)
        y = rng.randint(half[1] + 2, half[3] - side - 2)
        drawn.append((f"the {colour} {name}", _fill(image, name, COLOURS[colour], (x, y), side)))
    return image, *drawn[0]


def _fill(image: Image.Image, name: str, colour: tuple[int, int, int], at: tuple[int, int], side: int) -> Box:
    line = OUTLINES[name]()[0]
    left, top = (min(point[axis] for point in line) for axis in (0, 1))
    width, height = (max(point[axis] for point in line) - least for axis, least in ((0, left), (1, top)))
    mask = Image.new("L", image.size)
    points = [(at[0] + (x - left) / width * (side - 1), at[1] + (y - top) / height * (side - 1)) for x, y in line]
    ImageDraw.Draw(mask).polygon(points, fill=255)
    image.paste(colour, (0, 0), mask)
    x1, y1, x2, y2 = mask.getbbox() or (0, 0, *image.size)
    return (float(x1), float(y1), float(x2), float(y2))
