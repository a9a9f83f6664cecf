"""The bbox convention: found by refutation, said with its evidence, asked for where the data leave it open."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenft.core.boxes import Box, Size
from qwenft.core.errors import DataError
from qwenft.prepare.convention import Observed, confirm, decide, misfit, obey

SIZE = (640, 480)


def boxes_of(count: int, image_wh: Size, seed: int = 0) -> list[Box]:
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        x1, x2 = sorted(draw.uniform(0, image_wh[0]) for _ in range(2))
        y1, y2 = sorted(draw.uniform(0, image_wh[1]) for _ in range(2))
        found.append((x1, y1, x2 + 1e-3, y2 + 1e-3))
    return found


def written_as(box: Box, convention: str, image_wh: Size) -> Box:
    """The inverse of core.boxes.to_xyxy, written apart from it."""
    x1, y1, x2, y2 = box
    kind, _, unit = convention.partition("_")
    if kind == "xywh":
        x2, y2 = x2 - x1, y2 - y1
    elif kind == "cxcywh":
        x1, y1, x2, y2 = (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
    whole = {"": (1, 1), "norm": image_wh, "1000": (image_wh[0] / 1000, image_wh[1] / 1000)}[unit]
    return (x1 / whole[0], y1 / whole[1], x2 / whole[0], y2 / whole[1])


def observed(boxes: list[Box], image_wh: Size = SIZE) -> list[Observed]:
    return [Observed(box, image_wh, f"row {number}") for number, box in enumerate(boxes)]


ALL = ("xyxy", "xywh", "cxcywh", "xyxy_norm", "xywh_norm", "cxcywh_norm", "xyxy_1000")


@pytest.mark.parametrize(
    ("convention", "image_wh"),
    [
        *((name, (640, 480)) for name in ALL),
        *((name, (300, 900)) for name in ALL),
        *((name, (1920, 1080)) for name in ALL[:6]),
    ],
    ids=str,
)
def test_each_convention_is_found_from_its_boxes(convention: str, image_wh: Size) -> None:
    rows = [written_as(box, convention, image_wh) for box in boxes_of(200, image_wh)]
    assert decide(observed(rows, image_wh)).convention == convention


@given(st.sampled_from(ALL[:6]), st.integers(0, 10_000))
def test_a_verdict_is_never_wrong_about_clean_boxes(convention: str, seed: int) -> None:
    rows = [written_as(box, convention, SIZE) for box in boxes_of(60, SIZE, seed)]
    try:
        verdict = decide(observed(rows))
    except DataError:
        return  # to ask is always right
    assert verdict.convention == convention


def test_one_dirty_row_does_not_turn_the_verdict() -> None:
    rows = boxes_of(199, SIZE)
    assert decide(observed([*rows, (300, 300, 200, 200)])).convention == "xyxy"


def test_a_dirty_row_against_no_other_evidence_leads_to_a_question() -> None:
    """All boxes lie in the upper left quarter, so that only one reversed box speaks against corners."""
    rows = [(10.0 + n, 10.0, 60.0 + n, 70.0) for n in range(99)]
    with pytest.raises(DataError) as caught:
        decide(observed([*rows, (50, 50, 40, 40)]))
    assert "xyxy" in str(caught.value) and "xywh" in str(caught.value)


def test_an_undecided_set_shows_three_rows_under_each_reading_and_the_option() -> None:
    with pytest.raises(DataError) as caught:
        decide(observed([(300, 200, 310, 210 + n) for n in range(5)]))
    message, hint = str(caught.value), caught.value.hint
    assert hint == "--bbox-format xyxy or --bbox-format xywh or --bbox-format cxcywh"
    assert message.count("row 0") == message.count("row 1") == message.count("row 2") == 3
    assert "row 3" not in message
    assert "[300, 200, 310, 210] -> x1, y1, x2, y2 = [145, 95, 455, 305] of 640 x 480 px" in message


def test_readings_that_give_the_same_boxes_need_no_question() -> None:
    assert decide(observed([(0, 0, 50, 40), (0, 0, 600, 400)]), ("xyxy", "xywh")).convention == "xyxy"


def test_a_box_far_outside_its_picture_does_not_turn_pixels_into_thousandths() -> None:
    rows = [(100.0, 80.0, 120.0 + n, 90.0 + n) for n in range(11)]
    assert decide(observed([*rows, (100, 80, 170, 90)], (160, 120))).convention == "xyxy"


def test_numbers_up_to_1000_in_large_pictures_are_not_taken_for_pixels_silently() -> None:
    rows = [written_as(box, "xyxy_1000", (1920, 1080)) for box in boxes_of(40, (1920, 1080))]
    with pytest.raises(DataError) as caught:
        decide(observed([(a, b, c, min(d, 1000)) for a, b, c, d in rows if d < 1000], (1920, 1080)))
    assert "xyxy_1000" in caught.value.hint


def test_the_evidence_is_said_with_numbers_and_an_example() -> None:
    said = decide(observed([(400, 300, 600, 400), (10, 20, 200, 400)])).sentence()
    assert said.startswith("xyxy: 2 of 2 boxes fit (found by refutation)")
    assert "xywh is refuted by 1, e.g. row 0: [400, 300, 600, 400], x2 = 1000 in a picture 640 px wide" in said


def test_a_set_that_fits_nothing_says_so_and_how_to_go_on() -> None:
    with pytest.raises(DataError) as caught:
        decide(observed([(5000, 5000, 6000, 6000)] * 4))
    assert "no bbox convention fits the 4 boxes" in str(caught.value)
    assert caught.value.hint.startswith("--bbox-format")


def test_a_stated_convention_is_still_checked() -> None:
    corners = boxes_of(100, SIZE)
    with pytest.raises(DataError) as caught:
        confirm(observed(corners), "xywh", "coco")
    assert "--bbox-format xyxy" in caught.value.hint
    sides = [written_as(box, "xywh", SIZE) for box in corners]
    assert confirm(observed(sides), "xywh", "coco").how == "stated by coco"


def test_what_the_user_says_is_obeyed_and_measured() -> None:
    verdict = obey(observed(boxes_of(50, SIZE)), "xywh")
    assert verdict.convention == "xywh"
    assert next(e for e in verdict.evidence if e.reading == "xywh").refuted > 10


@pytest.mark.parametrize(
    ("numbers", "reading", "fits"),
    [
        pytest.param((0, 0, 640.9, 480.9), "xyxy", True, id="under 1 px outside"),
        pytest.param((0, 0, 641.1, 480), "xyxy", False, id="over 1 px outside"),
        pytest.param((10, 10, 10, 20), "xyxy", False, id="flat"),
        pytest.param((-0.9, 0, 30, 20), "xyxy", True, id="a little left of it"),
        pytest.param((0.1, 0.1, 0.5, 0.5), "xyxy", False, id="not pixels"),
        pytest.param((0.1, 0.1, 0.5, 0.5), "cxcywh_norm", False, id="centre form leaves at the left"),
        pytest.param((0.3, 0.3, 0.5, 0.5), "cxcywh_norm", True, id="centre form"),
    ],
)
def test_what_refutes_a_reading(numbers: Box, reading: str, fits: bool) -> None:
    assert (misfit(numbers, reading, SIZE) == "") == fits
