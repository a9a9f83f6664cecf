"""The demo's generated pictures: repeatable, boxes tight, every expression names exactly one figure."""

import json
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from qwenft.core.boxes import smart_resize
from qwenft.core.runs import Contract
from qwenft.demo import scenes
from qwenft.demo.language import Figure
from qwenft.demo.scenes import Scene, make_scene, write_scenes

TINY = Path(scenes.__file__).parent / "assets" / "tiny"
EXPRESSION = re.compile(
    r"the (?:(?P<size>smallest|largest) |(?P<end>left|right|top|bottom)most )?"
    r"(?:(?P<colour>red|green|blue|yellow|purple|orange|white) )?"
    r"(?P<shape>circle|square|triangle|star|cross|diamond|ring|heart|object)"
    r"(?: (?P<relation>above|below|to the left of|to the right of) the (?P<mark>[a-z]+ [a-z]+))?"
)


def figures_meant(expression: str, figures: tuple[Figure, ...]) -> list[Figure]:
    """Read an expression by its words alone, without the generator's own rules."""
    match = EXPRESSION.fullmatch(expression)
    assert match, expression
    words = match.groupdict()
    group = [
        f
        for f in figures
        if words["shape"] in (f.shape, "object") and (words["colour"] is None or words["colour"] == f.colour)
    ]
    if words["size"]:
        areas = [f.area for f in group]
        wanted = min(areas) if words["size"] == "smallest" else max(areas)
        return [f for f in group if f.area == wanted]
    if words["end"]:
        axis = 0 if words["end"] in ("left", "right") else 1
        values = [f.centre[axis] for f in group]
        wanted_value = min(values) if words["end"] in ("left", "top") else max(values)
        return [f for f in group if f.centre[axis] == wanted_value]
    if words["relation"]:
        marks = [f for f in figures if f"{f.colour} {f.shape}" == words["mark"]]
        assert len(marks) == 1, f"{expression}: {len(marks)} landmarks"
        axis = 1 if words["relation"] in ("above", "below") else 0
        sign = 1 if words["relation"] in ("above", "to the left of") else -1
        return [f for f in group if f is not marks[0] and sign * (marks[0].centre[axis] - f.centre[axis]) > 0]
    return group


def kind_of(expression: str) -> str:
    match = EXPRESSION.fullmatch(expression)
    assert match, expression
    return next((kind for kind in ("size", "end", "relation") if match[kind]), "look")


def box_of_pixels(image: Image.Image, figure: Figure, margin: int) -> tuple[int, int, int, int]:
    """Box around the pixels of the figure's colour in and near its box, found in the picture itself."""
    x1, y1, x2, y2 = figure.box_xyxy
    left, top = max(0, x1 - margin), max(0, y1 - margin)
    near = np.asarray(image)[top : y2 + margin, left : x2 + margin]
    rows, columns = np.nonzero((near == scenes.COLOURS[figure.colour]).all(-1))
    return (left + columns.min(), top + rows.min(), left + columns.max() + 1, top + rows.max() + 1)


def asked_of(scene: Scene) -> list[tuple[str, Figure]]:
    return [(question.text, *question.figures) for question in scene.questions]


seeds = st.integers(0, 2**32).map(lambda seed: make_scene(random.Random(seed)))


@given(seeds)
@settings(max_examples=150, deadline=None)
def test_every_expression_names_exactly_one_figure(scene: Scene) -> None:
    for expression, figure in asked_of(scene):
        assert figures_meant(expression, scene.figures) == [figure], expression


@given(seeds)
@settings(max_examples=150, deadline=None)
def test_what_tells_a_figure_from_the_others_is_large_enough_to_be_seen(scene: Scene) -> None:
    for expression, figure in asked_of(scene):
        words = EXPRESSION.fullmatch(expression)
        assert words
        rivals = [f for f in scene.figures if f is not figure and words["shape"] in (f.shape, "object")]
        rivals = [f for f in rivals if words["colour"] in (None, f.colour)]
        for rival in rivals:
            if words["size"]:
                assert max(rival.area, figure.area) >= 1.6 * min(rival.area, figure.area)
            if words["end"]:
                axis = 0 if words["end"] in ("left", "right") else 1
                assert abs(rival.centre[axis] - figure.centre[axis]) >= 8


@given(seeds)
@settings(max_examples=100, deadline=None)
def test_boxes_are_tight_around_the_pixels_and_every_drawn_pixel_is_in_one(scene: Scene) -> None:
    pixels = np.asarray(scene.image)
    drawn = np.zeros(pixels.shape[:2], bool)
    for colour in scenes.COLOURS.values():
        drawn |= (pixels == colour).all(-1)
    for figure in scene.figures:
        assert box_of_pixels(scene.image, figure, margin=scenes.GAP - 1) == figure.box_xyxy
        x1, y1, x2, y2 = figure.box_xyxy
        drawn[y1:y2, x1:x2] = False
    assert not drawn.any()


@given(seeds)
@settings(max_examples=100, deadline=None)
def test_no_picture_is_resized_by_the_embedded_model(scene: Scene) -> None:
    contract = Contract.read(TINY)
    assert smart_resize(scene.image.size, contract.min_pixels, contract.max_pixels) == scene.image.size


def test_all_kinds_of_expressions_are_asked_in_fair_shares() -> None:
    expressions = [words for seed in range(300) for words, _ in asked_of(make_scene(random.Random(seed)))]
    kinds = Counter(kind_of(expression) for expression in expressions)
    assert set(kinds) == {"look", "size", "end", "relation"}
    assert min(kinds.values()) > 0.1 * kinds.total()


def test_no_question_is_asked_twice_about_a_picture() -> None:
    for seed in range(300):
        asked = [question.text for question in make_scene(random.Random(seed)).questions]
        assert len(asked) == len(set(asked))


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_seed_writes_the_same_files_and_another_seed_others(tmp_path: Path) -> None:
    one, same, other = (
        folder_bytes(write_scenes(tmp_path / name, num_train=8, num_val=4, seed=seed))
        for name, seed in (("one", 3), ("same", 3), ("other", 4))
    )
    assert one == same
    assert len(one) == 8 + 4 + 2
    assert not set(one.values()) & set(other.values())


def test_train_and_val_share_no_picture(tmp_path: Path) -> None:
    folder = write_scenes(tmp_path, num_train=60, num_val=30, seed=0)
    pixels = {
        split: {Image.open(path).tobytes() for path in (folder / "images").glob(f"{split}-*.png")}
        for split in ("train", "val")
    }
    assert (len(pixels["train"]), len(pixels["val"])) == (60, 30)
    assert not pixels["train"] & pixels["val"]


def test_a_picture_drawn_before_is_not_taken_again(tmp_path: Path) -> None:
    first, second = (make_scene(random.Random(seed)) for seed in (1, 2))
    drawn = iter([first, first, second])
    folder = write_scenes(tmp_path, num_train=1, num_val=1, seed=0, make=lambda rng: next(drawn))
    assert Image.open(folder / "images" / "val-0000.png").tobytes() == second.image.tobytes()


def test_records_hold_the_picture_the_expression_and_the_box(tmp_path: Path) -> None:
    folder = write_scenes(tmp_path, num_train=5, num_val=3, seed=1)
    for split, count in (("train", 5), ("val", 3)):
        rows = [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]
        assert len({row["image"] for row in rows}) == count
        for row in rows:
            assert set(row) == {"image", "query", "bbox"}
            width, height = Image.open(folder / row["image"]).size
            x1, y1, x2, y2 = row["bbox"]
            assert 0 <= x1 < x2 <= width
            assert 0 <= y1 < y2 <= height
