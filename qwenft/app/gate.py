"""What the page's server answers: the addresses that the page needs, to this machine's browsers, in bounded size."""

import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from qwenft.app.ask import MAX_FILE_BYTES

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

LOCAL: Final = frozenset({"127.0.0.1", "localhost"})
NEEDED: Final = re.compile(
    r"/(?:config/?|theme\.css|manifest\.json|favicon\.ico|(?:assets|static)/.+)?"
    r"|/gradio_api/(?:upload|upload_progress|queue/join|queue/data|heartbeat/\w+|run/predict|reset/?|cancel|file=(?!https?:).+)"
)
"""gradio has routes beside these that fetch addresses, run an editor or show what others do: none is needed here."""
UPLOAD: Final = "/gradio_api/upload"
MAX_BODY: Final = {UPLOAD: MAX_FILE_BYTES + 64 * 1024}
"""Bytes; an upload's form has some lines around its picture."""
MAX_JSON: Final = 64 * 1024
_HEADERS: Final = (
    (
        b"content-security-policy",
        b"default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        b"img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
        b"object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
"""A page that holds to this loads nothing from elsewhere, whatever stands in it.  gradio's own scripts and templates
need `unsafe-inline` and `unsafe-eval`."""


class Gate:
    """Stands before gradio's app (ASGI) and refuses what the page never asks for.

    A name that leads to this machine may be a stranger's (DNS rebinding), and a stranger's page may send forms to it:
    so Host and Origin must be this machine's.
    """

    def __init__(self, app: App, folder: Path, hosts: frozenset[str] = LOCAL) -> None:
        self._app, self._folder = app, folder
        self.hosts = hosts

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request, or let it through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, reason = self._refusal(scope)
        if not status and scope["method"] == "POST" and scope["path"] != UPLOAD:
            body = await _whole(receive)
            receive = _again(body, receive)
            if _names_foreign_file(body, self._folder):
                status, reason = 403, "a file that was not uploaded is not read"
        if status:
            await _refuse(send, status, reason)
        else:
            await self._app(scope, receive, _with_headers(send))

    def _refusal(self, scope: Message) -> tuple[int, str]:
        headers = dict(scope["headers"])
        for name in (b"host", b"origin"):
            value = headers.get(name, b"").decode("latin-1")
            if (value or name == b"host") and _host_of(value) not in self.hosts:
                return 403, f"this page is served to {', '.join(sorted(self.hosts))} alone, not to {value!r}"
        if not NEEDED.fullmatch(scope["path"]):
            return 404, "there is no such page"
        if scope["method"] in ("GET", "HEAD"):
            return 0, ""
        if scope["method"] != "POST":
            return 405, "GET, HEAD and POST are answered"
        length = headers.get(b"content-length", b"").decode("latin-1")
        limit = MAX_BODY.get(scope["path"], MAX_JSON)
        if not length.isdigit():
            return 411, "how long it is must be said"
        return (413, f"it has {int(length):,} bytes, over {limit:,}") if int(length) > limit else (0, "")


def _host_of(value: str) -> str | None:
    """The name in a Host (`localhost:7860`) or an Origin (`http://localhost:7860`)."""
    try:
        return urlsplit(value if "//" in value else f"//{value}").hostname
    except ValueError:
        return None


def _names_foreign_file(body: bytes, folder: Path) -> bool:
    """Whether a request names a file outside `folder`, or an address in place of one: gradio would copy or fetch it."""
    try:
        waiting = [json.loads(body)] if body else []
    except (ValueError, RecursionError):
        return True
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            waiting += value.values()
            path, url = value.get("path"), value.get("url")
            if isinstance(url, str) and url.startswith("data:"):
                return True
            if isinstance(path, str) and not _lies_in(path, folder):
                return True
    return False


def _lies_in(path: str, folder: Path) -> bool:
    try:
        return Path(path).resolve().is_relative_to(folder)
    except (OSError, ValueError):
        return False


async def _whole(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return bytes(body)


def _again(body: bytes, receive: Receive) -> Receive:
    """Gives a body that was read already, then what comes after it."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return waiting.pop() if waiting else await receive()

    return replayed


def _with_headers(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *_HEADERS]
        await send(message)

    return sent


async def _refuse(send: Send, status: int, reason: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), *_HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": f"{reason}\n".encode()})
