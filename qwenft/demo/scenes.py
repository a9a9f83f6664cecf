"""Generated pictures for the demo: neon outlines on a dark ground, with expressions that name exactly one of them.

The embedded model was pretrained on filled shapes on light and textured grounds (demo/assets/README.md), so it knows
the words and is often wrong about the pictures: there is something to learn in a short training.
All sides are multiples of 28 px inside the model's pixel budget, so that nothing is resized and blurred.
"""

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from PIL import Image, ImageDraw

from qwenft.core.answer import Task
from qwenft.core.boxes import Size
from qwenft.core.files import write_jsonl
from qwenft.demo.language import SHAPES, SINGLE, Expression, Figure, Pixels, draw_expressions, sentence
from qwenft.demo.outlines import outline

Colour = tuple[int, int, int]
Place = tuple[int, int, int, int]
"""x1, y1, x2, y2 in image px."""

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

QUESTIONS_PER_PICTURE: Final = 2


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture, what is in it, and questions about it."""

    image: Image.Image
    figures: tuple[Figure, ...]
    questions: tuple[Expression, ...] = ()
    """Of make_scene each names one of the figures."""


def _mask(shape: str, wh: Size) -> Image.Image:
    """The outline's pixels, 0 or 255, in a picture of `wh`."""
    width, height = wh[0] * _FINE, wh[1] * _FINE
    inset = STROKE * _FINE / 2
    fine = Image.new("L", (width, height))
    draw = ImageDraw.Draw(fine)
    for line in outline(shape):
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
    asked = draw_expressions(rng, SINGLE, figures, QUESTIONS_PER_PICTURE)
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
    colour, shape = rng.choice(list(COLOURS)), rng.choice(SHAPES)
    if figures:
        other, like = rng.choice(figures), rng.random()
        colour = other.colour if like < 0.4 else colour
        shape = other.shape if like < 0.25 or 0.4 <= like < 0.65 else shape
    return colour, shape


def _place(rng: random.Random, wh: Size, figures: Sequence[Figure]) -> Place | None:
    """A free place; None where none was found in 40 tries."""
    longest = min(MAX_SIDE, min(wh) * 6 // 10)
    for _ in range(40):
        side = math.exp(rng.uniform(math.log(MIN_SIDE), math.log(longest)))
        stretch = math.exp(rng.uniform(-0.12, 0.12))
        w, h = (min(longest, max(MIN_SIDE, round(s))) for s in (side * stretch, side / stretch))
        x, y = rng.randint(0, wh[0] - w), rng.randint(0, wh[1] - h)
        place = (x, y, x + w, y + h)
        if not any(touch(place, figure.box_xyxy, GAP) for figure in figures):
            return place
    return None


def touch(one: Pixels, other: Pixels, gap: int) -> bool:
    """Whether two boxes have fewer than `gap` free px between them."""
    apart_x = one[2] + gap <= other[0] or other[2] + gap <= one[0]
    apart_y = one[3] + gap <= other[1] or other[3] + gap <= one[1]
    return not (apart_x or apart_y)


def _draw(image: Image.Image, colour: str, shape: str, place: Place) -> Figure:
    mask = _mask(shape, (place[2] - place[0], place[3] - place[1]))
    x1, y1, x2, y2 = mask.getbbox() or (0, 0, *mask.size)
    image.paste(COLOURS[colour], place, mask)
    return Figure(colour, shape, (place[0] + x1, place[1] + y1, place[0] + x2, place[1] + y2))


def write_scenes(
    folder: Path,
    *,
    num_train: int,
    num_val: int,
    seed: int,
    task: Task = "grounding",
    make: Callable[[random.Random], Scene] = make_scene,
) -> Path:
    """Write a source folder as a user would have it: images/, train.jsonl and val.jsonl.

    A line is {"image": path from the folder} and, by the task, {"query": expression, "bbox": [x1, y1, x2, y2] in image
    px, or a list of several or none}, {"objects": [{"bbox", "label": shape}], "categories": all}, or {"caption"}.
    num_train, num_val: pictures.  The same seed writes the same pictures; none stands in both.  Returns `folder`.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    seen: set[bytes] = set()
    for split, count in (("train", num_train), ("val", num_val)):
        rows = []
        for number, scene in enumerate(_distinct_scenes(f"{seed}/{split}", count, seen, make)):
            name = f"images/{split}-{number:04}.png"
            scene.image.save(folder / name)
            rows += [{"image": name, **record} for record in _records(scene, task)]
        write_jsonl(folder / f"{split}.jsonl", rows)
    return folder


def _records(scene: Scene, task: Task) -> Iterator[dict[str, Any]]:
    if task == "grounding":
        for one in scene.questions:
            boxes = [list(figure.box_xyxy) for figure in one.figures]
            yield {"query": one.text, "bbox": boxes[0] if len(boxes) == 1 else boxes}
    elif task == "detection":
        objects = [{"bbox": list(figure.box_xyxy), "label": figure.shape} for figure in scene.figures]
        yield {"objects": objects, "categories": list(SHAPES)}
    else:
        yield {"caption": sentence(scene.figures)}


def _distinct_scenes(
    seed: str, count: int, seen: set[bytes], make: Callable[[random.Random], Scene]
) -> Iterator[Scene]:
    rng = random.Random(seed)  # noqa: S311  pictures, no secrets
    while count:
        scene = make(rng)
        pixels = scene.image.tobytes()
        if scene.questions and pixels not in seen:
            seen.add(pixels)
            count -= 1
            yield scene
