"""Who answers when: pictures come in, their questions take free rows, a finished row takes the next question.

Greedy decoding, token for token.  Where an answer's form is known its fixed tokens are proposed and judged in one pass:
what the model itself would have chosen stays, the first token that differs is the model's (speculative decoding with
exact greedy verification, https://arxiv.org/abs/2211.17192).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from qwenft.predict.cache import Prefixes
from qwenft.predict.engine import PREFIX_TOKENS, Chosen, Engine, Prefix, Work

REFILL_SHARE: Final = 4
"""Rows are refilled once one in so many is free: a pass over one picture costs nearly what one over many costs."""
PATIENCE: Final = 8
"""Steps that a row with a proposal waits for others to have one too, so that they share a pass."""
LOOP_FROM: Final = 96
LOOP_EVERY: Final = 32
LOOP_TOKENS: Final = range(8, 97)
"""An answer is looked at after 96 tokens and then every 32: it loops if it ends in the same 8 to 96 tokens three times
over.  A box with its label takes 25 to 60."""


@dataclass(frozen=True, slots=True)
class Form:
    """Tokens that an answer is expected to begin with, and to end with; only proposals, so that any answer can come."""

    lead: tuple[int, ...] = ()
    tail: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Turn:
    """One question: its prompt behind the picture, and when its answer ends at the latest."""

    key: int
    """Whose answer it is, for the caller."""
    tokens: tuple[int, ...]
    limit: int
    """Answer tokens."""
    form: Form = Form()


@dataclass(frozen=True, slots=True)
class Shown:
    """A picture and all that is asked about it."""

    prefix: Prefix
    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Finished:
    """An answer, without the token that ends it."""

    key: int
    tokens: list[int]
    probabilities: list[float]


def loops(tokens: Sequence[int]) -> bool:
    """Whether an answer of just this length is stopped as a loop."""
    if len(tokens) < LOOP_FROM or len(tokens) % LOOP_EVERY:
        return False
    end = len(tokens)
    return any(
        tokens[end - n :] == tokens[end - 2 * n : end - n] == tokens[end - 3 * n : end - 2 * n]
        for n in LOOP_TOKENS
        if 3 * n <= end
    )


def is_over(tokens: Sequence[int], ends: frozenset[int], limit: int) -> bool:
    """Whether an answer is over with its last token: it says so, it is as long as it may be, or it loops."""
    return tokens[-1] in ends or len(tokens) >= limit or loops(tokens)


def until_over(tokens: Sequence[int], ends: frozenset[int], limit: int) -> list[int]:
    """An answer up to where it is over, without the token that ends it."""
    length = next((n for n in range(1, len(tokens) + 1) if is_over(tokens[:n], ends, limit)), len(tokens))
    return [token for token in tokens[:length] if token not in ends]


@dataclass
class _Row:
    """A question that is being answered."""

    turn: Turn
    number: int
    place: int
    shift: int
    pending: list[int]
    """Tokens that do not stand in the cache yet: the question, later the token chosen last."""
    tokens: list[int] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)
    jumped: bool = False
    """The end of the form was proposed; once is enough."""
    done: bool = False

    def proposal(self) -> Sequence[int]:
        """Tokens that are expected behind the pending ones."""
        form, room = self.turn.form, self.turn.limit - len(self.tokens) - 1
        if not self.tokens:
            return form.lead[:room]
        lead = len(form.lead)
        begun = len(self.tokens) > lead and tuple(self.tokens[:lead]) == form.lead
        if form.tail and not self.jumped and begun and self.tokens[-1] == form.tail[0]:
            return form.tail[1 : 1 + room]
        return ()

    def work(self, proposal: Sequence[int] = ()) -> Work:
        """The next pass over this row."""
        return Work(self.number, [*self.pending, *proposal], self.place, self.shift, 1 + len(proposal))

    def finished(self, ends: frozenset[int]) -> Finished:
        """The answer."""
        length = len(self.tokens) - (self.tokens[-1] in ends)
        return Finished(self.turn.key, self.tokens[:length], self.probabilities[:length])

    def take(self, chosen: Chosen, proposal: Sequence[int], ends: frozenset[int]) -> None:
        """Accept what the model chose, as far as the proposal says the same, and one token more."""
        self.jumped |= bool(self.tokens and proposal)
        self.place += len(self.pending)
        agreed = 0
        while agreed < len(proposal) and chosen[agreed][0] == proposal[agreed]:
            agreed += 1
        for token, probability in chosen[: agreed + 1]:
            self.tokens.append(token)
            self.probabilities.append(probability)
            self.done = is_over(self.tokens, ends, self.turn.limit)
            if self.done:
                return
        self.place += agreed
        self.pending = [self.tokens[-1]]


@dataclass
class _Waiting:
    """A picture whose questions have not all got a row yet."""

    prefix: Prefix
    turns: list[Turn]
    read: Prefixes | None = None
    """Keys and values of this picture and those that were read with it; None: not read yet."""
    number: int = 0
    """Which of them it is."""
    behind: int = 0
    """The position behind it."""

    @classmethod
    def of(cls, shown: Shown | None) -> "_Waiting | None":
        """None stays None."""
        return None if shown is None else cls(shown.prefix, list(shown.turns))


@dataclass
class Schedule:
    """Keeps the rows of an engine busy."""

    engine: Engine
    ends: frozenset[int]
    """Tokens that end an answer."""
    running: dict[int, _Row] = field(default_factory=dict)
    _waiting: _Waiting | None = None
    _waited: int = 0

    def run(self, pictures: Iterator[Shown]) -> Iterator[list[Finished]]:
        """Answer everything; a list each time that something is finished.  Between two lists nothing is engaged."""
        while True:
            with self.engine.engaged():
                self._refill(pictures)
                self._advance()
            if not self.running:
                return
            done = [row for row in self.running.values() if row.done]
            for row in done:
                del self.running[row.number]
            if done:
                yield [row.finished(self.ends) for row in done]

    def _refill(self, pictures: Iterator[Shown]) -> None:
        """Give free rows to questions: pictures are read that no row has, and the questions behind them."""
        free = [row for row in range(self.engine.rows) if row not in self.running]
        if self.running and len(free) * REFILL_SHARE < self.engine.rows:
            return
        added: list[tuple[_Waiting, Turn, int]] = []
        while free and (waiting := self._waiting or _Waiting.of(next(pictures, None))) is not None:
            taken = min(len(free), len(waiting.turns))
            added += [(waiting, turn, row) for turn, row in zip(waiting.turns, free, strict=False)]
            del waiting.turns[:taken], free[:taken]
            self._waiting = waiting if waiting.turns else None
        if not added:
            return
        lengths = [len(waiting.prefix.tokens) + len(turn.tokens) + turn.limit for waiting, turn, _ in added]
        self.engine.reserve(max(lengths))
        self._read(list({id(waiting): waiting for waiting, _, _ in added if waiting.read is None}.values()))
        rows = []
        for waiting, turn, row in added:
            place = len(waiting.prefix.tokens)
            rows.append(_Row(turn, row, place, waiting.behind - place, list(turn.tokens)))
        self._place(added)
        self.running |= {row.number: row for row in rows}
        self._take(rows, self.engine.advance)

    def _read(self, pictures: Sequence[_Waiting]) -> None:
        """Read pictures, as many at a time as the budget allows."""
        budget, start = PREFIX_TOKENS[self.engine.base.device.type], 0
        while start < len(pictures):
            stop = start + 1
            while stop < len(pictures) and (stop + 1 - start) * _longest(pictures[start : stop + 1]) <= budget:
                stop += 1
            chunk = pictures[start:stop]
            read, behind = self.engine.read_pictures([waiting.prefix for waiting in chunk])
            for number, waiting in enumerate(chunk):
                waiting.read, waiting.number, waiting.behind = read, number, behind[number]
            start = stop

    def _place(self, added: Sequence[tuple[_Waiting, Turn, int]]) -> None:
        """Copy what was read of each picture in front of its questions."""
        reads = {id(waiting.read): waiting.read for waiting, _, _ in added if waiting.read is not None}
        for read in reads.values():
            of_it = [(waiting.number, row) for waiting, _, row in added if waiting.read is read]
            self.engine.cache.place(read, *zip(*of_it, strict=True))

    def _advance(self) -> None:
        """One pass: over the rows with a proposal, if they are half of all or waited, else a token for the others."""
        going = [row for row in self.running.values() if not row.done]
        jumping = [row for row in going if row.proposal()]
        self._waited = self._waited + 1 if jumping else 0
        if 2 * len(jumping) >= len(going) or self._waited > PATIENCE:
            self._waited = 0
            self._take(jumping, self.engine.advance)
        else:
            self._take([row for row in going if not row.proposal()], self.engine.step)

    def _take(self, rows: Sequence[_Row], advance: Callable[[Sequence[Work]], list[Chosen]]) -> None:
        proposals = [row.proposal() for row in rows]
        chosen = advance([row.work(proposal) for row, proposal in zip(rows, proposals, strict=True)]) if rows else []
        for row, proposal, found in zip(rows, proposals, chosen, strict=True):
            row.take(found, proposal, self.ends)


def _longest(pictures: Sequence[_Waiting]) -> int:
    return max(len(waiting.prefix.tokens) for waiting in pictures)
