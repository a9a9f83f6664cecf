"""The one frame: our resize equals the released processor's, and boxes survive the way there and back."""

import json
import math
from functools import cache
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

import qwenft
from qwenft.core import boxes
from qwenft.core.boxes import (
    CONVENTIONS,
    FACTOR,
    Box,
    Size,
    area,
    clip,
    iou,
    num_image_tokens,
    smart_resize,
    to_image_px,
    to_input_px,
    to_xyxy,
)

TINY = Path(qwenft.__file__).parent / "demo" / "assets" / "tiny"
REAL = Path(__file__).parents[2] / "shared" / "data" / "qwen25vl-processor"
PROCESSORS = [TINY, REAL] if REAL.is_dir() else [TINY]
QWEN = (3136, 12845056)
"""min_pixels and max_pixels of the released preprocessor_config.json."""

SIDES = st.integers(1, 20_000)
SIZES = st.tuples(SIDES, SIDES)
BUDGETS = st.one_of(
    st.just(QWEN),
    st.tuples(st.integers(784, 200_000), st.integers(200_000, 20_000_000)),
    st.tuples(st.just(12_544), st.just(28_224)),
)


def is_thin(image_wh: Size) -> bool:
    """Whether a side rounds to nothing: there the processor and qwen-vl-utils differ, and the processor is right."""
    return min(round(side / FACTOR) for side in image_wh) == 0


@given(SIZES, BUDGETS)
@example((640, 480), QWEN)
@example((42, 42), QWEN)  # 1.5 and 2.5 patches: Python rounds halves to even
@example((70, 70), QWEN)
@example((10, 1500), QWEN)
@example((1, 200), QWEN)
@example((8000, 6000), QWEN)
@example((20_000, 100), (784, 784))
def test_our_resize_is_the_processors(image_wh: Size, budget: tuple[int, int]) -> None:
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize as theirs

    width, height = image_wh
    try:
        expected = theirs(height, width, FACTOR, *budget)
    except ValueError:
        with pytest.raises(ValueError, match="over 200 times"):
            smart_resize(image_wh, *budget)
        return
    assert smart_resize(image_wh, *budget) == expected[::-1]


@given(SIZES)
def test_our_resize_is_qwen_vl_utils_own_except_for_thin_pictures(image_wh: Size) -> None:
    from qwen_vl_utils.vision_process import smart_resize as theirs

    width, height = image_wh
    assume(not is_thin(image_wh) and max(image_wh) / min(image_wh) <= boxes.MAX_ASPECT)
    ours = smart_resize(image_wh, *QWEN)
    assume(min(theirs(height, width, FACTOR, *QWEN)) > 0)  # theirs can give a side of 0
    assert ours == theirs(height, width, FACTOR, *QWEN)[::-1]


def test_on_a_thin_picture_the_processor_is_right_and_we_follow_it() -> None:
    from qwen_vl_utils.vision_process import smart_resize as theirs

    assert smart_resize((10, 1500), *QWEN) == (28, 700)
    assert theirs(1500, 10, FACTOR, *QWEN) == (1512, 28)


@given(SIZES)
def test_the_input_is_whole_tokens_within_the_budget(image_wh: Size) -> None:
    budget = QWEN  # a narrow one may be stepped over by a row of tokens, in the processor too
    assume(max(image_wh) / min(image_wh) <= boxes.MAX_ASPECT)
    width, height = smart_resize(image_wh, *budget)
    assert width % FACTOR == height % FACTOR == 0
    assert min(width, height) >= FACTOR
    assert width * height >= budget[0]
    one_side_is_a_single_token = min(width, height) == FACTOR
    assert width * height <= budget[1] or one_side_is_a_single_token
    assert num_image_tokens((width, height)) == width * height // 784


@pytest.mark.parametrize("image_wh", [(0, 10), (10, 0), (-1, 5)])
def test_a_picture_without_pixels_is_refused(image_wh: Size) -> None:
    with pytest.raises(ValueError, match="positive"):
        smart_resize(image_wh, *QWEN)
    with pytest.raises(ValueError, match="positive"):
        to_input_px((0, 0, 1, 1), image_wh, (28, 28))


@cache
def image_processor(folder: Path):
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(str(folder))


@pytest.mark.parametrize("folder", PROCESSORS, ids=lambda path: path.name)
@pytest.mark.parametrize(
    "image_wh",
    [(640, 480), (481, 640), (333, 777), (30, 2000), (57, 57), (1920, 1080), (14, 14), (10, 1500)],
    ids=lambda size: f"{size[0]}x{size[1]}",
)
def test_the_grid_of_the_real_processor_is_our_input_size(folder: Path, image_wh: Size) -> None:
    from PIL import Image

    processor = image_processor(folder)
    budget = (processor.size["shortest_edge"], processor.size["longest_edge"])
    read = processor(images=[Image.new("RGB", image_wh, "teal")], return_tensors="pt")
    _, rows, columns = read["image_grid_thw"][0].tolist()
    input_wh = smart_resize(image_wh, *budget)
    assert (columns * boxes.PATCH, rows * boxes.PATCH) == input_wh
    assert len(read["pixel_values"]) == rows * columns == num_image_tokens(input_wh) * boxes.MERGE**2


def test_a_thin_picture_would_be_resized_twice_so_the_processor_must_be_told_not_to() -> None:
    budget = (12_544, 28_224)  # the tiny model's
    once = smart_resize((30, 2000), *budget)
    assert smart_resize(once, *budget) != once  # 28 x 1344 is over the budget again
    for image_wh in [(640, 480), (333, 777), (57, 57), (1920, 1080)]:
        once = smart_resize(image_wh, *QWEN)
        assert smart_resize(once, *QWEN) == once


