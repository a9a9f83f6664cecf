"""Generated pictures that the embedded model was pretrained on: filled shapes on textured grounds, seen through wear.

Drawn small and enlarged, or large and reduced, blurred, noisy, through JPEG: as pictures reach a model.
"""

import io
import math
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Final

from PIL import Image, ImageDraw, ImageFilter

from qwenft.core.boxes import FACTOR, Size
from qwenft.demo.language import COLOURS, SHAPES, Figure, Pixels
from qwenft.demo.outlines import outline
from qwenft.demo.scenes import Place, Scene, touch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MIN_SIDE: Final = 112
MAX_SIDE: Final = 336
"""The square of the least and the greatest picture that the model sees, px."""
MAX_FIGURES: Final = 6
INKS: Final = {
    "red": (220, 40, 40), "green": (40, 170, 60), "blue": (45, 75, 220), "yellow": (235, 215, 50),
    "purple": (150, 55, 190), "orange": (245, 140, 25), "white": (243, 243, 243), "black": (18, 18, 18),
}  # fmt: skip
GAP: Final = 2
"""Free px between two figures' boxes."""
_ATLAS: Final = 192
"""Side in px of the mask from which a figure of any size is drawn."""
_RESAMPLING: Final = (Image.Resampling.NEAREST, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)


def make_filled(draw: "np.random.Generator", max_figures: int = MAX_FIGURES) -> Scene:
    """Draw one picture, of a size that the model takes as it is: sides are multiples of FACTOR."""
    wh = _size(draw)
    scale = _scale(draw)
    drawn_wh = (round(wh[0] * scale), round(wh[1] * scale))
    pixels = _ground(draw, drawn_wh)
    figures: list[Figure] = []
    for _ in range(int(draw.integers(1, max_figures + 1))):
        if (box := _place(draw, drawn_wh, scale, figures)) is not None:
            figures.append(_paint(draw, pixels, *_look(draw, figures), box))
    image = _worn(draw, pixels, wh)
    ratio = (wh[0] / drawn_wh[0], wh[1] / drawn_wh[1])
    return Scene(image, tuple(replace(one, box_xyxy=_scaled(one.box_xyxy, ratio)) for one in figures))


def _size(draw: "np.random.Generator") -> Size:
    while True:
        side = math.exp(draw.uniform(math.log(MIN_SIDE), math.log(MAX_SIDE)))
        stretch = math.exp(draw.uniform(-0.35, 0.35))
        wh = (round(side * stretch / FACTOR) * FACTOR, round(side / stretch / FACTOR) * FACTOR)
        if MIN_SIDE**2 <= wh[0] * wh[1] <= MAX_SIDE**2:
            return wh


def _scale(draw: "np.random.Generator") -> float:
    """How many px are drawn for one px that is seen."""
    kind = draw.random()
    if kind < 0.45:
        return 1.0
    return 1 / draw.uniform(1, 3) if kind < 0.85 else draw.uniform(1, 1.8)


def _scaled(box_xyxy: Pixels, ratio: tuple[float, float]) -> Pixels:
    x1, y1, x2, y2 = box_xyxy
    return (x1 * ratio[0], y1 * ratio[1], x2 * ratio[0], y2 * ratio[1])


