"""What an instruction asks for: "find the dog" names "the dog"."""

import re
from typing import Final

MAX_CHARACTERS: Final = 2000
"""A longer text is taken for a phrase as it stands."""

_POLITE: Final = (
    r"(?:(?:please|kindly)\s+|(?:can|could|would|will)\s+you\s+"
    r"|help\s+me\s+(?:to\s+)?|i\s+(?:want|need)\s+(?:you\s+)?to\s+)*"
)
_ONE: Final = r"(?=(?:the|a|an|all|any|both|each|every|this|that|these|those|my|his|her|their|our|\d+|one|two|three)\b)"
_PICTURE: Final = r"(?:this|the)\s+(?:image|picture|photo|photograph)"
_BOX: Final = (
    r"(?:bounding[ -]box(?:es)?(?:\s+coordinates?)?|bbox(?:es)?(?:\s+coordinates?)?"
    r"|box(?:es)?|coordinates|location|position)"
)
_PLEASE: Final = r"(?:请问?|麻烦)?(?:你)?(?:帮我|帮忙)?"
_FRAME: Final = r"(?:位置|坐标|边界框(?:坐标)?|包围框|检测框|边框|框|bbox)"

_STARTS: Final = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        # A prompt of other models' training data, which users bring along: OpenGVLab/all-seeing #11.
        rf"{_POLITE}(?:find|locate|provide|give|show)\s.{{0,60}}?\b(?:region|object|thing)\s+(?:that\s+)?"
        r"(?:this\s+sentence\s+describes|described\s+(?:as|by)|matche?s\s+the\s+description)\s*:\s*",
        rf"{_POLITE}(?:find|locate|detect|search\s+for|look\s+for)(?:\s*:|\s+me\b)?\s+",
        r"i(?:\s+am|'m)\s+looking\s+for\s+",
        # These are nouns too ("box of cereal", "spot on the wall", "ground beef", "show horse", "point to point race").
        rf"{_POLITE}(?:spot|ground|box|show|highlight|mark|identify|select|pick\s+out|point\s+(?:to|at|out))\s+{_ONE}",
        rf"{_POLITE}show\s+me\s+",
        r"(?:can|could|do)\s+you\s+see\s+",
        rf"{_POLITE}(?:draw|put|place)\s+(?:an?\s+)?(?:(?:red|green|blue)\s+)?(?:bounding\s+)?box(?:es)?\s+(?:around|on|over)\s+",
        rf"{_POLITE}(?:give|return|output|get|predict|provide|report|tell|outline)\s+(?:me\s+)?(?:the\s+|a\s+)?{_BOX}\s+(?:of|for)\s+",
        r"(?:the\s+)?(?:bounding[ -]box(?:es)?|bbox(?:es)?)(?:\s+coordinates?)?\s+(?:of|for)\s+",
        r"what(?:\s+is|'s|\s+are)\s+the\s+(?:bounding[ -]box(?:es)?|bbox(?:es)?|coordinates|location|position)\s+of\s+",
        rf"where(?:\s+in\s+{_PICTURE})?(?:\s+is|'s|\s+are|\s+can\s+(?:i|you)\s+(?:find|see))\s+",
        rf"{_PLEASE}(?:在(?:图|画|图片|图像|照片|画面)[中里上])?"
        r"(?:(?:定位|检测|识别)(?![的仪器站员线桩点码])出?|标[注记]出"
        r"|(?:找到|找出|寻找|查找|搜索|框出|框选|标出|圈出|指出|选中)(?!的))(?:一下)?[：:]?",
        r"(?:请|请?(?:你)?帮我|请?(?:你)?帮忙|麻烦(?:你)?(?:帮我)?)找|找一下",
    )
)
"""How an instruction begins; what follows is the phrase."""
_WRAPPED: Final = tuple(
    re.compile(pattern, re.DOTALL | re.IGNORECASE)
    for pattern in (
        rf"{_POLITE}(?:find|show|tell)\s+(?:(?:me|out)\s+)?where\s+(?P<what>.+?)\s+(?:is|are)",
        rf"{_PLEASE}把(?P<what>.+?)(?:找|框|标|圈|指)出来",
        rf"{_PLEASE}(?:给出|输出|返回|提供|画出|告诉我)(?P<what>.+?)的{_FRAME}",
        r"(?:请问)?(?P<what>.+?)在(?:图[中里]的?)?(?:哪里|哪儿|哪个位置|什么位置|什么地方|哪)",
    )
)
"""Instructions with words on both sides of the phrase."""
_ENDS: Final = tuple(
    re.compile(pattern, re.IGNORECASE | re.DOTALL)
    for pattern in (
        r"[,;.]?\s+(?:and\s+)?(?:output|return|report|give|draw|provide)\s(?=.{0,200}\b(?:json|bbox|box|boxes|coordinates)\b).{0,300}\Z",
        r"[，,；;]?(?:并|然后)?(?:以.{0,20}?格式)?(?:输出|返回|给出)(?=.{0,100}(?:坐标|框|json|JSON)).{0,200}\Z",
        r"[，,；;]?(?:并|然后)?以.{0,5}?JSON.{0,5}?格式(?:输出|返回|给出)?.{0,30}\Z",
        r"\s+(?:in|as|using)\s+json(?:\s+format)?\Z",
        rf"\s+in\s+{_PICTURE}\Z",
        r"\s+for\s+me\Z",
        rf"的{_FRAME}\Z",
    )
)
"""What may follow the phrase in an instruction, in the order in which it is taken off."""
_TAGS: Final = re.compile(r"</?ref>|<\|object_ref_(?:start|end)\|>")
_QUOTED: Final = re.compile(r"""(["'“‘「《])([^"'“”‘’「」《》]+)["'”’」》]""")
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
            return phrase_of(_IN_PICTURE.sub("", match.group("what"), count=1)) or stripped
    for start in _STARTS:
        if match := start.match(asked):
            return _without_ends(asked[match.end() :]) or stripped
    return stripped


def _without_ends(phrase: str) -> str:
    for end in _ENDS:
        phrase = end.sub("", phrase).rstrip(_STOPS)
    phrase = _TAGS.sub("", phrase)
    match = _IN_PICTURE.match(phrase)
    phrase = (phrase[match.end() :] if match else phrase).strip()
    quoted = _QUOTED.fullmatch(phrase)
    return quoted.group(2).strip() if quoted else phrase
