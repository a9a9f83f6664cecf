"""An adapter used with what it was not trained with: the command line names the field, before any weight is loaded."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from prepare_inputs import picture
from terminal import QWENFT, plain

from qwenft.core.errors import ModelError
from qwenft.core.files import write_json
from qwenft.core.runs import Contract
from qwenft.model.load import base_contract
from qwenft.predict.find import find
from qwenft.predict.generate import Predictor

TRAINED = {"tasks": ("grounding",), "data": "scenes"}


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Path]:
    """A folder with a picture and a run whose adapter has a contract; its weights are not looked at before it fits."""
    (tmp_path / "photo.png").write_bytes(picture(1))
    adapter = tmp_path / "runs" / "first" / "adapter"
    adapter.mkdir(parents=True)
    write_json(adapter.parent / "events.jsonl", {"event": "plan"})
    replace(base_contract("tiny"), **TRAINED).write(adapter)
    yield tmp_path


def tamper(desk: Path, field: str, value: object) -> None:
    path = desk / "runs" / "first" / "adapter" / "contract.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))


FIELDS = [
    ("another architecture", "config_sha256", "0" * 64),
    ("other weights", "weights_sha256", "0" * 64),
    ("another coordinate mode", "coordinates", "thousandths"),
    ("another answer form", "answer", "box_tokens"),
]


@pytest.mark.parametrize(("field", "value"), [row[1:] for row in FIELDS], ids=[row[0] for row in FIELDS])
def test_what_differs_is_named(desk: Path, field: str, value: str) -> None:
    tamper(desk, field, value)
    with pytest.raises(ModelError, match=f"{field} is {value[:12]}") as caught:
        find([desk / "photo.png"], "the dog", run="first", gpus="cpu", root=desk)
    assert "tiny" in caught.value.hint


def test_the_command_line_names_the_field_and_leaves_no_traceback(desk: Path) -> None:
    tamper(desk, "coordinates", "thousandths")
    words = ["predict", "photo.png", "the dog", "--run", "first", "--gpus", "cpu", "--json", "--out", "a.jsonl"]
    status, out, err = plain([*QWENFT, *words], desk)
    assert (status, out) == (1, b"")
    said = err.decode().splitlines()
    assert said[-2].startswith("error: the adapter was trained on another base model: coordinates is thousandths")
    assert said[-1].startswith("try: ")
    assert b"Traceback" not in err
    assert not (desk / "a.jsonl").exists(), "no file without an answer is left"


@pytest.mark.parametrize("name", ["min_pixels", "max_pixels"])
def test_an_adapter_keeps_its_pixel_budget(desk: Path, name: str) -> None:
    adapter = desk / "runs" / "first" / "adapter"
    trained = Contract.read(adapter)
    with pytest.raises(ModelError, match=f"another pixel budget: {name} is {getattr(trained, name)}, not 50176"):
        Predictor.load("tiny", adapter, gpus="cpu", **{name: 50176})
    assert trained.with_budget(trained.min_pixels, trained.max_pixels) == trained


def test_a_base_model_takes_another_pixel_budget() -> None:
    base = base_contract("tiny")
    assert base.with_budget(None, 2 * base.max_pixels).max_pixels == 2 * base.max_pixels
