"""Average precision of our own against COCOeval's, its intervals, breakdowns, gRefCOCO's figures and confusion."""

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_metrics_reference import DATA, made_up_coco, written

from qwenft.core.boxes import Box
from qwenft.core.files import read_json
from qwenft.core.predictions import Detected, Prediction, Question
from qwenft.core.samples import Sample, SceneObject
from qwenft.evaluate.breakdown import BREAKDOWNS, grounding_breakdown
from qwenft.evaluate.coco_files import score_coco_files
from qwenft.evaluate.compare import compare_predictions
from qwenft.evaluate.detection import OTHER_LABEL
from qwenft.evaluate.metrics import grounding_outcomes, match_best_first, several_figures
from qwenft.evaluate.ranking import rank_scenes
from qwenft.evaluate.scene import FoundBox, Scene, TrueBox
from qwenft.evaluate.score import score_predictions

BOX: Box = (10.0, 10.0, 60.0, 60.0)
OTHER: Box = (100.0, 100.0, 190.0, 190.0)
FAR: Box = (250.0, 250.0, 260.0, 260.0)


def sample(id: str, *true: Box, query: str = "the dog", label: str = "dog", picture: str = "") -> Sample:
    objects = tuple(SceneObject(box, label) for box in true)
    return Sample(id, "grounding", f"images/aa/{picture or id}.jpg", 300, 300, query, objects)


def says(asked: Sample, *boxes: Box, score: float | None = 0.5, label: str = "dog", status: str = "") -> Prediction:
    found = tuple(Detected(box, label, score) for box in boxes)
    return Prediction(Question.of(asked, Path()), status or ("ok" if found else "empty"), found, "", "")  # type: ignore[arg-type]


# Equal to outside judges


