"""Trains, kills, resumes and evaluates on each engine, with one process and with two.

    python benchmarks/engines.py [--gpus cpu] [--gpus cpu:2] [--model tiny] [--out engines.json]

One JSON object on stdout (in --out after each row).  On GPUs: --gpus 0 --gpus 0,1.  Losses and adapters are compared
with those of the first row, `kill` sends -9 to all processes of the run in its third update, `resume` goes on from the
checkpoint of the second.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from kill_and_resume import descendants

from qwenft.core.config import make_config
from qwenft.core.errors import QwenftError
from qwenft.core.runs import Run
from qwenft.demo.scenes import write_scenes
from qwenft.evaluate.run import evaluate_run
from qwenft.prepare.build import prepare_dataset
from qwenft.train.checkpoints import complete_checkpoints
from qwenft.train.launch import resume_training, train_adapter

ENGINES: dict[str, dict[str, Any]] = {
    "ddp": {"engine": "ddp"},
    "fsdp": {"engine": "fsdp"},
    "deepspeed, ZeRO-2": {"engine": "deepspeed", "zero_stage": 2},
    "deepspeed, ZeRO-3": {"engine": "deepspeed", "zero_stage": 3},
}
SETTINGS = {
    "workers": 0, "rank": 4, "dropout": 0.0, "learning_rate": 1e-3, "max_steps": 6, "save_every": 2, "keep_last": 9,
    "eval_samples": 4, "eval_every": 3,
}  # fmt: skip
SAMPLES = 8
"""In an update, whatever the number of processes."""


def losses(run: Run) -> list[float]:
    return [event["loss"] for event in run.read_events() if event["event"] == "step"]


def distance(one: Path, other: Path) -> float:
    """Relative norm of the difference of two adapters."""
    from safetensors.torch import load_file

    a, b = (load_file(folder / "adapter_model.safetensors") for folder in (one, other))
    squares = [(float((a[k] - b[k]).float().square().sum()), float(b[k].float().square().sum())) for k in b]
    return float((sum(d for d, _ in squares) / sum(o for _, o in squares)) ** 0.5)


def outcome(work: Any) -> dict[str, Any]:
    """What a step of the table came to: its facts, or the error that ended it."""
    start = time.monotonic()
    try:
        found = work()
    except QwenftError as error:
        found = {"ok": False, "error": str(error)[:500], "hint": error.hint}
    return {"ok": True, **found, "seconds": round(time.monotonic() - start, 1)}


class Bench:
    """One engine on one choice of devices."""

    def __init__(self, root: Path, name: str, settings: dict[str, Any], reference: Path | None) -> None:
        self.root, self.name, self.settings, self.reference = root, name, settings, reference
        self.whole, self.cut = (Run(root / "runs" / f"{name}-{part}") for part in ("whole", "cut"))

    def row(self) -> dict[str, Any]:
        found = {"train": outcome(self.train)}
        if found["train"]["ok"]:
            found |= {"kill": outcome(self.kill)}
            found |= {"resume": outcome(self.resume)}
            found |= {"eval": outcome(self.evaluate)}
        return found

    def train(self) -> dict[str, Any]:
        train_adapter(make_config({**self.settings, "name": self.whole.name}, "this benchmark"), root=self.root)
        steps = [event for event in self.whole.read_events() if event["event"] == "step"]
        facts = {"losses": [round(x, 6) for x in losses(self.whole)], "peak_gib": max(e["memory_gib"] for e in steps)}
        if self.reference is not None:
            facts["distance_to_one_process_of_ddp"] = distance(self.whole.adapter, self.reference / "adapter")
            facts["loss_off_by"] = max(
                abs(a - b) for a, b in zip(losses(self.whole), losses(Run(self.reference)), strict=True)
            )
        return facts

    def kill(self) -> dict[str, Any]:
        def emit(event: Any) -> None:
            if event["event"] == "step" and event["step"] == 3:
                for process in reversed(descendants(os.getpid())):
                    try:
                        os.kill(process, signal.SIGKILL)
                    except ProcessLookupError:
                        continue

        config = make_config({**self.settings, "name": self.cut.name}, "this benchmark")
        try:
            train_adapter(config, root=self.root, emit=emit)
        except QwenftError as error:
            left = [path.name for path in complete_checkpoints(self.cut.checkpoints)]
            return {"ok": "step-2" in left and "--resume" in error.hint, "checkpoints": left, "hint": error.hint}
        return {"ok": False, "error": "it was not killed"}

    def resume(self) -> dict[str, Any]:
        for late in self.cut.checkpoints.glob("step-*"):
            if int(late.name[5:]) > 2:
                shutil.rmtree(late)  # it may have gone on for an update before the kill came
        resume_training(self.cut.name, root=self.root)
        name = "adapter_model.safetensors"
        same = (self.cut.adapter / name).read_bytes() == (self.whole.adapter / name).read_bytes()
        off = distance(self.cut.adapter, self.whole.adapter)
        steps = len(losses(self.cut)) == SETTINGS["max_steps"]
        return {"ok": steps and off < 1e-2, "equal_bytes": same, "distance_to_whole": off}

    def evaluate(self) -> dict[str, Any]:
        gpus = str(self.settings["gpus"]).split(",")[0].split(":")[0]
        metrics = evaluate_run(self.whole.name, root=self.root, limit=8, gpus=gpus).metrics
        return {"parse_rate": metrics["scores"]["parse_rate"]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", action="append")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_scenes(root / "scenes", num_train=16, num_val=4, seed=1)
        prepare_dataset("scenes", root=root)
        reference = None
        for gpus in options.gpus or ["cpu", "cpu:2"]:
            processes = int(gpus[4:] or 1) if gpus.startswith("cpu") else len(gpus.split(","))
            for name, engine in ENGINES.items():
                settings = {**SETTINGS, **engine, "model": options.model, "gpus": gpus}
                settings |= {"batch_size": SAMPLES // 2 // processes, "accumulation": 2}
                bench = Bench(root, f"{name.replace(', ', '-')}-{processes}", settings, reference)
                rows.append({"engine": name, "gpus": gpus, "processes": processes, **bench.row()})
                reference = reference or bench.whole.path
                sys.stderr.write(f"{json.dumps(rows[-1])[:400]}\n")
                result = {"versions": versions(), "machine": machine(), "model": options.model, "rows": rows}
                if options.out:
                    options.out.write_text(json.dumps(result, indent=1))
    print(json.dumps(result))
    return 0


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("torch", "transformers", "accelerate", "peft", "deepspeed"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def machine() -> str:
    import torch

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join(names) or f"{platform.machine()}, CPU"


if __name__ == "__main__":
    sys.exit(main())
