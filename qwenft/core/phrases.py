"""What an instruction asks for: "find the dog" names "the dog"."""

import re
from typing import Final

MAX_CHARACTERS: Final = 2000
"""A longer text is taken for a phrase as it stands."""

_POLITE: Final = (
    r"(?:(?:please|kindly)\s+|(?:can|could|would|will)\s+you\s+|help\s+me\s+(?:to\s+)?|i\s+want\s+you\s+to\s+)*"
)
_ONE: Final = r"(?=(?:the|a|an|all|any|both|each|every|this|that|these|those|my|his|her|their|our|\d+|one|two|three)\b)"
_BOX: Final = r"(?:bounding[ -]box(?:es)?|bbox(?:es)?|box(?:es)?|coordinates|location|position)"

_STARTS: Final = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"{_POLITE}(?:find|locate|detect|search\s+for|look\s+for)\s+(?:me\s+)?",
        # These are nouns too ("box of cereal", "spot on the wall", "ground beef", "show horse", "point to point race").
        rf"{_POLITE}(?:spot|ground|box|show|highlight|mark|point\s+(?:to|at|out))\s+{_ONE}",
        rf"{_POLITE}show\s+me\s+",
        rf"{_POLITE}(?:draw|put|place)\s+an?\s+(?:bounding\s+)?box\s+(?:around|on|over)\s+",
        rf"{_POLITE}(?:give|return|output|get|predict|provide|report|tell)\s+(?:me\s+)?(?:the\s+|a\s+)?{_BOX}\s+(?:of|for)\s+",
        r"what(?:\s+is|'s|\s+are)\s+the\s+(?:bounding[ -]box(?:es)?|bbox(?:es)?|coordinates|location|position)\s+of\s+",
        r"where(?:\s+is|'s|\s+are|\s+can\s+(?:i|you)\s+(?:find|see))\s+",
        r"(?:请|麻烦)?(?:帮我)?(?:在(?:图|画|图片|图像|照片|画面)[中里上])?"
        r"(?:(?:定位|检测)(?![的仪器站员线桩点])|(?:找到|找出|框出|标出|圈出|指出)(?!的))(?:一下)?",
    )
)
"""How an instruction begins; what follows is the phrase."""
_WRAPPED: Final = tuple(
    re.compile(pattern, re.DOTALL | re.IGNORECASE)
    for pattern in (
        rf"{_POLITE}(?:find|show|tell)\s+(?:(?:me|out)\s+)?where\s+(?P<what>.+?)\s+(?:is|are)",
        r"请?把(?P<what>.+?)(?:找|框|标|圈|指)出来",
        r"(?P<what>.+?)在(?:图[中里]的?)?(?:哪里|哪儿|哪个位置|什么位置|哪)",
    )
)
"""Instructions with words on both sides of the phrase."""
_ENDS: Final = tuple(
    re.compile(pattern, re.IGNORECASE | re.DOTALL)
    for pattern in (
        r"[,;.]?\s+(?:and\s+)?(?:output|return|report|give|draw|provide)\s(?=.{0,200}\b(?:json|bbox|box|boxes|coordinates)\b).{0,300}\Z",
        r"[，,；;]?(?:并|然后)?(?:以.{0,20}?格式)?(?:输出|返回|给出)(?=.{0,100}(?:坐标|框|json|JSON)).{0,200}\Z",
        r"\s+in\s+(?:this|the)\s+(?:image|picture|photo|photograph)\Z",
    )
)
"""What may follow the phrase in an instruction, in the order in which it is taken off."""
_IN_PICTURE: Final = re.compile(r"(?:这张)?(?:图|画|图片|图像|照片|画面)[中里上](?:的)?(?=.)")
_STOPS: Final = " \t\r\n.!?。！？"


def phrase_of(text: str) -> str:
    """Strip an instruction to the phrase it names; a phrase stays as it is.

    >>> phrase_of("find the dog"), phrase_of("Where is the red cup?"), phrase_of("the dog")
    ('the dog', 'the red cup', 'the dog')
    >>> phrase_of("定位穿红衣服的人"), phrase_of("box of cereal")
    ('穿红衣服的人', 'box of cereal')
    """
    stripped = text.strip()
    if len(stripped) > MAX_CHARACTERS:
        return stripped
    asked = stripped.rstrip(_STOPS)
    for wrapped in _WRAPPED:
        if match := wrapped.fullmatch(asked):
            return _IN_PICTURE.sub("", match.group("what"), count=1).strip() or stripped
    for start in _STARTS:
        if match := start.match(asked):
            return _without_ends(asked[match.end() :]) or stripped
    return stripped


def _without_ends(phrase: str) -> str:
    for end in _ENDS:
        phrase = end.sub("", phrase).rstrip(_STOPS)
    match = _IN_PICTURE.match(phrase)
    return (phrase[match.end() :] if match else phrase).strip()
