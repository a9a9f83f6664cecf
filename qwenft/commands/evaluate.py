"""`qwenft eval`: a run, a base model, a file of answers or two runs side by side are scored."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qwenft.commands.complete import complete_data, complete_run
from qwenft.commands.options import LOADING, Batch, Debug, Gpus, Json, RunName, open_screen
from qwenft.core.errors import UsageError

if TYPE_CHECKING:
    from qwenft.ui import Screen


def evaluate(
    run: RunName = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            help="Prepared data set: a folder, or its name under data/; may be given several times.",
            autocompletion=complete_data,
        ),
    ] = None,
    split: Annotated[str | None, typer.Option("--split", help="Default: the held-out split.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="Score this base model in place of a run.")] = None,
    baseline: Annotated[bool, typer.Option("--baseline", help="Score the base model too, and the difference.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="At most N samples, evenly over the split.")] = None,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(
            "--compare",
            metavar="RUN RUN",
            help="Two evaluated runs: the second's figures less the first's.",
            autocompletion=complete_run,
        ),
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option("--predictions", help="Score these lines of predict, or COCO results.")
    ] = None,
    references: Annotated[
        Path | None,
        typer.Option(
            "--references", help="COCO file that the ids of --predictions are of; the truth too, without --data."
        ),
    ] = None,
    gpus: Gpus = None,
    batch_size: Batch = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Score a run, a base model or a file of answers on prepared data; figures and report.html lie below the run.

    Example: qwenft eval --run my-run --split test --baseline
    """
    with open_screen() as screen:
        if compare is not None:
            _compare(screen, compare, json=json)
        elif predictions is not None:
            _score_file(screen, predictions, data or [], split, references, json=json)
        else:
            screen.wait(LOADING)
            from qwenft.evaluate.run import evaluate_data

            results = evaluate_data(
                run, data=data or [None], split=split, model=model, baseline=baseline, limit=limit,
                batch_size=batch_size, gpus=gpus, emit=screen.emit,
            )  # fmt: skip
            values = [result.to_json() for result in results]
            if json:
                screen.result(values[0] if len(values) == 1 else {"evaluations": values})
                return
            _show(screen, values)
            screen.hint(f'qwenft predict image.jpg "find the dog"{f" --run {run}" if run else ""}')


def _compare(screen: "Screen", runs: tuple[str, str], *, json: bool) -> None:
    from qwenft.evaluate.existing import compare_runs

    found = compare_runs(*runs)
    if json:
        screen.result({"comparisons": found})
    else:
        _show(screen, found)


def _score_file(
    screen: "Screen", predictions: Path, data: list[str], split: str | None, references: Path | None, *, json: bool
) -> None:
    from qwenft.core.samples import open_dataset
    from qwenft.evaluate.coco_files import score_coco_files
    from qwenft.evaluate.existing import evaluate_predictions

    if len(data) > 1:
        raise UsageError(
            "one file of answers is scored on one data set", hint=f"qwenft eval --predictions {predictions} --data …"
        )
    if references is not None and not data:
        named = {"predictions": str(predictions.absolute()), "references": str(references.absolute())}
        metrics: dict[str, object] = {**named, "scores": {"detection": score_coco_files(predictions, references)}}
    else:
        dataset = open_dataset(data[0] if data else None)
        result = evaluate_predictions(predictions, data=dataset, split=split, references=references, emit=screen.emit)
        metrics = result.to_json()
    if json:
        screen.result(metrics)
    else:
        screen.scores(metrics)


def _show(screen: "Screen", evaluations: list[dict[str, object]]) -> None:
    """One evaluation as it always is, several in one table."""
    from qwenft.evaluate.table import score_rows

    if len(evaluations) == 1:
        screen.scores(evaluations[0])
    else:
        screen.table("", *score_rows(*evaluations))
