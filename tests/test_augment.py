"""Pictures changed for training: boxes follow their pixels, no target is lost, no text becomes false."""

import random
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from qwenft.core.boxes import smart_resize
from qwenft.core.config import Augment
from qwenft.core.samples import PreparedDataset, Sample, SceneObject
from qwenft.model.inputs import Encoder, target_text
from qwenft.model.load import base_contract, load_processor
from qwenft.prepare.composed import POSITIONS, RELATIONS, TINIER, WIDER
from qwenft.train.augment import View, Views, names_place, names_side
from qwenft.train.batches import TrainingData
from qwenft.train.mixture import Mixture
from qwenft.train.preview import draw_encoded, picture_of, target_of

ALL = Augment(scale=0.4, crop=0.3, hflip=0.5, colour=0.4, blur=2, jpeg=20)
SIZES = st.tuples(st.integers(1, 120), st.integers(1, 120))


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(load_processor("tiny"), base_contract("tiny"))


@st.composite
def drawn_pictures(draw: st.DrawFn) -> tuple[Sample, Image.Image]:
    """A sample whose targets are full rectangles, each of a colour of its own, on black."""
    width, height = draw(SIZES)
    picture = Image.new("RGB", (width, height))
    objects = []
    for number in range(draw(st.integers(0, 3))):
        x1, y1 = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
        x2, y2 = draw(st.integers(x1 + 1, width)), draw(st.integers(y1 + 1, height))
        if any(x1 < b[2] and b[0] < x2 and y1 < b[3] and b[1] < y2 for b in (item.bbox for item in objects)):
            continue  # what overlaps would hide pixels of another
        ImageDraw.Draw(picture).rectangle((x1, y1, x2 - 1, y2 - 1), fill=(50 * (number + 1),) * 3)
        objects.append(SceneObject((x1, y1, x2, y2), f"thing {number}"))
    sample = Sample("a/1", "detection", "images/ab.png", width, height, objects=tuple(objects), categories=("thing",))
    return sample, picture


@given(drawn_pictures(), st.integers(0, 50))
def test_boxes_follow_their_pixels_and_none_is_lost(drawn: tuple[Sample, Image.Image], epoch: int) -> None:
    sample, picture = drawn
    view = Views(ALL, 0, [sample]).of(sample, epoch)
    part, moved = view.cut(picture), view.sample(sample)
    assert part.size == moved.image_wh
    assert [item.label for item in moved.objects] == [item.label for item in sample.objects]
    for item, before in zip(moved.objects, sample.objects, strict=True):
        colour = picture.getpixel((int(before.bbox[0]), int(before.bbox[1])))
        value = colour[0] if isinstance(colour, tuple) else colour
        found = part.convert("L").point(lambda pixel, value=value: 255 * (pixel == value))
        assert found.getbbox() == item.bbox
        whole = picture.convert("L").point(lambda pixel, value=value: 255 * (pixel == value))
        assert found.histogram()[255] == whole.histogram()[255]


@given(st.tuples(st.integers(1, 4000), st.integers(1, 4000)), st.integers(0, 20))
def test_every_view_can_be_shown(image_wh: tuple[int, int], epoch: int) -> None:
    if max(image_wh) > 200 * min(image_wh):
        return  # not even whole
    sample = Sample("a/1", "grounding", "images/ab.png", *image_wh, query="dog")
    view = Views(ALL, 0, [sample]).of(sample, epoch)
    x1, y1, x2, y2 = view.window_xyxy
    assert 0 <= x1 < x2 <= image_wh[0] and 0 <= y1 < y2 <= image_wh[1]
    smart_resize(view.as_wh, 3136, 12544)


@pytest.mark.parametrize(
    ("text", "side", "place"),
    [
        ("the left dog", True, True),
        ("leftmost object", True, True),
        ("Right-hand cup", True, True),
        ("a cup at 3 o'clock", True, True),
        ("右边的狗", True, True),
        ("左侧的人", True, True),
        ("the upper half", False, True),
        ("topmost ring", False, True),
        ("dog in the middle", False, True),
        ("a cup that fills most of the picture", False, True),
        ("占满大部分画面的杯子", False, True),
        ("桌上的杯子", False, True),
        ("the cup next to the plate", False, True),
        ("盘子旁的杯子", False, True),
        ("a bright copyright sign", False, False),
        ("laptop of a man", False, False),
        ("红色的狗", False, False),
    ],
)
def test_words_that_a_changed_picture_would_make_false_are_known(text: str, side: bool, place: bool) -> None:
    assert (names_side(text), names_place(text)) == (side, place)


def test_what_prepare_composes_of_places_and_sizes_is_never_made_false() -> None:
    for phrases in (*POSITIONS.values(), WIDER, TINIER, *RELATIONS.values()):
        for phrase in phrases:
            assert names_place(phrase.format("dog", "car"))
    for side in ("left", "right"):
        assert all(names_side(phrase) for phrase in (*POSITIONS[side], *RELATIONS[side]))


def view_of(*samples: Sample, augment: Augment = ALL) -> list[View]:
    views = Views(augment, 0, samples)
    return [views.of(samples[0], epoch) for epoch in range(40)]


