"""Whole-or-absent writing, and JSON and JSONL read by content."""

import hashlib
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TextIO

from qwenft.core.errors import DataError

STREAM_BYTES = 64 * 1024 * 1024
"""A JSON array larger than this is read as a stream, item by item, and never held whole."""
CHUNK_CHARACTERS = 1024 * 1024
"""How much of a stream is read at once, and how much of it is kept behind the place where it is read."""
MAX_ITEM_CHARACTERS = 64 * 1024 * 1024
"""No item of a stream is longer: what does not end by then is broken."""

NESTED_KEYS = ("data", "annotations", "samples", "rows", "items", "train")
"""Where an object that is no record itself may keep its records."""


class Record(NamedTuple):
    """One object of a JSON or JSONL file and where it stood."""

    where: str
    """`line 12` of a JSONL file, `item 12` (from 1) of an array."""
    value: dict[str, Any]


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that it is whole or absent: a temporary neighbour, fsync, rename."""
    with _whole_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def _whole_file(path: Path) -> Iterator[BinaryIO]:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: object) -> None:
    """Write one JSON document, indented, whole or absent.  NaN is refused (ValueError): it is not JSON."""
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[object]) -> int:
    """Write one JSON object a line, whole or absent, never holding all of them; returns how many."""
    count = 0
    with _whole_file(path) as file:
        for row in rows:
            file.write(f"{to_line(row)}\n".encode())
            count += 1
    return count


def write_array(path: Path, rows: Iterable[object]) -> None:
    """Write one JSON array, an item a line, whole or absent, never holding all of them."""
    with _whole_file(path) as file:
        file.write(b"[")
        for number, row in enumerate(rows):
            file.write(f"{',' if number else ''}\n{to_line(row)}".encode())
        file.write(b"\n]\n")


def to_line(value: object) -> str:
    """One JSON document on one line, as every JSONL file and `--json` output here has it."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def jsonable(value: object) -> Any:
    """Make a foreign value (bytes, NaN, numpy scalars, dates, half a surrogate pair) fit for JSON, none lost."""
    if isinstance(value, dict):
        return {jsonable(str(key)): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [jsonable(item) for item in value]
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    if value is None or isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value).encode(errors="backslashreplace").decode()


