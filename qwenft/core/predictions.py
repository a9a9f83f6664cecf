"""Questions to the model and its predictions, as they stand in `predictions.jsonl` and in `predict --json`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwenft.core.answer import Status, Task
from qwenft.core.boxes import Box
from qwenft.core.samples import Sample, as_task


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
    """Geometric mean of the coordinate tokens' probabilities; None where it is not known."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answer of the model: what it says, and what was read out of it."""

    question: Question
    status: Status
    objects: tuple[Detected, ...]
    text: str
    """The raw answer; a caption is this text."""
    prompt: str
    how: str = ""
    """What was repaired, or why nothing could be read."""
    model: str = ""
    """The base model, as it was named."""
    adapter: str | None = None
    """The adapter's folder; None: the base model answered."""

    def to_json(self) -> dict[str, Any]:
        """The form of a JSON line (design.md, section 1: predict)."""
        asked = self.question
        return {
            **({"id": asked.id} if asked.id else {}),
            "image": str(asked.image),
            "task": asked.task,
            **({"categories": list(asked.categories)} if asked.task == "detection" else {"query": asked.query}),
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
        if value["status"] not in ("ok", "salvaged", "empty", "unparsable"):
            raise ValueError(f"unknown status {value['status']!r}")
        question = Question(
            Path(value["image"]),
            as_task(value.get("task", "grounding")),
            value.get("query"),
            tuple(value.get("categories", ())),
            str(value.get("id", "")),
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
        )
