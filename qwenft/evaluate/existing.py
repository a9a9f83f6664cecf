"""Answers that exist already are scored: predict's lines, COCO results of any tool, and two runs side by side."""

from pathlib import Path
from typing import Any

from qwenft.core.errors import RunError, UsageError, nearest
from qwenft.core.files import read_json
from qwenft.core.samples import PreparedDataset
from qwenft.evaluate.coco_files import score_coco_files
from qwenft.evaluate.compare import compare_predictions
from qwenft.evaluate.match import load_predictions
from qwenft.evaluate.score import eyeless_baseline, score_predictions, scored_split


def evaluate_predictions(
    predictions: Path,
    *,
    data: PreparedDataset | None = None,
    split: str | None = None,
    references: Path | None = None,
) -> dict[str, Any]:
    """Score answers that exist already; no model is read and nothing is written.

    With `data`: JSON lines of `predict` against a split (unset: the held-out one).  With `references`: a COCO results
    file against an instances file.  Raises UsageError unless it is exactly one of the two, DataError for their content.
    """
    if references is not None and data is None:
        scores = {"detection": score_coco_files(predictions, references)}
        return {"predictions": str(predictions.absolute()), "references": str(references.absolute()), "scores": scores}
    if data is not None and references is None:
        chosen = scored_split(data, split)
        samples = data.samples(chosen)
        return {
            "predictions": str(predictions.absolute()),
            "data": str(data.path),
            "split": chosen,
            "scores": score_predictions(samples, load_predictions(predictions)),
            "constant_box": eyeless_baseline(data, chosen, samples),
        }
    raise UsageError(
        "predictions are scored either against a prepared data set or against --references",
        hint=f"qwenft eval --predictions {predictions} --data …",
    )


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
