"""The whole line on the embedded model and generated pictures, without network: the body of `qwenft demo`."""

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from qwenft.core.boxes import Box, iou
from qwenft.core.config import TINY, TrainConfig, make_config
from qwenft.core.errors import DataError
from qwenft.core.events import Emit, ignore, note
from qwenft.core.files import read_records
from qwenft.core.predictions import Prediction
from qwenft.core.samples import PreparedDataset
from qwenft.demo.scenes import write_scenes
from qwenft.evaluate.run import EvalResult, evaluate_run
from qwenft.predict.find import find
from qwenft.prepare.build import prepare_dataset
from qwenft.train.launch import train_adapter

FOLDER: Final = "qwenft-demo"
SOURCE: Final = "scenes"
NAME: Final = "neon"
"""Of the prepared data set and of the run."""
SPLIT: Final = "val"
FOUND: Final = "found.png"
NEXT: Final = "qwenft prepare --dataset Kangheng/refcocog"
EVAL_BATCH: Final = 64
CPU: Final = "--gpus cpu"
"""Also where there is a GPU: the same figures and about the same time everywhere."""

SETTINGS: Final[Mapping[str, object]] = {
    "epochs": 1,
    "batch_size": 8,
    "accumulation": 1,
    "learning_rate": 0.003,
    "rank": 16,
    "alpha": 16,
    "dropout": 0.0,
    "parts": "language,vision",
    "workers": 0,
    "eval_samples": 0,
    "gpus": "cpu",
}
"""How the demo trains, as `key=value` on the command line.  Found by trial (docs/decisions.md): a small model takes
a learning rate far over the default.  eval_samples=0: the held-out pictures choose nothing, they only judge."""


@dataclass(frozen=True, slots=True)
class Size:
    """How many pictures are drawn."""

    num_train: int
    num_val: int


FULL: Final = Size(num_train=1000, num_val=120)
QUICK: Final = Size(num_train=16, num_val=6)
"""Enough to see that every stage runs; nothing is learned."""


@dataclass(frozen=True, slots=True)
class _Stages:
    """Says which stage begins and keeps their times."""

    emit: Emit
    began_s: dict[str, float]

    def begin(self, title: str, command: str) -> None:
        self.began_s[title] = time.perf_counter()
        number = len(self.began_s)
        self.emit({"event": "stage", "number": number, "total": NUM_STAGES, "title": title, "command": command})

    def seconds(self) -> dict[str, float]:
        """Title -> how long it took, s; and `all`."""
        marks = [*self.began_s.values(), time.perf_counter()]
        spent = {title: round(marks[i + 1] - marks[i], 1) for i, title in enumerate(self.began_s)}
        return {**spent, "all": round(marks[-1] - marks[0], 1)}


NUM_STAGES: Final = 6


