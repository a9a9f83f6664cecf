"""Words that exclude each other, in English and Chinese: what turns a true expression into a false one; pure."""

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Final, Literal

SwapKind = Literal["wrong_attribute", "wrong_size", "wrong_position", "wrong_relation"]
Side = Literal["left", "right", "top", "bottom"]

COLOURS: Final[Mapping[str, str]] = {
    "red": "blue", "blue": "yellow", "yellow": "purple", "purple": "green", "green": "red", "white": "black",
    "black": "white", "orange": "blue", "pink": "green", "brown": "purple", "gray": "red", "grey": "red",
    "红色": "蓝色", "蓝色": "黄色", "黄色": "紫色", "紫色": "绿色", "绿色": "红色", "白色": "黑色",
    "黑色": "白色", "橙色": "蓝色", "粉色": "绿色", "棕色": "紫色", "灰色": "红色",
}  # fmt: skip
"""Each colour becomes one that nobody would call by the same word."""
STATES: Final = (
    ("open", "closed"), ("empty", "full"), ("wooden", "metal"), ("young", "old"), ("round", "square"),
    ("standing", "sitting"), ("打开的", "关闭的"), ("空的", "满的"), ("年轻的", "年老的"), ("站着的", "坐着的"),
)  # fmt: skip
SIZES: Final = (
    ("big", "small"), ("large", "tiny"), ("huge", "tiny"), ("tall", "short"), ("thick", "thin"),
    ("大的", "小的"), ("巨大的", "微小的"), ("高的", "矮的"),
)  # fmt: skip
"""No superlative: of a single thing both the largest and the smallest may be asked for."""
SIDES: Final = (("left", "right"), ("top", "bottom"), ("upper", "lower"), ("左", "右"), ("上", "下"))
SIDE_OF: Final[Mapping[str, Side]] = {
    "left": "left", "right": "right", "top": "top", "bottom": "bottom", "upper": "top", "lower": "bottom",
    "左": "left", "右": "right", "上": "top", "下": "bottom",
}  # fmt: skip
OPPOSITE: Final[Mapping[Side, Side]] = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
PERSONS: Final = (("man", "woman"), ("boy", "girl"), ("男人", "女人"), ("男孩", "女孩"))
"""Nouns for the category person that exclude each other."""
NEGATION: Final = re.compile(
    r"\b(no|not|without|except|other than|neither|nor|never|isn't|aren't|n't)\b|n't|[不没无非未]|除了|以外"
)
"""With such a word in it an expression may stay true, or become true, when another word is exchanged."""


def is_chinese(text: str) -> bool:
    """Whether the text holds a Chinese character.

    >>> is_chinese("dog"), is_chinese("红色的狗")
    (False, True)
    """
    return any("\u4e00" <= letter <= "\u9fff" for letter in text)


@lru_cache(maxsize=1 << 16)
def names(text: str, label: str) -> bool:
    """Whether a text speaks of a category: its name as whole words, in the plural too; in Chinese as it stands.

    >>> names("two dogs", "dog"), names("a hotdog", "dog"), names("红色的狗", "狗")
    (True, False, True)
    """
    if is_chinese(label):
        return label in text
    return re.search(rf"(?<!\w){re.escape(label)}(?:e?s)?(?!\w)", text, re.IGNORECASE) is not None


def _pairs() -> Iterator[tuple[SwapKind, str, str]]:
    """(kind, word, what it becomes)."""
    yield from (("wrong_attribute", word, other) for word, other in COLOURS.items())
    for kind, pairs in (("wrong_attribute", STATES), ("wrong_size", SIZES)):
        for one, other in pairs:
            yield kind, one, other  # type: ignore[misc]
            yield kind, other, one  # type: ignore[misc]


def worded_swaps(text: str, label: str) -> list[tuple[SwapKind, str]]:
    """Exchange an attribute or a size that stands directly before the category's name, so that it is said of it.

    Of a category that is there once, and as `text` says, the result is not there.

    >>> worded_swaps("the red car by a tree", "car")
    [('wrong_attribute', 'the blue car by a tree')]
    >>> worded_swaps("the car by a red tree", "car")
    []
    """
    found: list[tuple[SwapKind, str]] = []
    for kind, word, other in _pairs():
        if is_chinese(word) != is_chinese(label):
            continue
        pattern = (
            rf"(?<![\u4e00-\u9fff]){word}(?=的?{re.escape(label)})"
            if is_chinese(word)
            else rf"\b{word}(?= {re.escape(label)}\b)"
        )
        found += _exchanged(kind, pattern, other, text)
    if label.casefold() in ("person", "people", "人"):
        for one, other in (*PERSONS, *((b, a) for a, b in PERSONS)):
            pattern = one if is_chinese(one) else rf"\b{one}\b"
            found += _exchanged("wrong_attribute", pattern, other, text)
    return found


def side_swaps(text: str, label: str) -> list[tuple[Side, str]]:
    """Exchange the side on which a thing is said to be: (the side that `text` names, the text with the other one).

    Only where the side is the picture's: before the category's name, or at the text's end.

    >>> side_swaps("the dog on the left", "dog")
    [('left', 'the dog on the right')]
    >>> side_swaps("the dog left of the tree", "dog")
    []
    """
    found: list[tuple[Side, str]] = []
    for one, other in (*SIDES, *((b, a) for a, b in SIDES)):
        if is_chinese(one):
            patterns = [rf"^(?:图片|画面|图中|照片)?(?:最)?{one}(?=[边侧方面]的?{re.escape(label)})"]
        else:
            patterns = [
                rf"^(?:the )?{one}(?= {re.escape(label)}\b)",
                rf"\b(?:on|at|in) (?:the )?{one}(?=(?: side| half)?$)",
            ]
        for pattern in patterns:
            match = re.search(pattern, text, re.IGNORECASE)
            if match:
                start = match.end() - len(one)
                found.append((SIDE_OF[one], text[:start] + other + text[match.end() :]))
    return found


def _exchanged(kind: SwapKind, pattern: str, other: str, text: str) -> list[tuple[SwapKind, str]]:
    changed, number = re.subn(pattern, other, text, flags=re.IGNORECASE)
    return [(kind, changed)] if number == 1 else []
