"""Going on with a run: which one, from where, under which settings, and what its events keep; no torch."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from qwenft.core.config import TrainConfig, load_config
from qwenft.core.devices import ALONE, Devices, Machines, choose_devices
from qwenft.core.errors import ConfigError, DataError, ModelError, RunError, UsageError
from qwenft.core.events import Event, note, warning
from qwenft.core.runs import Run, all_runs, open_run
from qwenft.core.steps import count_updates
from qwenft.train.checkpoints import complete_checkpoints, step_of, torn_checkpoints
from qwenft.train.mixture import Mixture, open_mixture

FREE: Final = frozenset(
    {"data", "workers", "gpus", "max_tokens", "save_every", "keep_last", "keep_best", "auto_micro_batch", "report_to"}
)
"""Settings that a resumed run may change: none changes what is learned.  `data` may have moved: its content is held
against the run's.  batch_size and accumulation may change together, as long as each update keeps its samples."""
MICRO: Final = ("batch_size", "accumulation")
_LEFT_OUT: Final = frozenset({"stopped", "finished", "error"})
"""What a run that goes on has no longer behind it."""


@dataclass(frozen=True)
class Resumption:
    """How a run goes on."""

    run: Run
    config: TrainConfig
    devices: Devices
    mixture: Mixture
    aloud: tuple[Event, ...]
    """What a person should know."""


def plan_resumption(
    run: str | None, overrides: Iterable[str], options: Mapping[str, Any], root: Path, machines: Machines = ALONE
) -> Resumption:
    """Find out how a run goes on.  run: a name or path; None: the newest that has not finished.

    Raises RunError for one that is finished, in work or not there, ConfigError for a setting that would change it.
    """
    chosen = _unfinished(run, root, first=machines.number == 0)
    before = load_config(chosen.config)
    config = load_config(chosen.config, overrides, **options)
    changed = {key for key in type(config).model_fields if getattr(config, key) != getattr(before, key)}
    refused = sorted(changed - FREE - set(MICRO))
    if refused:
        raise ConfigError(
            f"{', '.join(refused)} of the run {chosen.name} cannot change while it goes on; what can: "
            f"{', '.join(sorted(FREE))}, and batch_size with accumulation",
            hint=f"qwenft train --resume {chosen.name}, or a new run with other settings",
        )
    devices = replace(choose_devices(config.gpus), machines=machines)
    mixture = open_mixture(config.data, root)
    num_samples = len(mixture.samples)  # a broken line is found before torch is loaded
    config, aloud = _same_updates(chosen, before, config, devices, num_samples)
    torn = [warning(f"{path} is not whole and is passed over") for path in torn_checkpoints(chosen.checkpoints)]
    return Resumption(chosen, config, devices, mixture, (*torn, *aloud))


def _unfinished(name: str | None, root: Path, *, first: bool) -> Run:
    if name is None:
        waiting = [run for run in all_runs(root) if not run.finished]
        if not waiting:
            raise RunError(
                f"no run under {root / 'runs'} is unfinished: there is nothing to resume", hint="qwenft train"
            )
        run = waiting[0]
    else:
        run = open_run(name, root)
        run = Run(run.path.resolve())
    if run.finished:
        raise RunError(f"the run {run.path} is finished", hint=f"qwenft eval --run {run.name} --baseline")
    if run.held and first:  # on another machine it is the first one that holds it
        raise RunError(
            f"the run {run.path} is being trained right now", hint=f"qwenft runs {run.name}, or tail -f {run.log}"
        )
    if not run.config.is_file():
        raise RunError(f"the run {run.path} has no {run.config.name}: it ended before it began", hint="qwenft train")
    return run