def _ground(draw: "np.random.Generator", wh: Size) -> "NDArray[np.float32]":
    """(height, width, 3), 0 to 255: one colour, a slope between two, stripes or squares; patches and lines over it."""
    import numpy as np

    first, second = (draw.uniform(65, 190) + draw.uniform(-35, 35, 3) for _ in range(2))
    x, y = np.arange(wh[0], dtype=np.float32), np.arange(wh[1], dtype=np.float32)[:, None]
    angle, period = draw.uniform(0, 2 * math.pi), draw.uniform(8, 30)
    along = (x - wh[0] / 2) * math.cos(angle) + (y - wh[1] / 2) * math.sin(angle)
    kind = int(draw.integers(4))
    if kind == 0:
        share = np.zeros_like(along)
    elif kind == 1:
        share = np.clip(along / sum(wh) + 0.5, 0, 1)
    elif kind == 2:
        share = 0.35 * (np.sin(along * (2 * math.pi / period)) > 0)
    else:
        share = 0.35 * ((x // period + y // period) % 2)
    ground = (first + share[..., None] * (second - first)).astype(np.float32)
    rough = draw.uniform(-35, 35, (3, 9, 9)).astype(np.float32) * (0.8 if kind == 0 else 0.25)
    for channel in range(3):
        spread = Image.fromarray(rough[channel], "F").resize(wh, Image.Resampling.NEAREST)
        ground[..., channel] += np.asarray(spread)
    for _ in range(int(draw.integers(0, 4))):
        turned, thick = draw.uniform(0, 2 * math.pi), draw.uniform(0.6, 1.6)
        distance = (x - draw.uniform(0, wh[0])) * math.cos(turned) + (y - draw.uniform(0, wh[1])) * math.sin(turned)
        ground[np.abs(distance) < thick] = draw.uniform(25, 225, 3)
    return ground


def _look(draw: "np.random.Generator", figures: list[Figure]) -> tuple[str, str]:
    """Colour and shape; often those of a figure that is there already, so that one word does not tell them apart."""
    colour, shape = COLOURS[draw.integers(len(COLOURS))], SHAPES[draw.integers(len(SHAPES))]
    if figures:
        other, like = figures[draw.integers(len(figures))], draw.random()
        colour = other.colour if like < 0.25 or 0.5 <= like < 0.65 else colour
        shape = other.shape if like < 0.5 else shape
    return colour, shape


def _place(draw: "np.random.Generator", wh: Size, scale: float, figures: list[Figure]) -> Place | None:
    """A free place, of at least 14 px, and 15 as the model sees it; None where none was found in 12 tries."""
    least, most = max(14.0, 15 * scale), 0.55 * min(wh)
    for _ in range(12):
        side = math.exp(draw.uniform(math.log(least), math.log(max(least + 1, most))))
        stretch = math.exp(draw.uniform(-0.25, 0.25))
        w, h = (int(min(max(round(s), least), most + 1)) for s in (side * stretch, side / stretch))
        x, y = int(draw.integers(0, wh[0] - w + 1)), int(draw.integers(0, wh[1] - h + 1))
        place = (x, y, x + w, y + h)
        if not any(touch(place, one.box_xyxy, math.ceil(GAP * scale)) for one in figures):
            return place
    return None


@cache
def _mask(shape: str) -> "NDArray[np.bool_]":
    """The filled shape, touching all four sides of a square of _ATLAS px."""
    import numpy as np

    side = _ATLAS * 4
    fine = Image.new("L", (side, side))
    lines = outline(shape)
    for line, ink in zip(lines, (255, 0), strict=False):  # a second line is a hole
        ImageDraw.Draw(fine).polygon([(x * (side - 1), y * (side - 1)) for x, y in line], fill=ink)
    return np.asarray(fine.reduce(4)) > 127


def _paint(draw: "np.random.Generator", pixels: "NDArray[np.float32]", colour: str, shape: str, box: Place) -> Figure:
    import numpy as np

    x1, y1, x2, y2 = box
    mask = _mask(shape)
    rows = ((np.arange(y2 - y1) + 0.5) * (_ATLAS / (y2 - y1))).astype(np.intp)
    columns = ((np.arange(x2 - x1) + 0.5) * (_ATLAS / (x2 - x1))).astype(np.intp)
    inside = mask[rows[:, None], columns]
    ink = np.clip(np.array(INKS[colour]) * min(draw.uniform(0.85, 1.15), 1.0) + draw.uniform(-22, 22, 3), 0, 255)
    pixels[y1:y2, x1:x2][inside] = ink
    ys, xs = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    return Figure(colour, shape, (x1 + int(xs[0]), y1 + int(ys[0]), x1 + int(xs[-1]) + 1, y1 + int(ys[-1]) + 1))


def _worn(draw: "np.random.Generator", pixels: "NDArray[np.float32]", wh: Size) -> Image.Image:
    """The picture at the size that is seen, after what happens to pictures on the way."""
    import numpy as np

    if draw.random() < 0.6:
        pixels = pixels + _noise(draw, pixels.shape[:2]) * draw.uniform(2, 14)
    image = Image.fromarray(np.clip(pixels, 0, 255).round().astype(np.uint8))
    if image.size != wh:
        reduced = image.width > wh[0]
        image = image.resize(wh, Image.Resampling.BICUBIC if reduced else _RESAMPLING[draw.integers(3)])
    if draw.random() < 0.2:
        image = image.filter(ImageFilter.GaussianBlur(draw.uniform(0.3, 1.6)))
    if draw.random() < 0.3:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=int(draw.integers(25, 95)))
        image = Image.open(file).convert("RGB")
    return image


@cache
def _noise_bank() -> "NDArray[np.float32]":
    """Normal noise to cut from: making it anew takes longer than all the rest."""
    import numpy as np

    return np.random.default_rng(0).standard_normal((1024, 1024, 3), dtype=np.float32)


def _noise(draw: "np.random.Generator", size: tuple[int, int]) -> "NDArray[np.float32]":
    y, x = (int(draw.integers(0, 1024 - side)) for side in size)
    return _noise_bank()[y : y + size[0], x : x + size[1]]
