"""Kill a training with -9 at random moments, resume it each time, and compare its adapter with that of a whole run.

python benchmarks/kill_and_resume.py 50 [--seed 0] [--gpus cpu:2]      one JSON object on stdout; exit 1 if they differ
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from qwenft.core.config import TrainConfig, make_config
from qwenft.core.errors import RunError
from qwenft.core.runs import Run
from qwenft.demo.scenes import write_scenes
from qwenft.prepare.build import prepare_dataset
from qwenft.train.checkpoints import complete_checkpoints
from qwenft.train.launch import resume_training, train_adapter

SETTINGS = {
    "model": "tiny", "workers": 0, "rank": 4, "dropout": 0.3, "learning_rate": 3e-3, "batch_size": 2, "accumulation": 2,
    "epochs": 6, "save_every": 1, "eval_every": 7, "eval_samples": 1,
}  # fmt: skip
"""A checkpoint after each update: a kill also falls inside a save, and the next one finds something new."""


class Killer:
    """Kills what a training started, after so many seconds or when an event was seen."""

    def __init__(self, delay_s: float) -> None:
        self.delay_s = delay_s
        self.killed = False
        self._over = threading.Event()

    def event(self, event: Any) -> None:
        """Start the clock when the run goes on: the seconds before it are torch's import."""
        if event["event"] == "plan":
            threading.Thread(target=self._wait, daemon=True).start()

    def over(self) -> None:
        """The training ended by itself."""
        self._over.set()

    def _wait(self) -> None:
        if not self._over.wait(self.delay_s):
            self.killed = True
            for process in reversed(descendants(os.getpid())):
                try:
                    os.kill(process, signal.SIGKILL)
                except ProcessLookupError:
                    continue


def descendants(parent: int) -> list[int]:
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,comm="], capture_output=True, text=True, check=True)
    rows = [line.split(None, 2) for line in listed.stdout.splitlines()]
    children: dict[int, list[int]] = {}
    for process, above, name in rows:
        if name != "ps":
            children.setdefault(int(above), []).append(int(process))
    found, queue = [], [parent]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def adapter_sha256(run: Run) -> str:
    return hashlib.sha256((run.adapter / "adapter_model.safetensors").read_bytes()).hexdigest()


def steps_of(run: Run) -> list[int]:
    return [event["step"] for event in run.read_events() if event["event"] == "step"]


def kill_and_resume(
    root: Path, config: TrainConfig, *, kills: int, seed: int, span_s: float, attempt_limit: int = 1000
) -> tuple[Run, list[int]]:
    """Train, killing so many times at random moments within `span_s` of going on; the run, and the steps of the kills.

    Fewer, where the run ends before them.  Raises RuntimeError after `attempt_limit` starts.
    """
    chance, killed_at = random.Random(seed), []
    name = f"killed-{seed}"
    run = Run(root / "runs" / name)
    for _ in range(attempt_limit):
        killer = Killer(chance.uniform(0, span_s) if len(killed_at) < kills else 1e9)
        try:
            if run.events.is_file():
                resume_training(name, root=root, emit=killer.event)
            else:
                train_adapter(config.model_copy(update={"name": name}), root=root, emit=killer.event)
            killer.over()
            return run, killed_at
        except RunError:
            killer.over()
            if not killer.killed:
                raise
            made = complete_checkpoints(run.checkpoints)
            killed_at.append(int(made[-1].name.rpartition("-")[2]) if made else 0)
            if run.finished:  # it was killed on its way out: all is written, and there is nothing to go on with
                return run, killed_at
    raise RuntimeError(f"not finished after {attempt_limit} attempts")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kills", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gpus", default="cpu")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_scenes(root / "scenes", num_train=16, num_val=4, seed=1)
        prepare_dataset("scenes", root=root)
        config = make_config({**SETTINGS, "gpus": options.gpus, "name": "whole"}, "this benchmark")
        planned: dict[str, float] = {}
        whole = train_adapter(config, root=root, emit=lambda e: planned.setdefault(e["event"], time.monotonic()))
        span_s = time.monotonic() - planned["plan"]
        wanted, steps = adapter_sha256(whole), steps_of(whole)
        done, equal, where, round_ = 0, True, [], options.seed
        while done < options.kills:
            run, killed_at = kill_and_resume(
                root, config, kills=min(options.kills - done, 10), seed=round_, span_s=span_s / 3
            )
            equal = equal and adapter_sha256(run) == wanted and steps_of(run) == steps
            where.append(killed_at)
            done, round_ = done + len(killed_at), round_ + 1
            sys.stderr.write(f"{done} kills, checkpoints left: {killed_at}, equal: {equal}\n")
    result = {"kills": done, "runs": len(where), "updates": len(steps), "checkpoint_at_kill": where, "equal": equal}
    print(json.dumps({**result, "gpus": options.gpus, "adapter_sha256": wanted}))
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
