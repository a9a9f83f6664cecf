"""The demo runs the whole line for real, on few pictures; what it says is what happened."""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qwenft.core.boxes import iou
from qwenft.core.config import load_config
from qwenft.core.errors import DataError
from qwenft.core.files import read_json
from qwenft.core.runs import Contract
from qwenft.demo.demo import run_demo, training


@dataclass
class Demo:
    root: Path
    result: dict[str, Any]
    events: list[dict[str, Any]]

    @property
    def home(self) -> Path:
        return Path(self.result["folder"])

    @property
    def stages(self) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == "stage"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """Run once, in a project that has a latest run and a folder of the demo's name already."""
    root = tmp_path_factory.mktemp("project")
    (root / "runs" / "mine").mkdir(parents=True)
    (root / "runs" / "latest").symlink_to("mine")
    (root / "qwenft-demo").mkdir()
    (root / "qwenft-demo" / "notes.txt").write_text("mine")
    events: list[dict[str, Any]] = []
    result = run_demo(root=root, quick=True, emit=lambda event: events.append(dict(event)))
    return Demo(root, result, events)


def test_every_stage_leaves_its_files(demo: Demo) -> None:
    for name in (
        "scenes/train.jsonl",
        "data/neon/manifest.json",
        "runs/base-tiny/eval/neon-val/metrics.json",
        "runs/neon/adapter/contract.json",
        "runs/neon/adapter/adapter_model.safetensors",
        "runs/neon/eval/neon-val/predictions.jsonl",
        "found.png",
    ):
        assert (demo.home / name).is_file(), name
    asked = demo.home / demo.result["answer"]["image"]
    assert Image.open(demo.result["picture"]).size >= Image.open(asked).size


def test_the_users_own_files_and_latest_run_stay_as_they_were(demo: Demo) -> None:
    assert demo.home == demo.root / "qwenft-demo-2"
    assert [path.name for path in (demo.root / "qwenft-demo").iterdir()] == ["notes.txt"]
    assert (demo.root / "runs" / "latest").readlink() == Path("mine")
    assert not (demo.home / "runs" / "latest").exists()


def test_each_stage_is_announced_with_the_command_that_does_it(demo: Demo) -> None:
    assert [(stage["number"], stage["total"]) for stage in demo.stages] == [(n, 6) for n in range(1, 7)]
    commands = [shlex.split(stage["command"]) for stage in demo.stages]
    assert [command[:2] for command in commands] == [
        [],
        ["qwenft", "prepare"],
        ["qwenft", "eval"],
        ["qwenft", "train"],
        ["qwenft", "eval"],
        ["qwenft", "predict"],
    ]
    assert (demo.home / commands[1][3]).is_dir()
    assert (demo.home / commands[5][2]).is_file()
    assert demo.result["next"].startswith("qwenft ")


def test_the_table_shows_what_the_evaluation_measured(demo: Demo) -> None:
    metrics = read_json(Path(demo.result["eval"]) / "metrics.json")
    by_figure = {row["figure"]: row for row in demo.result["table"]}
    assert set(by_figure) == {"Acc@0.5", "mean_iou"}
    for figure, row in by_figure.items():
        assert row["adapter"] == metrics["scores"]["grounding"]["positives"][figure]
        assert row["base"] == metrics["baseline"]["grounding"]["positives"][figure]
        assert row["constant_box"] == metrics["constant_box"]["positives"][figure]
        assert row["difference"]["estimate"] == pytest.approx(row["adapter"] - row["base"])
        assert row["difference"]["low"] <= row["difference"]["estimate"] <= row["difference"]["high"]
    first = read_json(demo.home / "runs" / "base-tiny" / "eval" / "neon-val" / "metrics.json")
    assert first["scores"]["grounding"]["positives"]["mean_iou"] == pytest.approx(by_figure["mean_iou"]["base"])


def test_the_answer_shown_is_about_a_held_out_picture_and_judged_by_its_true_box(demo: Demo) -> None:
    answer = demo.result["answer"]
    rows = [json.loads(line) for line in (demo.home / "scenes" / "val.jsonl").read_text().splitlines()]
    names = {str(demo.home / "scenes" / row["image"]): row["bbox"] for row in rows if row["query"] == answer["query"]}
    assert names[answer["image"]] == answer["truth"]
    box, truth = tuple(answer["objects"][0]["bbox"]), tuple(answer["truth"])
    assert answer["iou"] == pytest.approx(iou(box, truth), abs=0.01)


def test_the_result_is_the_last_event_and_fit_for_json(demo: Demo) -> None:
    assert demo.events[-1] == {"event": "demo", **demo.result}
    assert json.loads(json.dumps(demo.result, allow_nan=False)) == demo.result
    assert set(demo.result["seconds"]) == {*(stage["title"] for stage in demo.stages), "all"}


def test_the_adapter_was_trained_on_the_training_pictures_and_asked_as_the_base_is(demo: Demo) -> None:
    contract = Contract.read(demo.home / "runs" / "neon" / "adapter")
    assert contract.base == "tiny"
    assert len(contract.pictures) == demo.result["splits"]["train"]["pictures"]
    assert contract.prompts.grounding == "Locate {expression}, output its bbox coordinates in JSON format."
    assert read_json(Path(demo.result["eval"]) / "metrics.json")["trained_on"]["pictures"] == 0


def test_the_training_command_gives_the_very_settings_of_the_demo() -> None:
    config, command = training(seed=3)
    words = shlex.split(command)
    assert words[:2] == ["qwenft", "train"]
    options = {words[i][2:]: words[i + 1] for i in range(2, len(words) - 1) if words[i].startswith("--")}
    overrides = [word for word in words if "=" in word]
    assert len(words) == 2 + 2 * len(options) + len(overrides)
    assert load_config(None, overrides, **options) == config
    assert config.seed == 3


def test_a_place_where_no_folder_can_be_made_is_an_error_with_a_hint(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(DataError, match="cannot be made") as raised:
        run_demo(root=blocked, quick=True)
    assert raised.value.hint
