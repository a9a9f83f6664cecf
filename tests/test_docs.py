"""The documents: each command line parses, cheap ones print what stands below them, each link leads somewhere."""

import importlib.util
import io
import itertools
import re
import shlex
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final
from urllib.parse import unquote

import pytest
import typer
from prepare_inputs import write_coco

from qwenft.cli import app
from qwenft.core.config import load_config
from qwenft.core.errors import ConfigError

ROOT: Final = Path(__file__).parents[1]
DOCUMENTS: Final = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "benchmarks").glob("*.md"),
        *ROOT.glob("examples/*.md"),
    ]
)
CHINESE: Final = sorted((ROOT / "docs" / "zh").glob("*.md"))
FENCE: Final = re.compile(r"^(```+)(\w*)\n(.*?)^\1\s*$", re.MULTILINE | re.DOTALL)
INDENTED: Final = re.compile(r"(?:^|\n)\n((?: {4,}\S.*\n)+)")
SPAN: Final = re.compile(r"(?<!`)`(qwenft [^`\n]+)`(?!`)")
LINK: Final = re.compile(r"\]\((?!https?:|mailto:)([^()\s]+)\)")
CHEAP: Final = ("steps", "config")
"""Commands that read nothing where they name no data set, run or file."""


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def command_lines(block: str) -> Iterator[str]:
    """What a reader would type: without comments, lines that go on joined, each end of a pipe by itself."""
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        pipe: list[str] = []
        for word in [*words, "|"]:
            if word == "|":
                yield shlex.join(pipe)
                pipe = []
            elif not re.fullmatch(r"\d?>&?\d?", word):
                pipe.append(word)


def typed(path: Path) -> list[str]:
    """The qwenft commands of a document's shell blocks and indented blocks, in order."""
    text = text_of(path)
    blocks = [body for _, kind, body in FENCE.findall(text) if kind == "console"]
    lines = [*blocks, *INDENTED.findall(FENCE.sub("\n", text))]
    found = [line.removeprefix("uv run ") for block in lines if "qwenft " in block for line in command_lines(block)]
    return [line for line in found if line.startswith("qwenft ")]


def parsed(line: str) -> dict[str, Any]:
    """Parse a command line with the real command line, settings too.  Raises what a user would see."""
    group: Any = typer.main.get_command(app)
    name, *words = shlex.split(line)[1:]
    found = dict(group.commands[name].make_context(name, words).params)
    if name == "train":
        load_config(None, found["overrides"] or ())
    return found


def unknown(mention: str) -> list[str]:
    """What a mention such as `qwenft eval --run` names that does not exist: a command, or options of it."""
    group: Any = typer.main.get_command(app)
    words = mention.split()[1:]
    command = group if words[0].startswith("-") else group.commands.get(words[0])
    if command is None:
        return [words[0]]
    known = {option for one in command.get_params(typer.Context(command)) for option in (*one.opts, "--help")}
    return [word for word in words if re.match("--?[a-z]", word) and word.partition("=")[0] not in known]


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_every_command_in_a_document_is_one_that_the_command_line_takes(path: Path) -> None:
    for line in typed(path):
        try:
            parsed(line)
        except Exception as error:
            pytest.fail(f"{line}: {type(error).__name__}: {error}")
    mentions = SPAN.findall(FENCE.sub("\n", text_of(path)))
    assert {mention: unknown(mention) for mention in mentions if unknown(mention)} == {}


def test_a_command_that_does_not_exist_would_be_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "An indented one:\n\n    qwenft two   # so\n\n```console\nls | qwenft steps --n 1 \\\n  --no-such\n```\n"
    )
    assert typed(page) == ["qwenft steps --n 1 --no-such", "qwenft two"]
    with pytest.raises(Exception, match="no-such"):
        parsed("qwenft steps --n 1 --no-such")
    with pytest.raises(KeyError):
        parsed("qwenft two")
    with pytest.raises(ConfigError, match="epoch"):
        parsed("qwenft train epoch=2")
    assert unknown("qwenft two") == ["two"]
    assert unknown("qwenft eval --run R --no-such=1") == ["--no-such=1"]
    assert unknown("qwenft --version") == []


