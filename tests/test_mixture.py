"""Several prepared data sets in one run: what an epoch takes of each, counts, loss and score by task, names, resume."""

import json
import math
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as nnf
from training import end_at, train_here

from qwenft.commands.steps import steps
from qwenft.core.config import DataSource, load_config, make_config
from qwenft.core.devices import Devices
from qwenft.core.errors import DataError, UsageError
from qwenft.core.events import eval_text, plan_rows, step_text
from qwenft.core.runs import Contract, Run
from qwenft.core.samples import TASKS, PreparedDataset
from qwenft.core.steps import count_updates
from qwenft.demo.scenes import write_scenes
from qwenft.model.inputs import IGNORED
from qwenft.model.load import base_contract
from qwenft.prepare.build import prepare_dataset
from qwenft.train.batches import PictureOrder
from qwenft.train.losses import TaskLosses
from qwenft.train.measure import measure
from qwenft.train.mixture import Mixture, open_mixture, shares
from qwenft.train.plan import make_plan
from qwenft.train.worker import Job

SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    root = tmp_path_factory.mktemp("captions")
    write_scenes(root / "captions", num_train=6, num_val=3, seed=2, task="caption")
    return prepare_dataset("captions", root=root)


@pytest.fixture
def both(workplace: Path, captions: PreparedDataset) -> Path:
    """A folder of a user's with data/scenes and data/captions."""
    (workplace / "data" / "captions").symlink_to(captions.path)
    return workplace


@given(SIZES, st.data())
def test_shares_follow_the_weights_and_fill_the_epoch(sizes: list[int], data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.floats(0.01, 10), min_size=len(sizes), max_size=len(sizes)))
    found = shares(sizes, weights)
    assert sum(found) == sum(sizes)
    for number, weight in zip(found, weights, strict=True):
        assert abs(number - sum(sizes) * weight / sum(weights)) < 1 + 1e-9
    assert shares(sizes, None) == sizes


@given(SIZES, st.data(), st.integers(0, 9))
def test_an_epoch_has_its_share_of_each_set_and_no_sample_comes_twice_before_all_came_once(
    sizes: list[int], data: st.DataObject, seed: int
) -> None:
    weights = data.draw(st.none() | st.lists(st.floats(0.1, 10), min_size=len(sizes), max_size=len(sizes)))
    parts = tuple(zip(sizes, shares(sizes, weights), strict=True))
    pictures = [f"{number}-{index // 3}" for number, size in enumerate(sizes) for index in range(size)]
    owner = [number for number, size in enumerate(sizes) for _ in range(size)]
    order = PictureOrder(pictures, seed, 4, 1, 4, parts)
    seen: Counter[int] = Counter()
    for epoch in range(4):
        order.set_epoch(epoch)
        found = list(order)
        assert len(found) == len(order) == len(pictures)
        taken = Counter(owner[index] for index in found)
        assert [taken[number] for number in range(len(sizes))] == [drawn for _, drawn in parts]
        seen.update(found)
        for number, size in enumerate(sizes):
            times = [seen[index] for index in range(sum(sizes[:number]), sum(sizes[:number]) + size)]
            assert max(times) - min(times) <= 1


