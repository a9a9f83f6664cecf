"""Generated pictures for the demo: neon outlines on a dark ground, with expressions that name exactly one of them.

The embedded model was pretrained on filled shapes on light and textured grounds (demo/assets/README.md), so it knows
the words and is often wrong about the pictures: there is something to learn in a short training.
All sides are multiples of 28 px inside the model's pixel budget, so that nothing is resized and blurred.
"""

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw

from qwenft.core.boxes import Size
from qwenft.core.files import write_jsonl

Point = tuple[float, float]
"""x, y in the unit square, y downwards."""
Colour = tuple[int, int, int]
Pixels = tuple[int, int, int, int]
"""x1, y1, x2, y2 in image px; x2 and y2 are the first column and row outside."""

SIDES: Final = (112, 140, 168)
"""Widths and heights in px: multiples of core.boxes.FACTOR; 112² and 168² are the embedded model's pixel budget."""
COLOURS: Final[Mapping[str, Colour]] = {
    "red": (235, 60, 60),
    "green": (60, 200, 80),
    "blue": (80, 110, 255),
    "yellow": (245, 225, 70),
    "purple": (180, 80, 225),
    "orange": (255, 150, 40),
    "white": (245, 245, 245),
}
"""Words that the embedded model knows, in colours that stand out from the ground."""
NUM_FIGURES: Final = (1, 2, 2, 3, 3, 4, 4)
"""How many figures a picture gets, by equal chance."""
STROKE: Final = 3
"""Width of an outline in px."""
MAX_SIDE: Final = 64
MIN_SIDE: Final = 24
GAP: Final = 3
"""Free px between two figures' boxes."""
_FINE: Final = 4
"""Outlines are drawn so many times larger and then reduced: round joints, and still only full pixels."""

SIZE_RATIO: Final = 1.6
"""A figure is the smallest or largest of its kind when its box's area differs so many times from the next."""
POSITION_MARGIN: Final = 8.0
"""... the leftmost when its centre is so many px further left than the next."""
RELATION_MARGIN: Final = 10.0
"""... above another when its centre is so many px higher; one that is not must be at least level with it."""
QUESTIONS_PER_PICTURE: Final = 2


@dataclass(frozen=True, slots=True)
class Figure:
    """One outline in a picture."""

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
    def area(self) -> int:
        """Of its box, px²."""
        x1, y1, x2, y2 = self.box_xyxy
        return (x2 - x1) * (y2 - y1)


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture, what is in it, and questions about it."""

    image: Image.Image
    figures: tuple[Figure, ...]
    questions: tuple[tuple[str, Figure], ...]
    """Expression and the one figure that it names."""


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


SHAPES: Final[Mapping[str, Callable[[], list[list[Point]]]]] = {
    "circle": lambda: [_arc(0.5, 0.5, 0.5)],
    "square": lambda: [[(0, 0), (1, 0), (1, 1), (0, 1)]],
    "triangle": lambda: [[(0, 1), (0.5, 0), (1, 1)]],
    "star": lambda: [_star()],
    "cross": lambda: [_cross()],
    "diamond": lambda: [[(0, 0.5), (0.5, 0), (1, 0.5), (0.5, 1)]],
    "ring": lambda: [_arc(0.5, 0.5, 0.5), _arc(0.5, 0.5, 0.25)],
    "heart": lambda: [_heart()],
}
"""Closed lines of each shape; the first one spans the shape's box."""


@cache
def _lines(shape: str) -> tuple[tuple[Point, ...], ...]:
    """The shape's lines, stretched so that the first fills the unit square."""
    lines = SHAPES[shape]()
    xs, ys = [x for x, _ in lines[0]], [y for _, y in lines[0]]
    left, top, width, height = min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)
    return tuple(tuple(((x - left) / width, (y - top) / height) for x, y in line) for line in lines)


