"""The body of `predict`: pictures and a text in, predictions and files out, each answer as soon as it is made."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import update_wrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, ParamSpec

from qwenft.core.answer import Task
from qwenft.core.errors import DataError, UsageError, nearest
from qwenft.core.events import Emit, Event, ignore, note, progress
from qwenft.core.predictions import SCORES, Prediction, Question
from qwenft.core.runs import Answerer, choose_answerer
from qwenft.model.fetch import check_answerable
from qwenft.predict.fetch import fetched
from qwenft.predict.inputs import make_questions
from qwenft.predict.outputs import AnswerFile, Drawings, check_coco, in_portions, write_coco
from qwenft.prepare.pictures import open_upright, upright_size

if TYPE_CHECKING:
    from qwenft.predict.generate import Predictor

_Arguments = ParamSpec("_Arguments")
_PICTURES_AT_ONCE: Final = os.cpu_count() or 1


def find_each(
    images: Sequence[str | Path],
    text: str | None = None,
    *,
    task: Task = "grounding",
    ask: str = "",
    lines: Iterable[str] | None = None,
    run: str | None = None,
    model: str | None = None,
    gpus: str | None = None,
    batch_size: int | None = None,
    score: str = "tokens",
    threshold: float | None = None,
    save: Path | None = None,
    crop: Path | None = None,
    coco: Path | None = None,
    out: Path | None = None,
    root: Path | None = None,
    emit: Emit = ignore,
) -> Iterator[Prediction]:
    """Find `text` in pictures; boxes are in pixels of each file as a viewer shows it.

    images: files, folders, globs, http(s) addresses, or "-" for `lines`.  text: a phrase or an instruction; categories
    with commas for task "detection"; None for task "caption".  ask: the prompt itself, in place of a text.
    score: tokens, or yes-no: the model is asked back about each box.  threshold: boxes of a lower score are left out;
    unset: the contract's, if it has one and `score` is tokens; 0: none is.  save: a picture file for one answer, else a
    folder.  crop: a folder for each box cut out.  coco: a COCO results file.  out: a file of JSON lines, to which each
    answer is appended; a run that was killed goes on from it.
    A picture that cannot be read gives a prediction of status `error`, and the others are answered.
    Raises UsageError, ModelError, DeviceError, RunError; DataError where no picture at all can be read.
    """
    questions = make_questions(images, text, task, ask=ask, lines=lines)
    _check(questions, score, threshold, coco)
    with fetched(questions, emit) as (files, not_fetched):
        questions = [replace(q, image=files[q.name]) if q.name in files else q for q in questions]
        drawings = Drawings(questions, save, crop, emit)
        unreadable = _unreadable(questions, upright_size)
        unreadable.update((q.image, not_fetched[q.name]) for q in questions if q.name in not_fetched)
        if all(question.image in unreadable for question in questions):
            raise _nothing_to_look_at(questions, unreadable)
        chosen = choose_answerer(run, model, root)
        emit(note(chosen.text()))
        thresholds = _thresholds({question.task for question in questions}, chosen, score, threshold, emit)
        work = _Work(questions, chosen, unreadable, gpus, batch_size, score, thresholds, emit)
        answers = []
        for number, answer in enumerate(work.kept_and_new(out)):
            drawings.take(number, answer)
            answers.append(answer)
            yield answer
        if coco is not None:
            emit(note(f"COCO results: {coco.absolute()}; its images and categories: {write_coco(coco, answers)}"))


def _called_like(
    each: Callable[_Arguments, object],
) -> Callable[[Callable[..., list[Prediction]]], Callable[_Arguments, list[Prediction]]]:
    """Give a function the arguments of another one, for the type checker and for help()."""
    return lambda function: update_wrapper(function, each, assigned=(), updated=())


@_called_like(find_each)
def find(*args: Any, **options: Any) -> list[Prediction]:
    """All answers of `find_each`, which says what it takes, in a list.

    >>> from qwenft import find
    >>> (answer,) = find(["photo.png"], "find the blue star", model="tiny", gpus="cpu")
    >>> answer.question.query, answer.status, len(answer.objects[0].box_xyxy)
    ('the blue star', 'ok', 4)
    """
    return list(find_each(*args, **options))


def unreadable_error(answers: Sequence[Prediction]) -> DataError | None:
    """The error to end with where pictures could not be read; None where all could."""
    failed = [answer for answer in answers if answer.status == "error"]
    if not failed:
        return None
    which = "1 question" if len(failed) == 1 else f"{len(failed)} questions"
    return DataError(
        f"{which} of {len(answers)} could not be asked, the others are answered; {failed[0].how}",
        hint=f"mend or leave out {failed[0].question.shown_image}",
    )


def _check(questions: Sequence[Question], score: str, threshold: float | None, coco: Path | None) -> None:
    if threshold is not None and not 0 <= threshold <= 1:
        raise UsageError(f"a threshold is a score in [0, 1], not {threshold:g}", hint="--threshold 0.5")
    if score not in SCORES:
        raise UsageError(f"unknown score {score!r}", hint=nearest(score, SCORES))
    if score == "yes-no" and any(question.task == "caption" for question in questions):
        raise UsageError("--score yes-no asks about boxes; a caption has none", hint="leave out --score")
    if coco is not None:
        check_coco(coco, questions)


def _thresholds(
    tasks: Iterable[Task], chosen: Answerer, score: str, threshold: float | None, emit: Emit
) -> dict[Task, float]:
    """Task -> the score under which a box is left out: what was asked for, else what the contract has; said aloud."""
    if threshold is not None:
        return dict.fromkeys(tasks, threshold)
    own = chosen.trained.thresholds if chosen.trained else {}
    brought = {task: own[task] for task in sorted(tasks) if task in own and own[task].score}
    if brought and score != "tokens":
        emit(note(f"the contract's threshold is one of token probabilities: it does not apply to --score {score}"))
        return {}
    for kept in brought.values():
        where = f"chosen on {kept.chosen_on}: --threshold 0 leaves none out"
        emit(note(f"boxes under a score of {kept.score:.4g} are left out, {where}"))
    return {task: kept.score for task, kept in brought.items()}


def _unreadable(questions: Sequence[Question], look: Callable[[Path], object]) -> dict[Path, DataError]:
    """The files that cannot be looked at in this way, and why."""

    def error_of(path: Path) -> DataError | None:
        if not path.exists():
            return DataError(f"{path} does not exist", hint="check the path")
        try:
            look(path)
        except DataError as error:
            return error
        return None

    paths = list(dict.fromkeys(question.image for question in questions))
    with ThreadPoolExecutor(_PICTURES_AT_ONCE) as pool:
        return {path: error for path, error in zip(paths, pool.map(error_of, paths), strict=True) if error}


def _nothing_to_look_at(questions: Sequence[Question], unreadable: dict[Path, DataError]) -> DataError:
    first = unreadable[questions[0].image]
    if len(questions) == 1:
        return first
    return DataError(f"none of {len(questions)} pictures can be read; the first: {first}", hint=first.hint)


def _not_asked(question: Question, error: DataError) -> Prediction:
    return Prediction(question, "error", (), text="", prompt=question.ask, how=str(error))


@dataclass
class _Work:
    """The questions of one call, and who answers them how."""

    questions: Sequence[Question]
    chosen: Answerer
    unreadable: dict[Path, DataError]
    gpus: str | None
    batch_size: int | None
    score: str
    thresholds: Mapping[Task, float]
    emit: Emit
    _predictor: "Predictor | None" = field(default=None, init=False)

    def kept_and_new(self, out: Path | None) -> Iterator[Prediction]:
        """Every answer in order: those that `out` holds already, then new ones, appended to it."""
        if out is None:
            yield from self._scored(self.questions, 0)
            return
        base = self.chosen.contract.base if self.chosen.contract else self.chosen.model
        adapter = str(self.chosen.adapter.absolute()) if self.chosen.adapter else None
        file = AnswerFile(out, self.questions, (base, adapter, self.score), self.thresholds)
        try:
            done = len(file.kept)
            if done:
                self.emit(note(f"{done} of {len(self.questions)} answers stand in {file.path} already"))
            yield from file.kept
            for portion in in_portions(self.questions, done):
                for answer in self._scored(portion, done):
                    file.append(answer)
                    done += 1
                    yield answer
        finally:
            file.close()

    def _scored(self, questions: Sequence[Question], before: int) -> Iterator[Prediction]:
        answers = self._answered(questions, before)
        if self.score != "tokens":
            from qwenft.predict.verify import rescored

            answers = rescored(self._load(), answers)
        for answer in answers:
            yield answer.above(self.thresholds.get(answer.question.task, 0.0))

    def _answered(self, questions: Sequence[Question], before: int) -> Iterator[Prediction]:
        """Answers in order, with an error in the place of each unreadable picture.

        A picture that breaks only while it is decoded ends a pass of the model: then all that wait are decoded, and the
        next pass leaves the broken ones out.  Decoding everything before would cost more than it saves.
        """
        done = 0
        if any(question.image not in self.unreadable for question in questions):
            self._load()  # before anything is counted: it takes longest
        self.emit(progress("questions", before, len(self.questions)))
        while done < len(questions):
            readable = [question for question in questions[done:] if question.image not in self.unreadable]
            answers: Iterator[Prediction] = iter(())
            if readable:
                answers = self._load().answer(readable, batch_size=self.batch_size, emit=self._tell)
            try:
                for question in questions[done:]:
                    error = self.unreadable.get(question.image)
                    answer = _not_asked(question, error) if error else next(answers)
                    done += 1
                    yield answer
                    self.emit(progress("questions", before + done, len(self.questions)))
            except DataError:
                broken = _unreadable([q for q in questions[done:] if q.image not in self.unreadable], open_upright)
                if not broken:
                    raise
                self.unreadable.update(broken)

    def _tell(self, event: Event) -> None:
        """Everything but the predictor's own count: it knows one pass, and here all questions are counted."""
        if event["event"] != "progress" or event["what"] != "questions":
            self.emit(event)

    def _load(self) -> "Predictor":
        if self._predictor is None:
            check_answerable(self.chosen.model, self.gpus)
            from qwenft.predict.generate import Predictor  # torch, transformers: seconds, so only here

            self._predictor = Predictor.load(self.chosen.model, self.chosen.adapter, gpus=self.gpus, emit=self.emit)
        return self._predictor