def test_a_picture_is_changed_only_as_all_its_questions_allow() -> None:
    def ask(**more: object) -> Sample:
        return Sample("a/1", "grounding", "images/ab.png", 100, 100, **more)  # type: ignore[arg-type]

    free, left, upper, told = ask(query="dog"), ask(query="left dog"), ask(query="upper dog"), ask(captions=("a dog",))
    whole = (0, 0, 100, 100)
    assert {view.mirrored for view in view_of(free)} == {False, True}
    assert len({view.window_xyxy for view in view_of(free)}) == 40
    assert {view.mirrored for view in view_of(free, left)} == {False}
    assert {view.window_xyxy for view in view_of(free, left)} == {whole}
    assert {view.mirrored for view in view_of(upper, free)} == {False, True}
    assert {view.window_xyxy for view in view_of(upper, free)} == {whole}
    assert {view.window_xyxy for view in view_of(told)} == {whole}
    one = ask(query="cat", objects=(SceneObject((2, 50, 10, 60), "cat"),))
    other = ask(query="dog", objects=(SceneObject((50, 3, 99, 60), "dog"),))
    for view in view_of(free, one, other):
        x1, y1, x2, _ = view.window_xyxy
        assert x1 <= 2 and y1 <= 3 and x2 >= 99


def test_a_crowd_is_cut_and_left_out_with_its_place() -> None:
    boxes = (SceneObject((0, 0, 30, 30), "crowd", True), SceneObject((0, 0, 5, 5), "crowd", True))
    sample = Sample("a/1", "detection", "images/ab.png", 100, 100, objects=boxes)
    moved = View((10, 10, 90, 90), False, (80, 80), 1, 1, 1, 0, None).sample(sample)
    assert [item.bbox for item in moved.objects] == [(0, 0, 20, 20)]


@pytest.mark.parametrize("wh", [(28, 28), (28, 560), (168, 112)], ids=str)
def test_colour_blur_and_noise_keep_the_shape_and_off_is_off(wh: tuple[int, int]) -> None:
    pixels = torch.randint(0, 256, (3, wh[1], wh[0]), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole = (0, 0, *wh)
    for view in (View(whole, False, wh, 1.3, 0.8, 1.2, 20.0, 15), View(whole, False, wh, 1, 1, 1, 0.5, None)):
        changed = view.change(pixels)
        assert changed.shape == pixels.shape and changed.dtype == torch.uint8
        assert not torch.equal(changed, pixels)
        assert torch.equal(changed, view.change(pixels))
    sample = Sample("a/1", "grounding", "images/ab.png", *wh, query="dog")
    (off, *_) = view_of(sample, augment=Augment(hflip=0.0))
    assert torch.equal(off.change(pixels), pixels) and off.sample(sample) == sample and off.as_wh == wh


def test_a_view_hangs_on_seed_epoch_and_picture_alone(scenes: PreparedDataset, encoder: Encoder) -> None:
    samples = Mixture.of([scenes]).samples
    of_it = [number for number, one in enumerate(samples) if one.picture == samples[0].picture]
    random.seed(1), torch.manual_seed(1)
    made = []
    for indices, epoch, seed in ((of_it, 1, 0), ([5, *of_it[::-1]], 1, 0), (of_it, 2, 0), (of_it, 1, 1)):
        data = TrainingData(samples, encoder, views=Views(ALL, seed, samples), epoch=epoch)
        named = {sample.id: item for sample, item in data.__getitems__(indices)}
        made.append([named[samples[number].id] for number in of_it])
    first, again, later, otherwise = made
    assert len({id(item.picture) for item in first}) == 1
    assert [item.labels for item in first] == [item.labels for item in again]
    assert torch.equal(first[0].picture.pixel_values_PD, again[0].picture.pixel_values_PD)
    for other in (later, otherwise):
        assert not torch.equal(first[0].picture.pixel_values_PD, other[0].picture.pixel_values_PD)


def test_the_preview_shows_the_pixels_and_the_boxes_that_the_model_is_given(
    scenes: PreparedDataset, encoder: Encoder
) -> None:
    samples = Mixture.of([scenes]).samples
    sample, item = TrainingData(samples, encoder).__getitems__([0])[0]
    with Image.open(sample.image) as opened:
        stored = opened.convert("RGB")
    assert item.picture.input_wh == stored.size  # so that nothing was resized
    assert picture_of(item.picture, encoder.processor.image_processor).tobytes() == stored.tobytes()
    data = TrainingData(samples, encoder, views=Views(ALL, 0, samples), epoch=3)
    for sample, item in data.__getitems__([0, 1, 2]):
        assert data.views is not None
        expected = target_text(data.views.of(sample, 3).sample(sample), item.picture.input_wh)
        text, boxes = target_of(item, encoder)
        assert text == expected and len(boxes) == len(sample.objects)
        drawn = draw_encoded(item, encoder)
        assert max(drawn.width, item.picture.input_wh[1]) >= 112 and Path(sample.image).is_file()
