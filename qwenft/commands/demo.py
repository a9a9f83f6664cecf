"""`qwenft demo`: the whole line on the embedded model."""

from typing import Annotated

import typer

from qwenft.commands.options import Debug, Json, open_screen


def demo(
    seed: Annotated[int, typer.Option(min=0, help="Of pictures and training.")] = 0,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Run the whole line on the embedded model and generated pictures: two CPU cores, no network.

    Example: qwenft demo
    """
    with open_screen() as screen:
        from qwenft.demo.demo import run_demo

        result = run_demo(seed=seed, emit=screen.emit)
        if json:
            screen.result(result)
            return
        screen.comparison(result["table"])
        screen.hint(result["next"])
