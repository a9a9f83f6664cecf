"""How a training ends before its end: Ctrl-C, SIGTERM, a killed worker, a killed parent, in real processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from terminal import QWENFT, OnTerminal, on_terminal, screen

from qwenft.core.config import make_config
from qwenft.core.errors import RunError
from qwenft.core.runs import Run, latest_run
from qwenft.train import launch
from qwenft.train.checkpoints import complete_checkpoints

LONG = ["train", "--model", "tiny", "--gpus", "cpu", "--name", "long", "epochs=500", "workers=0", "rank=4"]
LONG += ["batch_size=2", "accumulation=1", "eval_samples=0", "save_every=1000000"]


def begin(folder: Path) -> tuple[OnTerminal, Run, int]:
    """A training that is on its way on a terminal; its worker's id."""
    shown = on_terminal([*QWENFT, *LONG], folder)
    run = Run(folder / "runs" / "long")
    shown.read(until=lambda _: run.events.is_file() and b'"step": 3,' in run.events.read_bytes())
    return shown, run, worker_of(shown.process.pid)


def worker_of(parent: int) -> int:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True, check=True)
    return int(found.stdout.split()[0])


def is_gone(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


def wait_for(condition: Callable[[], bool], limit_s: float = 30) -> bool:
    end = time.monotonic() + limit_s
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def test_ctrl_c_ends_with_a_complete_checkpoint_and_a_clean_screen(workplace: Path) -> None:
    shown, run, worker = begin(workplace)
    os.write(shown.handle, b"\x03")  # as the keyboard does: the terminal turns it into SIGINT
    assert shown.end() == 130
    assert is_gone(worker)
    (checkpoint,) = complete_checkpoints(run.checkpoints)
    lines = [line for line in screen(shown.text) if line]
    assert "stopping: a checkpoint is made first (Ctrl-C again ends at once)" in lines
    assert "; checkpoint" in shown.text or "\n  checkpoint:" in shown.text
    assert f"{checkpoint}to go on: qwenft train --resume long" in "".join(lines[-4:]), "the terminal may wrap the path"
    assert not [line for line in lines if line.startswith("training") or "━" in line]
    assert shown.text.rfind("\x1b[?25h") > shown.text.rfind("\x1b[?25l"), "the cursor stays hidden"
    assert not (workplace / "runs" / "latest").exists(), "it is not finished"
    assert latest_run(workplace) is None
    assert run.log.read_text().splitlines()[-1] == "to go on: qwenft train --resume long"


def test_ctrl_c_before_the_run_has_a_folder_says_that_nothing_was_written(workplace: Path) -> None:
    shown = on_terminal([*QWENFT, *LONG], workplace)
    shown.read(until=lambda text: "  1 s" in text)
    os.write(shown.handle, b"\x03")
    assert shown.end() == 130
    assert "stopped before the run long began: nothing was written" in " ".join(screen(shown.text))
    assert not (workplace / "runs" / "long").exists()


def test_sigterm_ends_the_parent_and_the_worker_in_order(workplace: Path) -> None:
    shown, run, worker = begin(workplace)
    shown.process.send_signal(signal.SIGTERM)
    assert shown.end() == 128 + signal.SIGTERM
    assert is_gone(worker)
    assert len(complete_checkpoints(run.checkpoints)) == 1


def test_a_killed_worker_is_named_with_its_log_and_the_command_to_go_on(workplace: Path) -> None:
    shown, run, worker = begin(workplace)
    os.kill(worker, signal.SIGKILL)
    assert shown.end() == 1
    said = [line for line in screen(shown.text) if line]
    assert "error: the training process was killed by signal 9" in said
    compact = "".join("".join(said).split())  # the terminal may wrap it
    assert compact.endswith(f"log:{run.log}checkpoint:noneyettry:qwenfttrain--resumelong")
    assert "Traceback" not in shown.text
    assert run.log.is_file()
    assert complete_checkpoints(run.checkpoints) == []


def test_a_worker_whose_parent_was_killed_leaves_a_checkpoint_and_ends(workplace: Path) -> None:
    shown, run, worker = begin(workplace)
    shown.process.kill()
    shown.process.wait()
    assert wait_for(lambda: is_gone(worker)), "an orphan trains on"
    assert len(complete_checkpoints(run.checkpoints)) == 1
    assert [event["event"] for event in run.read_events()][-2:] == ["checkpoint", "stopped"]


# What the parent does, with a worker that loads no torch

STUBBORN = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("\\x1b[31mred\\x1b[0m and a bar 10%\\rbar 100%", flush=True)
time.sleep(60)
"""
TORN = "import sys; print('first line'); print('last line'); sys.exit(3)"


def train_with(
    source: str, root: Path, monkeypatch: pytest.MonkeyPatch, emit: Callable[[Any], None] = lambda event: None
) -> None:
    monkeypatch.setattr(launch, "_command", lambda job, devices: [sys.executable, "-c", source])
    launch.train_adapter(make_config({"model": "tiny", "gpus": "cpu", "name": "x"}, "a test"), root=root, emit=emit)


def test_a_second_ctrl_c_ends_a_worker_that_does_not_listen(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Any] = []
    workers: list[int] = []

    def emit(event: Any) -> None:
        events.append(event)
        if event["event"] == "stopping":
            os.kill(os.getpid(), signal.SIGINT)

    original = launch._Worker._until_end

    def interrupted(self: Any) -> None:
        if not workers:
            workers.append(self.process.pid)
            os.kill(os.getpid(), signal.SIGINT)
        original(self)

    monkeypatch.setattr(launch._Worker, "_until_end", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_with(STUBBORN, workplace, monkeypatch, emit)
    assert [event["event"] for event in events] == ["waiting", "stopping", "warning"]
    assert wait_for(lambda: is_gone(workers[0]))


def test_a_worker_that_fails_shows_its_last_lines(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunError) as caught:
        train_with(TORN, workplace, monkeypatch)
    assert str(caught.value) == ("the training process ended with status 3. Its last lines:\n  first line\n  last line")
    assert not (workplace / "runs").exists()
