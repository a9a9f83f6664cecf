"""`qwenft eval`: a run, a base model or a file of answers is scored."""

from pathlib import Path
from typing import Annotated

import typer

from qwenft.commands.options import LOADING, Batch, Data, Debug, Gpus, Json, RunName, open_screen


def evaluate(
    run: RunName = None,
    data: Data = None,
    split: Annotated[str | None, typer.Option("--split", help="Default: the held-out split.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="Score this base model in place of a run.")] = None,
    baseline: Annotated[bool, typer.Option("--baseline", help="Score the base model too, and the difference.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="At most N samples, evenly over the split.")] = None,
    predictions: Annotated[
        Path | None, typer.Option("--predictions", help="Score this file of answers; no model is read.")
    ] = None,
    references: Annotated[
        Path | None,
        typer.Option("--references", help="COCO instances file that --predictions answers."),
    ] = None,
    gpus: Gpus = None,
    batch_size: Batch = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Score a run, a base model or a file of answers on a prepared data set.

    Example: qwenft eval --run my-run --split test --baseline
    """
    with open_screen() as screen:
        if predictions is not None:
            from qwenft.core.samples import open_dataset
            from qwenft.evaluate.existing import evaluate_predictions

            prepared = None if references else open_dataset(data)
            metrics = evaluate_predictions(predictions, data=prepared, split=split, references=references)
            screen.result(metrics) if json else screen.scores(metrics)
            return
        screen.wait(LOADING)
        from qwenft.evaluate.run import evaluate_run

        result = evaluate_run(
            run, data=data, split=split, model=model, baseline=baseline, limit=limit, batch_size=batch_size, gpus=gpus,
            emit=screen.emit,
        )  # fmt: skip
        if json:
            screen.result(result.to_json())
            return
        screen.scores(result.metrics)
        screen.emit({"event": "note", "text": f"written: {result.folder}"})
        screen.hint(f'qwenft predict image.jpg "find the dog"{f" --run {run}" if run else ""}')
