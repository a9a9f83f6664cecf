"""What the embedded model is taught: answers true by the words alone, tokens and patches as the product makes them."""

import random
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenft.core.answer import read_answer
from qwenft.core.boxes import iou
from qwenft.demo.filled import MAX_SIDE, MIN_SIDE, make_filled
from qwenft.demo.language import SHAPES, SINGLE, Figure, absent, by_half, by_kind, draw_expressions, sentence
from qwenft.demo.lessons import DEFAULT, make_lesson
from qwenft.demo.pretrain import HELD_OUT, Lessons, Pupil, _cut
from qwenft.demo.tiny import make_contract, make_model, make_processor
from qwenft.model.fast import set_branches
from qwenft.model.inputs import IGNORED, Encoder, collate

NAME = (
    r"(?:(?P<colour>red|green|blue|yellow|purple|orange|white|black) )?"
    r"(?P<shape>circle|square|triangle|star|cross|diamond|ring|heart|object)"
)
KIND = re.compile(rf"(?:all |the )?{NAME}(?:e?s)?(?: in the (?P<half>left|right|upper|lower) half of the picture)?")


def filled(seed: int) -> tuple[tuple[Figure, ...], tuple[int, int]]:
    scene = make_filled(np.random.default_rng(seed))
    return scene.figures, scene.image.size


def meant(text: str, figures: tuple[Figure, ...], wh: tuple[int, int]) -> list[Figure]:
    """Read "all red circles" and "ring in the left half of the picture" by the words alone."""
    match = KIND.fullmatch(text)
    assert match, text
    shape, colour, half = match["shape"], match["colour"], match["half"]
    found = [f for f in figures if shape in (f.shape, "object") and colour in (None, f.colour)]
    if half:
        axis = 0 if half in ("left", "right") else 1
        found = [f for f in found if (f.centre[axis] < wh[axis] / 2) == (half in ("left", "upper"))]
    return found


@given(st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_words_for_a_kind_name_all_of_it_and_words_for_what_is_absent_nothing(seed: int) -> None:
    figures, wh = filled(seed)
    for one in [*by_kind(figures), *by_half(figures, wh)]:
        assert meant(one.text, figures, wh) == list(one.figures), one.text
    for one in absent(figures):
        assert "sss" not in one.text
        plain = re.sub(r"^the (?:largest|leftmost) ", "the ", one.text)
        assert not meant(plain, figures, wh), one.text


@given(st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_a_filled_picture_fits_the_model_and_its_figures_lie_apart_inside_it(seed: int) -> None:
    figures, (width, height) = filled(seed)
    assert figures
    assert width % 28 == height % 28 == 0 and MIN_SIDE**2 <= width * height <= MAX_SIDE**2
    for number, figure in enumerate(figures):
        x1, y1, x2, y2 = figure.box_xyxy
        assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height and min(x2 - x1, y2 - y1) > 10
        assert all(iou(figure.box_xyxy, other.box_xyxy) == 0 for other in figures[:number])


def test_a_figure_is_where_its_box_says() -> None:
    found = 0
    for seed in range(60):
        scene = make_filled(np.random.default_rng(seed))
        pixels = np.asarray(scene.image).astype(int)
        for figure in scene.figures:
            x, y = (round(v) for v in figure.centre)
            if figure.shape != "ring" and figure.colour == "red":
                red, green, blue = pixels[y, x]
                found += 1
                assert red > green + 60 and red > blue + 60
    assert found > 10


def test_every_lesson_has_each_kind_of_question_and_answers_that_read_back() -> None:
    kinds: set[str] = set()
    for seed in range(40):
        lesson = make_lesson(f"a test {seed}")
        for _, answer in lesson.asked:
            if not answer.startswith("["):
                kinds.add("verified" if answer in ("Yes", "No") else "caption")
                continue
            read = read_answer(answer)
            assert read.status in ("ok", "empty")
            kinds.add(f"{min(len(read.objects), 2)} boxes")
            for box in read.objects:
                assert max(iou(box.box_xyxy, figure.box_xyxy) for figure in lesson.figures) > 0.75
        assert make_lesson(f"a test {seed}").asked == lesson.asked
    assert kinds == {"verified", "caption", "0 boxes", "1 boxes", "2 boxes"}


def test_a_sentence_counts_what_looks_alike_and_has_one_form() -> None:
    looks = [("red", "cross"), ("blue", "ring"), ("red", "cross"), ("orange", "star")]
    figures = [Figure(colour, shape, (0, 0, 1, 1)) for colour, shape in looks]
    assert sentence(figures) == sentence(figures[::-1]) == "A blue ring, an orange star and two red crosses."


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(make_processor(), make_contract())


def test_words_and_fixed_pieces_are_single_tokens(encoder: Encoder) -> None:
    tokenizer = encoder.processor.tokenizer

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False).input_ids)

    assert all(count(f" {shape}") == count(shape) == count(f" {shape}s") == 1 for shape in SHAPES if shape != "cross")
    assert count('[{"bbox_2d": [') == count('], "label": "') == count('"}]') == count("[]") == 1
    assert count("123") == 3
    assert count(DEFAULT.grounding) < 25


def test_patches_are_those_of_the_processor(encoder: Encoder) -> None:
    lesson = make_lesson("a test 7")
    wanted = encoder.picture(lesson.image).pixel_values_PD
    mean, std = (
        torch.tensor(getattr(encoder.processor.image_processor, f"image_{n}"))[:, None] for n in ("mean", "std")
    )
    cut = (torch.from_numpy(_cut(lesson)) / 255 - mean) / std
    assert torch.allclose(cut[:, :, None].expand(-1, -1, 2, -1).flatten(1), wanted, atol=1e-5, rtol=0)


def test_a_batch_gives_the_loss_of_its_questions_asked_one_by_one(encoder: Encoder) -> None:
    torch.manual_seed(0)
    model = make_model(encoder.processor.tokenizer)
    pupil = Pupil(model, encoder.processor, "cpu")
    lessons = Lessons(encoder, pictures=3, name=HELD_OUT)
    batch = lessons.batch(0)
    set_branches(model, True)
    loss, _, hits = pupil.answer(batch)
    set_branches(model, False)
    made = [make_lesson(f"{HELD_OUT} 0 {number}") for number in range(3)]
    items = lessons._encoded(made)
    pictures = [encoder.picture(lesson.image) for lesson in made for _ in lesson.asked]
    for item, picture in zip(items, pictures, strict=True):
        object.__setattr__(item, "picture", picture)
    padded = collate(items, 0, encoder.processor.tokenizer.convert_tokens_to_ids("<|image_pad|>"))
    plain = model(**padded)
    torch.testing.assert_close(loss, plain.loss, rtol=1e-4, atol=0)
    wrong = (plain.logits[:, :-1].argmax(-1) != padded["labels"][:, 1:]) & (padded["labels"][:, 1:] != IGNORED)
    missed = torch.zeros(len(batch.kinds)).index_add_(0, batch.questions, (~hits).float())
    assert sorted(missed.tolist()) == sorted(wrong.sum(1).float().tolist())


def test_what_a_relation_misses_and_what_it_names_are_drawn_apart() -> None:
    figures, _ = filled(3)
    for one in draw_expressions(random.Random(0), SINGLE, figures, 50):
        assert len(one.figures) == 1
