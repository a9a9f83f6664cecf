"""What the fast way to answer does on a GPU: `pytest -m gpu -o addopts="" tests/test_generate_gpu.py`."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from test_generate import answers, assert_equal, mixed, picture, predictor_of, random_model, tuned

from qwenft.core.events import Event
from qwenft.core.predictions import Question
from qwenft.core.samples import PreparedDataset
from qwenft.predict import probe
from qwenft.predict.engine import Engine
from qwenft.predict.generate import Predictor

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def cuda() -> None:
    assert torch.cuda.is_available(), "these tests need a CUDA GPU"


@pytest.fixture(scope="module")
def exact() -> Predictor:
    return Predictor.load("tiny", gpus="0", dtype="float32")


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many places each captured graph sees."""
    seen: list[int] = []
    right = Engine._capture
    monkeypatch.setattr(Engine, "_capture", lambda self, length: (seen.append(length), right(self, length))[1])
    return seen


@pytest.mark.parametrize("rows", [1, 5, 64])
def test_float32_says_what_generate_says_token_by_token(
    exact: Predictor, scenes: PreparedDataset, captured: list[int], rows: int
) -> None:
    questions = mixed(scenes)
    fast = answers(exact, questions, fast=True, batch_size=rows, max_new_tokens=40)
    assert captured
    assert_equal(fast, answers(exact, questions, fast=False, max_new_tokens=40))


def test_a_longer_answer_goes_on_in_the_next_graph(tmp_path: Path, captured: list[int]) -> None:
    predictor = predictor_of(random_model().cuda())
    questions = [Question(picture(tmp_path, (200, 150 + 30 * n)), "grounding", "x") for n in range(3)]
    fast = answers(predictor, questions, fast=True, max_new_tokens=300)
    assert len(set(captured)) >= 2
    plain = answers(predictor, questions, fast=False, max_new_tokens=300)
    for ours, theirs in zip(fast, plain, strict=True):  # noise follows a tie that falls the other way for ever
        assert ours.text[:60] == theirs.text[:60]


def test_bf16_is_no_further_from_the_plain_way_than_twice_what_bf16_changes_there() -> None:
    worst = []
    for seed in range(4):
        model = random_model(1, seed=seed).cuda()
        half = copy.deepcopy(model).to(torch.bfloat16)
        worst.append((distances(model, half), probe.difference(half, Engine(half, probe.ROWS))))
    plain = max(found for found, _ in worst)
    assert max(found for _, found in worst) <= 2 * plain
    assert probe.objection(half, Engine(half, probe.ROWS)) == ""


def distances(exact: Any, half: Any) -> float:
    """The largest difference in log probability that bf16 makes in the plain way."""
    found = 0.0
    for shown in probe._shown(exact):
        for turn in shown.turns:
            rows = [
                probe.plain_logits(model, shown.prefix, list(turn.tokens))[-1].log_softmax(-1)
                for model in (exact, half)
            ]
            best = int(rows[0].argmax())
            found = max(found, abs(float(rows[0][best] - rows[1][best])))
    return found


def test_an_adapter_is_merged_on_the_gpu_and_the_base_stays_to_the_bit(
    scenes: PreparedDataset, exact: Predictor
) -> None:
    questions = [Question.of(sample, scenes.path) for sample in scenes.samples("train")[:8]]
    model = tuned().cuda()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    merged = Predictor(model, exact.encoder, Path("adapter"))
    plain = answers(merged, questions, fast=False)
    assert_equal(answers(merged, questions, fast=True), plain)
    assert_equal(answers(Predictor(model, exact.encoder), questions, fast=True), plain)
    with merged.adapter_disabled():
        assert_equal(answers(merged, questions, fast=True), answers(exact, questions, fast=False))
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_real_lack_of_memory_halves_the_rows(scenes: PreparedDataset, exact: Predictor) -> None:
    questions = mixed(scenes) * 12
    right = answers(exact, questions, fast=True, max_new_tokens=40)
    needed = 100 * 4096 * 6 * 2 * 3 * 32 * 4  # bytes of a cache of 100 rows, were each answer 4,096 tokens long
    free, total = torch.cuda.mem_get_info()
    held = torch.cuda.memory_reserved()
    torch.cuda.set_per_process_memory_fraction(min(1.0, (held + needed / 3) / total))
    said: list[Event] = []
    try:
        torch.cuda.empty_cache()
        found = list(exact.answer(questions[:120], batch_size=100, max_new_tokens=4096, emit=said.append))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert free > needed
    assert [event for event in said if event["event"] == "warning" and "out of GPU memory" in event["text"]]
    boxes = [number for number, one in enumerate(right[:120]) if one.question.task == "grounding"]
    assert [found[number].text for number in boxes] == [right[number].text for number in boxes]


def test_rows_by_default_leave_room_for_the_passes(exact: Predictor) -> None:
    assert exact._rows(256) == 128
    assert exact._rows(10**9) == 1
