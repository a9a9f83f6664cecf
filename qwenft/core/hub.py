"""Which hub is asked, what is sent to it, and its errors as ours: for data sets and models alike."""

import json
import os
import ssl
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from qwenft.core.errors import HubError
from qwenft.core.events import Emit, progress

PUBLIC_HUB: Final = "https://huggingface.co"
PROBE_TIMEOUT_S: Final = 10
"""How long the first question may take: after that the endpoint counts as unreachable."""
MIRROR: Final = "https://hf-mirror.com"
"""The mirror that messages name: https://hf-mirror.com says of itself how it is used."""
SCRIPTS_HINT: Final = "--revision refs/convert/parquet"
"""The branch where the hub keeps its own parquet conversion of a data set that had a loading script."""

_FOREIGN: Final = frozenset({"huggingface_hub", "httpx", "httpx2", "hf_xet"})
"""Whose errors are the hub's: huggingface_hub 2.x speaks through httpx2."""

Kind = Literal["data set", "model"]
_TRUE: Final = frozenset({"1", "ON", "YES", "TRUE"})
"""What huggingface_hub 2.4 takes for true (its constants.py)."""


@dataclass(frozen=True, slots=True)
class HubAccess:
    """The hub that is asked, and whether the user's token goes there."""

    endpoint: str
    """Scheme and host, without a slash at the end."""
    mirror: bool
    """Another host than the public hub."""
    token: Literal[False] | None
    """For the `token=` of huggingface_hub, datasets and transformers: False withholds it, None leaves it to them."""


def offline() -> bool:
    """Whether the user asked for the cache alone (HF_HUB_OFFLINE=1, or transformers' name for it)."""
    return (os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or "").upper() in _TRUE


def open_hub(endpoint: str | None = None, *, send_token: bool = False) -> HubAccess:
    """Choose the hub for this process and its children; call it before anything imports huggingface_hub.

    endpoint: None means HF_ENDPOINT, else the public hub.  send_token: let a mirror have the user's token.
    With a mirror nothing is sent to another host: no Xet, no telemetry, no download counter.
    Raises HubError where the address is none, or huggingface_hub is already bound to another one: it copies its
    endpoint into half a dozen places at import, so a later change would be half a change.
    """
    address = _checked(endpoint or os.environ.get("HF_ENDPOINT") or PUBLIC_HUB)
    _refuse_other_binding(address)
    mirror = address != PUBLIC_HUB
    withhold = mirror and not send_token
    _set("HF_ENDPOINT", address)
    _set("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1" if withhold else "0" if send_token else None)
    if mirror:
        for name in ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY"):
            _set(name, "1")
        _set("HF_UPDATE_DOWNLOAD_COUNTS", "0")
    quiet_libraries()
    return HubAccess(address, mirror, False if withhold else None)


