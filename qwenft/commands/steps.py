"""`qwenft steps`: the optimizer updates of a run, counted."""

from pathlib import Path
from typing import Annotated

import typer

from qwenft.commands.complete import complete_data
from qwenft.commands.options import Debug, Json
from qwenft.core.errors import UsageError


def steps(
    n: Annotated[int | None, typer.Option("--n", help="Samples in the training split.")] = None,
    bs: Annotated[
        int | None,
        typer.Option(
            "--bs", "--batch-size", help="Samples in a micro-batch on each GPU. Default: 1; with --data that of train."
        ),
    ] = None,
    num_gpus: Annotated[int, typer.Option("--num-gpus", help="Data-parallel processes.")] = 1,
    accum: Annotated[
        int | None,
        typer.Option(
            "--accum", "--accumulation", help="Micro-batches in an update. Default: 1; with --data that of train."
        ),
    ] = None,
    epochs: Annotated[float | None, typer.Option("--epochs", help="Passes over the data; may be a fraction.")] = None,
    drop_last: Annotated[bool, typer.Option("--drop-last", help="A batch that is not full is dropped.")] = False,
    max_steps: Annotated[int | None, typer.Option("--max-steps", help="Overrides the epochs.")] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", help="Count the training split of this prepared data set.", autocompletion=complete_data
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", help="Take data and settings from this YAML file.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Count the optimizer updates of a run, exactly.

    Example: qwenft steps --n 8000 --bs 4
    """
    from dataclasses import asdict

    from qwenft.core.steps import count_updates

    sources = None
    if config is not None or data is not None:  # as `train` would count them; what is typed here goes first
        from qwenft.core.config import load_config

        settings = load_config(config, data=data, batch_size=bs, accumulation=accum, epochs=epochs, max_steps=max_steps)
        bs, accum, epochs, max_steps = (
            settings.batch_size, settings.accumulation, settings.epochs, settings.max_steps
        )  # fmt: skip
        sources = settings.data
    bs, accum, epochs = 1 if bs is None else bs, 1 if accum is None else accum, 1.0 if epochs is None else epochs
    if data is not None or config is not None:
        if n is not None:
            raise UsageError("--n excludes --data and --config", hint="qwenft steps --data data/refcocog")
        from qwenft.train.mixture import open_mixture

        n = open_mixture(sources).num_samples
    if n is None:
        raise UsageError("--n is missing: how many samples?", hint="qwenft steps --n 8000 --bs 4")
    counted = count_updates(
        n, bs, num_gpus=num_gpus, accum=accum, epochs=epochs, drop_last=drop_last, max_steps=max_steps
    )
    if json:
        from qwenft.core.files import to_line

        typer.echo(to_line(asdict(counted)))
        return
    typer.echo(counted.text())
    length = f"max_steps={max_steps}" if max_steps else f"epochs={epochs:g}"
    which = f"--config {config} " if config else f"--data {data} " if data else ""
    typer.echo(f"next: qwenft train {which}batch_size={bs} accumulation={accum} {length}", err=True)
