"""Answers that exist already are scored: predict's lines, COCO results of any tool, and two runs side by side."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qwenft.core.errors import RunError, nearest
from qwenft.core.events import Emit, ignore, note
from qwenft.core.files import read_json
from qwenft.core.predictions import Prediction
from qwenft.core.runs import CONTRACT_FILE, Contract
from qwenft.core.samples import PreparedDataset
from qwenft.evaluate.coco_answers import coco_answers, is_coco_results
from qwenft.evaluate.compare import compare_predictions
from qwenft.evaluate.match import load_predictions, match_predictions
from qwenft.evaluate.report import Evaluation
from qwenft.evaluate.run import EvalResult, command_of, measured, write_evaluation
from qwenft.evaluate.score import score_predictions, scored_split


def evaluate_predictions(
    predictions: Path,
    *,
    data: PreparedDataset,
    split: str | None = None,
    references: Path | None = None,
    root: Path | None = None,
    emit: Emit = ignore,
) -> EvalResult:
    """Score answers that exist already against a split (unset: the held-out one); no model is read.

    predictions: JSON lines of `predict` or of another tool, or a COCO results file, whose ids `references` explains
    (see `coco_answers`; questions for captions are left out then).  Figures and report.html are written into
    runs/predictions-<name>/eval/<data>-<split>/ under `root`, as those of a run, so that `--compare` takes them too.
    Raises DataError for what does not fit.
    """
    chosen = scored_split(data, split)
    samples = data.samples(chosen)
    if references is not None or is_coco_results(predictions):
        samples = tuple(sample for sample in samples if sample.task != "caption")
        answers = coco_answers(predictions, samples, references, emit)
    else:
        answers = load_predictions(predictions)
    ours = [prediction for _, prediction in match_predictions(samples, answers)]
    trained = _contract_of(answers)
    inputs = {"predictions": predictions, "references": references, "data": data.path, "split": split}
    metrics = {
        **measured(data, chosen, samples, ours=ours, trained=trained),
        "run": None,
        "model": _one_of(answer.model for answer in answers) or None,
        "adapter": _one_of(answer.adapter for answer in answers),
        "asked": None,
        "inputs": {name: None if value is None else str(value) for name, value in inputs.items()},
    }
    contract = asdict(trained) if trained else None
    evaluation = Evaluation(metrics, samples, ours, None, data.path, command_of(metrics["inputs"]), contract)
    home = (root or Path.cwd()).absolute() / "runs" / f"predictions-{predictions.stem}" / "eval"
    result = write_evaluation(home / f"{data.name}-{chosen}", evaluation)
    emit(note(f"report: {result.report}"))
    return result


def _one_of(names: Iterable[str | None]) -> str | None:
    """What all answers name; None where they do not agree."""
    found = set(names)
    return found.pop() if len(found) == 1 else None


def _contract_of(answers: Sequence[Prediction]) -> Contract | None:
    """The contract of the adapter that all answers name, where it still stands."""
    adapter = _one_of(answer.adapter for answer in answers)
    return Contract.read(Path(adapter)) if adapter and (Path(adapter) / CONTRACT_FILE).is_file() else None


def compare_runs(first: str, second: str, *, root: Path | None = None) -> list[dict[str, Any]]:
    """How much higher the run `second` scores than `first`, on every split that both were evaluated on.

    first, second: names under runs/ or paths; a base model's answers lie under `base-<model>`.  Each item has the keys
    of metrics.json that a table needs: `scores` (of the second), `baseline` (of the first), `difference` and `names`.
    Raises RunError where a run was not evaluated or no split is shared, DataError where a data set has moved.
    """
    base = root or Path.cwd()
    folders = [_evaluations(name, base) for name in (first, second)]
    shared = sorted(folders[0].keys() & folders[1].keys())
    if not shared:
        raise RunError(
            f"{first} and {second} were not evaluated on the same split: {', '.join(sorted(folders[0]))} and "
            f"{', '.join(sorted(folders[1]))}",
            hint=f"qwenft eval --run {second} --data {next(iter(folders[0])).rpartition('-')[0]}",
        )
    return [_compared((first, second), folders[0][name], folders[1][name]) for name in shared]


def _evaluations(name: str, root: Path) -> dict[str, Path]:
    """The evaluations of a run: name of the folder -> folder."""
    for home in (root / "runs" / name, root / Path(name).expanduser()):
        found = {path.parent.name: path.parent for path in sorted((home / "eval").glob("*/metrics.json"))}
        if found:
            return found
    known = {path.parts[-4] for path in (root / "runs").glob("*/eval/*/metrics.json")}
    raise RunError(
        f"there is no evaluation of a run {name!r} under {root / 'runs'}",
        hint=nearest(name, known) if known else f"qwenft eval --run {name}",
    )


def _compared(names: tuple[str, str], first: Path, second: Path) -> dict[str, Any]:
    metrics = [read_json(folder / "metrics.json") for folder in (first, second)]
    theirs, ours = (load_predictions(folder / "predictions.jsonl") for folder in (first, second))
    asked = {prediction.question.id for prediction in theirs}
    split = metrics[1]["split"]
    samples = [s for s in PreparedDataset.open(Path(metrics[1]["data_path"])).samples(split) if s.id in asked]
    return {
        "names": list(names),
        "data": metrics[1]["data"],
        "split": split,
        "samples": len(samples),
        "trained_on": [value["trained_on"] for value in metrics],
        "scores": score_predictions(samples, ours),
        "baseline": score_predictions(samples, theirs),
        "difference": compare_predictions(samples, ours, theirs),
    }
