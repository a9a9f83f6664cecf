"""The wheel: whole, small, and at work without the repository."""

import subprocess
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MOST_BYTES = 15_000_000


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as `pip wheel .` does it, by the backend that stands in pyproject.toml."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)],
        cwd=ROOT, check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    (built,) = folder.glob("*.whl")
    return built


def shipped() -> set[str]:
    """Every file of the package."""
    files = (path for path in (ROOT / "qwenft").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(ROOT).as_posix() for path in files}


def test_the_wheel_holds_the_package_its_licence_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    about = {name for name in names if ".dist-info/" in name}
    assert names - about == shipped()
    assert {"qwenft/py.typed", "qwenft/demo/assets/tiny/model.safetensors"} < names
    assert {name.partition("/")[2] for name in about} >= {"licenses/LICENSE", "METADATA", "entry_points.txt"}
    assert wheel.stat().st_size < MOST_BYTES


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    about = message_from_bytes(archive.read(metadata))
    assert (about["Name"], about["License-Expression"], about["Requires-Python"]) == ("qwenft", "Apache-2.0", ">=3.11")
    assert set(about.get_all("Provides-Extra")) >= {"captions", "deepspeed", "qlora"}
    assert about.get_payload().startswith("# qwenft")


def test_the_installed_command_works_in_another_folder(wheel: Path, tmp_path: Path) -> None:
    """Unpacked, which is what installing a wheel of pure Python is; the libraries are this environment's."""
    target, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    zipfile.ZipFile(wheel).extractall(target)
    elsewhere.mkdir()
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); import qwenft; from qwenft.model.fetch import TINY_FOLDER; "
        "print(qwenft.__file__, TINY_FOLDER); from qwenft.cli import main; main()"
    )
    words = [sys.executable, "-c", code, str(target), "doctor", "--data", "nothing", "--json"]
    done = subprocess.run(words, cwd=elsewhere, capture_output=True, text=True, timeout=60, check=False)
    module, tiny = done.stdout.splitlines()[0].split()
    assert Path(module) == target / "qwenft" / "__init__.py"
    assert (Path(tiny) / "model.safetensors").is_file() and Path(tiny).is_relative_to(target)
    assert done.returncode == 1
    assert f"{elsewhere / 'nothing'} does not exist" in done.stderr
