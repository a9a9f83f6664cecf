"""Prepared data that several runs share, in a folder that is only read and is reached through a link."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from training import FAST, train_here

from qwenft.core.config import make_config
from qwenft.core.runs import Run
from qwenft.core.samples import PreparedDataset
from qwenft.train.launch import train_adapter


def seen_in(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder, and the folders themselves: size and time of the last change."""
    return {str(p.relative_to(folder)): (p.stat().st_size, p.stat().st_mtime_ns) for p in (folder, *folder.rglob("*"))}


@pytest.fixture
def read_only(scenes: PreparedDataset) -> Any:
    """The data without write permission; a superuser may write all the same, so what is there is compared too."""
    before = seen_in(scenes.path)
    folders = [p for p in (scenes.path, *scenes.path.rglob("*")) if p.is_dir()]
    for folder in folders:
        folder.chmod(0o555)
    yield scenes.path
    for folder in folders:
        folder.chmod(0o755)
    assert seen_in(scenes.path) == before


@pytest.mark.timeout(300)
def test_two_runs_train_on_the_same_data_at_the_same_time(workplace: Path, read_only: Path) -> None:
    assert (workplace / "data" / "scenes").is_symlink()
    settings = {**FAST, "max_steps": 4, "batch_size": 2, "accumulation": 1, "workers": 1}

    def train(name: str) -> Run:
        return train_adapter(make_config({**settings, "name": name}, "a test"), root=workplace)

    with ThreadPoolExecutor(2) as both:
        one, other = both.map(train, ("one", "other"))
    weights = [(run.adapter / "adapter_model.safetensors").read_bytes() for run in (one, other)]
    assert weights[0] == weights[1]
    assert [run.finished for run in (one, other)] == [True, True]


def test_a_data_folder_that_is_only_read_serves_a_run_and_its_evaluations(workplace: Path, read_only: Path) -> None:
    status, _, events = train_here(workplace, "one", max_steps=2, eval_samples=2, batch_size=2, accumulation=1)
    assert status == 0
    assert [event["step"] for event in events if event["event"] == "eval"] == [0, 2]
    plan = next(event for event in events if event["event"] == "plan")
    assert Path(plan["data"]["path"]).samefile(read_only)
