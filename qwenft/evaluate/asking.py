"""A split is asked: answers are kept in a file while they are made, so that a killed evaluation goes on."""

import glob
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

from qwenft.core.events import Emit, Event, note
from qwenft.core.predictions import Prediction, Question
from qwenft.core.runs import Answerer
from qwenft.predict.outputs import AnswerFile, in_portions

if TYPE_CHECKING:
    from qwenft.predict.generate import Predictor

_DIGITS: Final = 12
"""Of the hash in a file's name."""


def ask(
    predictor: "Predictor", questions: Sequence[Question], kept: Path, *, batch_size: int | None, emit: Emit
) -> list[Prediction]:
    """Every answer in order: those that `kept` holds already, then new ones, appended to it a line each.

    What is returned is what stands in the file (rounded), so that scoring the file again gives the same figures.
    Raises DataError where another process evaluates the same, or a picture cannot be read.
    """
    adapter = None if predictor.adapter is None else str(predictor.adapter)
    file = AnswerFile(kept, questions, (predictor.contract.base, adapter, "tokens"))
    answers = list(file.kept)
    try:
        if answers:
            emit(note(f"going on with an evaluation that was stopped: {len(answers)} answers are kept"))
        for portion in in_portions(questions, len(answers)):
            tell = _counted(emit, len(answers), len(questions))
            for answer in predictor.answer(portion, batch_size=batch_size, emit=tell):
                file.append(answer)
                answers.append(Prediction.from_json(answer.to_json()))
    finally:
        file.close()
    return answers


def _counted(emit: Emit, before: int, total: int) -> Emit:
    """Reports the questions of a portion as a part of all."""

    def tell(event: Event) -> None:
        if event["event"] == "progress" and event["what"] == "questions":
            event = {**event, "done": before + event["done"], "total": total}
        emit(event)

    return tell


def kept_answers(evals: Path, name: str, subject: Answerer, batch_size: int | None) -> Path:
    """Where the answers of an unfinished evaluation lie: another adapter, or the same one trained on, has another file.

    evals: the folder of evaluations.  name: of this one.
    """
    weights = sorted(subject.adapter.glob("*.safetensors")) if subject.adapter else []
    key = {
        "model": subject.model,
        "contract": asdict(subject.contract) if subject.contract else None,
        "weights": [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in weights],
        "batch_size": batch_size,
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:_DIGITS]
    return evals / f".{name}-{digest}.jsonl"


def forget_answers(evals: Path, name: str) -> None:
    """Remove what was kept of an evaluation that stands now, of older adapters too."""
    for path in evals.glob(f".{glob.escape(name)}-{'[0-9a-f]' * _DIGITS}*.jsonl"):
        path.unlink(missing_ok=True)
