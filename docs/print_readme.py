"""Prints what the documents say about the code: README's tree and settings, the commands' help, the formats.

uv run python docs/print_readme.py            writes README.md, docs/commands.md and docs/formats.md
uv run python docs/print_readme.py --check    changes nothing; exit 1 names what differs
"""

import ast
import difflib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
STAGES: Final = (
    "core", "prepare", "model", "predict", "evaluate", "train", "demo", "export", "doctor", "app", "ui", "commands",
    "cli",
)  # fmt: skip
"""The row of the house: a place imports only places before it.  tests/test_house.py holds it."""
COMMANDS: Final = ("prepare", "train", "predict", "eval", "steps", "runs", "config", "export", "doctor", "app", "demo")
HELP_COLUMNS: Final = 100


def first_line(path: Path) -> str:
    """The first line of a module's docstring.  Raises ValueError where it has none."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    if not docstring:
        raise ValueError(f"{path} has no docstring")
    return docstring.splitlines()[0]


def tree(root: Path = ROOT) -> str:
    """The package as a tree, in the order of the row, each file with its docstring's first line."""
    lines = [("qwenft/", first_line(root / "qwenft" / "__init__.py"))]
    tops = [root / "qwenft" / stage for stage in STAGES]
    for top in [*tops, root / "qwenft" / "__main__"]:
        lines += _folder(top, 1) if top.is_dir() else [_file(top.with_suffix(".py"), 1)]
    width = max(len(name) for name, _ in lines) + 2
    return "\n".join(["```", *(f"{name:<{width}}{text}" for name, text in lines), "```"])


def _folder(folder: Path, depth: int) -> list[tuple[str, str]]:
    lines = [("  " * depth + f"{folder.name}/", first_line(folder / "__init__.py"))]
    for item in sorted(folder.iterdir()):
        if (item / "__init__.py").is_file():
            lines += _folder(item, depth + 1)
        elif item.suffix == ".py" and item.name != "__init__.py":
            lines.append(_file(item, depth + 1))
    return lines


def _file(path: Path, depth: int) -> tuple[str, str]:
    return ("  " * depth + path.name, first_line(path))


def settings() -> str:
    """The settings of `train` as a Markdown table."""
    from qwenft.core.config import setting_fields

    lines = ["| setting | default | what it is |", "|---|---|---|"]
    for name, field in setting_fields().items():
        default = ", ".join(field.default) if isinstance(field.default, tuple) else field.default
        shown = f"`{default}`" if default not in (None, "") else ""
        text = str(field.description).replace("|", "\\|").replace("\n", " ")
        lines.append(f"| `{name}` | {shown} | {text} |")
    return "\n".join(lines)


def commands() -> str:
    """docs/commands.md: each command's help, as it is shown."""
    parts = ["# The commands\n", "Printed by `docs/print_readme.py`; not to be edited by hand.\n"]
    for name in ("", *COMMANDS):
        parts.append(f"## qwenft {name}".rstrip() + f"\n\n```\n{_help(name)}\n```\n")
    return "\n".join(parts)


def _help(name: str) -> str:
    environment = {**os.environ, "COLUMNS": str(HELP_COLUMNS), "TERMINAL_WIDTH": str(HELP_COLUMNS), "NO_COLOR": "1"}
    environment |= {"TERM": "dumb", "PYTHONUTF8": "1"}
    for name_of_flag in ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS"):
        environment.pop(name_of_flag, None)
    start = "import sys; sys.argv[0] = 'qwenft'; from qwenft.cli import main; main()"
    arguments = [sys.executable, "-c", start, *([name] if name else []), "--help"]
    done = subprocess.run(arguments, env=environment, cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        raise ValueError(f"qwenft {name} --help ended with {done.returncode}: {done.stderr[-500:]}")
    return "\n".join(line.rstrip() for line in done.stdout.strip("\n").splitlines())


def formats() -> str:
    """docs/formats.md: what `prepare` reads and writes, from its tables."""
    from qwenft.prepare.exports import FORMS
    from qwenft.prepare.rows import EXPLANATIONS
    from qwenft.prepare.sources import LOADERS

    lines = [
        "# Formats\n",
        "Printed by `docs/print_readme.py`; not to be edited by hand.\n",
        "## What `prepare` reads\n",
    ]
    lines += ["A source is told by its content, in this order; the first that fits reads it.\n"]
    lines += ["| format | recognized by | boxes | example | limits |", "|---|---|---|---|---|"]
    for name, loader in LOADERS.items():
        example = f"`qwenft prepare --dataset {loader.example}`"
        lines.append(f"| {name} | {loader.what} | {loader.convention} | {example} | {loader.limits} |")
    lines += ["\n## What `prepare --export` writes\n", "| form | tasks | boxes and pictures |", "|---|---|---|"]
    lines += [f"| `{name}` | {', '.join(form.tasks)} | {form.frame} |" for name, form in FORMS.items()]
    lines += ["\n## Why a row or an object is not taken\n", "| reason in rejected.jsonl | what it means |", "|---|---|"]
    lines += [f"| `{reason}` | {text} |" for reason, text in EXPLANATIONS.items()]
    return "\n".join([*lines, ""])


def filled(text: str, mark: str, content: str) -> str:
    """Put `content` between `<!-- mark -->` and `<!-- /mark -->`.  Raises ValueError unless each stands there once."""
    opening, closing = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    if text.count(opening) != 1 or text.count(closing) != 1:
        raise ValueError(f"README.md needs one {opening} and, behind it, one {closing}")
    pattern = re.compile(f"{re.escape(opening)}.*?{re.escape(closing)}", re.DOTALL)
    return pattern.sub(lambda _: f"{opening}\n{content}\n{closing}", text)


def documents() -> dict[Path, str]:
    """What the printed documents should hold."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    readme = filled(filled(readme, "tree", tree()), "settings", settings())
    docs = ROOT / "docs"
    return {ROOT / "README.md": readme, docs / "commands.md": commands(), docs / "formats.md": formats()}


def main(arguments: list[str]) -> str | None:
    """Write the documents or, with --check, compare them; returns what is wrong."""
    try:
        wanted = documents()
    except ValueError as error:
        return str(error)
    problems = []
    for path, text in wanted.items():
        found = path.read_text(encoding="utf-8") if path.is_file() else ""
        if found == text:
            continue
        if "--check" in arguments:
            changes = difflib.unified_diff(
                found.splitlines(), text.splitlines(), "stands", "should stand", lineterm="", n=0
            )
            problems.append("\n".join([f"{path.relative_to(ROOT)} is stale:", *list(changes)[:30]]))
        else:
            path.write_text(text, encoding="utf-8")
    return "\n".join([*problems, "mend it: uv run python docs/print_readme.py"]) if problems else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
