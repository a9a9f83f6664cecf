"""Pictures from http(s) addresses, bounded in size, time, kind and redirects, into a folder of their own."""

import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any, Final
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from qwenft.core.errors import DataError
from qwenft.core.events import Emit, amount, note, progress
from qwenft.core.predictions import Question

MAX_BYTES: Final = 64 * 1024 * 1024
"""No picture from an address may be larger."""
CONNECT_S: Final = 10
"""How long a server may keep silent."""
WHOLE_S: Final = 60
"""How long one picture may take in all."""
AT_ONCE: Final = 8
_CHUNK: Final = 256 * 1024
_KINDS: Final = ("image/", "application/octet-stream", "binary/octet-stream")
"""Content types that may be a picture; what it really is, the decoder finds out."""


class _OnlyHttp(HTTPRedirectHandler):
    """Follows redirects to http(s) alone: urllib's own would also take ftp."""

    max_redirections = 5

    def redirect_request(  # noqa: PLR0917 - as urllib calls it
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        if urlsplit(newurl).scheme.lower() not in ("http", "https"):
            raise HTTPError(newurl, code, msg, headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@contextmanager
def fetched(questions: Sequence[Question], emit: Emit) -> Iterator[tuple[dict[str, Path], dict[str, DataError]]]:
    """Inside the block the pictures of all addresses lie in a folder, which is removed at its end.

    Yields address -> file and address -> why it could not be fetched.  What was asked, from whom and how much came is
    reported.
    """
    addresses = list(dict.fromkeys(question.name for question in questions if question.name))
    if not addresses:
        yield {}, {}
        return
    folder = Path(tempfile.mkdtemp(prefix="qwenft-"))
    files: dict[str, Path] = {}
    failed: dict[str, DataError] = {}
    try:
        emit(progress("addresses", 0, len(addresses)))
        with ThreadPoolExecutor(AT_ONCE) as pool:
            got = pool.map(_fetch, addresses, (folder / str(number) for number in range(len(addresses))))
            for address, (result, final) in zip(addresses, got, strict=True):
                if isinstance(result, DataError):
                    failed[address] = result
                else:
                    files[address] = result
                    size = amount("fetch", result.stat().st_size)
                    emit(note(f"fetched {address}" + (f" (from {final})" if final != address else "") + f": {size}"))
                emit(progress("addresses", len(files) + len(failed), len(addresses)))
        yield files, failed
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _fetch(address: str, folder: Path) -> tuple[Path | DataError, str]:
    """One picture into its folder, named as the address names it; and the address that it came from in the end."""
    try:
        if urlsplit(address).username is not None:
            raise DataError("an address with a user name or a password is not asked")
        request = Request(address, headers={"User-Agent": "qwenft", "Accept": "image/*"})  # noqa: S310 - see is_address
        with build_opener(_OnlyHttp).open(request, timeout=CONNECT_S) as answer:
            _check(answer.headers)
            folder.mkdir()
            path = folder / _name(address)
            path.write_bytes(_read(answer))
            return path, answer.geturl()
    except (OSError, HTTPException, ValueError, DataError) as error:
        return DataError(f"{address} cannot be fetched: {_reason(error)}", hint="open it in a browser"), address


def _check(headers: Mapping[str, str]) -> None:
    kind = headers.get("Content-Type", "image/").split(";")[0].strip().lower()
    if not kind.startswith(_KINDS):
        raise DataError(f"it is no picture but {kind}")
    length = headers.get("Content-Length", "")
    if length.isdigit() and int(length) > MAX_BYTES:
        raise DataError(f"it has {amount('fetch', int(length))}, over {amount('fetch', MAX_BYTES)}")


def _read(answer: Any) -> bytes:
    end = time.monotonic() + WHOLE_S
    content = bytearray()
    while chunk := answer.read1(_CHUNK):  # what is there by now: a server that drips must not hold it up
        content += chunk
        if len(content) > MAX_BYTES:
            raise DataError(f"it has over {amount('fetch', MAX_BYTES)}")
        if time.monotonic() > end:
            raise DataError(f"it takes over {WHOLE_S} s")
    return bytes(content)


def _name(address: str) -> str:
    """A file's name out of an address: letters, digits, dots, lines; never a path."""
    last = unquote(urlsplit(address).path).rpartition("/")[2]
    return re.sub(r"[^\w.-]|^\.+", "_", last)[-80:] or "picture"


def _reason(error: Exception) -> str:
    if isinstance(error, HTTPError):
        return f"HTTP {error.code}" + (", a redirect that is not followed" if 300 <= error.code < 400 else "")
    cause = error.reason if isinstance(error, URLError) else error
    if isinstance(cause, TimeoutError):
        return f"no answer within {CONNECT_S} s"
    return str(getattr(cause, "strerror", None) or cause)
