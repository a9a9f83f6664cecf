"""The commands: thin, one call each into the stages, and the one door where errors end."""

import os
import shlex
import signal
import sys
from enum import StrEnum
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.exceptions import TyperException

from qwenft.core.errors import QwenftError, UsageError
from qwenft.core.usage import check_overrides, role_pairs, usage_error, with_resume_value

if TYPE_CHECKING:
    from qwenft.ui import Screen


class _Group(TyperGroup):
    def get_params(self, ctx: Any) -> list[Any]:
        return _plain_types(super().get_params(ctx), ctx)


class _Command(TyperCommand):
    def get_params(self, ctx: Any) -> list[Any]:
        return _plain_types(super().get_params(ctx), ctx)


class _Train(_Command):
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """`--resume` may stand without a value: before an option, a setting or the end of the line."""
        return super().parse_args(ctx, with_resume_value(args))


_TYPES = {"bool": "", "int": "N", "int range": "N", "float": "X", "str": "TEXT", "list[str]": "TEXT", "path": "PATH"}


def _plain_types(params: list[Any], context: Any) -> list[Any]:
    """In the help a value is named by one word, and a flag, which takes none, by none."""
    for param in params:
        if param.metavar is None:
            param.metavar = _TYPES.get(param.display_type(context).strip("<>"), "TEXT")
    return params


app = typer.Typer(
    help="Fine-tune Qwen2.5-VL to find things in pictures.\n\nA data set goes in, a measured adapter comes out:\n\n"
    "\b\n  qwenft prepare --dataset Kangheng/refcocog\n  qwenft train\n  qwenft eval --baseline\n"
    '  qwenft predict image.jpg "find the dog"',
    cls=_Group,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

DEBUG = "QWENFT_DEBUG"
SETTINGS = (
    "data, model, name, seed, epochs, max_steps, batch_size, accumulation, learning_rate, schedule, warmup, "
    "weight_decay, max_grad_norm, rank, alpha, dropout, parts, min_pixels, max_pixels, workers, gpus, dtype, fast, "
    "checkpointing, save_every, keep_last, eval_every, eval_samples, early_stopping, auto_micro_batch, report_to"
)
"""Of core/config.py, spelled out: importing it for the help would cost more than the rest of the help."""
LOADING = "loading torch and the model"


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
    typer.Option("--data", help="Prepared data set: a folder, or its name under data/. Default: the only one."),
]
RunName = Annotated[
    str | None,
    typer.Option("--run", help="A run's name under runs/, or its folder. Default: the latest finished one."),
]
Model = Annotated[
    str | None,
    typer.Option("--model", help="Hub id or folder of a Qwen2.5-VL model; tiny is the embedded one."),
]
Batch = Annotated[int | None, typer.Option("--batch-size", min=1, help="Questions answered at a time.")]


@app.callback()
def _app(
    version: Annotated[bool, typer.Option("--version", is_eager=True, help="Print the version.")] = False,
) -> None:
    if version:
        from qwenft import __version__

        typer.echo(f"qwenft {__version__}")
        raise typer.Exit


