"""Caption figures: BLEU, ROUGE-L and CIDEr, with a tokenizer of our own in place of the Java one.

The scorers are pycocoevalcap's (the extra `captions`).  METEOR, SPICE and the PTB tokenizer need Java and are left out;
on text that is already tokenized the figures are the published ones, on raw text they can differ in the third digit.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

CAPTION_NAMES: Final = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr")
LEFT_OUT: Final = "METEOR and SPICE need Java and are left out; tokens are qwenft's own, not the PTB tokenizer's"
_MISSING: Final = "BLEU, ROUGE-L and CIDEr need the extra `captions`: uv sync --extra captions"

_CONTRACTION: Final = re.compile(r"(?<=\w)(n't|'(?:s|m|d|re|ve|ll))\b")
"""Split off as the Penn Treebank does: "don't" -> "do n't"."""
_WORD: Final = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff]|n't|'?[^\W\u3040-\u30ff\u3400-\u9fff]+(?:[-.'][^\W\u3040-\u30ff\u3400-\u9fff]+)*"
)
"""A Chinese or Japanese sign, or a run of other letters and digits; punctuation is dropped."""


def tokenize(text: str) -> list[str]:
    """Lower-case words without punctuation.

    >>> tokenize("A dog isn't on the T-shirt.")
    ['a', 'dog', 'is', "n't", 'on', 'the', 't-shirt']
    >>> tokenize("红色的车。")
    ['红', '色', '的', '车']
    """
    plain = text.lower().replace("’", "'")
    return _WORD.findall(_CONTRACTION.sub(r" \1", plain))


def score_captions(references: Mapping[str, Sequence[str]], candidates: Mapping[str, str]) -> dict[str, Any]:
    """Score one caption a sample against its references; both by sample id, raw or already tokenized text.

    CIDEr weighs words by how rare they are among the references given, so that it is None for fewer than two samples,
    and figures of different sets do not compare.  Without the extra all figures are None and `note` says why.
    A sample without a word in its references cannot be scored and is counted in `without_references`.
    """
    gold, answers = _tokenized(references, candidates)
    figures: dict[str, Any] = {"scored": len(gold), "without_references": len(references) - len(gold)}
    if not gold:
        return {**figures, **dict.fromkeys(CAPTION_NAMES), "note": "no sample has a reference"}
    try:
        from pycocoevalcap.bleu.bleu import Bleu
    except ImportError:
        return {**figures, **dict.fromkeys(CAPTION_NAMES), "note": _MISSING}
    bleu, _ = Bleu(4).compute_score(gold, answers, verbose=0)
    single = {name: _mean(values.values()) for name, values in _values(gold, answers).items()}
    values = [*map(float, bleu), single.get("ROUGE_L"), single.get("CIDEr")]
    return {**figures, **dict(zip(CAPTION_NAMES, values, strict=True)), "note": LEFT_OUT}


def caption_values(
    references: Mapping[str, Sequence[str]], candidates: Mapping[str, str]
) -> dict[str, dict[str, float]]:
    """The figures that are a mean over samples, sample by sample: {"ROUGE_L": {id: value}, "CIDEr": {id: value}}.

    CIDEr's word weights are those of all references given; a figure that cannot be measured is left out.
    """
    gold, answers = _tokenized(references, candidates)
    return _values(gold, answers) if gold else {}


def _tokenized(
    references: Mapping[str, Sequence[str]], candidates: Mapping[str, str]
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    gold = {key: [" ".join(words) for text in texts if (words := tokenize(text))] for key, texts in references.items()}
    gold = {key: texts for key, texts in sorted(gold.items()) if texts}
    return gold, {key: [" ".join(tokenize(candidates[key]))] for key in gold}


def _values(gold: dict[str, list[str]], answers: dict[str, list[str]]) -> dict[str, dict[str, float]]:
    try:
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge
    except ImportError:
        return {}
    scorers = {"ROUGE_L": Rouge(), **({"CIDEr": Cider()} if len(gold) > 1 else {})}
    return {
        name: dict(zip(gold, map(float, scorer.compute_score(gold, answers)[1]), strict=True))
        for name, scorer in scorers.items()
    }


def _mean(values: Collection[float]) -> float:
    return sum(values) / len(values)
