"""What the embedded model was taught: a generated picture, questions of every kind about it, and the true answers."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from PIL import Image

from qwenft.core.answer import Prompts, write_answer
from qwenft.core.boxes import Size
from qwenft.demo.filled import MAX_FIGURES, make_filled
from qwenft.demo.language import (
    ANYTHING,
    COLOURS,
    SHAPES,
    SINGLE,
    Expression,
    Figure,
    absent,
    by_half,
    by_kind,
    draw_expressions,
    missed_relation,
    sentence,
)
from qwenft.predict import verify

DEFAULT: Final = Prompts()
"""The Qwen team's prompts, which are ours too: they are asked most often."""
GROUNDING: Final = (
    DEFAULT.grounding,
    DEFAULT.grounding,
    DEFAULT.grounding,
    "Locate {expression}, output its bbox coordinates in JSON format.",
    "Locate {expression}.",
    "Find {expression}.",
    "{expression}",
    "Where is {expression}?",
    "Detect {expression} in the image and return its location in JSON format.",
    "Please provide the bounding box coordinates of {expression}.",
    "Outline the position of {expression} and output all the coordinates in JSON format.",
)
DETECTION: Final = (
    DEFAULT.detection,
    DEFAULT.detection,
    DEFAULT.detection,
    "Detect {categories} in this image and output the bbox coordinates in JSON format.",
    "Find all {categories}.",
)
CAPTION: Final = (DEFAULT.caption, DEFAULT.caption, "Describe this image.", "What is in this picture?")
STRANGERS: Final = (
    "person", "man", "woman", "child", "dog", "cat", "bird", "fish", "car", "bus", "tree", "house", "cup", "box",
    "ball", "pin", "bolt", "nut", "part", "sign", "chair", "table", "bottle", "phone", "book", "apple", "flower",
)  # fmt: skip
"""Things that are in none of these pictures."""
REWORDED: Final = (
    ("smallest", ("small", "little", "tiniest")),
    ("largest", ("large", "big", "biggest")),
    ("leftmost", ("left",)), ("rightmost", ("right",)), ("topmost", ("top",)), ("bottommost", ("bottom",)),
    ("to the left of", ("left of", "on the left of")), ("to the right of", ("right of", "on the right of")),
    ("above", ("over",)), ("below", ("under", "beneath")),
    (ANYTHING, ("thing", "shape", "one")),
)  # fmt: skip
"""Words of the expressions, and others with the same meaning."""
MAX_CATEGORIES: Final = 10
VERIFIED: Final = 0.06
"""Share of the pictures with a box drawn in, about which it is asked whether it is right (predict/verify.py)."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """A picture, and prompts with their true answers."""

    image: Image.Image
    figures: tuple[Figure, ...]
    asked: tuple[tuple[str, str], ...]


def make_lesson(seed: str, max_figures: int = MAX_FIGURES) -> Lesson:
    """One picture with about eight questions.  The same seed gives the same."""
    import numpy as np

    rng = random.Random(seed)  # noqa: S311  pictures, no secrets
    draw: np.random.Generator = np.random.default_rng(rng.getrandbits(64))
    scene = make_filled(draw, max_figures)
    if rng.random() < VERIFIED:
        image, asked = _verified(rng, scene.image, scene.figures)
        return Lesson(image, (), asked)
    wh = scene.image.size
    asked_all = [*_grounding(rng, scene.figures, wh), *_detection(rng, scene.figures, wh)]
    if rng.random() < 0.7:
        asked_all.append((rng.choice(CAPTION), sentence(scene.figures)))
    return Lesson(scene.image, scene.figures, tuple(asked_all))


def _grounding(rng: random.Random, figures: Sequence[Figure], wh: Size) -> Iterator[tuple[str, str]]:
    """Three with one box, two with any number, one or two with none."""
    chosen = [
        *draw_expressions(rng, SINGLE, figures, 3),
        *draw_expressions(rng, (by_kind, lambda seen: by_half(seen, wh)), figures, 2, none=True),
        *draw_expressions(rng, (absent, missed_relation), figures, rng.randint(1, 2), none=True),
    ]
    if rng.random() < 0.15:
        chosen.append(Expression(f"{rng.choice(('the ', ''))}{rng.choice(STRANGERS)}", (), "absent_category"))
    for one in chosen:
        text = reworded(rng, one.text)
        yield rng.choice(GROUNDING).replace("{expression}", text), answer([(f, text) for f in one.figures], wh)


def reworded(rng: random.Random, text: str) -> str:
    """The same expression in other words, or as it is."""
    for word, others in REWORDED:
        if word in text and rng.random() < 0.35:
            text = text.replace(word, rng.choice(others), 1)
    return text.removeprefix("the ") if rng.random() < 0.25 else text


def _detection(rng: random.Random, figures: Sequence[Figure], wh: Size) -> Iterator[tuple[str, str]]:
    """Categories that are there and others: shapes, or coloured shapes."""
    for _ in range(rng.randint(1, 2)):
        by_shape = rng.random() < 0.7
        names = {figure: figure.shape if by_shape else figure.look for figure in figures}
        there = sorted(set(names.values()))
        rng.shuffle(there)
        others = (
            [*SHAPES] if by_shape else [f"{rng.choice(COLOURS)} {rng.choice(SHAPES)}" for _ in range(MAX_CATEGORIES)]
        )
        others += rng.sample(STRANGERS, 2) if rng.random() < 0.2 else []
        others = [name for name in dict.fromkeys(others) if name not in there]
        rng.shuffle(others)
        asked = there[: rng.randint(0, len(there))] if rng.random() < 0.35 else there
        asked = [*asked, *others[: rng.randint(0 if asked else 1, MAX_CATEGORIES - len(asked))]]
        rng.shuffle(asked)
        prompt = rng.choice(DETECTION).replace("{categories}", ", ".join(asked))
        yield prompt, answer([(figure, name) for figure, name in names.items() if name in asked], wh)


def _verified(
    rng: random.Random, image: Image.Image, figures: Sequence[Figure]
) -> tuple[Image.Image, tuple[tuple[str, str], ...]]:
    """A red box around a figure, or beside it, and whether a name is right."""
    figure = rng.choice(figures)
    x1, y1, x2, y2 = figure.box_xyxy
    is_there = rng.random() < 0.6
    if is_there:
        box = (x1, y1, x2, y2)
    else:
        w, h = x2 - x1, y2 - y1
        dx, dy = rng.choice(((0.7, 0.2), (-0.7, 0.2), (0.2, 0.7), (0.2, -0.7), (1.0, 1.0)))
        left, top = (
            min(max(0, v), most) for v, most in ((x1 + dx * w, image.width - w), (y1 + dy * h, image.height - h))
        )
        box = (left, top, left + w, top + h)
        is_there = abs(left - x1) < 0.2 * w and abs(top - y1) < 0.2 * h
    asked = []
    for name in rng.sample([figure.look, figure.shape, f"the {figure.look}"], 2):
        asked.append((name, is_there))
    wrong = f"{rng.choice([c for c in COLOURS if c != figure.colour])} {figure.shape}"
    asked += [(wrong, False)] * is_there + [(rng.choice([s for s in SHAPES if s != figure.shape]), False)] * is_there
    pairs = tuple((verify.PROMPT.replace("{label}", name), "Yes" if right else "No") for name, right in asked)
    return verify.with_red_box(image, box), pairs


def answer(named: Sequence[tuple[Figure, str]], wh: Size) -> str:
    """The true answer in its one right order, in px of the picture, which the model takes as it is."""
    return write_answer([(figure.box_xyxy, name) for figure, name in named], wh)
