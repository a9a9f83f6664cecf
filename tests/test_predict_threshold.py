"""The threshold on the score: from a run's contract or that of exported weights, or as typed; left out and said."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prepare_inputs import picture

from qwenft.core.errors import UsageError
from qwenft.core.events import Event
from qwenft.core.predictions import Detected, Prediction, Question
from qwenft.core.runs import Contract, Run, Threshold
from qwenft.predict.find import find

SURE, UNSURE = (Detected((float(n), 5.0, 40.0, 40.0), "dog", score) for n, score in ((1, 0.9), (2, 0.3)))
TRAINED = Contract(
    "tiny", "c", "w", 3136, 12544, tasks=("grounding",), thresholds={"grounding": Threshold(0.65, "dogs", "val", 90)}
)


class TwoBoxes:
    """Stands in for a predictor: a sure box and an unsure one, for `cat` the unsure one alone."""

    def answer(self, questions: Sequence[Question], **_: Any) -> Iterator[Prediction]:
        for question in questions:
            found = (UNSURE,) if question.query == "cat" else (SURE, UNSURE)
            yield Prediction(question, "ok", found, "[…]", "Locate it", model="tiny")


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[list[Prediction], str]]:
    """`find` for a dog and a cat with a run whose contract has a threshold; returns what was said too."""
    monkeypatch.setattr("qwenft.predict.find._Work._load", lambda _: TwoBoxes())  # no torch
    (tmp_path / "a.png").write_bytes(picture(1))
    run = Run(tmp_path / "runs" / "first")
    TRAINED.write(run.adapter)
    run.append_event({"event": "finished"})
    TRAINED.write(tmp_path / "exported")

    def asked(**options: Any) -> tuple[list[Prediction], str]:
        said: list[Event] = []
        lines = [json.dumps({"image": str(tmp_path / "a.png"), "query": query}) for query in ("dog", "cat")]
        options = {"run": "first"} | options
        found = find(["-"], lines=lines, gpus="cpu", root=tmp_path, emit=said.append, **options)
        return found, "\n".join(str(event.get("text")) for event in said)

    return asked


def test_boxes_under_the_contracts_threshold_are_left_out_and_that_is_said(ask: Any) -> None:
    (dog, cat), said = ask()
    assert (dog.status, dog.objects, dog.how) == ("ok", (SURE,), "1 box under the threshold 0.65 left out")
    assert (cat.status, cat.objects, cat.text) == ("empty", (), "[…]")
    assert "under a score of 0.65 are left out, chosen on dogs/val: --threshold 0 leaves none out" in said
    assert dog.to_json()["threshold"] == 0.65


@pytest.mark.parametrize(
    ("threshold", "kept"),
    [
        pytest.param(0.0, [2, 1], id="none"),
        pytest.param(0.2, [2, 1], id="lower"),
        pytest.param(0.3, [2, 1], id="as sure as the threshold is sure enough"),
        pytest.param(0.95, [0, 0], id="higher"),
    ],
)
def test_what_is_typed_goes_before_the_contract(ask: Any, threshold: float, kept: list[int]) -> None:
    found, said = ask(threshold=threshold)
    assert [len(answer.objects) for answer in found] == kept
    assert "dogs/val" not in said
    assert [Prediction.from_json(answer.to_json()).to_json() for answer in found] == [a.to_json() for a in found]


def test_exported_weights_bring_their_threshold_and_another_base_none(ask: Any, tmp_path: Path) -> None:
    exported, _ = ask(run=None, model=str(tmp_path / "exported"))
    assert [len(answer.objects) for answer in exported] == [1, 0]
    base, _ = ask(run=None, model="tiny")
    assert [len(answer.objects) for answer in base] == [2, 1]


def test_a_threshold_on_token_probabilities_does_not_judge_other_scores(
    ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "qwenft.predict.verify.rescored",
        lambda _, answers: (replace(a, score_by="yes-no", objects=(replace(SURE, score=0.1),)) for a in answers),
    )
    found, said = ask(score="yes-no")
    assert [len(answer.objects) for answer in found] == [1, 1]
    assert "does not apply to --score yes-no" in said
    assert [len(answer.objects) for answer in ask(score="yes-no", threshold=0.2)[0]] == [0, 0]


def test_a_threshold_is_a_score(ask: Any) -> None:
    with pytest.raises(UsageError, match=r"in \[0, 1\], not 62"):
        ask(threshold=62)


def test_nothing_is_counted_before_the_model_is_there(
    ask: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[str] = []
    monkeypatch.setattr("qwenft.predict.find._Work._load", lambda _: seen.append("loaded") or TwoBoxes())
    find([tmp_path / "a.png"], "dog", model="tiny", root=tmp_path, emit=lambda event: seen.append(event["event"]))
    assert seen.index("loaded") < seen.index("progress")


def test_a_contract_with_thresholds_is_read_back_and_an_older_one_has_none(tmp_path: Path) -> None:
    TRAINED.write(tmp_path)
    assert Contract.read(tmp_path) == TRAINED
    value = json.loads((tmp_path / "contract.json").read_text(encoding="utf-8"))
    del value["thresholds"]
    (tmp_path / "contract.json").write_text(json.dumps(value), encoding="utf-8")
    assert Contract.read(tmp_path).thresholds == {}


@given(st.lists(st.floats(0, 1), max_size=4), st.floats(0, 1), st.floats(0, 1))
def test_leaving_out_twice_is_leaving_out_once_at_the_higher_threshold(
    scores: list[float], one: float, other: float
) -> None:
    boxes = tuple(replace(SURE, score=score) for score in scores)
    answer = Prediction(Question(Path("a.png"), "grounding", "dog"), "ok" if boxes else "empty", boxes, "", "")
    twice, once = answer.above(one).above(other), answer.above(max(one, other))
    assert (twice.objects, twice.status) == (once.objects, once.status)