def run_demo(*, root: Path | None = None, seed: int = 0, quick: bool = False, emit: Emit = ignore) -> dict[str, Any]:
    """Draw pictures, prepare them, score the base model, train, score the adapter, and find one thing.

    Everything lies in a new folder qwenft-demo under `root` (unset: the current folder), numbered where there is one
    already; nothing that stands there is touched, and no run outside it becomes the latest.  quick: a few pictures, to
    see that it runs.  Returns what the last event, `demo`, says: folder, table, the answer, seconds, the next command.
    Raises DataError where no folder can be made, and what the stages raise.
    """
    home = _new_folder(root or Path.cwd())
    size = QUICK if quick else FULL
    emit(note(f"everything lies in {home}; the commands are as you would type them there"))
    stages = _Stages(emit, {})

    stages.begin("Draw pictures of a kind that the model was not trained on", "")
    source = write_scenes(home / SOURCE, num_train=size.num_train, num_val=size.num_val, seed=seed)

    command = f"qwenft prepare --dataset {SOURCE} --out data/{NAME}"
    stages.begin("Check them and write a prepared data set", command)
    dataset = prepare_dataset(SOURCE, out=Path("data") / NAME, root=home, command=command, emit=emit)

    stages.begin("Score the base model on held-out pictures", f"qwenft eval --model {TINY} {CPU}")
    evaluate_run(model=TINY, data=NAME, split=SPLIT, batch_size=EVAL_BATCH, gpus="cpu", root=home, emit=emit)

    config, command = training(seed)
    stages.begin("Train an adapter", command)
    run = train_adapter(config, root=home, demo=True, emit=emit)

    stages.begin("Score the adapter beside the base model", f"qwenft eval --run {NAME} --baseline {CPU}")
    scores = evaluate_run(
        NAME, data=NAME, split=SPLIT, baseline=True, batch_size=EVAL_BATCH, gpus="cpu", root=home, emit=emit
    )

    asked = _question(source)
    picture = f"{SOURCE}/{asked['image']}"
    command = shlex.join(["qwenft", "predict", picture, asked["query"], "--run", NAME, *CPU.split(), "--save", FOUND])
    stages.begin("Find something in a held-out picture", command)
    answer = find([home / picture], asked["query"], run=NAME, gpus="cpu", save=home / FOUND, root=home, emit=emit)[0]

    result = {
        "folder": str(home),
        "run": str(run.path),
        "seed": seed,
        **_scores(dataset, scores),
        "answer": {**answer.to_json(), "truth": asked["bbox"], "iou": _overlap(answer, asked["bbox"])},
        "picture": str(home / FOUND),
        "seconds": stages.seconds(),
        "next": NEXT,
    }
    emit({"event": "demo", **result})
    return result


def training(seed: int) -> tuple[TrainConfig, str]:
    """The settings of the demo's run, and the command that gives the same."""
    options = {"model": TINY, "data": NAME, "name": NAME}
    overrides = {**SETTINGS, "seed": seed}
    words = [f"--{key} {value}" for key, value in options.items()]
    words += [f"{key}={value}" for key, value in overrides.items()]
    return make_config({**options, **overrides}, origin="the demo"), " ".join(["qwenft train", *words])


def _new_folder(root: Path) -> Path:
    """A folder of our own; one that exists is left alone.  Raises DataError where none can be made."""
    number = 1
    while True:
        path = root.absolute() / (FOLDER if number == 1 else f"{FOLDER}-{number}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            number += 1
        except OSError as error:
            raise DataError(
                f"the demo needs a folder of its own: {path} cannot be made ({error.strerror})",
                hint="go to a folder that you may write to: cd ~",
            ) from error
        else:
            return path


def _question(source: Path) -> dict[str, Any]:
    """The held-out question with the longest expression, a relation: chosen without a look at any answer."""
    rows = [record.value for record in read_records(source / f"{SPLIT}.jsonl")]
    return max(rows, key=lambda row: len(row["query"]))


def _overlap(answer: Prediction, truth_xyxy: Sequence[float]) -> float:
    x1, y1, x2, y2 = truth_xyxy
    truth: Box = (x1, y1, x2, y2)
    return round(iou(answer.objects[0].box_xyxy, truth), 3) if answer.objects else 0.0


_FIGURES: Final = ("Acc@0.5", "mean_iou")


def _scores(dataset: PreparedDataset, scores: EvalResult) -> dict[str, Any]:
    """What the table shows: a row for each figure, and how many answers could be read."""
    metrics = scores.metrics
    constant = metrics["constant_box"] or {"positives": {}}
    rows = [
        {
            "figure": figure,
            "constant_box": constant["positives"].get(figure),
            "base": metrics["baseline"]["grounding"]["positives"][figure],
            "adapter": metrics["scores"]["grounding"]["positives"][figure],
            "difference": metrics["difference"]["grounding"][figure],
        }
        for figure in _FIGURES
    ]
    parsed = {"base": metrics["baseline"]["parse_rate"], "adapter": metrics["scores"]["parse_rate"]}
    counts = {
        name: {"questions": info.samples, "pictures": info.pictures} for name, info in dataset.manifest.splits.items()
    }
    return {"splits": counts, "table": rows, "parse_rate": parsed, "eval": str(scores.folder)}
