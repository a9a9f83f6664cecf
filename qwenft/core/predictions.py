"""Questions to the model and its predictions, as they stand in `predictions.jsonl` and in `predict --json`."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, get_args

from qwenft.core.answer import Status, Task
from qwenft.core.boxes import Box
from qwenft.core.samples import Sample, as_task

PredictionStatus = Status | Literal["error"]
"""What an answer says, or `error`: nothing was answered, since the picture cannot be read."""
STATUSES: Final[tuple[PredictionStatus, ...]] = (*get_args(Status), "error")
SCORES: Final = ("tokens", "yes-no")
"""Where a score comes from: the probabilities of the answer's tokens, or the model asked back about each box."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked about one picture."""

    image: Path
    task: Task
    query: str | None = None
    categories: tuple[str, ...] = ()
    id: str = ""
    """The sample's id in a prepared data set; empty for a picture of the user's."""
    ask: str = ""
    """A text to send as it is, in place of the prompt that the contract has for the task; the task still says how the
    answer is read.  Empty: the contract's prompt."""
    name: str = ""
    """What the picture is called where that is not its path: the address that it was fetched from."""

    @property
    def shown_image(self) -> str:
        """How the picture is called in what is written: its address or its path."""
        return self.name or str(self.image)

    @classmethod
    def of(cls, sample: Sample, folder: Path) -> "Question":
        """The question of a sample whose data set lies in `folder`."""
        return cls(folder / sample.image, sample.task, sample.query, sample.categories, sample.id)


@dataclass(frozen=True, slots=True)
class Detected:
    """One box that the model gave."""

    box_xyxy: Box
    """x1, y1, x2, y2 in image px."""
    label: str
    score: float | None
    """In [0, 1], see SCORES; None where it is not known."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answer of the model: what it says, and what was read out of it."""

    question: Question
    status: PredictionStatus
    objects: tuple[Detected, ...]
    text: str
    """The raw answer; a caption is this text."""
    prompt: str
    how: str = ""
    """What was repaired, or why nothing could be read: the answer, or with status `error` the picture."""
    model: str = ""
    """The base model, as it was named."""
    adapter: str | None = None
    """The adapter's folder; None: the base model answered."""
    score_by: str = "tokens"
    """One of SCORES."""
    threshold: float = 0.0
    """Boxes of a lower score were left out."""

    def above(self, threshold: float) -> "Prediction":
        """The same answer without boxes of a lower score; where none is left of some, it says that there is none.

        >>> box = Detected((0, 0, 9, 9), "dog", 0.4)
        >>> unsure = Prediction(Question(Path("a.png"), "grounding", "dog"), "ok", (box,), "…", "…").above(0.5)
        >>> unsure.status, unsure.objects, unsure.how
        ('empty', (), '1 box under the threshold 0.5 left out')
        """
        kept = tuple(item for item in self.objects if item.score is None or item.score >= threshold)
        left_out = len(self.objects) - len(kept)
        if not left_out:
            return replace(self, threshold=threshold)
        said = f"{left_out} box{'es' * (left_out > 1)} under the threshold {threshold:.4g} left out"
        how = f"{self.how}; {said}" if self.how else said
        return replace(self, threshold=threshold, objects=kept, status=self.status if kept else "empty", how=how)

    def to_json(self) -> dict[str, Any]:
        """The form of a JSON line (design.md, section 1: predict)."""
        asked = self.question
        return {
            **({"id": asked.id} if asked.id else {}),
            "image": asked.shown_image,
            "task": asked.task,
            **({"categories": list(asked.categories)} if asked.task == "detection" else {"query": asked.query}),
            **({"ask": asked.ask} if asked.ask else {}),
            "objects": [
                {"bbox": [round(v, 2) for v in found.box_xyxy], "label": found.label}
                | ({} if found.score is None else {"score": round(found.score, 6)})
                for found in self.objects
            ],
            "status": self.status,
            **({"how": self.how} if self.how else {}),
            "text": self.text,
            "prompt": self.prompt,
            "model": self.model,
            "adapter": self.adapter,
            **({"score_by": self.score_by} if self.score_by != "tokens" else {}),
            **({"threshold": self.threshold} if self.threshold else {}),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Prediction":
        """Read such a line; other keys are ignored.  Raises KeyError, TypeError, ValueError or DataError."""
        objects = []
        for item in value["objects"]:
            x1, y1, x2, y2 = (float(v) for v in item["bbox"])
            score = item.get("score")
            objects.append(
                Detected((x1, y1, x2, y2), str(item.get("label", "")), None if score is None else float(score))
            )
        if value["status"] not in STATUSES:
            raise ValueError(f"unknown status {value['status']!r}")
        question = Question(
            Path(value["image"]),
            as_task(value.get("task", "grounding")),
            value.get("query"),
            tuple(value.get("categories", ())),
            str(value.get("id", "")),
            ask=value.get("ask", ""),
            name=value["image"] if "://" in value["image"] else "",
        )
        return cls(
            question,
            value["status"],
            tuple(objects),
            text=value["text"],
            prompt=value.get("prompt", ""),
            how=value.get("how", ""),
            model=value.get("model", ""),
            adapter=value.get("adapter"),
            score_by=str(value.get("score_by", "tokens")),
            threshold=float(value.get("threshold", 0.0)),
        )
