"""The fast way to answer says what `generate` says, token by token in float32; where it does not, it is not used."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

from qwenft.core.errors import DataError, DeviceError
from qwenft.core.events import Event
from qwenft.core.predictions import Prediction, Question
from qwenft.core.runs import Contract
from qwenft.core.samples import PreparedDataset
from qwenft.model.inputs import Encoder
from qwenft.model.load import add_lora, base_contract, load_base, load_config, load_processor
from qwenft.predict import engine as passes
from qwenft.predict import generate, probe
from qwenft.predict.cache import RowCache
from qwenft.predict.engine import Engine
from qwenft.predict.generate import LOOP, Predictor
from qwenft.predict.merge import MergedLora
from qwenft.predict.schedule import LOOP_FROM, Finished

QUERIES = ("the red star", "x", "the small blue circle to the left of the green square above the ring", "it")
SIDES = st.integers(30, 300)
ASKED = st.lists(st.sampled_from(QUERIES), min_size=1, max_size=4)


def random_model(kv_heads: int = 3, seed: int = 0) -> Any:
    """The embedded model's structure with random weights that answer different things to different questions."""
    config = copy.deepcopy(load_config("tiny"))
    config.text_config.num_key_value_heads = kv_heads
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration._from_config(config, attn_implementation="sdpa", dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # A small tied head keeps the answer from only repeating its last token.
            parameter.normal_(0, 0.02 if "embed" in name else 0.15) if parameter.ndim > 1 else None
    model.generation_config = load_base("tiny", torch.float32, "cpu").generation_config
    return model.eval()


def predictor_of(model: Any) -> Predictor:
    return Predictor(model, Encoder(load_processor("tiny"), base_contract("tiny").with_budget(784, 60_000)))


@pytest.fixture(scope="module")
def tiny() -> Predictor:
    return Predictor.load("tiny", gpus="cpu")


@pytest.fixture(scope="module", params=[1, 3, 6], ids=lambda heads: f"{heads}-kv-heads")
def noise(request: pytest.FixtureRequest) -> Predictor:
    return predictor_of(random_model(request.param))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("noise")


def picture(folder: Path, wh: tuple[int, int]) -> Path:
    path = folder / f"{wh[0]}x{wh[1]}.png"
    if not path.exists():
        drawn = torch.randint(0, 256, (wh[1], wh[0], 3), generator=torch.Generator().manual_seed(sum(wh)))
        Image.fromarray(drawn.to(torch.uint8).numpy()).save(path)
    return path


def answers(predictor: Predictor, questions: list[Question], *, fast: bool, **more: Any) -> list[Prediction]:
    said: list[Event] = []
    before, predictor.fast = predictor.fast, fast
    try:
        found = list(predictor.answer(questions, emit=said.append, **more))
        assert predictor.fast is fast, said  # the probe had no objection
    finally:
        predictor.fast = before
    assert [event["done"] for event in said if event["event"] == "progress"][-1] == len(questions)
    return found


def assert_equal(ours: list[Prediction], theirs: list[Prediction]) -> None:
    assert [one.text for one in ours] == [one.text for one in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert (one.question, one.status, one.how, one.prompt) == (
            other.question, other.status, other.how, other.prompt
        )  # fmt: skip
        assert [found.box_xyxy for found in one.objects] == [found.box_xyxy for found in other.objects]
        for a, b in zip(one.objects, other.objects, strict=True):
            assert a.score == pytest.approx(b.score, rel=1e-3)


@settings(max_examples=8)
@given(
    st.lists(st.tuples(SIDES, SIDES, ASKED), min_size=1, max_size=4),
    st.integers(1, 24),
    st.integers(1, 7),
)
def test_a_random_model_says_the_same_token_by_token(
    noise: Predictor, folder: Path, drawn: list[tuple[int, int, list[str]]], limit: int, rows: int
) -> None:
    questions = [
        Question(picture(folder, (width, height)), "grounding", query)
        for width, height, queries in drawn
        for query in queries
    ]
    fast = answers(noise, questions, fast=True, batch_size=rows, max_new_tokens=limit)
    assert [one.question for one in fast] == questions
    assert_equal(fast, answers(noise, questions, fast=False, batch_size=1, max_new_tokens=limit))


def test_the_random_model_is_worth_comparing(noise: Predictor, folder: Path) -> None:
    questions = [Question(picture(folder, (90 + n, 120)), "grounding", query) for n in (0, 60) for query in QUERIES]
    texts = [one.text for one in answers(noise, questions, fast=True, max_new_tokens=24)]
    assert len(set(texts)) >= 6


def mixed(scenes: PreparedDataset) -> list[Question]:
    """Questions of all tasks, several a picture, the pictures' questions apart from each other."""
    samples = scenes.samples("train")[:12]
    asked = [Question.of(sample, scenes.path) for sample in samples]
    more = [Question(asked[0].image, "caption"), Question(asked[3].image, "detection", categories=("star", "ring"))]
    return [*asked[::2], *more, *asked[1::2], Question(asked[0].image, "grounding", "x", ask="Where is the star?")]


@pytest.mark.parametrize("rows", [1, 4, 64])
def test_the_embedded_model_says_the_same_in_the_order_asked(
    tiny: Predictor, scenes: PreparedDataset, rows: int
) -> None:
    questions = mixed(scenes)
    fast = answers(tiny, questions, fast=True, batch_size=rows, max_new_tokens=40)
    assert [one.question for one in fast] == questions
    assert_equal(fast, answers(tiny, questions, fast=False, max_new_tokens=40))
    assert sum(one.status == "ok" for one in fast) >= 10


def test_a_box_as_it_is_expected_takes_half_the_passes(
    tiny: Predictor, scenes: PreparedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = [Question.of(sample, scenes.path) for sample in scenes.samples("train")[:6]]
    counts, right, text = [], Engine._pass, []
    for jumping in (True, False):
        seen: list[None] = []
        with monkeypatch.context() as patched:
            patched.setattr(Engine, "_pass", lambda *a, seen=seen: (seen.append(None), right(*a))[1])
            if not jumping:
                patched.setattr(Predictor, "_form", lambda *_: generate.Form())
            text.append([one.text for one in answers(tiny, questions, fast=True)])
        counts.append(len(seen))
    assert text[0] == text[1]
    assert counts[0] <= 0.8 * counts[1]


def test_a_larger_picture_gives_every_row_room_while_others_answer(
    noise: Predictor, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grown: list[int] = []
    right = RowCache.grow
    monkeypatch.setattr(RowCache, "grow", lambda self, length: (grown.append(length), right(self, length))[1])
    questions = [
        Question(picture(folder, (40 + 60 * n, 50 + 50 * n)), "grounding", query) for n in range(4) for query in "ab"
    ]
    fast = answers(noise, questions, fast=True, batch_size=3, max_new_tokens=20)
    assert grown
    assert_equal(fast, answers(noise, questions, fast=False, max_new_tokens=20))


def test_two_runs_side_by_side_do_not_touch_each_other(tiny: Predictor, scenes: PreparedDataset) -> None:
    questions = mixed(scenes)
    right = [one.text for one in answers(tiny, questions, fast=False, max_new_tokens=40)]
    first = tiny.answer(questions, batch_size=4, max_new_tokens=40)
    texts = [next(first).text]
    second = tiny.answer(questions[::-1], batch_size=4, max_new_tokens=40)
    backwards = [next(second).text]
    texts += [one.text for one in first]
    backwards += [one.text for one in second]
    assert texts == right == backwards[::-1]


def test_an_engine_that_is_kept_is_used_again_and_not_for_another_adapter(
    scenes: PreparedDataset, tiny: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    right = Engine.__init__
    monkeypatch.setattr(
        Engine, "__init__", lambda self, base, rows, lora=None: (made.append(rows), right(self, base, rows, lora))[1]
    )
    questions = [Question.of(sample, scenes.path) for sample in scenes.samples("train")[:6]]
    kept = Predictor(tuned(), tiny.encoder, Path("adapter"), keep_engine=True)
    tuned_answers, probes = answers(kept, questions, fast=True), 1
    assert len(made) == probes + 1
    assert_equal(answers(kept, questions, fast=True), tuned_answers)
    assert len(made) == probes + 1
    with kept.adapter_disabled():
        assert_equal(answers(kept, questions, fast=True), answers(tiny, questions, fast=False))
    assert_equal(answers(kept, questions, fast=True), tuned_answers)
    in_training = Predictor(tuned(), tiny.encoder)
    answers(in_training, questions, fast=True)
    assert in_training._engine is None


# Broken on purpose


def _positions_off_by_one(patched: pytest.MonkeyPatch) -> None:
    right = Engine._positions

    def moved(*arguments: Any) -> Any:
        positions, behind = right(*arguments)
        return positions, [position + 1 for position in behind]

    patched.setattr(Engine, "_positions", moved)


def _picture_positions_in_a_row(patched: pytest.MonkeyPatch) -> None:
    right = Engine._positions

    def flat(self: Engine, prefixes: Any, longest: int) -> Any:
        return torch.arange(longest).expand(3, len(prefixes), longest), right(self, prefixes, longest)[1]

    patched.setattr(Engine, "_positions", flat)


def _neighbour_seen(patched: pytest.MonkeyPatch) -> None:
    right = RowCache.update
    patched.setattr(RowCache, "update", lambda *a, **k: tuple(found.roll(1, 0) for found in right(*a, **k)))


def _last_token_unseen(patched: pytest.MonkeyPatch) -> None:
    right = passes.visible_mask
    patched.setattr(passes, "visible_mask", lambda places, *a: right((places - 1).clamp(min=0), *a))


def _what_stood_there_before_is_seen(patched: pytest.MonkeyPatch) -> None:
    right = passes.visible_mask
    patched.setattr(passes, "visible_mask", lambda places, *a: right(places + 3, *a))


def _pictures_swapped(patched: pytest.MonkeyPatch) -> None:
    right = RowCache.place
    patched.setattr(RowCache, "place", lambda self, read, numbers, rows: right(self, read, [0] * len(numbers), rows))


BROKEN = [
    _positions_off_by_one, _picture_positions_in_a_row, _neighbour_seen, _last_token_unseen,
    _what_stood_there_before_is_seen, _pictures_swapped,
]  # fmt: skip


@pytest.mark.parametrize("break_it", BROKEN, ids=lambda f: f.__name__.strip("_").replace("_", "-"))
def test_what_is_broken_is_noticed_said_and_not_used(
    tiny: Predictor, scenes: PreparedDataset, monkeypatch: pytest.MonkeyPatch, break_it: Callable
) -> None:
    questions = [Question.of(sample, scenes.path) for sample in scenes.samples("train")[:4]]
    right = answers(tiny, questions, fast=False)
    break_it(monkeypatch)
    for predictor in (predictor_of(tiny.model), predictor_of(random_model())):
        assert "differs" in probe.objection(predictor.base, Engine(predictor.base, probe.ROWS))
    said: list[Event] = []
    fresh = Predictor(tiny.model, tiny.encoder)
    assert_equal(list(fresh.answer(questions, emit=said.append)), right)
    assert next(event["text"] for event in said if event["event"] == "warning").startswith(
        "answers come from `generate`"
    )
    assert not fresh.fast


def test_a_fast_way_that_cannot_run_here_is_said_and_not_used(
    tiny: Predictor, scenes: PreparedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: Any) -> None:
        raise NotImplementedError("no such kernel")

    monkeypatch.setattr(Engine, "_pass", missing)
    said: list[Event] = []
    fresh = Predictor(tiny.model, tiny.encoder)
    (found,) = fresh.answer([Question.of(scenes.samples("train")[0], scenes.path)], emit=said.append)
    assert found.status == "ok"
    assert "no such kernel" in next(event["text"] for event in said if event["event"] == "warning")
    assert tiny.base.model.language_model.config._attn_implementation == "sdpa"


def test_the_probe_asks_half_precision_less_and_finds_nothing_wrong(tiny: Predictor) -> None:
    for model in (tiny.base, random_model(1), random_model(6, seed=1)):
        assert probe.difference(model, Engine(model, probe.ROWS)) < 1e-4
        half = copy.deepcopy(model).to(torch.bfloat16)
        assert probe.objection(half, Engine(half, probe.ROWS)) == ""


# Memory


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A GPU that holds two rows; how many there were at each pass."""
    seen: list[int] = []
    right = Engine.advance

    def advance(self: Engine, work: Any) -> Any:
        seen.append(self.rows)
        if self.rows > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return right(self, work)

    monkeypatch.setattr(Engine, "advance", advance)
    yield seen


def test_out_of_memory_halves_the_rows_and_nothing_is_lost(
    tiny: Predictor, scenes: PreparedDataset, small_memory: list[int]
) -> None:
    questions = mixed(scenes)
    right = answers(tiny, questions, fast=False, max_new_tokens=40)
    said: list[Event] = []
    found = list(tiny.answer(questions, batch_size=8, max_new_tokens=40, emit=said.append))
    assert_equal(found, right)
    warnings = [event["text"] for event in said if event["event"] == "warning"]
    assert warnings == [f"out of GPU memory: {rows} questions side by side from now on" for rows in (4, 2)]


def test_a_question_that_does_not_fit_alone_is_an_error(
    tiny: Predictor, scenes: PreparedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    tiny._is_fast(lambda event: None)  # probed while there was memory
    monkeypatch.setattr(Engine, "advance", never)
    with pytest.raises(DeviceError, match="one question does not fit"):
        list(tiny.answer([Question.of(scenes.samples("train")[0], scenes.path)]))


@pytest.mark.parametrize("free_gib", [1, 4, 70])
def test_rows_are_as_many_as_memory_holds(tiny: Predictor, monkeypatch: pytest.MonkeyPatch, free_gib: int) -> None:
    class OnGpu:
        device, dtype = torch.device("cuda"), torch.bfloat16
        config, model = load_config("tiny"), tiny.base.model

    monkeypatch.setattr(Predictor, "base", OnGpu())
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free_gib << 30, 80 << 30))
    for name in ("memory_reserved", "memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda _: 0)
    place = 6 * 2 * 3 * 32 * tiny.model.dtype.itemsize
    rows = tiny._rows(8192)
    fits = int((free_gib << 30) * generate.MEMORY_SHARE) // ((tiny.contract.max_pixels // 784 + 128 + 8192) * place)
    assert rows == min(generate.MAX_ROWS["cuda"], fits)
    assert 1 <= tiny._rows(10**9) == 1


def test_an_unreadable_picture_is_told_at_its_turn(tiny: Predictor, scenes: PreparedDataset, tmp_path: Path) -> None:
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n")
    good = [Question.of(sample, scenes.path) for sample in scenes.samples("train")[:3]]
    run = tiny.answer([good[0], good[1], Question(tmp_path / "torn.png", "grounding", "x"), good[2]])
    assert [next(run).question, next(run).question] == good[:2]
    with pytest.raises(DataError, match=r"torn\.png"):
        next(run)


def test_a_loop_is_stopped_and_said_either_way(tiny: Predictor, scenes: PreparedDataset) -> None:
    question = Question.of(scenes.samples("train")[0], scenes.path)
    tokenizer = tiny.encoder.processor.tokenizer
    box = tokenizer('{"bbox_2d": [10, 20, 50, 60], "label": "the red star"}, ').input_ids
    tokens = (tokenizer("[").input_ids + box * 50)[: LOOP_FROM + 32]
    asked = tiny.encoder.question(question)
    found = tiny._of(question, asked, Finished(0, tokens, [0.9] * len(tokens)))
    assert (found.status, found.how, len(found.objects)) == ("salvaged", LOOP, 1)
    assert tiny._of(question, asked, Finished(0, [5] * LOOP_FROM, [0.9] * LOOP_FROM)).status == "unparsable"
    assert tiny._of(question, asked, Finished(0, tokens[:-1], [0.9] * (len(tokens) - 1))).how != LOOP


def test_a_label_is_given_without_the_space_that_its_first_token_begins_with(
    tiny: Predictor, scenes: PreparedDataset
) -> None:
    question = Question.of(scenes.samples("train")[0], scenes.path)
    said = '[{"bbox_2d": [10, 20, 50, 60], "label": " dog"}]'
    tokens = tiny.encoder.processor.tokenizer(said).input_ids
    found = tiny._of(question, tiny.encoder.question(question), Finished(0, tokens, [0.9] * len(tokens)))
    assert [thing.label for thing in found.objects] == ["dog"]
    assert found.text == said, "the raw answer stays as it was"


# Adapters


def tuned(parts: tuple[str, ...] = ("language", "merger", "vision")) -> Any:
    torch.manual_seed(3)
    model = add_lora(load_base("tiny", torch.float32, "cpu"), parts, 4, 8, 0.0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, 0, 0.05)
    return model.eval()


def test_an_adapter_answers_the_same_merged_kept_and_disabled(scenes: PreparedDataset, tiny: Predictor) -> None:
    questions = [Question.of(sample, scenes.path) for sample in scenes.samples("train")[:6]]
    model = tuned()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    merged = Predictor(model, tiny.encoder, Path("adapter"))
    plain = answers(merged, questions, fast=False)
    base = answers(tiny, questions, fast=False)
    assert [one.text for one in plain] != [one.text for one in base]
    assert_equal(answers(merged, questions, fast=True), plain)
    assert_equal(answers(Predictor(model, tiny.encoder), questions, fast=True), plain)
    with merged.adapter_disabled():
        assert_equal(answers(merged, questions, fast=True), base)
    assert_equal(answers(merged, questions, fast=True), plain)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_merged_weights_change_places_and_the_base_stays_to_the_bit_in_bf16() -> None:
    model = tuned().to(torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    lora = MergedLora(model)
    with lora.applied():
        inside = model.state_dict()
        changed = [name for name, tensor in inside.items() if not torch.equal(tensor, before[name])]
    assert len(changed) == 6 * 7 + 2 + 4 * 5
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_model_in_training_answers_and_stays_in_training(scenes: PreparedDataset, tiny: Predictor) -> None:
    questions = [Question.of(sample, scenes.path) for sample in scenes.samples("train")[:4]]
    model = tuned().train()
    model.get_base_model().model.language_model.config.use_cache = False
    trained = Predictor(model, tiny.encoder)
    run = trained.answer(questions, batch_size=2)
    first = next(run)
    assert model.training and all(module.training for module in model.modules())
    assert model.get_base_model().model.language_model.config._attn_implementation == "sdpa"
    loss = model(**trained_batch(trained, questions[0])).loss
    loss.backward()  # between two answers the model is as the trainer left it
    assert_equal([first, *run], answers(trained, questions, fast=False))
    assert model.training


def trained_batch(predictor: Predictor, question: Question) -> dict[str, torch.Tensor]:
    asked = predictor.encoder.question(question)
    ids = torch.tensor([asked.input_ids])
    return {
        "input_ids": ids, "labels": ids, "mm_token_type_ids": (ids == predictor.base.config.image_token_id).int(),
        "pixel_values": asked.picture.pixel_values_PD, "image_grid_thw": asked.picture.grid_thw[None],
    }  # fmt: skip


@pytest.mark.parametrize("idle", [True, False], ids=["zero-weights", "trained"])
def test_an_adapter_that_does_nothing_is_said(tmp_path: Path, idle: bool) -> None:
    model = tuned(("vision",))
    if idle:
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.zeros_(parameter)
    model.save_pretrained(tmp_path)
    contract: Contract = base_contract("tiny")
    contract.write(tmp_path)
    said: list[Event] = []
    Predictor.load("tiny", tmp_path, gpus="cpu", emit=said.append)
    warnings = [event["text"] for event in said if event["event"] == "warning"]
    assert len(warnings) == idle
    assert all("changes nothing" in text for text in warnings)


def test_a_predictor_reads_the_processor_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Any] = []
    right = AutoProcessor.from_pretrained
    monkeypatch.setattr(AutoProcessor, "from_pretrained", lambda *a, **k: (read.append(a), right(*a, **k))[1])
    Predictor.load("tiny", gpus="cpu")
    assert len(read) == 1
