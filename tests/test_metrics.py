"""Grounding figures, matching and the bootstrap: the strict readings, and what must hold for any input."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenft.core.answer import Status
from qwenft.core.boxes import Box, iou
from qwenft.core.predictions import Detected, Prediction, Question
from qwenft.core.samples import Sample, SceneObject
from qwenft.evaluate.bootstrap import paired_difference, score_interval
from qwenft.evaluate.metrics import (
    constant_box_baseline,
    grounding_figures,
    grounding_outcome,
    grounding_outcomes,
    match_boxes,
)

HERE: Box = (0.0, 0.0, 10.0, 10.0)
THERE: Box = (50.0, 50.0, 60.0, 60.0)
AWAY: Box = (80.0, 0.0, 90.0, 10.0)
NEARLY: Box = (0.0, 0.0, 10.0, 6.0)  # IoU 0.6 with HERE

COORDINATE = st.integers(0, 90)
SIDE = st.integers(2, 40)
BOXES = st.builds(
    lambda x, y, w, h: (float(x), float(y), float(x + w), float(y + h)), COORDINATE, COORDINATE, SIDE, SIDE
)


def sample_of(*true: Box, id: str = "a", crowd: bool = False) -> Sample:
    objects = tuple(SceneObject(box, "dog", crowd) for box in true)
    return Sample(id, "grounding", f"images/aa/{id}.jpg", 100, 100, query="the dog", objects=objects)


def answer_of(sample: Sample, *found: Box, status: Status | None = None) -> Prediction:
    objects = tuple(Detected(box, "dog", None) for box in found)
    return Prediction(Question.of(sample, Path()), status or ("ok" if found else "empty"), objects, "", "")


@pytest.mark.parametrize(
    ("true", "found", "status", "overlap", "hits"),
    [
        pytest.param([HERE], [HERE], "ok", 1.0, (True, True), id="the box"),
        pytest.param([HERE], [NEARLY], "ok", 0.6, (True, False), id="between the two thresholds"),
        pytest.param([HERE], [(0.0, 0.0, 10.0, 5.0)], "ok", 0.5, (True, False), id="exactly one half is a hit"),
        pytest.param([HERE], [AWAY, HERE], "ok", 0.0, (False, False), id="only the first box counts"),
        pytest.param([HERE], [HERE, AWAY], "ok", 1.0, (True, True), id="a second box does not cost accuracy"),
        pytest.param([HERE], [], "empty", 0.0, (False, False), id="wrongly rejected"),
        pytest.param(
            [HERE], [HERE], "unparsable", 0.0, (False, False), id="boxes of an unreadable answer do not count"
        ),
        pytest.param([HERE], [HERE], "salvaged", 1.0, (True, True), id="a repaired answer counts"),
        pytest.param([HERE], [(9.0, 9.0, 1.0, 1.0)], "ok", 0.0, (False, False), id="a reversed box"),
        pytest.param([HERE, THERE], [HERE], "ok", 0.5, (False, False), id="one of two is not right"),
        pytest.param([HERE, THERE], [THERE, HERE], "ok", 1.0, (True, True), id="both of two in any order"),
        pytest.param([HERE, THERE], [HERE, THERE, AWAY], "ok", 2 / 3, (False, False), id="one too many is not right"),
        pytest.param([HERE, THERE], [THERE, NEARLY], "ok", 0.8, (True, False), id="both of two, one of them roughly"),
    ],
)
def test_an_answer_is_read_strictly(
    true: list[Box], found: list[Box], status: Status, overlap: float, hits: tuple[bool, bool]
) -> None:
    sample = sample_of(*true)
    outcome = grounding_outcome(sample, answer_of(sample, *found, status=status))
    assert outcome is not None
    assert outcome.iou == pytest.approx(overlap)
    assert (outcome.hit_50, outcome.hit_75) == hits


@pytest.mark.parametrize(
    ("found", "status", "rejection", "alarm"),
    [
        pytest.param([], "empty", 1.0, 0.0, id="rejected"),
        pytest.param([HERE], "ok", 0.0, 1.0, id="false alarm"),
        pytest.param([], "unparsable", 0.0, 0.0, id="unreadable is neither"),
        pytest.param([], "ok", 0.0, 0.0, id="no box but not said to be none is neither"),
        pytest.param([HERE], "empty", 0.0, 1.0, id="a box beside a `none` is a false alarm"),
    ],
)
def test_absent_things_have_figures_of_their_own(
    found: list[Box], status: Status, rejection: float, alarm: float
) -> None:
    negative, positive = sample_of(), sample_of(HERE, id="b")
    pairs = [(negative, answer_of(negative, *found, status=status)), (positive, answer_of(positive, HERE))]
    figures = grounding_figures(grounding_outcomes(pairs))
    rates = {"n": 1, "rejection_rate": rejection, "false_alarm_rate": alarm}
    assert figures["negatives"].items() >= rates.items()
    assert figures["negatives"]["kinds"]["source"].items() >= rates.items()
    assert figures["positives"]["Acc@0.5"] == figures["positives"]["precision@0.5"] == 1.0


def test_what_cannot_be_measured_is_none() -> None:
    figures = grounding_figures([])
    assert figures["positives"]["Acc@0.5"] is None
    assert figures["positives"]["F1@0.5"] is None
    assert figures["positives"]["discrimination"] is figures["positives"]["count_accuracy"] is None
    negatives = figures["negatives"]
    assert (negatives["n"], negatives["rejection_rate"], negatives["false_alarm_rate"]) == (0, None, None)


def test_every_box_counts_for_precision_even_where_accuracy_takes_the_first() -> None:
    sample = sample_of(HERE)
    figures = grounding_figures(grounding_outcomes([(sample, answer_of(sample, HERE, HERE, AWAY))]))["positives"]
    assert (figures["Acc@0.5"], figures["precision@0.5"], figures["recall@0.5"]) == (1.0, pytest.approx(1 / 3), 1.0)


def test_a_crowd_alone_is_neither_there_nor_absent() -> None:
    sample = sample_of(HERE, crowd=True)
    assert grounding_outcome(sample, answer_of(sample)) is None


@given(st.lists(st.lists(BOXES, max_size=3, unique=True), min_size=1, max_size=6))
def test_the_truth_itself_scores_one(truths: list[list[Box]]) -> None:
    samples = [sample_of(*true, id=str(number)) for number, true in enumerate(truths)]
    pairs = [(sample, answer_of(sample, *(item.bbox for item in sample.objects))) for sample in samples]
    figures = grounding_figures(grounding_outcomes(pairs))
    scores = [*figures["positives"].items(), *figures["negatives"].items()]
    wanted = {"Acc@0.5", "Acc@0.75", "mean_iou", "precision@0.5", "recall@0.5", "F1@0.5", "rejection_rate"}
    assert {round(value, 9) for name, value in scores if name in wanted and value is not None} == {1.0}
    assert figures["negatives"]["false_alarm_rate"] in (0.0, None)


@given(BOXES, BOXES, st.floats(0.0, 1.0))
def test_a_smaller_overlap_never_raises_a_score(true: Box, found: Box, part: float) -> None:
    sample = sample_of(true)
    x1, y1, x2, y2 = found
    worse = (x1, y1, x1 + part * (x2 - x1), y2)
    better, lower = sorted((found, worse), key=lambda box: -iou(box, true))
    one, other = (grounding_figures(grounding_outcomes([(sample, answer_of(sample, b))])) for b in (better, lower))
    for name in ("Acc@0.5", "Acc@0.75", "mean_iou", "F1@0.5"):
        assert one["positives"][name] >= other["positives"][name]


@given(st.lists(BOXES, max_size=6), st.lists(BOXES, max_size=6), st.floats(0.0, 1.0))
def test_matching_is_one_to_one_and_over_the_threshold(found: list[Box], true: list[Box], threshold: float) -> None:
    pairs = match_boxes(found, true, threshold)
    assert len({pair[0] for pair in pairs}) == len({pair[1] for pair in pairs}) == len(pairs)
    assert all(iou(found[i], true[j]) == value >= threshold and value > 0 for i, j, value in pairs)


def test_the_constant_box_is_the_mean_of_the_corners_in_shares_of_the_sides() -> None:
    train = [sample_of((0.0, 0.0, 50.0, 50.0)), sample_of((50.0, 50.0, 100.0, 100.0)), sample_of()]
    held_out = [replace(sample_of((50.0, 25.0, 150.0, 75.0)), width=200), sample_of(AWAY, id="b"), sample_of(id="c")]
    found = constant_box_baseline(train, held_out)
    assert found is not None
    assert found["box_norm"] == [0.25, 0.25, 0.75, 0.75]
    assert (found["positives"]["n"], found["positives"]["Acc@0.5"]) == (2, 0.5)
    assert constant_box_baseline([sample_of()], held_out) is None


VALUES = st.lists(st.tuples(st.integers(0, 8), st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=40)


@settings(deadline=None)  # the first call imports numpy
@given(VALUES)
def test_an_interval_holds_its_estimate_and_the_difference_turns_round_with_its_sides(
    rows: list[tuple[int, float, float]],
) -> None:
    pictures = [str(number) for number, _, _ in rows]
    ours, theirs = [mine for _, mine, _ in rows], [other for _, _, other in rows]
    for found in (
        score_interval(pictures, ours, resamples=50),
        paired_difference(pictures, ours, theirs, resamples=50),
    ):
        assert found.estimate is not None
        if found.num_pictures < 2:
            assert found.low is found.high is None
        else:
            assert found.low is not None
            assert found.high is not None
            assert found.low <= found.estimate <= found.high
    one, other = (paired_difference(pictures, *pair, resamples=50) for pair in ((ours, theirs), (theirs, ours)))
    if one.low is not None and other.high is not None:
        assert one.low == pytest.approx(-other.high)


@settings(deadline=None)
@given(VALUES.filter(lambda rows: len({row[0] for row in rows}) > 1))
def test_equal_predictors_differ_by_exactly_nothing(rows: list[tuple[int, float, float]]) -> None:
    pictures, values = [str(row[0]) for row in rows], [row[1] for row in rows]
    weights = [row[2] + 0.5 for row in rows]
    for found in (
        paired_difference(pictures, values, values, resamples=50),
        paired_difference(pictures, values, values, our_weights=weights, their_weights=weights, resamples=50),
    ):
        assert (found.estimate, found.low, found.high) == (0.0, 0.0, 0.0)


def test_samples_of_one_picture_are_drawn_together() -> None:
    """Ten answers about each picture that all fail or all hit tell as much as one: the interval stays as wide."""
    hits = [float(number % 2) for number in range(20)]
    apart = score_interval([str(n) for n in range(20)], hits)
    together = score_interval([str(n) for n in range(20) for _ in range(10)], [hit for hit in hits for _ in range(10)])
    assert (together.low, together.high) == pytest.approx((apart.low, apart.high))
    as_if_apart = score_interval([str(n) for n in range(200)], [hit for hit in hits for _ in range(10)])
    assert together.high - together.low > 2 * (as_if_apart.high - as_if_apart.low)  # type: ignore[operator]


def test_the_interval_is_as_wide_as_theory_says() -> None:
    random.seed(1)
    hits = [float(random.random() < 0.7) for _ in range(2000)]
    found = score_interval([str(n) for n in range(2000)], hits)
    assert found.estimate is not None
    half = 1.96 * (found.estimate * (1 - found.estimate) / 2000) ** 0.5
    assert (found.low, found.high) == pytest.approx((found.estimate - half, found.estimate + half), abs=0.003)


def test_a_perfect_rate_of_few_pictures_is_not_called_certain() -> None:
    found = score_interval(["a", "b", "c", "d", "e"], [1.0] * 5)
    assert (found.low, found.high) == (pytest.approx(0.4782, abs=1e-4), 1.0)  # Clopper-Pearson for 5 of 5
    none = score_interval(["a", "b", "c", "d", "e"], [0.0] * 5)
    assert (none.low, none.high) == (0.0, pytest.approx(1 - 0.4782, abs=1e-4))


def test_nothing_to_measure_has_no_interval() -> None:
    assert score_interval([], []).to_json() == {"estimate": None, "low": None, "high": None, "pictures": 0}
    assert paired_difference([], [], []).estimate is None
    with pytest.raises(ValueError, match="lengths differ"):
        score_interval(["a"], [])


def test_the_interval_is_the_same_each_time_and_moves_with_the_seed() -> None:
    pictures, values = [str(n % 30) for n in range(60)], [float(n % 7) for n in range(60)]
    first = score_interval(pictures, values)
    assert score_interval(pictures, values) == first
    assert score_interval(pictures, values, seed=1) != first


def test_an_interval_holds_its_estimate_even_where_no_draw_comes_near_it() -> None:
    for seed in range(5):
        found = score_interval(["a", "b", "c", "d"], [0.0, 0.0, 0.0, 0.9], resamples=1, seed=seed)
        assert found.low is not None
        assert found.high is not None
        assert found.low <= 0.225 <= found.high
