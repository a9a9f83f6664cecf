"""Conversations with the boxes in the model's turn: Qwen's form, LLaMA-Factory's two and ms-swift's.

Sources: QwenLM/Qwen2.5-VL (qwen-vl-finetune/README.md), hiyouga/LLaMA-Factory (data/README.md: sharegpt and
alpaca), modelscope/ms-swift (docs, Customization/Custom-dataset: `<ref-object>` and `<bbox>` stand for the entries of
`objects`; `bbox_type` is `real`, px of the picture itself, or `norm1`).
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Final

from qwenft.core.answer import Answer, Task, read_answer
from qwenft.core.errors import DataError
from qwenft.core.files import read_records
from qwenft.core.phrases import phrase_of
from qwenft.prepare.columns import Place, picture_of
from qwenft.prepare.rows import BadRow, PictureFile, RawBox, RawRow, Reason, Request, Row, Source
from qwenft.prepare.sources.chat import Chat, Exchange, listed, pair, read_chat
from qwenft.prepare.sources.coco import root_of
from qwenft.prepare.sources.records import PEEKED, files_in, first_record, narrowed, place_of

REFERRING: Final = re.compile(
    r"Locate (?P<phrase>.+) in this image and output the bbox coordinates in JSON format\.", re.DOTALL
)
CATEGORIES: Final = re.compile(r"categories:?\s*(?P<quote>['\"])(?P<names>.+)(?P=quote)", re.DOTALL)
"""The detection prompt of the Qwen team lists what it asks for between quotes."""
FRAMES: Final = (
    "boxes in conversations may be meant in pixels of the picture or of a resized input; a file that was written for "
    "a resized input fits the pictures only by chance: look at preview/"
)


Standard = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""Turns a record of a file with names of its own into one with the usual names."""


def matches(path: Path) -> bool:
    """Whether the first record has turns of a conversation, or one question with its answer."""
    first = first_record(path)
    return first is not None and (listed(first) is not None or pair(first) is not None)


def open_source(path: Path, request: Request) -> Source:
    """Tell the task from the first answers and describe the source."""
    return make_source("conversations", path, narrowed(files_in(path), request, path), request, {})


def make_source(
    kind: str, path: Path, files: Mapping[str, Path], request: Request, standards: Mapping[str, Standard]
) -> Source:
    """Describe files of conversations.  standards: by split, where its records have names of their own."""
    first = [
        standards.get(split, _as_it_is)(record.value)
        for split, file in files.items()
        for record in islice(read_records(file), PEEKED)
    ]
    task = request.task or _task(first)
    if task is None:
        raise DataError(f"{path.absolute()} has no question and answer in its conversations")
    stated = _stated(first)
    return Source(
        kind=kind,
        about={"path": str(path.absolute()), "files": [file.name for file in files.values()]},
        splits=tuple(files),
        rows=lambda: _rows(files, root_of(path), task, request, standards),
        stated=stated,
        readings=("xyxy", "xyxy_1000", "xyxy_norm"),
        notes=() if task == "caption" or stated else (FRAMES,),
    )


def _as_it_is(record: Mapping[str, Any]) -> Mapping[str, Any]:
    return record


def _stated(records: Sequence[Mapping[str, Any]]) -> str | None:
    """ms-swift's boxes are px of the picture itself, unless they say `norm1`; the others do not tell."""
    kinds = {str(r["objects"].get("bbox_type") or "real") for r in records if isinstance(r.get("objects"), Mapping)}
    return {"real": "xyxy", "norm1": "xyxy_norm"}.get(kinds.pop()) if len(kinds) == 1 else None


def _task(records: Sequence[Mapping[str, Any]]) -> Task | None:
    exchanges = [exchange for chat in map(read_chat, records) if chat for exchange in chat.exchanges]
    if not exchanges:
        return None
    if not any(read_answer(exchange.answer).objects for exchange in exchanges):
        return "caption"
    return "detection" if all(CATEGORIES.search(exchange.question) for exchange in exchanges) else "grounding"


def _rows(
    files: Mapping[str, Path], root: Path, task: Task, request: Request, standards: Mapping[str, Standard]
) -> Iterator[Row]:
    for split, file in files.items():
        standard = standards.get(split, _as_it_is)
        for record in islice(read_records(file), request.limit):
            place, value = place_of(record, split, file, root), standard(record.value)
            chat = read_chat(value)
            if chat is None:
                yield BadRow(split, place.where, Reason.ROW_UNREADABLE, "no question with an answer", place.original)
            else:
                key = value.get("id")
                yield from _exchanges(chat, task, place, None if key is None else str(key))


def _exchanges(chat: Chat, task: Task, place: Place, key: str | None) -> Iterator[Row]:
    several = len(chat.exchanges) > 1
    for number, exchange in enumerate(chat.exchanges, 1):
        where = f"{place.where}, turn {number}" if several else place.where
        own_key = f"{key}#{number}" if key is not None and several else key
        picture = _picture(chat, exchange, replace(place, where=where))
        if isinstance(picture, BadRow):
            yield picture
            continue
        common: dict[str, Any] = {"split": place.split, "where": where, "picture": picture, "key": own_key}
        yield _row(exchange, task, {**common, "original": place.original, "task": task})


def _picture(chat: Chat, exchange: Exchange, place: Place) -> bytes | PictureFile | BadRow:
    """The one picture that an exchange is about, or why it is not about one."""
    if len(chat.pictures) < 2:
        return picture_of(chat.pictures[0] if chat.pictures else None, place)
    if chat.tags > len(chat.pictures):
        detail = f"{chat.tags} x <image> for {len(chat.pictures)} pictures"
        return BadRow(place.split, place.where, Reason.ROW_UNREADABLE, detail, place.original)
    detail = ""
    elsewhere = exchange.meant - set(exchange.shows)
    if len(exchange.shows) != 1:
        detail = f"the question shows {len(exchange.shows)} of {len(chat.pictures)} pictures"
    elif elsewhere:
        there = ", ".join(str(number + 1) for number in sorted(elsewhere))
        detail = f"the question shows picture {exchange.shows[0] + 1}, its boxes lie in {there}"
    if detail:
        return BadRow(place.split, place.where, Reason.PICTURE_SEVERAL, detail, place.original)
    return picture_of(chat.pictures[exchange.shows[0]], place)


def _row(exchange: Exchange, task: Task, common: dict[str, Any]) -> Row:
    if task == "caption":
        text = exchange.answer.strip()
        return RawRow(captions=(text,) if text else (), **common)
    answer = read_answer(exchange.answer)
    problem = _problem(answer)
    if problem:
        return BadRow(common["split"], common["where"], problem, answer.how, common["original"])
    query = _phrase(exchange.question)
    boxes = tuple(RawBox(found.box_xyxy, found.label or query, False, common["where"]) for found in answer.objects)
    if task == "detection":
        names = CATEGORIES.search(exchange.question)
        asked = tuple(name.strip() for name in names.group("names").split(",")) if names else None
        return RawRow(boxes=boxes, categories=asked, **common)
    return RawRow(query=query, boxes=boxes, **common)


def _phrase(question: str) -> str:
    """What is asked for: as it stands in the Qwen team's prompt, else what an instruction of any kind leaves."""
    match = REFERRING.fullmatch(question)
    return match.group("phrase") if match else phrase_of(question)


def _problem(answer: Answer) -> Reason | None:
    """An answer to learn from is not repaired: only its form may differ from ours."""
    if answer.status == "unparsable" or "cut off" in answer.how:
        return Reason.BOX_UNREADABLE
    return Reason.BOX_REVERSED if "reversed" in answer.how else None