def read_json(path: Path) -> Any:
    """Read one JSON document.  Raises DataError with line and column."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise DataError(f"{path.absolute()} does not exist", hint="check the path") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise _broken(path, error) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: broken JSON ({_odd(error)})") from error


def read_records(path: Path) -> Iterator[Record]:
    """Yield the objects of a JSON or JSONL file, told apart by content, not by name.

    JSON: one array of objects, one object with the array under one of NESTED_KEYS, or one object that is the record.
    A BOM, CRLF and blank lines are fine.  Raises DataError with line and column at the first broken place.
    """
    if not path.is_file():
        raise DataError(f"{path} is a folder" if path.is_dir() else f"{path} does not exist")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty (0 bytes)", hint="was its download or copy interrupted?")
    with path.open("rb") as file:
        first = _first_byte(file)
        if first == b"[" and path.stat().st_size > STREAM_BYTES:
            yield from _stream_array(path)
            return
    if first == b"[":
        yield from _items(path, read_json(path))
    elif first == b"{":
        yield from _lines_or_object(path)
    else:
        raise DataError(
            f"{path} is neither JSON nor JSONL: it starts with {first!r}",
            hint="save it as UTF-8: it seems to be UTF-16"
            if first in (b"\xff", b"\xfe")
            else "a JSON file starts with [ or {, a JSONL file has one {…} a line",
        )


def _first_byte(file: BinaryIO) -> bytes:
    start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    file.seek(3 if file.seek(0) == 0 and file.read(3) == b"\xef\xbb\xbf" else 0)
    return start[:1]


def _lines_or_object(path: Path) -> Iterator[Record]:
    """A file that starts with `{`: JSONL if its first line is a whole object and more follow, else one document."""
    large = path.stat().st_size > STREAM_BYTES
    if _is_jsonl(path):
        yield from _jsonl(path)
    elif large and len(found := [key for key, value in read_members(path) if _holds_records(key, value)]) == 1:
        members = (value for key, value in read_members(path) if key == found[0])
        yield from _items(path, (item for value in members for item in value))
    else:
        document = read_json(path)
        nested = [key for key in NESTED_KEYS if isinstance(document.get(key), list)]
        yield from _items(path, document[nested[0]] if len(nested) == 1 else [document])


def _holds_records(key: str, value: Any) -> bool:
    return key in NESTED_KEYS and isinstance(value, Iterator)


def _is_jsonl(path: Path) -> bool:
    with path.open(encoding="utf-8-sig", errors="replace") as file:  # only a look: reading it is strict
        first_line = "\n"
        while first_line and not first_line.strip():
            first_line = file.readline(MAX_ITEM_CHARACTERS)
        more = any(line.strip() for line in iter(lambda: file.readline(CHUNK_CHARACTERS), ""))
    try:
        json.loads(first_line)
    except (ValueError, RecursionError):
        return more and first_line.rstrip().endswith("}")  # a broken first line of JSONL, not a document's opening
    return more


def _jsonl(path: Path) -> Iterator[Record]:
    with path.open(encoding="utf-8-sig") as file:
        try:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    value = json.loads(line)
                except json.JSONDecodeError as error:
                    raise _broken(path, error, line=number) from error
                except (ValueError, RecursionError) as error:
                    raise DataError(f"{path}, line {number}: broken JSON ({_odd(error)})") from error
                if not isinstance(value, dict):
                    raise DataError(f"{path}, line {number}: expected an object, found {type(value).__name__}")
                yield Record(f"line {number}", value)
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def _items(path: Path, array: Iterable[Any]) -> Iterator[Record]:
    for number, value in enumerate(array, 1):
        if not isinstance(value, dict):
            raise DataError(f"{path}, item {number}: expected an object, found {type(value).__name__}")
        yield Record(f"item {number}", value)


class _Window:
    """A moving window over a text file: what the stream reader looks at, and where that stands in the file."""

    def __init__(self, file: TextIO) -> None:
        self._file, self.text, self.at, self.whole = file, "", 0, False
        self._line, self._column = 1, 0

    def peek(self) -> str:
        """Step over white space; the character that stands there, or "" at the end of the file."""
        while True:
            while self.at < len(self.text):
                if not self.text[self.at].isspace():
                    return self.text[self.at]
                self.at += 1
            if not self.more():
                return ""

    def more(self) -> bool:
        """Read on, as much again as is held; False at the end of the file."""
        passed = self.text[: self.at]
        self._line += passed.count("\n")
        self._column = len(passed) - passed.rfind("\n") - 1 + (0 if "\n" in passed else self._column)
        self.text, self.at = self.text[self.at :], 0
        read = self._file.read(max(CHUNK_CHARACTERS, len(self.text)))
        self.text += read
        return bool(read)

    def item(self) -> Any:
        """Read the value that stands here.  Raises JSONDecodeError where there is none."""
        whole = False
        while True:
            try:
                value, end = json.JSONDecoder().raw_decode(self.text, self.at)
            except json.JSONDecodeError:
                if whole or len(self.text) - self.at > MAX_ITEM_CHARACTERS:
                    raise  # with its place in the window as it is now
            else:
                if whole or not isinstance(value, (int, float)) or len(self.text) - end > len("e+"):
                    self.at = end
                    return value  # a number at the very end may go on behind it
            whole = not self.more()

    def take(self, mark: str) -> None:
        """Step over a mark that must stand here.  Raises JSONDecodeError where it does not."""
        if self.peek() != mark:
            raise json.JSONDecodeError(f"Expecting {mark!r} delimiter", self.text, self.at)
        self.at += 1

    def key(self) -> str:
        """Read the key of an object's entry, and its colon.  Raises JSONDecodeError."""
        if self.peek() != '"':
            raise json.JSONDecodeError("Expecting property name enclosed in double quotes", self.text, self.at)
        key = str(self.item())
        self.take(":")
        return key

    def entries(self, opening: str, closing: str) -> Iterator[None]:
        """Stand at each entry of the array or object that begins here, and behind it at the end."""
        self.take(opening)
        if self.peek() == closing:
            self.at += 1
            return
        while True:
            if self.peek() == closing:
                raise json.JSONDecodeError("Illegal trailing comma", self.text, self.at)
            yield
            if self.peek() == closing:
                self.at += 1
                return
            self.take(",")

    def end(self) -> None:
        """Hold that nothing follows.  Raises JSONDecodeError."""
        if self.peek():
            raise json.JSONDecodeError("Extra data", self.text, self.at)

    def broken(self, path: Path, error: json.JSONDecodeError) -> DataError:
        """The error with its place in the file, not in the window."""
        column = error.colno + (self._column if error.lineno == 1 else 0)
        return _broken(path, error, line=self._line + error.lineno - 1, column=column)

    @contextmanager
    def errors(self, path: Path, where: Callable[[], str]) -> Iterator[None]:
        """Whatever reading raises in the block becomes a DataError.  where: what is being read, for people."""
        try:
            yield
        except json.JSONDecodeError as error:
            raise self.broken(path, error) from error
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not UTF-8 text: {error.reason} near {where()}") from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, {where()}: broken JSON ({_odd(error)})") from error


