"""Pictures stored once each, decoded in one process or several, and never twice, also after an interruption."""

import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from importlib.metadata import version
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, Final, NamedTuple, TextIO, TypeVar

from qwenft import __version__
from qwenft.core.errors import DataError
from qwenft.core.files import read_records, sha256_of, to_line, write_whole
from qwenft.prepare.pictures import PictureError, Stored, decode, locate, read_bytes
from qwenft.prepare.rows import PictureFile, Reason

INDEX: Final = "images/index.jsonl"
"""What is known of each source picture, by the hash of its bytes: where it is stored, or why it is not taken."""
WAITING: Final = 4
"""So many pictures a process are handed out ahead: it bounds what waits in memory."""

T = TypeVar("T")
Result = Stored | PictureError


class Found(NamedTuple):
    """What became of a source picture."""

    key: str
    """SHA-256 of the source's bytes; empty where they could not be read."""
    result: Result
    reused: bool


def decoder() -> dict[str, str]:
    """What the index hangs on: another version may decode, turn or refuse another way."""
    return {"qwenft": __version__, "pillow": version("pillow")}


@dataclass
class Shelf:
    """The folder of stored pictures, and what earlier runs found out about their sources."""

    folder: Path | None
    """None: nothing is written."""
    known: dict[str, Result] = field(default_factory=dict)
    earlier: Path | None = None
    """A finished data set that is being replaced: its pictures are linked, not decoded."""

    @classmethod
    def open(cls, folder: Path | None, earlier: Path | None = None) -> "Shelf":
        """Read the index of an interrupted run in the folder, and that of the data set to be replaced."""
        known: dict[str, Result] = {}
        for place in (earlier, folder):
            known |= _read_index(place / INDEX) if place else {}
        return cls(folder, known, earlier)

    def put(self, content: bytes, key: str) -> tuple[Result, bool]:
        """Decode and store a picture unless that was done before; returns what it is, and whether it was."""
        known = self.known.get(key)
        if isinstance(known, PictureError) or (known is not None and self._here(known)):
            return known, True
        try:
            decoded = decode(content)
        except PictureError as error:
            return error, False
        name = key if decoded.content is content else sha256_of(decoded.content)
        image = f"images/{name[:2]}/{name}.{decoded.extension}"
        if self.folder is not None:
            _write(self.folder / image, decoded.content)
        return Stored(image, decoded.image_wh, decoded.orientation, decoded.converted, decoded.dhash), False

    def _here(self, stored: Stored) -> bool:
        """Whether its bytes are there, whole: a file is named by their hash."""
        for place in (self.folder, self.earlier):
            path = place / stored.image if place else None
            if path is None or not path.is_file() or sha256_of(path.read_bytes()) != path.stem:
                continue
            if self.folder is not None and place != self.folder:
                _link(path, self.folder / stored.image)
            return True
        return False


