"""What all tests share: the same examples on every machine, and a small prepared data set for the tiny model."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

from qwenft.core.samples import PreparedDataset
from qwenft.demo.scenes import write_scenes
from qwenft.prepare.build import prepare_dataset

# One thread a process: pytest-xdist has one process a core already, and OpenMP's threads wait by spinning.
os.environ["OMP_NUM_THREADS"] = "1"
settings.register_profile("qwenft", deadline=None, derandomize=True)
settings.load_profile("qwenft")


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    """Generated pictures, prepared: data/scenes under a folder of its own, 26 or more questions to train on."""
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root / "scenes", num_train=16, num_val=4, seed=1)
    return prepare_dataset("scenes", root=root)


@pytest.fixture
def workplace(scenes: PreparedDataset, tmp_path: Path) -> Path:
    """A folder of a user's with data/scenes in it (a link: users keep data on large disks)."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "scenes").symlink_to(scenes.path)
    return tmp_path
