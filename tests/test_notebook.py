"""The notebook in examples/ is its script, executed; and the script runs."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from training import train_adapter_here

from qwenft.train import launch

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("make_notebook", ROOT / "examples" / "make_notebook.py")
assert spec and spec.loader
make_notebook = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_notebook)


def test_the_notebook_holds_the_cells_of_its_script_executed() -> None:
    assert make_notebook.difference() == ""


def test_the_notebook_shows_pictures_and_a_gain_and_nothing_of_the_machine_that_ran_it() -> None:
    book = nbformat.read(make_notebook.NOTEBOOK, as_version=4)
    outputs = [output for cell in book.cells for output in cell.get("outputs", ())]
    assert {output.output_type for output in outputs} == {"stream", "execute_result"}  # no error
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
    said = "".join(output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs)
    assert not re.search(r"(?m)(^|[\s'\"])/[a-z]+/|site-packages|Warning|Traceback", said)
    base, adapter = re.search(r"Acc@0.5: ([\d.]+) -> ([\d.]+)", said).groups()
    assert float(adapter) > float(base)


def test_a_changed_cell_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "first_adapter.py"
    script.write_text(make_notebook.SCRIPT.read_text().replace("NUM_TRAIN, NUM_VAL = ", "NUM_TRAIN, NUM_VAL = 7 + "))
    monkeypatch.setattr(make_notebook, "SCRIPT", script)
    assert "python examples/make_notebook.py" in make_notebook.difference()


def test_every_cell_of_the_script_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On few pictures, and with the training in this process: tests/test_main_line.py starts it as it is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "train_adapter", train_adapter_here)
    names: dict[str, Any] = {}
    for kind, text in make_notebook.cells(make_notebook.SCRIPT.read_text(encoding="utf-8")):
        if kind == "code":
            small = re.sub(r"^NUM_TRAIN, NUM_VAL = .*$", "NUM_TRAIN, NUM_VAL = 10, 4", text, flags=re.MULTILINE)
            exec(compile(small, "a cell", "exec"), names)
    assert names["found"].report.is_file()
    assert names["after"].adapter and not names["before"].adapter