def test_average_precision_equals_cocoeval_on_the_reference_set(tmp_path: Path) -> None:
    if DATA.is_dir():
        results = DATA / "det_reference" / "cocoapi_results.json"
        references = DATA / "det_reference" / "gts" / "sampled_gts_bbox_area.json"
    else:
        results, references = written(tmp_path, *made_up_coco(3, 60))
    scores = score_coco_files(results, references)
    for name in ("AP", "AP50"):
        assert scores["ranking"][name]["by_score"] == pytest.approx(scores[name], abs=1e-9)
        interval = scores["intervals"][name]
        assert interval["low"] <= interval["estimate"] <= interval["high"]
        assert interval["estimate"] == pytest.approx(scores[name], abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_equals_cocoeval_with_crowds_twins_and_ties(seed: int, tmp_path: Path) -> None:
    scores = score_coco_files(*written(tmp_path, *made_up_coco(seed)))
    assert scores["ranking"]["AP"]["by_score"] == pytest.approx(scores["AP"], abs=1e-9)
    flat = [{**result, "score": 1.0} for result in read_json(tmp_path / "results.json")]
    again = score_coco_files(*written(tmp_path, flat, read_json(tmp_path / "instances.json")))
    assert scores["ranking"]["AP"]["all_scores_one"] == pytest.approx(again["AP"], abs=1e-9)


def by_hand(samples: list[Sample], predictions: list[Prediction]) -> tuple[float, float]:
    """Acc@0.5 and mean IoU of single true boxes, without anything of the package: areas counted from corners."""
    overlaps = []
    for asked, said in zip(samples, predictions, strict=True):
        value = 0.0
        if said.objects:
            a, b = asked.objects[0].bbox, said.objects[0].box_xyxy
            across = min(a[2], b[2]) - max(a[0], b[0])
            down = min(a[3], b[3]) - max(a[1], b[1])
            if across > 0 and down > 0:
                both = across * down
                sizes = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
                value = both / (sum(sizes) - both)
        overlaps.append(value)
    return sum(value >= 0.5 for value in overlaps) / len(overlaps), sum(overlaps) / len(overlaps)


@given(st.randoms(use_true_random=False), st.integers(1, 30))
def test_accuracy_and_mean_iou_equal_an_independent_script(rng: random.Random, count: int) -> None:
    def box() -> Box:
        x, y = rng.uniform(0, 250), rng.uniform(0, 250)
        return (x, y, x + rng.uniform(1, 50), y + rng.uniform(1, 50))

    samples = [sample(str(n), box()) for n in range(count)]
    near = [tuple(v + rng.gauss(0, 4) for v in asked.objects[0].bbox) for asked in samples]
    predictions = [
        says(asked) if rng.random() < 0.1 else says(asked, rng.choice((near[n], box())), box())  # type: ignore[arg-type]
        for n, asked in enumerate(samples)
    ]
    positives = score_predictions(samples, predictions)["grounding"]["positives"]
    assert (positives["Acc@0.5"], positives["mean_iou"]) == pytest.approx(by_hand(samples, predictions))


# What scores are worth


def test_scores_that_know_raise_average_precision_and_scores_that_lie_lower_it() -> None:
    asked = [sample(f"g{n:02}", BOX) for n in range(40)]
    right = [n % 3 > 0 for n in range(40)]

    def ranking(score: Any) -> dict[str, Any]:
        predictions = [says(s, BOX if hit else FAR, score=score(hit)) for s, hit in zip(asked, right, strict=True)]
        return score_predictions(asked, predictions)["grounding"]["ranking"]["AP"]

    knows, lies, says_nothing = (ranking(score) for score in (lambda h: 0.9 if h else 0.2, lambda h: 0.2 if h else 0.9,
                                                              lambda _: 0.7))  # fmt: skip
    assert knows["by_score"] > knows["all_scores_one"] > lies["by_score"]
    assert 0 < knows["difference"]["low"] <= knows["difference"]["estimate"] <= knows["difference"]["high"]
    assert says_nothing["difference"] == {"estimate": 0.0, "low": 0.0, "high": 0.0, "pictures": 40}


def test_boxes_without_scores_have_no_ranking() -> None:
    asked = [sample("g", BOX)]
    assert score_predictions(asked, [says(asked[0], BOX, score=None)])["grounding"]["ranking"] is None


def test_the_questions_of_one_picture_are_drawn_together() -> None:
    scenes = [
        Scene(
            (TrueBox(0, (0, 0, 9, 9), 81, crowd=False),), (FoundBox(0, (0, 0, 9, 9) if n % 2 else (50, 50, 9, 9), 0.5),)
        )
        for n in range(40)
    ]
    one_each = rank_scenes(scenes, [str(n) for n in range(40)], 1).intervals()["AP50"]
    together = rank_scenes(scenes, [str(n % 2) for n in range(40)], 1).intervals()["AP50"]
    assert (one_each.num_pictures, together.num_pictures) == (40, 2)
    assert together.high - together.low > one_each.high - one_each.low  # type: ignore[operator]


def test_precision_and_recall_end_at_the_recall_reached() -> None:
    scenes = [Scene((TrueBox(0, (0, 0, 9, 9), 81, crowd=False),), (FoundBox(0, (0, 0, 9, 9), 0.5),)), Scene((
        TrueBox(0, (0, 0, 9, 9), 81, crowd=False),), (FoundBox(0, (50, 50, 9, 9), 0.9),))]  # fmt: skip
    ranked = rank_scenes(scenes, ["a", "b"], 1)
    assert ranked.precision_recall() == [(0.0, 0.0), (0.5, 0.5)]
    assert (ranked.scores_of(hit=True), ranked.scores_of(hit=False)) == ([0.5], [0.9])
    assert rank_scenes([Scene((), ())], ["a"], 1).average_precision == (None, None)


# Several boxes an expression


def test_the_pair_of_the_highest_overlap_is_matched_first() -> None:
    found = [(0.0, 0.0, 10.0, 14.0), (0.0, 0.0, 10.0, 10.0)]
    true = [(0.0, 0.0, 10.0, 10.0), (0.0, 2.0, 10.0, 20.0)]
    pairs = match_best_first(found, true, 0.0)
    assert [pair[:2] for pair in pairs] == [(1, 0), (0, 1)]
    assert [pair[2] for pair in pairs] == sorted((pair[2] for pair in pairs), reverse=True)


@pytest.mark.parametrize(
    ("true", "found", "exact"),
    [
        pytest.param((BOX, OTHER), (OTHER, BOX), True, id="both found in another order"),
        pytest.param((BOX, OTHER), (BOX,), False, id="one of two"),
        pytest.param((BOX, OTHER), (BOX, OTHER, FAR), False, id="one too many"),
        pytest.param((BOX,), (BOX,), True, id="one of one"),
        pytest.param((BOX,), (BOX, FAR), False, id="one of one and another"),
        pytest.param((BOX, OTHER), (BOX, BOX), False, id="the same twice"),
    ],
)
def test_an_expression_counts_if_all_are_found_and_none_is_left_over(
    true: tuple[Box, ...], found: tuple[Box, ...], exact: bool
) -> None:
    asked = sample("g", *true)
    figures = several_figures(grounding_outcomes([(asked, says(asked, *found))]))
    assert figures["precision@F1=1"] == float(exact)


def test_what_is_absent_is_never_mixed_with_what_is_there() -> None:
    asked = [sample("a", BOX, OTHER), sample("b", BOX), sample("n1"), sample("n2"), sample("n3")]
    said = [
        says(asked[0], BOX),
        says(asked[1], BOX),
        says(asked[2]),
        says(asked[3], FAR),
        says(asked[4], status="unparsable"),
    ]
    figures = score_predictions(asked, said)["grounding"]
    assert figures["several"]["n"] == {"there": 2, "several": 1, "absent": 3}
    assert (figures["several"]["precision@F1=1"], figures["several"]["precision@F1=1_of_several"]) == (0.5, 0.0)
    assert figures["several"]["N-acc"] == figures["negatives"]["rejection_rate"] == pytest.approx(1 / 3)
    assert figures["positives"]["n"] == 2
    assert sum(group["n"] for group in figures["by"]["length"].values()) == 2
    assert figures["ranking"] == score_predictions(asked[:2], said[:2])["grounding"]["ranking"]


# By category, size and length


def test_answers_are_broken_down_by_what_the_sample_says() -> None:
    asked = [
        sample("s", (0, 0, 20, 20), query="the dog"),
        sample("m", (0, 0, 50, 50), query="the small dog on the left side"),
        sample("l", (0, 0, 200, 200), query=" ".join(["word"] * 20)),
        sample("z", (0, 0, 32, 32), query="穿红衣服的人", label="person"),
        sample("e", (0, 0, 20, 20), query="dog"),
    ]
    groups = {name: [of(s) for s in asked] for name, of in BREAKDOWNS.items()}
    assert groups["size"] == ["small", "medium", "large", "medium", "small"]
    assert groups["length"] == ["1-3 words", "4-7 words", "13 words or more", "4-7 words", "1-3 words"]
    assert groups["category"] == ["dog", "dog", "dog", "person", None]  # a label that is the expression says nothing


def test_the_groups_of_a_breakdown_sum_up_to_the_whole() -> None:
    asked = [sample(str(n), (0, 0, 10.0 + 10 * n, 40), query="a " * (n + 1)) for n in range(12)]
    said = [says(s, s.objects[0].bbox if n % 3 else FAR) for n, s in enumerate(asked)]
    outcomes = grounding_outcomes(zip(asked, said, strict=True))
    by = grounding_breakdown(asked, outcomes)
    assert list(by["size"]) == ["small", "medium"]
    for groups in by.values():
        assert sum(group["n"] for group in groups.values()) == 12
        assert sum(group["n"] * group["Acc@0.5"] for group in groups.values()) == pytest.approx(8)
        for group in groups.values():
            assert group["interval"]["low"] <= group["Acc@0.5"] <= group["interval"]["high"]


# Detection


def detection(id: str, *objects: tuple[Box, str]) -> Sample:
    things = tuple(SceneObject(box, label) for box, label in objects)
    return Sample(id, "detection", f"images/aa/{id}.jpg", 300, 300, None, things, ("cat", "dog"))


def test_confusion_counts_swaps_misses_and_phantoms() -> None:
    asked = [detection("a", (BOX, "dog"), (OTHER, "cat")), detection("b", (BOX, "dog"))]
    said = [
        Prediction(Question.of(asked[0], Path()), "ok", (Detected(BOX, "cat", 0.9), Detected(FAR, "dog", 0.5)), "", ""),
        Prediction(
            Question.of(asked[1], Path()), "ok", (Detected(BOX, "Dog ", 0.9), Detected(OTHER, "elk", 0.9)), "", ""
        ),
    ]
    scores = score_predictions(asked, said)["detection"]
    cells = {(cell["true"], cell["predicted"]): cell["n"] for cell in scores["confusion"]}
    assert cells == {
        ("dog", "cat"): 1, ("cat", None): 1, (None, "dog"): 1, ("dog", "dog"): 1, (None, OTHER_LABEL): 1,
    }  # fmt: skip
    assert scores["categories"]["dog"]["F1@0.5"] == pytest.approx(2 * 1 / (2 + 2))
    assert scores["categories"]["cat"]["recall@0.5"] == 0.0
    interval = scores["intervals"]["F1@0.5"]
    assert interval["low"] <= scores["F1@0.5"] <= interval["high"]


def test_two_equal_predictors_differ_by_exactly_nothing_in_every_figure() -> None:
    rng = random.Random(0)
    asked = [detection(str(n), (BOX, "dog"), (OTHER, "cat")) for n in range(20)]
    said = [says(s, rng.choice((BOX, FAR)), score=rng.random()) for s in asked]
    difference = compare_predictions(asked, said, said)["detection"]
    for name in ("AP", "AP50", "F1@0.5", "parse_rate"):
        assert (difference[name]["estimate"], difference[name]["low"], difference[name]["high"]) == (0, 0, 0), name
