"""Runs the training worker inside the test's own process: importing torch once is enough."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from qwenft.core.config import TrainConfig, make_config
from qwenft.core.devices import Devices
from qwenft.core.events import Emit, ignore
from qwenft.core.runs import Run
from qwenft.train.mixture import open_mixture
from qwenft.train.resume import newest_checkpoint

FAST = {"model": "tiny", "gpus": "cpu", "workers": 0, "rank": 4, "alpha": 8, "dropout": 0.0, "eval_samples": 0}
"""Settings under which an update of the tiny model takes some hundredths of a second."""


@contextmanager
def own_signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train_here(
    root: Path, name: str, *, dry_run: bool = False, resume: bool = False, **settings: Any
) -> tuple[int, Run, list[dict[str, Any]]]:
    """Exit status, run and all events of one training in this process.  resume: of a run that stands there."""
    from qwenft.train import worker

    config = make_config({**FAST, "name": name, **settings}, "a test")
    run, channel, job = Run(root / "runs" / name), root / f"{name}.channel", root / f"{name}.job"
    channel.write_text("")
    data = [str(dataset.path) for dataset in open_mixture(config.data, root).datasets]
    value = {
        "config": config.model_dump(mode="json"), "data": data, "run": str(run.path), "demo": False,
        "devices": asdict(Devices("cpu", 1)), "channel": str(channel), "dry_run": dry_run, "resume": resume,
        "checkpoint": str(newest_checkpoint(run) or "") or None,
    }  # fmt: skip
    job.write_text(json.dumps(value))
    with own_signals():
        status = worker.main([str(job)])
    return status, run, [json.loads(line) for line in channel.read_text().splitlines()]


def end_at(monkeypatch: pytest.MonkeyPatch, update: int, how: BaseException | None = None) -> None:
    """Let SIGTERM come in the n-th update (from 1) of the next training, or `how` be raised before it is applied."""
    from qwenft.train.trainer import AdapterTrainer

    seen = []
    original = AdapterTrainer.training_step

    def counted(self: Any, *arguments: Any) -> Any:
        seen.append(None)
        if len(seen) == update and how is None:
            os.kill(os.getpid(), signal.SIGTERM)
        loss = original(self, *arguments)
        if len(seen) == update and how is not None:
            raise how
        return loss

    monkeypatch.setattr(AdapterTrainer, "training_step", counted)


def train_adapter_here(config: TrainConfig, *, root: Path | None = None, emit: Emit = ignore) -> Run:
    """`train_adapter` without a process of its own, two updates long: what stands around the call is what is tried."""
    settings = config.model_dump(exclude={"name"}) | {"max_steps": 2}
    status, run, events = train_here((root or Path.cwd()).absolute(), str(config.name), **settings)
    for event in events:
        emit(event)
    assert status == 0
    return run