def quiet_libraries() -> None:
    """Keep the hub's libraries from speaking for themselves: what matters is said in our own words."""
    for name in ("HF_HUB_VERBOSITY", "DATASETS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(name, "1")


def _checked(address: str) -> str:
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        bare = address.rsplit("://", maxsplit=1)[-1].strip("/") or "hf-mirror.com"
        raise HubError(f"{address!r} is no address of a hub", hint=f"--hf-endpoint https://{bare}")
    if parts.username or parts.password:
        raise HubError("the hub's address holds a user name or a password", hint="hf auth login keeps the token")
    return address.rstrip("/")


def _refuse_other_binding(address: str) -> None:
    for module, name in (("huggingface_hub.constants", "ENDPOINT"), ("datasets.config", "HF_ENDPOINT")):
        bound = getattr(sys.modules.get(module), name, None)
        if bound is not None and str(bound).rstrip("/") != address:
            raise HubError(
                f"this process already uses the hub at {bound} and cannot change to {address}",
                hint=f'restart it and begin with: import os; os.environ["HF_ENDPOINT"] = "{address}"',
            )


def _set(name: str, value: str | None) -> None:
    """Set an environment variable, and the constant that a library already read from it."""
    if value is None:
        return
    os.environ[name] = value
    for module in ("huggingface_hub.constants", "datasets.config"):
        loaded = sys.modules.get(module)
        if loaded is not None and isinstance(getattr(loaded, name, None), bool):
            setattr(loaded, name, value == "1")


@dataclass(frozen=True, slots=True)
class hub_errors:  # noqa: N801  (reads as the `with` statement it is)
    """`with hub_errors(repo, access):` turns what the hub's libraries and their HTTP client raise into HubError."""

    repo: str
    access: HubAccess
    kind: Kind = "data set"
    revision: str | None = None

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, cls: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and _is_foreign(error):
            raise self._mapped(error) from error

    def _mapped(self, error: BaseException) -> HubError:
        chain = list(_chain(error))
        names = {cls.__name__ for item in chain for cls in type(item).__mro__}
        if "OfflineModeIsEnabled" in names or offline():
            at = f" at {self.revision}" if self.revision else ""
            return HubError(
                f"HF_HUB_OFFLINE is set, and the cache does not hold the {self.kind} {self.repo}{at}",
                hint="fetch it once with HF_HUB_OFFLINE=0",
            )
        for item in chain:
            response = getattr(item, "response", None)
            if response is not None and getattr(response, "status_code", 0) >= 400:
                return self._refused(response, names)
        reason = _reason(chain)
        first = " ".join(str(chain[0]).split())[:300]
        for family, mapped in self._table(reason, first).items():
            if names & set(family):
                return mapped
        if isinstance(chain[0], OSError) and chain[0].strerror:
            where = f" {chain[0].filename}:" if chain[0].filename else ""
            return HubError(
                f"cannot keep the {self.kind} {self.repo}:{where} {chain[0].strerror}", hint="HF_HOME names the cache"
            )
        return HubError(f"cannot read the {self.kind} {self.repo}: {first}", hint="--debug shows the cause")

    def _table(self, reason: str, first: str) -> Mapping[tuple[str, ...], HubError]:
        """Names of foreign errors -> ours.  The first row that fits counts."""
        broken_off = HubError(
            f"{self.access.endpoint} broke off while {self.repo} was fetched ({reason})",
            hint="type it again: files that are whole are kept",
        )
        return {
            ("HFValidationError",): HubError(
                f"{self.repo!r} is no {self.kind} id", hint="an id is owner/name, for example Kangheng/refcocog"
            ),
            ("RemoteProtocolError", "ReadError", "WriteError", "StreamError"): broken_off,
            ("NetworkError", "TimeoutException", "ProxyError", "UnsupportedProtocol", "ConnectionError"): unreachable(
                self.access, reason
            ),
            ("FileMetadataError", "JSONDecodeError"): HubError(
                f"{self.access.endpoint} does not speak the hub's protocol: its answer for {self.repo} is no hub's",
                hint=f"export HF_ENDPOINT={MIRROR}, or look for a proxy between here and there",
            ),
            **({("OSError",): broken_off} if "Consistency check failed" in first else {}),
        }

    def _refused(self, response: Any, names: set[str]) -> HubError:
        status = int(response.status_code)
        endpoint = self.access.endpoint
        what = f"{self.kind} {self.repo}"
        if "RevisionNotFoundError" in names:
            return HubError(f"the {what} has no revision {self.revision!r} on {endpoint}", hint="--revision main")
        if "GatedRepoError" in names or status == 403:
            return self._gated()
        if "RepositoryNotFoundError" in names or status == 401:
            return HubError(
                f"{endpoint} has no {what}, or it is private",
                hint=f"check the spelling (owner/name) at {self._page()}; for a private one: {self._login()}",
            )
        if status == 404:
            return HubError(f"{endpoint} lacks a file of the {what} (HTTP 404)", hint="check --revision and the id")
        if status == 429:
            wait = response.headers.get("Retry-After", "")
            seconds = f"{wait} s" if wait.isdigit() else "some minutes"
            return HubError(
                f"{endpoint} takes no more requests for now (HTTP 429)",
                hint=f"wait {seconds} and type it again (what was fetched is kept); hf auth login raises the limit",
            )
        return HubError(f"{endpoint} answered HTTP {status} for the {what}", hint="try again in a while")

    def _gated(self) -> HubError:
        withheld = self.access.token is False
        return HubError(
            f"the {self.kind} {self.repo} is gated: its owner lets in only those who asked"
            + (" (no token was sent to the mirror)" if withheld else ""),
            hint=f"ask for access at {self._page()}, then: {self._login()}",
        )

    def _login(self) -> str:
        """How the hub comes to know who asks: a mirror gets a token only from `prepare`, where it is told to."""
        if self.access.token is not False:
            return "hf auth login"
        return "--send-token" if self.kind == "data set" else "unset HF_ENDPOINT"

    def _page(self) -> str:
        return f"{PUBLIC_HUB}/{'datasets/' if self.kind == 'data set' else ''}{self.repo}"


def byte_meter(before: int, total: int, emit: Emit) -> type[Any]:
    """The class of bar for one file: it draws nothing and tells how many bytes of all there are by now."""
    from huggingface_hub.utils.tqdm import tqdm  # Xet uses much of a bar's interface, so it is a real one

    class Meter(tqdm):
        """Counts, although it is switched off.  Xet opens two for a file: each tells its own count."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            self.n += int(n or 0)
            emit(progress("fetch", min(before + self.n, total), total))

    return Meter


def unreachable(access: HubAccess, reason: str) -> HubError:
    """The error for a hub that gives no answer: it names the endpoint, a mirror and the offline cache."""
    other = PUBLIC_HUB if access.endpoint == MIRROR else MIRROR
    return HubError(
        f"cannot reach {access.endpoint} ({reason})",
        hint=f"export HF_ENDPOINT={other} asks another host; HF_HUB_OFFLINE=1 takes what the cache already holds",
    )


def _is_foreign(error: BaseException) -> bool:
    """An error of the libraries or the system: told by its module, so that none of them need be imported here."""
    if isinstance(error, (OSError, json.JSONDecodeError)):
        return True
    return any(cls.__module__.split(".")[0] in _FOREIGN for cls in type(error).__mro__)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _reason(chain: list[BaseException]) -> str:
    """Why, in few words: the operating system's or OpenSSL's own, found at the end of the chain."""
    for item in reversed(chain):
        if isinstance(item, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted: {item.verify_message}"
        if "Timeout" in type(item).__name__:
            return "no answer in time"
        if isinstance(item, OSError) and item.strerror:
            return item.strerror
    return "the connection was closed"
