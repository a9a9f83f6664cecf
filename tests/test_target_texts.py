"""Target texts: what is learned reads back as what is true."""

import random
from typing import Any

import pytest

from qwenft.core.answer import read_answer
from qwenft.core.boxes import smart_resize, to_input_px
from qwenft.core.samples import Sample, SceneObject
from qwenft.model.inputs import target_text

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


@pytest.mark.parametrize("task", ["grounding", "detection", "caption"])
def test_the_target_text_of_10000_samples_reads_back_as_their_objects(task: str) -> None:
    for seed in range(10_000):
        sample = generated(task, seed)
        input_wh = smart_resize(sample.image_wh, 56 * 56, 1280 * 28 * 28)
        text = target_text(sample, input_wh)
        if task == "caption":
            assert text == sample.captions[0] and not read_answer(text).objects
            continue
        true = [
            (to_input_px(item.bbox, sample.image_wh, input_wh), item.label) for item in sample.objects if not item.crowd
        ]
        answer = read_answer(text)
        assert answer.status == ("ok" if true else "empty"), (text, answer)
        left = [(found.box_xyxy, found.label) for found in answer.objects]
        assert len(left) == len(true)
        for box, label in true:
            same = [f for f in left if f[1] == label and max(abs(a - b) for a, b in zip(f[0], box, strict=True)) <= 1]
            assert same, (box, label, text)
            left.remove(same[0])
