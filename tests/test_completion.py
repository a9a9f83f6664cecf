"""What the shell offers behind Tab: names of runs, data sets, settings and their values, at once."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from terminal import on_terminal

from qwenft.core.files import write_json


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs and two data sets, as completion sees them: by their names alone."""
    root = tmp_path_factory.mktemp("desk")
    for number, name in enumerate(("first", "second")):
        (root / "runs" / name).mkdir(parents=True)
        events = root / "runs" / name / "events.jsonl"
        events.write_text("")
        os.utime(events, (1000 + number, 1000 + number))
    for name in ("photos", "phones"):
        write_json(root / "data" / name / "manifest.json", {})
    (root / "pictures").mkdir()
    return root


def offered(desk: Path, line: str, *options: str) -> tuple[list[str], str]:
    """What zsh is told for this line, and what the process said beside it."""
    environment = {**os.environ, "_QWENFT_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": line}
    done = subprocess.run(
        [sys.executable, *options, "-m", "qwenft"],
        cwd=desk, env=environment, capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    inside = done.stdout.partition("((")[2].partition("))")[0]
    return [word.split(":")[0] for word in shlex.split(inside)], done.stderr


LINES = [
    ("runs of eval", "qwenft eval --run ", ["second", "first"]),
    ("runs that begin so", "qwenft predict --run fi", ["first"]),
    ("runs to go on with", "qwenft train --resume s", ["second"]),
    ("runs to compare", "qwenft eval --compare first se", ["second"]),
    ("a run to show", "qwenft runs f", ["first"]),
    ("a run to export", "qwenft export --run f", ["first"]),
    ("a run to look at", "qwenft doctor --run f", ["first"]),
    ("the settings of a run", "qwenft config --from f", ["first"]),
    ("a run by its folder", "qwenft eval --run runs/s", ["runs/second/"]),
    ("data sets", "qwenft train --data ", ["phones", "photos"]),
    ("data sets of eval", "qwenft eval --data pho", ["phones", "photos"]),
    ("data sets of steps", "qwenft steps --data phot", ["photos"]),
    ("data sets behind a comma", "qwenft train --data photos,pho", ["photos,phones", "photos,photos"]),
    ("a run to show on a page", "qwenft app --run f", ["first"]),
    ("a folder that is none of them", "qwenft train --data pic", ["pictures/"]),
    ("a setting", "qwenft config learn", ["learning_rate"]),
    ("a setting to change", "qwenft train epo", ["epochs=", "epochs=1.0"]),
    ("its values", "qwenft train rank=8 schedule=co", ["schedule=cosine", "schedule=constant"]),
    ("yes or no", "qwenft train fast=", ["fast=true", "fast=false"]),
    ("data as a setting", "qwenft train data=phot", ["data=photos"]),
    ("what is no setting", "qwenft train colour=", []),
    ("commands", "qwenft do", ["doctor"]),
    ("options", "qwenft export --pu", ["--push"]),
    ("forms", "qwenft export --to ", ["merged", "adapter"]),
]


@pytest.mark.parametrize(("line", "words"), [pytest.param(*row[1:], id=row[0]) for row in LINES])
def test_the_shell_is_offered(desk: Path, line: str, words: list[str]) -> None:
    assert offered(desk, line)[0] == words


def test_nothing_heavy_is_loaded_for_a_name(desk: Path) -> None:
    words, said = offered(desk, "qwenft eval --run fi", "-X", "importtime")
    assert words == ["first"]
    loaded = {line.rpartition("|")[2].strip().split(".")[0] for line in said.splitlines() if "|" in line}
    assert "qwenft" in loaded
    assert loaded & {"torch", "transformers", "numpy", "datasets", "rich", "huggingface_hub"} == set()


TYPED = [
    ("a name, without a blank behind =", "qwenft train sched", "qwenft train schedule="),
    ("a value, which bash takes for a word of its own", "qwenft train rank=8 schedule=lin", "schedule=linear "),
    ("a run", "qwenft eval --run fi", "--run first "),
]


@pytest.mark.parametrize(("typed", "stands"), [pytest.param(*row[1:], id=row[0]) for row in TYPED])
def test_bash_completes_on_a_terminal(desk: Path, typed: str, stands: str) -> None:
    alias = f'qwenft() {{ {shlex.quote(sys.executable)} -m qwenft "$@"; }}'
    start = f'bind "set bell-style none"; {alias}; eval "$(qwenft --show-completion bash)"; PS1="rea""dy> "\n'
    shell = on_terminal(["bash", "--norc", "--noprofile", "-i"], desk, columns=160)
    os.write(shell.handle, start.encode())
    shell.read(lambda text: "ready> " in text, limit_s=30)
    os.write(shell.handle, f"{typed}\t".encode())
    try:
        assert stands in shell.read(lambda text: stands in text.rpartition("ready> ")[2], limit_s=20)
    finally:
        shell.process.kill()
        shell.process.wait()
        os.close(shell.handle)