@dataclass
class PictureStore:
    """Writes pictures below `folder`/images and remembers them, so that each is read and stored once."""

    folder: Path | None
    """None: pictures are decoded and checked, nothing is written."""
    follow_links: bool = False
    num_proc: int = 1
    earlier: Path | None = None
    """The data set that stands where this one is going to: see `Shelf`."""
    reused: int = 0
    """Pictures that an earlier run had decoded already."""
    _by_path: dict[Path, "Result | Future[Found]"] = field(default_factory=dict)
    _by_hash: dict[str, "Result | Future[Found]"] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._shelf = Shelf.open(self.folder, self.earlier)
        self._index: dict[str, Result] = {}
        self._log: TextIO | None = None
        self._last: tuple[bytes, str] = (b"", sha256_of(b""))
        if self.folder is not None and (self.folder / INDEX).exists():
            # Written anew: a torn last line, or one of another version, must not stand before what is added.
            _write_index(self.folder / INDEX, _read_index(self.folder / INDEX))

    def each(self, rows: Iterable[tuple[T, bytes | PictureFile | None]]) -> Iterator[tuple[T, Result | None]]:
        """Store the picture of each row; yields the rows in their order, with what became of it (None: it has none).

        With several processes the rows of a few pictures are read ahead.  Raises DataError where a process was killed.
        """
        if self.num_proc == 1:
            for row, picture in rows:
                yield row, None if picture is None else self._settled(self._hand_out(picture, None))
            return
        pool = ProcessPoolExecutor(self.num_proc, get_context("spawn"), _start, (self.folder, self.earlier))
        try:
            waiting: deque[tuple[T, Result | Future[Found] | None]] = deque()
            pictures: Counter[Result | Future[Found] | None] = Counter()
            for row, picture in rows:
                waiting.append((row, None if picture is None else self._hand_out(picture, pool)))
                pictures[waiting[-1][1]] += 1
                while len(pictures) > WAITING * self.num_proc:  # not rows: many may show the same picture
                    first, found = waiting.popleft()
                    pictures[found] -= 1
                    if not pictures[found]:
                        del pictures[found]
                    yield first, self._settled(found)
            for first, found in waiting:
                yield first, self._settled(found)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def add(self, picture: bytes | PictureFile) -> Stored:
        """Store one picture.  Raises PictureError with the reason where it is not taken."""
        result = self._settled(self._hand_out(picture, None))
        if isinstance(result, Stored):
            return result
        raise result or PictureError(Reason.PICTURE_MISSING, "")

    def _hand_out(self, picture: bytes | PictureFile, pool: ProcessPoolExecutor | None) -> "Result | Future[Found]":
        """Begin to store a picture, or say what is known of it."""
        if isinstance(picture, bytes):
            if picture != self._last[0]:  # the rows of a picture mostly stand together
                self._last = (picture, sha256_of(picture))
            key = self._last[1]
            if key not in self._by_hash:
                self._by_hash[key] = self._begin(picture, key, pool)
            return self._by_hash[key]
        try:
            path = locate(picture, self.follow_links)
        except PictureError as error:
            return error
        if path not in self._by_path:
            self._by_path[path] = self._begin(path, "", pool)
        return self._by_path[path]

    def _begin(self, what: bytes | Path, key: str, pool: ProcessPoolExecutor | None) -> "Result | Future[Found]":
        if pool is not None:
            try:
                return pool.submit(_work, what, key)
            except BrokenProcessPool as error:
                raise _killed() from error
        if isinstance(what, Path):
            try:
                what = read_bytes(what)
            except PictureError as error:
                return error
            key = sha256_of(what)
            if key in self._by_hash:
                return self._by_hash[key]
        result, reused = self._shelf.put(what, key)
        self._by_hash[key] = self._note(Found(key, result, reused))
        return result

    def _settled(self, found: "Result | Future[Found] | None") -> Result | None:
        if not isinstance(found, Future):
            return found
        try:
            return self._note(found.result())
        except BrokenProcessPool as error:
            raise _killed() from error

    def _note(self, found: Found) -> Result:
        """Remember what became of a picture, also for a run after this one."""
        if found.key and found.key not in self._index:
            self._index[found.key] = found.result
            self.reused += found.reused and isinstance(found.result, Stored)
            if self.folder is not None:
                self._append(found)
        return found.result

    def _append(self, found: Found) -> None:
        if self.folder is None:
            return
        if self._log is None:
            if isinstance(found.result, PictureError):
                return  # a run that stores nothing leaves nothing; the last index lists it
            path = self.folder / INDEX
            if not path.exists():
                _write_index(path, {})
            self._log = path.open("a", encoding="utf-8", buffering=1)  # a line at a time: a kill loses one
        self._log.write(to_line(_entry(found.key, found.result)) + "\n")

    def close(self) -> None:
        """Close the index; what it holds stays for the next run."""
        if self._log is not None:
            self._log.close()
            self._log = None

    def sweep(self, used: set[str]) -> int:
        """Remove what no sample shows: left by an earlier try or by rejected rows.  Returns how many pictures."""
        if self.folder is None:
            return 0
        images = self.folder / "images"
        unused = [path for path in images.glob("*/*") if path.relative_to(self.folder).as_posix() not in used]
        torn = images.glob(f".{Path(INDEX).name}.*")  # of a run that was killed while it wrote its index
        for path in (*unused, *torn):
            path.unlink()
        for folder in images.glob("*/"):
            if not any(folder.iterdir()):
                folder.rmdir()
        self.close()
        kept = {key: r for key, r in self._index.items() if isinstance(r, PictureError) or r.image in used}
        _write_index(self.folder / INDEX, kept)
        return len(unused)