@app.command(cls=_Command)
def prepare(
    dataset: Annotated[str, typer.Option("--dataset", help="Hub id (owner/name[:config]), a folder or a file.")],
    out: Annotated[Path | None, typer.Option(help="Where to write. Default: data/NAME.")] = None,
    split: Annotated[list[str] | None, typer.Option("--split", help="Only this split; repeatable.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The first N rows of each split.")] = None,
    task: Annotated[str, typer.Option(help="auto, grounding, detection or caption.")] = "auto",
    bbox_format: Annotated[
        str,
        typer.Option(help="auto, xyxy, xywh, cxcywh, xyxy_norm, xywh_norm, cxcywh_norm or xyxy_1000."),
    ] = "auto",
    columns: Annotated[
        str | None, typer.Option(help="Where the guess is wrong: image=img,query=text,bbox=box.")
    ] = None,
    exif: Annotated[
        str,
        typer.Option(help="Which way up the boxes of turned pictures are meant: auto, upright or stored."),
    ] = "auto",
    clip: Annotated[
        bool, typer.Option("--clip", help="Cut boxes at the picture's border rather than reject them.")
    ] = False,
    val_fraction: Annotated[
        float, typer.Option(help="Of the pictures, held out where the source holds none out.")
    ] = 0.1,
    seed: Annotated[int, typer.Option(min=0, help="Decides the division into splits.")] = 0,
    output_format: Annotated[str, typer.Option("--format", help="jsonl, or json (one array).")] = "jsonl",
    preview: Annotated[int, typer.Option(min=0, help="How many pictures are drawn with their boxes.")] = 8,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what stands at --out.")] = False,
    follow_links: Annotated[
        bool, typer.Option("--follow-links", help="Take pictures behind links that leave the folder.")
    ] = False,
    hf_endpoint: Annotated[
        str | None,
        typer.Option(help="A mirror of the hub, such as https://hf-mirror.com. Default: HF_ENDPOINT."),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub data set.")] = None,
    send_token: Annotated[bool, typer.Option("--send-token", help="Let a mirror have your hub token.")] = False,
    num_proc: Annotated[int, typer.Option(min=1, help="Processes that decode pictures.")] = 1,
    export: Annotated[
        list[str] | None,
        typer.Option("--export", help="Also as qwen, swift, llamafactory, coco or yolo, under exports/; repeatable."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and report, write nothing.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Check a data set and rewrite it as one that can be trained on.

    Example: qwenft prepare --dataset Kangheng/refcocog
    """
    with _screen() as screen:
        screen.wait(f"reading {dataset}")
        pairs = role_pairs(columns)
        from qwenft.prepare.build import prepare_dataset

        made = prepare_dataset(
            dataset,
            out=out,
            hf_endpoint=hf_endpoint,
            revision=revision,
            splits=split or (),
            limit=limit,
            task=task,
            bbox_format=bbox_format,
            columns=pairs,
            output_format=output_format,
            val_fraction=val_fraction,
            seed=seed,
            overwrite=overwrite,
            preview=preview,
            send_token=send_token,
            follow_links=follow_links,
            clip=clip,
            exif=exif,
            export=export or (),
            num_proc=num_proc,
            dry_run=dry_run,
            command=_command_line(),
            emit=screen.emit,
        )
        if json:
            screen.result({"path": str(made.path), **made.manifest.model_dump(mode="json")})
            return
        if dry_run:
            screen.hint(_command_line(without="--dry-run"))
            return
        screen.dataset(made)
        screen.hint(f"qwenft train --data {_shortest(made.path)}")


@app.command(cls=_Train)
def train(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help=f"Any setting: {SETTINGS}.")
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", help="YAML file with settings.")] = None,
    data: Data = None,
    model: Model = None,
    name: Annotated[str | None, typer.Option("--name", help="Of the run, under runs/.")] = None,
    gpus: Gpus = None,
    epochs: Annotated[float | None, typer.Option("--epochs", help="Passes over the training split.")] = None,
    resume: Annotated[
        str | None,
        typer.Option("--resume", help="Go on with this run; without a name: with the newest unfinished one."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Train a LoRA adapter on a prepared data set.

    Example: qwenft train --gpus 1,3 batch_size=4 learning_rate=2e-4
    """
    with _screen() as screen:
        check_overrides(overrides or ())
        from qwenft.core.config import load_config
        from qwenft.train.launch import resume_training, train_adapter

        given: dict[str, Any] = {"data": data, "model": model, "name": name, "gpus": gpus, "epochs": epochs}
        last: dict[str, Any] = {}

        def emit(event: Any) -> None:
            last[event["event"]] = event
            screen.emit(event)

        if resume is None:
            settings = load_config(config, overrides or (), **given)
            run = train_adapter(settings, dry_run=dry_run, emit=emit)
        elif config is not None:
            raise UsageError(
                "--config beside --resume: a run has its own", hint=f"qwenft train --resume {resume}".rstrip()
            )
        else:
            run = resume_training(resume or None, overrides or (), dry_run=dry_run, emit=emit, **given)
        if dry_run:
            screen.result(last["plan"]) if json else screen.hint(_command_line(without="--dry-run"))
            return
        finished = last["finished"]
        if json:
            screen.result(
                {"run": run.name, "path": str(run.path), **{k: v for k, v in finished.items() if k != "event"}}
            )
            return
        rows = [("run", str(run.path)), ("adapter", finished["adapter"]), ("log", str(run.log))]
        rows += [("curves", str(run.path / "curves.png"))]
        screen.facts(rows)
        screen.hint(f"qwenft eval --run {run.name} --baseline")


@app.command(cls=_Command)
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
    with _screen() as screen:
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
            screen.hint(f"{_command_line()} --save found{'.png' if len(found) == 1 else ''}")


@app.command(name="eval", cls=_Command)
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
    with _screen() as screen:
        if predictions is not None:
            from qwenft.core.samples import open_dataset
            from qwenft.evaluate.score import evaluate_predictions

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


@app.command(cls=_Command)
def steps(
    n: Annotated[int | None, typer.Option("--n", help="Samples in the training split.")] = None,
    bs: Annotated[int, typer.Option("--bs", "--batch-size", help="Samples in a micro-batch on each GPU.")] = 1,
    num_gpus: Annotated[int, typer.Option("--num-gpus", help="Data-parallel processes.")] = 1,
    accum: Annotated[int, typer.Option("--accum", "--accumulation", help="Micro-batches in an update.")] = 1,
    epochs: Annotated[float, typer.Option("--epochs", help="Passes over the data; may be a fraction.")] = 1.0,
    drop_last: Annotated[bool, typer.Option("--drop-last", help="A batch that is not full is dropped.")] = False,
    max_steps: Annotated[int | None, typer.Option("--max-steps", help="Overrides the epochs.")] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Count the training split of this prepared data set.")
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", help="Take data and settings from this YAML file.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Count the optimizer updates of a run, exactly.

    Example: qwenft steps --n 8000 --bs 4
    """
    from dataclasses import asdict

    from qwenft.core.steps import count_updates

    if config is not None:
        from qwenft.core.config import load_config

        settings = load_config(config)
        bs, accum, epochs, max_steps = (
            settings.batch_size, settings.accumulation, settings.epochs, settings.max_steps
        )  # fmt: skip
        data = data or settings.data
    if data is not None or config is not None:
        if n is not None:
            raise UsageError("--n excludes --data and --config", hint="qwenft steps --data data/refcocog")
        from qwenft.core.samples import open_dataset

        prepared = open_dataset(data)
        n = prepared.manifest.splits[prepared.train].samples
    if n is None:
        raise UsageError("--n is missing: how many samples?", hint="qwenft steps --n 8000 --bs 4")
    counted = count_updates(
        n, bs, num_gpus=num_gpus, accum=accum, epochs=epochs, drop_last=drop_last, max_steps=max_steps
    )
    if json:
        from qwenft.core.files import to_line

        typer.echo(to_line(asdict(counted)))
        return
    typer.echo(counted.text())
    length = f"max_steps={max_steps}" if max_steps else f"epochs={epochs:g}"
    typer.echo(f"next: qwenft train batch_size={bs} accumulation={accum} {length}", err=True)


@app.command(cls=_Command)
def runs(
    run: Annotated[str | None, typer.Argument(metavar="RUN", help="Show this one: a name or a folder.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """List the runs, or show one: its state, step, best metric and age.

    Example: qwenft runs my-run
    """
    with _screen() as screen:
        from qwenft.train.overview import COLUMNS, list_runs, show_run

        found = list_runs() if run is None else [show_run(run)]
        if json:
            screen.result({"runs": [one.to_json() for one in found]} if run is None else found[0].to_json())
            return
        screen.table("", COLUMNS, [one.row() for one in found]) if run is None else screen.facts(found[0].facts())
        screen.hint("qwenft train" if not found else found[0].next_command)


@app.command(cls=_Command)
def demo(
    seed: Annotated[int, typer.Option(min=0, help="Of pictures and training.")] = 0,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Run the whole line on the embedded model and generated pictures: two CPU cores, no network.

    Example: qwenft demo
    """
    with _screen() as screen:
        from qwenft.demo.demo import run_demo

        result = run_demo(seed=seed, emit=screen.emit)
        if json:
            screen.result(result)
            return
        screen.comparison(result["table"])
        screen.hint(result["next"])


def _screen() -> "Screen":
    from qwenft.ui import Screen

    return Screen()


def _command_line(without: str = "") -> str:
    return shlex.join(["qwenft", *(word for word in sys.argv[1:] if word != without)])


def _shortest(path: Path) -> str:
    """Relative where that is shorter, for a command to paste."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def main() -> None:
    """Run the command line; the only place where an error is printed and becomes an exit status."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # a bar is erased, a half folder removed
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a name that the console cannot show must not end the command
            stream.reconfigure(errors="backslashreplace")
    try:
        status = app(sys.argv[1:] or ["--help"], prog_name="qwenft", standalone_mode=False)
    except QwenftError as error:
        status = _failed(error, error)
    except TyperException as error:
        status = _failed(usage_error(error, sys.argv[1:]), error)
    except Exception as error:
        message, hint = f"a bug in qwenft: {type(error).__name__}: {error}", "--debug shows where; please report it"
        status = _failed(QwenftError(message, hint=hint), error)
    sys.exit(status if isinstance(status, int) else 0)


def _failed(shown: QwenftError, error: Exception) -> int:
    if os.environ.get(DEBUG):
        raise error
    command = sys.argv[1] if sys.argv[1:] and sys.argv[1].isidentifier() else ""
    shown.hint = shown.hint or f"qwenft {command} --help".replace("  ", " ")
    _screen().error(shown)
    return shown.exit_code
