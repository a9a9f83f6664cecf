"""`qwenft doctor`: what is wrong here, and the mend."""

from typing import Annotated

import typer

from qwenft.commands.complete import complete_data, complete_run
from qwenft.commands.options import LOADING, Debug, Gpus, Json, open_screen


def doctor(
    model: Annotated[
        str | None, typer.Option("--model", help="Ask this model for 20 known boxes: do its weights and frame agree?")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help="Read this prepared data set through.", autocompletion=complete_data),
    ] = None,
    run: Annotated[
        str | None, typer.Option("--run", help="Look at what this run left.", autocompletion=complete_run)
    ] = None,
    gpus: Gpus = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Check the machine, or a model, a data set or a run: each finding with its verdict and the mend.

    Exit status 0 unless something needed is broken.

    Example: qwenft doctor --model Qwen/Qwen2.5-VL-3B-Instruct
    """
    with open_screen() as screen:
        screen.wait(LOADING if model else "checking")
        from qwenft.doctor.diagnose import diagnose
        from qwenft.doctor.findings import COLUMNS, broken_error

        found = diagnose(model=model, data=data, run=run, gpus=gpus, emit=screen.emit)
        if json:
            screen.result(found.to_json())
        else:
            screen.table("", COLUMNS, [finding.row() for finding in found.findings])
        if error := broken_error(found.findings):
            raise error
        if not json:
            screen.hint(found.next_command)
