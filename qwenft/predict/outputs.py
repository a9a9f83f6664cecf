"""What `predict` leaves in files: drawings, crops, COCO results, and answers from which a killed run goes on."""

import errno
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, Final

from qwenft.core.answer import Task
from qwenft.core.boxes import Size
from qwenft.core.errors import DataError, UsageError
from qwenft.core.events import Emit, note, warning
from qwenft.core.files import to_line, write_json
from qwenft.core.predictions import Prediction, Question
from qwenft.predict.draw import FORMATS, draw_boxes, missing_characters, save_picture
from qwenft.prepare.pictures import open_upright, upright_size


def file_stems(questions: Sequence[Question]) -> list[str]:
    """A file name for each question, without suffix: its picture's, with a number where two would be the same.

    >>> file_stems([Question(Path("a/x.png"), "grounding"), Question(Path("b/x.png"), "grounding")])
    ['x', 'x-2']
    """
    taken: set[str] = set()
    own = {question.image.stem for question in questions}
    stems = []
    for question in questions:
        stem, number = question.image.stem, 2
        while stem in taken or (stem in own and stem != question.image.stem):
            stem, number = f"{question.image.stem}-{number}", number + 1
        taken.add(stem)
        stems.append(stem)
    return stems


class Drawings:
    """`--save` and `--crop`: pictures with their boxes drawn, and each box cut out, as PNG (or as --save names it)."""

    def __init__(self, questions: Sequence[Question], save: Path | None, crop: Path | None, emit: Emit) -> None:
        _check(questions, save, crop)
        self._save, self._crop, self._emit = save, crop, emit
        self._stems = file_stems(questions)
        self._missing: set[str] = set()

    def take(self, number: int, answer: Prediction) -> None:
        """Write what belongs to the question of this number.  Raises DataError where its picture is gone."""
        if answer.status == "error" or not (self._save or self._crop):
            return
        upright = open_upright(answer.question.image)
        if self._save is not None:
            path = self._save if self._save.suffix else self._save / f"{self._stems[number]}-boxes.png"
            with _writing(path):
                save_picture(draw_boxes(upright, answer.objects), path)
            self._emit(note(f"drawn: {path.absolute()}"))
            self._tell_missing(answer)
        if self._crop is not None:
            for place, item in enumerate(answer.objects, 1):
                left, top, right, bottom = item.box_xyxy
                box = (math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom))
                if box[0] < box[2] and box[1] < box[3]:
                    path = self._crop / f"{self._stems[number]}-{place}.png"
                    with _writing(path):
                        save_picture(upright.crop(box), path)

    def _tell_missing(self, answer: Prediction) -> None:
        new = set(missing_characters(answer.objects)) - self._missing
        if new:
            self._missing |= new
            shown = "".join(sorted(new)[:8])
            self._emit(
                warning(
                    f"no font on this machine has {shown}: such boxes are drawn with their number in the answer, not "
                    "their label (a font with Chinese, for example Noto Sans CJK, mends it)"
                )
            )


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Inside the block what the system says of a file that cannot be written becomes DataError."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path.absolute()} cannot be written: {error.strerror or error}", hint="name another place, or make room"
        ) from error


def _check(questions: Sequence[Question], save: Path | None, crop: Path | None) -> None:
    if save is not None and save.suffix and save.suffix.lower() not in FORMATS:
        raise UsageError(f"--save {save}: cannot write {save.suffix}", hint=f"one of {', '.join(FORMATS)}, or a folder")
    if save is not None and save.suffix and len(questions) > 1:
        raise UsageError(f"--save {save} is one file, but there are {len(questions)} answers", hint="--save FOLDER")
    for option, folder in (("--save", None if save is None or save.suffix else save), ("--crop", crop)):
        if folder is not None and folder.is_file():
            raise UsageError(f"{option} {folder} is a file", hint=f"{option} FOLDER")
    if crop is not None and all(question.task == "caption" for question in questions):
        raise UsageError("--crop cuts out boxes; a caption has none", hint="leave out --crop")


def check_coco(path: Path, questions: Sequence[Question]) -> None:
    """Raises UsageError where no answer could stand in a COCO results file, DataError where none could be written."""
    if any(question.task == "caption" for question in questions):
        raise UsageError("--coco writes boxes; a caption has none", hint="leave out --coco")
    if path.is_dir():
        raise UsageError(f"--coco {path} is a folder", hint=f"--coco {path / 'results.json'}")
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)


def write_coco(path: Path, answers: Sequence[Prediction]) -> Path:
    """Write a COCO results file, and beside it <stem>.images.json: the images and categories that its ids mean.

    Returns the companion's path.
    """
    results, named = coco_of(answers)
    companion = path.absolute().with_name(f"{path.stem}.images.json")
    with _writing(path):
        write_json(companion, {**named, "annotations": []})
        write_json(path, results)
    return companion


def coco_of(answers: Sequence[Prediction]) -> tuple[list[dict[str, Any]], dict[str, list[dict[str, Any]]]]:
    """Answers as COCO results, and the `images` and `categories` that their ids mean.

    A picture's id is the number that its name is (COCO's own convention: 000000000139.jpg is 139) if all names are
    numbers, else its place from 1; an unreadable picture has no entry.  A category is what was asked for, in that
    order, then labels that nobody asked for.  A box whose score is not known gets 0.0.  Boxes: x, y, width, height in
    image px.  Format: https://cocodataset.org/#format-results
    """
    sizes: dict[tuple[str, Path], Size] = {}
    for answer in answers:
        if answer.status != "error":
            asked = answer.question
            sizes.setdefault((asked.shown_image, asked.image), upright_size(asked.image))
    ids = _image_ids([name for name, _ in sizes])
    categories: dict[str, int] = {}
    for answer in answers:
        for name in answer.question.categories or (answer.question.query or "object",):
            categories.setdefault(name, len(categories) + 1)
    results = [
        {
            "image_id": ids[answer.question.shown_image],
            "category_id": categories.setdefault(_category(answer.question, item.label), len(categories) + 1),
            "bbox": [round(v, 2) for v in _xywh(item.box_xyxy)],
            "score": round(item.score or 0.0, 6),
        }
        for answer in answers
        for item in answer.objects
    ]
    images = [
        {"id": ids[name], "file_name": name, "width": size[0], "height": size[1]} for (name, _), size in sizes.items()
    ]
    named = [{"id": number, "name": name} for name, number in categories.items()]
    return results, {"images": images, "categories": named}


