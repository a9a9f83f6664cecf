"""How an answer is written and read back: malformed ones and hostile ones."""

import json
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qwenft.core.answer import Answer, Prompts, read_answer, score_of, write_answer

DOG = (10.0, 20.0, 30.0, 40.0)
CAT = (5.0, 6.0, 70.0, 80.0)

# id, the answer, status, boxes, labels.  Where a thread is named, such answers were reported there.
READABLE = [
    ("documented form", '[{"bbox_2d": [10, 20, 30, 40], "label": "dog"}]', "ok", [DOG], ["dog"]),
    ("cookbook's fence", '```json\n[\n\t{"bbox_2d": [10, 20, 30, 40], "label": "dog"}\n]\n```', "ok", [DOG], ["dog"]),
    ("fence not closed", '```json\n[{"bbox_2d": [10, 20, 30, 40], "label": "dog"}]', "ok", [DOG], ["dog"]),
    ("prose around the fence", 'Here:\n```json\n[{"bbox_2d": [10, 20, 30, 40]}]\n```\nDone.', "ok", [DOG], [""]),
    ("a fence inside a label", '[{"bbox_2d": [10, 20, 30, 40], "label": "```json"}]', "ok", [DOG], ["```json"]),
    ("end token left in", '[{"bbox_2d": [10, 20, 30, 40], "label": "dog"}]<|im_end|>', "ok", [DOG], ["dog"]),
    ("fractions", '[{"bbox_2d": [10.0, 20, 30.0, 40], "label": "dog"}]', "ok", [DOG], ["dog"]),
    ("label null", '[{"bbox_2d": [10, 20, 30, 40], "label": null}]', "ok", [DOG], [""]),
    (
        "Chinese label, full-width comma in it: QwenLM/Qwen2.5-VL #1720",
        '[{"bbox_2d": [10, 20, 30, 40], "label": "红色的车，左边“大”"}]',
        "ok",
        [DOG],
        ["红色的车，左边“大”"],
    ),
    (
        "full-width punctuation as syntax: QwenLM/Qwen2.5-VL #1720",
        "［｛“bbox_2d”：［１０，20，30，40］，“label”：“红车，左”｝］",
        "salvaged",
        [DOG],
        ["红车，左"],
    ),
    ("one object, no list", '{"bbox_2d": [10, 20, 30, 40], "label": "dog"}', "salvaged", [DOG], ["dog"]),
    (
        "bbox for bbox_2d: modelscope/ms-swift #5280",
        '[{"bbox": [10, 20, 30, 40], "label": "dog"}]',
        "salvaged",
        [DOG],
        ["dog"],
    ),
    (
        "cut off in mid-list: QwenLM/Qwen2.5-VL #1035",
        '```json\n[{"bbox_2d": [10, 20, 30, 40], "label": "dog"}, {"bbox_2d": [5, 6, 70',
        "salvaged",
        [DOG],
        ["dog"],
    ),
    (
        "cut off in the last number",
        '[{"bbox_2d": [10, 20, 30, 40], "label": "dog"}, {"bbox_2d": [5, 6, 70, 8',
        "salvaged",
        [DOG],
        ["dog"],
    ),
    ("cut off in a label", '[{"bbox_2d": [10, 20, 30, 40], "label": "do', "salvaged", [DOG], [""]),
    (
        "a loop of one box, cut off: modelscope/ms-swift #5280",
        "[" + '{"bbox_2d": [10, 20, 30, 40], "label": "dog"}, ' * 50 + '{"bbox_2d": [10',
        "salvaged",
        [DOG],
        ["dog"],
    ),
    (
        "a loop of one box, whole",
        json.dumps([{"bbox_2d": [10, 20, 30, 40], "label": "dog"}] * 9),
        "salvaged",
        [DOG],
        ["dog"],
    ),
    ("trailing comma", '[{"bbox_2d": [10, 20, 30, 40], "label": "dog"},]', "salvaged", [DOG], ["dog"]),
    ("single quotes", "[{'bbox_2d': [10, 20, 30, 40], 'label': 'dog'}]", "salvaged", [DOG], ["dog"]),
    (
        "single quotes, escaped",
        r"[{'bbox_2d': [10, 20, 30, 40], 'label': 'man\'s dog'}]",
        "salvaged",
        [DOG],
        ["man's dog"],
    ),
    (
        "escaped quotes, trailing comma",
        r'[{"bbox_2d": [10, 20, 30, 40], "label": "the \"dog\""},]',
        "salvaged",
        [DOG],
        ['the "dog"'],
    ),
    (
        "label in front, broken JSON",
        '[{"label": "dog", "bbox_2d": [10, 20, 30, 40]} {"label": "cat", "bbox_2d": [5, 6, 70, 80]}]',
        "salvaged",
        [DOG, CAT],
        ["dog", "cat"],
    ),
    (
        "braces in a label, broken JSON",
        '[{"label": "{dog}", "bbox_2d": [10, 20, 30, 40]},]',
        "salvaged",
        [DOG],
        ["{dog}"],
    ),
    (
        "objects without a list",
        '{"bbox_2d": [10, 20, 30, 40], "label": "dog"}\n{"bbox_2d": [5, 6, 70, 80], "label": "cat"}',
        "salvaged",
        [DOG, CAT],
        ["dog", "cat"],
    ),
    (
        "two fences",
        '```json\n[{"bbox_2d": [10, 20, 30, 40]}]\n```\n```json\n[{"bbox_2d": [5, 6, 70, 80]}]\n```',
        "salvaged",
        [DOG, CAT],
        ["", ""],
    ),
    ("box tags: QwenLM/Qwen2.5-VL #1035", "<ref>dog</ref><box>(10,20),(30,40)</box>", "salvaged", [DOG], ["dog"]),
    (
        "Qwen2-VL's tokens",
        "<|object_ref_start|>dog<|object_ref_end|><|box_start|>(10,20),(30,40)<|box_end|><|im_end|>",
        "salvaged",
        [DOG],
        ["dog"],
    ),
    (
        "Qwen2-VL's tokens, a point word in the name",
        "<|object_ref_start|>point guard<|object_ref_end|><|box_start|>(10,20),(30,40)<|box_end|>",
        "salvaged",
        [DOG],
        ["point guard"],
    ),
    ("box tag with a list", "<box>[10, 20, 30, 40]</box>", "salvaged", [DOG], [""]),
    ("box tag with spaces", "<box>10 20 30 40</box>", "salvaged", [DOG], [""]),
    ("a printed array", "[10. 20]" + "[10 20 30 40]", "salvaged", [DOG], [""]),
    ("bare list", "[10, 20, 30, 40]", "salvaged", [DOG], [""]),
    ("nested list", "[[10, 20, 30, 40], [5, 6, 70, 80]]", "salvaged", [DOG, CAT], ["", ""]),
    ("two corners under the key", '[{"bbox_2d": [[10, 20], [30, 40]], "label": "dog"}]', "salvaged", [DOG], ["dog"]),
    (
        "several boxes under the key",
        '[{"bbox_2d": [[10, 20, 30, 40], [5, 6, 70, 80]], "label": "dog"}]',
        "salvaged",
        [DOG, CAT],
        ["dog", "dog"],
    ),
    (
        "wrapped in an object",
        '{"objects": [{"bbox_2d": [10, 20, 30, 40], "label": "dog"}]}',
        "salvaged",
        [DOG],
        ["dog"],
    ),
    ("labels as keys", '{"dog": [[10, 20, 30, 40]], "cat": [5, 6, 70, 80]}', "salvaged", [DOG, CAT], ["dog", "cat"]),
    ("named corners", '[{"x1": 10, "y1": 20, "x2": 30, "y2": 40, "label": "dog"}]', "salvaged", [DOG], ["dog"]),
    ("numbers as text", '[{"bbox_2d": ["10", "20", "30", "40"], "label": "dog"}]', "salvaged", [DOG], ["dog"]),
    ("a box as text", '[{"bbox_2d": "10, 20, 30, 40", "label": "dog"}]', "salvaged", [DOG], ["dog"]),
    ("prose: QwenLM/Qwen2.5-VL #1035", "The dog is at 10, 20, 30, 40 in the image.", "salvaged", [DOG], [""]),
    ("Chinese prose", "狗的坐标为（10，20），（30，40）。", "salvaged", [DOG], [""]),
    (
        "JSON in prose",
        'The dog: [{"bbox_2d": [10, 20, 30, 40], "label": "dog"}], as asked.',
        "salvaged",
        [DOG],
        ["dog"],
    ),
    ("reversed corners", '[{"bbox_2d": [30, 40, 10, 20], "label": "dog"}]', "salvaged", [DOG], ["dog"]),
    (
        "one entry null",
        '[{"bbox_2d": [10, 20, 30, 40], "label": "dog"}, {"bbox_2d": null, "label": "cat"}]',
        "salvaged",
        [DOG],
        ["dog"],
    ),
    (
        "one entry of three numbers",
        '[{"bbox_2d": [10, 20, 30, 40], "label": "dog"}, {"bbox_2d": [1, 2, 3]}]',
        "salvaged",
        [DOG],
        ["dog"],
    ),
]
NOT_A_BOX = [
    ("nothing", "", "unparsable"),
    ("white space", " \n", "unparsable"),
    ("empty list", "[]", "empty"),
    ("empty list, spaced and fenced", "```json\n[ ]\n```", "empty"),
    ("a box that is null", '[{"bbox_2d": null, "label": "dog"}]', "empty"),
    ("a label with no boxes", '{"dog": []}', "empty"),
    ("the word None", "None.", "empty"),
    ("null", "null<|im_end|>", "empty"),
    ("Chinese none", "没有。", "empty"),
    ("a sentence: it may be a refusal", "I see no dog.", "unparsable"),
    ("a point: QwenLM/Qwen2.5-VL #1035", "[[10, 20]]", "unparsable"),
    ("two points: never the corners of a box", "[[10, 20], [30, 40]]", "unparsable"),
    (
        "points under their key",
        '[{"point_2d": [10, 20], "label": "a"}, {"point_2d": [30, 40], "label": "b"}]',
        "unparsable",
    ),
    ("points in prose", "The points are (10, 20), (30, 40)", "unparsable"),
    ("a polygon", '[{"bbox_2d": [10, 20, 30, 20, 30, 40, 10, 40]}]', "unparsable"),
    ("three numbers", '[{"bbox_2d": [10, 20, 30], "label": "dog"}]', "unparsable"),
    ("cut off in the first box: its last number may be longer", '[{"bbox_2d": [10, 20, 30, 4', "unparsable"),
    ("only a label", '[{"label": "dog"}]', "unparsable"),
    ("not finite", '[{"bbox_2d": [NaN, 20, 30, 40]}]', "unparsable"),
    ("out of every picture", '[{"bbox_2d": [1, 2, 3, 123456789012]}]', "unparsable"),
    ("truth values", '[{"bbox_2d": [true, false, true, true]}]', "unparsable"),
    ("a number with letters", "img_10, v2.0", "unparsable"),
]


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
    assert [item.label for item in answer.objects] == [label for _, label in objects]
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
