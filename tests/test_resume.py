"""Resume: stopped anywhere and gone on with is the same as never stopped, to the byte."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from training import FAST, end_at, train_here

from qwenft import cli
from qwenft.core.config import make_config
from qwenft.core.errors import ConfigError, RunError, UsageError
from qwenft.core.runs import Run
from qwenft.model.fetch import TINY_FOLDER
from qwenft.train.checkpoints import complete_checkpoints
from qwenft.train.launch import resume_training, train_adapter
from qwenft.train.resume import plan_resumption

EXACT = {
    "batch_size": 3, "accumulation": 2, "epochs": 2, "dropout": 0.3, "learning_rate": 3e-3, "save_every": 1000,
    "eval_samples": 1, "max_tokens": 250,
}  # fmt: skip
"""26 or more questions: an epoch's last update holds fewer than the others; a picture may be cut between two rows."""


def trained(run: Run) -> bytes:
    return (run.adapter / "adapter_model.safetensors").read_bytes()


def told(run: Run) -> list[dict[str, Any]]:
    """A run's events without what a clock or a meter says, and without the resumes themselves."""
    clocks = {"seconds", "samples_per_s", "tokens_per_s", "wait_share", "memory_gib", "path", "adapter"}
    kept = (event for event in run.read_events() if event["event"] not in ("resumed", "plan", "checkpoint"))
    return [{key: value for key, value in event.items() if key not in clocks} for event in kept]


@pytest.fixture(scope="module")
def whole(scenes: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run, int]:
    """A run that never stopped: its folder, run and updates an epoch."""
    root = tmp_path_factory.mktemp("whole")
    (root / "data").mkdir()
    (root / "data" / "scenes").symlink_to(scenes.path)
    status, run, events = train_here(root, "whole", **EXACT)
    assert status == 0
    plan = next(event for event in events if event["event"] == "plan")
    return root, run, plan["updates"]["per_epoch"]


@pytest.mark.parametrize(
    ("epochs", "updates", "workers"),
    [(0, 1, (0, 0)), (0, 2, (2, 0)), (1, 0, (0, 2)), (1, 3, (2, 2)), (2, -1, (0, 0))],
    ids=[
        "in the first update", "inside the first epoch", "at an epoch's end", "inside a later epoch",
        "before the last update",
    ],
)  # fmt: skip
def test_stopped_and_resumed_is_never_stopped(
    whole: tuple[Path, Run, int],
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    epochs: int,
    updates: int,
    workers: tuple[int, int],
) -> None:
    _, reference, an_epoch = whole
    with monkeypatch.context() as patch:
        end_at(patch, epochs * an_epoch + updates)
        status, run, _ = train_here(workplace, "cut", **EXACT, workers=workers[0])
    assert status == 128 + signal.SIGTERM
    stopped = next(event for event in run.read_events() if event["event"] == "stopped")
    (checkpoint,) = complete_checkpoints(run.checkpoints)
    assert stopped["checkpoint"] == str(checkpoint)
    assert 0 < stopped["step"] < 2 * whole[2]
    status, run, _ = train_here(workplace, "cut", resume=True, **EXACT, workers=workers[1])
    assert status == 0
    assert trained(run) == trained(reference)
    assert told(run) == told(reference)
    assert [event["step"] for event in run.read_events() if event["event"] == "resumed"] == [stopped["step"]]


class Killed(BaseException):
    """What ends a process here ends it at once: nothing is saved on the way out."""


SMALL = {
    "batch_size": 2, "accumulation": 2, "max_steps": 6, "dropout": 0.2, "learning_rate": 3e-3, "save_every": 2,
    "eval_samples": 1, "eval_every": 1,
}  # fmt: skip


def killed(root: Path, monkeypatch: pytest.MonkeyPatch, update: int, name: str = "cut", **settings: Any) -> Run:
    """A run of six updates, with a checkpoint after every second, that was killed inside an update."""
    with monkeypatch.context() as patch, pytest.raises(Killed):
        end_at(patch, update, Killed())
        train_here(root, name, **SMALL, **settings)
    return Run(root / "runs" / name)