def _mask(shape: str, wh: Size) -> Image.Image:
    """The outline's pixels, 0 or 255, in a picture of `wh`."""
    width, height = wh[0] * _FINE, wh[1] * _FINE
    inset = STROKE * _FINE / 2
    fine = Image.new("L", (width, height))
    draw = ImageDraw.Draw(fine)
    for line in _lines(shape):
        points = [(inset + x * (width - 2 * inset), inset + y * (height - 2 * inset)) for x, y in line]
        draw.line([*points, *points[:2]], fill=255, width=STROKE * _FINE, joint="curve")
    return fine.reduce(_FINE).point(lambda value: 255 if value > 127 else 0)


def make_scene(rng: random.Random) -> Scene:
    """Draw one picture with 1 to 4 figures and up to QUESTIONS_PER_PICTURE questions about it."""
    wh = (rng.choice(SIDES), rng.choice(SIDES))
    image = _ground(rng, wh)
    figures: list[Figure] = []
    for _ in range(rng.choice(NUM_FIGURES)):
        placed = _place(rng, wh, figures)
        if placed is not None:
            figures.append(_draw(image, *_look(rng, figures), placed))
    asked = _questions(rng, figures)
    return Scene(image, tuple(figures), tuple(asked))


def _ground(rng: random.Random, wh: Size) -> Image.Image:
    """A dark ground that runs from one dark colour to another."""
    top, bottom = ([rng.randint(4, 44) for _ in range(3)] for _ in range(2))
    image = Image.new("RGB", (1, 2))
    image.putpixel((0, 0), (top[0], top[1], top[2]))
    image.putpixel((0, 1), (bottom[0], bottom[1], bottom[2]))
    return image.resize(wh, Image.Resampling.BILINEAR)


def _look(rng: random.Random, figures: Sequence[Figure]) -> tuple[str, str]:
    """Colour and shape; often those of a figure that is there already, so that one word does not tell them apart."""
    colour, shape = rng.choice(list(COLOURS)), rng.choice(list(SHAPES))
    if figures:
        other, like = rng.choice(figures), rng.random()
        colour = other.colour if like < 0.4 else colour
        shape = other.shape if like < 0.25 or 0.4 <= like < 0.65 else shape
    return colour, shape


