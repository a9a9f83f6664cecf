"""The body of `predict`: pictures and a text in, predictions and drawn pictures out."""

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from qwenft.core.answer import Task
from qwenft.core.errors import DataError, UsageError
from qwenft.core.events import Emit, ignore, note
from qwenft.core.phrases import phrase_of
from qwenft.core.predictions import Prediction, Question
from qwenft.core.runs import choose_answerer
from qwenft.predict.draw import FORMATS, draw_boxes, save_picture
from qwenft.prepare.pictures import EXTENSIONS, open_upright

if TYPE_CHECKING:
    from qwenft.predict.generate import Predictor

PICTURE_SUFFIXES: Final = frozenset({".jpeg", ".tiff", *(f".{ending}" for ending in EXTENSIONS.values())})


def find(
    images: Sequence[str | Path],
    text: str | None = None,
    *,
    task: Task = "grounding",
    run: str | None = None,
    model: str | None = None,
    gpus: str | None = None,
    batch_size: int | None = None,
    save: Path | None = None,
    root: Path | None = None,
    emit: Emit = ignore,
) -> list[Prediction]:
    """Find `text` in pictures; boxes are in pixels of each file as a viewer shows it.

    images: files, folders or globs.  text: a phrase or an instruction; categories with commas for task "detection";
    None for task "caption".  save: a picture file for one picture, else a folder.
    Raises UsageError, DataError, ModelError, DeviceError.
    """
    questions = make_questions(images, text, task)
    if save is not None:
        _check_save(save, questions)
    for question in questions:
        open_upright(question.image)  # before the model is loaded: a wrong path must not cost half a minute
    chosen = choose_answerer(run, model, root)
    emit(note(chosen.text()))
    from qwenft.predict.generate import Predictor

    predictor = Predictor.load(chosen.model, chosen.adapter, gpus=gpus, emit=emit)
    return list(_answer(predictor, questions, batch_size, save, emit))


def _answer(
    predictor: "Predictor", questions: Sequence[Question], batch_size: int | None, save: Path | None, emit: Emit
) -> Iterator[Prediction]:
    for prediction in predictor.answer(questions, batch_size=batch_size, emit=emit):
        if save is not None:
            path = save if save.suffix else save / f"{prediction.question.image.stem}-boxes.png"
            save_picture(draw_boxes(open_upright(prediction.question.image), prediction.objects), path)
            emit(note(f"drawn: {path.absolute()}"))
        yield prediction


def make_questions(images: Sequence[str | Path], text: str | None, task: Task) -> list[Question]:
    """One question a picture.  Raises UsageError where the text is missing or looks like a picture."""
    if not images:
        raise UsageError("no picture is named", hint='qwenft predict photo.jpg "find the dog"')
    if task == "caption":
        if text:
            raise UsageError("a caption needs no text", hint="qwenft predict photo.jpg --task caption")
    elif not text or not text.strip():
        raise UsageError("TEXT is missing: what is to be found?", hint=f'qwenft predict {images[0]} "find the dog"')
    elif looks_like_picture(text):
        raise UsageError(
            f"TEXT is missing: the last argument, {text}, is a picture", hint=f'qwenft predict … {text} "find the dog"'
        )
    paths = [path for image in images for path in _expand(image)]
    asked = (text or "").strip()
    if task == "detection":
        categories = tuple(word.strip() for word in asked.replace("，", ",").split(",") if word.strip())
        return [Question(path, task, categories=categories) for path in paths]
    query = phrase_of(asked) if task == "grounding" else None
    return [Question(path, task, query) for path in paths]


def looks_like_picture(text: str) -> bool:
    """Whether a text is a file, or named like a picture."""
    try:
        return Path(text).suffix.lower() in PICTURE_SUFFIXES or Path(text).exists()
    except (OSError, ValueError):  # a text too long for a path
        return False


def _expand(image: str | Path) -> list[Path]:
    path = Path(image).expanduser()
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURE_SUFFIXES)
        if not found:
            raise DataError(f"{path.absolute()} holds no picture", hint=f"known: {', '.join(sorted(PICTURE_SUFFIXES))}")
        return [p.absolute() for p in found]
    if path.exists():
        return [path.absolute()]
    matched = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 - absolute patterns too
    if not matched:
        raise DataError(f"{path.absolute()} does not exist", hint="check the path")
    return [Path(match).absolute() for match in matched]


def _check_save(save: Path, questions: Sequence[Question]) -> None:
    if save.suffix and save.suffix.lower() not in FORMATS:
        raise UsageError(f"--save {save}: cannot write {save.suffix}", hint=f"one of {', '.join(FORMATS)}, or a folder")
    if save.suffix and len(questions) > 1:
        raise UsageError(f"--save {save} is one file, but there are {len(questions)} pictures", hint="--save FOLDER")
    stems = [question.image.stem for question in questions]
    if not save.suffix and len(set(stems)) < len(stems):
        doubled = next(stem for stem in stems if stems.count(stem) > 1)
        raise UsageError(f"--save {save}: two pictures are named {doubled}", hint="give the folders one after another")
