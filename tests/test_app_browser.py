"""The page in headless Chromium: `pytest -m browser -o addopts=""`; needs what tests/test_report_browser.py says.

Every request is noted, and one that would leave this machine is cut: the page must not need it.
"""

import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from app_page import Scripted, make_run, scripted_page
from evaluations import HOSTILE
from PIL import Image

from qwenft.core.samples import PreparedDataset

pytestmark = pytest.mark.browser


@dataclass
class Tab:
    """One tab, what it said, and what it asked of others."""

    page: Any
    said: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)

    def put(self, path: Path, text: str) -> None:
        """Choose a picture and write a text."""
        self.page.set_input_files("input[type=file]", str(path))
        self.page.get_by_label("What to find").fill(text)
        self.page.get_by_role("button", name="Remove Image").wait_for()

    def ask(self) -> None:
        self.page.get_by_role("button", name="Ask").click()

    def panels(self) -> list[str]:
        """What stands in each panel, once all have answered."""
        self.page.wait_for_function("document.querySelectorAll('.said').length == 2", timeout=20_000)
        return self.page.locator(".said").evaluate_all("all => all.map(one => one.parentElement.innerText)")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, scenes: PreparedDataset) -> Iterator[tuple[str, Scripted]]:
    root = tmp_path_factory.mktemp("app")
    make_run(root)
    (root / "data").mkdir()
    (root / "data" / "scenes").symlink_to(scenes.path)
    with scripted_page(root) as (page, model):
        yield page.address, model


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    found = shutil.which("chromium") or shutil.which("google-chrome")
    assert found, "apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


def open_tab(chromium: Any, address: str, width: int = 1440, scheme: str = "light") -> Tab:
    context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    tab = Tab(context.new_page())

    def route(route: Any) -> None:
        if route.request.url.startswith((address, "data:", "blob:")):
            route.continue_()
        else:
            tab.foreign.append(route.request.url)
            route.abort()

    context.route("**/*", route)
    tab.page.on("console", lambda message: message.type == "error" and tab.said.append(message.text))
    tab.page.on("pageerror", lambda error: tab.said.append(str(error)))
    tab.page.on("dialog", lambda dialog: tab.said.append(dialog.message))
    tab.page.goto(address)
    tab.page.get_by_role("button", name="Ask").wait_for()
    return tab


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.new("RGB", (240, 160), "white").save(path)
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1440])
def test_a_picture_goes_up_and_boxes_appear(
    chromium: Any, served: tuple[str, Scripted], photo: Path, width: int, scheme: str
) -> None:
    tab = open_tab(chromium, served[0], width, scheme)
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
    tab.put(photo, "the dog")
    tab.ask()
    adapter, base = tab.panels()
    assert "2 boxes." in adapter and "0.90" in adapter and "the dog" in adapter
    assert "1 box." in base
    drawn = tab.page.locator("img[src*='photo-adapter']")
    drawn.wait_for()
    assert drawn.evaluate("e => e.decode().then(() => e.naturalWidth)") == 480
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.page.locator(".words .rows").first.evaluate("e => e.scrollWidth <= e.clientWidth")
    dark = tab.page.evaluate("document.body.classList.contains('dark')")
    assert dark == (scheme == "dark")
    assert tab.foreign == [] and tab.said == []


def test_the_threshold_is_moved_by_keys_and_the_files_hold_what_is_seen(
    chromium: Any, served: tuple[str, Scripted], photo: Path
) -> None:
    address, model = served
    tab = open_tab(chromium, address)
    tab.put(photo, "the dog")
    tab.page.get_by_label("What to find").press("Enter")
    tab.panels()
    asked = len(model.asked)
    tab.page.locator("input[type=number]").fill("0.5")
    tab.page.get_by_text("1 box, 1 hidden.").wait_for()
    assert len(model.asked) == asked
    with tab.page.expect_download() as coming:
        tab.page.get_by_role("button", name="Download COCO").first.click()
    assert coming.value.suggested_filename == "photo-adapter.coco.json"
    assert [a["score"] for a in json.loads(coming.value.path().read_text())["annotations"]] == [0.9]
    with tab.page.expect_download() as coming:
        tab.page.get_by_role("button", name="Download picture").first.click()
    assert Image.open(io.BytesIO(coming.value.path().read_bytes())).size == (480, 320)
    assert tab.said == []


def test_an_example_fills_the_fields(chromium: Any, served: tuple[str, Scripted]) -> None:
    address, model = served
    tab = open_tab(chromium, address)
    tab.page.get_by_role("button", name="Thumbnail 2").click()
    tab.page.get_by_role("button", name="Remove Image").wait_for()
    text = tab.page.get_by_label("What to find").input_value()
    tab.ask()
    assert text and all(text in words for words in tab.panels())
    assert model.asked[-1].query == text
    assert tab.foreign == [] and tab.said == []


def test_hostile_texts_do_nothing_and_are_shown(chromium: Any, served: tuple[str, Scripted], photo: Path) -> None:
    tab = open_tab(chromium, served[0])
    tab.page.get_by_role("radio", name="detection").check()
    for text in (*HOSTILE[:4], "${alert(1)}", "{{#each value}}x{{/each}}"):
        label = text.partition(",")[0]
        tab.put(photo, text)
        tab.ask()
        tab.page.locator(".words td", has_text=label).first.wait_for()
        assert label in tab.page.locator(".raw textarea").first.input_value()
        tab.page.get_by_role("button", name="Remove Image").click()
    assert tab.page.locator(".words img, .words script").count() == 0
    assert tab.foreign == [] and tab.said == []


def test_what_is_wrong_with_a_picture_is_said_where_it_was_asked(
    chromium: Any, served: tuple[str, Scripted], tmp_path: Path
) -> None:
    tab = open_tab(chromium, served[0])
    tab.ask()
    tab.page.get_by_role("alert").get_by_text("there is no picture yet").wait_for()
    (tmp_path / "torn.png").write_bytes(b"no picture")
    tab.put(tmp_path / "torn.png", "the dog")
    tab.ask()
    tab.page.get_by_role("alert").get_by_text("torn.png: ").wait_for()
    tab.page.get_by_role("button", name="Remove Image").click()
    (tmp_path / "large.png").write_bytes(b"\0" * (33 * 2**20))
    tab.page.set_input_files("input[type=file]", str(tmp_path / "large.png"))
    tab.page.get_by_text("exceed the maximum allowed size of 32.0 Mb", exact=False).first.wait_for()
    assert tab.page.locator(".said").count() == 0
