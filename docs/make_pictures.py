"""Makes the documents' pictures out of one run of the demo, so that they show what it does today.

uv run python docs/make_pictures.py            writes docs/images/; about three minutes on two cores, needs Chromium
"""

import io
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

IMAGES: Final = Path(__file__).resolve().parent / "images"
COLUMNS: Final = 100
PAGE_WH: Final = (1200, 1460)
"""Of the report's picture, px."""


class NoBars:
    """Takes what the live row would show, and shows nothing: a recording holds the lines that stay."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: 0


def recorded(root: Path) -> tuple[dict[str, Any], str]:
    """Run the demo below `root` as on a terminal; its result, and what stood on the screen as SVG."""
    from rich.console import Console
    from rich.terminal_theme import MONOKAI

    from qwenft.demo.demo import run_demo
    from qwenft.ui import Screen

    class Recorder(Screen):
        def __init__(self) -> None:
            super().__init__()
            self.err = self.out = Console(
                record=True, force_terminal=True, width=COLUMNS, file=io.StringIO(), highlight=False
            )
            self._live = True

        def _below(self) -> Any:
            return NoBars()

    screen = Recorder()
    screen.err.print("$ qwenft demo", style="bold")
    result = run_demo(root=root, emit=lambda event: screen.emit(without(event, str(root))))
    screen.comparison(result["table"])
    svg = screen.err.export_svg(title="qwenft demo", theme=MONOKAI)
    return result, re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)  # fonts of another host


def without(value: Any, root: str) -> Any:
    """The same event with the temporary folder as a home."""
    if isinstance(value, str):
        return value.replace(root, "~")
    if isinstance(value, dict):
        return {key: without(item, root) for key, item in value.items()}
    return [without(item, root) for item in value] if isinstance(value, list | tuple) else value


def photograph(page: Path, to: Path) -> None:
    """The top of a page as a picture."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": PAGE_WH[0], "height": PAGE_WH[1]})
        tab.goto(page.as_uri())
        tab.screenshot(path=str(to))
        browser.close()


def main() -> str | None:
    """Run the demo and write its pictures."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        result, svg = recorded(root)
        run = Path(result["run"])
        (IMAGES / "terminal.svg").write_text(svg, encoding="utf-8")
        shutil.copyfile(result["picture"], IMAGES / "demo.png")
        report = next(run.glob("eval/*/report.html"))
        photograph(report, IMAGES / "report.png")
    return None


if __name__ == "__main__":
    sys.exit(main())
