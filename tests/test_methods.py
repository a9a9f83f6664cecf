"""What is trained: LoRA, QLoRA or whole parts; a gradient in each part asked for; the same saving and answering."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from process_pair import run_pair, write_job
from safetensors.torch import load_file
from test_training import distance, losses
from training import FAST, end_at, train_here

from qwenft.core.config import load_config, make_config
from qwenft.core.errors import ConfigError, DeviceError
from qwenft.core.predictions import Question
from qwenft.core.runs import Contract, Run
from qwenft.core.samples import PreparedDataset
from qwenft.model.load import WEIGHTS_FILE, load_base, part_of
from qwenft.predict.generate import Predictor
from qwenft.train import preflight
from qwenft.train.checkpoints import complete_checkpoints

SHORT: dict[str, Any] = {"batch_size": 4, "accumulation": 1, "max_steps": 3, "learning_rate": 1e-3}


def trained(root: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(Run(root / "runs" / name).adapter / WEIGHTS_FILE)


def base_weights() -> dict[str, torch.Tensor]:
    return {name: weight.detach() for name, weight in load_base("tiny", torch.float32, "cpu").named_parameters()}


@pytest.mark.parametrize("parts", ["merger", "vision", "language", "language,merger"])
def test_full_fine_tuning_moves_the_parts_asked_for_and_saves_no_other(workplace: Path, parts: str) -> None:
    status, run, events = train_here(workplace, "full", method="full", parts=parts, **{**SHORT, "max_steps": 1})
    assert status == 0
    weights = trained(workplace, "full")
    assert {part_of(name) for name in weights} == set(parts.split(","))
    plan = next(event for event in events if event["event"] == "plan")
    assert plan["lora"]["trainable"] == sum(weight.numel() for weight in weights.values())
    assert "full fine-tuning of" in (run.adapter / "README.md").read_text()


def test_a_fully_tuned_model_answers_as_it_was_trained_and_its_base_as_before(
    workplace: Path, scenes: PreparedDataset
) -> None:
    settings = {**SHORT, "max_steps": 20, "learning_rate": 1e-3, "method": "full", "parts": "language,merger"}
    status, run, events = train_here(workplace, "full", **{**settings, "eval_samples": 4, "eval_every": 20})
    assert status == 0
    assert losses(events)[-1] < 0.8 * losses(events)[0]
    questions = [Question.of(sample, scenes.path) for sample in scenes.samples("train")[:6]]
    base, tuned = Predictor.load("tiny", gpus="cpu"), Predictor.load("tiny", run.adapter, gpus="cpu")
    before, after = ([p.text for p in predictor.answer(questions)] for predictor in (base, tuned))
    assert before != after
    with tuned.adapter_disabled():
        assert [p.text for p in tuned.answer(questions)] == before
    assert [p.text for p in tuned.answer(questions)] == after


def test_full_fine_tuning_stopped_and_resumed_is_never_stopped(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**SHORT, "method": "full", "parts": "language"}
    train_here(workplace, "whole", **settings)
    with monkeypatch.context() as patch:
        end_at(patch, 2)
        train_here(workplace, "cut", **settings)
    status, run, _ = train_here(workplace, "cut", resume=True, **settings)
    assert status == 0
    assert [e["step"] for e in run.read_events() if e["event"] == "step"] == [1, 2, 3]
    whole, cut = (trained(workplace, name) for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert complete_checkpoints(run.checkpoints)


@pytest.mark.timeout(300)
def test_each_engine_tunes_whole_parts_as_one_process_does(workplace: Path) -> None:
    settings = {**FAST, **SHORT, "method": "full", "parts": "language,merger", "max_steps": 2}
    _, _, one = train_here(workplace, "one", **settings)
    engines: dict[str, dict[str, Any]] = {
        "fsdp": {"engine": "fsdp"}, "zero2": {"engine": "deepspeed"}, "zero3": {"engine": "deepspeed", "zero_stage": 3},
    }  # fmt: skip
    events = run_pair([write_job(workplace, n, **{**settings, **e, "batch_size": 2}) for n, e in engines.items()])
    base = base_weights()
    for name in engines:
        assert losses(events[name]) == pytest.approx(losses(one), rel=1e-5), name
        moved, expected = (
            {key: tensor - base[key] for key, tensor in trained(workplace, run).items()} for run in (name, "one")
        )
        assert distance(moved, expected) < 1e-2, name


def test_a_part_that_no_gradient_reaches_is_named_in_the_first_update(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLVisionBlock

    original = Qwen2_5_VLVisionBlock.forward
    monkeypatch.setattr(
        Qwen2_5_VLVisionBlock, "forward", lambda self, *a, **k: original(self, *a, **k).detach()
    )  # fmt: skip
    status, run, events = train_here(workplace, "deaf", parts="language,vision", fast=False, **SHORT)
    assert status == 1
    assert "no gradient reaches the part vision" in events[-1]["message"]
    assert not [event for event in run.read_events() if event["event"] == "step"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"quantize": "4bit", "method": "full"}, "4 bits cannot be trained"),
        ({"quantize": "4bit", "engine": "fsdp"}, "quantize=4bit goes with engine=ddp"),
        ({"engine": "deepspeed", "zero_stage": 1}, "zero_stage"),
        ({"engine": "horovod"}, "engine"),
    ],
    ids=["4 bits in full", "4 bits divided", "a stage of its own", "an engine of long ago"],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_config(settings, "a test")


@pytest.mark.parametrize(
    ("words", "package", "found", "said", "hint"),
    [
        (["engine=deepspeed"], "deepspeed", None, "deepspeed needs the package deepspeed", "qwenft[deepspeed]"),
        (["quantize=4bit"], "bitsandbytes", None, "4bit needs the package bitsandbytes", "qwenft[qlora]"),
        (["engine=deepspeed"], "deepspeed", "0.15.4", "deepspeed 0.15.4 is too old for transformers 5", "[deepspeed]"),
    ],
    ids=["no deepspeed", "no bitsandbytes", "an old deepspeed"],
)
def test_a_package_that_is_missing_or_too_old_is_named_before_torch_is_loaded(
    monkeypatch: pytest.MonkeyPatch, words: list[str], package: str, found: str | None, said: str, hint: str
) -> None:
    original = preflight.metadata.version

    def version(name: str) -> str:
        if name == package and found is None:
            raise preflight.metadata.PackageNotFoundError(name)
        return found if name == package and found else original(name)

    monkeypatch.setattr(preflight.metadata, "version", version)
    with pytest.raises(DeviceError) as caught:
        preflight.check_packages(load_config(None, words))
    assert said in str(caught.value)
    assert hint in caught.value.hint


def test_qlora_trains_on_4_bits_and_its_adapter_answers_on_them(workplace: Path, scenes: PreparedDataset) -> None:
    settings = {**SHORT, "quantize": "4bit", "parts": "language,vision", "max_steps": 20, "learning_rate": 3e-3}
    status, run, events = train_here(workplace, "q", **settings)
    if find_spec("bitsandbytes") is None:
        assert (status, events[-1]["hint"]) == (1, "pip install 'qwenft[qlora]'")
        return
    assert status == 0, events[-1]
    assert losses(events)[-1] < 0.8 * losses(events)[0]
    assert Contract.read(run.adapter).quantize == "4bit"
    predictor = Predictor.load("tiny", run.adapter, gpus="cpu")
    held = {type(module).__name__ for module in predictor.model.modules() if "4bit" in type(module).__name__}
    assert held, "the base is held as it was trained on"
    questions = [Question.of(sample, scenes.path) for sample in scenes.samples("train")[:4]]
    assert all(answer.status == "ok" for answer in predictor.answer(questions))
    versions = json.loads((run.adapter / "contract.json").read_text())["versions"]
    assert "bitsandbytes" in versions
