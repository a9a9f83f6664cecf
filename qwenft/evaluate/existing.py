"""Answers that exist already are scored: predict's lines, COCO results of any tool, and two runs side by side."""

from pathlib import Path
from typing import Any

from qwenft.core.errors import UsageError
from qwenft.core.samples import PreparedDataset
from qwenft.evaluate.coco_files import score_coco_files
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
