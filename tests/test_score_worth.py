"""What the embedded model's scores are worth: they rank its boxes, and a threshold on them rejects.

It knows no detection yet: each answer to a question about one thing is taken for a detection of one category.
Questions about things of other pictures stand among them, to all of which it answers a box.  For a model that detects
only `asked` is to be replaced, by its own questions.
"""

from dataclasses import replace
from pathlib import Path

import pytest

from qwenft.core.predictions import Prediction, Question
from qwenft.core.samples import PreparedDataset, Sample
from qwenft.demo.scenes import write_scenes
from qwenft.evaluate.score import score_predictions
from qwenft.evaluate.sections import ranking
from qwenft.evaluate.threshold import threshold_figures
from qwenft.predict.generate import Predictor
from qwenft.prepare.build import prepare_dataset

THING = "thing"


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreparedDataset, list[Sample]]:
    """Questions about generated pictures, and as many about what stands in another picture."""
    root = tmp_path_factory.mktemp("worth")
    write_scenes(root / "scenes", num_train=40, num_val=1, seed=3)
    data = prepare_dataset("scenes", root=root)
    there = [sample for sample in data.samples("train") if sample.objects]
    others = zip(there, [*there[7:], *there[:7]], strict=True)
    absent = [replace(a, id=f"{a.id}-absent", query=b.query, objects=()) for a, b in others if a.picture != b.picture]
    return data, [*there, *absent]


@pytest.fixture(scope="module")
def answers(asked: tuple[PreparedDataset, list[Sample]]) -> list[Prediction]:
    data, samples = asked
    return list(Predictor.load("tiny", gpus="cpu").answer([Question.of(sample, data.path) for sample in samples]))


def as_detection(sample: Sample) -> Sample:
    objects = tuple(replace(item, label=THING) for item in sample.objects)
    return replace(sample, task="detection", query=None, categories=(THING,), objects=objects)


def as_detected(answer: Prediction, sample: Sample) -> Prediction:
    objects = tuple(replace(item, label=THING) for item in answer.objects)
    return replace(answer, question=Question.of(sample, Path()), objects=objects)


def test_average_precision_by_score_beats_equal_scores(
    asked: tuple[PreparedDataset, list[Sample]], answers: list[Prediction]
) -> None:
    samples = [as_detection(sample) for sample in asked[1]]
    detected = [as_detected(answer, sample) for answer, sample in zip(answers, samples, strict=True)]
    scores = score_predictions(samples, detected)
    worth = scores["detection"]["ranking"]["AP"]
    assert worth["by_score"] > worth["all_scores_one"] > 0
    assert worth["difference"]["high"] > worth["difference"]["estimate"] > 0
    assert scores["detection"]["AP"] == pytest.approx(worth["by_score"], abs=1e-9), "the AP of the table is by score"
    row = next(row for row in ranking(scores) if (row["task"], row["name"]) == ("detection", "AP"))
    assert (row["by_score"], row["flat"]) == (f"{worth['by_score']:.3f}", f"{worth['all_scores_one']:.3f}")


def test_a_threshold_on_the_score_rejects_what_the_model_answers(
    asked: tuple[PreparedDataset, list[Sample]], answers: list[Prediction]
) -> None:
    figures = threshold_figures(asked[1], answers, {})["grounding"]
    without, chosen = figures["without"], figures["chosen"]
    assert chosen["F1@0.5"]["estimate"] >= without["F1@0.5"]["estimate"]
    gained = chosen["rejection_rate"]["estimate"] - without["rejection_rate"]["estimate"]
    lost = without["discrimination"]["estimate"] - chosen["discrimination"]["estimate"]
    assert gained > lost >= 0 or without["rejection_rate"]["estimate"] > 0.9, (
        "a model that rejects by itself needs none"
    )
