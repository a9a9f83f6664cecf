"""The documents' pictures: shown somewhere, and free of anything that a browser would fetch."""

import re
from pathlib import Path
from xml.etree.ElementTree import Element

import pytest
from defusedxml.ElementTree import parse

ROOT = Path(__file__).parents[1]
IMAGES = sorted((ROOT / "docs" / "images").iterdir())
DRAWINGS = [path for path in IMAGES if path.suffix == ".svg"]


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_every_picture_is_shown_in_a_document(path: Path) -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    assert [page.name for page in pages if f"images/{path.name})" in page.read_text(encoding="utf-8")]


def texts_of(element: Element) -> list[str]:
    return [part for item in element.iter() for part in (item.text or "", *item.attrib.values())]


@pytest.mark.parametrize("path", DRAWINGS, ids=lambda path: path.name)
def test_a_drawing_asks_no_other_host_and_names_no_folder_of_a_machine(path: Path) -> None:
    texts = texts_of(parse(path).getroot())
    assert len(texts) > 100
    fetched = re.compile(r"@font-face|@import|https?://|url\((?!#)|/tmp/")
    assert [text for text in texts if fetched.search(text.replace("http://www.w3.org", ""))] == []
