"""Prompts, how an answer is written and how it is read back; never raises, linear in time.

The answer form is the Qwen team's: `[{"bbox_2d": [x1, y1, x2, y2], "label": "…"}]` in input px, `[]` for "not there".
Source: https://github.com/QwenLM/Qwen2.5-VL (cookbooks/spatial_understanding.ipynb).
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final, Literal

from qwenft.core.boxes import Box, Size, clip

Status = Literal["ok", "salvaged", "empty", "unparsable"]
Task = Literal["grounding", "detection", "caption"]
MOST_CATEGORIES: Final = 80
"""So many categories stand in one question, COCO's whole list; a longer list is asked about in several."""
MOST_BOXES: Final = 50
"""So many boxes stand in one answer that is learned: what an answer of 2,048 new tokens has room for."""


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


def divided(categories: Sequence[str]) -> list[tuple[str, ...]]:
    """The categories of each question, in their order: at most MOST_CATEGORIES, about as many in each.

    >>> [len(part) for part in divided([f"thing {number}" for number in range(100)])]
    [50, 50]
    """
    number = max(1, -(-len(categories) // MOST_CATEGORIES))
    ends = [part * len(categories) // number for part in range(number + 1)]
    return [tuple(categories[start:end]) for start, end in pairwise(ends)]


def write_answer(objects: Sequence[tuple[Box, str]], input_wh: Size) -> str:
    """Write boxes (x1, y1, x2, y2 in input px) as the model answers them: whole pixels, never flat, inside the input.

    From top to bottom, then from left to right, by the corner x1, y1 as it is written; what would be written twice is
    written once; after MOST_BOXES the list ends.

    >>> write_answer([((1.4, 2.6, 30.2, 40.0), "dog")], (56, 56))
    '[{"bbox_2d": [1, 3, 30, 40], "label": "dog"}]'
    """
    written = {(*_whole_px(box, input_wh), label): None for box, label in objects}
    ordered = sorted(written, key=lambda item: (item[1], item[0], item[3], item[2], item[4]))
    return json.dumps([{"bbox_2d": box, "label": label} for *box, label in ordered[:MOST_BOXES]], ensure_ascii=False)


def _whole_px(box_xyxy: Box, input_wh: Size) -> list[int]:
    x1, y1, x2, y2 = (round(v) for v in clip(box_xyxy, input_wh))
    x1, y1 = min(x1, input_wh[0] - 1), min(y1, input_wh[1] - 1)
    return [x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)]


# Same length, so that spans stay true.  Seen with Chinese labels: QwenLM/Qwen2.5-VL #1720.
_FULL_WIDTH: Final = str.maketrans(
    "，、：［］【】（）｛｝“”「」‘’．　０１２３４５６７８９", ',,:[][](){}""""\'\'. 0123456789'
)
# Possessive quantifiers (++, ?+, *+): nothing is tried twice, so reading is linear in the text.
_NUMBER: Final = r"[-+]?[0-9]++(?:\.[0-9]++)?+"
_ANY_NUMBER: Final = re.compile(_NUMBER)
_RUN: Final = re.compile(rf"(?<![A-Za-z0-9_.]){_NUMBER}(?:(?:\s{{0,9}},\s{{0,9}}|\s{{1,9}}){_NUMBER})*+")
_POINT: Final = rf"\(\s{{0,9}}({_NUMBER})\s{{0,9}},\s{{0,9}}({_NUMBER})\s{{0,9}}\)"
_CORNERS: Final = re.compile(rf"{_POINT}\s{{0,9}},?\s{{0,9}}{_POINT}")
_NAMED: Final = re.compile(
    r"[^\w.+-]{1,6}".join(
        rf"{start}{axis}(?:{corner})[^\w.+-]{{1,6}}({_NUMBER})"
        for start, axis, corner in (
            (r"\b", "x", "1|_?min"),
            ("", "y", "1|_?min"),
            ("", "x", "2|_?max"),
            ("", "y", "2|_?max"),
        )
    ),
    re.IGNORECASE,
)
_LABEL: Final = re.compile(
    r"""["']?\b(?:label|name|category|class|class_name|text_content)["']?\s{0,9}:\s{0,9}"""
    r"""(?:"((?:[^"\\]|\\.){0,2000}+)"|'((?:[^'\\]|\\.){0,2000}+)')""",
    re.DOTALL,
)
_REF: Final = re.compile(r"(?:<\|object_ref_start\|>|<\|?ref\|?>)([^<]{0,2000}+)<")
_POINTS: Final = re.compile(r"\bpoint(?:s\b|_2d\b|\b)", re.IGNORECASE)
_END_TOKENS: Final = ("<|im_end|>", "<|endoftext|>")

_MAX_PX: Final = 1e7
_BOX_KEYS: Final = ("bbox_2d", "bbox", "box", "box_2d", "bounding_box", "Position")
_LABEL_KEYS: Final = ("label", "name", "category", "class", "class_name", "text_content")
_POINT_KEYS: Final = ("point_2d", "point", "points")
_CORNER_KEYS: Final = (
    ("x1", "y1", "x2", "y2"),
    ("xmin", "ymin", "xmax", "ymax"),
    ("x_min", "y_min", "x_max", "y_max"),
)
_HOLDERS: Final = frozenset({"objects", "boxes", "bboxes", "detections", "results", "annotations", "items", "data"})
"""Keys that hold a list of boxes; any other key with boxes behind it is taken for their label."""
_NOTHING: Final = frozenset(
    {"[]", "{}", "null", "none", "[null]", "[none]", '["none"]', "noobject", "noobjects", "无", "没有", "无目标"}
)
# An empty list, or two, in words without a number or another bracket; and a box that is said to be none.
_EMPTY_LIST: Final = re.compile(r"[^\[\]{}0-9]*+(?:\[\s*+\][^\[\]{}0-9]*+)++")
_NO_BOX: Final = re.compile(r"""["']bbox(?:_2d)?["']\s{0,9}:\s{0,9}(?:None|null|\[\s{0,9}\])""")
_AROUND: Final = " \t\r\n\"'`.。"


def read_answer(text: str) -> Answer:
    """Read boxes out of an answer, in the frame it was written in.  Never raises; linear in the text's length.

    Numbers are taken as they stand: none is rescaled, whatever its size.

    >>> read_answer('[{"bbox_2d": [1, 2, 30, 40], "label": "dog"}]').objects[0].box_xyxy
    (1.0, 2.0, 30.0, 40.0)
    >>> read_answer("[]").status, read_answer("I see no dog.").status
    ('empty', 'unparsable')
    """
    for token in _END_TOKENS:
        text = text.rstrip().removesuffix(token)
    if not text.strip():
        return Answer("unparsable", how="no text")
    text = _without_thoughts(text)
    if text.lstrip().startswith("<think>"):
        return Answer("unparsable", how="cut off while thinking")
    plain = text.translate(_FULL_WIDTH)
    for body in (text, _unfenced(text)):
        if "".join(body.strip(_AROUND).split()).casefold() in _NOTHING:
            return Answer("empty")
        try:
            answer = _from_json(json.loads(body))
        except (ValueError, RecursionError):
            continue
        if answer is not None:
            return _tidy(_with_spans(answer.objects, plain), answer.status, answer.how)
    return _from_text(text, plain)


def _without_thoughts(text: str) -> str:
    """Blanks what stands before </think>, and the <answer> tags: same length, so that spans stay true."""
    if "<think>" in text:
        end = text.rfind("</think>") + len("</think>")
        text = " " * end + text[end:] if end >= len("</think>") else text
    for tag in ("<answer>", "</answer>"):
        text = text.replace(tag, " " * len(tag))
    return text


def _unfenced(text: str) -> str:
    """What stands in the only ``` fence, closed or not, or before a fence that only closes; else the text itself."""
    before, opened, body = text.partition("```")
    if opened and not body.strip():
        return before
    body = body[4:] if body[:4].casefold() == "json" else body
    body, _, after = body.partition("```")
    return text if not opened or "```" in after else body


class _Tree:
    """Gathers the boxes of a JSON value of whatever shape; on a stack, so that depth is harmless."""

    def __init__(self, value: Any) -> None:
        self.found: list[FoundBox] = []
        self.repairs: list[str] = []
        self.nothing = self.strays = 0
        if not isinstance(value, list):
            self.repairs.append("one object in place of a list")
        elif not all(isinstance(item, dict) for item in value):
            self.repairs.append("lists in place of objects")
        top = value if isinstance(value, list) and not _is_flat(value) else [value]
        self._stack: list[tuple[Any, str, bool]] = [(item, "", False) for item in reversed(top)]
        self.nothing = int(value == [])
        while self._stack:
            self._visit(*self._stack.pop())

    def _visit(self, node: Any, label: str, under_box_key: bool) -> None:
        if node is None or node in ([], {}):
            self.nothing += 1
        elif isinstance(node, dict):
            self._visit_dict(node, label)
        elif (box := _four(node)) is not None:
            self.found.append(FoundBox(box, label))
            if not all(isinstance(number, (int, float)) for number in node):
                self.repairs.append("numbers as text")
        elif under_box_key and (box := _two_corners(node)) is not None:
            self.found.append(FoundBox(box, label))
            self.repairs.append("two corner points")
        elif isinstance(node, list) and not _is_flat(node):
            if under_box_key:
                self.repairs.append("several boxes in one object")
            self._stack.extend((item, label, under_box_key) for item in reversed(node))
        else:
            self.strays += 1

    def _visit_dict(self, node: dict[str, Any], label: str) -> None:
        own = next((node[key] for key in _LABEL_KEYS if isinstance(node.get(key), (str, int, float))), label)
        key = next((key for key in _BOX_KEYS if key in node), None)
        if key is not None:
            if key != "bbox_2d":
                self.repairs.append(f"{key} in place of bbox_2d")
            self._stack.append((node[key], str(own), True))
        elif keys := next((keys for keys in _CORNER_KEYS if all(key in node for key in keys)), None):
            self.repairs.append(f"{', '.join(keys)} in place of bbox_2d")
            self._stack.append(([node[key] for key in keys], str(own), True))
        else:
            inner = [(k, v) for k, v in node.items() if isinstance(v, (list, dict)) and k not in _POINT_KEYS]
            self.strays += not inner
            self.repairs.append("lists in place of objects")
            self._stack.extend(
                (value, str(own) or ("" if key in _HOLDERS else key), False) for key, value in reversed(inner)
            )


def _from_json(value: Any) -> Answer | None:
    """The documented form, or JSON of another shape; None where no box stands in it."""
    tree = _Tree(value)
    if not tree.found:
        return Answer("empty") if tree.nothing and not tree.strays else None
    if tree.nothing or tree.strays:
        tree.repairs.append("an entry without a box")
    how = ", ".join(dict.fromkeys(tree.repairs))
    return Answer("salvaged" if how else "ok", tuple(tree.found), how)


def _is_flat(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and not any(isinstance(item, (list, dict)) for item in value)


def _four(value: Any) -> Box | None:
    """Four numbers, also as text; None for anything else."""
    if isinstance(value, str):
        value = _ANY_NUMBER.findall(value) if len(value) < 200 and _RUN.fullmatch(value.strip()) else []
    if not isinstance(value, list) or len(value) != 4:
        return None
    numbers = [_number(item) for item in value]
    if any(number is None or not abs(number) < _MAX_PX for number in numbers):
        return None
    x1, y1, x2, y2 = (float(number or 0) for number in numbers)
    return (x1, y1, x2, y2)


def _number(value: Any) -> float | None:
    if isinstance(value, str) and len(value) < 40 and _ANY_NUMBER.fullmatch(value.strip()):
        return float(value)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _two_corners(value: Any) -> Box | None:
    if not (isinstance(value, list) and len(value) == 2 and all(_is_flat(item) and len(item) == 2 for item in value)):
        return None
    return _four([*value[0], *value[1]])


def _with_spans(objects: tuple[FoundBox, ...], plain: str) -> tuple[FoundBox, ...]:
    """Find each box's numbers in the text, in order; a label that holds four numbers too is stepped over."""
    places = iter(_places(plain)) if objects else iter(())
    found = []
    for item in objects:
        span = next((span for box, span in places if box == item.box_xyxy), None)
        found.append(replace(item, span=span))
    return tuple(found)


def _places(plain: str) -> list[tuple[Box, tuple[int, int]]]:
    """Every place that reads as a box: four numbers in a row, two points in parentheses, x1, y1, x2, y2 by name."""
    found = [
        (_four(list(match.groups())), (match.start(1), match.end(4)))
        for pattern in (_CORNERS, _NAMED)
        for match in pattern.finditer(plain)
    ]
    for match in _RUN.finditer(plain):
        start, end = match.span()
        if end - start < 200 and (box := _four(match.group())) is not None:
            before = plain[max(0, start - 10) : start].rstrip()[-1:]
            after = plain[end : end + 10].lstrip()[:1]
            cut = not after and before in ("[", "(", ">")  # the last number may have lost digits
            # The last is Qwen2.5-VL's own HTML: data-bbox="x1 y1 x2 y2" (QwenLM cookbooks/document_parsing.ipynb).
            listed = (
                "," in match.group()
                or (before in ("[", "(", ">") and after in ("]", ")", "<"))
                or plain.endswith('bbox="', 0, start)
            )
            if listed and not cut:
                found.append((box, (start, end)))
    return sorted(((box, span) for box, span in found if box is not None), key=lambda place: place[1])


def _from_text(text: str, plain: str) -> Answer:
    """Whatever reads as a box: a cut-off list, single quotes, tags, prose.  Labels are taken from `text` unchanged."""
    opened = plain.count("[") + plain.count("{") - plain.count("]") - plain.count("}")
    places = _places(plain)
    if _POINTS.search(plain) and "box" not in plain.casefold():
        places = []
    cut = opened > 0 and not "".join(plain[-20:].split()).rstrip("`").endswith("}]")
    if not places and not cut and _says_none(plain):
        return Answer("empty")
    if not places:
        return Answer("unparsable", how=_why_unreadable(plain, cut=cut))
    found, used = [], 0
    for number, (box, (start, end)) in enumerate(places):
        stop = places[number + 1][1][0] if number + 1 < len(places) else len(plain)
        span = _label_span(plain, used, start, end, stop)
        label = _unescaped(text[slice(*span)]) if span else ""
        used = max(end, span[1] if span else 0)
        found.append(FoundBox(box, label, (start, end)))
    tagged = any("(" in plain[start:end] for _, (start, end) in places)
    how = "cut off" if cut else "two corner points" if tagged else "not the JSON asked for"
    return _tidy(tuple(found), "salvaged", how)


def _says_none(plain: str) -> bool:
    return bool(_EMPTY_LIST.fullmatch(plain)) or bool(_NO_BOX.search(plain) and not _RUN.search(plain))


def _label_span(plain: str, used: int, start: int, end: int, stop: int) -> tuple[int, int] | None:
    """Where the label of the box at start..end stands: in the same object behind it, or else in front of it."""
    behind = _LABEL.search(plain, end, stop)
    if behind and not set("{}") & set(plain[end : behind.start()]):
        return behind.span(behind.lastindex or 0)
    for pattern in (_LABEL, _REF):
        *_, in_front = [None, *pattern.finditer(plain, used, start)]
        if in_front and "}" not in plain[in_front.end() : start]:
            return in_front.span(in_front.lastindex or 0)
    return None


def _unescaped(label: str) -> str:
    try:
        return str(json.loads(f'"{label}"'))
    except ValueError:
        return label.replace("\\'", "'").replace('\\"', '"')


def _why_unreadable(plain: str, *, cut: bool) -> str:
    runs = [match.group() for match in _RUN.finditer(plain)]
    if not runs:
        return "no number in it"
    if cut:
        return "cut off before a box was whole"
    pairs = any(len(run) < 100 and len(_ANY_NUMBER.findall(run)) == 2 for run in runs)
    return "points in place of boxes" if pairs else "no four numbers in a row"


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


def score_of(coordinates: Sequence[float], lead: Sequence[float] = ()) -> float | None:
    """How sure that there is a box times how sure of where, in (0, 1]; None where no coordinate was measured.

    coordinates: probabilities of the tokens with its digits; their geometric mean is taken.  lead: of the tokens that
    lead to it, among them the choice between a box and none, or a further one and the end; the least sure one counts.

    >>> score_of([0.9, 0.9]), score_of([1.0, 1.0], lead=[1.0, 0.5, 1.0])
    (0.9, 0.5)
    """
    if not coordinates:
        return None
    where = math.exp(sum(math.log(max(p, 1e-12)) for p in coordinates) / len(coordinates))
    return where * max(min(lead, default=1.0), 1e-12)
