"""A hub on 127.0.0.1 that speaks the hub's protocol for data sets and models, with faults to switch on.

Written from what huggingface_hub 2.4 and datasets 5.2 ask for and how they read the answer.  Never compared with the
live hub, so these are assumptions: the 302 to another host for large files (with X-Linked-Etag and X-Linked-Size); 401
with X-Error-Code RepoNotFound for an id that is missing or private when no token is sent; the gated answer (description
open, files 401 or 403 with GatedRepo); a 429 without RateLimit headers; the field names of /tree, /paths-info and
?blobs; no pagination; no Xet transfer itself (only its headers); a mirror is the same protocol at another address.
"""

import hashlib
import io
import json
import random
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from loopback_uploads import Uploads

LARGE_BYTES = 100_000
"""From here on a file counts as stored outside git (LFS): named by its SHA-256."""


@dataclass(frozen=True)
class Seen:
    """One request as it came in."""

    method: str
    path: str
    headers: Mapping[str, str]
    host: str
    """`hub`, or `cdn` for the second server that redirects lead to."""

    @property
    def token(self) -> str | None:
        return self.headers.get("authorization")


@dataclass
class Faults:
    """What goes wrong, by repository (`owner/name`) or by file (`owner/name/path/in/it`)."""

    cut: set[str] = field(default_factory=set)
    """Files broken off in the middle, once each."""
    wrong_bytes: dict[str, int] = field(default_factory=dict)
    """Files served with flipped bytes (same length) so many times."""
    busy: dict[str, int] = field(default_factory=dict)
    """Repositories of which so many requests for files are answered with 429; then it goes on."""
    status: dict[str, int] = field(default_factory=dict)
    """Repositories of which every request is answered with this HTTP status."""
    gated: set[str] = field(default_factory=set)
    """Repositories that describe themselves and refuse their files."""
    redirect: set[str] = field(default_factory=set)
    """Repositories whose large files lie on another host."""
    xet: set[str] = field(default_factory=set)
    """Repositories whose large files carry the headers that lead a client to the Xet protocol."""
    no_hub: bool = False
    """Everything is answered as by a web server that is no hub."""
    silent_s: float = 0
    """Waits so long before each answer."""
    silent: set[str] = field(default_factory=set)
    """Repositories that it waits for; empty: all."""


class Repository:
    """A folder served as one commit."""

    def __init__(self, kind: str, name: str, folder: Path) -> None:
        self.kind, self.name, self.folder = kind, name, folder

    @cached_property
    def files(self) -> dict[str, bytes]:
        found = (path for path in sorted(self.folder.rglob("*")) if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path.read_bytes() for path in found}

    @cached_property
    def commit(self) -> str:
        """40 hex digits that change with the content."""
        text = "".join(f"{name}{hashlib.sha1(content).hexdigest()}" for name, content in self.files.items())
        return hashlib.sha1(f"{self.name}{text}".encode()).hexdigest()

    @cached_property
    def entries(self) -> dict[str, dict[str, Any]]:
        return {name: _entry(name, content) for name, content in self.files.items()}

    def tree(self, under: str, recursive: bool) -> list[dict[str, Any]] | None:
        prefix = f"{under}/" if under else ""
        inside = {name: entry for name, entry in self.entries.items() if name.startswith(prefix)}
        if not inside:
            return None
        folders = {
            prefix + "/".join(parts[:depth])
            for name in inside
            for parts in [name.removeprefix(prefix).split("/")]
            for depth in range(1, len(parts))
        }
        listed = [
            {"type": "directory", "oid": hashlib.sha1(name.encode()).hexdigest(), "size": 0, "path": name}
            for name in sorted(folders)
        ] + list(inside.values())
        return [item for item in listed if recursive or "/" not in item["path"].removeprefix(prefix)]

    def info(self) -> dict[str, Any]:
        siblings = [
            {
                "rfilename": name,
                "size": entry["size"],
                "blobId": entry["oid"],
                **({"lfs": entry["lfs"]} if "lfs" in entry else {}),
            }
            for name, entry in self.entries.items()
        ]
        return {
            "id": self.name,
            "sha": self.commit,
            "private": False,
            "gated": False,
            "disabled": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": siblings,
        }


def _entry(name: str, content: bytes) -> dict[str, Any]:
    oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    entry: dict[str, Any] = {"type": "file", "oid": oid, "size": len(content), "path": name}
    if len(content) >= LARGE_BYTES:
        sha256 = hashlib.sha256(content).hexdigest()
        # the listing says oid where ?blobs says sha256
        entry["lfs"] = {"oid": sha256, "sha256": sha256, "size": len(content), "pointerSize": 134}
    return entry


