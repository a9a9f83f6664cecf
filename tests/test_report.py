"""report.html without a browser: one file, nothing foreign, texts escaped, every answer in it, within its size.

What only a browser can tell stands in test_report_browser.py.
"""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from evaluations import HOSTILE, evaluation

from qwenft.core.predictions import Prediction
from qwenft.evaluate.charts import Series, histogram, line_chart, strip, thinned, ticks
from qwenft.evaluate.records import answer_records, galleries
from qwenft.evaluate.report import Evaluation, render_report
from qwenft.evaluate.thumbnails import SIDE_PX, thumbnails


class Page(HTMLParser):
    """What a browser would see: elements with their attributes, texts, and what stands in each script."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = self.style = ""
        self._inside = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside == "style":
            self.style += data
        else:
            self.text += data

    @property
    def answers(self) -> dict[str, Any]:
        return json.loads(self.scripts[0])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    return evaluation(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def html(made: Evaluation) -> str:
    return render_report(made)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_the_page_names_no_foreign_address(page: Page) -> None:
    own = page.style + page.scripts[1]  # data and texts may name anything: they are only ever shown
    assert set(re.findall(r"(?:https?:)?//[\w.-]+\.[a-z]+[\w/.]*", own)) == {"http://www.w3.org/2000/svg"}
    for tag, attributes in page.elements:
        for name in ("src", "href", "action", "srcset", "poster", "data"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
    assert "@import" not in page.style
    assert "url(" not in page.style


def test_its_policy_lets_only_its_own_script_run(html: str, page: Page) -> None:
    policy = next(a["content"] or "" for tag, a in page.elements if tag == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe-inline'; script-src 'sha256-" in policy
    assert "script-src 'unsafe" not in policy
    assert len(page.scripts) == html.count("<script") == 2
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)


def test_the_script_sets_texts_only_as_text(page: Page) -> None:
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("):
        assert way not in page.scripts[1]


def test_hostile_texts_stand_in_the_page_as_they_are_and_make_no_element(page: Page, made: Evaluation) -> None:
    records = page.answers["records"]
    assert [record["query"] for record in records[:8]] == [s.query or "" for s in made.samples[:8]]
    assert {tag for tag, _ in page.elements} & {"img", "b-cup", "iframe", "object"} == set()
    assert HOSTILE[1] in page.text  # the data set's name, in the title
    assert "Locate {expression}: <b>" in page.text  # a prompt
    assert "<b>cup</b>" in page.text  # a category


def test_every_answer_of_both_models_stands_in_it_with_its_raw_text(page: Page, made: Evaluation) -> None:
    records = page.answers["records"]
    assert made.theirs is not None
    for side, predictions in (("ours", made.ours), ("base", made.theirs)):
        assert [record[side]["text"] for record in records] == [p.text for p in predictions]
        assert [record[side]["status"] for record in records] == [p.status for p in predictions]
        assert sum(record[side]["status"] == "unparsable" for record in records) > 0


def test_what_was_trained_on_is_flagged(page: Page, made: Evaluation) -> None:
    seen = [record["id"] for record in page.answers["records"] if record["seen"]]
    assert seen == [s.id for s in made.samples if s.picture == made.samples[0].picture]
    assert "were trained on" in page.text


def test_figures_contract_and_command_are_shown(page: Page, made: Evaluation) -> None:
    positives = made.metrics["scores"]["grounding"]["positives"]
    assert f"{positives['Acc@0.5']:.3f}" in page.text
    low, high = (positives["intervals"]["Acc@0.5"][end] for end in ("low", "high"))
    assert f"[{low:.3f}, {high:.3f}]" in page.text
    for words in (
        "What the scores are worth",
        "What is there and what is not",
        "Threshold on the score",
        "the contract’s, chosen on made/train",
        f"{positives['discrimination']:.3f} of what is there found",
        "What is taken for what",
        "1 hashes of training pictures",
        "qwenft eval",
    ):
        assert words in page.text
    titles = [a.get("aria-label") or "" for tag, a in page.elements if tag == "svg" and a.get("class") == "chart"]
    for words in (
        "loss a target token",
        "IoU with the true box",
        "precision over recall",
        "boxes by score",
        "left out: rejected",
    ):
        assert any(words in title for title in titles), words


def test_thumbnails_keep_to_their_size_and_what_is_left_out_is_said(made: Evaluation, tmp_path: Path) -> None:
    import base64
    import io

    from PIL import Image

    paths = [(sample.picture, made.folder / sample.image) for sample in made.samples]
    found = thumbnails(paths)
    assert set(found) == {sample.picture for sample in made.samples}
    for address in found.values():
        picture = Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))
        assert (max(picture.size) <= SIDE_PX, picture.format) == (True, "JPEG")
    budget = sum(map(len, found.values())) // 2
    cut = render_report(made, thumbnail_bytes=budget)
    assert 0 < sum(map(len, Page(cut).answers["thumbnails"].values())) <= budget
    assert "of the others the boxes alone are drawn" in cut
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    assert thumbnails([("a", tmp_path / "broken.jpg"), ("b", tmp_path / "none.jpg")]) == {}


def test_a_report_without_base_run_and_pictures_is_whole(made: Evaluation, tmp_path: Path) -> None:
    alone = evaluation(tmp_path, 12, 2, baseline=False)
    metrics = {**alone.metrics, "run": None, "trained_on": None, "constant_box": None, "adapter": None}
    page = Page(render_report(replace(alone, metrics=metrics, contract=None, events=(), folder=tmp_path / "gone")))
    assert page.answers["thumbnails"] == {}
    assert "no adapter" in page.text
    assert "base model" not in page.text
    assert "Training loss" not in page.text
    assert page.answers["galleries"]["gained"] == []


def test_five_thousand_answers_make_a_file_of_a_few_megabytes(made: Evaluation) -> None:
    assert made.theirs is not None
    places = [number % len(made.samples) for number in range(5000)]
    asked = [replace(made.samples[place], id=f"s{number}") for number, place in enumerate(places)]
    records = answer_records(asked, [made.ours[p] for p in places], [made.theirs[p] for p in places])
    assert len(json.dumps(records)) < 6_000_000


def test_galleries_show_each_picture_once_and_only_what_is_judged(made: Evaluation) -> None:
    records = answer_records(made.samples, made.ours, made.theirs)
    shown = galleries(records)
    for name, chosen in shown.items():
        assert len({records[n]["picture"] for n in chosen}) == len(chosen) <= 12, name
        assert all(records[n]["ours"]["value"] is not None for n in chosen)
    values = [records[n]["ours"]["value"] for n in shown["worst"]]
    assert values == sorted(values)
    assert values[0] == min(r["ours"]["value"] for r in records)
    changes = [records[n]["ours"]["value"] - records[n]["base"]["value"] for n in shown["gained"]]
    assert changes == sorted(changes, reverse=True)
    assert min(changes) > 0


def test_a_sure_mistake_comes_before_an_unsure_one(made: Evaluation) -> None:
    sample = next(s for s in made.samples if s.task == "grounding" and s.objects)
    wrong = next(p for s, p in zip(made.samples, made.ours, strict=True) if s.id == sample.id and p.objects)
    samples = [replace(sample, id=str(n), image=f"images/aa/{n}.jpg") for n in range(2)]
    far = [replace(wrong.objects[0], box_xyxy=(0.0, 0.0, 1.0, 1.0), score=score) for score in (0.3, 0.9)]
    answers: list[Prediction] = [replace(wrong, objects=(box,)) for box in far]
    assert galleries(answer_records(samples, answers, None))["worst"] == [1, 0]


def test_charts_escape_their_words_and_are_empty_where_nothing_was_measured() -> None:
    chart = line_chart([Series("<b>", "ours", [(0, 0.5), (1, 0.7)])], x_name="<x>", y_name="y", dots=True)
    assert "<b>" not in chart
    assert "&lt;x&gt;" in chart
    assert line_chart([Series("a", "ours")], x_name="x", y_name="y") == ""
    assert histogram([Series("a", "ours")], x_name="x", y_name="y") == ""
    assert strip([("ours", None, None)]) == strip([("ours", 1.5, None)]) == ""


@pytest.mark.parametrize("end", [1e-4, 0.3, 1, 7, 999, 12345.6])
def test_ticks_are_few_and_inside(end: float) -> None:
    found = ticks(0, end)
    assert 2 <= len(found) <= 5
    assert 0 <= found[0] < found[-1] <= end * 1.001


def test_a_long_curve_is_thinned_and_keeps_its_end() -> None:
    points = [(float(n), float(n)) for n in range(10_001)]
    short = thinned(points)
    assert len(short) <= 402
    assert (short[0], short[-1]) == (points[0], points[-1])
