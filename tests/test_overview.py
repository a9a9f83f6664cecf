"""`qwenft runs`: how each run stands, read without torch, also while another process trains in it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from qwenft import cli
from qwenft.core.errors import RunError
from qwenft.core.runs import CONTRACT_FILE, Run
from qwenft.train.checkpoints import publish
from qwenft.train.overview import age, list_runs, show_run
from qwenft.train.resume import plan_resumption

PLAN = {"event": "plan", "data": {"name": "scenes"}, "model": "tiny", "updates": {"total": 9}}
MEASURED = [
    {"event": "eval", "step": 0, "metric": "acc@0.5", "value": 0.25},
    {"event": "step", "step": 3, "loss": 0.5},
    {"event": "eval", "step": 3, "metric": "acc@0.5", "value": 0.75},
    {"event": "adapter", "step": 3, "value": 0.75},
    {"event": "step", "step": 4, "loss": "nan"},
]


def make(root: Path, name: str, *events: dict[str, Any], age_s: float = 0) -> Run:
    run = Run(root / "runs" / name)
    run.path.mkdir(parents=True)
    run.events.touch()
    for event in events:
        run.append_event(event)
    moment = time.time() - age_s
    os.utime(run.events, (moment, moment))
    return run


def five(root: Path) -> None:
    done = make(root, "done", PLAN, *MEASURED, {"event": "finished"}, age_s=90_000)
    done.adapter.mkdir()
    (done.adapter / CONTRACT_FILE).touch()
    make(root, "gone", PLAN, *MEASURED, age_s=4000)
    make(root, "stopped", PLAN, MEASURED[1], {"event": "stopped", "step": 3}, age_s=300)
    make(root, "bad", PLAN, {"event": "error", "message": "the loss is nan"}, age_s=20)
    make(root, "new", age_s=1)
    (root / "runs" / "latest").symlink_to("done")


def test_every_run_is_listed_once_with_its_state(tmp_path: Path) -> None:
    five(tmp_path)
    rows = [found.row() for found in list_runs(tmp_path)]
    assert [row[:2] for row in rows] == [
        ("new", "interrupted"), ("bad", "failed"), ("stopped", "stopped"), ("gone", "interrupted"),
        ("done", "finished"),
    ]  # fmt: skip
    assert rows[0][2:6] == ("", "", "0", "")
    assert rows[3][2:6] == ("scenes", "tiny", "4 of 9", "acc@0.5 0.750")
    assert [row[6] for row in rows[1:]] == ["20 s", "5 min", "1 h", "1 day"]


def test_one_run_is_shown_with_what_there_is_to_say(tmp_path: Path) -> None:
    five(tmp_path)
    run = Run(tmp_path / "runs" / "gone")
    staged = run.path / "staged"
    staged.mkdir()
    run.checkpoints.mkdir()
    publish(staged, run.checkpoints / "step-3")
    facts = show_run("gone", tmp_path).facts()
    assert facts[4:] == [
        ("step", "4 of 9, loss nan"),
        ("base model", "acc@0.5 0.250"),
        ("best", "acc@0.5 0.750 at step 3"),
        ("checkpoint", str(run.checkpoints / "step-3")),
    ]
    assert show_run("bad", tmp_path).facts()[-1] == ("error", "the loss is nan")
    assert show_run("latest", tmp_path).name == "done"
    commands = {name: show_run(name, tmp_path).next_command for name in ("gone", "done")}
    assert commands == {"gone": "qwenft train --resume gone", "done": "qwenft eval --run done --baseline"}
    with pytest.raises(RunError) as caught:
        show_run("gon", tmp_path)
    assert caught.value.hint == "did you mean 'gone'?"


HOLDER = """
import sys, time
from pathlib import Path
from qwenft.core.runs import Run
held = Run(Path(sys.argv[1])).hold()
print("held", flush=True)
time.sleep(60)
"""


def test_a_run_in_work_is_running_until_its_process_is_gone_however_that_ends(tmp_path: Path) -> None:
    run = make(tmp_path, "busy", PLAN, *MEASURED)
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(run.path)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        assert show_run("busy", tmp_path).state == "running"
        assert show_run("busy", tmp_path).next_command == f"tail -f {run.log}"
        with pytest.raises(RunError, match=f"is being trained right now, by process {process.pid}"):
            run.hold()
        with pytest.raises(RunError, match="is being trained right now"):
            plan_resumption("busy", (), {}, tmp_path)
    finally:
        process.kill()
        process.wait()
    assert show_run("busy", tmp_path).state == "interrupted"
    run.hold().close()


def test_the_command_prints_json_and_names_the_next_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    five(tmp_path)
    monkeypatch.chdir(tmp_path)

    def said(*words: str) -> tuple[str, str]:
        cli.app(["runs", *words], standalone_mode=False)
        return tuple(capsys.readouterr())  # type: ignore[return-value]

    out, err = said("--json")
    assert [one["name"] for one in json.loads(out)["runs"]] == ["new", "bad", "stopped", "gone", "done"]
    assert err == ""
    out, _ = said("done", "--json")
    assert (json.loads(out)["best"], json.loads(out)["baseline"], json.loads(out)["total"]) == (0.75, 0.25, 9)
    out, err = said("stopped")
    assert "state\tstopped, last event 5 min ago" in out.splitlines()
    assert err == "next: qwenft train --resume stopped\n"
    out, err = said()
    assert out.splitlines()[0] == "run\tstate\tdata\tmodel\tstep\tbest\tage"
    assert len(out.splitlines()) == 6


def test_no_run_yet_names_the_command_that_makes_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    cli.app(["runs"], standalone_mode=False)
    assert capsys.readouterr().err == "next: qwenft train\n"


def test_reading_runs_loads_no_torch() -> None:
    script = "import sys, qwenft.train.overview, qwenft.train.resume; sys.stdout.write(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "numpy", "safetensors"} & set(done.stdout.split())


def test_an_age_is_told_in_the_largest_unit_that_fits() -> None:
    assert [age(seconds) for seconds in (0, 59.9, 60, 3599, 3600, 86_400, 200_000)] == [
        "0 s", "59 s", "1 min", "59 min", "1 h", "1 day", "2 days",
    ]  # fmt: skip