class LoopbackHub:
    """Serve folders: `datasets/owner/name` and `models/owner/name` -> folder."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self.faults = Faults()
        self.seen: list[Seen] = []
        self.uploads = Uploads()
        self._repositories = {}
        for key, folder in folders.items():
            kind, name = key.split("/", maxsplit=1)
            self._repositories[kind, name] = Repository(kind, name, folder)
        self._lock = threading.Lock()
        self._servers = {host: _Server(("127.0.0.1", 0), partial(_Handler, self, host)) for host in ("hub", "cdn")}

    def __enter__(self) -> "LoopbackHub":
        for server in self._servers.values():
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        for server in self._servers.values():
            server.shutdown()
            server.server_close()

    def address(self, host: str = "hub") -> str:
        return f"http://127.0.0.1:{self._servers[host].server_address[1]}"

    @property
    def url(self) -> str:
        """What HF_ENDPOINT is to be set to."""
        return self.address()

    def commit(self, key: str) -> str:
        kind, name = key.split("/", maxsplit=1)
        return self._repositories[kind, name].commit

    def requests(self, repository: str = "") -> list[Seen]:
        """What came in, in order; with a name only what concerns that repository."""
        return [item for item in self.seen if f"/{repository}/" in f"{urlsplit(item.path).path}/"]

    def fetched(self, repository: str) -> list[str]:
        """The files of a repository whose content went out, in order, from either host."""
        places = (f"/{repository}/resolve/", f"/{repository}/at/")
        paths = [unquote(item.path) for item in self.requests(repository) if item.method == "GET"]
        return [path.split(place, 1)[1].split("/", 1)[1] for path in paths for place in places if place in path]

    def note(self, seen: Seen) -> None:
        with self._lock:
            self.seen.append(seen)

    def take(self, fault: set[str] | dict[str, int], name: str) -> bool:
        """Whether a fault that happens a limited number of times happens now."""
        with self._lock:
            if isinstance(fault, set):
                happens = name in fault
                fault.discard(name)
            else:
                happens = fault.get(name, 0) > 0
                fault[name] = fault.get(name, 0) - 1
            return happens

    def find(self, kind: str, name: str) -> Repository | None:
        return self._repositories.get((kind, name))


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news; anything else is a bug in here."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, hub: LoopbackHub, host: str, *args: Any) -> None:
        self.hub, self.host = hub, host
        super().__init__(*args)

    def log_message(self, *args: object) -> None:
        """Nothing on stderr."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.note(Seen(self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, self.host))
        faults = self.hub.faults
        if faults.silent_s and (not faults.silent or any(f"/{name}" in self.path for name in faults.silent)):
            threading.Event().wait(faults.silent_s)
        if faults.no_hub:
            return self._send(200, b"<html>hello</html>", {"Content-Type": "text/html"})
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        query = parse_qs(urlsplit(self.path).query)
        token = self.headers.get("Authorization", "")
        uploaded = self.hub.uploads.answer(self.command, parts, token, body, self.hub.url)
        if uploaded is not None:
            return self._json(uploaded[1], uploaded[0])
        api = parts[0] == "api"
        parts = parts[1:] if api else parts
        kind = parts.pop(0) if parts[0] in ("datasets", "models") else "models"
        name, rest = "/".join(parts[:2]), parts[2:]
        if name in faults.status:
            status = faults.status[name]
            return self._send(status, b"{}", {"Retry-After": "7"} if status == 429 else {})
        if self.host == "cdn":  # /datasets/owner/name/at/<commit>/<file>
            repository = self.hub.find(kind, name)
            assert repository is not None
            return self._content(repository, "/".join(rest[2:]), {})
        if api:
            return self._api(kind, name, rest, query, body)
        if len(rest) >= 3 and rest[0] == "resolve":
            return self._resolve(kind, name, rest[1], "/".join(rest[2:]))
        return self._refuse(404, "")

    def _repository(self, kind: str, name: str, revision: str) -> Repository | None:
        """The repository at a revision; else the refusal is already sent."""
        repository = self.hub.find(kind, name)
        if repository is None:
            self._refuse(404 if self.headers.get("Authorization") else 401, "RepoNotFound")
        elif revision not in ("main", repository.commit):
            self._refuse(404, "RevisionNotFound")
        else:
            return repository
        return None

    def _api(self, kind: str, name: str, rest: list[str], query: Mapping[str, list[str]], body: bytes) -> None:
        repository = self._repository(kind, name, rest[1] if len(rest) > 1 else "main")
        if repository is None:
            return None
        if not rest or rest[0] == "revision":
            info = repository.info() | ({"gated": "auto"} if name in self.hub.faults.gated else {})
            return self._json(info)
        if rest[0] == "tree":
            tree = repository.tree("/".join(rest[2:]), query.get("recursive", ["false"])[0].lower() == "true")
            return self._refuse(404, "EntryNotFound") if tree is None else self._json(tree)
        if rest[0] == "paths-info":
            text = body.decode()
            paths = json.loads(text)["paths"] if text.startswith("{") else parse_qs(text).get("paths", [])
            whole = {item["path"]: item for item in repository.tree("", recursive=True) or []}
            return self._json([whole[path] for path in paths if path in whole])
        return self._refuse(404, "")

    def _resolve(self, kind: str, name: str, revision: str, file: str) -> None:
        repository = self._repository(kind, name, revision)
        if repository is None:
            return None
        if name in self.hub.faults.gated:
            return self._refuse(403 if self.headers.get("Authorization") else 401, "GatedRepo")
        if self.hub.take(self.hub.faults.busy, name):
            return self._send(429, b"", {"Retry-After": "0"})
        commit = {"X-Repo-Commit": repository.commit}
        if file not in repository.files:
            return self._refuse(404, "EntryNotFound", commit)
        entry = repository.entries[file]
        lfs = entry.get("lfs")
        headers = {"ETag": f'"{lfs["sha256"] if lfs else entry["oid"]}"', **commit}
        if lfs:
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(entry["size"])}
        if lfs and name in self.hub.faults.xet:
            route = f"{self.hub.url}/api/{kind}/{name}/xet-read-token/{repository.commit}"
            headers |= {"X-Xet-Hash": lfs["sha256"], "X-Xet-Refresh-Route": route}
        if lfs and name in self.hub.faults.redirect:
            location = f"{self.hub.address('cdn')}/{kind}/{name}/at/{repository.commit}/{file}"
            return self._send(302, b"", headers | {"Location": location})
        return self._content(repository, file, headers)

    def _content(self, repository: Repository, file: str, headers: Mapping[str, str]) -> None:
        content = repository.files[file]
        getting, key = self.command == "GET", f"{repository.name}/{file}"
        if getting and self.hub.take(self.hub.faults.wrong_bytes, key):
            content = bytes(255 - byte for byte in content)
        start, status, more = 0, 200, {"Accept-Ranges": "bytes"}
        wanted = self.headers.get("Range", "")
        if wanted.startswith("bytes=") and getting:
            first, last = wanted.removeprefix("bytes=").split("-")
            start, status = int(first), 206
            end = int(last) + 1 if last else len(content)
            more["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
            content = content[start:end]
        cut = getting and self.hub.take(self.hub.faults.cut, key)
        self._send(status, content, {**headers, **more}, cut_at=len(content) // 2 if cut else None)

    def _json(self, value: object, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str, headers: Mapping[str, str] | None = None) -> None:
        named = {"X-Error-Code": code, "X-Error-Message": code} if code else {}
        self._send(status, b'{"error": "refused"}', {**named, **(headers or {})})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str], cut_at: int | None = None) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut_at])
        if cut_at is not None:
            self.wfile.flush()
            self.close_connection = True


