"""The family of errors that a user can mend, each with a hint.

QwenftError
├── UsageError    the command line says something impossible        (exit 2)
├── DataError     a source, a picture, a row or a prepared data set
├── ConfigError   a setting or a YAML file
├── HubError      the hub, a mirror or the cache
├── ModelError    a model, an adapter or its contract
├── RunError      a run folder, or a worker that ended badly
└── DeviceError   a GPU that is not there or does not suffice

Only `cli` prints them and turns them into an exit status.
"""

import difflib
from collections.abc import Iterable


class QwenftError(Exception):
    """Something the user can mend: `cli` prints message and hint on stderr, no traceback."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (str(self),), {"hint": self.hint})


class UsageError(QwenftError):
    """The command line itself is wrong."""

    exit_code = 2


class DataError(QwenftError):
    """A source, a picture, a row or a prepared data set is not what it should be."""


class ConfigError(QwenftError):
    """A setting or a YAML file is wrong."""


class HubError(QwenftError):
    """The hub, a mirror or the cache did not give what was asked."""


class ModelError(QwenftError):
    """A model, an adapter or its contract does not fit."""


class RunError(QwenftError):
    """A run folder is not there or not whole, or a worker ended badly."""


class DeviceError(QwenftError):
    """A device is not there or does not suffice."""


FAMILY: dict[str, type[QwenftError]] = {
    kind.__name__: kind
    for kind in (QwenftError, UsageError, DataError, ConfigError, HubError, ModelError, RunError, DeviceError)
}
"""By name: how a worker's error becomes the same error in its parent."""


def first_line(error: BaseException) -> str:
    """What a library's error says in its first line, for a message of ours; its kind where it says nothing."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def nearest(word: str, known: Iterable[str]) -> str:
    """Say which known word was probably meant, as the end of a hint.

    >>> nearest("learning_rte", ["learning_rate", "epochs"])
    "did you mean 'learning_rate'?"
    >>> nearest("zzz", ["rank", "alpha"])
    'known: alpha, rank'
    """
    words = sorted(known)
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(words)}" if words else "there are none yet"