@pytest.mark.parametrize("folder", PROCESSORS, ids=lambda path: path.name)
def test_our_constants_stand_in_the_released_files(folder: Path) -> None:
    single = folder / "preprocessor_config.json"
    config = (
        json.loads(single.read_text())
        if single.is_file()
        else json.loads((folder / "processor_config.json").read_text())["image_processor"]
    )
    assert (config["patch_size"], config["merge_size"]) == (boxes.PATCH, boxes.MERGE) == (14, 2)
    assert FACTOR == 28
    if folder == REAL:
        assert (config["min_pixels"], config["max_pixels"]) == QWEN


# The way there and back

POINTS = st.floats(-1e4, 1e4, allow_nan=False)
ANY_BOX = st.tuples(POINTS, POINTS, POINTS, POINTS)


@given(ANY_BOX, SIZES, SIZES)
def test_a_box_survives_the_trip_to_input_pixels_and_back(box: Box, image_wh: Size, input_wh: Size) -> None:
    there = to_input_px(box, image_wh, input_wh)
    assert to_image_px(there, image_wh, input_wh) == pytest.approx(box, rel=1e-9, abs=1e-9)


@given(SIZES, SIZES)
def test_the_whole_picture_becomes_the_whole_input(image_wh: Size, input_wh: Size) -> None:
    assert to_input_px((0, 0, *image_wh), image_wh, input_wh) == pytest.approx((0, 0, *input_wh))


def test_each_axis_has_its_own_scale() -> None:
    assert to_input_px((100, 100, 200, 200), (1000, 100), (500, 300)) == (50.0, 300.0, 100.0, 600.0)
    assert to_image_px((50, 300, 100, 600), (1000, 100), (500, 300)) == (100.0, 100.0, 200.0, 200.0)


# Overlap


def true_boxes(size: int = 1000) -> st.SearchStrategy[Box]:
    side = st.floats(0, size)
    return st.tuples(side, side, side, side).map(
        lambda v: (min(v[0], v[2]), min(v[1], v[3]), max(v[0], v[2]), max(v[1], v[3]))
    )


@given(true_boxes(), true_boxes())
def test_overlap_is_symmetric_and_between_0_and_1(one: Box, other: Box) -> None:
    value = iou(one, other)
    assert 0 <= value <= 1 + 1e-9
    assert value == iou(other, one)


@given(true_boxes(), st.floats(-500, 500), st.floats(0.1, 10))
def test_overlap_is_1_with_itself_and_does_not_change_with_place_or_scale(box: Box, by: float, scale: float) -> None:
    assume(min(box[2] - box[0], box[3] - box[1]) > 1)
    assert iou(box, box) == 1
    other = (box[0] + 1, box[1], box[2] + 3, box[3])

    def moved(v: Box) -> Box:
        return tuple((number + by) * scale for number in v)

    assert iou(moved(box), moved(other)) == pytest.approx(iou(box, other), rel=1e-6)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ((0, 0, 10, 10), (20, 20, 30, 30), 0.0),
        ((0, 0, 10, 10), (10, 0, 20, 10), 0.0),
        ((0, 0, 10, 10), (0, 0, 10, 5), 0.5),
        ((5, 5, 5, 5), (5, 5, 5, 5), 0.0),
        ((10, 10, 0, 0), (0, 0, 10, 10), 0.0),
    ],
    ids=["apart", "touching", "half", "flat", "reversed"],
)
def test_known_overlaps(one: Box, other: Box, expected: float) -> None:
    assert iou(one, other) == expected


@given(ANY_BOX, SIZES)
def test_a_clipped_box_lies_in_its_picture_and_clipping_again_changes_nothing(box: Box, image_wh: Size) -> None:
    clipped = clip(box, image_wh)
    assert 0 <= min(clipped[0], clipped[2]) <= max(clipped[0], clipped[2]) <= image_wh[0]
    assert 0 <= min(clipped[1], clipped[3]) <= max(clipped[1], clipped[3]) <= image_wh[1]
    assert clip(clipped, image_wh) == clipped
    assert area(clipped) <= area(box) + 1e-6


# Conventions

WRITE = {
    "xyxy": lambda x1, y1, x2, y2: (x1, y1, x2, y2),
    "xywh": lambda x1, y1, x2, y2: (x1, y1, x2 - x1, y2 - y1),
    "cxcywh": lambda x1, y1, x2, y2: ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1),
}


@pytest.mark.parametrize("convention", list(CONVENTIONS))
@given(box=true_boxes(), image_wh=st.tuples(st.integers(1, 5000), st.integers(1, 5000)))
def test_each_convention_reads_what_was_written_in_it(convention: str, box: Box, image_wh: Size) -> None:
    order, _, unit = convention.partition("_")
    whole = {"": None, "norm": 1, "1000": 1000}[unit]
    sx, sy = (1, 1) if whole is None else (whole / image_wh[0], whole / image_wh[1])
    numbers = WRITE[order](box[0] * sx, box[1] * sy, box[2] * sx, box[3] * sy)
    assert to_xyxy(numbers, convention, image_wh) == pytest.approx(box, abs=1e-6)


def test_a_box_needs_four_finite_numbers_and_a_known_convention() -> None:
    for numbers in ([1, 2, 3], [1, 2, 3, 4, 5], [1, 2, 3, math.nan], [1, 2, 3, math.inf]):
        with pytest.raises(ValueError, match="four finite numbers"):
            to_xyxy(numbers, "xyxy", (10, 10))
    with pytest.raises(KeyError):
        to_xyxy([1, 2, 3, 4], "yxyx", (10, 10))
