"""The house: the order of imports, what a command loads, printed documents, and no traces of a machine."""

import ast
import importlib.util
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {
    "torch", "transformers", "peft", "datasets", "numpy", "pandas", "pyarrow", "accelerate", "huggingface_hub",
    "gradio",
}  # fmt: skip
FACE = {"qwenft", "qwenft.__main__"}
"""The package's face: it names functions of every stage, lazily, and starts the command line.  It is no stage."""


def load_printer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("print_readme", ROOT / "docs" / "print_readme.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PRINTER = load_printer()
STAGES = PRINTER.STAGES


# The order of imports


def modules_of(root: Path) -> dict[str, Path]:
    """Every module under root/qwenft: dotted name -> file; a package has its own name."""
    found = {}
    for path in sorted((root / "qwenft").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(name: str, path: Path, modules: dict[str, Path]) -> Iterator[str]:
    """What a module imports of the package, wherever it says so: at the top, in a function, under TYPE_CHECKING."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                whole = f"{origin}.{alias.name}"
                if whole in modules:
                    yield whole
                elif whole != "qwenft.__version__":
                    yield origin
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from (
                word.value for word in node.args if isinstance(word, ast.Constant) and isinstance(word.value, str)
            )


def graph_of(root: Path) -> dict[str, set[str]]:
    modules = modules_of(root)
    return {
        name: {found for found in imported(name, path, modules) if found.split(".")[0] == "qwenft"}
        for name, path in modules.items()
        if name not in FACE
    }


def place_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "the package's face"


def problems_of(root: Path, stages: tuple[str, ...]) -> list[str]:
    """What breaks the order: a place that is not in the row, an edge that points forward, a cycle inside a place."""
    graph = graph_of(root)
    problems = [f"{module}: {place_of(module)} is not in the row" for module in graph if place_of(module) not in stages]
    for module, targets in graph.items():
        for target in sorted(targets):
            here, there = place_of(module), place_of(target)
            if here not in stages:
                continue
            if there not in stages:
                problems.append(f"{module} imports {target}: {there} is not in the row")
            elif stages.index(there) > stages.index(here):
                problems.append(f"{module} imports {target}: it points forward")
    return problems + cycles_of(graph)


def cycles_of(graph: dict[str, set[str]]) -> list[str]:
    done: set[str] = set()
    problems = []

    def visit(module: str, way: tuple[str, ...]) -> None:
        if module in way:
            problems.append("cycle: " + " -> ".join([*way[way.index(module) :], module]))
        elif module not in done:
            for target in sorted(graph.get(module, ())):
                visit(target, (*way, module))
            done.add(module)

    for module in sorted(graph):
        visit(module, ())
    return problems


def test_imports_point_backwards_along_the_row() -> None:
    assert len(graph_of(ROOT)) > 20  # the files were found
    assert problems_of(ROOT, STAGES) == []


MADE_UP = [
    ("forward at the top", {"core/a.py": "from qwenft.train.b import x", "train/b.py": ""}, "points forward"),
    ("forward in a function", {"core/a.py": "def f():\n    import qwenft.train.b", "train/b.py": ""}, "points forward"),
    (
        "forward for types only",
        {"core/a.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from qwenft.ui import S", "ui.py": ""},
        "points forward",
    ),
    ("forward by a relative import", {"core/a.py": "from ..train import b", "train/b.py": ""}, "points forward"),
    (
        "forward by import_module",
        {"core/a.py": "import importlib\nimportlib.import_module('qwenft.train.b')", "train/b.py": ""},
        "points forward",
    ),
    ("by way of the face", {"core/a.py": "from qwenft import find"}, "the package's face is not in the row"),
    ("a new place", {"extras/a.py": ""}, "extras is not in the row"),
    ("from a new place", {"core/a.py": "import qwenft.extras.a", "extras/a.py": ""}, "extras is not in the row"),
    (
        "cycle of two",
        {"core/a.py": "import qwenft.core.b", "core/b.py": "def f():\n    from qwenft.core import a"},
        "cycle: qwenft.core.a -> qwenft.core.b -> qwenft.core.a",
    ),
    (
        "cycle through a subfolder",
        {
            "prepare/a.py": "from .sources.b import x",
            "prepare/sources/b.py": "from ..c import y",
            "prepare/c.py": "from . import a",
        },
        "cycle: ",
    ),
    (
        "cycle through a package",
        {"core/__init__.py": "from qwenft.core.a import x", "core/a.py": "from qwenft.core import x"},
        "cycle: ",
    ),
]


def write_tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / "qwenft" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(("files", "problem"), [row[1:] for row in MADE_UP], ids=[row[0] for row in MADE_UP])
def test_a_knot_in_a_made_up_tree_is_caught(tmp_path: Path, files: dict[str, str], problem: str) -> None:
    assert any(problem in found for found in problems_of(write_tree(tmp_path, files), STAGES))


def test_a_made_up_tree_in_order_is_left_alone(tmp_path: Path) -> None:
    files = {
        "__init__.py": "from importlib import import_module\nimport_module('qwenft.train.b')",
        "core/a.py": "from qwenft import __version__\nfrom qwenft.core.c import x",
        "core/c.py": "import json",
        "train/b.py": "from qwenft.core import a\nfrom qwenft.core.a import y",
        "cli.py": "from .train import b",
    }
    assert problems_of(write_tree(tmp_path, files), STAGES) == []


def test_each_public_name_stands_in_the_module_that_is_named_for_it() -> None:
    import qwenft

    modules = modules_of(ROOT)
    for name, module in qwenft._PUBLIC.items():
        assert module in modules, module
        body = ast.parse(modules[module].read_text(encoding="utf-8")).body
        assert name in {node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)}, (
            f"{module} has no {name}"
        )
        assert f"qwenft.{name}" not in modules  # an imported submodule would shadow it
    assert set(dir(qwenft)) == set(qwenft.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = qwenft.nothing


# What is loaded before a command works

RUNNER = """
import runpy, sys, json
from pathlib import Path
target, *sys.argv[1:] = sys.argv[1:]
try:
    if sys.argv[1:]:
        runpy.run_module("qwenft", run_name="__main__", alter_sys=True)
    else:
        __import__(target)
except SystemExit as end:
    assert not end.code, end.code
finally:
    loaded = sorted(sys.modules)
sys.stdout.flush()
sys.stderr.write(json.dumps(loaded))
"""


def modules_loaded_by(*arguments: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, *arguments], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize(
    "arguments",
    [
        ("qwenft", "--help"),
        ("qwenft", "train", "--help"),
        ("qwenft", "steps", "--n", "8000", "--bs", "4"),
        ("qwenft",),
        ("qwenft.train.launch",),
    ],
    ids=["help", "train help", "steps", "import qwenft", "the parent of train"],
)
def test_nothing_heavy_is_loaded_before_a_command_works(arguments: tuple[str, ...]) -> None:
    loaded = modules_loaded_by(*arguments)
    assert "qwenft" in loaded
    assert {name.split(".")[0] for name in loaded} & HEAVY == set()
    assert "rich.progress" not in loaded


def test_the_list_of_what_is_loaded_would_show_torch() -> None:
    assert "torch" in modules_loaded_by("torch")


# Documents


def test_the_documents_say_what_the_code_says() -> None:
    assert PRINTER.main(["--check"]) is None


def test_a_stale_document_and_missing_marks_are_told() -> None:
    text = "a\n<!-- tree -->\nold\n<!-- /tree -->\nb"
    assert PRINTER.filled(text, "tree", "new") == "a\n<!-- tree -->\nnew\n<!-- /tree -->\nb"
    with pytest.raises(ValueError, match=r"README\.md needs one <!-- settings -->"):
        PRINTER.filled(text, "settings", "new")


def test_the_tree_names_every_module() -> None:
    tree = PRINTER.tree()
    files = [path for path in modules_of(ROOT).values() if path.name != "__init__.py"]
    assert all(path.name in tree for path in files)
    assert tree.count(".py ") == len(files)


# The repository


def repository_files() -> list[Path]:
    """Files that are, or are about to be, in the repository; in an unpacked archive all that are not hidden."""
    if (ROOT / ".git").exists():
        command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
        return [ROOT / name for name in listed if name and (ROOT / name).is_file()]
    return [
        path
        for path in ROOT.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
    ]


def test_no_file_names_a_path_of_somebodys_machine() -> None:
    homes = "|".join(["home", "root", "work", "Users"])
    pattern = re.compile(rf"(?<![\w.}}/])/(?:{homes})/[\w.-]+")
    found = []
    for path in repository_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture or weights
        found += [f"{path.relative_to(ROOT)}: {match.group()}" for match in pattern.finditer(text)]
    assert found == []


def test_no_lock_file_that_names_hosts_is_in_the_repository() -> None:
    if (ROOT / ".git").exists():
        command = ["git", "ls-files", "uv.lock"]
        assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout == ""
    assert "uv.lock" in (ROOT / ".gitignore").read_text().splitlines()


def test_every_module_says_in_a_sentence_what_it_is() -> None:
    lines = {name: PRINTER.first_line(path) for name, path in modules_of(ROOT).items()}
    assert {name: line for name, line in lines.items() if not line.endswith(".") or len(line) > 120} == {}


def test_no_file_is_too_long_to_be_read_at_once() -> None:
    paths = [*modules_of(ROOT).values(), *(ROOT / "tests").glob("*.py")]
    lengths = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    assert {name: length for name, length in lengths.items() if length > 500} == {}


def proves_something(function: ast.FunctionDef) -> bool:
    nodes = list(ast.walk(function))
    calls = [ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)]
    return any(isinstance(node, ast.Assert) for node in nodes) or any(
        call in ("pytest.raises", "pytest.warns", "pytest.fail") for call in calls
    )


def test_every_test_asserts_something() -> None:
    idle, seen = [], 0
    for path in sorted((ROOT / "tests").glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                seen += 1
                idle += [] if proves_something(node) else [f"{path.name}: {node.name}"]
    assert seen > 50
    assert idle == []


# Shipped settings


def configs() -> list[Path]:
    return sorted((ROOT / "configs").rglob("*.y*ml"))


def test_there_are_configs_to_look_at() -> None:
    assert configs()


@pytest.mark.parametrize("path", configs(), ids=lambda path: path.stem)
def test_a_shipped_config_loads_and_the_commands_in_its_header_parse(path: Path) -> None:
    import typer

    from qwenft.cli import app
    from qwenft.core.config import load_config

    load_config(path)
    group = typer.main.get_command(app)
    commands = re.findall(r"^#.*?\b(qwenft .+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert any(str(path.relative_to(ROOT)) in line for line in commands)  # how to launch this very file
    for line in commands:
        name, *arguments = shlex.split(line, comments=True)[1:]
        parsed = group.commands[name].make_context(name, arguments).params
        if name == "train":
            load_config(ROOT / parsed["config"] if parsed["config"] else None, parsed["overrides"] or ())
