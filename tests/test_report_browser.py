"""report.html in headless Chromium: `pytest -m browser -o addopts=""`; results stand in benchmarks/README.md.

It needs Chromium (Debian: `apt-get install chromium`) and playwright's Python client; where one is missing these tests
fail, they are not skipped.  The network is off, and every request that is made is counted.
"""

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from evaluations import HOSTILE, evaluation, metrics_of

from qwenft.evaluate.report import render_report

pytestmark = pytest.mark.browser

NUM_ANSWERS = 5000
OPENS_WITHIN_S = 2.0


@dataclass
class Browser:
    """A browser without network, and what its pages said and asked for."""

    chromium: Any
    said: list[str] = field(default_factory=list)

    def open(self, path: Path, width: int = 1440, scheme: str = "light") -> Any:
        self.said.clear()
        context = self.chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
        page = context.new_page()
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("dialog", lambda dialog: self.said.append(f"dialog {dialog.message}"))
        page.on("request", self._asked)
        page.goto(path.as_uri())
        return page

    def _asked(self, request: Any) -> None:
        if not request.url.startswith(("file:", "data:")):
            self.said.append(request.url)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    found = shutil.which("chromium") or shutil.which("google-chrome")
    assert found, "these tests need Chromium: apt-get install chromium"
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield Browser(chromium)
        chromium.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    path = folder / "report.html"
    path.write_bytes(render_report(evaluation(folder)).encode("utf-8", "replace"))
    return path


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of many answers, on as many pictures as fit its budget."""
    folder = tmp_path_factory.mktemp("large")
    small = evaluation(folder, 200, 40)
    assert small.theirs is not None
    places = [number % 200 for number in range(NUM_ANSWERS)]
    asked = [replace(small.samples[p], id=f"s{n}") for n, p in enumerate(places)]
    ours, theirs = (
        [replace(side[p], question=replace(side[p].question, id=f"s{n}")) for n, p in enumerate(places)]
        for side in (small.ours, small.theirs)
    )
    made = replace(small, metrics=metrics_of(asked, ours, theirs), samples=asked, ours=ours, theirs=theirs)
    path = folder / "report.html"
    path.write_bytes(render_report(made).encode("utf-8", "replace"))
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1440])
def test_it_opens_without_network_errors_or_overflow(browser: Browser, report: Path, width: int, scheme: str) -> None:
    page = browser.open(report, width, scheme)
    assert browser.said == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(251, 250, 248)") == (scheme == "light")
    page.locator(".card").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("(d => d.scrollWidth <= d.clientWidth)(document.querySelector('dialog'))")


def test_hostile_texts_do_nothing_and_are_shown(browser: Browser, report: Path) -> None:
    page = browser.open(report)
    for text in (HOSTILE[0], HOSTILE[1], HOSTILE[3]):
        page.fill("input[name=text]", text)
        assert text in page.locator("#list .asked").all_text_contents()
    assert page.evaluate("document.images.length") == 0  # pictures are drawn inside SVG
    assert page.evaluate("document.title").startswith("first on")
    assert browser.said == []


def test_everything_can_be_done_from_the_keyboard(browser: Browser, report: Path) -> None:
    page = browser.open(report)
    page.keyboard.press("/")
    page.keyboard.type("thing")
    assert page.evaluate("document.activeElement.name") == "text"
    shown = page.locator("#count").text_content()
    assert shown != "60 of 60 answers"
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")  # the first verdict
    narrowed = page.locator("#count").text_content()
    assert int(narrowed.split()[0]) < int(shown.split()[0])
    page.locator("#list .card").first.focus()
    page.keyboard.press("Enter")
    first = page.locator("dialog h3").text_content()
    page.keyboard.press("ArrowRight")
    assert page.locator("dialog h3").text_content() != first
    page.keyboard.press("Escape")
    assert not page.evaluate("document.querySelector('dialog').open")
    page.locator("button[type=reset]").click()
    page.locator("h1").click()
    page.keyboard.press("n")
    assert page.locator("#page").text_content() == "page 2 of 3"
    page.keyboard.press("p")
    assert page.locator("#page").text_content() == "page 1 of 3"


def test_filters_find_what_the_data_holds(browser: Browser, report: Path) -> None:
    page = browser.open(report)
    records = page.evaluate("JSON.parse(document.getElementById('data').textContent).records")
    page.select_option("select[name=status]", "unparsable")
    unread = [r for r in records if r["ours"]["status"] == "unparsable"]
    assert page.locator("#count").text_content() == f"{len(unread)} of {len(records)} answers"
    page.select_option("select[name=status]", "")
    page.select_option("select[name=order]", "worst first")
    worst = min(r["ours"]["value"] for r in records if r["ours"]["value"] is not None)
    assert f"{worst:.2f}" in page.locator("#list .marks").first.text_content().replace("no", "0.00")
    everywhere = [r for r in records for side in ("ours", "base") if r[side]["status"] == "unparsable"]
    assert page.locator("#unread .raw").count() == min(20, len(everywhere))


def test_it_prints_on_white_without_controls(browser: Browser, report: Path) -> None:
    page = browser.open(report, scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("#filters").is_visible()
    assert page.locator("[data-gallery=worst] .card").first.is_visible()
    assert page.pdf()[:5] == b"%PDF-"


def test_five_thousand_answers_open_in_time(browser: Browser, large: Path) -> None:
    browser.open(large).close()  # the first one also starts a process
    began = time.perf_counter()
    page = browser.open(large)
    page.locator("#list .card").nth(23).wait_for()
    opened = time.perf_counter() - began
    assert page.locator("#count").text_content() == "5,000 of 5,000 answers"
    assert opened < OPENS_WITHIN_S
    began = time.perf_counter()
    page.fill("input[name=text]", "left")
    assert page.locator("#count").text_content() != "5,000 of 5,000 answers"
    assert time.perf_counter() - began < 1.0
    assert browser.said == []
