"""Reads a million damaged answers: none may raise, mix its statuses, take long, or give a number that is not in it.

uv run python benchmarks/mutate_answers.py [--count 1000000] [--seed 0]
"""

import argparse
import random
import re
import sys
import time
from collections import Counter
from pathlib import Path

from qwenft.core.answer import Answer, read_answer

ROOT = Path(__file__).parents[1]
ALPHABET = "[]{}()<>\"':,;.-+ \n\t\\/|`0123456789xyeE_abnoxlNulبк车，：“［１"
PIECES = (
    "```json\n", "```", "<think>", "</think>", "<answer>", "</answer>", "bbox_2d", '"label": "', "null", "None", "[]",
    "NaN", "-0", "1e5", "[[", "]]", "\x00", "\ud800", "<ref>", "<|box_start|>", "(1,2),(3,4)", "points", "9" * 400,
)  # fmt: skip
NUMBER = re.compile(r"[-+]?[0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+(?:\.[0-9]+)?")
FULL_WIDTH = str.maketrans("．０１２３４５６７８９", ".0123456789")


def damaged(text: str, draw: random.Random, others: list[str]) -> str:
    """The text with one to six cuts, insertions, repeats and grafts from other answers."""
    for _ in range(draw.choice((1, 1, 1, 2, 3, 6))):
        start = draw.randint(0, len(text))
        stop = min(len(text), start + draw.choice((0, 1, 1, 2, 5, 20)))
        kind = draw.random()
        if kind < 0.4:
            new = "".join(draw.choices(ALPHABET, k=draw.randint(0, 3)))
        elif kind < 0.6:
            new = draw.choice(PIECES)
        elif kind < 0.75:
            new = text[start:stop] * draw.randint(2, 5)
        elif kind < 0.9:
            other = draw.choice(others)
            at = draw.randint(0, len(other))
            new = other[at : at + draw.randint(0, 40)]
        else:
            stop, new = len(text), ""  # cut off, as by max_new_tokens
        text = text[:start] + new + text[stop:]
    return text


def numbers_in(text: str) -> set[float]:
    """Every number that stands in a text, also as part of a longer run of characters."""
    found = set()
    for match in NUMBER.finditer(text.translate(FULL_WIDTH)):
        digits = match.group()
        for part in {digits, digits.lstrip("+-"), *re.findall(r"[-+]?[0-9]+(?:\.[0-9]+)?", digits)}:
            try:
                found.add(float(part))
            except ValueError:
                continue
    return found


def problem(text: str, answer: Answer) -> str:
    """What is wrong with what was read; empty where nothing is."""
    if bool(answer.objects) != (answer.status in ("ok", "salvaged")):
        return "boxes and status contradict each other"
    if bool(answer.how) != (answer.status in ("salvaged", "unparsable")):
        return "a reason where none belongs, or none where one does"
    known = numbers_in(text)
    if any(v not in known for item in answer.objects for v in item.box_xyxy):
        return "a number that is not in the answer"
    return ""


def main() -> str | None:
    """Run; returns what was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests"))
    from malformed_answers import NOT_A_BOX, READABLE

    texts = [row[1] for row in (*READABLE, *NOT_A_BOX)]
    draw = random.Random(options.seed)
    statuses: Counter[str] = Counter()
    slowest, began = (0.0, 0), time.perf_counter()
    for number in range(options.count):
        text = damaged(draw.choice(texts), draw, texts)
        start = time.perf_counter()
        try:
            answer = read_answer(text)
        except Exception as error:
            return f"answer {number} raises {error!r}: {text!r}"
        slowest = max(slowest, (time.perf_counter() - start, len(text)))
        statuses[answer.status] += 1
        if wrong := problem(text, answer):
            return f"answer {number}: {wrong}: {text!r} -> {answer}"
    seconds = time.perf_counter() - began
    print(f"{options.count:,} damaged answers of {len(texts)} kinds, seed {options.seed}, in {seconds:.0f} s")
    print(f"statuses: {dict(statuses.most_common())}")
    print(f"slowest: {slowest[0] * 1e3:.2f} ms, {slowest[1]} characters")
    return None


if __name__ == "__main__":
    sys.exit(main())
