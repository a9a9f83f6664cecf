"""Whether the hub or a mirror answers, and how fast it sends; without any token."""

import queue
import threading
import time
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse
from typing import Final, cast
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from qwenft.core.config import DEFAULT_MODEL
from qwenft.core.errors import HubError
from qwenft.core.hub import MIRROR, PROBE_TIMEOUT_S, PUBLIC_HUB, HubAccess, offline, open_hub
from qwenft.doctor.findings import Finding

SAMPLE_FILE: Final = "tokenizer.json"
"""Of the default model: 7 MB, so that its speed says something, and no weights."""
SAMPLE_BYTES: Final = 4_000_000
SAMPLE_S: Final = 4.0
LIMIT_S: Final = 25.0
"""For all of it: a name server that does not answer is not bounded by a socket's timeout."""


def hub_finding() -> Finding:
    """Ask the hub for the default model and fetch a part of a small file."""
    if offline():
        return Finding("hub", "note", "HF_HUB_OFFLINE is set: only the cache is used", "unset HF_HUB_OFFLINE")
    try:
        access = open_hub()
    except HubError as error:
        return Finding("hub", "warning", str(error), error.hint)
    silent = _failed(access, f"no answer within {LIMIT_S:.0f} s")
    return bounded(lambda: _ask(access), LIMIT_S, silent)


def bounded(work: Callable[[], Finding], limit_s: float, otherwise: Finding) -> Finding:
    """What `work` finds, or `otherwise` where it takes longer; it is then left to itself."""
    found: queue.Queue[Finding] = queue.Queue()
    threading.Thread(target=lambda: found.put(work()), daemon=True).start()
    try:
        return found.get(timeout=limit_s)
    except queue.Empty:
        return otherwise


def _ask(access: HubAccess) -> Finding:
    what = f"{access.endpoint}{' (a mirror)' if access.mirror else ''}"
    began = time.monotonic()
    try:
        with _open(f"{access.endpoint}/api/models/{DEFAULT_MODEL}"):
            answered_s = time.monotonic() - began
        size, seconds = _download(f"{access.endpoint}/{DEFAULT_MODEL}/resolve/main/{SAMPLE_FILE}")
    except HTTPError as error:
        return Finding("hub", "warning", f"{what} answers HTTP {error.code} for {DEFAULT_MODEL}", "check HF_ENDPOINT")
    except (URLError, HTTPException, OSError, ValueError) as error:
        return _failed(access, str(getattr(error, "reason", error)))
    speed = f"{size / 1e6 / max(seconds, 1e-3):.1f} MB/s"
    return Finding("hub", "ok", f"{what} answers in {answered_s:.2f} s, sends {speed}")


def _open(address: str) -> HTTPResponse:
    request = Request(address, headers={"User-Agent": "qwenft"})  # noqa: S310  http(s): open_hub holds it
    return cast(HTTPResponse, urlopen(request, timeout=PROBE_TIMEOUT_S))  # noqa: S310


def _download(address: str) -> tuple[int, float]:
    """(bytes, seconds) of a part of a file."""
    began, size = time.monotonic(), 0
    with _open(address) as answer:
        while size < SAMPLE_BYTES and time.monotonic() - began < SAMPLE_S:
            part = answer.read1(65536)
            if not part:
                break
            size += len(part)
    return size, time.monotonic() - began


def _failed(access: HubAccess, reason: str) -> Finding:
    other = PUBLIC_HUB if access.endpoint == MIRROR else MIRROR
    mend = f"export HF_ENDPOINT={other}; HF_HUB_OFFLINE=1 takes what the cache holds"
    return Finding("hub", "warning", f"cannot reach {access.endpoint} ({reason})", mend)
