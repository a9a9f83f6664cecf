"""From Python: every example in a docstring runs, and the public functions are typed, explained and shown."""

import ast
import doctest
import inspect
import re
import shutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from prepare_inputs import write_coco
from training import train_adapter_here

import qwenft
from qwenft.core.samples import PreparedDataset
from qwenft.train import launch

ROOT = Path(__file__).parents[1]
PLACE = {
    "prepare_dataset",
    "open_dataset",
    "open_run",
    "train_adapter",
    "resume_training",
    "evaluate_run",
    "find",
    "export_run",
    "diagnose",
}
"""Their examples need a data set and a run; they are tried in this folder one after another, as a reader would."""
WITHOUT = {"__version__", "QwenftError", "run_demo"}
"""Without an example: a text, an error, and what tests/test_demo.py runs."""
FUNCTIONS = [name for name in qwenft.__all__ if name not in WITHOUT]


def modules_with_examples() -> list[str]:
    paths = sorted(path for path in (ROOT / "qwenft").rglob("*.py") if ">>>" in path.read_text(encoding="utf-8"))
    return [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]


def examples_of(module: str) -> list[doctest.DocTest]:
    return [test for test in doctest.DocTestFinder().find(import_module(module)) if test.examples]


def failures(test: doctest.DocTest) -> str:
    said: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=said.append)
    return "".join(said)


def test_every_example_of_a_pure_function_says_what_comes_out() -> None:
    seen = 0
    for module in modules_with_examples():
        for test in examples_of(module):
            if test.name.rpartition(".")[2] not in PLACE:
                seen += 1
                assert failures(test) == ""
    assert seen > 50


@pytest.fixture(scope="module")
def desk(scenes: PreparedDataset, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A user's folder: a source named scenes, and a photo."""
    folder = tmp_path_factory.mktemp("desk")
    shutil.copytree(scenes.path.parents[1] / "scenes", folder / "scenes")
    shutil.copyfile(scenes.picture_path(scenes.samples("val")[0]), folder / "photo.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def test_the_examples_of_the_public_functions_run_in_a_row(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The training is in this process; tests/test_main_line.py starts it as it is."""
    named = {name: f"{module}.{name}" for name, module in qwenft._PUBLIC.items() if name in PLACE}
    found = {test.name: test for name in named for test in examples_of(qwenft._PUBLIC[name])}
    monkeypatch.setattr(launch, "train_adapter", train_adapter_here)
    assert {name: failures(found[full]) for name, full in named.items()} == dict.fromkeys(PLACE, "")


def test_the_page_about_python_runs(
    desk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder where data/mine and data/things are prepared; the training is in this process."""
    monkeypatch.setattr(launch, "train_adapter", train_adapter_here)
    if not (desk / "data" / "mine").exists():
        qwenft.prepare_dataset("scenes", out=Path("data/mine"))
    write_coco(desk / "things", count=6)
    qwenft.prepare_dataset("things", export=["coco"])
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        exec(compile(block, "docs/python.md", "exec"), names)
    assert len(names["losses"]) == 2 and len(names["boxes"]) == 1
    assert "no run 'thrid'" in capsys.readouterr().out
    assert len(names["things"]) == 6 - len(qwenft.open_dataset("things").samples("val"))
    assert set(re.findall(r"^\| `(\w+)\(", page, re.MULTILINE)) <= set(qwenft.__all__)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_public_name_is_typed_and_shows_an_example(name: str) -> None:
    item: Any = getattr(qwenft, name)
    assert ">>> " in inspect.getdoc(item)
    for parameter in inspect.signature(item).parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty, parameter


def test_a_type_checker_without_pydantics_plugin_sees_that_settings_may_be_left_out() -> None:
    """`Field(0, ge=0)` is a field without a default to it: dataclass transforms know `default=` alone."""
    tree = ast.parse((ROOT / "qwenft" / "core" / "config.py").read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "Field"]
    assert len(calls) > 5
    assert [ast.unparse(call) for call in calls if call.args] == []
