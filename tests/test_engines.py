"""Engines: FSDP2 and DeepSpeed train, stop and go on as one process does, in two processes over gloo."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from process_pair import run_pair, write_job
from safetensors.torch import load_file
from test_training import distance, losses
from training import FAST, train_here

from qwenft.core.config import load_config
from qwenft.core.runs import Run

SETTINGS = {
    **FAST, "max_steps": 3, "learning_rate": 1e-3, "save_every": 2, "keep_last": 9, "eval_samples": 2, "eval_every": 2,
}  # fmt: skip
ENGINES: dict[str, dict[str, Any]] = {
    "fsdp": {"engine": "fsdp"}, "zero2": {"engine": "deepspeed"}, "zero3": {"engine": "deepspeed", "zero_stage": 3},
}  # fmt: skip


def adapter(root: Path, name: str) -> Path:
    return Run(root / "runs" / name).adapter / "adapter_model.safetensors"


@pytest.mark.timeout(300)
def test_each_engine_trains_what_one_process_trains_and_goes_on_as_if_it_had_never_stopped(workplace: Path) -> None:
    status, _, one = train_here(workplace, "one", batch_size=4, accumulation=2, **SETTINGS)
    assert status == 0
    jobs = []
    for name, engine in ENGINES.items():
        settings = {**SETTINGS, **engine, "batch_size": 2, "accumulation": 2}
        jobs.append(write_job(workplace, name, **settings))
        jobs.append(write_job(workplace, f"{name}-cut", cut=2, of=name, **settings))
    events = run_pair(jobs)
    for name in ENGINES:
        assert losses(events[name]) == pytest.approx(losses(one), rel=1e-5), name
        assert [e["value"] for e in events[name] if e["event"] == "eval"] == [
            e["value"] for e in one if e["event"] == "eval"
        ], name
        assert distance(load_file(adapter(workplace, name)), load_file(adapter(workplace, "one"))) < 1e-4, name
        assert [e["step"] for e in events[f"{name}-cut"] if e["event"] == "step"] == [3], name
        assert adapter(workplace, f"{name}-cut").read_bytes() == adapter(workplace, name).read_bytes(), name


@pytest.mark.timeout(300)
def test_every_shipped_config_trains_on_the_tiny_model(workplace: Path) -> None:
    """Method, engine and parts as they stand there; size and number are those of a test."""
    found = sorted((Path(__file__).parents[1] / "configs").rglob("*.y*ml"))
    assert {"ddp", "fsdp", "zero2", "zero3", "qlora", "full", "tiny", "lora-3b"} <= {path.stem for path in found}
    jobs, alone = [], {}
    for path in found:
        given = load_config(path).model_dump(exclude_unset=True)
        settings = {
            **given, **FAST, "name": path.stem, "data": "scenes", "batch_size": 2, "accumulation": 1, "max_steps": 1,
            "max_pixels": None,
        }  # fmt: skip
        if settings.get("engine", "ddp") == "ddp":
            alone[path.stem] = settings
        else:
            jobs.append(write_job(workplace, **settings))
    for name, settings in alone.items():
        status, _, events = train_here(workplace, **settings)
        lacks = settings.get("quantize") and find_spec("bitsandbytes") is None
        assert status == 0 or (lacks and "bitsandbytes" in events[-1]["message"]), (name, events[-1])
    for name, events in run_pair(jobs).items():
        assert losses(events), name
