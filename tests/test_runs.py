"""Run folders: names, events that a crash tore, runs/latest, and the adapter's contract."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from qwenft.core.answer import Prompts
from qwenft.core.errors import ModelError, RunError
from qwenft.core.runs import CONTRACT_FILE, Contract, Run, latest_run, new_run, open_run, point_latest

CONTRACT = Contract(
    base="Qwen/Qwen2.5-VL-3B-Instruct",
    config_sha256="c" * 64,
    weights_sha256="d" * 64,
    min_pixels=3136,
    max_pixels=1003520,
    prompts=Prompts(grounding="find {expression}"),
    tasks=("grounding", "detection"),
    data="coco36",
    pictures=("a" * 64, "b" * 64),
    versions={"torch": "2.15.0"},
)


def make_run(root: Path, name: str, *, finished: bool = True) -> Run:
    run = new_run(root, name, "data")
    run.adapter.mkdir(parents=True)
    run.append_event({"event": "started"})
    if finished:
        CONTRACT.write(run.adapter)
        run.append_event({"event": "finished"})
    return run


def test_events_come_back_in_order(tmp_path: Path) -> None:
    run = make_run(tmp_path, "one", finished=False)
    run.append_event({"event": "step", "step": 1, "text": "红\n"})
    assert list(run.read_events()) == [{"event": "started"}, {"event": "step", "step": 1, "text": "红\n"}]
    assert run.events.read_text(encoding="utf-8").count("\n") == 2


@pytest.mark.parametrize(
    "torn", ['{"event": "st', '{"event": "step", "text": "红"'.encode()[:-2], b"\x00\x00", "[1]\n"]
)
def test_a_torn_line_is_left_out_and_hides_nothing_behind_it(tmp_path: Path, torn: str | bytes) -> None:
    run = make_run(tmp_path, "one", finished=False)
    with run.events.open("ab") as file:
        file.write(torn.encode() if isinstance(torn, str) else torn)
    assert [event["event"] for event in run.read_events()] == ["started"]
    run.append_event({"event": "resumed"})
    assert [event["event"] for event in run.read_events()] == ["started", "resumed"]


def test_a_whole_last_line_without_its_newline_is_kept(tmp_path: Path) -> None:
    run = make_run(tmp_path, "one", finished=False)
    with run.events.open("a") as file:
        file.write('{"event": "step"}')
    run.append_event({"event": "resumed"})
    assert [event["event"] for event in run.read_events()] == ["started", "step", "resumed"]


def test_a_run_is_finished_only_with_adapter_and_last_event(tmp_path: Path) -> None:
    assert make_run(tmp_path, "whole").finished
    assert not make_run(tmp_path, "half", finished=False).finished
    without = make_run(tmp_path, "lost")
    (without.adapter / CONTRACT_FILE).unlink()
    assert not without.finished
    assert list(Run(tmp_path / "nothing").read_events()) == []


def test_a_name_is_given_once(tmp_path: Path) -> None:
    make_run(tmp_path, "mine")
    with pytest.raises(RunError, match="mine exists already") as caught:
        new_run(tmp_path, "mine", "data")
    assert "--name" in caught.value.hint
    names = []
    for _ in range(3):
        run = new_run(tmp_path, None, "data")
        run.path.mkdir(parents=True)
        names.append(run.name)
    assert len(set(names)) == 3
    assert all(name.startswith("data-") for name in names)


def test_a_run_opens_by_name_and_by_path_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path, "mine")
    monkeypatch.chdir(tmp_path)
    assert open_run("mine") == open_run("runs/mine") == open_run(run.path) == run
    monkeypatch.chdir(run.path)
    assert open_run(".").path == run.path
    assert open_run("mine", tmp_path).path.is_absolute()


def test_an_unknown_run_names_the_nearest_or_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run 'minne'") as caught:
        open_run("minne", tmp_path)
    assert caught.value.hint == "qwenft train"
    make_run(tmp_path, "mine")
    (tmp_path / "runs" / "mines-without-events").mkdir()
    with pytest.raises(RunError) as caught:
        open_run("minne", tmp_path)
    assert caught.value.hint == "did you mean 'mine'?"


def test_latest_follows_the_newest_and_knows_the_runs_own_name(tmp_path: Path) -> None:
    assert latest_run(tmp_path) is None
    for name in ("first", "second"):
        point_latest(make_run(tmp_path, name))
        latest = latest_run(tmp_path)
        assert latest is not None
        assert latest.name == open_run("latest", tmp_path).name == name
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["first", "latest", "second"]
    (tmp_path / "runs" / "second").rename(tmp_path / "moved")
    assert latest_run(tmp_path) is None  # a link to nothing is no run
    (tmp_path / "moved").rename(tmp_path / "runs" / "second")
    (tmp_path / "runs").rename(tmp_path / "other")  # the link is relative: runs/ may be moved
    assert Run(tmp_path / "other" / "latest").finished


# The contract


def test_a_contract_comes_back_as_it_was_written(tmp_path: Path) -> None:
    CONTRACT.write(tmp_path)
    assert Contract.read(tmp_path) == CONTRACT


@pytest.mark.parametrize("field", ["config_sha256", "weights_sha256", "coordinates", "answer"])
def test_another_base_model_is_an_error_that_names_the_field(field: str) -> None:
    CONTRACT.check(replace(CONTRACT, base="/elsewhere/copy", versions={"torch": "9"}, pictures=()))
    with pytest.raises(ModelError, match=field) as caught:
        CONTRACT.check(replace(CONTRACT, **{field: "other"}))
    assert CONTRACT.base in caught.value.hint


def test_a_missing_contract_says_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no contract\.json") as caught:
        Contract.read(tmp_path)
    assert "qwenft train" in caught.value.hint


@pytest.mark.parametrize(
    "change",
    [
        lambda value: {**value, "schema": 99},
        lambda value: {key: item for key, item in value.items() if key != "prompts"},
        lambda value: {**value, "prompts": {"unknown": "x"}},
        lambda value: {**value, "unknown": 1},
        lambda value: [value],
    ],
    ids=["schema", "no prompts", "unknown prompt", "unknown field", "a list"],
)
def test_a_contract_that_is_not_whole_is_refused(tmp_path: Path, change) -> None:
    CONTRACT.write(tmp_path)
    path = tmp_path / CONTRACT_FILE
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ModelError, match=r"contract\.json"):
        Contract.read(tmp_path)
