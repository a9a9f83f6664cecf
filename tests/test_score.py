"""Predictions against samples, answers from files, and the body of `eval` with a predictor told what to say."""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenft.core.answer import Status
from qwenft.core.boxes import Box
from qwenft.core.errors import DataError, RunError, UsageError
from qwenft.core.events import Emit, Event, ignore
from qwenft.core.files import write_json, write_jsonl
from qwenft.core.predictions import Detected, Prediction, Question
from qwenft.core.runs import Answerer, Contract, Run, point_latest
from qwenft.core.samples import Manifest, PreparedDataset, Sample, SceneObject, SplitInfo
from qwenft.evaluate import run as body
from qwenft.evaluate.compare import compare_predictions
from qwenft.evaluate.existing import evaluate_predictions
from qwenft.evaluate.match import load_predictions
from qwenft.evaluate.run import evaluate_run, spread
from qwenft.evaluate.score import score_predictions

BOX: Box = (10.0, 10.0, 60.0, 60.0)
ELSEWHERE: Box = (70.0, 70.0, 90.0, 90.0)


def grounding(id: str, *true: Box, picture: str = "") -> Sample:
    objects = tuple(SceneObject(box, "the dog") for box in true)
    return Sample(id, "grounding", f"images/aa/{picture or id}.jpg", 100, 100, query="the dog", objects=objects)


def detection(id: str) -> Sample:
    return Sample(id, "detection", f"images/aa/{id}.jpg", 100, 100, None, (SceneObject(BOX, "dog"),), ("dog", "cup"))


def caption(id: str, *texts: str) -> Sample:
    return Sample(id, "caption", f"images/aa/{id}.jpg", 100, 100, captions=texts)


def says(sample: Sample, *boxes: Box, status: Status | None = None, text: str = "") -> Prediction:
    label = "dog" if sample.task == "detection" else "the dog"
    objects = tuple(Detected(box, label, 0.9) for box in boxes)
    known = status or ("ok" if boxes or text else "empty")
    return Prediction(Question.of(sample, Path()), known, objects, text, "")


def truth(sample: Sample) -> Prediction:
    text = sample.captions[0] if sample.captions else ""
    return says(sample, *(item.bbox for item in sample.objects), text=text)


MIXED = [
    grounding("g1", BOX),
    grounding("g2", ELSEWHERE),
    grounding("none"),
    detection("d1"),
    caption("c1", "a dog on green grass", "the dog"),
    caption("c2", "two cups stand on a table"),
]


def test_perfect_predictions_score_one_in_each_task() -> None:
    scores = score_predictions(MIXED, [truth(sample) for sample in MIXED])
    assert (scores["n"], scores["parse_rate"], scores["statuses"]["empty"]) == (6, 1.0, 1)
    assert scores["grounding"]["positives"]["Acc@0.75"] == 1.0
    assert scores["grounding"]["negatives"]["rejection_rate"] == 1.0
    assert scores["grounding"]["positives"]["intervals"]["Acc@0.5"]["high"] == 1.0
    assert scores["detection"]["AP"] == pytest.approx(1.0)
    assert scores["caption"]["ROUGE_L"] == pytest.approx(1.0)


def test_unreadable_answers_stay_in_every_denominator() -> None:
    scores = score_predictions(
        MIXED, [says(sample, status="unparsable", text="a dog on green grass") for sample in MIXED]
    )
    assert (scores["parse_rate"], scores["statuses"]["unparsable"]) == (0.0, 6)
    assert scores["grounding"]["positives"]["n"] == 2
    assert scores["grounding"]["positives"]["mean_iou"] == 0.0
    assert scores["grounding"]["negatives"]["rejection_rate"] == 0.0
    assert scores["detection"]["AP"] == 0.0
    assert scores["caption"]["ROUGE_L"] == 0.0


def test_a_task_that_is_not_there_is_left_out() -> None:
    assert set(score_predictions(MIXED[:1], [truth(MIXED[0])])) == {"n", "parse_rate", "statuses", "grounding"}
    assert score_predictions([], []) == {
        "n": 0,
        "parse_rate": None,
        "statuses": {"ok": 0, "salvaged": 0, "empty": 0, "unparsable": 0, "error": 0},
    }


