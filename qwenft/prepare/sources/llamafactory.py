"""LLaMA-Factory's dataset_info.json: which files hold conversations, and how their columns and roles are called.

Source: hiyouga/LLaMA-Factory, data/README.md and src/llamafactory/data/parser.py (the names and their defaults).
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from qwenft.core.errors import DataError, nearest
from qwenft.core.files import read_json
from qwenft.prepare.rows import Request, Source
from qwenft.prepare.sources.coco import SPLIT_WORD
from qwenft.prepare.sources.conversations import make_source

INFO: Final = "dataset_info.json"
COLUMNS: Final = {"messages": "conversations", "prompt": "instruction", "query": "input", "response": "output",
                  "history": "history", "images": "images"}  # fmt: skip
TAGS: Final = {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt"}
OPENAI_TAGS: Final = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
MAX_BYTES: Final = 4_000_000


def matches(path: Path) -> bool:
    """Whether it is a folder with a dataset_info.json that names files in it, that file, or a file it names."""
    if path.is_dir() or path.name == INFO:
        return bool(_entries(_folder(path)))
    return _named(path) is not None


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _entries(folder: Path) -> dict[str, Mapping[str, Any]]:
    """Name -> description, of those whose file lies in the folder.  Any other dataset_info.json is none of ours."""
    info = folder / INFO
    if not info.is_file() or info.stat().st_size > MAX_BYTES:
        return {}
    try:
        found = read_json(info)
    except DataError:
        return {}
    named = found.items() if isinstance(found, dict) else ()
    return {name: entry for name, entry in named if isinstance(entry, dict) and _file(entry, folder) is not None}


def _file(entry: Mapping[str, Any], folder: Path) -> Path | None:
    name = entry.get("file_name")
    if not isinstance(name, str) or Path(name).name != name or Path(name).suffix not in (".json", ".jsonl"):
        return None
    return folder / name if (folder / name).is_file() else None


def _named(path: Path) -> tuple[str, Mapping[str, Any]] | None:
    return next((item for item in _entries(path.parent).items() if item[1]["file_name"] == path.name), None)


def open_source(path: Path, request: Request) -> Source:
    """Choose among the data sets that are described, and describe the source."""
    entries = _entries(_folder(path))
    if path.is_file() and path.name != INFO:
        name, entry = _named(path) or ("", {})
        entries = {name: entry}
    chosen = _chosen(entries, path, request)
    files = {split: _folder(path) / str(entry["file_name"]) for split, entry in chosen.items()}
    standards = {split: partial(standard, entry=entry) for split, entry in chosen.items()}
    return make_source("llamafactory", path, files, request, standards)


def _chosen(entries: Mapping[str, Mapping[str, Any]], path: Path, request: Request) -> dict[str, Mapping[str, Any]]:
    """By split.  Several data sets of unlike names are not one: which is meant is asked."""
    words = {name: match.group(1) if (match := SPLIT_WORD.search(name.lower())) else name for name in entries}
    if len(set(words.values())) < len(words):
        words = {name: name for name in entries}
    for wanted in request.splits:
        if wanted not in (*entries, *words.values()):
            raise DataError(f"{path} has no data set {wanted!r}", hint=nearest(wanted, [*entries, *words.values()]))
    if not request.splits and len(entries) > 1 and not all(SPLIT_WORD.search(name.lower()) for name in entries):
        first = next(iter(entries))
        raise DataError(
            f"{path.absolute()} describes several data sets: {', '.join(entries)}",
            hint=f"choose with --split, e.g. --split {first}",
        )
    return {
        words[name]: entry
        for name, entry in entries.items()
        if not request.splits or name in request.splits or words[name] in request.splits
    }


def standard(record: Mapping[str, Any], *, entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """A record under the names that `conversations` knows.

    >>> entry = {"formatting": "sharegpt", "columns": {"messages": "talk"}, "tags": {"user_tag": "me"}}
    >>> standard({"talk": [{"from": "me", "value": "hello"}]}, entry=entry)["messages"]
    [{'role': 'user', 'content': 'hello'}]
    """
    get = {role: record.get(name) for role, name in (COLUMNS | _words(entry.get("columns"))).items()}
    found: dict[str, Any] = {"id": record.get("id"), "images": get["images"] or record.get("image")}
    if entry.get("formatting", "alpaca") == "alpaca":
        texts = [get[role] for role in ("prompt", "query", "response")]
        names = ("instruction", "input", "output")
        return {**found, **dict(zip(names, texts, strict=True)), "history": get["history"]}
    tags = (OPENAI_TAGS if entry["formatting"] == "openai" else TAGS) | _words(entry.get("tags"))
    roles = {tags["user_tag"]: "user", tags["assistant_tag"]: "assistant"}
    turns = get["messages"] or record.get("messages")
    return {**found, "messages": [_turn(turn, tags, roles) for turn in (turns if isinstance(turns, list) else [])]}


def _words(value: Any) -> dict[str, str]:
    items = value.items() if isinstance(value, dict) else ()
    return {key: word for key, word in items if isinstance(word, str)}


def _turn(turn: Any, tags: Mapping[str, str], roles: Mapping[str, str]) -> Any:
    if not isinstance(turn, Mapping):
        return turn
    role = str(turn.get(tags["role_tag"]))
    return {"role": roles.get(role, "other"), "content": turn.get(tags["content_tag"])}
