"""How an answer is written and read back: malformed ones and hostile ones."""

import importlib.util
import json
import random
import time
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from malformed_answers import NOT_A_BOX, READABLE

from qwenft.core.answer import Answer, Prompts, read_answer, score_of, write_answer


def holds_together(answer: Answer) -> bool:
    """Boxes exactly where the status says so, and a reason exactly where something is wrong."""
    has_boxes = answer.status in ("ok", "salvaged")
    has_reason = answer.status in ("salvaged", "unparsable")
    return bool(answer.objects) == has_boxes and bool(answer.how) == has_reason


@pytest.mark.parametrize(
    ("text", "status", "boxes", "labels"), [row[1:] for row in READABLE], ids=[row[0] for row in READABLE]
)
def test_boxes_are_read_out_of_answers_as_they_occur(text: str, status: str, boxes: list, labels: list) -> None:
    answer = read_answer(text)
    assert (answer.status, [item.box_xyxy for item in answer.objects]) == (status, boxes), answer
    assert [item.label for item in answer.objects] == labels
    assert holds_together(answer)


@pytest.mark.parametrize(("text", "status"), [row[1:] for row in NOT_A_BOX], ids=[row[0] for row in NOT_A_BOX])
def test_no_box_is_made_up_and_none_is_told_from_unreadable(text: str, status: str) -> None:
    answer = read_answer(text)
    assert answer.status == status, answer
    assert holds_together(answer)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("[[10, 20]]", "points"),
        ('[{"bbox_2d": [10, 2', "cut off"),
        ('[{"bbox": [1, 2, 3, 4]}]', "bbox in place of bbox_2d"),
        ('[{"bbox_2d": [3, 2, 1, 4]}]', "reversed"),
        ('[{"bbox_2d": [1, 2, 3, 4]}, {"bbox_2d": [1, 2, 3, 4]}]', "repeated"),
        ('[{"bbox_2d": [1, 2, 3, 4], "label": "a"}, {"bbox_2d": [1', "cut off"),
        ("I see no dog.", "no number"),
    ],
)
def test_what_was_repaired_or_why_nothing_could_be_read_is_said(text: str, word: str) -> None:
    assert word in read_answer(text).how


@pytest.mark.parametrize("numbers", [(0.1, 0.2, 0.3, 0.4), (100, 200, 999, 1000), (-3, 5, 4000, 6000)])
def test_numbers_are_never_rescaled_whatever_they_look_like(numbers: tuple[float, ...]) -> None:
    answer = read_answer(json.dumps([{"bbox_2d": numbers, "label": "dog"}]))
    assert (answer.status, answer.objects[0].box_xyxy) == ("ok", numbers)


SIDES = st.integers(28, 4000)
BOXES = st.tuples(*[st.floats(-50, 4100, allow_nan=False)] * 4)


@given(st.lists(st.tuples(BOXES, st.text()), max_size=5, unique_by=lambda item: item[1]), st.tuples(SIDES, SIDES))
@example([((1.0, 2.0, 30.0, 40.0), '"}], {"bbox_2d": [9, 9, 9, 9]')], (56, 56))
@example([((1.0, 2.0, 30.0, 40.0), "“左边”，```\n\\")], (56, 56))
@example([((1.0, 2.0, 30.0, 40.0), "none")], (56, 56))
def test_what_is_written_is_read_back_and_stands_inside_the_input(objects: list, input_wh: tuple[int, int]) -> None:
    text = write_answer(objects, input_wh)
    answer = read_answer(text)
    assert answer.status == ("ok" if objects else "empty")
    assert sorted(item.label for item in answer.objects) == sorted(label for _, label in objects)
    written = [tuple(item["bbox_2d"]) for item in json.loads(text)]
    for item, numbers in zip(answer.objects, written, strict=True):
        x1, y1, x2, y2 = item.box_xyxy
        assert (x1, y1, x2, y2) == numbers
        assert 0 <= x1 < x2 <= input_wh[0]
        assert 0 <= y1 < y2 <= input_wh[1]


@given(
    st.lists(st.tuples(BOXES, st.text("ab \"\\'[]{}，", max_size=12)), min_size=1, max_size=4, unique_by=lambda x: x[1])
)
def test_spans_point_at_the_four_coordinates(objects: list) -> None:
    text = write_answer(objects, (4000, 3000))
    for item in read_answer(text).objects:
        assert item.span is not None
        assert tuple(float(n) for n in text[slice(*item.span)].split(",")) == item.box_xyxy


def test_spans_step_over_numbers_in_a_label_and_survive_a_repair() -> None:
    text = '[{"label": "7, 8, 9, 10", "bbox_2d": [10, 20, 30, 40]}]'
    assert text[slice(*read_answer(text).objects[0].span)] == "10, 20, 30, 40"
    cut = '```json\n[{"bbox_2d": [10, 20, 30, 40], "label": "x"}, {"bbox'
    assert cut[slice(*read_answer(cut).objects[0].span)] == "10, 20, 30, 40"