def shown(path: Path) -> list[tuple[str, str]]:
    """(command, output) of the blocks of one cheap command that a block with its output follows."""
    blocks = list(FENCE.finditer(text_of(path)))
    pairs = []
    for first, second in itertools.pairwise(blocks):
        between = text_of(path)[first.end() : second.start()].strip()
        line = first.group(3).strip()
        if first.group(2) == "console" and second.group(2) == "text" and not between and "\n" not in line:
            pairs.append((line, second.group(3)))
    return pairs


def test_output_below_a_command_is_what_the_command_prints() -> None:
    pairs = [pair for path in DOCUMENTS for pair in shown(path)]
    assert len(pairs) >= 6
    for line, wanted in pairs:
        words = shlex.split(line)
        assert words[1] in CHEAP, f"{line}: only {', '.join(CHEAP)} are run here"
        out = io.StringIO()
        with redirect_stdout(out), redirect_stderr(io.StringIO()):
            app(words[1:], standalone_mode=False)
        assert out.getvalue() == wanted, line


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them (mkdocs.yml asks for the same)."""
    prose = FENCE.sub("\n", text_of(path))
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} (.+?)\s*$", prose, re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", heading).lower()
        found.add(re.sub(r"[^\w\- ]", "", plain).replace(" ", "-"))
    return found


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_every_link_between_documents_leads_to_a_file_and_a_heading(path: Path) -> None:
    wrong = []
    for link in LINK.findall(FENCE.sub("\n", text_of(path))):
        place, _, anchor = unquote(link).partition("#")
        target = (path.parent / place).resolve() if place else path
        if not target.exists() or not target.is_relative_to(ROOT):
            wrong.append(f"{link}: no such file")
        elif anchor and anchor not in anchors(target):
            wrong.append(f"{link}: no such heading")
    assert wrong == []


@pytest.mark.parametrize("path", CHINESE, ids=named)
def test_a_chinese_page_shows_the_commands_of_its_english_one_in_their_order(path: Path) -> None:
    def blocks(page: Path) -> list[str]:
        found = [body for _, kind, body in FENCE.findall(text_of(page)) if kind == "console"]
        return [re.sub(r"\s+#.*", "", line) for block in found for line in block.splitlines()]

    assert blocks(path) == blocks(ROOT / "docs" / path.name)


@pytest.mark.parametrize("name", ["docs/data.md", "docs/zh/data.md", "docs/export.md"])
def test_the_python_of_a_page_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_coco(tmp_path / "my" / "coco-folder", count=4)
    monkeypatch.chdir(tmp_path)
    blocks = [body for _, kind, body in FENCE.findall(text_of(ROOT / name)) if kind == "python"]
    assert blocks
    for block in blocks:
        exec(compile(block, name, "exec"), {})


def test_the_site_turns_links_of_the_repository_into_links_of_pages_and_refuses_what_is_foreign() -> None:
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None and spec.loader is not None
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)

    def rewritten(markdown: str, page: str) -> str:
        return hooks.on_page_markdown(markdown, page=SimpleNamespace(file=SimpleNamespace(src_uri=page)))

    assert rewritten("[a](docs/runs.md#events)", "readme.md") == "[a](runs.md#events)"
    assert rewritten("![a](docs/images/demo.png)", "zh/readme.md") == "![a](../images/demo.png)"
    assert rewritten("[a](../README.md) [`b`](../qwenft/cli.py)", "data.md") == "[a](readme.md) `b`"
    assert rewritten("[a](../../configs/ddp.yaml) [b](#c)", "zh/training.md") == "[a](../configs.md) [b](#c)"
    page = SimpleNamespace(file=SimpleNamespace(src_uri="data.md"), url="data.html")
    assert hooks.on_post_page('<a href="https://example.org">', page=page)
    with pytest.raises(hooks.PluginError, match="loads from elsewhere"):
        hooks.on_post_page('<link rel="stylesheet" href="https://example.org/font.css">', page=page)
