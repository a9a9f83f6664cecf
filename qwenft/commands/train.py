"""`qwenft train`: an adapter from a prepared data set."""

from pathlib import Path
from typing import Annotated, Any, Final

import typer

from qwenft.commands.complete import complete_override, complete_run
from qwenft.commands.options import Data, Debug, Gpus, Json, Model, command_line, open_screen
from qwenft.core.errors import UsageError
from qwenft.core.usage import check_overrides

SETTINGS: Final = (
    "data, model, name, seed, epochs, max_steps, batch_size, accumulation, learning_rate, schedule, warmup, "
    "weight_decay, max_grad_norm, method, rank, alpha, dropout, parts, quantize, min_pixels, max_pixels, workers, "
    "gpus, engine, zero_stage, dtype, fast, max_tokens, compile, checkpointing, save_every, keep_last, keep_best, "
    "eval_every, eval_samples, early_stopping, auto_micro_batch, report_to, augment.scale, augment.crop, "
    "augment.hflip, augment.colour, augment.blur, augment.jpeg"
)
"""Of core/config.py, spelled out: importing it for the help would cost more than the rest of the help."""
UNTESTED: Final = "Untested on GPUs: engine=fsdp, engine=deepspeed, quantize=4bit, method=full, --nnodes."
"""What was run on CPUs only: the table in docs/engines.md."""


def train(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE", help=f"Any setting: {SETTINGS}. {UNTESTED}", autocompletion=complete_override
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", help="YAML file with settings.")] = None,
    data: Data = None,
    model: Model = None,
    name: Annotated[str | None, typer.Option("--name", help="Of the run, under runs/.")] = None,
    gpus: Gpus = None,
    epochs: Annotated[float | None, typer.Option("--epochs", help="Passes over the training split.")] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            "--resume",
            help="Go on with this run; without a name: with the newest unfinished one.",
            autocompletion=complete_run,
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.")] = False,
    nnodes: Annotated[
        int, typer.Option("--nnodes", min=1, help="Machines that train together (tried on one, as two launchers).")
    ] = 1,
    node_rank: Annotated[int | None, typer.Option("--node-rank", help="This machine's number, from 0.")] = None,
    rdzv: Annotated[str | None, typer.Option("--rdzv", help="host:port of machine 0, where they meet.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Train a LoRA adapter on a prepared data set.

    Example: qwenft train --gpus 1,3 batch_size=4 learning_rate=2e-4
    """
    with open_screen() as screen:
        check_overrides(overrides or ())
        from qwenft.core.config import load_config
        from qwenft.core.devices import choose_machines
        from qwenft.train.launch import resume_training, train_adapter

        given: dict[str, Any] = {"data": data, "model": model, "name": name, "gpus": gpus, "epochs": epochs}
        last: dict[str, Any] = {}

        def emit(event: Any) -> None:
            last[event["event"]] = event
            screen.emit(event)

        machines = choose_machines(nnodes, node_rank, rdzv)
        if resume is None:
            settings = load_config(config, overrides or (), **given)
            run = train_adapter(settings, dry_run=dry_run, machines=machines, emit=emit)
        elif config is not None:
            raise UsageError(
                "--config beside --resume: a run has its own", hint=f"qwenft train --resume {resume}".rstrip()
            )
        else:
            run = resume_training(
                resume or None, overrides or (), dry_run=dry_run, machines=machines, emit=emit, **given
            )
        if dry_run:
            screen.result(last["plan"]) if json else screen.hint(command_line(without="--dry-run"))
            return
        if machines.number:
            screen.hint(f"qwenft runs {run.name}")  # machine 0 has the results
            return
        finished = last["finished"]
        if json:
            screen.result(
                {"run": run.name, "path": str(run.path), **{k: v for k, v in finished.items() if k != "event"}}
            )
            return
        rows = [("run", str(run.path)), ("adapter", finished["adapter"]), ("log", str(run.log))]
        rows += [("curves", str(run.path / "curves.png"))]
        screen.facts(rows)
        screen.hint(f"qwenft eval --run {run.name} --baseline")
