"""What the page asks: a picture and a text within limits become a question, which an adapter and its base answer."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from qwenft.core.answer import Task
from qwenft.core.errors import DataError, UsageError
from qwenft.core.events import Emit, Event, ignore
from qwenft.core.predictions import Prediction, Question
from qwenft.core.runs import Answerer
from qwenft.core.samples import PreparedDataset, as_task
from qwenft.predict.inputs import Asking
from qwenft.prepare.pictures import upright_size

if TYPE_CHECKING:
    from qwenft.predict.generate import Predictor

MAX_FILE_BYTES: Final = 32 * 1024 * 1024
"""Of an uploaded picture."""
MAX_PIXELS: Final = 50_000_000
"""Of an uploaded picture: 150 MB once it is decoded."""
MAX_TEXT: Final = 500
"""Characters of a text."""
NUM_EXAMPLES: Final = 6


@dataclass(frozen=True, slots=True)
class Example:
    """A question of a data set, to be tried."""

    picture: Path
    text: str
    task: Task


def examples_of(dataset: PreparedDataset) -> list[Example]:
    """Questions of the held-out split, or of the training split where nothing is held out: a picture each."""
    samples = dataset.samples(dataset.held_out or dataset.train)
    firsts = list({sample.image: sample for sample in reversed(samples)}.values())[::-1]
    chosen = firsts[:: max(1, len(firsts) // NUM_EXAMPLES)][:NUM_EXAMPLES]
    return [
        Example(dataset.picture_path(sample), sample.query or ", ".join(sample.categories), sample.task)
        for sample in chosen
    ]


def question_of(picture: Path | None, text: str, task: str) -> Question:
    """The question about an uploaded picture, which is called by its file's name: where it lies is said nowhere.

    Raises UsageError where something is missing, DataError for a picture that cannot be read or is too large.
    """
    if picture is None:
        raise UsageError("there is no picture yet", hint="drop one into the field, or take an example")
    kind = as_task(task)
    if kind != "caption" and not text.strip():
        wanted = "the dog" if kind == "grounding" else "cat, dog"
        raise UsageError("there is no text yet: what is to be found?", hint=f"for example: {wanted}")
    if len(text) > MAX_TEXT:
        raise UsageError(f"the text has {len(text):,} characters, over {MAX_TEXT}", hint="name what is to be found")
    with called_by_name(picture):
        width, height = upright_size(picture)
    size = picture.stat().st_size
    if size > MAX_FILE_BYTES or width * height > MAX_PIXELS:
        raise DataError(
            f"{picture.name} has {width} x {height} px in {size / 1e6:.1f} MB: at most {MAX_PIXELS / 1e6:.0f} million "
            f"px and {MAX_FILE_BYTES / 1e6:.0f} MB are taken",
            hint="shrink it: the model looks at about a million px",
        )
    return replace(Asking(None if kind == "caption" else text, kind).about(str(picture)), name=picture.name)


@contextmanager
def called_by_name(picture: Path) -> Iterator[None]:
    """Inside the block an error about a picture names the file alone, not the folder of the server it lies in."""
    try:
        yield
    except DataError as error:
        raise DataError(str(error).replace(str(picture.absolute()), picture.name), hint=error.hint) from error


@dataclass
class Asker:
    """The model behind the page: one at a time may ask it."""

    chosen: Answerer
    adapted: "Predictor"
    """What was chosen: the base model with the adapter of a run, or the base model."""
    emit: Emit = ignore
    _base: "Predictor | None" = field(init=False)

    def __post_init__(self) -> None:
        # Beside the other one, on the same weights: each keeps a cache of its own and merges nothing anew.
        self._base = replace(self.adapted, adapter=None) if self.adapted.adapter else None

    @property
    def names(self) -> tuple[str, ...]:
        """Who answers, in order: the adapter and its base, or a base model alone."""
        base = f"base model {self.chosen.model}"
        return (f"adapter of the run {self.chosen.run.name}", base) if self.chosen.run else (base,)

    def answers(self, question: Question) -> Iterator[Prediction]:
        """The answers in the order of `names`.  Raises DataError where the picture breaks off, DeviceError."""
        with called_by_name(question.image):
            yield from self.adapted.answer([question], emit=self._tell)
            if self._base is not None:
                with self._base.adapter_disabled():
                    compared = list(self._base.answer([question], emit=self._tell))
                yield from compared

    def _tell(self, event: Event) -> None:
        if event["event"] != "progress":
            self.emit(event)
