"""What needs CUDA: run on a GPU machine with `pytest -m gpu -o addopts=""`; results stand in benchmarks/README.md."""

from itertools import accumulate, pairwise
from pathlib import Path

import pytest
import torch

from qwenft.core.config import make_config
from qwenft.core.predictions import Question
from qwenft.core.samples import PreparedDataset
from qwenft.demo.scenes import write_scenes
from qwenft.model.branches import Layout, branch_attention, on_device, pack, with_pictures
from qwenft.model.fast import compile_layers, eager_layers, enable_fast_step
from qwenft.model.features import PictureFeatures
from qwenft.model.inputs import Encoder
from qwenft.model.load import add_lora, base_contract, load_base, load_processor
from qwenft.predict.generate import Predictor
from qwenft.prepare.build import prepare_dataset
from qwenft.train.batches import TrainingData
from qwenft.train.launch import train_adapter
from qwenft.train.mixture import open_mixture

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


def test_two_hundred_updates_reach_the_same_held_out_score_fast_and_plain(tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", num_train=200, num_val=60, seed=3)
    prepare_dataset("scenes", root=tmp_path)
    settings = {"max_steps": 200, "eval_samples": 200, "eval_every": 200, "learning_rate": 2e-3, "batch_size": 8}
    scores = {}
    for name, fast in (("fast", True), ("plain", False)):
        events = train(tmp_path, name, "0", **settings, fast=fast)
        assert not [event for event in events if event["event"] == "warning"]
        last = next(event for event in reversed(events) if event["event"] == "eval")
        scores[name] = (last["value"], last["samples"])
    (fast_value, count), (plain_value, _) = scores["fast"], scores["plain"]
    spread = 1.96 * (fast_value * (1 - fast_value) / count + plain_value * (1 - plain_value) / count) ** 0.5
    assert abs(fast_value - plain_value) <= spread + 0.02


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize(
    ("prefixes", "whole", "branches"),
    [
        ((300, 70), (150,), ((40, 60, 33), (80, 20))), ((), (90, 150), ()), ((128,), (), ((1, 2, 130),)),
    ],
    ids=["all kinds", "no branches", "one picture"],
)  # fmt: skip
def test_the_kernel_of_packed_rows_has_outputs_and_gradients_of_the_plain_one(
    prefixes: tuple[int, ...], whole: tuple[int, ...], branches: tuple[tuple[int, ...], ...], dtype: torch.dtype
) -> None:
    borders = [0, *accumulate([*prefixes, *whole, *(length for group in branches for length in group)])]
    groups = [0, *accumulate(sum(group) for group in branches)]
    pictures = [0, *accumulate(prefixes)]
    first = sum(prefixes) + sum(whole)
    longest = [max((b - a for a, b in pairwise(ends)), default=0) for ends in (borders, pictures, groups)]
    layout = Layout(
        *(torch.tensor(ends, dtype=torch.int32, device="cuda") for ends in (borders, pictures, groups)),
        torch.tensor([pictures[-1], first, *longest]),
    )
    torch.manual_seed(0)
    q, k, v, grad = (torch.randn(1, heads, borders[-1], 64, device="cuda", dtype=dtype) for heads in (8, 2, 2, 8))
    results = []
    for kind in (dtype, torch.float32):
        mine = [x.to(kind, copy=True).requires_grad_() for x in (q, k, v)]
        out, _ = branch_attention(None, *mine, layout, scaling=0.125)
        out.backward(grad.to(kind).transpose(1, 2))
        results.append([out.float(), *(x.grad.float() for x in mine)])
    for fast, plain in zip(*results, strict=True):
        assert (fast - plain).norm() / plain.norm() < 1e-2


def test_compiled_layers_have_the_losses_of_those_that_are_not(
    workplace: Path,
) -> None:
    base = load_base("tiny", torch.bfloat16, "cuda")
    model = add_lora(base, ("language",), 8, 8, 0.0)
    assert enable_fast_step(model) == ""
    encoder = Encoder(load_processor("tiny"), base_contract("tiny"))
    data = TrainingData(open_mixture("scenes", workplace).samples, encoder)
    items = [item for _, item in data.__getitems__(list(range(12)))]
    losses = []
    for compiled in (False, True):
        if compiled:
            assert compile_layers(model, vision=True) == ""
        for part in (items, items[:5], items[7:]):
            row, owners = pack(part, base.config.image_token_id)
            pictures = [part[owner].picture for owner in owners]
            known = PictureFeatures(base, 0)(pictures, [str(number) for number in range(len(pictures))])
            loss = model(**on_device(with_pictures(row, pictures, known), base.device)).loss
            loss.backward()
            losses.append(float(loss))
    assert losses[3:] == pytest.approx(losses[:3], rel=1e-2)
    with eager_layers(model):
        assert not any("forward" in vars(layer) for layer in base.model.language_model.layers)