@settings(deadline=None, max_examples=15)
@given(st.randoms(use_true_random=False), st.integers(2, 9))
def test_the_order_of_samples_and_predictions_changes_nothing(rng: random.Random, count: int) -> None:
    samples = [grounding(f"g{n}", BOX, picture=f"p{n % 3}") for n in range(count)] + [
        detection(f"d{n}") for n in range(3)
    ]
    answers = [says(sample, *rng.choice(((BOX,), (ELSEWHERE,), (), (ELSEWHERE, BOX)))) for sample in samples]
    first = score_predictions(samples, answers)
    rng.shuffle(samples)
    rng.shuffle(answers)
    assert json.loads(json.dumps(score_predictions(samples, answers))) == json.loads(json.dumps(first))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda found: found[:-1], "1 samples have no prediction: 'c2'", id="one is missing"),
        pytest.param(lambda found: [*found, found[0]], "1 ids have several predictions: 'g1'", id="one stands twice"),
        pytest.param(lambda found: [*found, truth(grounding("x"))], "belong to no sample: 'x'", id="one too many"),
        pytest.param(
            lambda found: [truth(detection("g1")), *found[1:]],
            "of another task than their sample: 'g1'",
            id="another task",
        ),
    ],
)
def test_predictions_that_do_not_fit_the_samples_are_named(
    change: Callable[[list[Prediction]], list[Prediction]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        score_predictions(MIXED, change([truth(sample) for sample in MIXED]))


def test_a_difference_has_an_interval_where_the_figure_is_a_mean() -> None:
    samples = [grounding(f"g{n}", BOX) for n in range(40)] + [detection(f"d{n}") for n in range(20)] + MIXED[4:]
    ours = [truth(sample) for sample in samples]
    theirs = [p if n % 2 else replace(p, status="unparsable", objects=()) for n, p in enumerate(ours)]
    difference = compare_predictions(samples, ours, theirs)
    accuracy = difference["grounding"]["Acc@0.5"]
    assert (accuracy["estimate"], accuracy["pictures"]) == (0.5, 40)
    assert 0.3 < accuracy["low"] < 0.5 < accuracy["high"] < 0.7
    assert difference["grounding"]["rejection_rate"]["estimate"] is None
    f1 = difference["detection"]["F1@0.5"]
    assert f1["estimate"] == pytest.approx(1 - 20 / 30)
    assert f1["low"] < f1["estimate"] < f1["high"]
    assert (difference["detection"]["AP75"]["low"], difference["caption"]["Bleu_4"]["low"]) == (None, None)
    for found in (difference["detection"]["AP"], difference["caption"]["CIDEr"], difference["grounding"]["parse_rate"]):
        assert found["low"] <= found["estimate"] <= found["high"]
        assert found["estimate"] > 0
    same = compare_predictions(samples, ours, ours)["grounding"]["mean_iou"]
    assert (same["estimate"], same["low"], same["high"]) == (0.0, 0.0, 0.0)


def test_written_predictions_are_read_back(tmp_path: Path) -> None:
    predictions = [truth(sample) for sample in MIXED]
    write_jsonl(tmp_path / "p.jsonl", [p.to_json() for p in predictions])
    assert [p.to_json() for p in load_predictions(tmp_path / "p.jsonl")] == [p.to_json() for p in predictions]


GOOD = truth(MIXED[0]).to_json()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        pytest.param("{]", "line 2, column", id="broken JSON"),
        pytest.param('{"id": "g1"}', "line 2: not a prediction .it has no 'objects'", id="a key is missing"),
        pytest.param(json.dumps({**GOOD, "status": "fine"}), "line 2.*unknown status 'fine'", id="another status"),
        pytest.param(json.dumps({**GOOD, "task": "ground"}), "line 2.*unknown task", id="another task"),
        pytest.param(json.dumps({**GOOD, "objects": [{"bbox": [1, 2, 3]}]}), "line 2", id="three numbers"),
        pytest.param(json.dumps({**GOOD, "objects": [{"bbox": [1, 2, 3, float("nan")]}]}), "line 2.*finite", id="NaN"),
        pytest.param(json.dumps({"image_id": 1, "bbox": [1, 2, 3, 4]}), "line 2", id="COCO results without references"),
    ],
)
def test_a_line_that_is_no_prediction_is_named(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n{line}\n", encoding="utf-8")
    with pytest.raises(DataError, match=message):
        load_predictions(path)


def prepared(folder: Path, **splits: Sequence[Sample]) -> PreparedDataset:
    """A prepared data set on disk, without pictures."""
    infos = {}
    roles = {"train": "train", "val": "held-out", "test": "test"}
    for name, samples in splits.items():
        write_jsonl(folder / f"{name}.jsonl", [sample.to_json() for sample in samples])
        pictures = len({sample.picture for sample in samples})
        infos[name] = SplitInfo(
            file=f"{name}.jsonl", role=roles[name], samples=len(samples), pictures=pictures, tasks={}
        )
    manifest = Manifest(
        schema_version=1,
        name=folder.name,
        source={},
        command="",
        versions={},
        splits=infos,
        bbox={},
        counts={},
        checks=[],
        notes=[],
    )
    write_json(folder / "manifest.json", manifest.model_dump())
    return PreparedDataset.open(folder)


TRAIN = [grounding(f"t{n}", BOX) for n in range(4)]
HELD_OUT = [grounding(f"v{n}", BOX if n % 2 else ELSEWHERE, picture=f"p{n // 2}") for n in range(8)] + [MIXED[2]]


def test_existing_answers_are_scored_against_the_held_out_split(tmp_path: Path) -> None:
    data = prepared(tmp_path / "dogs", train=TRAIN, val=HELD_OUT)
    write_jsonl(tmp_path / "p.jsonl", [says(sample, BOX).to_json() for sample in HELD_OUT])
    found = evaluate_predictions(tmp_path / "p.jsonl", data=data, root=tmp_path).metrics
    assert found["split"] == "val"
    assert found["scores"]["grounding"]["positives"]["Acc@0.5"] == 0.5
    assert found["scores"]["grounding"]["negatives"]["false_alarm_rate"] == 1.0
    assert found["constant_box"]["box_norm"] == [0.1, 0.1, 0.6, 0.6]
    assert found["constant_box"]["positives"]["Acc@0.5"] == 0.5


def contract_of(base: str, *pictures: str, data: str = "") -> Contract:
    return Contract(base, "c", "w", 3136, 12544, pictures=pictures, data=data)


class FakePredictor:
    """Finds what it is told: with its adapter BOX to a hair, without it nothing that can be read."""

    def __init__(self, contract: Contract, adapter: Path | None = None) -> None:
        self.contract, self.adapter = contract, adapter

    def answer(
        self, questions: Sequence[Question], *, batch_size: int | None = None, emit: Emit = ignore
    ) -> Iterator[Prediction]:
        for question in questions:
            by = {"model": self.contract.base, "adapter": None if self.adapter is None else str(self.adapter)}
            if self.adapter:
                box = Detected((10.001, 10, 60, 60), "the dog", 0.5)
                yield Prediction(question, "ok", (box,), "[…]", "Locate it", **by)  # type: ignore[arg-type]
            else:
                yield Prediction(question, "unparsable", (), "no", "Locate it", **by)  # type: ignore[arg-type]

    @contextmanager
    def adapter_disabled(self) -> Iterator[None]:
        adapter, self.adapter = self.adapter, None
        yield
        self.adapter = adapter


class House:
    """A folder with a prepared data set and a finished run, and what was loaded and said."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.loaded: list[tuple[str, Path | None, str | None]] = []
        self.said: list[Event] = []
        prepared(root / "data" / "dogs", train=TRAIN, val=HELD_OUT)

    def add_run(self, name: str, *pictures: str, base: str = "tiny") -> Run:
        run = Run(self.root / "runs" / name)
        contract_of(base, *pictures, data="dogs").write(run.adapter)
        run.append_event({"event": "finished"})
        point_latest(run)
        return run

    def load(self, subject: Answerer, gpus: str | None, emit: Emit) -> FakePredictor:
        model, adapter = subject.model, subject.adapter
        self.loaded.append((model, adapter, gpus))
        return FakePredictor(Contract.read(adapter) if adapter else contract_of(model), adapter)

    def evaluate(self, **options: Any) -> Any:
        return evaluate_run(root=self.root, emit=self.said.append, **options)

    def texts(self) -> str:
        return "\n".join(str(event.get("text")) for event in self.said)


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    found = House(tmp_path)
    monkeypatch.setattr(body, "_load_predictor", found.load)
    return found


def test_the_latest_run_is_scored_beside_its_base_and_the_constant_box(house: House) -> None:
    run = house.add_run("first", "t0", "p0")
    result = house.evaluate(baseline=True, gpus="1")
    assert house.loaded == [("tiny", run.adapter, "1")]
    assert result.folder == run.path / "eval" / "dogs-val"
    assert sorted(path.name for path in result.folder.iterdir()) == [
        "baseline-predictions.jsonl",
        "metrics.json",
        "predictions.jsonl",
        "report.html",
    ]
    metrics = json.loads((result.folder / "metrics.json").read_text(encoding="utf-8"))
    assert metrics == json.loads(json.dumps(result.metrics))
    assert metrics["scores"]["grounding"]["positives"]["Acc@0.5"] == 0.5
    assert (metrics["baseline"]["parse_rate"], metrics["scores"]["parse_rate"]) == (0.0, 1.0)
    assert metrics["difference"]["grounding"]["Acc@0.5"]["estimate"] == 0.5
    assert metrics["constant_box"]["positives"]["Acc@0.5"] == 0.5
    assert metrics["trained_on"] == {"pictures": 1, "of": 5, "samples": 2}
    assert (metrics["run"], metrics["model"], metrics["inputs"]["baseline"]) == ("first", "tiny", True)
    assert "the run first answers" in house.texts()
    assert "1 of 5 pictures were trained on" in house.texts()
    assert result.to_json()["folder"] == str(result.folder)


def test_scoring_the_written_answers_again_gives_the_same_figures(house: House) -> None:
    house.add_run("first")
    result = house.evaluate(baseline=True)
    data = PreparedDataset.open(house.root / "data" / "dogs")
    for name, key in (("predictions", "scores"), ("baseline-predictions", "baseline")):
        again = evaluate_predictions(result.folder / f"{name}.jsonl", data=data, root=house.root)
        assert again.metrics["scores"] == result.metrics[key]


def test_without_a_run_the_base_model_answers(house: House) -> None:
    result = house.evaluate(baseline=True)
    assert house.loaded == [("Qwen/Qwen2.5-VL-3B-Instruct", None, None)]
    assert result.folder == house.root / "runs" / "base-Qwen2.5-VL-3B-Instruct" / "eval" / "dogs-val"
    assert (result.metrics["baseline"], result.metrics["trained_on"]) == (None, None)
    assert "the base model Qwen/Qwen2.5-VL-3B-Instruct answers" in house.texts()
    assert [event["event"] for event in house.said].count("warning") == 1  # --baseline has nothing to compare


@pytest.mark.parametrize(
    ("options", "model", "with_adapter"),
    [
        pytest.param({}, "tiny", True, id="the latest run"),
        pytest.param({"model": "tiny"}, "tiny", True, id="the model that it was trained on"),
        pytest.param({"model": "other/model"}, "other/model", False, id="another model is scored itself"),
        pytest.param({"run": "first", "model": "copy/of-tiny"}, "copy/of-tiny", True, id="a run on a moved base"),
    ],
)
def test_who_answers(options: dict[str, str], model: str, with_adapter: bool, house: House) -> None:
    run = house.add_run("first")
    house.evaluate(**options)
    assert house.loaded == [(model, run.adapter if with_adapter else None, None)]


def test_a_part_of_a_split_has_its_own_folder_and_leaves_the_whole_one_alone(house: House) -> None:
    house.add_run("first")
    whole = house.evaluate()
    part = house.evaluate(limit=3)
    assert (whole.folder.name, part.folder.name) == ("dogs-val", "dogs-val-3")
    assert part.metrics["samples"] == {"scored": 3, "of": 9}
    assert (whole.folder / "metrics.json").is_file()
    with pytest.raises(UsageError, match="limit must be over 0"):
        house.evaluate(limit=0)


def test_a_new_evaluation_leaves_nothing_of_the_old_one(house: House) -> None:
    run = house.add_run("first")
    house.evaluate(baseline=True)
    house.evaluate()
    assert not (run.evals / "dogs-val" / "baseline-predictions.jsonl").exists()


def test_an_interrupted_evaluation_leaves_nothing(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    run = house.add_run("first")

    def stop(*_: object, **__: object) -> Iterator[Prediction]:
        raise KeyboardInterrupt

    monkeypatch.setattr(FakePredictor, "answer", stop)
    with pytest.raises(KeyboardInterrupt):
        house.evaluate()
    assert list(run.evals.iterdir()) == []


def test_a_run_without_an_adapter_and_one_that_is_not_there_are_errors(house: House) -> None:
    run = Run(house.root / "runs" / "torn")
    run.path.mkdir(parents=True)
    run.append_event({"event": "step"})
    with pytest.raises(RunError, match="has no adapter yet"):
        house.evaluate(run="torn")
    with pytest.raises(RunError, match="no run 'tron'") as error:
        house.evaluate(run="tron")
    assert "torn" in error.value.hint


def test_the_runs_own_data_set_is_taken_where_there_are_several(house: House) -> None:
    house.add_run("first")
    prepared(house.root / "data" / "cups", train=TRAIN, val=TRAIN)
    assert house.evaluate().metrics["data"] == "dogs"
    assert house.evaluate(data="cups").metrics["data"] == "cups"


def test_a_training_split_is_scored_without_a_constant_box_made_of_it(house: House) -> None:
    house.add_run("first", *(sample.picture for sample in TRAIN))
    metrics = house.evaluate(split="train").metrics
    assert metrics["constant_box"] is None
    assert metrics["trained_on"] == {"pictures": 4, "of": 4, "samples": 4}


@given(st.integers(1, 40), st.integers(1, 50))
def test_a_limit_spreads_over_the_whole_split(count: int, limit: int) -> None:
    samples = [grounding(str(number)) for number in range(count)]
    chosen = [int(sample.id) for sample in spread(samples, limit)]
    assert len(chosen) == len(set(chosen)) == min(count, limit)
    assert chosen == sorted(chosen)
    steps = [b - a for a, b in pairwise(chosen)]
    assert max(steps, default=1) - min(steps, default=1) <= 1
