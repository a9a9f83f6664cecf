"""`qwenft export`: a run for other tools."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from qwenft.commands.options import Debug, Gpus, Json, RunName, open_screen


class Form(StrEnum):
    """What is written."""

    merged = "merged"
    adapter = "adapter"


def export(
    run: RunName = None,
    to: Annotated[Form, typer.Option(help="merged: whole weights; adapter: LoRA, for peft.")] = Form.merged,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder to write. Default: export/merged or /adapter below the run.")
    ] = None,
    push: Annotated[
        str | None, typer.Option("--push", metavar="OWNER/NAME", help="Publish it on the hub; a new one is private.")
    ] = None,
    send_token: Annotated[bool, typer.Option("--send-token", help="Let a mirror have your hub token.")] = False,
    gpus: Gpus = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a run as a folder for transformers, peft, vLLM and SGLang, checked before it stands.

    Example: qwenft export --run my-run --to merged
    """
    with open_screen() as screen:
        from qwenft.export.run import export_run

        made = export_run(run, to=to.value, out=out, push_to=push, send_token=send_token, gpus=gpus, emit=screen.emit)
        if json:
            screen.result(made.to_json())
            return
        rows = [("export", made.path), ("base model", made.base)]
        if made.difference is not None and made.effect is not None:
            figures = (
                f"{made.difference:.2g} off the unmerged in log probability, the adapter changes {made.effect:.2g}"
            )
            rows.append(("merged", f"{made.dtype}, {figures}"))
        rows += list(made.commands.items()) + ([("published", made.url)] if made.url else [])
        screen.facts(rows)
        screen.hint(made.next_command)
