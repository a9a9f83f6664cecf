"""Several processes and several machines: two launchers on loopback, one stop for all, no process left behind."""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from process_pair import free_port
from safetensors.torch import load_file
from terminal import QWENFT
from test_signals import is_gone, wait_for
from test_training import distance, losses
from training import FAST, train_here

from qwenft.core.config import make_config
from qwenft.core.devices import ALONE, Devices, Machines, choose_machines
from qwenft.core.errors import QwenftError, UsageError
from qwenft.core.runs import Run
from qwenft.train import preflight
from qwenft.train.checkpoints import complete_checkpoints
from qwenft.train.launch import train_adapter

WORDS = [f"{key}={value}" for key, value in FAST.items() if key not in ("model", "gpus")]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((2, None, "a:1"), "--node-rank must be 0 to 1"),
        ((2, 2, "a:1"), "--node-rank must be 0 to 1"),
        ((2, 0, None), "--rdzv must be host:port"),
        ((2, 0, "host"), "--rdzv must be host:port"),
        ((1, 0, None), "--nnodes says how many"),
    ],
    ids=["no number", "too high", "no meeting", "no port", "one machine"],
)
def test_what_does_not_describe_several_machines_is_refused(given: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        choose_machines(*given)
    assert caught.value.hint.startswith("--nnodes 2 --node-rank 0 --rdzv ")


def test_machines_are_read_and_their_processes_counted(workplace: Path) -> None:
    assert choose_machines(1, None, None) is ALONE
    machines = choose_machines(2, 1, "10.0.0.7:29500")
    assert machines == Machines(2, 1, "10.0.0.7:29500")
    assert Devices("cpu", 3, machines=machines).world == 6
    with pytest.raises(UsageError, match="need one name"):
        train_adapter(make_config({"model": "tiny", "gpus": "cpu"}, "a test"), root=workplace, machines=machines)


@pytest.mark.timeout(300)
def test_two_machines_train_what_one_process_trains(workplace: Path) -> None:
    status, _, events = train_here(workplace, "one", batch_size=4, accumulation=1, max_steps=2, learning_rate=1e-3)
    assert status == 0
    meeting = f"127.0.0.1:{free_port()}"
    command = [
        *QWENFT,
        "train",
        "--model",
        "tiny",
        "--gpus",
        "cpu",
        "--name",
        "two",
        "--data",
        "scenes",
        "--json",
        *WORDS,
    ]
    command += ["batch_size=2", "accumulation=1", "max_steps=2", "learning_rate=1e-3", "--nnodes", "2"]
    both = [
        subprocess.Popen(
            [*command, "--node-rank", str(number), "--rdzv", meeting],
            cwd=workplace, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for number in (1, 0)
    ]  # fmt: skip
    said = [process.communicate(timeout=200) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    run = Run(workplace / "runs" / "two")
    assert json.loads(said[1][0])["steps"] == 2
    kept = list(run.read_events())
    assert losses(kept) == pytest.approx(losses(events), rel=1e-5)
    assert [e["step"] for e in kept if e["event"] == "step"] == [1, 2], "the second machine writes nothing of its own"
    name = "adapter/adapter_model.safetensors"
    assert distance(load_file(run.path / name), load_file(workplace / "runs" / "one" / name)) < 1e-4
    plan = next(event for event in kept if event["event"] == "plan")
    assert (plan["batch"]["devices"], plan["batch"]["effective"]) == (2, 4)


def descendants(parent: int) -> list[int]:
    rows = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout.split("\n")
    pairs = [tuple(map(int, row.split())) for row in rows if row.strip()]
    found = [parent]
    for above in found:
        found += [process for process, its in pairs if its == above]
    return found[1:]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("how", "status"), [("term", 143), ("kill the parent", -9)], ids=["SIGTERM", "a killed parent"]
)
def test_two_processes_end_together_with_one_checkpoint_and_leave_nobody(
    workplace: Path, how: str, status: int
) -> None:
    command = [*QWENFT, "train", "--model", "tiny", "--gpus", "cpu:2", "--name", "long", *WORDS]
    command += ["epochs=500", "batch_size=2", "accumulation=1", "save_every=100000", "engine=fsdp"]
    process = subprocess.Popen(command, cwd=workplace, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    run = Run(workplace / "runs" / "long")
    try:
        assert wait_for(lambda: run.events.is_file() and b'"step": 3,' in run.events.read_bytes(), 120)
        below = descendants(process.pid)
        assert len(below) >= 3, "torch's launcher and two workers"
        process.send_signal(signal.SIGTERM if how == "term" else signal.SIGKILL)
        assert process.wait(timeout=100) == status
        assert wait_for(lambda: all(is_gone(one) for one in below), 60), "an orphan trains on"
    finally:
        for one in descendants(process.pid):
            os.kill(one, signal.SIGKILL)
        process.kill()
    assert len(complete_checkpoints(run.checkpoints)) == 1
    assert [event["event"] for event in run.read_events()][-2:] == ["checkpoint", "stopped"]


def test_an_engine_that_does_not_run_names_both_versions_and_a_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise AttributeError("'Engine' object has no attribute 'backward'\nmore")

    monkeypatch.setattr(preflight, "_tiny_trainer", broken)
    config = make_config({"engine": "fsdp"}, "a test")
    with pytest.raises(QwenftError) as caught:
        preflight.preflight(config, Devices("cpu", 2))
    text = str(caught.value)
    assert text.startswith("a tiny step on engine=fsdp fails, torch ")
    assert " with accelerate 1." in text and text.endswith("'Engine' object has no attribute 'backward'")
    assert caught.value.hint == "pip install 'torch==2.15.*' 'accelerate==1.15'; or engine=ddp"
    preflight.preflight(make_config({}, "a test"), Devices("cpu", 1))  # nothing has to fit together