def test_one_set_is_ordered_as_if_there_were_no_others() -> None:
    pictures = [str(number // 3) for number in range(30)]
    for epoch in range(3):
        alone = PictureOrder(pictures, 5, 4, 1, 4, epoch=epoch)
        assert alone.samples() == PictureOrder(pictures, 5, 4, 1, 4, ((30, 30),), epoch=epoch).samples()


def test_steps_counts_what_the_plan_counts(
    both: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(both)
    data = "scenes:0.25,captions:0.75"
    mixture = open_mixture(load_config(None, [f"data={data}"]).data, both)
    n = mixture.num_samples
    assert n == len(mixture.samples) == sum(mixture.drawn)
    assert mixture.drawn == (10, 28) and n == 38  # 9.5 and 28.5
    steps(data=data, bs=2, accum=3, epochs=1.5, json=True)
    counted = json.loads(capsys.readouterr().out)
    (both / "mixed.yaml").write_text(
        "data: [{path: data/scenes, weight: 1}, {path: data/captions, weight: 3}]\nbatch_size: 2\naccumulation: 3\n"
        "epochs: 1.5\n"
    )
    steps(config=both / "mixed.yaml", json=True)
    assert json.loads(capsys.readouterr().out) == counted
    assert counted["total_updates"] == count_updates(n, 2, accum=3, epochs=1.5).total_updates
    config = make_config({"model": "tiny", "batch_size": 2, "accumulation": 3, "epochs": 1.5}, "a test")
    plan = make_plan(config, mixture, base_contract("tiny"), Devices("cpu", 1))
    assert plan["updates"]["total"] == counted["total_updates"]
    rows = [f"{what}: {text}" for what, text in plan_rows(plan)]
    assert f"data: 2 sets: {n} samples, 22 pictures" in rows
    assert f": {mixture.drawn[1]} of captions, split train, which has 6: 74% of an epoch" in rows


def test_two_tasks_have_a_loss_and_a_score_each_the_same_in_the_fast_step_and_in_the_plain_one(both: Path) -> None:
    augment = {"scale": 0.3, "crop": 0.2, "hflip": 0.5, "colour": 0.3, "blur": 1, "jpeg": 30}
    found = []
    for fast in (True, False):
        status, run, events = train_here(
            both, f"fast-{fast}", data="scenes:1,captions:1", fast=fast, batch_size=4, accumulation=2, max_steps=3,
            learning_rate=1e-3, eval_samples=4, augment=augment,
        )  # fmt: skip
        assert status == 0
        assert not [event for event in events if event["event"] == "warning"]
        found.append([event for event in events if event["event"] == "step"])
    for one, other in zip(*found, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["loss_by_task"] == pytest.approx(other["loss_by_task"], rel=1e-4)
        low, high = sorted(one["loss_by_task"].values())
        assert one["loss_by_task"].keys() == {"grounding", "caption"} and low < one["loss"] < high
    assert " (grounding " in step_text(found[0][0], 3)
    measured = [event for event in events if event["event"] == "eval"]
    for event in measured:
        assert event["split"] == "scenes/val, captions/val" and event["samples"] == 4
        assert event["metric"] == "mean of Acc@0.5, ROUGE_L"
        parts = event["by_task"]
        assert parts["grounding"]["value"] == event["scores"]["grounding"]["positives"]["Acc@0.5"]
        assert event["value"] == pytest.approx((parts["grounding"]["value"] + parts["caption"]["value"]) / 2)
    assert "caption ROUGE_L" in eval_text(measured[0])
    contract, card = Contract.read(run.adapter), (run.adapter / "README.md").read_text()
    assert (contract.data, contract.tasks) == ("scenes, captions", ("caption", "grounding"))
    assert len(contract.pictures) == 22
    assert "22 pictures of `scenes`, `captions`" in card and "| caption: ROUGE_L |" in card
    kinds = [event["event"] if event["event"] != "note" else event["text"] for event in events]
    drawn = kinds.index(f"the first update as the model sees it: {run.path / 'preview.png'}")
    assert drawn < kinds.index("step") and (run.path / "preview.png").stat().st_size > 0
    assert any("pictures change in each epoch" in text for text in kinds)
    assert load_config(run.config).data == tuple(
        DataSource(path=str(both / "data" / name), weight=1.0) for name in ("scenes", "captions")
    )


def test_the_loss_of_a_task_is_the_mean_over_its_tokens() -> None:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 90, 11, generator=draw)
    labels = torch.randint(0, 11, (3, 90), generator=draw)
    labels[:, :20] = IGNORED
    tasks = [0] * 70 + [2] * 70 + [0] * 70  # a task a row; more tokens than are taken at a time
    losses = TaskLosses(torch.device("cpu"))
    losses.add(logits, {"labels": labels}, tasks)
    found = losses.take()
    first, caption = TASKS[0], TASKS[2]
    expected = nnf.cross_entropy(logits[1, 19:-1], labels[1, 20:])
    assert found[caption] == pytest.approx(float(expected))
    both = nnf.cross_entropy(logits[:, 19:-1].flatten(0, 1), labels[:, 20:].flatten())
    assert (2 * found[first] + found[caption]) / 3 == pytest.approx(float(both))
    assert losses.take() == {}


def test_a_loss_of_a_task_that_is_no_number_is_written_as_text(tmp_path: Path) -> None:
    channel = tmp_path / "channel"
    job = Job(make_config({}, "a test"), (), Run(tmp_path), Devices("cpu", 1), channel, demo=False, dry_run=False)
    job.report({"event": "step", "loss": 1.0, "loss_by_task": {"caption": math.nan, "grounding": 1.0}})
    assert json.loads(channel.read_text())["loss_by_task"] == {"caption": "nan", "grounding": 1.0}


def test_a_stopped_run_of_several_sets_with_changed_pictures_goes_on_exactly(
    both: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {
        "data": "scenes:1,captions:2", "batch_size": 5, "accumulation": 2, "max_steps": 6, "learning_rate": 1e-3,
        "dropout": 0.1, "augment": {"crop": 0.2, "hflip": 0.5, "jpeg": 30},
    }  # fmt: skip
    status, whole, _ = train_here(both, "whole", **settings)
    assert status == 0
    with monkeypatch.context() as patched:
        end_at(patched, 5)  # the first of the second epoch
        assert train_here(both, "cut", **settings)[0] == 128 + 15
    assert train_here(both, "cut", resume=True, **{**settings, "workers": 1})[0] == 0
    file = "adapter/adapter_model.safetensors"
    assert (both / "runs" / "cut" / file).read_bytes() == (whole.path / file).read_bytes()


def test_a_resumed_run_keeps_the_weights_of_its_sets(both: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"batch_size": 2, "accumulation": 1, "max_steps": 3}
    with monkeypatch.context() as patched:
        end_at(patched, 1)
        train_here(both, "cut", data="scenes:1,captions:2", **settings)
    status, _, events = train_here(both, "cut", resume=True, data="scenes,captions", **settings)
    assert status == 1
    assert events[-1]["message"] == (
        "an epoch of this run has 13 of scenes, 25 of captions, and now it would have 32 of scenes, 6 of captions"
    )


def test_sets_that_cannot_be_told_apart_or_give_nothing_are_refused(
    both: Path, scenes: PreparedDataset, tmp_path: Path
) -> None:
    shutil.copytree(scenes.path, tmp_path / "data" / "copy")
    with pytest.raises(UsageError, match="two of the data sets are called scenes"):
        open_mixture(load_config(None, ["data=scenes,copy"]).data, both)
    with pytest.raises(UsageError, match="the weight of captions gives it not one of an epoch's"):
        open_mixture(load_config(None, ["data=scenes:1,captions:1e-9"]).data, both)
    with pytest.raises(DataError, match="does not exist"):
        open_mixture(load_config(None, ["data=scenes,none"]).data, both)


def test_the_best_adapter_is_judged_by_the_mean_over_its_tasks() -> None:
    grounding = {"positives": {"Acc@0.5": 0.5}}
    caption = {"CIDEr": 4.0, "ROUGE_L": 0.3}
    assert measure({"grounding": grounding}) == (
        "Acc@0.5", 0.5, {"grounding": {"metric": "Acc@0.5", "value": 0.5}},
    )  # fmt: skip
    assert measure({"caption": caption})[:2] == ("CIDEr", 4.0)
    name, value, parts = measure({"grounding": grounding, "detection": {"F1@0.5": 0.4}, "caption": caption})
    assert name == "mean of Acc@0.5, F1@0.5, ROUGE_L" and value is not None and math.isclose(value, 0.4)
    assert parts["caption"] == {"metric": "ROUGE_L", "value": 0.3}
    absent = measure({"grounding": {"positives": {"Acc@0.5": None}}, "detection": {"F1@0.5": 0.4}})
    assert absent[1] == 0.4  # nothing is there to be found in the grounding samples


def test_an_adapter_that_finds_nothing_or_rejects_nothing_is_no_better_for_it() -> None:
    def judged(found: float, rejected: float) -> tuple[str, float | None]:
        negatives = {"n": 9, "rejection_rate": rejected}
        return measure({"grounding": {"positives": {"Acc@0.5": found}, "negatives": negatives}})[:2]

    assert judged(0.8, 0.6) == ("mean of Acc@0.5, rejection_rate", pytest.approx(0.7))
    assert judged(0.9, 0.0)[1] == judged(0.0, 0.9)[1] == 0.45


def test_one_set_is_named_as_it_always_was(scenes: PreparedDataset) -> None:
    mixture = Mixture.of([scenes])
    assert mixture.plan()["sha256"].keys() == {"train", "val"}
    assert (mixture.name, mixture.held_out_name, mixture.setting()) == ("scenes", "val", str(scenes.path))
