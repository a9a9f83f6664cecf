"""`qwenft predict`: boxes in pictures."""

from pathlib import Path
from typing import Annotated

import typer

from qwenft.commands.options import LOADING, Batch, Debug, Gpus, Model, RunName, Task, command_line, open_screen


def predict(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(metavar="IMAGE... TEXT", help="Pictures, folders or globs, then what to find."),
    ] = None,
    text: Annotated[str | None, typer.Option("--text", help="What to find, in place of the last argument.")] = None,
    task: Annotated[
        Task,
        typer.Option(
            help="grounding: a phrase or an instruction; detection: categories with commas; caption: no text.",
        ),
    ] = Task.grounding,
    run: RunName = None,
    model: Model = None,
    save: Annotated[
        Path | None, typer.Option("--save", help="Draw the boxes into this picture file or folder.")
    ] = None,
    gpus: Gpus = None,
    batch_size: Batch = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON line an answer on stdout.")] = False,
    debug: Debug = False,
) -> None:
    """Find TEXT in pictures; boxes are in pixels of each file as a viewer shows it.

    A score is the geometric mean of the probabilities of the coordinates' tokens.

    Example: qwenft predict image.jpg "find the dog" --save found.png
    """
    with open_screen() as screen:
        screen.wait(LOADING)
        from qwenft.predict.find import find

        images = list(inputs or ())
        if text is None and task is not Task.caption and len(images) > 1:
            text = images.pop()
        found = find(
            images, text, task=task.value, run=run, model=model, gpus=gpus, batch_size=batch_size, save=save,
            emit=screen.emit,
        )  # fmt: skip
        if json:
            for answer in found:
                screen.result(answer.to_json())
            return
        screen.answers(found)
        if save is None and task is not Task.caption:
            screen.hint(f"{command_line()} --save found{'.png' if len(found) == 1 else ''}")