def test_a_killed_run_goes_on_from_its_newest_whole_checkpoint_with_the_best_adapter_of_then(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {0: 0.1, 1: 0.2, 2: 0.5, 3: 0.9, 4: 0.4, 5: 0.3, 6: 0.3}
    monkeypatch.setattr(
        "qwenft.train.trainer.measure", lambda scores: ("acc", values[len(asked) - 1 if asked else 0], {})
    )  # fmt: skip
    asked: list[int] = []
    from qwenft.train.trainer import Examiner

    measure = Examiner.measure

    def counted(self: Any, step: int) -> Any:
        asked[:] = range(step + 1)
        return measure(self, step)

    monkeypatch.setattr(Examiner, "measure", counted)
    status, reference, _ = train_here(workplace, "whole", **SMALL)
    assert status == 0
    run = killed(workplace, monkeypatch, update=5)
    torn = run.checkpoints / "step-4"
    (torn / "optimizer.pt").write_bytes((torn / "optimizer.pt").read_bytes()[:-1])
    assert [event["step"] for event in run.read_events() if event["event"] == "adapter"] == [1, 2, 3]
    plan = plan_resumption(None, (), {}, workplace)
    assert plan.run == run
    assert [event["text"] for event in plan.aloud] == [f"{torn} is not whole and is passed over"]
    status, _, _ = train_here(workplace, "cut", resume=True, **{**SMALL, "max_steps": 6})
    assert status == 0
    assert trained(run) == trained(reference)
    assert told(run) == told(reference)
    assert next(e for e in run.read_events() if e["event"] == "finished")["best_step"] == 3
    with pytest.raises(RunError, match="is finished") as caught:
        plan_resumption("cut", (), {}, workplace)
    assert caught.value.hint == "qwenft eval --run cut --baseline"


def test_a_checkpoint_carries_the_best_adapter_of_its_time(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = killed(workplace, monkeypatch, update=4)
    kept = (run.checkpoints / "step-2" / "best" / "adapter" / "adapter_model.safetensors").read_bytes()
    (run.adapter / "adapter_model.safetensors").unlink()
    (run.adapter / "adapter_model.safetensors").write_bytes(b"of a later step")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        end_at(patch, 1, Killed())
        train_here(workplace, "cut", resume=True, **SMALL)
    assert trained(run) == kept


def test_without_a_checkpoint_it_starts_again_in_the_same_folder(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**SMALL, "save_every": 100, "max_steps": 3}
    status, reference, _ = train_here(workplace, "whole", **settings)
    assert status == 0
    with monkeypatch.context() as patch, pytest.raises(Killed):
        end_at(patch, 3, Killed())
        train_here(workplace, "cut", **settings)
    status, run, events = train_here(workplace, "cut", resume=True, **settings)
    assert status == 0
    assert trained(run) == trained(reference)
    assert told(run) == told(reference)
    assert [e["step"] for e in events if e["event"] == "eval"] == [1, 2, 3], "the base model was measured already"


def test_only_settings_that_cannot_change_the_result_may_be_given(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = killed(workplace, monkeypatch, update=1)
    with pytest.raises(ConfigError, match="learning_rate, rank of the run cut cannot change") as caught:
        plan_resumption("cut", ["learning_rate=1", "rank=8", "workers=2"], {}, workplace)
    assert "qwenft train --resume cut" in caught.value.hint
    with pytest.raises(ConfigError, match="name of the run cut"):
        plan_resumption("cut", [], {"name": "other"}, workplace)
    plan = plan_resumption(str(run.path), ["workers=2", "keep_last=5", "rank=4"], {"gpus": "cpu"}, workplace)
    assert (plan.config.workers, plan.config.keep_last, plan.aloud) == (2, 5, ())
    with pytest.raises(UsageError, match=r"2 x 1 x 2 = 4, and 4 x 1 x 2 = 8 is another update"):
        plan_resumption("cut", ["batch_size=4"], {}, workplace)
    plan = plan_resumption("cut", ["batch_size=1", "accumulation=4"], {}, workplace)
    assert plan.aloud[0]["text"].startswith("batch x devices x accumulation: 2 x 1 x 2 = 4 becomes 1 x 1 x 4 = 4;")
    plan = plan_resumption("cut", [], {"gpus": "cpu:2"}, workplace)
    assert (plan.config.batch_size, plan.config.accumulation, plan.devices.processes) == (2, 1, 2)
    with pytest.raises(UsageError, match=r"2 x 3 x 2 = 12 is another update"):
        plan_resumption("cut", [], {"gpus": "cpu:3"}, workplace)


def test_a_changed_data_set_or_base_model_is_refused(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"
    shutil.copytree(TINY_FOLDER, model)
    run = killed(workplace, monkeypatch, update=4, model=str(model))
    before = run.events.read_bytes()
    moved = tmp_path / "moved"
    shutil.copytree((workplace / "data" / "scenes").resolve(), moved)
    (workplace / "data" / "scenes").unlink()
    assert plan_resumption("cut", [], {"data": str(moved)}, workplace).mixture.datasets[0].path == moved
    lines = (moved / "train.jsonl").read_text().splitlines(keepends=True)
    (moved / "train.jsonl").write_text("".join(lines[::-1]))
    status, _, events = train_here(workplace, "cut", resume=True, **SMALL, model=str(model), data=str(moved))
    assert status == 1
    assert events[-1]["kind"] == "DataError"
    assert "train changed" in events[-1]["message"]
    (moved / "train.jsonl").write_text("".join(lines))
    config = json.loads((model / "config.json").read_text())
    config["text_config"]["rope_parameters"]["rope_theta"] = 11.0
    (model / "config.json").write_text(json.dumps(config))
    status, _, events = train_here(workplace, "cut", resume=True, **SMALL, model=str(model), data=str(moved))
    assert status == 1
    assert events[-1]["kind"] == "ModelError"
    assert run.events.read_bytes() == before, "a run that is refused is left as it was"


def test_nothing_to_resume_is_said(workplace: Path) -> None:
    with pytest.raises(RunError, match="nothing to resume") as caught:
        resume_training(root=workplace)
    assert caught.value.hint == "qwenft train"


@pytest.mark.timeout(400)
def test_two_processes_stop_and_go_on_inside_a_later_epoch(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {
        **FAST, "gpus": "cpu:2", "batch_size": 2, "accumulation": 2, "max_steps": 8, "dropout": 0.3,
        "learning_rate": 3e-3, "save_every": 5, "keep_last": 9, "data": "scenes",
    }  # fmt: skip
    reference = train_adapter(make_config({**settings, "name": "whole"}, "a test"), root=workplace)
    per_epoch = next(e for e in reference.read_events() if e["event"] == "plan")["updates"]["per_epoch"]
    assert 5 % per_epoch, "step 5 is an epoch's end: nothing is skipped"
    assert per_epoch < 5
    copy = workplace / "runs" / "cut"
    shutil.copytree(reference.path, copy)
    for late in ("adapter", "checkpoints/step-8", "curves.png", ".lock"):
        path = copy / late
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    seen: list[Any] = []
    run = resume_training("cut", ["workers=2"], root=workplace, emit=seen.append)
    assert [e["step"] for e in seen if e["event"] == "step"] == [6, 7, 8]
    assert trained(run) == trained(reference)
    assert told(run) == told(reference)
    assert "going on after step 5" in run.log.read_text()


@pytest.mark.parametrize(
    ("words", "run", "overrides", "options"),
    [
        (["--resume"], None, [], {}),
        (["--resume", "--dry-run"], None, [], {}),
        (["--resume", "workers=1"], None, ["workers=1"], {}),
        (["--resume", "mine", "workers=1"], "mine", ["workers=1"], {}),
        (["--gpus", "cpu", "--resume=mine"], "mine", [], {"gpus": "cpu"}),
    ],
    ids=["nothing behind", "an option behind", "a setting behind", "a name", "an equals sign"],
)
def test_the_option_takes_a_name_or_none(
    monkeypatch: pytest.MonkeyPatch, words: list[str], run: str | None, overrides: list[str], options: dict[str, str]
) -> None:
    asked: list[Any] = []

    def resume(which: str | None, settings: Any, **more: Any) -> None:
        given = {key: more[key] for key in ("data", "model", "name", "gpus", "epochs") if more[key] is not None}
        asked.append((which, list(settings), given))
        raise RunError("enough")

    monkeypatch.setattr("qwenft.train.launch.resume_training", resume)
    with pytest.raises(RunError, match="enough"):
        cli.app(["train", *words], standalone_mode=False)
    assert asked == [(run, overrides, options)]


def test_a_configuration_beside_resume_is_refused() -> None:
    with pytest.raises(UsageError, match="a run has its own"):
        cli.app(["train", "--resume", "mine", "--config", "a.yaml"], standalone_mode=False)
