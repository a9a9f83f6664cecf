"""`qwenft runs`: the runs here, or one of them."""

from typing import Annotated

import typer

from qwenft.commands.complete import complete_run
from qwenft.commands.options import Debug, Json, open_screen


def runs(
    run: Annotated[
        str | None,
        typer.Argument(metavar="RUN", help="Show this one: a name or a folder.", autocompletion=complete_run),
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """List the runs, or show one: its state, step, best metric and age.

    Example: qwenft runs my-run
    """
    with open_screen() as screen:
        from qwenft.train.overview import COLUMNS, list_runs, show_run

        found = list_runs() if run is None else [show_run(run)]
        if json:
            screen.result({"runs": [one.to_json() for one in found]} if run is None else found[0].to_json())
            return
        if run is None:
            screen.table("", COLUMNS, [one.row() for one in found], spare=("model", "data", "age"))
        else:
            screen.facts(found[0].facts())
        screen.hint("qwenft train" if not found else found[0].next_command)
