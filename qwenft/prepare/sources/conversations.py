"""Conversations with the boxes in the model's turn: Qwen's form, LLaMA-Factory's two and ms-swift's.

Sources: QwenLM/Qwen2.5-VL (qwen-vl-finetune/README.md), hiyouga/LLaMA-Factory (data/README.md: sharegpt and
alpaca), modelscope/ms-swift (docs, Customization/Custom-dataset: `<ref-object>` and `<bbox>` stand for the entries of
`objects`; `bbox_type` is `real`, px of the picture itself, or `norm1`).
"""

import json
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
PLACEHOLDER: Final = re.compile(r"<ref-object>|<bbox>")
REFERRING: Final = re.compile(
    r"Locate (?P<phrase>.+) in this image and output the bbox coordinates in JSON format\.", re.DOTALL
)
CATEGORIES: Final = re.compile(r"categories:?\s*(?P<quote>['\"])(?P<names>.+)(?P=quote)", re.DOTALL)
"""The detection prompt of the Qwen team lists what it asks for between quotes."""
FRAMES: Final = (
    "boxes in conversations may be meant in pixels of the picture or of a resized input; a file that was written for "
    "a resized input fits the pictures only by chance: look at preview/"
)


TURNS: Final = ("conversations", "messages", "conversation")
PAIRS: Final = (("instruction", "output"), ("query", "response"))
"""Question and answer where a record holds one exchange and no list of turns."""


def matches(path: Path) -> bool:
    """Whether the first record has turns of a conversation, or one question with its answer."""
    first = first_record(path)
    return first is not None and (_listed(first) is not None or _pair(first) is not None)


def _listed(record: Mapping[str, Any]) -> list[Any] | None:
    return next((record[key] for key in TURNS if isinstance(record.get(key), list)), None)


def _pair(record: Mapping[str, Any]) -> tuple[str, str] | None:
    for question, answer in PAIRS:
        if isinstance(record.get(question), str) and isinstance(record.get(answer), str):
            return f"{record[question]} {record.get('input') or ''}".strip(), record[answer]
    return None


def open_source(path: Path, request: Request) -> Source:
    """Tell the task from the first answers and describe the source."""
    files = narrowed(files_in(path), request, path)
    root = root_of(path)
    first = [record.value for file in files.values() for record in islice(read_records(file), PEEKED)]
    task = request.task or _task(first)
    if task is None:
        raise DataError(f"{path.absolute()} has no question and answer in its conversations")
    stated = _stated(first)
    return Source(
        kind="conversations",
        about={"path": str(path.absolute()), "files": [file.name for file in files.values()]},
        splits=tuple(files),
        rows=lambda: _rows(files, root, task, request),
        stated=stated,
        readings=("xyxy", "xyxy_1000", "xyxy_norm"),
        notes=() if task == "caption" or stated else (FRAMES,),
    )


def _stated(records: Sequence[Mapping[str, Any]]) -> str | None:
    """ms-swift's boxes are px of the picture itself, unless they say `norm1`; the others do not tell."""
    kinds = {str(r["objects"].get("bbox_type") or "real") for r in records if isinstance(r.get("objects"), Mapping)}
    return {"real": "xyxy", "norm1": "xyxy_norm"}.get(kinds.pop()) if len(kinds) == 1 else None


def _task(records: Sequence[Mapping[str, Any]]) -> Task | None:
    pairs = [pair for record in records for pair in turns(record) or ()]
    if not pairs:
        return None
    if not any(read_answer(answer).objects for _, answer in pairs):
        return "caption"
    return "detection" if all(CATEGORIES.search(question) for question, _ in pairs) else "grounding"


def turns(record: Mapping[str, Any]) -> list[tuple[str, str]] | None:
    """(question, answer) of each exchange; None where the turns do not alternate."""
    objects = record.get("objects")
    filler = _Filler(objects) if isinstance(objects, Mapping) else None
    found: list[tuple[str, str]] = []
    question = ""
    for who, text in _said(record):
        if text is None:
            return None
        plain = filler.fill(text) if filler else text
        if who in HUMAN:
            question = plain
        elif who in MODEL and question:
            found.append((question.replace("<image>", "").strip(), plain))
            question = ""
    return found or None


def _said(record: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    """(who, text) of each turn; the text is None where it is not one."""
    listed, pair = _listed(record), _pair(record)
    if listed is None and pair is not None:
        yield "user", pair[0]
        yield "assistant", pair[1]
    for turn in listed or ():
        if not isinstance(turn, Mapping):
            yield "", None
            return
        text = turn.get("value", turn.get("content"))
        if isinstance(text, list):  # the parts of a chat template: pictures and texts
            parts = [part.get("text") for part in text if isinstance(part, Mapping) and part.get("type") == "text"]
            text = " ".join(part for part in parts if isinstance(part, str))
        yield str(turn.get("from", turn.get("role"))), text if isinstance(text, str) else None


class _Filler:
    """Puts ms-swift's objects where their placeholders stand, in order."""

    def __init__(self, objects: Mapping[str, Any]) -> None:
        self._left = {"<ref-object>": list(objects.get("ref") or ()), "<bbox>": list(objects.get("bbox") or ())}

    def fill(self, text: str) -> str:
        """Replace each placeholder by the next of its kind; one too many stays, and makes the answer unreadable."""
        return PLACEHOLDER.sub(self._next, text)

    def _next(self, match: re.Match[str]) -> str:
        left = self._left[match.group()]
        value = left.pop(0) if left else match.group()
        return value if isinstance(value, str) else json.dumps(value)


def _picture_in(record: Mapping[str, Any]) -> Any:
    """The record's picture, or the one that stands in its first turn."""
    for key in ("image", "images"):
        if record.get(key):
            return record[key]
    for turn in _listed(record) or ():
        parts = turn.get("content") if isinstance(turn, Mapping) else None
        for part in parts if isinstance(parts, list) else ():
            if isinstance(part, Mapping) and part.get("type") == "image":
                return part.get("image") or part.get("path") or part.get("url")
    return None


def _rows(files: Mapping[str, Path], root: Path, task: Task, request: Request) -> Iterator[Row]:
    for split, file in files.items():
        for record in islice(read_records(file), request.limit):
            place = place_of(record, split, file, root)
            pairs = turns(record.value)
            picture = picture_of(_picture_in(record.value), place)
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
        query = _phrase(question)
        boxes = tuple(RawBox(found.box_xyxy, found.label or query, False, where) for found in answer.objects)
        if task == "detection":
            names = CATEGORIES.search(question)
            asked = tuple(name.strip() for name in names.group("names").split(",")) if names else None
            yield RawRow(boxes=boxes, categories=asked, **common)
        else:
            yield RawRow(query=query, boxes=boxes, **common)


def _phrase(question: str) -> str:
    """What is asked for: as it stands in the Qwen team's prompt, else what an instruction of any kind leaves."""
    match = REFERRING.fullmatch(question)
    return match.group("phrase") if match else phrase_of(question)


def _problem(answer: Answer) -> Reason | None:
    """An answer to learn from is not repaired: only its form may differ from ours."""
    if answer.status == "unparsable" or "cut off" in answer.how:
        return Reason.BOX_UNREADABLE
    return Reason.BOX_REVERSED if "reversed" in answer.how else None
