"""Prompts, how an answer is written and how it is read back; never raises, linear in time.

The answer form is the Qwen team's: `[{"bbox_2d": [x1, y1, x2, y2], "label": "…"}]` in input px, `[]` for "not there".
Source: https://github.com/QwenLM/Qwen2.5-VL (cookbooks/spatial_understanding.ipynb).
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from qwenft.core.boxes import Box, Size, clip

Status = Literal["ok", "salvaged", "empty", "unparsable"]
Task = Literal["grounding", "detection", "caption"]


@dataclass(frozen=True, slots=True)
class Prompts:
    """The text that is sent for each task; `{expression}` and `{categories}` are filled in."""

    grounding: str = "Locate {expression} in this image and output the bbox coordinates in JSON format."
    detection: str = (
        "Locate every instance that belongs to the following categories: '{categories}'. "
        "Report bbox coordinates in JSON format."
    )
    caption: str = "Describe this image in one sentence."

    def text(self, task: Task, query: str | None = None, categories: Sequence[str] = ()) -> str:
        """Fill in what is asked.  The text of the data is inserted as it is: braces in it mean nothing."""
        if task == "grounding":
            return self.grounding.replace("{expression}", query or "")
        if task == "detection":
            return self.detection.replace("{categories}", ", ".join(categories))
        return self.caption


@dataclass(frozen=True, slots=True)
class FoundBox:
    """One box of an answer, in the frame the text was in."""

    box_xyxy: Box
    label: str = ""
    span: tuple[int, int] | None = None
    """Where its four coordinates stand in the text (characters), for the score; None where that is not known."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What an answer says."""

    status: Status
    """`ok`; `salvaged` (repaired: see `how`); `empty` (the model says that there is none); `unparsable`."""
    objects: tuple[FoundBox, ...] = ()
    how: str = ""
    """What was repaired, or why nothing could be read."""


def write_answer(objects: Sequence[tuple[Box, str]], input_wh: Size) -> str:
    """Write boxes (x1, y1, x2, y2 in input px) as the model answers them: whole pixels, never flat, inside the input.

    >>> write_answer([((1.4, 2.6, 30.2, 40.0), "dog")], (56, 56))
    '[{"bbox_2d": [1, 3, 30, 40], "label": "dog"}]'
    """
    return json.dumps(
        [{"bbox_2d": _whole_px(box, input_wh), "label": label} for box, label in objects], ensure_ascii=False
    )


def _whole_px(box_xyxy: Box, input_wh: Size) -> list[int]:
    x1, y1, x2, y2 = (round(v) for v in clip(box_xyxy, input_wh))
    x1, y1 = min(x1, input_wh[0] - 1), min(y1, input_wh[1] - 1)
    return [x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)]


# Same length, so that spans stay true.  Seen with Chinese labels: QwenLM/Qwen2.5-VL #1720.
_FULL_WIDTH: Final = str.maketrans("，：［］（）｛｝“”「」", ',:[](){}""""')
_NUMBER: Final = r"[-+]?\d{1,7}(?:\.\d{1,20})?"
_QUAD: Final = re.compile(
    rf"({_NUMBER})\s{{0,9}},\s{{0,9}}({_NUMBER})\s{{0,9}},\s{{0,9}}({_NUMBER})\s{{0,9}},\s{{0,9}}({_NUMBER})(?![\d.])"
)
_PAIRS: Final = re.compile(
    rf"\(\s{{0,9}}({_NUMBER})\s{{0,9}},\s{{0,9}}({_NUMBER})\s{{0,9}}\)\s{{0,9}},?\s{{0,9}}\(\s{{0,9}}({_NUMBER})\s{{0,9}},\s{{0,9}}({_NUMBER})\s{{0,9}}\)"
)
_LABEL: Final = re.compile(r"""["'](?:label|name|category)["']\s{0,9}:\s{0,9}(?:"([^"]{0,2000})"|'([^']{0,2000})')""")
_ANY_NUMBER: Final = re.compile(_NUMBER)
_BOX_KEYS: Final = ("bbox_2d", "bbox", "box", "box_2d")
_NOTHING: Final = frozenset({"", "[]", "{}", "null", "none", "none.", "[null]", "无", "没有", "没有。", "无。"})


def read_answer(text: str) -> Answer:
    """Read boxes out of an answer, in the frame it was written in.  Never raises.

    >>> read_answer('[{"bbox_2d": [1, 2, 30, 40], "label": "dog"}]').objects[0].box_xyxy
    (1.0, 2.0, 30.0, 40.0)
    >>> read_answer("[]").status, read_answer("I see no dog.").status
    ('empty', 'unparsable')
    """
    plain = text.translate(_FULL_WIDTH)
    body = _unfenced(plain).strip()
    if body.casefold() in _NOTHING:
        return Answer("empty") if body else Answer("unparsable", how="no text")
    strict = _strict(body)
    if strict is not None:
        return _tidy(_with_spans(strict.objects, plain), strict.status, strict.how)
    return _salvage(plain)


def _unfenced(text: str) -> str:
    start = text.find("```")
    if start < 0:
        return text
    body = text[start + 3 :]
    body = body[4:] if body[:4].casefold() == "json" else body
    end = body.find("```")
    return body if end < 0 else body[:end]