def _killed() -> DataError:
    return DataError("a process that decoded pictures was killed: the memory may not suffice", hint="--num-proc 1")


# In the other processes


_shelf: Shelf | None = None


def _start(folder: Path | None, earlier: Path | None) -> None:
    """Ctrl-C goes to the parent alone: it ends the others.  Where it was killed, they would wait for work for ever."""
    global _shelf  # noqa: PLW0603 - a process of the pool has no other place
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _shelf = Shelf.open(folder, earlier)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(what: bytes | Path, key: str) -> Found:
    if _shelf is None:
        raise RuntimeError("the process was not started by the store")
    if isinstance(what, Path):
        try:
            what = read_bytes(what)
        except PictureError as error:
            return Found("", error, reused=False)
        key = sha256_of(what)
    result, reused = _shelf.put(what, key)
    return Found(key, result, reused)


# Files


def _entry(key: str, result: Result) -> dict[str, Any]:
    if isinstance(result, PictureError):
        return {"source": key, "reason": str(result.reason), "detail": result.detail}
    entry: dict[str, Any] = {"source": key, "image": result.image, "wh": list(result.image_wh)}
    entry |= {"orientation": result.orientation} if result.orientation != 1 else {}
    entry |= {"converted": True} if result.converted else {}
    return {**entry, "dhash": f"{result.dhash:064x}"}


def _write_index(path: Path, results: Mapping[str, Result]) -> None:
    lines = [to_line(decoder()), *(to_line(_entry(key, results[key])) for key in sorted(results))]
    write_whole(path, "".join(f"{line}\n" for line in lines))


def _read_index(path: Path) -> dict[str, Result]:
    """The index of an earlier run; empty where it is of another version.  A torn last line ends it."""
    found: dict[str, Result] = {}
    try:
        records = read_records(path) if path.is_file() and path.stat().st_size else iter(())
        first = next(records, None)
        if first is None or first.value != decoder():
            return {}
        for record in records:
            found[record.value["source"]] = _result(record.value)
    except (DataError, KeyError, TypeError, ValueError):
        return found
    return found


def _result(entry: dict[str, Any]) -> Result:
    if "reason" in entry:
        return PictureError(Reason(entry["reason"]), str(entry["detail"]))
    width, height = entry["wh"]
    parts = Path(entry["image"]).parts
    if len(parts) != 3 or parts[0] != "images" or ".." in parts:
        raise ValueError(f"no stored picture: {entry['image']}")
    orientation, converted = int(entry.get("orientation", 1)), bool(entry.get("converted", False))
    return Stored(entry["image"], (int(width), int(height)), orientation, converted, int(entry["dhash"], 16))


def _write(path: Path, content: bytes) -> None:
    """Whole or absent, without the wait for the disk that `write_whole` has: 100,000 pictures would take an hour."""
    temporary = f"{path}.{os.getpid()}"
    try:
        try:
            file = open(temporary, "wb")  # noqa: PTH123, SIM115 - the fewest steps: this runs once a picture
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open(temporary, "wb")  # noqa: PTH123, SIM115
        with file:
            file.write(content)
        os.replace(temporary, path)  # noqa: PTH105
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _link(source: Path, path: Path) -> None:
    """A hard link takes no room; where the disk has none, a copy."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, path)
    except FileExistsError:
        return
    except OSError:
        _write(path, source.read_bytes())
