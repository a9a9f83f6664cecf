"""What a run survives or ends well on: kills, bad numbers, a full disk, a GPU's memory; and when it stops by itself."""

import errno
import importlib.util
import json
import math
import os
import resource
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training import FAST, train_here

from qwenft.core.config import make_config
from qwenft.core.errors import DeviceError
from qwenft.core.runs import Run
from qwenft.core.steps import count_updates
from qwenft.train import launch
from qwenft.train.checkpoints import complete_checkpoints, prune, publish, torn_checkpoints
from qwenft.train.resume import smaller_micro_batch
from qwenft.train.saving import is_stalled
from qwenft.train.watch import EXPLODED, FEW, FLAT_UPDATES, Watch

QUICK = {"batch_size": 1, "accumulation": 2, "max_steps": 4, "save_every": 2}

# Killed at random moments


def load_benchmark() -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks" / "kill_and_resume.py"
    spec = importlib.util.spec_from_file_location("kill_and_resume", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.timeout(300)
def test_two_kills_at_random_moments_change_nothing(workplace: Path) -> None:
    benchmark = load_benchmark()
    settings = {**FAST, **benchmark.SETTINGS, "epochs": 2, "eval_samples": 0}
    status, whole, _ = train_here(workplace, "whole", **settings)
    assert status == 0
    run, killed_at = benchmark.kill_and_resume(workplace, make_config(settings, "a test"), kills=2, seed=1, span_s=0.8)
    assert len(killed_at) == 2
    assert benchmark.adapter_sha256(run) == benchmark.adapter_sha256(whole)
    assert benchmark.steps_of(run) == benchmark.steps_of(whole)


# Numbers that are none, too large, or always the same


def poisoned(monkeypatch: pytest.MonkeyPatch, question: str) -> None:
    """One sample's picture reaches the model as NaN."""
    from qwenft.model.inputs import Encoder

    original = Encoder.sample

    def sample(self: Any, sample: Any, *more: Any) -> Any:
        made = original(self, sample, *more)
        if sample.id == question:
            made.picture.pixel_values_PD.fill_(math.nan)
        return made

    monkeypatch.setattr(Encoder, "sample", sample)


def test_a_loss_that_is_no_number_ends_the_run_and_names_the_sample(
    workplace: Path, scenes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = scenes.samples("train")[5].id
    of_its_picture = [one.id for one in scenes.samples("train") if one.image == scenes.samples("train")[5].image]
    poisoned(monkeypatch, question)
    status, run, events = train_here(workplace, "nan", **{**QUICK, "max_steps": None, "epochs": 1, "save_every": 1})
    assert status == 1
    trouble, error = events[-2:]
    assert (trouble["event"], trouble["kind"]) == ("trouble", "loss")
    assert question in trouble["samples"]
    assert set(trouble["samples"]) <= set(of_its_picture)
    assert (error["kind"], error["hint"]) == ("RunError", f"qwenft train --config {run.config} learning_rate=5e-05")
    assert f"the loss of step {trouble['step']} is nan; samples: {', '.join(trouble['samples'])}" in error["message"]
    made = complete_checkpoints(run.checkpoints)
    assert [int(path.name[5:]) for path in made] == [n for n in (trouble["step"] - 2, trouble["step"] - 1) if n > 0]
    assert not made or str(made[-1]) in error["message"]
    kept = [event["event"] for event in run.read_events()]
    assert kept[-3:] == ["step", "trouble", "error"]


def told(norms: list[float], losses: list[float] | None = None) -> list[Any]:
    watch = Watch()
    values = losses or [1 + n / 10 for n in range(len(norms))]
    batches = [(0.2, ["a", "b"]), (0.7, ["c"])]
    return [
        watch.look(n, loss, norm, lambda: batches) for n, (loss, norm) in enumerate(zip(values, norms, strict=True))
    ]


def test_a_gradient_far_over_the_usual_is_told_with_the_samples_of_the_highest_loss_first() -> None:
    *before, last = told([1.0] * 20 + [EXPLODED * 1.01])
    assert before == [None] * 20
    assert (last.kind, last.ends, last.samples) == ("exploded", False, ("c", "a", "b"))
    assert "101 times the usual 1;" in last.text
    assert told([1.0] * 20 + [EXPLODED])[-1] is None
    assert told([1.0] * (FEW - 1) + [1e9])[-1] is None, "there is nothing usual yet"


@pytest.mark.parametrize("norm", [math.nan, math.inf], ids=["nan", "inf"])
def test_a_gradient_that_is_no_number_ends_the_run(norm: float) -> None:
    (found,) = told([norm])
    assert (found.kind, found.ends, found.samples) == ("gradient", True, ("a", "b", "c"))


def test_a_loss_that_never_moves_is_told_once() -> None:
    found = told([1.0] * 60, [2.5] * 60)
    assert [n for n, trouble in enumerate(found, 1) if trouble] == [FLAT_UPDATES]
    assert found[FLAT_UPDATES - 1].kind == "flat"
    assert found[FLAT_UPDATES - 1].samples == ("a", "b", "c")
    assert told([1.0] * 60, [2.5] * 19 + [2.6] + [2.5] * 40) == [None] * 60


@given(st.lists(st.floats(0.01, 0.5), min_size=1, max_size=60))
def test_an_ordinary_training_raises_no_alarm(norms: list[float]) -> None:
    assert told(norms) == [None] * len(norms)


def test_a_resumed_watch_knows_what_was_usual(workplace: Path) -> None:
    watch = Watch()
    watch.recall([{"event": "step", "loss": 1.0, "grad_norm": 1.0}] * 10)
    found = watch.look(11, 1.0, 1000.0, lambda: [(1.0, ["a"])])
    assert found is not None
    assert found.kind == "exploded"


# A disk that takes no more


@pytest.mark.parametrize("where", ["checkpoint", "adapter"])
def test_a_full_disk_ends_the_run_with_a_message_and_the_last_checkpoint_stands(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    from peft import PeftModel

    original = PeftModel.save_pretrained

    def full(self: Any, folder: Any, **more: Any) -> None:
        original(self, folder, **more)
        if ("checkpoint-4" if where == "checkpoint" else ".adapter.partial") in str(folder):
            raise OSError(errno.ENOSPC, "No space left on device", str(folder))

    monkeypatch.setattr(PeftModel, "save_pretrained", full)
    status, run, events = train_here(workplace, "full", **QUICK)
    assert status == 1
    error = events[-1]
    good = run.checkpoints / ("step-2" if where == "checkpoint" else "step-4")
    assert error["kind"] == "RunError"
    assert "No space left on device" in error["message"]
    assert f"the checkpoint {good} stands" in error["message"]
    assert error["hint"] == "qwenft train --resume full"
    assert complete_checkpoints(run.checkpoints)[-1] == good
    assert not (run.path / ".adapter.partial").exists()
    assert not list((run.checkpoints / ".staging").glob("*")), "what was half written takes the room that is missing"
    monkeypatch.undo()
    status, run, _ = train_here(workplace, "full", resume=True, **QUICK)
    assert status == 0
    assert run.finished


def test_a_disk_that_takes_half_a_file_is_no_traceback_either(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.save and safetensors do not raise OSError: a limit on the file size makes both fail in earnest."""
    from qwenft.train.trainer import AdapterTrainer

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    original = AdapterTrainer._save_optimizer_and_scheduler

    def limited(self: Any, folder: str) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
        try:
            original(self, folder)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    monkeypatch.setattr(AdapterTrainer, "_save_optimizer_and_scheduler", limited)
    status, run, events = train_here(workplace, "half", **QUICK)
    assert status == 1
    assert "the checkpoint of step 2 could not be written" in events[-1]["message"]
    assert "there is no checkpoint yet" in events[-1]["message"]
    assert not run.checkpoints.exists() or complete_checkpoints(run.checkpoints) == []


def test_a_folder_that_became_read_only_is_told(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Run, event: Any) -> None:
        if event["event"] == "step":
            raise OSError(errno.EROFS, "Read-only file system", str(self.events))

    monkeypatch.setattr(Run, "append_event", refuse)
    status, run, events = train_here(workplace, "readonly", **QUICK)
    assert status == 1
    assert events[-1]["message"].startswith(f"events.jsonl could not be written to {run.path}: Read-only file system")


def test_a_place_where_no_run_can_be_made_is_told(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Path.mkdir

    def refuse(self: Path, *arguments: Any, **more: Any) -> None:
        if self.name == "nowhere":
            raise OSError(errno.EROFS, "Read-only file system", str(self))
        original(self, *arguments, **more)

    monkeypatch.setattr(Path, "mkdir", refuse)
    status, run, events = train_here(workplace, "nowhere", **QUICK)
    assert status == 1
    assert events[-1]["message"] == f"the run's folder {run.path} cannot be made: Read-only file system"


def test_a_log_that_cannot_be_written_is_said_once_and_ends_nothing(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = workplace / "runs" / "x"
    (run / "train.log").mkdir(parents=True)  # opening it as a file fails
    worker = "import sys; [print(n, flush=True) for n in range(3)]"
    monkeypatch.setattr(launch, "_command", lambda job, devices: [sys.executable, "-c", worker])
    monkeypatch.setattr(launch, "new_run", lambda *_: Run(run))
    events: list[Any] = []
    launch.train_adapter(make_config({"model": "tiny", "gpus": "cpu"}, "a test"), root=workplace, emit=events.append)
    assert [event["event"] for event in events] == ["waiting", "warning"]
    assert "train.log cannot be written" in events[1]["text"]


def test_the_newest_checkpoints_stay_and_torn_older_ones_go(tmp_path: Path) -> None:
    for step in (2, 4, 6, 8, 10):
        staged = tmp_path / "staged"
        staged.mkdir()
        (staged / "weights").write_bytes(b"0123456789")
        publish(staged, tmp_path / f"step-{step}")
    for step in (4, 10):
        (tmp_path / f"step-{step}" / "weights").unlink()
    prune(tmp_path, keep_last=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-10", "step-6", "step-8"]
    assert [path.name for path in torn_checkpoints(tmp_path)] == ["step-10"]


# A GPU's memory


def test_out_of_memory_halves_the_micro_batch_and_trains_the_same(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker runs in this process, and its GPU has room for one sample at a time."""
    from qwenft.train.trainer import AdapterTrainer

    original = AdapterTrainer.training_step

    def small(self: Any, model: Any, inputs: Any, *more: Any) -> Any:
        if max(len(part.names) for part in inputs["update"].micro_batches) > 1 and self.state.global_step == 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB\nmore")
        return original(self, model, inputs, *more)

    monkeypatch.setattr(AdapterTrainer, "training_step", small)
    settings = {**FAST, **QUICK, "batch_size": 4, "accumulation": 1, "data": "scenes", "save_every": 1, "fast": False}
    status, _, events = train_here(workplace, "plain", **settings)
    assert status == 1
    assert (events[-1]["kind"], events[-1]["out_of_memory"]) == ("DeviceError", True)
    assert events[-1]["hint"].startswith("batch_size=2 accumulation=2 trains the same")
    in_process(monkeypatch)
    seen: list[Any] = []
    config = make_config({**settings, "name": "auto", "auto_micro_batch": True}, "a test")
    run = launch.train_adapter(config, root=workplace, emit=seen.append)
    said = [event["text"] for event in seen if event["event"] == "warning"]
    assert [text.partition(": ")[2].partition(";")[0] for text in said] == [
        "going on with batch_size=2 accumulation=2", "going on with batch_size=1 accumulation=4",
    ]  # fmt: skip
    kept = list(run.read_events())
    assert [event["step"] for event in kept if event["event"] == "step"] == [1, 2, 3, 4]
    assert [event["step"] for event in kept if event["event"] == "resumed"] == [2, 2]
    expected = {"batch_size": 1, "devices": 1, "accumulation": 4, "effective": 4, "row_tokens": None, "compiled": False}
    assert kept[0]["batch"] == expected
    assert "batch_size: 1 " in run.config.read_text()
    monkeypatch.setattr(AdapterTrainer, "training_step", original)
    _, reference, plain = train_here(workplace, "roomy", **settings)
    losses = [[e["loss"] for e in listed if e["event"] == "step"] for listed in (kept, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert reference.finished and run.finished


def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent's worker runs here, with what is patched here."""
    from training import own_signals

    from qwenft.train import worker

    class Here:
        def __init__(self, command: list[str], **more: Any) -> None:
            self.stdout: list[bytes] = []
            self.pid = os.getpid()
            with own_signals():
                self.returncode = worker.main([command[-1]])

        def poll(self) -> int:
            return self.returncode

    monkeypatch.setattr(launch.subprocess, "Popen", Here)


def test_without_the_setting_an_out_of_memory_ends_the_run(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = (
        "import json, sys; job = json.load(open(sys.argv[1])); "
        "open(job['channel'], 'a').write(json.dumps({'event': 'error', 'kind': 'DeviceError', 'message': 'out', "
        "'hint': '', 'out_of_memory': True}) + '\\n'); sys.exit(1)"
    )
    starts: list[Any] = []

    def command(job: Path, devices: Any) -> list[str]:
        starts.append(json.loads(job.read_text())["config"]["batch_size"])
        return [sys.executable, "-c", fake, str(job)]

    monkeypatch.setattr(launch, "_command", command)
    for auto, expected in ((False, [12]), (True, [12, 6, 3, 1])):
        starts.clear()
        config = make_config({"model": "tiny", "gpus": "cpu", "batch_size": 12, "auto_micro_batch": auto}, "a test")
        with pytest.raises(DeviceError, match="out"):
            launch.train_adapter(config, root=workplace)
        assert starts == expected


@given(
    st.integers(1, 500), st.integers(1, 32), st.integers(1, 8), st.integers(1, 4), st.floats(0.1, 3),
)  # fmt: skip
def test_a_smaller_micro_batch_keeps_the_update_count(
    samples: int, batch_size: int, accumulation: int, processes: int, epochs: float
) -> None:
    config = make_config({"batch_size": batch_size, "accumulation": accumulation}, "a test")
    smaller = smaller_micro_batch(config, None)
    assert (smaller is None) == (batch_size == 1)
    if smaller is not None:
        before, after = (
            count_updates(samples, c.batch_size, num_gpus=processes, accum=c.accumulation, epochs=epochs)
            for c in (config, smaller)
        )
        assert smaller.batch_size < batch_size
        assert (before.updates_per_epoch, before.total_updates, before.samples_per_update) == (
            after.updates_per_epoch, after.total_updates, after.samples_per_update,
        )  # fmt: skip


# Early stopping


def evals(*values: float | None) -> list[dict[str, Any]]:
    return [{"step": step, "value": value} for step, value in enumerate(values)]


@pytest.mark.parametrize(
    ("values", "patience", "stalled"),
    [
        ((0.9, 0.1, 0.1, 0.1), None, False),
        ((0.9,), 1, False),
        ((0.9, 0.1), 1, False),
        ((0.9, 0.1, 0.1), 1, True),
        ((0.9, 0.1, 0.2, 0.2), 2, False),
        ((0.9, 0.1, 0.3, 0.2, 0.3), 2, True),
        ((0.0, 0.3, None, None), 1, False),
    ],
    ids=["unset", "the base model", "the first", "a tie", "once", "twice", "not measured"],
)
def test_a_run_stalls_when_evaluations_bring_nothing_better(
    values: tuple[float | None, ...], patience: int | None, stalled: bool
) -> None:
    assert is_stalled(evals(*values), patience) == stalled


def test_early_stopping_ends_a_run_as_a_finished_one(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([0.1, 0.5, 0.4, 0.3, 0.9])
    monkeypatch.setattr("qwenft.train.trainer.measure", lambda scores: ("acc", next(values), {}))
    settings = {**QUICK, "max_steps": 9, "eval_every": 1, "eval_samples": 1, "early_stopping": 2}
    status, run, events = train_here(workplace, "early", **settings)
    assert status == 0
    assert run.finished
    assert (events[-1]["steps"], events[-1]["best_step"], events[-1]["value"]) == (3, 1, 0.5)
    assert "stopping early: 2 evaluations brought nothing better" in [e.get("text") for e in events]
    # killed between its last checkpoint and its end, it does not train on
    kept = [event for event in run.read_events() if event["event"] != "finished"]
    run.rewrite_events(kept)
    status, run, events = train_here(workplace, "early", resume=True, **settings)
    assert status == 0
    assert [event for event in events if event["event"] == "step"] == []
    assert (events[-1]["steps"], events[-1]["best_step"], events[-1]["value"]) == (3, 1, 0.5)
