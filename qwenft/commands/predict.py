"""`qwenft predict`: boxes in pictures."""

import sys
from collections.abc import Iterator
from enum import StrEnum
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qwenft.commands.options import LOADING, Batch, Debug, Gpus, Model, RunName, Task, command_line, open_screen

if TYPE_CHECKING:
    from qwenft.core.predictions import Prediction


class Score(StrEnum):
    """Where a box's score comes from."""

    tokens = "tokens"
    yes_no = "yes-no"


def predict(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGE... TEXT",
            help="Pictures, folders, globs or http(s) addresses, then what to find; - reads the pictures from stdin.",
        ),
    ] = None,
    text: Annotated[str | None, typer.Option("--text", help="What to find, in place of the last argument.")] = None,
    task: Annotated[
        Task,
        typer.Option(
            help="grounding: a phrase or an instruction; detection: categories with commas; caption: no text.",
        ),
    ] = Task.grounding,
    ask: Annotated[
        str | None,
        typer.Option("--ask", help="The prompt itself, sent as it is, in place of TEXT; --task says how to read it."),
    ] = None,
    run: RunName = None,
    model: Model = None,
    save: Annotated[
        Path | None, typer.Option("--save", help="Draw the boxes into this picture file or folder.")
    ] = None,
    crop: Annotated[Path | None, typer.Option("--crop", help="Cut each box out into this folder.")] = None,
    coco: Annotated[
        Path | None, typer.Option("--coco", help="Write a COCO results file, and FILE.images.json beside it.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Append each answer to this file as a JSON line; a killed run goes on from it."),
    ] = None,
    score: Annotated[
        Score,
        typer.Option("--score", help="tokens: of the answer's own tokens; yes-no: the model asked back per box."),
    ] = Score.tokens,
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold", metavar="SCORE", help="Leave out boxes under this score; 0: none. Default: the contract's."
        ),
    ] = None,
    gpus: Gpus = None,
    batch_size: Batch = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON line an answer on stdout.")] = False,
    debug: Debug = False,
) -> None:
    """Find TEXT in pictures; boxes are in pixels of each file as a viewer shows it.

    A score is how sure the model is that there is a box, times how sure of its coordinates.

    A line of stdin is a path, an address, or JSON: {"image": ..., "query": ...}.

    Example: qwenft predict image.jpg "find the dog" --save found.png
    """
    with open_screen() as screen:
        screen.wait(LOADING)
        from qwenft.predict.find import find_each, unreadable_error
        from qwenft.predict.inputs import split_text

        images = inputs or []
        if text is None:
            images, text = split_text(images, needed=ask is None and task is not Task.caption)
        if isinstance(sys.stdin, TextIOWrapper):  # a file's name need not be text
            sys.stdin.reconfigure(errors="surrogateescape")
        answers: list[Prediction] = []
        found = _noted(
            answers,
            find_each(
                images, text, task=task.value, ask=ask or "", lines=sys.stdin, run=run, model=model, gpus=gpus,
                batch_size=batch_size, score=score.value, threshold=threshold, save=save, crop=crop, coco=coco,
                out=out, emit=screen.emit,
            ),
        )  # fmt: skip
        if json:
            for answer in found:
                screen.result(answer.to_json())
        else:
            screen.answers(found)
        if error := unreadable_error(answers):
            raise error
        if not json and save is None and task is not Task.caption and "-" not in images:
            screen.hint(f"{command_line()} --save found{'.png' if len(answers) == 1 else ''}")


def _noted(answers: "list[Prediction]", found: "Iterator[Prediction]") -> "Iterator[Prediction]":
    for answer in found:
        answers.append(answer)
        yield answer
