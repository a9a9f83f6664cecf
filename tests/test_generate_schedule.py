"""The order of work while answering: every answer is what the model would say alone, and none holds up the others."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwenft.model.inputs import Picture
from qwenft.predict.engine import Prefix, Work
from qwenft.predict.schedule import LOOP_FROM, Form, Schedule, Shown, Turn, loops, until_over

END = 0
WORDS = st.integers(0, 5)
ANSWERS = st.lists(WORDS, max_size=30)
NO_FORM = Form()


class ScriptedEngine:
    """Says what its script has for a question, as far as the row holds what the script says; else it ends."""

    def __init__(self, rows: int, script: dict[tuple[int, ...], Sequence[int]]) -> None:
        self.rows = rows
        self.script = script
        self.base = SimpleNamespace(device=torch.device("cpu"))
        self.cache = self
        self.kept: list[list[int]] = [[] for _ in range(rows)]
        self.passes: list[int] = []
        """How many tokens each row got, a pass each."""
        self.reserved = 0

    def engaged(self) -> Any:
        return torch.no_grad()

    def reserve(self, places: int) -> None:
        self.reserved = max(self.reserved, places)

    def read_pictures(self, prefixes: Sequence[Prefix]) -> tuple[Any, list[int]]:
        return [list(prefix.tokens) for prefix in prefixes], [len(prefix.tokens) + 7 for prefix in prefixes]

    def place(self, read: Any, numbers: Sequence[int], rows: Sequence[int]) -> None:
        for number, row in zip(numbers, rows, strict=True):
            self.kept[row] = list(read[number])

    def advance(self, work: Sequence[Work]) -> list[list[tuple[int, float]]]:
        assert len({item.row for item in work}) == len(work)
        self.passes.append(max(len(item.tokens) for item in work))
        return [self._row(item) for item in work]

    step = advance

    def _row(self, item: Work) -> list[tuple[int, float]]:
        assert item.shift == 7
        assert item.place + len(item.tokens) <= self.reserved
        row = self.kept[item.row]
        assert item.place <= len(row)
        row[item.place :] = item.tokens
        return [self._next(row[: len(row) - back]) for back in range(item.asked - 1, -1, -1)]

    def _next(self, row: list[int]) -> tuple[int, float]:
        question = next(q for q in self.script if tuple(row[: len(q)]) == q)
        said, planned = row[len(question) :], self.script[question]
        follows = len(said) < len(planned) and list(planned[: len(said)]) == said
        return (planned[len(said)] if follows else END), 0.5


def answers_of(
    script: list[list[Sequence[int]]], rows: int, form: Form = NO_FORM, limit: int = 1000
) -> tuple[dict[int, list[int]], ScriptedEngine]:
    """script: pictures with their questions' answers."""
    picture = Picture(torch.zeros(0, 0), torch.tensor([1, 2, 2]), (28, 28), (28, 28))
    spoken: dict[tuple[int, ...], Sequence[int]] = {}
    shown, key = [], 0
    for number, answers in enumerate(script):
        prefix, turns = (100 + number, 99), []
        for answer in answers:
            spoken[(*prefix, 1000 + key, 98)] = answer
            turns.append(Turn(key, (1000 + key, 98), limit, form))
            key += 1
        shown.append(Shown(Prefix(prefix, picture), tuple(turns)))
    engine = ScriptedEngine(rows, spoken)
    schedule = Schedule(engine, frozenset([END]))  # type: ignore[arg-type]
    found = {one.key: one for finished in schedule.run(iter(shown)) for one in finished}
    assert all(len(one.probabilities) == len(one.tokens) for one in found.values())
    return {number: one.tokens for number, one in found.items()}, engine


@given(
    st.lists(st.lists(ANSWERS, min_size=1, max_size=5), max_size=5), st.integers(1, 6), st.tuples(ANSWERS, ANSWERS),
    st.integers(1, 30), st.booleans(),
)  # fmt: skip
def test_whatever_is_proposed_each_answer_is_the_models_own(
    script: list[list[list[int]]], rows: int, form: tuple[list[int], list[int]], limit: int, follows: bool
) -> None:
    lead, tail = form
    if follows and script:
        script[0][0] = [word or 1 for word in (*lead, *script[0][0], *tail)]
    found, _ = answers_of(script, rows, Form(tuple(lead), tuple(tail)), limit)
    spoken = [answer for answers in script for answer in answers]
    assert found == {key: until_over([*answer, END], frozenset([END]), limit) for key, answer in enumerate(spoken)}


FORM = Form((11, 12, 13), (21, 22, 23, 24, 25, 26, END))


def test_fixed_tokens_cost_one_pass_and_a_refusal_stays_possible() -> None:
    box = [11, 12, 13, 1, 2, 3, 4, 21, 22, 23, 24, 25, 26]
    refusal, other_label = [11, 4], [11, 12, 13, 1, 2, 3, 4, 21, 22, 5, 5]
    found, _ = answers_of([[box, refusal, other_label]], 3, FORM)
    assert found == {0: box, 1: refusal, 2: other_label}
    _, engine = answers_of([[box]], 1, FORM)
    _, plainly = answers_of([[box]], 1)
    assert len(plainly.passes) == len(box) + 1
    assert engine.passes == [2 + 3, 1, 1, 1, 1, 1 + 6]


def test_a_long_answer_does_not_hold_up_the_others() -> None:
    script = [[[1, 2] * 20, [3], [3], [3]], *[[[3]] * 4 for _ in range(40)]]
    _, engine = answers_of(script, 4)
    assert len(engine.passes) < 150  # the long one takes 41; one by one behind it they would take far more than that


def test_a_row_with_a_proposal_does_not_wait_for_long_answers() -> None:
    box = [11, 12, 13, 1, 21, 22, 23, 24, 25, 26]
    picture = Picture(torch.zeros(0, 0), torch.tensor([1, 2, 2]), (28, 28), (28, 28))
    turns = [Turn(key, (1000 + key, 98), 500, FORM if key == 0 else NO_FORM) for key in range(4)]
    engine = ScriptedEngine(4, {(100, 1000 + key, 98): box if key == 0 else list(range(1, 400)) for key in range(4)})
    run = Schedule(engine, frozenset([END])).run(iter([Shown(Prefix((100,), picture), tuple(turns))]))  # type: ignore[arg-type]
    assert [one.key for one in next(run)] == [0]
    assert len(engine.passes) < 20


@pytest.mark.parametrize("unit", [[7], list(range(1, 41)), [3, 3, 3, 9] * 8], ids=["one-word", "a-box", "period-four"])
def test_an_answer_that_repeats_itself_is_stopped(unit: list[int]) -> None:
    said = [50, 51, *unit * (3000 // len(unit))]
    found, _ = answers_of([[said]], 1)
    assert LOOP_FROM <= len(found[0]) < 200
    assert found[0] == said[: len(found[0])] == until_over(said, frozenset([END]), 10_000)
    assert loops(found[0])


def test_a_list_of_different_boxes_is_no_loop() -> None:
    said = [word for number in range(40) for word in (*range(200, 220), number + 1, number + 2, 150)]
    found, _ = answers_of([[said]], 1)
    assert found[0] == said
