"""Samples, the prepared data set and its manifest: the way to disk and back, and folders that are not whole."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenft.core.errors import DataError
from qwenft.core.files import write_json, write_jsonl
from qwenft.core.predictions import Detected, Prediction, Question
from qwenft.core.samples import (
    SCHEMA_VERSION,
    Manifest,
    PreparedDataset,
    Sample,
    SceneObject,
    as_task,
    default_dataset,
    open_dataset,
)

PICTURE = f"images/ab/{'ab' * 32}.jpg"
SAMPLES = (
    Sample("s/0", "grounding", PICTURE, 640, 480, "the man", (SceneObject((1.0, 2.0, 3.5, 4.0), "the man"),)),
    Sample("s/1", "grounding", PICTURE, 640, 480, "nobody"),
    Sample(
        "s/2",
        "detection",
        PICTURE,
        640,
        480,
        None,
        (SceneObject((0.0, 0.0, 9.0, 9.0), "狗", crowd=True),),
        ("狗", "cat"),
    ),
    Sample("s/3", "caption", PICTURE, 640, 480, captions=("A man.", "Somebody.")),
)


def make_dataset(path: Path, **splits: str) -> Path:
    """Write a prepared data set with all samples in each split; the keyword's value is its role."""
    for name in splits:
        write_jsonl(path / f"{name}.jsonl", [sample.to_json() for sample in SAMPLES])
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        name=path.name,
        source={"kind": "records"},
        command="qwenft prepare",
        versions={},
        splits={
            name: {"file": f"{name}.jsonl", "role": role, "samples": len(SAMPLES), "pictures": 1, "tasks": {}}
            for name, role in splits.items()
        },
        bbox={},
        counts={},
        checks=[],
        notes=[],
    )
    write_json(path / "manifest.json", manifest.model_dump())
    return path


def test_samples_come_back_from_disk(tmp_path: Path) -> None:
    opened = PreparedDataset.open(make_dataset(tmp_path / "set", train="train"))
    assert opened.samples("train") == SAMPLES
    assert opened.name == "set"
    assert SAMPLES[0].picture == "ab" * 32
    assert opened.picture_path(SAMPLES[0]) == tmp_path / "set" / PICTURE


NUMBERS = st.floats(0, 1e4).map(lambda number: round(number, 3))
OBJECTS = st.builds(SceneObject, st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS), st.text(), st.booleans())


@given(
    st.lists(OBJECTS, max_size=4),
    st.text(),
    st.lists(st.text(), max_size=3),
    st.sampled_from(["grounding", "detection", "caption"]),
)
def test_a_sample_survives_its_line(objects: list, text: str, texts: list, task: str) -> None:
    sample = Sample(
        text,
        task,
        PICTURE,
        640,
        480,
        query=text if task == "grounding" else None,
        objects=() if task == "caption" else tuple(objects),
        categories=tuple(texts) if task == "detection" else (),
        captions=tuple(texts) if task == "caption" else (),
    )
    assert Sample.from_json(json.loads(json.dumps(sample.to_json()))) == sample


def test_a_line_holds_what_the_task_has_and_no_more() -> None:
    keys = [set(sample.to_json()) - {"id", "task", "image", "width", "height"} for sample in SAMPLES]
    assert keys == [{"query", "objects"}, {"query", "objects"}, {"categories", "objects"}, {"captions"}]


@pytest.mark.parametrize(
    ("splits", "train", "held_out"),
    [
        ({"train": "train", "val": "held-out", "test": "test"}, "train", "val"),
        ({"train": "train", "test": "test"}, "train", "test"),
        ({"train": "train"}, "train", None),
        ({"a": "train", "b": "held-out", "c": "held-out"}, "a", "b"),
    ],
    ids=["three", "only a test", "none", "two: the first"],
)
def test_the_roles_say_what_is_trained_on_and_what_is_held_out(
    tmp_path: Path, splits: dict, train: str, held_out: str | None
) -> None:
    opened = PreparedDataset.open(make_dataset(tmp_path / "set", **splits))
    assert (opened.train, opened.held_out) == (train, held_out)


def test_without_a_split_to_train_on_the_next_command_is_named(tmp_path: Path) -> None:
    opened = PreparedDataset.open(make_dataset(tmp_path / "set", test="test"))
    with pytest.raises(DataError, match="no split to train on") as caught:
        _ = opened.train
    assert caught.value.hint.startswith("qwenft prepare")


