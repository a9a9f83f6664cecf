"""docs/metrics.md against what is written: every key of metrics.json is documented, and every documented key occurs."""

import json
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import evaluations
import pytest
from evaluations import answered, samples
from test_score import FakePredictor, House, house, prepared

from qwenft.core.predictions import Prediction, Question
from qwenft.core.runs import Contract, Threshold
from qwenft.evaluate import threshold
from qwenft.evaluate.run import evaluate_data

__all__ = ["house"]  # a fixture

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"
INTERVAL = {"estimate", "low", "high", "pictures"}
NAMED = {
    "scores.detection.categories": "<category>",
    "scores.grounding.by.category": "<group>",
    "scores.grounding.by.size": "<group>",
    "scores.grounding.by.length": "<group>",
    "scores.detection.unknown_labels.labels": "<label>",
    "constant_box.positives": "<figure>",
    "scores.grounding.negatives.kinds": "<kind>",
    "scores.detection.negatives.kinds": "<kind>",
    "scores.statuses": "<status>",
    "scores.grounding.statuses": "<status>",
    "scores.detection.statuses": "<status>",
    "scores.caption.statuses": "<status>",
    "versions": "<package>",
    "asked.prompts": "<task>",
    "difference.grounding": "<figure>",
    "difference.detection": "<figure>",
    "difference.caption": "<figure>",
    "inputs": "<option>",
}
"""Objects whose keys are names of the data's or of figures, and how such a key stands in the page."""


def keys_of(value: Any, path: str = "") -> Iterator[str]:
    """The paths of a JSON document; an interval is one value."""
    if isinstance(value, dict) and set(value) != INTERVAL:
        for key, item in value.items():
            name = NAMED.get(path, key)
            yield from keys_of(item, f"{path}.{name}" if path else name)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        yield from keys_of(value[0], f"{path}[]")
    else:
        yield path


def expanded(key: str) -> Iterator[str]:
    """`a.{b,c}` is `a.b` and `a.c`."""
    before, brace, rest = key.partition("{")
    if not brace:
        yield key
        return
    inside, _, after = rest.partition("}")
    for word in inside.split(","):
        yield from expanded(before + word + after)


def documented() -> set[str]:
    rows = re.findall(r"^\| `([^`]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    found = [key for row in rows for key in expanded(row)]
    assert len(found) == len(set(found)) > 100
    return set(found)


@pytest.fixture
def written(house: House, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """metrics.json of an evaluation with all three tasks, a baseline and a constant box."""
    monkeypatch.setattr(evaluations, "HOSTILE", evaluations.HOSTILE[:6])  # no lone surrogate: a JSON file has none
    monkeypatch.setattr(threshold, "MIN_EACH", 1)
    asked = samples(tmp_path, 40, 6)
    asked += [replace(s, id=f"{s.id}-none", objects=()) for s in asked if s.task == "detection"]
    by_id = {sample.id: sample for sample in asked}
    prepared(house.root / "data" / "all", train=asked[:6], val=asked)
    run = house.add_run("first", asked[0].picture)
    brought = {task: Threshold(0.5, "all", "train", 6) for task in ("grounding", "detection")}
    replace(Contract.read(run.adapter), thresholds=brought).write(run.adapter)
    rng = random.Random(0)

    def answer(self: FakePredictor, questions: list[Question], **_: object) -> Iterator[Prediction]:
        for question in questions:
            said = replace(answered(by_id[question.id], rng, 10), question=question)
            elk = [replace(box, label="elk") for box in said.objects[:1]]
            yield replace(said, objects=(*said.objects, *elk)) if question.task == "detection" else said

    monkeypatch.setattr(FakePredictor, "answer", answer)
    result = evaluate_data(data=["all"], baseline=True, root=house.root)[0]
    return json.loads((result.folder / "metrics.json").read_text(encoding="utf-8"))


def test_the_page_documents_what_is_written_and_nothing_else(written: dict[str, Any]) -> None:
    found = {key for key in keys_of(written) if not key.startswith("baseline.")}
    assert found - documented() == set(), "not documented"
    assert documented() - found == {"baseline"}, "documented, but never written"


def test_the_baseline_has_the_form_of_the_scores(written: dict[str, Any]) -> None:
    scores, baseline = (set(keys_of({"scores": written[name]})) for name in ("scores", "baseline"))
    assert baseline == scores


def test_no_figure_mixes_what_is_there_with_what_is_absent(written: dict[str, Any]) -> None:
    grounding = written["scores"]["grounding"]
    positives, negatives = grounding["positives"]["n"], grounding["negatives"]["n"]
    assert positives + negatives + grounding["not_scored"] == grounding["n"]
    assert min(positives, negatives) > 0