def _place(rng: random.Random, wh: Size, figures: Sequence[Figure]) -> Pixels | None:
    """A free place; None where none was found in 40 tries."""
    longest = min(MAX_SIDE, min(wh) * 6 // 10)
    for _ in range(40):
        side = math.exp(rng.uniform(math.log(MIN_SIDE), math.log(longest)))
        stretch = math.exp(rng.uniform(-0.12, 0.12))
        w, h = (min(longest, max(MIN_SIDE, round(s))) for s in (side * stretch, side / stretch))
        x, y = rng.randint(0, wh[0] - w), rng.randint(0, wh[1] - h)
        place = (x, y, x + w, y + h)
        if not any(_touch(place, figure.box_xyxy) for figure in figures):
            return place
    return None


def _touch(one: Pixels, other: Pixels) -> bool:
    apart_x = one[2] + GAP <= other[0] or other[2] + GAP <= one[0]
    apart_y = one[3] + GAP <= other[1] or other[3] + GAP <= one[1]
    return not (apart_x or apart_y)


def _draw(image: Image.Image, colour: str, shape: str, place: Pixels) -> Figure:
    mask = _mask(shape, (place[2] - place[0], place[3] - place[1]))
    x1, y1, x2, y2 = mask.getbbox() or (0, 0, *mask.size)
    image.paste(COLOURS[colour], place, mask)
    return Figure(colour, shape, (place[0] + x1, place[1] + y1, place[0] + x2, place[1] + y2))


_POSITIONS: Final[Mapping[str, Callable[[Figure], float]]] = {
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


def _questions(rng: random.Random, figures: Sequence[Figure]) -> Iterator[tuple[str, Figure]]:
    """Pick a kind of expression first and then one of that kind, so that the rarer kinds are asked too."""
    kinds = [kind for kind in ([*kind(figures)] for kind in (_by_look, _by_size, _by_position, _by_relation)) if kind]
    for _ in range(QUESTIONS_PER_PICTURE):
        if not kinds:
            return
        kind = rng.choice(kinds)
        yield kind.pop(rng.randrange(len(kind)))
        kinds = [kind for kind in kinds if kind]


def _by_look(figures: Sequence[Figure]) -> Iterator[tuple[str, Figure]]:
    for figure in figures:
        same_shape = [other for other in figures if other.shape == figure.shape]
        if [other.colour for other in same_shape].count(figure.colour) == 1:
            yield f"the {figure.colour} {figure.shape}", figure
        if len(same_shape) == 1:
            yield f"the {figure.shape}", figure


def _groups(figures: Sequence[Figure]) -> Iterator[tuple[str, list[Figure]]]:
    """Names that more than one figure answers to, with those figures: a shape, a coloured shape, everything."""
    names = {figure.shape for figure in figures} | {f"{figure.colour} {figure.shape}" for figure in figures}
    for name in sorted(names):
        group = [figure for figure in figures if name in (figure.shape, f"{figure.colour} {figure.shape}")]
        if len(group) > 1:
            yield name, group
    if len(figures) > 1:
        yield "object", list(figures)


def _by_size(figures: Sequence[Figure]) -> Iterator[tuple[str, Figure]]:
    for name, group in _groups(figures):
        ordered = sorted(group, key=lambda figure: figure.area)
        if ordered[0].area * SIZE_RATIO <= ordered[1].area:
            yield f"the smallest {name}", ordered[0]
        if ordered[-2].area * SIZE_RATIO <= ordered[-1].area:
            yield f"the largest {name}", ordered[-1]


def _by_position(figures: Sequence[Figure]) -> Iterator[tuple[str, Figure]]:
    for name, group in _groups(figures):
        for word, order in _POSITIONS.items():
            ordered = sorted(group, key=order)
            if order(ordered[0]) + POSITION_MARGIN <= order(ordered[1]):
                yield f"the {word} {name}", ordered[0]


def _by_relation(figures: Sequence[Figure]) -> Iterator[tuple[str, Figure]]:
    looks = [(figure.colour, figure.shape) for figure in figures]
    for landmark in figures:
        if looks.count((landmark.colour, landmark.shape)) > 1:
            continue
        for words, position in _RELATIONS.items():
            order = _POSITIONS[position]
            for shape in sorted({figure.shape for figure in figures}):
                there = [figure for figure in figures if figure.shape == shape and order(figure) < order(landmark)]
                if len(there) == 1 and order(there[0]) + RELATION_MARGIN <= order(landmark):
                    yield f"the {shape} {words} the {landmark.colour} {landmark.shape}", there[0]


def write_scenes(folder: Path, *, num_train: int, num_val: int, seed: int) -> Path:
    """Write a source folder as a user would have it: images/, train.jsonl and val.jsonl.

    A line is {"image": path from the folder, "query": expression, "bbox": [x1, y1, x2, y2] in image px}.
    num_train, num_val: pictures, each with one or two questions.  The same seed writes the same pictures; no picture
    stands in both splits.  Returns `folder`.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    seen: set[bytes] = set()
    for split, count in (("train", num_train), ("val", num_val)):
        rows = []
        for number, scene in enumerate(_distinct_scenes(f"{seed}/{split}", count, seen)):
            name = f"images/{split}-{number:04}.png"
            scene.image.save(folder / name)
            rows += [{"image": name, "query": query, "bbox": list(f.box_xyxy)} for query, f in scene.questions]
        write_jsonl(folder / f"{split}.jsonl", rows)
    return folder


def _distinct_scenes(seed: str, count: int, seen: set[bytes]) -> Iterator[Scene]:
    rng = random.Random(seed)  # noqa: S311  pictures, no secrets
    while count:
        scene = make_scene(rng)
        pixels = scene.image.tobytes()
        if scene.questions and pixels not in seen:
            seen.add(pixels)
            count -= 1
            yield scene
