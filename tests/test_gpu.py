"""What needs CUDA: run on a GPU machine with `pytest -m gpu -o addopts=""`; results stand in benchmarks/README.md."""

from pathlib import Path

import pytest
import torch

from qwenft.core.config import make_config
from qwenft.core.predictions import Question
from qwenft.core.samples import PreparedDataset
from qwenft.predict.generate import Predictor
from qwenft.train.launch import train_adapter

pytestmark = pytest.mark.gpu

SETTINGS = {
    "model": "tiny", "workers": 2, "rank": 8, "dropout": 0.0, "batch_size": 4, "accumulation": 1, "max_steps": 30,
    "learning_rate": 3e-3, "eval_samples": 4, "eval_every": 30,
}  # fmt: skip


@pytest.fixture(autouse=True)
def cuda() -> None:
    assert torch.cuda.is_available(), "these tests need a CUDA GPU"


def train(workplace: Path, name: str, gpus: str, **settings: object) -> list[dict]:
    seen: list[dict] = []
    config = make_config({**SETTINGS, **settings, "name": name, "gpus": gpus}, "a test")
    train_adapter(config, root=workplace, emit=seen.append)
    return seen


def test_a_run_on_the_gpu_learns_in_bf16_and_its_adapter_answers(workplace: Path, scenes: PreparedDataset) -> None:
    events = train(workplace, "one", "0")
    losses = [event["loss"] for event in events if event["event"] == "step"]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    plan = next(event for event in events if event["event"] == "plan")
    assert plan["devices"][0].startswith("cuda:0 = GPU 0 (NVIDIA")
    predictor = Predictor.load("tiny", workplace / "runs" / "one" / "adapter", gpus="0")
    assert predictor.model.device.type == "cuda"
    questions = [Question.of(sample, scenes.path) for sample in scenes.samples("train")]
    assert all(answer.status == "ok" for answer in predictor.answer(questions))


def test_float32_on_the_gpu_answers_what_the_cpu_answers(scenes: PreparedDataset) -> None:
    questions = [Question.of(sample, scenes.path) for sample in scenes.samples("train")]
    on_gpu = Predictor.load("tiny", gpus="0", dtype="float32")
    ours = [answer.text for answer in on_gpu.answer(questions)]
    on_gpu.model.to("cpu")
    theirs = [answer.text for answer in on_gpu.answer(questions)]
    assert sum(a == b for a, b in zip(ours, theirs, strict=True)) >= len(ours) - 1  # a tie may fall either way


def test_float32_on_the_gpu_has_the_losses_of_the_cpu(workplace: Path) -> None:
    settings = {"max_steps": 3, "eval_samples": 0, "dtype": "float32", "learning_rate": 1e-3}
    losses = [
        [event["loss"] for event in train(workplace, name, gpus, **settings) if event["event"] == "step"]
        for name, gpus in (("gpu", "0"), ("cpu", "cpu"))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)  # TF32 is off by default; kernels differ in order


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_train_what_one_trains_and_keep_the_order_asked_for(workplace: Path) -> None:
    settings = {"max_steps": 3, "dtype": "float32", "learning_rate": 1e-3}
    one = train(workplace, "single", "0", **settings)
    two = train(workplace, "double", "1,0", **{**settings, "batch_size": 2})
    losses = [[e["loss"] for e in events if e["event"] == "step"] for events in (one, two)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    plan = next(event for event in two if event["event"] == "plan")
    assert [line[:15] for line in plan["devices"]] == ["cuda:0 = GPU 1 ", "cuda:1 = GPU 0 "]


def test_the_fast_step_in_bf16_stays_within_the_plain_ones_distance_from_float32(workplace: Path) -> None:
    settings = {"max_steps": 10, "eval_samples": 0, "learning_rate": 1e-3, "parts": "language,vision"}
    runs = {"exact": {"dtype": "float32", "fast": False}, "plain": {"fast": False}, "fast": {"fast": True}}
    losses = {}
    for name, more in runs.items():
        events = train(workplace, name, "0", **settings, **more)
        assert not [event for event in events if event["event"] == "warning"]
        losses[name] = [event["loss"] for event in events if event["event"] == "step"]
    spread = max(abs(a - b) for a, b in zip(losses["plain"], losses["exact"], strict=True))
    assert max(abs(a - b) for a, b in zip(losses["fast"], losses["exact"], strict=True)) <= 2 * spread