def _strict(body: str) -> Answer | None:
    """The documented form; None where the text is not that."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    repairs = [] if isinstance(value, list) else ["one object in place of a list"]
    found: list[FoundBox] = []
    for item in value if isinstance(value, list) else [value]:
        if not isinstance(item, dict):
            return None
        key = next((k for k in _BOX_KEYS if k in item), None)
        if key is None:
            return None
        if item[key] in (None, []):
            continue
        box = _four(item[key])
        if box is None:
            return None
        if key != "bbox_2d":
            repairs.append(f"{key} in place of bbox_2d")
        found.append(FoundBox(box, str(item.get("label", ""))))
    if not found:
        return Answer("empty")
    how = ", ".join(dict.fromkeys(repairs))
    return Answer("salvaged" if repairs else "ok", tuple(found), how)


def _four(value: Any) -> Box | None:
    if not isinstance(value, list) or len(value) != 4:
        return None
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) < 1e7 for v in value):
        return None
    x1, y1, x2, y2 = (float(v) for v in value)
    return (x1, y1, x2, y2)


def _with_spans(objects: tuple[FoundBox, ...], plain: str) -> tuple[FoundBox, ...]:
    spans = [match.span() for match in _QUAD.finditer(plain)]
    if len(spans) != len(objects):
        return objects
    return tuple(replace(found, span=span) for found, span in zip(objects, spans, strict=True))


def _salvage(plain: str) -> Answer:
    """Whatever holds four numbers in a row: a cut-off list, single quotes, tags, prose."""
    pairs = list(_PAIRS.finditer(plain))
    matches, how = (pairs, "two corner points") if pairs else (list(_QUAD.finditer(plain)), "not the JSON asked for")
    if not matches:
        numbers = len(_ANY_NUMBER.findall(plain))
        return Answer("unparsable", how="no four numbers in a row" if numbers else "no number in it")
    found = []
    for match, following in zip(matches, [*matches[1:], None], strict=True):
        end = following.start() if following else len(plain)
        label = _LABEL.search(plain, match.end(), min(end, match.end() + 2100))
        x1, y1, x2, y2 = (float(n) for n in match.groups())
        found.append(
            FoundBox((x1, y1, x2, y2), (label.group(1) or label.group(2) or "") if label else "", match.span())
        )
    if plain.rstrip()[-1:] not in ("]", "`", "}", ">", ")", "."):
        how = "cut off"
    return _tidy(tuple(found), "salvaged", how)


def _tidy(objects: tuple[FoundBox, ...], status: Status, how: str) -> Answer:
    """Drop repeats and turn reversed corners, and say so."""
    repairs = [how] if how else []
    kept: dict[tuple[Box, str], FoundBox] = {}
    for found in objects:
        x1, y1, x2, y2 = found.box_xyxy
        box = (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))
        if box != found.box_xyxy:
            repairs.append("reversed corners")
        kept.setdefault((box, found.label), replace(found, box_xyxy=box))
    if len(kept) < len(objects):
        repairs.append("repeated boxes")
    how = ", ".join(dict.fromkeys(repairs))
    return Answer("salvaged" if repairs and status == "ok" else status, tuple(kept.values()), how)


_POLITE: Final = r"(?:please\s+|can you\s+|could you\s+)?"
_INSTRUCTIONS: Final = tuple(
    re.compile(pattern, re.IGNORECASE | re.DOTALL)
    for pattern in (
        rf"{_POLITE}(?:find|locate|detect|spot|ground|point (?:to|at)|show(?: me)?|draw a box around|box)\s+(?P<what>.+?)"
        r"(?:\s+in (?:this|the) (?:image|picture|photo))?"
        r"(?:,?\s*(?:and\s+)?(?:output|return|report|give)\b.{0,200}?(?:json|bbox|box|coordinates)\b.{0,60})?\s*[.!?]?",
        r"where(?:\s+is|'s|\s+are)\s+(?P<what>.+?)(?:\s+in (?:this|the) (?:image|picture|photo))?\s*[.!?]?",
        r"请?(?:帮我)?(?:在[图画][中里片]{0,2})?(?:定位|找到|找出|检测|框出|标出|圈出)(?:一下)?[图画]?(?P<what>.+?)[。！？.!?]?",
        r"(?P<what>.+?)在(?:哪里|哪儿|哪)[。？?]?",
    )
)


def phrase_of(text: str) -> str:
    """Strip an instruction to the phrase it names; a phrase stays as it is.

    >>> phrase_of("find the dog"), phrase_of("Where is the red cup?"), phrase_of("the dog")
    ('the dog', 'the red cup', 'the dog')
    >>> phrase_of("定位穿红衣服的人")
    '穿红衣服的人'
    """
    stripped = text.strip()
    for pattern in _INSTRUCTIONS:
        match = pattern.fullmatch(stripped[:2000])
        if match:
            return match.group("what").strip()
    return stripped


def score_of(token_probabilities: Sequence[float]) -> float | None:
    """Geometric mean of the coordinate tokens' probabilities, in (0, 1]; None where there is none."""
    if not token_probabilities:
        return None
    return math.exp(sum(math.log(max(p, 1e-12)) for p in token_probabilities) / len(token_probabilities))