@given(st.one_of(st.text(), st.text("[]{}()\"':, 0123456789.-bx<>|`\n", max_size=200)))
def test_no_text_raises_and_no_status_contradicts_its_boxes(text: str) -> None:
    assert holds_together(read_answer(text))


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text("box 12,", max_size=8),
        lambda inner: (
            st.lists(inner, max_size=5)
            | st.dictionaries(st.sampled_from(["bbox_2d", "bbox", "label", "x1", "point_2d", "dog"]), inner)
        ),
    )
)
def test_no_json_value_raises(value: object) -> None:
    assert holds_together(read_answer(json.dumps(value)))


@given(st.sampled_from([row[1] for row in READABLE]), st.data())
@settings(max_examples=300)
def test_a_damaged_real_answer_never_raises_and_holds_together(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text)))
    stop = data.draw(st.integers(start, len(text)))
    assert holds_together(read_answer(text[:start] + data.draw(st.text("[]{}\"',:09 a，“", max_size=4)) + text[stop:]))


def load_benchmark() -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks" / "mutate_answers.py"
    spec = importlib.util.spec_from_file_location("mutate_answers", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_ten_thousand_damaged_answers_are_read_without_a_made_up_number() -> None:
    benchmark, draw = load_benchmark(), random.Random(1)
    texts = [row[1] for row in (*READABLE, *NOT_A_BOX)]
    for _ in range(10_000):
        text = benchmark.damaged(draw.choice(texts), draw, texts)
        answer = read_answer(text)
        assert benchmark.problem(text, answer) == "", (text, answer)


def test_thoughts_leave_the_spans_true() -> None:
    text = '<think> [1, 2, 3, 4] </think><answer>[{"bbox_2d": [10, 20, 30, 40]}]</answer>'
    (found,) = read_answer(text).objects
    assert text[slice(*found.span)] == "10, 20, 30, 40"


@pytest.mark.parametrize("cut", range(1, 60))
def test_an_answer_cut_anywhere_gives_no_box_that_was_not_in_it(cut: int) -> None:
    whole = '[{"bbox_2d": [110, 220, 330, 440], "label": "dog"}, {"bbox_2d": [111, 222, 333, 444], "label": "cat"}]'
    boxes = {item.box_xyxy for item in read_answer(whole[:-cut]).objects}
    assert boxes <= {item.box_xyxy for item in read_answer(whole).objects}


HOSTILE = [
    "1",
    "1,",
    "1, 2, 3, ",
    "[",
    "{",
    "(",
    "[1,",
    "(1,2),",
    "( ",
    " ",
    "\n",
    ",",
    '"',
    '{"label": "',
    "'label': ",
    '"label":""',
    "```",
    "<ref>",
    "point ",
    "<|im_end|>",
    "[[1,2],",
    '{"bbox_2d":',
    '{"bbox_2d": [1, 2, 3, 4], "label": "',
    "-",
    "<think>",
    "</think>",
    "<answer>",
    "[] ",
    "x1: 1 ",
    "x1: 1, y1: 2, ",
    "'bbox_2d': [], ",
    "label: ",
    '"bbox="',
    "1.",
    "\\",
]


@pytest.mark.parametrize("piece", HOSTILE)
def test_a_megabyte_of_anything_is_read_in_linear_time(piece: str) -> None:
    def seconds(size: int) -> float:
        text = piece * (size // len(piece))
        start = time.process_time()
        assert holds_together(read_answer(text))
        return time.process_time() - start

    assert seconds(1_000_000) < 10  # linear: well under a second; quadratic: hours


def test_the_text_of_the_data_cannot_fill_in_the_prompt() -> None:
    prompts = Prompts()
    assert "{categories}" in prompts.text("grounding", query="a {categories} {expression}")
    assert prompts.text("detection", categories=("cat", "dog")).count("'cat, dog'") == 1
    assert prompts.text("caption") == prompts.caption


def test_the_prompts_are_the_qwen_teams_own() -> None:
    assert Prompts().text("grounding", "the dog") == (
        "Locate the dog in this image and output the bbox coordinates in JSON format."
    )
    assert Prompts().text("detection", categories=["a", "b"]) == (
        "Locate every instance that belongs to the following categories: 'a, b'. "
        "Report bbox coordinates in JSON format."
    )


def test_a_score_is_the_geometric_mean_and_absent_where_nothing_was_measured() -> None:
    assert score_of([0.25, 1.0]) == pytest.approx(0.5)
    assert score_of([]) is None
    assert 0 < (score_of([0.0, 1.0]) or 0) < 1e-5
