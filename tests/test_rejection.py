"""What is absent and what is there: rejection beside discrimination, several boxes, and a threshold between the two."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_score import BOX, ELSEWHERE, FakePredictor, House, detection, grounding, house, prepared, says

from qwenft.core.boxes import Box
from qwenft.core.predictions import Detected, Prediction, Question
from qwenft.core.runs import Contract, Threshold
from qwenft.core.samples import Sample
from qwenft.evaluate.compare import compare_predictions
from qwenft.evaluate.detection import JudgedBox
from qwenft.evaluate.score import score_predictions
from qwenft.evaluate.table import score_rows
from qwenft.evaluate.threshold import MIN_EACH, Scored, best_threshold, threshold_figures

__all__ = ["house"]  # a fixture
AWAY: Box = (0.0, 70.0, 20.0, 90.0)


def absent(id: str, kind: str | None) -> Sample:
    return replace(grounding(id), negative=kind)


ASKED = [
    *(grounding(f"there{n}", BOX) for n in range(6)),
    *(absent(f"source{n}", None) for n in range(2)),
    *(absent(f"category{n}", "absent_category") for n in range(4)),
    *(absent(f"size{n}", "wrong_size") for n in range(2)),
]


def rates(scores: dict[str, Any]) -> tuple[float, float, float]:
    negatives = scores["negatives"]
    return negatives["rejection_rate"], negatives["false_alarm_rate"], scores["positives"]["discrimination"]


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        pytest.param([BOX], (0.0, 1.0, 1.0), id="one that always answers finds all and rejects nothing"),
        pytest.param([], (1.0, 0.0, 0.0), id="one that never answers rejects all and finds nothing"),
        pytest.param([ELSEWHERE], (0.0, 1.0, 0.0), id="a box that meets nothing does neither"),
        pytest.param([ELSEWHERE, BOX], (0.0, 1.0, 1.0), id="what the second box meets is found"),
    ],
)
def test_rejection_means_nothing_without_discrimination(boxes: list[Box], expected: tuple[float, float, float]) -> None:
    scores = score_predictions(ASKED, [says(sample, *boxes) for sample in ASKED])["grounding"]
    assert rates(scores) == expected
    low, high = (scores["positives"]["intervals"]["discrimination"][end] for end in ("low", "high"))
    assert 0 <= low <= expected[2] <= high <= 1
    assert low < high, "six pictures are not certain"


def test_each_kind_of_negative_has_figures_of_its_own() -> None:
    answers = [says(s, *([BOX] if s.id.startswith(("there", "size")) else [])) for s in ASKED]
    answers[6] = says(ASKED[6], status="unparsable")
    negatives = score_predictions(ASKED, answers)["grounding"]["negatives"]
    kinds = {kind: (f["n"], f["rejection_rate"], f["false_alarm_rate"]) for kind, f in negatives["kinds"].items()}
    assert kinds == {"absent_category": (4, 1.0, 0.0), "source": (2, 0.5, 0.0), "wrong_size": (2, 0.0, 1.0)}
    assert negatives["rejection_rate"] == 5 / 8
    assert negatives["kinds"]["wrong_size"]["intervals"]["false_alarm_rate"]["low"] < 1.0


def test_detection_has_the_same_figures() -> None:
    asked = [detection("d1"), detection("d2"), replace(detection("none"), objects=(), negative="absent_category")]
    answers = [says(asked[0], BOX), says(asked[1]), says(asked[2], BOX)]
    scores = score_predictions(asked, answers)["detection"]
    assert (scores["discrimination"], scores["negatives"]["rejection_rate"]) == (0.5, 0.0)
    assert scores["negatives"]["kinds"]["absent_category"]["false_alarm_rate"] == 1.0
    better = [says(asked[0], BOX), says(asked[1], BOX), says(asked[2])]
    difference = compare_predictions(asked, better, answers)["detection"]
    changes = [difference[name]["estimate"] for name in ("rejection_rate", "false_alarm_rate", "discrimination")]
    assert changes == [1.0, -1.0, 0.5]


def test_the_table_shows_both_or_neither() -> None:
    for asked, count in ((ASKED, 2), (ASKED[:6], 0)):
        scores = score_predictions(asked, [says(sample, BOX) for sample in asked])
        rows = [row[0] for row in score_rows({"scores": scores})[1]]
        assert sum(row in ("grounding rejection rate", "grounding discrimination") for row in rows) == count
        assert ("grounding rejection rate: wrong size" in rows) == bool(count)


def test_a_difference_is_given_for_each_kind() -> None:
    ours, theirs = ([says(s, *([] if s.negative == kind else [BOX])) for s in ASKED] for kind in ("wrong_size", "-"))
    difference = compare_predictions(ASKED, ours, theirs)["grounding"]
    assert difference["rejection_rate: wrong_size"]["estimate"] == 1.0
    assert difference["rejection_rate: absent_category"]["estimate"] == difference["discrimination"]["estimate"] == 0.0


def test_several_boxes_have_precision_recall_f1_and_a_count() -> None:
    asked = [grounding("two", BOX, ELSEWHERE), grounding("both", BOX, ELSEWHERE), grounding("one", BOX)]
    answers = [says(asked[0], BOX), says(asked[1], AWAY, BOX), says(asked[2], BOX)]
    scores = score_predictions(asked, answers)["grounding"]
    several = scores["several"]
    assert [several[f"{name}_of_several"] for name in ("precision@0.5", "recall@0.5", "F1@0.5")] == [2 / 3, 0.5, 4 / 7]
    assert several["count_accuracy_of_several"] == 0.5
    assert scores["positives"]["count_accuracy"] == pytest.approx(2 / 3)
    assert several["intervals"]["F1@0.5_of_several"]["estimate"] == pytest.approx(4 / 7)
    assert several["T-acc"] == 1.0


def an_independent_script(lines: list[dict[str, Any]], answers: list[dict[str, Any]]) -> dict[str, Any]:
    """The same figures from the files alone, written another way: sums over a plain loop, no function of qwenft."""

    def overlap(a: list[float], b: list[float]) -> float:
        w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        shared = max(w, 0) * max(h, 0)
        return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)

    sums: dict[str, list[float]] = {}
    for line, answer in zip(lines, answers, strict=True):
        true, found = [o["bbox"] for o in line["objects"]], [o["bbox"] for o in answer["objects"]]
        if not true:
            for name in ("all", line.get("negative", "source")):
                sums.setdefault(name, []).append(answer["status"] == "empty")
            continue
        pairs, hits = [(overlap(f, t), i, j) for i, f in enumerate(found) for j, t in enumerate(true)], 0
        while pairs and max(pairs)[0] >= 0.5:
            _, i, j = max(pairs)
            pairs, hits = [p for p in pairs if p[1] != i and p[2] != j], hits + 1
        sums.setdefault("found", []).append(hits > 0)
        if len(true) > 1:
            sums.setdefault("count", []).append(len(found) == len(true))
            for name, value in (("hits", hits), ("boxes", len(found)), ("true", len(true))):
                sums.setdefault(name, []).append(value)
    return {name: sum(values) for name, values in sums.items()} | {f"n {k}": len(v) for k, v in sums.items()}


@settings(max_examples=20)
@given(st.randoms(use_true_random=False))
def test_figures_equal_those_of_an_independent_script(rng: Any) -> None:
    places: list[Box] = [BOX, (12.0, 8.0, 60.0, 58.0), ELSEWHERE, AWAY, (20.0, 20.0, 70.0, 70.0)]
    asked = [grounding(f"s{n}", *rng.sample(places, rng.randint(1, 3))) for n in range(12)] + ASKED[6:]
    answers = [says(sample, *rng.sample(places, rng.choice((0, 1, 1, 2, 3)))) for sample in asked]
    lines = [json.loads(json.dumps(each.to_json())) for each in (*asked, *answers)]
    theirs = an_independent_script(lines[: len(asked)], lines[len(asked) :])
    ours = score_predictions(asked, answers)["grounding"]
    kinds = {kind: round(f["rejection_rate"] * f["n"]) for kind, f in ours["negatives"]["kinds"].items()}
    assert kinds == {kind: theirs[kind] for kind in kinds}
    assert ours["negatives"]["rejection_rate"] == theirs["all"] / theirs["n all"]
    assert ours["positives"]["discrimination"] == pytest.approx(theirs["found"] / theirs["n found"])
    several = ours["several"]
    if several["n"]["several"]:
        f1 = 2 * theirs["hits"] / (theirs["boxes"] + theirs["true"])
        assert several["F1@0.5_of_several"] == pytest.approx(f1)
        assert several["count_accuracy_of_several"] == pytest.approx(theirs["count"] / theirs["n count"])


# The threshold

ANSWERS = st.lists(
    st.builds(
        lambda number, absent, boxes: Scored(
            f"p{number}", "source" if absent else "", absent, not boxes, 0 if absent else 2,
            tuple(JudgedBox(0, score, hit and not absent) for score, hit in boxes[:2]),
        ),
        st.integers(0, 5), st.booleans(), st.lists(st.tuples(st.sampled_from([0.1, 0.3, 0.5, 0.9]), st.booleans())),
    ),
    min_size=1, max_size=12,
)  # fmt: skip


@given(ANSWERS, st.floats(0, 1))
def test_no_threshold_has_a_larger_f1_than_the_one_chosen(answers: list[Scored], other: float) -> None:
    def f1(threshold: float) -> float:
        kept = [box for answer in answers for box in answer.kept(threshold)]
        return 2 * sum(box.hit for box in kept) / max(len(kept) + sum(a.num_true for a in answers), 1)

    answers = answers * MIN_EACH
    chosen = best_threshold(answers)
    if chosen is None:
        assert not (any(a.num_true for a in answers) and any(a.absent for a in answers))
        return
    assert f1(chosen) >= f1(other)
    assert f1(0.0) < f1(chosen) or chosen == 0.0, "the lowest of equal ones"


@given(ANSWERS)
def test_a_higher_threshold_never_rejects_less_and_never_finds_more(answers: list[Scored]) -> None:
    steps = [[answer.verdict(threshold) for answer in answers] for threshold in (0.0, 0.2, 0.4, 0.6, 1.0)]
    for name, sign in (("rejected", 1), ("alarmed", -1), ("found", -1)):
        counts = [sign * sum(bool(getattr(verdict, name)) for verdict in verdicts) for verdicts in steps]
        assert counts == sorted(counts), name


def scored(sample: Sample, score: float) -> Prediction:
    """Sure where it is there, less sure where it is not."""
    return Prediction(Question.of(sample, Path()), "ok", (Detected(BOX, "the dog", score),), "[…]", "")


MIXED = [grounding(f"p{n}", BOX) for n in range(MIN_EACH)] + [grounding(f"n{n}") for n in range(MIN_EACH)]


def test_boxes_without_scores_and_too_few_questions_choose_nothing() -> None:
    answers = [scored(sample, 0.9 if sample.objects else 0.4) for sample in MIXED]
    assert threshold_figures(MIXED, answers, {})["grounding"]["chosen"]["threshold"] == pytest.approx(0.65)
    few = threshold_figures(MIXED[1:], answers[1:], {"grounding": Threshold(0.5, "dogs", "val", 40)})["grounding"]
    assert few["chosen"] is None
    assert (few["contract"]["chosen_on"], few["contract"]["rejection_rate"]["estimate"]) == ("dogs/val", 1.0)
    unknown = [replace(a, objects=(replace(a.objects[0], score=None),)) for a in answers]
    assert threshold_figures(MIXED, unknown, {}) == {}


@pytest.fixture
def unsure(house: House, monkeypatch: pytest.MonkeyPatch) -> House:
    """A run whose adapter answers a box always, sure where it is right."""
    prepared(house.root / "data" / "dogs", train=[grounding("t", BOX)], val=MIXED, test=MIXED)

    def answer(self: FakePredictor, questions: list[Question], **_: object) -> Iterator[Prediction]:
        for question in questions:
            box = Detected(BOX, "the dog", 0.9 if question.id.startswith("p") else 0.4)
            yield Prediction(question, "ok", (box,), "[…]", "", model="tiny", adapter=str(self.adapter))

    monkeypatch.setattr(FakePredictor, "answer", answer)
    return house


def test_an_evaluation_writes_the_threshold_that_it_chose_into_the_contract(unsure: House) -> None:
    run = unsure.add_run("first", "another picture")
    written = json.loads((unsure.evaluate().folder / "metrics.json").read_text(encoding="utf-8"))
    assert written["threshold"]["grounding"]["contract"] is None
    assert written["scores"]["grounding"]["negatives"]["rejection_rate"] == 0.0, "the figures themselves use none"
    kept = Contract.read(run.adapter).thresholds["grounding"]
    assert (kept.score, kept.chosen_on, kept.samples) == (pytest.approx(0.65), "dogs/val", len(MIXED))
    assert "rejection rate 0.000 to 1.000, discrimination 1.000 to 1.000" in unsure.texts()
    page = unsure.evaluate(split="test")
    assert page.metrics["threshold"]["grounding"]["contract"]["rejection_rate"]["estimate"] == 1.0
    assert "the contract’s, chosen on dogs/val" in page.report.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "pictures"),
    [
        pytest.param({"split": "test"}, ["x"], id="a test split"),
        pytest.param({"limit": 39}, ["x"], id="a part"),
        pytest.param({}, ["p0"], id="trained on"),
        pytest.param({"data": "cats"}, ["x"], id="other data"),
    ],
)
def test_other_questions_choose_no_threshold_for_the_contract(
    options: dict[str, Any], pictures: list[str], unsure: House
) -> None:
    prepared(unsure.root / "data" / "cats", train=[grounding("t", BOX)], val=MIXED)
    run = unsure.add_run("first", *pictures)
    unsure.evaluate(**options)
    assert Contract.read(run.adapter).thresholds == {}
