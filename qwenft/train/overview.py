"""What `runs` shows: the state of each run, read from its events; no torch."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from qwenft.core.events import Event
from qwenft.core.runs import Run, all_runs, open_run
from qwenft.train.checkpoints import complete_checkpoints

State = Literal["finished", "running", "stopped", "failed", "interrupted"]
"""interrupted: it ended without a word, as after kill -9 or a power cut."""
COLUMNS: Final = ("run", "state", "data", "model", "step", "best", "age")


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A run in a few facts; None: not known yet."""

    name: str
    path: str
    state: State
    data: str | None
    model: str | None
    step: int
    total: int | None
    loss: float | str | None
    """Of the last update."""
    metric: str | None
    baseline: float | None
    """The metric at step 0: the base model."""
    best: float | None
    best_step: int | None
    age_s: float
    """Since the last event."""
    checkpoints: tuple[str, ...]
    """The complete ones, oldest first."""
    troubles: tuple[str, ...]
    error: str | None

    def to_json(self) -> dict[str, Any]:
        """One JSON object."""
        return asdict(self)

    def row(self) -> tuple[str, ...]:
        """The cells under COLUMNS."""
        step = f"{self.step}" if self.total is None else f"{self.step} of {self.total}"
        return (self.name, self.state, self.data or "", self.model or "", step, self._best(), age(self.age_s))

    def _best(self) -> str:
        return "" if self.best is None else f"{self.metric} {self.best:.3f}"

    def facts(self) -> list[tuple[str, str]]:
        """All there is to say, as (what, value)."""
        _, state, data, model, step, best, since = self.row()
        rows = [("run", self.path), ("state", f"{state}, last event {since} ago"), ("data", data), ("model", model)]
        rows.append(("step", step if self.loss is None else f"{step}, loss {_number(self.loss)}"))
        if self.baseline is not None:
            rows.append(("base model", f"{self.metric} {self.baseline:.3f}"))
        rows += [("best", f"{best} at step {self.best_step}")] if best else []
        rows += [("checkpoint", path) for path in self.checkpoints]
        rows += [("warning", text) for text in self.troubles]
        return rows + ([("error", self.error)] if self.error else [])

    @property
    def next_command(self) -> str:
        """What one would type now."""
        if self.state == "finished":
            return f"qwenft eval --run {self.name} --baseline"
        return f"tail -f {self.path}/train.log" if self.state == "running" else f"qwenft train --resume {self.name}"


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4f}"


def list_runs(root: Path | None = None) -> list[RunSummary]:
    """All runs under runs/, the one that moved last first."""
    return [summarize(run) for run in all_runs(root)]


def show_run(name_or_path: str, root: Path | None = None) -> RunSummary:
    """One run.  Raises RunError that names the nearest."""
    return summarize(Run(open_run(name_or_path, root).path.resolve()))


def summarize(run: Run) -> RunSummary:
    """Read a run's events and find out how it stands."""
    events = list(run.read_events())
    last: dict[str, Event] = {event["event"]: event for event in events}
    plan, step, adapter = last.get("plan"), last.get("step"), last.get("adapter")
    measured = [event for event in events if event["event"] == "eval"]
    return RunSummary(
        name=run.name,
        path=str(run.path),
        state=_state(run, last),
        data=plan["data"]["name"] if plan else None,
        model=plan["model"] if plan else None,
        step=step["step"] if step else 0,
        total=plan["updates"]["total"] if plan else None,
        loss=step["loss"] if step else None,
        metric=measured[0]["metric"] if measured else None,
        baseline=next((event["value"] for event in measured if event["step"] == 0), None),
        best=adapter["value"] if adapter else None,
        best_step=adapter["step"] if adapter else None,
        age_s=round(max(0.0, time.time() - run.events.stat().st_mtime), 1),
        checkpoints=tuple(str(path) for path in complete_checkpoints(run.checkpoints)),
        troubles=tuple(event["text"] for event in events if event["event"] == "trouble"),
        error=last["error"]["message"] if "error" in last else None,
    )


def _state(run: Run, last: dict[str, Event]) -> State:
    if run.finished:
        return "finished"
    if run.held:
        return "running"
    if "error" in last:
        return "failed"
    return "stopped" if "stopped" in last else "interrupted"


def age(seconds: float) -> str:
    """So long ago, in the largest unit that fits.

    >>> age(4), age(200), age(7300), age(200_000)
    ('4 s', '3 min', '2 h', '2 days')
    """
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= size:
            number = int(seconds / size)
            return f"{number} {'day' if (number, unit) == (1, 'days') else unit}"
    return f"{int(seconds)} s"