def test_an_unknown_split_names_the_nearest(tmp_path: Path) -> None:
    opened = PreparedDataset.open(make_dataset(tmp_path / "set", train="train", val="held-out"))
    with pytest.raises(DataError, match="no split 'vall'") as caught:
        opened.samples("vall")
    assert caught.value.hint == "did you mean 'val'?"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"id": "x"}\n' * 4, "line 1: not a sample"),
        ('{"id": "x", "task": "dance"}\n' * 4, "unknown task 'dance'"),
        (json.dumps(SAMPLES[0].to_json()) + "\n", "holds 1 samples, its manifest says 4"),
        (json.dumps({**SAMPLES[0].to_json(), "objects": [{"bbox": [1, 2, 3]}]}) + "\n{}", "line 1: not a sample"),
        (json.dumps(SAMPLES[0].to_json()) + "\n{", "line 2, column 2"),
        (json.dumps({**SAMPLES[0].to_json(), "image": "images/../../x.jpg"}) + "\n{}", "leaves the data set's folder"),
        (json.dumps({**SAMPLES[0].to_json(), "image": "/x.jpg"}) + "\n{}", "leaves the data set's folder"),
    ],
    ids=["keys missing", "task", "lines missing", "three numbers", "broken JSON", "up and out", "absolute"],
)
def test_a_split_that_was_changed_is_never_read_as_whole(tmp_path: Path, text: str, message: str) -> None:
    path = make_dataset(tmp_path / "set", train="train")
    (path / "train.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        PreparedDataset.open(path).samples("train")


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (None, "no prepared data set: it has no manifest.json"),
        ("{", "broken JSON"),
        ("[]", "schema version None"),
        ('{"schema_version": 99}', "schema version 99, this qwenft reads 1"),
        ('{"schema_version": 1}', "not whole"),
    ],
    ids=["none", "broken", "list", "newer", "half"],
)
def test_a_folder_that_is_no_prepared_data_set_says_what_it_lacks(
    tmp_path: Path, manifest: str | None, message: str
) -> None:
    if manifest is not None:
        (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(DataError, match=message):
        PreparedDataset.open(tmp_path)


def test_the_only_data_set_is_taken_and_several_must_be_chosen(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no prepared data set under") as caught:
        default_dataset(tmp_path)
    assert "qwenft prepare" in caught.value.hint
    make_dataset(tmp_path / "data" / "one", train="train")
    make_dataset(tmp_path / "data" / ".two.partial", train="train")  # an interrupted prepare looks like nothing
    assert open_dataset(None, tmp_path).name == "one"
    make_dataset(tmp_path / "data" / "three", train="train")
    with pytest.raises(DataError, match="several prepared data sets under data/: one, three") as caught:
        open_dataset(None, tmp_path)
    assert "--data" in caught.value.hint


def test_a_data_set_opens_by_name_by_path_and_through_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_dataset(tmp_path / "disk" / "one", train="train")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "one").symlink_to(tmp_path / "disk" / "one", target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    for how in ("one", "data/one", str(tmp_path / "disk" / "one"), None):
        assert open_dataset(how).samples("train") == SAMPLES
    with pytest.raises(DataError, match="does not exist") as caught:
        open_dataset("onne")
    assert caught.value.hint == "did you mean 'one'?"


def test_an_unknown_task_names_the_nearest() -> None:
    assert as_task("detection") == "detection"
    with pytest.raises(DataError) as caught:
        as_task("detect")
    assert "'detection'" in caught.value.hint


QUESTION = Question.of(SAMPLES[0], Path("set"))
PREDICTIONS = [
    Prediction(QUESTION, "ok", (Detected((1.0, 2.0, 3.0, 4.0), "the man", 0.5),), "[…]", "Locate …"),
    Prediction(QUESTION, "salvaged", (Detected((1.0, 2.0, 3.0, 4.0), "", None),), "[", "Locate …", "cut off"),
    Prediction(Question.of(SAMPLES[2], Path("set")), "empty", (), "[]", "Locate …"),
    Prediction(Question(Path("user.jpg"), "caption"), "unparsable", (), "红", "Describe", "no number in it"),
]


@pytest.mark.parametrize("prediction", PREDICTIONS, ids=[item.status for item in PREDICTIONS])
def test_a_prediction_survives_its_line(prediction: Prediction) -> None:
    assert Prediction.from_json(json.loads(json.dumps(prediction.to_json()))) == prediction


def test_a_line_of_no_prediction_is_refused() -> None:
    line = PREDICTIONS[0].to_json()
    with pytest.raises(ValueError, match="unknown status 'fine'"):
        Prediction.from_json({**line, "status": "fine"})
    with pytest.raises(ValueError, match="not enough values"):
        Prediction.from_json({**line, "objects": [{"bbox": [1, 2]}]})
    with pytest.raises(KeyError):
        Prediction.from_json({key: value for key, value in line.items() if key != "text"})


def test_a_source_folder_does_not_hide_the_prepared_set_of_its_name(tmp_path: Path) -> None:
    make_dataset(tmp_path / "data" / "mine", train="train")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train.jsonl").write_text("{}\n")
    assert open_dataset("mine", tmp_path).path == tmp_path / "data" / "mine"
