"""The plan beside its counts and memory: tokens, small boxes, disk, learning rate; and what is kept as foretold."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from training import train_here

from qwenft.core import devices
from qwenft.core.boxes import PATCH
from qwenft.core.config import make_config
from qwenft.core.devices import Devices, choose_devices
from qwenft.core.events import PlainLines, finished_text, memory_text, plan_rows, sparkline
from qwenft.core.samples import PreparedDataset
from qwenft.model.inputs import Encoder
from qwenft.model.load import base_contract, load_processor
from qwenft.train.checkpoints import prune, publish
from qwenft.train.forecast import disk, learning_rates, sample_tokens, small_boxes
from qwenft.train.launch import train_adapter
from qwenft.train.mixture import Mixture
from qwenft.train.plan import make_plan


def test_tokens_of_a_sample_are_what_the_encoder_makes_of_it(scenes: PreparedDataset) -> None:
    encoder = Encoder(load_processor("tiny"), base_contract("tiny"))
    samples = scenes.samples("train")
    made = sorted(len(encoder.sample(sample, scenes.path).input_ids) for sample in samples)
    found = sample_tokens(samples, encoder)
    assert (found["min"], found["max"]) == (made[0], made[-1])
    assert made[(len(made) - 1) // 2] <= found["median"] <= made[len(made) // 2]


def test_boxes_under_a_patch_are_counted_at_the_budget_of_the_run(scenes: PreparedDataset) -> None:
    contract = base_contract("tiny")
    samples = scenes.samples("train")
    found = small_boxes(samples, contract)
    assert found["of"] == sum(len(sample.objects) for sample in samples)
    assert found["px"] == PATCH
    blurred = small_boxes(samples, contract.with_budget(3136, 3136))
    assert found["boxes"] < blurred["boxes"] <= blurred["of"]


def test_settings_that_do_nothing_here_are_said(workplace: Path) -> None:
    events: list[Any] = []
    settings = {"data": "scenes", "model": "tiny", "gpus": "cpu", "compile": True, "max_tokens": 1}
    train_adapter(make_config(settings, "a test"), root=workplace, dry_run=True, emit=events.append)
    largest = next(event for event in events if event["event"] == "plan")["sample_tokens"]["max"]
    assert [event["text"] for event in events if event["event"] == "warning"] == [
        "compile=true does nothing on the CPU",
        f"max_tokens=1 is under the largest sample's {largest}: such a sample goes alone",
    ]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_learning_rate_foretold_is_the_one_that_was_taken(workplace: Path, schedule: str) -> None:
    settings: dict[str, Any] = {
        "schedule": schedule,
        "warmup": 0.25,
        "max_steps": 8,
        "batch_size": 1,
        "accumulation": 1,
    }
    status, run, events = train_here(workplace, "rates", **settings)
    assert status == 0
    plan = next(event for event in events if event["event"] == "plan")
    taken = [event["learning_rate"] for event in run.read_events() if event["event"] == "step"]
    assert plan["learning_rates"] == pytest.approx(taken)
    assert dict(plan_rows(plan))["learning rate"].startswith("▁")
    assert any(line.startswith("learning rate ▁") for line in PlainLines().lines(plan))


def test_a_row_of_bars_shows_the_course() -> None:
    assert sparkline([0, 1, 2, 4]) == "▁▂▄█"
    assert sparkline([0, 0]) == "▁▁" and sparkline([]) == ""
    rates = learning_rates(make_config({"warmup": 0.1, "learning_rate": 2.0}, "a test"), 1000)
    assert len(rates) == 24 and rates[0] == 0 and max(rates) <= 2.0 and not any(map(math.isnan, rates))


def test_the_disk_that_was_foretold_is_enough_and_not_far_off(workplace: Path) -> None:
    settings = {"rank": 64, "max_steps": 4, "save_every": 1, "batch_size": 2, "accumulation": 1, "keep_last": 2}
    status, run, events = train_here(workplace, "disk", **settings)
    assert status == 0
    plan = next(event for event in events if event["event"] == "plan")
    weights = {p for p in run.path.rglob("*") if p.suffix in (".safetensors", ".pt")}
    taken = sum({p.stat().st_ino: p.stat().st_size for p in weights}.values()) / 1e9
    assert 0.3 * plan["disk"]["needed_gb"] < taken < plan["disk"]["needed_gb"]
    assert plan["disk"]["free_gb"] == pytest.approx(shutil.disk_usage(workplace).free / 1e9, abs=5)


def test_a_disk_that_will_not_do_is_said_before_weights_are_read(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwenft.train.plan.disk", lambda *_: {"needed_gb": 5.0, "free_gb": 1.5})
    _, _, events = train_here(workplace, "tight", max_steps=1)
    (said,) = [event["text"] for event in events if event["event"] == "warning"]
    assert said == "the disk may not hold this run: 5.0 GB of 1.5 free"


def test_what_a_run_takes_grows_with_what_is_kept() -> None:
    few, more, best = (
        disk(make_config(given, "a test"), 10**8, Path.cwd())["needed_gb"]
        for given in ({"keep_last": 1}, {"keep_last": 3}, {"keep_last": 3, "keep_best": True})
    )
    assert (few, more, best) == (3.6, 6.0, 7.2)


def test_the_best_checkpoint_stays_beside_the_newest(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        staged = tmp_path / "staged"
        staged.mkdir()
        (staged / "weights").write_bytes(b"0")
        publish(staged, tmp_path / f"step-{step}")
        prune(tmp_path, 1, best=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-2", "step-4"]


def test_keep_best_keeps_the_checkpoint_of_the_best_evaluation(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([0.1, 0.3, 0.9, 0.4, 0.2])
    monkeypatch.setattr("qwenft.train.trainer.measure", lambda scores: ("acc", next(values), {}))
    settings = {"max_steps": 4, "save_every": 1, "eval_every": 1, "eval_samples": 1, "keep_last": 1, "batch_size": 1}
    status, run, _ = train_here(workplace, "kept", keep_best=True, accumulation=1, **settings)
    assert status == 0
    assert sorted(path.name for path in run.checkpoints.glob("step-*")) == ["step-2", "step-4"]


def test_a_plan_for_gpus_that_are_elsewhere_can_be_made_here(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_installed_gpus", lambda: ({}, "no driver"))
    assert choose_devices("1,3", {}, imagined=True).mapping() == [
        "cuda:0 = GPU 1 (not on this machine)", "cuda:1 = GPU 3 (not on this machine)",
    ]  # fmt: skip
    seen: list[Any] = []
    train_adapter(make_config({"model": "tiny", "gpus": "0"}, "a test"), root=workplace, dry_run=True, emit=seen.append)
    (plan,) = [event for event in seen if event["event"] == "plan"]
    assert plan["devices"] == ["cuda:0 = GPU 0 (not on this machine)"]
    assert "bfloat16 weights" in plan["memory_gib"]["assumes"]
    assert not (workplace / "runs").exists()


def test_the_summary_sets_the_measured_peak_beside_the_estimate(workplace: Path, scenes: PreparedDataset) -> None:
    finished = {
        "event": "finished", "steps": 3, "seconds": 1.0, "value": None, "baseline": None, "memory_gib": 31.8,
        "estimate_gib": 30.0,
    }  # fmt: skip
    assert finished_text(finished) == "finished: 3 updates in 1.0 s, 31.8 GiB of GPU memory (planned: 30.0)"
    assert memory_text({**finished, "estimate_gib": None}) == "31.8 GiB of memory"
    status, run, events = train_here(workplace, "told", max_steps=1)
    assert status == 0
    assert events[-1]["memory_gib"] > 0 and events[-1]["estimate_gib"] is None
    assert f"took {events[-1]['memory_gib']} GiB of memory." in (run.adapter / "README.md").read_text()
    plan = make_plan(make_config({"model": "tiny"}, "a test"), Mixture.of([scenes]), base_contract("tiny"),
                     Devices("cpu", 1))  # fmt: skip
    assert plan["event"] == "plan"
