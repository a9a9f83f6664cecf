"""Two processes of a training, started once for several runs: importing torch is most of a test's time.

python process_pair.py JOB...    in each process, with RANK and WORLD_SIZE; the group stays
"""

import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qwenft.core.config import make_config
from qwenft.core.devices import Devices
from qwenft.core.samples import open_dataset
from qwenft.train.launch import deepspeed_environment


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def write_job(root: Path, name: str, *, cut: int | None = None, of: str = "", **settings: Any) -> Path:
    """A job; with `cut` it goes on with a copy of the run `of` that ended after that step, when its turn comes."""
    config = make_config({**settings, "name": name}, "a test")
    channel = root / f"{name}.channel"
    channel.write_text("")
    value = {
        "config": config.model_dump(mode="json"), "data": str(open_dataset(config.data, root).path), "dry_run": False,
        "devices": asdict(Devices("cpu", 2)), "channel": str(channel), "demo": False, "checkpoint": None,
        "run": str(root / "runs" / name), "resume": cut is not None, "cut": cut, "of": of,
    }  # fmt: skip
    path = root / f"{name}.job"
    path.write_text(json.dumps(value))
    return path


def run_pair(jobs: list[Path]) -> dict[str, list[dict[str, Any]]]:
    """The events of each job by its run's name.  AssertionError with what the processes said, if one fails."""
    shared = {**os.environ, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    shared |= {"MASTER_PORT": str(free_port()), **deepspeed_environment(Devices("cpu", 2)), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, *map(str, jobs)],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    said = []
    try:
        said = [process.communicate(timeout=200)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(text[-4000:] for text in said)
    return {job.stem: [json.loads(line) for line in job.with_suffix(".channel").open()] for job in jobs}


def _cut(value: dict[str, Any]) -> None:
    source, target = Path(value["run"]).parent / value["of"], Path(value["run"])
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("adapter", "curves.png", ".lock"))
    for checkpoint in (target / "checkpoints").iterdir():
        if checkpoint.name != f"step-{value['cut']}":
            shutil.rmtree(checkpoint)


def main() -> None:
    from torch import distributed
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    from qwenft.train import worker

    leave = distributed.destroy_process_group
    distributed.destroy_process_group = lambda: None  # DeepSpeed remembers groups for as long as the process lives
    for path in map(Path, sys.argv[1:]):
        value = json.loads(path.read_text())
        if value["cut"] is not None:
            mine = path.with_suffix(f".{os.environ['RANK']}")
            if os.environ["RANK"] == "0":
                _cut(value)
            value["checkpoint"] = str(Path(value["run"]) / "checkpoints" / f"step-{value['cut']}")
            mine.write_text(json.dumps(value))
            path = mine  # noqa: PLW2901
        status = worker.main([str(path)])
        unset_hf_deepspeed_config()
        if status:
            sys.exit(status)
    leave()


if __name__ == "__main__":
    main()
