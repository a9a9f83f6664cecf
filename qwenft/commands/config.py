"""`qwenft config`: the settings, explained."""

import shlex
from typing import Annotated

import typer

from qwenft.commands.complete import complete_run, complete_setting
from qwenft.commands.options import Debug, Json, open_screen


def config(
    setting: Annotated[
        str | None,
        typer.Argument(metavar="SETTING", help="Explain this one.", autocompletion=complete_setting),
    ] = None,
    from_run: Annotated[
        str | None,
        typer.Option("--from", metavar="RUN", help="The settings of this run.", autocompletion=complete_run),
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Print the settings of train as YAML, each explained, or explain one.

    Example: qwenft config learning_rate
    """
    with open_screen() as screen:
        from qwenft.core.config import TrainConfig, load_config, to_yaml
        from qwenft.core.explain import all_settings, explain
        from qwenft.core.runs import open_run

        values = load_config(open_run(from_run).config) if from_run is not None else None
        if setting is not None:
            found = explain(setting, values)
            if json:
                screen.result(found.to_json())
            else:
                screen.facts(found.facts(of_run=values is not None))
                screen.hint(f"qwenft train {found.name}=…")
        elif json:
            screen.result({one.name: one.to_json() for one in all_settings(values)})
        else:
            typer.echo(to_yaml(values or TrainConfig()), nl=False)
            source = f"--from {shlex.quote(from_run)} " if from_run is not None else ""
            screen.hint(f"qwenft config {source}> my.yaml; qwenft train --config my.yaml")