@contextmanager
def serving(folders: Mapping[str, Path]) -> Iterator[LoopbackHub]:
    """A hub that runs while the block does.  Keys: `datasets/owner/name`, `models/owner/name`."""
    with LoopbackHub(folders) as hub:
        yield hub


def environment(hub_url: str, home: Path, **more: str) -> dict[str, str]:
    """What a child process needs to speak to this hub and to nothing else: add it to a cleaned os.environ."""
    return {
        "HF_ENDPOINT": hub_url,
        "HF_HOME": str(home),
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
        **more,
    }


REFCOCOG = Path(__file__).parents[2] / "shared" / "data" / "hub" / "Kangheng" / "refcocog"


def refcocog_folder(folder: Path) -> Path:
    """Kangheng/refcocog's stand-in where the shared data lie beside the project, else a generated one of its schema."""
    return REFCOCOG if REFCOCOG.is_dir() else make_refcocog(folder)


def make_refcocog(folder: Path, **rows: int) -> Path:
    """Write a data set with the columns of Kangheng/refcocog; rows: how many a split (default val=6, test=8)."""
    import pyarrow
    from pyarrow import parquet

    counts = rows or {"val": 6, "test": 8}
    text = {"dtype": "string", "_type": "Value"}
    sizes = {"feature": {"dtype": "int64", "_type": "Value"}, "_type": "List"}
    features = {"question_id": text, "image": {"_type": "Image"}, "image_size": sizes, "question": text, "bbox": text}
    for split, count in counts.items():
        table = pyarrow.Table.from_pylist([_refcocog_row(split, number) for number in range(count)])
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        (folder / "data").mkdir(parents=True, exist_ok=True)
        parquet.write_table(table, folder / "data" / f"{split}-00000-of-00001.parquet")
    listed = "".join(f"  - split: {split}\n    path: data/{split}-*\n" for split in counts)
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{listed}---\n")
    return folder


def _refcocog_row(split: str, number: int) -> dict[str, Any]:
    from PIL import Image

    picture = io.BytesIO()
    noise = random.Random(f"{split}{number}").randbytes(160 * 120 * 3)
    Image.frombytes("RGB", (160, 120), noise).save(picture, "PNG")
    return {
        "question_id": str(number),
        "image": {"bytes": picture.getvalue(), "path": f"{split}{number}.png"},
        "image_size": [160, 120],
        "question": f"thing {number}",
        "bbox": f"[{number + 60}.5, 30.0, {number + 120}.25, 110.0]",  # xywh and cxcywh would leave the picture
    }
