"""Target texts: what is learned reads back as what is true."""

import json
import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenft.core.answer import MOST_BOXES, divided, read_answer, write_answer
from qwenft.core.boxes import smart_resize, to_input_px
from qwenft.core.samples import Sample, SceneObject
from qwenft.model.inputs import target_text
from qwenft.prepare.questions import Wanted, more_questions
from qwenft.prepare.splits import Division

LABELS = (
    "dog",
    "红色的狗",
    'a "quoted" sign',
    "[1, 2, 3, 4]",
    "box {x}",
    "none",
    "tab\there",
    "（全角，１２）",
    "it's",
    "\\n",
    "",
)

NAMES = (
    *("cup", "dog", "tree", "car", "sofa", "lamp", "book", "shoe", "bird", "boat", "fork", "kite", "bench", "clock"),
    *("狗", "杯子", "树", "汽车", "bear", "horse", "plate", "train", "truck", "chair", "phone", "apple", "spoon"),
    *("zebra", "skate", "glove"),
)


def generated(task: Any, seed: int) -> Sample:
    draw = random.Random(f"{task} {seed}")
    width, height = draw.randrange(30, 2000), draw.randrange(30, 2000)
    objects = []
    for _ in range(draw.choice((0, 1, 1, 2, 3, 8)) if task != "caption" else 0):
        x1, y1 = draw.uniform(0, width - 2), draw.uniform(0, height - 2)
        box = (x1, y1, draw.uniform(x1 + 1, width), draw.uniform(y1 + 1, height))
        objects.append(SceneObject(box, draw.choice(LABELS), task == "detection" and draw.random() < 0.1))
    captions = (f"A picture of {draw.choice(LABELS[:3])}.",) if task == "caption" else ()
    return Sample("s", task, f"images/ab/{'ab' * 32}.png", width, height, "it", tuple(objects), (), captions)


def reads_back(sample: Sample) -> bool:
    """Whether the answer has every object of the sample once, to the pixel, and nothing else."""
    input_wh = smart_resize(sample.image_wh, 56 * 56, 1280 * 28 * 28)
    text = target_text(sample, input_wh)
    answer = read_answer(text)
    if sample.task == "caption":
        return text == sample.captions[0] and not answer.objects
    true = [
        (to_input_px(item.bbox, sample.image_wh, input_wh), item.label)
        for item in dict.fromkeys(sample.objects)
        if not item.crowd
    ]
    left = [(found.box_xyxy, found.label) for found in answer.objects]
    for box, label in true:
        same = [f for f in left if f[1] == label and max(abs(a - b) for a, b in zip(f[0], box, strict=True)) <= 1]
        if not same:
            return False
        left.remove(same[0])
    return not left and answer.status == ("ok" if true else "empty")


@pytest.mark.parametrize("task", ["grounding", "detection", "caption"])
def test_the_target_text_of_10000_samples_reads_back_as_their_objects(task: str) -> None:
    assert [sample for sample in (generated(task, seed) for seed in range(10_000)) if not reads_back(sample)] == []


def test_so_does_that_of_10000_questions_that_prepare_makes() -> None:
    """Negatives and their positives, some of the categories, and parts of a list too long for one question."""
    names = tuple(f"{colour}{thing}" for colour in ("", "red ", "blue ") for thing in NAMES)
    own = []
    for seed in range(1500):
        draw, sample = random.Random(seed), generated("detection", seed)
        objects = [SceneObject(item.bbox, draw.choice(names), item.crowd) for item in sample.objects]
        image = f"images/ab/{seed:064d}.png"
        own.append(replace(sample, id=f"s/{seed}", image=image, objects=(*objects, *objects[:1]), categories=names))
    made = more_questions(Division({"train": tuple(own)}, {"train": "train"}, ()), "s", Wanted(2.0, subsets=3.0))
    questions = list(made.division.samples["train"])
    assert len(questions) > 10_000 and made.counts["questions_made"] == len(questions) - len(own)
    assert min(made.counts[f"{what}_made"] for what in ("negatives", "positives", "subsets", "parts")) > 1000
    assert [sample for sample in questions if not reads_back(sample)] == []


WHOLE = st.integers(0, 30)
BOXES = st.builds(lambda x, y, w, h: (float(x), float(y), float(x + w + 1), float(y + h + 1)), *[WHOLE] * 4)


@given(st.lists(st.tuples(BOXES, st.sampled_from(("dog", "cup"))), max_size=12), st.randoms(use_true_random=False))
def test_one_answer_whatever_order_the_boxes_come_in_and_each_box_in_it_once(objects: list[Any], draw: Any) -> None:
    text = write_answer(objects, (84, 84))
    written = [(*item["bbox_2d"], item["label"]) for item in json.loads(text)]
    assert set(written) == {(*map(int, box), label) for box, label in objects} and len(set(written)) == len(written)
    corners = [(y, x) for x, y, *_ in written]
    assert corners == sorted(corners)  # from top to bottom, then from left to right
    again = [*objects, *objects[:3]]
    draw.shuffle(again)
    assert write_answer(again, (84, 84)) == text
    assert read_answer(text).status == ("ok" if objects else "empty")


def test_a_long_list_ends_after_the_stated_number_with_the_uppermost_boxes() -> None:
    objects = [((10.0, float(y), 20.0, float(y + 4)), "cup") for y in range(MOST_BOXES + 30)]
    answer = read_answer(write_answer(objects[::-1], (112, 112)))
    assert [item.box_xyxy for item in answer.objects] == [box for box, _ in objects[:MOST_BOXES]]


@given(st.integers(0, 1300))
def test_categories_are_divided_in_order_into_questions_of_the_stated_size(number: int) -> None:
    categories = tuple(f"thing {n}" for n in range(number))
    parts = divided(categories)
    assert tuple(name for part in parts for name in part) == categories
    assert max(map(len, parts)) <= 80 and len(parts) == max(1, -(-number // 80))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
