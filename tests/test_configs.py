"""configs/: each says what to fetch, how to start and what was measured; tests/test_engines.py trains each of them."""

import re
import shlex
from pathlib import Path

import pytest

from qwenft.core.config import DEFAULT_MODEL, load_config

ROOT = Path(__file__).parents[1]
SHIPPED = sorted((ROOT / "configs").glob("*.yaml"))
HEADER = ("Fetch first", "Start", "Memory, time")
FIGURE = re.compile(r"[\d.,]+(?= (?:GiB|GB|s|samples/s|times)\b)")


def header(path: Path) -> dict[str, str]:
    """What the comments on top say, by their first words; lines that go on are joined."""
    found: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").partition("\n\n")[0].splitlines()[1:]:
        if key := re.match(r"# (\w[\w, ]*):\s+(.*)", line):
            found[key[1]] = key[2]
        elif line.strip("# "):
            last = list(found)[-1]
            found[last] += f" {line.strip('# ')}"
    return found


def test_there_is_a_config_for_each_way_and_each_task() -> None:
    assert {path.stem for path in SHIPPED} == {
        "lora-3b", "lora-7b", "qlora", "full", "ddp", "fsdp", "zero2", "zero3", "detection", "captions", "negatives",
        "tiny",
    }  # fmt: skip
    assert {load_config(path).model for path in SHIPPED} == {DEFAULT_MODEL, "Qwen/Qwen2.5-VL-7B-Instruct", "tiny"}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_header_says_what_to_fetch_how_to_start_and_what_was_measured(path: Path) -> None:
    said = header(path)
    assert [key for key in HEADER if key in said] == list(HEADER)
    fetch, start, measured = (said[key] for key in HEADER)
    assert shlex.split(fetch.partition("   ")[0])[:3] == ["qwenft", "prepare", "--dataset"]
    assert start.startswith(f"qwenft train --config configs/{path.name}")
    if measured.startswith("not measured"):
        return
    benchmarks = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    figures = FIGURE.findall(measured)
    assert len(figures) >= 2
    assert [figure for figure in figures if not re.search(rf"(?<![\d.]){re.escape(figure)}(?![\d])", benchmarks)] == []
    assert "H100" in measured or "CPU" in measured