def _stream_array(path: Path) -> Iterator[Record]:
    """Item by item, by the same json module as everywhere: the same values, and an error with its line and column."""
    number = 0
    with path.open(encoding="utf-8-sig") as file:
        window = _Window(file)
        with window.errors(path, lambda: f"item {number}"):
            for _ in window.entries("[", "]"):
                number += 1
                value = window.item()
                if not isinstance(value, dict):
                    raise DataError(f"{path}, item {number}: expected an object, found {type(value).__name__}")
                yield Record(f"item {number}", value)
            window.end()


def read_members(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (key, value) of a JSON document that is one object, never holding it whole.

    An array comes as an iterator over its items, to be read before the next key: what is left of it is stepped over.
    Raises DataError with line and column at the first broken place.
    """
    with path.open(encoding="utf-8-sig") as file:
        window, key = _Window(file), ""
        with window.errors(path, lambda: repr(key)[:80]):
            for _ in window.entries("{", "}"):
                key = window.key()
                if window.peek() != "[":
                    yield key, window.item()
                    continue
                items = _array_items(window, path, key)
                yield key, items
                for _ in items:
                    pass
            window.end()


def _array_items(window: _Window, path: Path, key: str) -> Iterator[Any]:
    number = 0
    with window.errors(path, lambda: f"{key}, item {number}"):
        for _ in window.entries("[", "]"):
            number += 1
            yield window.item()


def _odd(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _broken(path: Path, error: json.JSONDecodeError, line: int = 0, column: int = 0) -> DataError:
    if not column and error.pos and not error.doc[error.pos :].strip():  # it ends too soon: where its last mark stands
        error = json.JSONDecodeError(f"{error.msg}, but the file ends", error.doc, len(error.doc.rstrip()))
    where = f"line {line or error.lineno}, column {column or error.colno}"
    before, after = error.doc[max(0, error.pos - 1000) : error.pos].rstrip(), error.doc[error.pos : error.pos + 1]
    trailing = (
        before.endswith(",") and after in ("]", "}")
    ) or "trailing comma" in error.msg  # the latter from 3.13 on
    hint = "remove the comma before the closing bracket" if trailing else "mend the file there, or export it again"
    return DataError(f"{path}, {where}: broken JSON ({error.msg})", hint=hint)


@contextmanager
def whole_folder(path: Path, *, keep: str = "") -> Iterator[Path]:
    """Give a staging folder beside `path` that becomes `path` when the block ends well.

    On an error nothing stands at `path`.  With `keep` (the name of a subfolder) the staging folder outlives an
    interruption, so that the next try finds what the last one already made there; else it is removed.
    A folder that stands at `path` already is replaced only at the very end.
    Raises DataError while another process is at it.
    """
    path = path.resolve() if path.is_symlink() else path  # its staging folder must lie on the same disk
    staging = path.with_name(f".{path.name}.partial")
    with _held(staging, path):
        for item in staging.iterdir():
            if item.name != keep:
                shutil.rmtree(item) if item.is_dir() else item.unlink()
        try:
            yield staging
        except BaseException:
            if not keep or not (staging / keep).exists():
                shutil.rmtree(staging, ignore_errors=True)
            raise
        replace_folder(staging, path)


@contextmanager
def _held(staging: Path, path: Path) -> Iterator[None]:
    """Make the staging folder and hold it against a second writer, who is told; a killed one holds nothing."""
    if sys.platform == "win32":
        staging.mkdir(parents=True, exist_ok=True)
        yield
        return
    import fcntl

    while True:
        staging.mkdir(parents=True, exist_ok=True)
        handle = os.open(staging, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise DataError(
                f"another process is writing {path} right now", hint="wait until it is done, or write elsewhere"
            ) from None
        except OSError:  # a disk that cannot lock
            pass
        if staging.exists() and os.path.samestat(os.fstat(handle), staging.stat()):
            break
        os.close(handle)  # the other one was done just now, and took the folder away
    try:
        yield
    finally:
        os.close(handle)


def replace_folder(new: Path, path: Path) -> None:
    """Put folder `new` at `path`; what stood there is removed only after the new one stands."""
    target = path.resolve() if path.is_symlink() else path
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        target.rename(old)
    try:
        new.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def sha256_of(content: bytes) -> str:
    """Hex SHA-256, the name of every picture in a prepared data set."""
    return hashlib.sha256(content).hexdigest()


def sha256_of_file(path: Path) -> str:
    """Hex SHA-256 of a file, read in parts."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
