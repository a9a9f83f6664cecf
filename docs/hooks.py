"""Hooks of mkdocs: pages that live outside docs/ join the site, and no page loads anything foreign."""

import posixpath
import re
from pathlib import Path
from typing import Any, Final

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT: Final = Path(__file__).resolve().parents[1]
OUTSIDE: Final = {
    "README.md": "readme.md",
    "README.zh-CN.md": "zh/readme.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
}
"""Path in the repository -> page of the site."""
ORIGIN: Final = {page: source for source, page in OUTSIDE.items()}
LINK: Final = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!https?:|mailto:|#)([^()\s#]+)(#[^()\s]*)?\)")
FOREIGN: Final = re.compile(
    r'<(?:script|img|iframe|source|video|audio)\b[^>]*\bsrc="(?:https?:)?//[^"]*"'
    r'|<link\b(?=[^>]*\brel="(?:stylesheet|preload|preconnect|icon)")[^>]*\bhref="(?:https?:)?//[^"]*"'
)


def on_files(files: Any, config: Any) -> Any:
    """Add README, changelog, benchmarks, and one page with every file of configs/."""
    pages = {page: (ROOT / source).read_text(encoding="utf-8") for source, page in OUTSIDE.items()}
    for page, text in {**pages, "configs.md": configs()}.items():
        files.append(File.generated(config, page, content=text))
    return files


def configs() -> str:
    """configs/ as a page: a heading and a block for each file."""
    parts = ["# Configurations\n\nThe files of `configs/`, as they stand; each header says how to start it.\n"]
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        parts.append(f"## {path.name}\n\n```yaml\n{path.read_text(encoding='utf-8')}```\n")
    return "\n".join(parts)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links between places of the repository into links between pages; a link to code becomes its text."""
    here = page.file.src_uri
    folder = posixpath.dirname(ORIGIN.get(here, f"docs/{here}"))

    def rewritten(found: re.Match[str]) -> str:
        mark, text, path, anchor = found.groups()
        target = page_of(posixpath.normpath(posixpath.join(folder, path)))
        if target is None:
            return text
        return f"{mark}[{text}]({posixpath.relpath(target, posixpath.dirname(here) or '.')}{anchor or ''})"

    return LINK.sub(rewritten, markdown)


def page_of(path: str) -> str | None:
    """The page (or picture) of the site that shows this file of the repository; None where there is none."""
    if path in OUTSIDE:
        return OUTSIDE[path]
    if path == "configs" or (path.startswith("configs/") and path.endswith(".yaml")):
        return "configs.md"
    inside = path.startswith("docs/") and not path.endswith(".py")
    return path.removeprefix("docs/") if inside else None


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Name the language of Chinese pages.  Raises PluginError for a page that would load something foreign."""
    if found := FOREIGN.search(output):
        raise PluginError(f"{page.file.src_uri} loads from elsewhere: {found.group()}")
    return output.replace('<html lang="en"', '<html lang="zh-Hans"', 1) if page.url.startswith("zh/") else output
