"""Rows and samples on the disk, in the order in which they come: memory stays the same, however many there are."""

import hashlib
import pickle
import sqlite3
import tempfile
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from operator import attrgetter
from pathlib import Path
from typing import Any, Final, TypeVar, overload
from weakref import finalize

from qwenft.core.answer import Task
from qwenft.core.samples import Sample, SceneObject
from qwenft.prepare.rows import BadObject, BadRow, RawBox, RawRow, Reason

AT_ONCE: Final = 512
"""So much is written and read together, things and their parts: what they share (a picture's name) is written once."""

T = TypeVar("T")


Reduce = Callable[[Any], tuple[Callable[..., Any], tuple[Any, ...]]]


def _by_fields(kind: type[Any]) -> Reduce:
    values = attrgetter(*(item.name for item in fields(kind)))
    return lambda item: (kind, values(item))


PICKLED: Final[Mapping[type[Any], Reduce]] = {
    kind: _by_fields(kind) for kind in (RawRow, RawBox, BadRow, BadObject, Sample, SceneObject)
}
"""How the things that come by the hundred thousand are written: a frozen dataclass with slots takes thrice as long."""

Bad = TypeVar("Bad", bound=BadRow | BadObject)


class Spool(Sequence[T]):
    """Things of any kind, added at the end and read as often as is wanted, best from the first to the last."""

    def __init__(self, folder: Path | None, items: Iterable[T] = ()) -> None:
        """folder: whose disk takes them; None: that of temporary files."""
        # It has no name: no other process can write it, and it ends with this one, even if killed.
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - it is closed with the spool
        self._places = array("q")
        self._ends = array("q")
        """Of each batch: how many things there are up to its end."""
        self._waiting: list[T] = []
        self._weight = 0
        self._read: tuple[int, list[T]] = (-1, [])
        finalize(self, self._file.close)
        for item in items:
            self.append(item)

    def parts(self, item: T) -> int:
        """Of how many parts a thing is made, itself included: a picture may have a thousand boxes."""
        return 1

    def append(self, item: T) -> None:
        """Add one at the end."""
        self._waiting.append(item)
        self._weight += self.parts(item)
        if self._weight >= AT_ONCE:
            self._ends.append(len(self))
            self._places.append(self._file.seek(0, 2))
            pickler = pickle.Pickler(self._file, protocol=5)
            pickler.dispatch_table = PICKLED
            pickler.dump(self._waiting)
            self._waiting, self._weight = [], 0

    def __len__(self) -> int:
        return (self._ends[-1] if self._ends else 0) + len(self._waiting)

    def __iter__(self) -> Iterator[T]:
        for number in range(len(self._places)):
            yield from self._batch(number)
        yield from self._waiting

    @overload
    def __getitem__(self, at: int) -> T: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[T]: ...
    def __getitem__(self, at: int | slice) -> T | Sequence[T]:
        numbers = range(len(self))[at]
        return self._at(numbers) if isinstance(numbers, int) else [self._at(number) for number in numbers]

    def _at(self, number: int) -> T:
        batch = bisect_right(self._ends, number)
        first = self._ends[batch - 1] if batch else 0
        if batch == len(self._places):
            return self._waiting[number - first]
        if self._read[0] != batch:
            self._read = (batch, self._batch(batch))
        return self._read[1][number - first]

    def _batch(self, number: int) -> list[T]:
        self._file.seek(self._places[number])
        found: list[T] = pickle.load(self._file)  # noqa: S301 - written by this process, see above
        return found


@dataclass
class Tally:
    """What some samples are, in numbers."""

    samples: int = 0
    objects: int = 0
    absent: int = 0
    """To how many the true answer is "not there"."""
    tasks: Counter[Task] = field(default_factory=Counter)
    images: dict[str, None] = field(default_factory=dict)
    """Their pictures, in the order in which they come."""

    def add(self, sample: Sample) -> None:
        """Count one in."""
        self.samples += 1
        self.objects += len(sample.objects)
        self.absent += not sample.objects and sample.task != "caption"
        self.tasks[sample.task] += 1
        self.images.setdefault(sample.image)


class Samples(Spool[Sample]):
    """The samples of a split, counted while they come."""

    def __init__(self, folder: Path | None, items: Iterable[Sample] = ()) -> None:
        self.tally = Tally()
        super().__init__(folder, items)

    def parts(self, item: Sample) -> int:
        """It and its objects."""
        return 1 + len(item.objects)

    def append(self, item: Sample) -> None:
        """Add one at the end."""
        self.tally.add(item)
        super().append(item)


def tally(samples: Iterable[Sample]) -> Tally:
    """Count samples; those that were counted already are not read again."""
    if isinstance(samples, Samples):
        return samples.tally
    found = Tally()
    for sample in samples:
        found.add(sample)
    return found


class Rejected(Spool[Bad]):
    """Rows, or objects, that are not taken, counted by reason while they come."""

    def __init__(self, folder: Path | None, items: Iterable[Bad] = ()) -> None:
        self.reasons: Counter[Reason] = Counter()
        self.examples: dict[Reason, Bad] = {}
        """The first of each reason, in the order in which they came."""
        super().__init__(folder, items)

    def append(self, item: Bad) -> None:
        """Add one at the end."""
        self.reasons[item.reason] += 1
        self.examples.setdefault(item.reason, item)
        super().append(item)


class Ledger:
    """First come, first kept, on the disk: the value that was given for a key the first time."""

    def __init__(self) -> None:
        # No name: SQLite's own temporary file, which it begins once a few MB are full and removes with the connection.
        # One thread uses it, but another may be the one that clears it away.
        self._base = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        finalize(self, self._base.close)
        self._base.execute("pragma journal_mode = off")
        self._base.execute("create table kept (key blob primary key, value text) without rowid")
        self._base.execute("begin")  # one for all: nothing is ever taken back

    def keep(self, *key: str, value: str = "") -> str | None:
        """Keep the value, unless there is one of that key: then that is returned, and it stays."""
        text = "\0".join(key).encode("utf-8", "surrogatepass")
        # Of equal length, so that a text of any length is found as quickly; two of one hash will not be met.
        given = (hashlib.blake2b(text, digest_size=16).digest(), value)
        if self._base.execute("insert or ignore into kept values (?, ?)", given).rowcount:
            return None
        found: str = self._base.execute("select value from kept where key = ?", given[:1]).fetchone()[0]
        return found
