"""What several commands share: options, the screen, and the command line as it was typed."""

import os
import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from qwenft.commands.complete import complete_data, complete_run

if TYPE_CHECKING:
    from qwenft.ui import Screen

DEBUG: Final = "QWENFT_DEBUG"
LOADING: Final = "loading torch and the model"


def _set_debug(value: bool) -> bool:
    if value:
        os.environ[DEBUG] = "1"
    return value


class Task(StrEnum):
    """What is asked of a picture."""

    grounding = "grounding"
    detection = "detection"
    caption = "caption"


Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, and nothing else there.")]
Debug = Annotated[bool, typer.Option("--debug", callback=_set_debug, help="Show the traceback of an error.")]
Gpus = Annotated[
    str | None,
    typer.Option(
        "--gpus",
        help="As nvidia-smi numbers them: 0, or 1,3, or all, or cpu. Default: the first GPU, or the CPU.",
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="Prepared data set: a folder, or its name under data/. Default: the only one.",
        autocompletion=complete_data,
    ),
]
RunName = Annotated[
    str | None,
    typer.Option(
        "--run",
        help="A run's name under runs/, or its folder. Default: the latest finished one.",
        autocompletion=complete_run,
    ),
]
Model = Annotated[
    str | None,
    typer.Option("--model", help="Hub id or folder of a Qwen2.5-VL model; tiny is the embedded one."),
]
Batch = Annotated[int | None, typer.Option("--batch-size", min=1, help="Questions answered at a time.")]


def open_screen() -> "Screen":
    """The terminal, or what stands in its place; rich is loaded here."""
    from qwenft.ui import Screen

    return Screen()


def command_line(without: str = "") -> str:
    """What was typed, to be typed again, less one word."""
    return shlex.join(["qwenft", *(word for word in sys.argv[1:] if word != without)])


def shortest(path: Path) -> str:
    """Relative where that is shorter, for a command to paste."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
