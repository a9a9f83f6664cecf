"""Watches loss and gradient norm of each update and names the samples behind what is wrong; pure."""

import math
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

EXPLODED: Final = 100.0
"""A gradient norm over so many times the running median is worth a warning."""
WINDOW: Final = 50
"""Updates that the running median looks back on."""
FEW: Final = 8
"""Updates before which there is no median to speak of."""
FLAT_UPDATES: Final = 20
FLAT_SHARE: Final = 1e-4
"""A loss that moved by less than this share over FLAT_UPDATES updates has not moved: batches alone differ by more."""
SHOWN: Final = 8
"""How many sample ids a message names; the event has all."""

MicroBatch = tuple[float, Sequence[str]]
"""Its loss, and the ids of its samples."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that is wrong with an update."""

    kind: str
    """`loss` or `gradient` (not a number, training cannot go on), `exploded`, `flat`."""
    step: int
    text: str
    samples: tuple[str, ...]

    @property
    def ends(self) -> bool:
        """Whether training cannot go on."""
        return self.kind in ("loss", "gradient")

    def event(self) -> dict[str, Any]:
        """As it stands in events.jsonl."""
        return {
            "event": "trouble", "kind": self.kind, "step": self.step, "text": self.text, "samples": list(self.samples),
        }  # fmt: skip


@dataclass
class Watch:
    """Looks at one update after another."""

    _norms: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _losses: list[float] = field(default_factory=list)
    """The first FLAT_UPDATES."""

    def recall(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Take up the updates of a run that is resumed."""
        for event in events:
            if event["event"] == "step" and isinstance(event["loss"], float):
                self._remember(event["loss"], event["grad_norm"])

    def look(
        self, step: int, loss: float, norm: float | None, micro_batches: Callable[[], Sequence[MicroBatch]]
    ) -> Trouble | None:
        """Judge an update.  loss, norm: the same in all processes, so that all come to the same end.

        micro_batches: gives those of all processes; it waits for the device, so it is asked only where something is
        wrong.
        """
        if not math.isfinite(loss):
            return _broken(step, loss, micro_batches())
        if norm is not None and not math.isfinite(norm):
            names = _names(micro_batches())
            text = f"the gradient norm of step {step} is {norm}, its loss {loss:.4g}; samples: {listed(names)}"
            return Trouble("gradient", step, text, names)
        found = self._exploded(step, norm, micro_batches) or self._flat(step, loss, micro_batches)
        self._remember(loss, norm)
        return found

    def _remember(self, loss: float, norm: float | None) -> None:
        if norm is not None:
            self._norms.append(norm)
        if len(self._losses) < FLAT_UPDATES:
            self._losses.append(loss)

    def _exploded(
        self, step: int, norm: float | None, micro_batches: Callable[[], Sequence[MicroBatch]]
    ) -> Trouble | None:
        if norm is None or len(self._norms) < FEW:
            return None
        usual = statistics.median(self._norms)
        if norm <= EXPLODED * usual:
            return None
        names = _names(sorted(micro_batches(), key=lambda pair: -pair[0]))
        times = f"{norm / usual:.0f} times the usual {usual:.3g}" if usual else "after norms of 0"
        text = (
            f"the gradient norm of step {step} is {norm:.3g}, {times}; it was scaled down to max_grad_norm; samples, "
            f"highest loss first: {listed(names)}"
        )
        return Trouble("exploded", step, text, names)

    def _flat(self, step: int, loss: float, micro_batches: Callable[[], Sequence[MicroBatch]]) -> Trouble | None:
        if len(self._losses) != FLAT_UPDATES - 1:
            return None
        losses = [*self._losses, loss]
        if max(losses) - min(losses) > FLAT_SHARE * abs(losses[0]):
            return None
        names = _names(micro_batches())
        text = (
            f"the loss has stayed at {losses[0]:.4g} for {FLAT_UPDATES} updates: nothing is learned; look at the "
            f"learning_rate and at the answers in the data; samples of step {step}: {listed(names)}"
        )
        return Trouble("flat", step, text, names)


def _names(micro_batches: Iterable[MicroBatch]) -> tuple[str, ...]:
    return tuple(name for _, names in micro_batches for name in names)


def _broken(step: int, loss: float, micro_batches: Sequence[MicroBatch]) -> Trouble:
    names = _names(pair for pair in micro_batches if not math.isfinite(pair[0])) or _names(micro_batches)
    return Trouble("loss", step, f"the loss of step {step} is {loss}; samples: {listed(names)}", names)


def listed(names: Sequence[str]) -> str:
    """The first few names, and how many more there are.

    >>> listed(["a/1", "a/2"]), listed([str(n) for n in range(20)])
    ('a/1, a/2', '0, 1, 2, 3, 4, 5, 6, 7 and 12 more')
    """
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