def _image_ids(names: Sequence[str]) -> dict[str, int]:
    stems = [Path(name).stem for name in names]
    if all(stem.isascii() and stem.isdigit() for stem in stems) and len({int(stem) for stem in stems}) == len(stems):
        return {name: int(stem) for name, stem in zip(names, stems, strict=True)}
    return {name: number for number, name in enumerate(names, 1)}


def _category(question: Question, label: str) -> str:
    return label or "object" if question.task == "detection" else question.query or label or "object"


def _xywh(box_xyxy: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = box_xyxy
    return (x1, y1, x2 - x1, y2 - y1)


PORTION: Final = 1024
"""Questions that are answered as a whole where answers are kept in a file.  A run that goes on begins at such a border:
what stands in one batch together moves the last digits of a score, so only the same portions give the same file."""


class AnswerFile:
    """Answers as JSON lines, each appended whole as soon as it is made; those that stand there already are kept.

    answerer: model, adapter and kind of score.  thresholds: task -> the score under which boxes are left out.
    Raises DataError where the file holds something else, answers to other questions or of another model, or where
    another process writes it.
    """

    def __init__(
        self,
        path: Path,
        questions: Sequence[Question],
        answerer: tuple[str, str | None, str],
        thresholds: Mapping[Task, float] = MappingProxyType({}),
    ) -> None:
        self.path, self._thresholds = path.absolute(), thresholds
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b", buffering=0)  # a line is one write
        try:
            _hold(self._file, path)
            self.kept, end = self._read(questions, answerer)
        except BaseException:
            self._file.close()
            raise
        self._file.truncate(end)

    def _read(
        self, questions: Sequence[Question], answerer: tuple[str, str | None, str]
    ) -> tuple[list[Prediction], int]:
        """The answers to keep and where they end: whole portions, or all of them."""
        self._file.seek(0)
        *lines, _torn = self._file.read().split(b"\n")
        found, ends, end = [], [0], 0
        for number, line in enumerate(lines, 1):
            found.append(_kept(line, number, self.path, questions, answerer))
            self._check_threshold(found[-1], number)
            end += len(line) + 1
            ends.append(end)
        count = len(found) if len(found) == len(questions) else len(found) // PORTION * PORTION
        return found[:count], ends[count]

    def _check_threshold(self, answer: Prediction, number: int) -> None:
        now = self._thresholds.get(answer.question.task, 0.0)
        if answer.status != "error" and answer.threshold != now:
            raise DataError(
                f"{self.path}, line {number} leaves out boxes under a score of {answer.threshold:g}, now it is {now:g}",
                hint=f"--threshold {answer.threshold!r}, or name another file",
            )

    def append(self, answer: Prediction) -> None:
        """Add one whole line, in one write.  Raises DataError where the disk does not take it."""
        value = answer.to_json()
        try:
            line = f"{to_line(value)}\n".encode()
        except UnicodeEncodeError:  # a file's name that is no text
            line = f"{json.dumps(value)}\n".encode()
        with _writing(self.path):
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        """Let the file go; one without any answer is removed."""
        if os.fstat(self._file.fileno()).st_size == 0:
            self.path.unlink(missing_ok=True)
        self._file.close()


def _kept(
    line: bytes, number: int, path: Path, questions: Sequence[Question], answerer: tuple[str, str | None, str]
) -> Prediction:
    where, hint = f"{path}, line {number}", "name another file, or remove this one"
    try:
        answer = Prediction.from_json(json.loads(line))
    except (ValueError, KeyError, TypeError, RecursionError, DataError) as error:
        raise DataError(f"{where} is no answer that could be kept ({error})", hint=hint) from error
    if number > len(questions) or _identity(answer.question) != _identity(questions[number - 1]):
        raise DataError(f"{where} answers another question: {answer.question.shown_image}", hint=hint)
    by = (answer.model, answer.adapter, answer.score_by)
    if answer.status != "error" and by != answerer:
        old, new = (" and ".join(str(part) for part in who if part) for who in (by, answerer))
        raise DataError(f"{where} was answered by {old}, now answers {new}", hint=hint)
    return replace(answer, question=questions[number - 1])  # an address was fetched anew: its file lies elsewhere now


def _identity(question: Question) -> tuple[Any, ...]:
    return (question.shown_image, question.task, question.query, question.categories, question.ask, question.id)


def _hold(file: IO[bytes], path: Path) -> None:
    """Keep every other process from this file until it is closed, however this one ends."""
    if sys.platform == "win32":
        return
    import fcntl

    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DataError(
            f"another process is writing {path.absolute()} right now", hint="wait until it is done"
        ) from None
    except OSError:  # a disk that cannot lock
        return


def in_portions(questions: Sequence[Question], start: int) -> Iterator[Sequence[Question]]:
    """The questions from `start` on, a portion at a time."""
    for at in range(start, len(questions), PORTION):
        yield questions[at : at + PORTION]
