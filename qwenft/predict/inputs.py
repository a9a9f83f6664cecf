"""What `predict` is asked: files, folders, globs, addresses or lines of stdin, and a text, become questions."""

import glob
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from qwenft.core.answer import Task
from qwenft.core.errors import DataError, UsageError, nearest
from qwenft.core.phrases import phrase_of
from qwenft.core.predictions import Question
from qwenft.core.samples import as_task
from qwenft.prepare.pictures import EXTENSIONS

PICTURE_SUFFIXES: Final = frozenset({".jpeg", ".tiff", *(f".{ending}" for ending in EXTENSIONS.values())})
STDIN: Final = "-"
"""In place of pictures: each line of stdin is one."""
LINE_KEYS: Final = ("image", "query", "categories", "task", "ask", "id")
_ADDRESS: Final = re.compile(r"https?://", re.IGNORECASE)
_EXAMPLE: Final = '{"image": "photo.jpg", "query": "the dog"}'
_COMMAS: Final = re.compile("[,，、]")


@dataclass(frozen=True, slots=True)
class Asking:
    """What is asked about every picture; a line of stdin may say otherwise for its own."""

    text: str | None = None
    """A phrase or an instruction; categories with commas for detection."""
    task: Task = "grounding"
    ask: str = ""
    """The prompt itself, in place of a text; the task says how the answer is read."""

    def about(self, image: str, line: Mapping[str, Any] | None = None) -> Question:
        """The question about one picture.  Raises UsageError where nothing is asked, DataError for an odd line."""
        own = line or {}
        task = as_task(str(own.get("task", self.task)))
        text = own.get("categories", own.get("query", self.text))
        if isinstance(text, list):
            text = ", ".join(str(item) for item in text)
        asked = str(text or "").strip()
        ask = str(own.get("ask") or ("" if "query" in own or "categories" in own else self.ask)).strip()
        if not asked and not ask and task != "caption":
            raise UsageError("TEXT is missing: what is to be found?", hint=f'qwenft predict {image} "find the dog"')
        categories: tuple[str, ...] = ()
        if task == "detection":
            categories = tuple(dict.fromkeys(word.strip() for word in _COMMAS.split(asked) if word.strip()))
        query = phrase_of(asked) if task == "grounding" and asked else None
        name = image if is_address(image) else ""
        path = Path(image) if name else Path(image).expanduser().absolute()
        return Question(path, task, query, categories, str(own.get("id", "")), ask=ask, name=name)


def is_address(text: str) -> bool:
    """Whether a picture is named by an http(s) address."""
    return bool(_ADDRESS.match(text))


def make_questions(
    images: Sequence[str | Path],
    text: str | None,
    task: Task = "grounding",
    *,
    ask: str = "",
    lines: Iterable[str] | None = None,
) -> list[Question]:
    """One question a picture, in the order given; nothing is opened or fetched yet.

    images: files, folders, globs and addresses, or only "-": then each of `lines` is a picture's path or address, or
    a JSON object with `image` and any of LINE_KEYS.  text: see Asking; None for task "caption".
    Raises UsageError where the text is missing or looks like a picture, DataError for what names no picture.
    """
    if not images:
        raise UsageError("no picture is named", hint='qwenft predict photo.jpg "find the dog"')
    asking = Asking(text, task, ask.strip())
    _check_text(images, asking)
    if [str(image) for image in images] == [STDIN]:
        return list(_of_lines(lines or (), asking))
    if STDIN in images:
        raise UsageError(
            "- reads all pictures from stdin: name no others", hint='ls *.jpg | qwenft predict - "the dog"'
        )
    return [asking.about(name) for image in images for name in _expand(str(image))]


def _check_text(images: Sequence[str | Path], asking: Asking) -> None:
    text, task = asking.text, asking.task
    if asking.ask and text:
        raise UsageError(
            f"both TEXT and --ask are given: {text!r} would not be asked", hint=f'qwenft predict {images[0]} --ask "…"'
        )
    if task == "caption" and text:
        raise UsageError("a caption needs no text", hint="qwenft predict photo.jpg --task caption")
    if text and looks_like_picture(text):
        raise UsageError(
            f"TEXT is missing: the last argument, {text}, is a picture", hint=f'qwenft predict … {text} "find the dog"'
        )
    if str(images[0]) != STDIN:
        asking.about(str(images[0]))  # a text is missing for all pictures alike: said before any folder is read


def split_text(inputs: Sequence[str], *, needed: bool) -> tuple[list[str], str | None]:
    """Part the pictures from the text that stands behind them on a command line.

    needed: a text must be there; else only a last word that names no picture is one, to be refused as such.

    >>> split_text(["a.jpg", "b.jpg"], needed=True), split_text(["a.jpg", "b.jpg"], needed=False)
    ((['a.jpg'], 'b.jpg'), (['a.jpg', 'b.jpg'], None))
    """
    if len(inputs) < 2 or not (needed or not (looks_like_picture(inputs[-1]) or glob.has_magic(inputs[-1]))):
        return list(inputs), None
    return list(inputs[:-1]), inputs[-1]


def looks_like_picture(text: str) -> bool:
    """Whether a text is a file, or named like a picture."""
    try:
        return is_address(text) or Path(text).suffix.lower() in PICTURE_SUFFIXES or Path(text).exists()
    except (OSError, ValueError):  # a text too long for a path
        return False


def _expand(image: str) -> list[str]:
    """The pictures that an argument names; a file that is not there stays in the list, to be counted as unreadable."""
    if is_address(image):
        return [image]
    path = Path(image).expanduser()
    if path.is_dir():
        found = sorted(str(p) for p in path.iterdir() if p.suffix.lower() in PICTURE_SUFFIXES)
        if not found:
            raise DataError(f"{path.absolute()} holds no picture", hint=f"known: {', '.join(sorted(PICTURE_SUFFIXES))}")
        return found
    if path.exists() or not glob.has_magic(image):
        return [image]
    matched = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 - absolute patterns too
    if not matched:
        raise DataError(f"no file fits {path.absolute()}", hint="check the pattern; quote it: 'photos/**/*.jpg'")
    return matched


def _of_lines(lines: Iterable[str], asking: Asking) -> Iterator[Question]:
    number = 0
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield _of_line(line.strip(), asking)
            except (UsageError, DataError) as error:
                raise DataError(f"stdin, line {number}: {error}", hint=error.hint or _EXAMPLE) from error
    if not number:
        raise DataError("stdin is empty: no picture is named", hint='ls *.jpg | qwenft predict - "the dog"')


def _of_line(line: str, asking: Asking) -> Question:
    if not line.startswith("{"):
        return asking.about(line)
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"broken JSON ({error})", hint=_EXAMPLE) from error
    unknown = [key for key in value if key not in LINE_KEYS]
    if unknown:
        raise DataError(f"unknown key {unknown[0]!r}", hint=nearest(unknown[0], LINE_KEYS))
    if not isinstance(value.get("image"), str) or not value["image"] or "\0" in value["image"]:
        raise DataError("it names no image", hint=_EXAMPLE)
    return asking.about(value["image"], value)
