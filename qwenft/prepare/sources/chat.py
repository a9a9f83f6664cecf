"""A record of a conversation: its questions with their answers, and which of its pictures each question shows."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

HUMAN: Final = frozenset({"human", "user"})
MODEL: Final = frozenset({"gpt", "assistant"})
TAG: Final = "<image>"
"""Stands where a picture is shown."""
PLACEHOLDER: Final = re.compile(r"<ref-object>|<bbox>")
TURNS: Final = ("conversations", "messages", "conversation")
PAIRS: Final = (("instruction", "output"), ("query", "response"))
"""Question and answer where a record holds one exchange and no list of turns; earlier ones stand in `history`."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """A question and its answer."""

    question: str
    answer: str
    shows: tuple[int, ...]
    """The pictures of the record (from 0) that the question shows or, where it shows none, those shown before it."""
    meant: frozenset[int] = frozenset()
    """The pictures in which ms-swift's `image_id` says that the boxes of the answer lie."""


@dataclass(frozen=True, slots=True)
class Chat:
    """What a record holds."""

    exchanges: tuple[Exchange, ...]
    pictures: tuple[Any, ...]
    """As the record names them."""
    tags: int
    """How often a picture is shown."""


def listed(record: Mapping[str, Any]) -> list[Any] | None:
    """The record's list of turns."""
    return next((record[key] for key in TURNS if isinstance(record.get(key), list)), None)


def pair(record: Mapping[str, Any]) -> tuple[str, str] | None:
    """The record's one question and answer."""
    for question, answer in PAIRS:
        if isinstance(record.get(question), str) and isinstance(record.get(answer), str):
            return f"{record[question]} {record.get('input') or ''}".strip(), record[answer]
    return None


def read_chat(record: Mapping[str, Any]) -> Chat | None:
    """Read a record in any of the tools' forms; None where its turns do not alternate."""
    objects = record.get("objects")
    filler = _Filler(objects) if isinstance(objects, Mapping) else None
    found: list[Exchange] = []
    named, inside = _named(record), list[Any]()
    asked: tuple[str, int] | None = None
    tags = 0
    seen: tuple[int, ...] = ()
    for who, text in _said(record, inside):
        if text is None:
            return None
        plain, meant = filler.fill(text) if filler else (text, frozenset[int]())
        if who in HUMAN:
            asked = (plain, plain.count(TAG))
        elif who in MODEL and asked and asked[0]:
            question, shown = asked
            if not found:  # ms-swift shows pictures without a tag in front of all
                shown += max(0, len(named or inside) - _all_tags(record))
            own = tuple(range(tags, tags + shown))
            tags, seen = tags + shown, (*seen, *own)
            found.append(Exchange(question.replace(TAG, "").strip(), plain, own or seen, meant))
            asked = None
    return Chat(tuple(found), tuple(named or inside), tags) if found else None


def _named(record: Mapping[str, Any]) -> list[Any]:
    value = record.get("image") or record.get("images")
    return value if isinstance(value, list) else [value] if value else []


def _all_tags(record: Mapping[str, Any]) -> int:
    return sum((text or "").count(TAG) for who, text in _said(record, []) if who in HUMAN)


def _said(record: Mapping[str, Any], pictures: list[Any]) -> Iterator[tuple[str, str | None]]:
    """(who, text) of each turn; the text is None where it is not one.  pictures: gathers those that stand in turns."""
    turns, one = listed(record), pair(record)
    if turns is None and one is not None:
        history = record.get("history")
        turns = [
            dict(zip(("human", "assistant"), item, strict=False))
            for item in (history if isinstance(history, list) else [])
            if isinstance(item, list)
        ]
        turns.append({"human": one[0], "assistant": one[1]})
    for turn in turns or ():
        if not isinstance(turn, Mapping):
            yield "", None
            return
        if "human" in turn and "assistant" in turn:  # both of an exchange in one entry
            yield "user", _text(turn["human"], pictures)
            yield "assistant", _text(turn["assistant"], pictures)
        else:
            text = turn.get("value", turn.get("content"))
            yield str(turn.get("from", turn.get("role"))), _text(text, pictures)


def _text(value: Any, pictures: list[Any]) -> str | None:
    """A turn's text; the parts of a chat template (pictures and texts) become one, with tags."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        return None
    words = []
    for part in value:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "image":
            words.append(TAG)
            pictures.append(part.get("image") or part.get("path") or part.get("url"))
        elif kind == "text" and isinstance(part.get("text"), str):
            words.append(part["text"])
    return " ".join(words)


class _Filler:
    """Puts ms-swift's objects where their placeholders stand, in order."""

    def __init__(self, objects: Mapping[str, Any]) -> None:
        boxes = list(objects.get("bbox") or ())
        ids = objects.get("image_id")
        ids = list(ids) if isinstance(ids, list) else []
        self._left = {"<ref-object>": list(objects.get("ref") or ()), "<bbox>": boxes}
        self._ids = [*ids, *[0] * (len(boxes) - len(ids))]  # its default
        self._meant: set[int] = set()

    def fill(self, text: str) -> tuple[str, frozenset[int]]:
        """Replace each placeholder by the next of its kind; one too many stays, and makes the answer unreadable.

        Returns the text, and in which pictures its boxes lie.
        """
        self._meant = set()
        return PLACEHOLDER.sub(self._next, text), frozenset(self._meant)

    def _next(self, match: re.Match[str]) -> str:
        left = self._left[match.group()]
        if not left:
            return match.group()
        if match.group() == "<bbox>":
            number = self._ids.pop(0)
            self._meant.add(number if isinstance(number, int) else -1)
        value = left.pop(0)
        return value if isinstance(value, str) else json.dumps(value)
