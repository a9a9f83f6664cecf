"""`qwenft app`: a page in the browser."""

from typing import Annotated

import typer

from qwenft.commands.complete import complete_data
from qwenft.commands.options import LOADING, Debug, Gpus, Json, Model, RunName, open_screen


def page(
    run: RunName = None,
    model: Model = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="Prepared data set whose questions are offered. Default: the run's, or the only one.",
            autocompletion=complete_data,
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="On 127.0.0.1; 0 takes any that is free.")] = 7860,
    share: Annotated[bool, typer.Option("--share", help="Also make a public address, by gradio's servers.")] = False,
    gpus: Gpus = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Serve a page on this machine: picture and text in, boxes out, a run beside its base model.

    It needs the extra `app`, which is gradio. Ctrl-C ends it.

    Example: qwenft app --run my-run
    """
    with open_screen() as screen:
        screen.wait(LOADING)
        from qwenft.app.run import serve_page

        with serve_page(run, model, data=data, gpus=gpus, port=port, share=share, emit=screen.emit) as served:
            if json:
                screen.result(served.to_json())
            else:
                rows = [("page", served.address), *([("public", served.shared)] if served.shared else [])]
                screen.facts(rows)
                screen.hint(f"open {served.address} in a browser; Ctrl-C ends it")
            served.wait()
