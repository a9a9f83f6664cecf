"""Qwen's `conversations` form: the question in the human turn, the boxes in the model's."""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

from qwenft.core.answer import Answer, Task, read_answer
from qwenft.core.errors import DataError
from qwenft.core.files import read_records
from qwenft.core.phrases import phrase_of
from qwenft.prepare.columns import Place, picture_of
from qwenft.prepare.rows import BadRow, PictureFile, RawBox, RawRow, Reason, Request, Row, Source
from qwenft.prepare.sources.coco import root_of
from qwenft.prepare.sources.records import PEEKED, files_in, first_record, narrowed, place_of

HUMAN: Final = frozenset({"human", "user"})
MODEL: Final = frozenset({"gpt", "assistant"})
CATEGORIES: Final = re.compile(r"categories:?\s*['\"](?P<names>[^'\"]+)['\"]")
"""The detection prompt of the Qwen team lists what it asks for between quotes."""
FRAMES: Final = (
    "boxes in conversations may be meant in pixels of the picture or of a resized input; a file that was written for "
    "a resized input fits the pictures only by chance: look at preview/"
)


def matches(path: Path) -> bool:
    """Whether the first record has turns of a conversation."""
    first = first_record(path)
    return first is not None and isinstance(first.get("conversations", first.get("messages")), list)


def open_source(path: Path, request: Request) -> Source:
    """Tell the task from the first answers and describe the source."""
    files = narrowed(files_in(path), request, path)
    root = root_of(path)
    first = [record.value for file in files.values() for record in islice(read_records(file), PEEKED)]
    task = request.task or _task(first)
    if task is None:
        raise DataError(f"{path.absolute()} has no question and answer in its conversations")
    return Source(
        kind="conversations",
        about={"path": str(path.absolute()), "files": [file.name for file in files.values()]},
        splits=tuple(files),
        rows=lambda: _rows(files, root, task, request),
        readings=("xyxy", "xyxy_1000", "xyxy_norm"),
        notes=() if task == "caption" else (FRAMES,),
    )


def _task(records: Sequence[Mapping[str, Any]]) -> Task | None:
    pairs = [pair for record in records for pair in turns(record) or ()]
    if not pairs:
        return None
    if not any(read_answer(answer).objects for _, answer in pairs):
        return "caption"
    return "detection" if all(CATEGORIES.search(question) for question, _ in pairs) else "grounding"


def turns(record: Mapping[str, Any]) -> list[tuple[str, str]] | None:
    """(question, answer) of each exchange; None where the turns do not alternate."""
    found: list[tuple[str, str]] = []
    question = ""
    for turn in record.get("conversations", record.get("messages")) or ():
        if not isinstance(turn, Mapping):
            return None
        who, text = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
        if not isinstance(text, str):
            return None
        if who in HUMAN:
            question = text
        elif who in MODEL and question:
            found.append((question.replace("<image>", "").strip(), text))
            question = ""
    return found or None


def _rows(files: Mapping[str, Path], root: Path, task: Task, request: Request) -> Iterator[Row]:
    for split, file in files.items():
        for record in islice(read_records(file), request.limit):
            place = place_of(record, split, file, root)
            pairs = turns(record.value)
            picture = picture_of(record.value.get("image", record.value.get("images")), place)
            if isinstance(picture, BadRow):
                yield picture
            elif pairs is None:
                yield BadRow(split, place.where, Reason.ROW_UNREADABLE, "no question with an answer", place.original)
            else:
                key = record.value.get("id")
                yield from _exchanges(pairs, picture, task, place, None if key is None else str(key))


def _exchanges(
    pairs: Sequence[tuple[str, str]], picture: bytes | PictureFile, task: Task, place: Place, key: str | None
) -> Iterator[Row]:
    for number, (question, text) in enumerate(pairs, 1):
        where = f"{place.where}, turn {number}" if len(pairs) > 1 else place.where
        own_key = f"{key}#{number}" if key is not None and len(pairs) > 1 else key
        common: dict[str, Any] = {"split": place.split, "where": where, "picture": picture, "key": own_key}
        common |= {"original": place.original, "task": task}
        if task == "caption":
            yield RawRow(captions=(text.strip(),) if text.strip() else (), **common)
            continue
        answer = read_answer(text)
        problem = _problem(answer)
        if problem:
            yield BadRow(place.split, where, problem, answer.how, place.original)
            continue
        query = phrase_of(question)
        boxes = tuple(RawBox(found.box_xyxy, found.label or query, False, where) for found in answer.objects)
        if task == "detection":
            names = CATEGORIES.search(question)
            asked = tuple(name.strip() for name in names.group("names").split(",")) if names else None
            yield RawRow(boxes=boxes, categories=asked, **common)
        else:
            yield RawRow(query=query, boxes=boxes, **common)


def _problem(answer: Answer) -> Reason | None:
    """An answer to learn from is not repaired: only its form may differ from ours."""
    if answer.status == "unparsable" or "cut off" in answer.how:
        return Reason.BOX_UNREADABLE
    return Reason.BOX_REVERSED if "reversed" in answer.how else None
