"""Answers from files, each put beside the sample that it answers."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from qwenft.core.errors import DataError
from qwenft.core.files import read_records, sha256_of_file
from qwenft.core.predictions import Prediction
from qwenft.core.samples import Sample

_NUM_IDS_SHOWN: Final = 5


def load_predictions(path: Path) -> list[Prediction]:
    """Read the JSON lines that `predict` and `eval` write, or another tool: `objects` are all that must be there.

    A line without a `status` is `ok`, or `empty` if it has no box.  Raises DataError naming the line that is none.
    """
    predictions = []
    for record in read_records(path):
        try:
            prediction = Prediction.from_json(_completed(record.value))
            _check_finite(prediction)
        except KeyError as error:
            raise _no_prediction(path, record.where, f"it has no {error}") from error
        except (TypeError, ValueError, DataError) as error:
            raise _no_prediction(path, record.where, str(error)) from error
        predictions.append(prediction)
    return predictions


def _completed(value: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"image": "", "text": "", "status": "ok" if value["objects"] else "empty", **value}


def _no_prediction(path: Path, where: str, why: str) -> DataError:
    return DataError(
        f"{path}, {where}: not a prediction ({why})",
        hint='a line is {"id": …, "image": …, "task": …, "objects": [{"bbox": [x1, y1, x2, y2], "label": …}], '
        '"status": "ok", "text": …}; for a COCO results file add --references instances.json',
    )


def _check_finite(prediction: Prediction) -> None:
    for found in prediction.objects:
        if not all(abs(v) < float("inf") for v in (*found.box_xyxy, found.score or 0.0)):
            raise ValueError(f"a box needs finite numbers, got {found.box_xyxy}, score {found.score}")


def match_predictions(samples: Sequence[Sample], predictions: Sequence[Prediction]) -> list[tuple[Sample, Prediction]]:
    """Put each sample's prediction beside it, in the samples' order, by id.

    One without an id (a line of `predict`) belongs to the sample of the same picture, by content, and question.
    Raises DataError naming the ids of which none or several are there, that belong to no sample, or of another task.
    """
    predictions = _with_ids(samples, predictions)
    by_id = {prediction.question.id: prediction for prediction in predictions}
    counts = Counter(prediction.question.id for prediction in predictions)
    sample_ids = {sample.id for sample in samples}
    problems: tuple[tuple[str, list[str]], ...] = (
        ("samples have no prediction", [s.id for s in samples if s.id not in by_id]),
        ("ids have several predictions", [id_ for id_, count in counts.items() if count > 1]),
        ("predictions belong to no sample", [id_ for id_ in by_id if id_ not in sample_ids]),
        (
            "predictions are of another task than their sample",
            [s.id for s in samples if s.id in by_id and by_id[s.id].question.task != s.task],
        ),
    )
    for what, ids in problems:
        if ids:
            shown = ", ".join(repr(id_) for id_ in ids[:_NUM_IDS_SHOWN]) + (" …" if len(ids) > _NUM_IDS_SHOWN else "")
            raise DataError(
                f"{len(ids)} {what}: {shown}", hint="predict exactly the samples of this split: qwenft eval"
            )
    return [(sample, by_id[sample.id]) for sample in samples]


def _with_ids(samples: Sequence[Sample], predictions: Sequence[Prediction]) -> Sequence[Prediction]:
    if all(prediction.question.id for prediction in predictions):
        return predictions
    free: dict[tuple[str, ...], list[str]] = {}
    for sample in samples:
        key = (sample.picture, sample.task, *_asked(sample.query, sample.categories))
        free.setdefault(key, []).append(sample.id)
    named = []
    for prediction in predictions:
        asked = prediction.question
        if asked.id:
            named.append(prediction)
            continue
        found = free.get((picture_of(asked.image), asked.task, *_asked(asked.query, asked.categories)))
        if not found:
            what = asked.query or ", ".join(asked.categories) or asked.task
            raise DataError(
                f"the prediction for {asked.image} ({what}) has no id, and no sample of this split has that "
                "picture and question",
                hint='give each line the "id" of its sample',
            )
        named.append(replace(prediction, question=replace(asked, id=found.pop(0))))
    return named


def _asked(query: str | None, categories: Sequence[str]) -> Sequence[str]:
    return sorted(word.strip().casefold() for word in (query or "", *categories))


def picture_of(path: Path) -> str:
    """SHA-256 of a picture's content, as `Sample.picture`; a picture of a prepared data set is named by it, and its
    file is not read.  Empty: there is no such file.
    """
    if re.fullmatch("[0-9a-f]{64}", path.stem):
        return path.stem
    return sha256_of_file(path) if path.is_file() else ""
