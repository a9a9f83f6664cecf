"""Engines: FSDP2 and DeepSpeed train, stop and go on as one process does, in two processes over gloo."""

from pathlib import Path
from typing import Any

import pytest
from process_pair import run_pair, write_job
from safetensors.torch import load_file
from test_training import distance, losses
from training import FAST, train_here

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