def _same_updates(
    run: Run, before: TrainConfig, config: TrainConfig, devices: Devices, num_samples: int
) -> tuple[TrainConfig, list[Event]]:
    """Hold that every update keeps its samples, with another number of processes too; say what changes."""
    plan = first_plan(run.read_events())
    batch = plan["batch"] if plan else {"devices": devices.world, **before.model_dump(include=set(MICRO))}
    was = (batch["batch_size"], batch["devices"], batch["accumulation"])
    wanted, micro = math.prod(was), config.batch_size * devices.world
    if was[1] != devices.world and config.accumulation == was[2] and wanted % micro == 0:
        config = config.model_copy(update={"accumulation": wanted // micro})
    now = (config.batch_size, devices.world, config.accumulation)
    if config.engine == "deepspeed" and was[1] != devices.world and newest_checkpoint(run):
        raise UsageError(
            f"DeepSpeed's checkpoints are divided among the {was[1]} processes that made them, and here are "
            f"{devices.world}",
            hint=f"qwenft train --resume {run.name} on {was[1]} devices",
        )
    if was == now:
        return config, []
    counts = [
        count_updates(num_samples, b, num_gpus=n, accum=a, epochs=config.epochs, max_steps=config.max_steps)
        for b, n, a in (was, now)
    ]
    keys = ("samples_per_update", "updates_per_epoch", "total_updates")
    if any(getattr(counts[0], key) != getattr(counts[1], key) for key in keys):
        raise UsageError(
            f"batch x devices x accumulation: this run has {_product(was)}, and {_product(now)} is another update",
            hint=f"qwenft train --resume {run.name} batch_size={was[0]} accumulation={was[2]}",
        )
    return config, [
        note(
            f"batch x devices x accumulation: {_product(was)} becomes {_product(now)}; each update keeps its samples, "
            "dropout draws other numbers and sums are rounded otherwise"
        )
    ]


def _product(numbers: tuple[int, ...]) -> str:
    return f"{' x '.join(str(n) for n in numbers)} = {math.prod(numbers)}"


def smaller_micro_batch(config: TrainConfig, plan: Event | None) -> TrainConfig | None:
    """Less at a time, with each update as it is; None: it is one sample already.

    Packed rows of half as many tokens; or half the batch_size (of an odd one a third, a fifth …) and as much more
    accumulation, so that the updates' number stays: ceil(ceil(n / b) / a) is ceil(n / (b x a)).
    """
    if config.fast and plan is not None and plan["batch"].get("row_tokens"):
        tokens = plan["batch"]["row_tokens"] // 2
        return config.model_copy(update={"max_tokens": tokens}) if tokens > plan["image_tokens"]["max"] else None
    parts = next((k for k in range(2, config.batch_size + 1) if config.batch_size % k == 0), None)
    if parts is None:
        return None
    return config.model_copy(
        update={"batch_size": config.batch_size // parts, "accumulation": config.accumulation * parts}
    )


def newest_checkpoint(run: Run) -> Path | None:
    """Where a run goes on from; None: from the beginning."""
    made = complete_checkpoints(run.checkpoints)
    return made[-1] if made else None


def first_plan(events: Iterable[Event]) -> Event | None:
    """The plan that a run was begun with."""
    return next((event for event in events if event["event"] == "plan"), None)


def events_until(events: Iterable[Event], checkpoint: Path | None) -> list[Event]:
    """What stays of a run's events when it goes on from a checkpoint: each step will stand once."""
    last = step_of(checkpoint) if checkpoint else 0
    return [e for e in events if e["event"] not in _LEFT_OUT and e.get("step", 0) <= last]


def check_same(before: Event | None, now: Event) -> None:
    """Hold the plan of a run against that of its resumption.  Raises DataError or ModelError."""
    if before is None:
        return
    changed = [name for name, value in before["data"]["sha256"].items() if now["data"]["sha256"].get(name) != value]
    if changed:
        raise DataError(
            f"{now['data']['path']} is not what this run was begun with: {', '.join(changed)} changed",
            hint="prepare it as it was, or begin a new run: qwenft train",
        )
    drawn = [[(one["name"], one["drawn"]) for one in plan["data"].get("sets", ())] for plan in (before, now)]
    if drawn[0] and drawn[0] != drawn[1]:
        told = (", ".join(f"{number} of {name}" for name, number in sets) for sets in drawn)
        raise DataError(
            "an epoch of this run has {}, and now it would have {}".format(*told),
            hint="give each data set its weight, in their order: data=a:0.7,b:0.3",
        )
    if before["base_sha256"] != now["base_sha256"]:
        raise ModelError(
            f"the base model {now['model']} is not the one this run was begun with: its config.json changed",
            hint="begin a new run: qwenft train",
        )
