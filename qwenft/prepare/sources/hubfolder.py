"""Repositories of the hub that are a folder in a tool's own form (COCO, YOLO, VOC, conversations …): fetched whole."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, Final, NamedTuple

from qwenft.core.errors import HubError
from qwenft.core.events import Emit
from qwenft.core.hub import hub_errors, offline, open_hub
from qwenft.prepare.rows import PictureFile, RawRow, Row, Source
from qwenft.prepare.sources.hub import look_up
from qwenft.prepare.sources.hubfiles import Repository, Sizes, fetch, free_bytes, missing_of, snapshot

TEXTS: Final = frozenset({".json", ".jsonl", ".ndjson", ".yaml", ".yml", ".xml", ".txt", ".csv", ".tsv", ".md"})
"""Files that tell the form; they are fetched first."""
TABLES: Final = (".parquet", ".arrow", ".tar")
"""With one of these it is no such folder."""


class HubFolder(NamedTuple):
    """A repository in the cache."""

    path: Path
    form: str
    about: dict[str, Any]


def fetch_folder(
    dataset_id: str,
    form_of: Callable[[Path], str | None],
    *,
    revision: str | None,
    endpoint: str | None,
    send_token: bool,
    emit: Emit,
) -> HubFolder | None:
    """Fetch a repository whose texts are in a form that `form_of` knows; None where they are not, or tables are there.

    Raises HubError, also where it does not fit on the disk.
    """
    from huggingface_hub import snapshot_download

    access = open_hub(endpoint, send_token=send_token)
    with hub_errors(dataset_id, access, revision=revision):
        if offline():
            kept = snapshot_download(dataset_id, repo_type="dataset", revision=revision, local_files_only=True)
            path = Path(kept)
        else:
            commit, sizes = look_up(dataset_id, revision, access)
            repo = Repository(dataset_id, commit, access)
            texts = [name for name in sizes if PurePosixPath(name).suffix.lower() in TEXTS]
            if any(name.endswith(TABLES) for name in sizes) or _to_fetch(repo, texts, sizes) > free_bytes():
                return None
            fetch(repo, texts, sizes, emit)
            path = snapshot(repo)
        form = form_of(path)
        if form is None:
            return None
        if not offline():
            _check_room(repo, sizes)
            fetch(repo, sizes, sizes, emit)
    about = {"id": dataset_id, "config": None, "revision": path.name, "endpoint": access.endpoint}
    return HubFolder(path, form, about)


def _to_fetch(repo: Repository, names: Iterable[str], sizes: Sizes) -> int:
    return sum(sizes[name][0] for name in missing_of(repo, names, sizes))


def _check_room(repo: Repository, sizes: Sizes) -> None:
    needed, free = _to_fetch(repo, sizes, sizes), free_bytes()
    if needed > free:
        raise HubError(
            f"{repo.dataset_id} is read as a whole folder; {needed / 1e9:.3g} GB of it are to be fetched, the disk has "
            f"{free / 1e9:.3g} GB",
            hint=f"HF_HOME=/a/larger/disk qwenft prepare --dataset {repo.dataset_id}",
        )


def told_of_hub(source: Source, folder: HubFolder) -> Source:
    """The source with the hub's words for where it came from; its pictures may lie anywhere in the repository's cache.

    In the cache a file is a link to where its bytes lie, beside the folder that names it.
    """
    cache = folder.path.parent.parent

    def rows() -> Iterator[Row]:
        for row in source.rows():
            if isinstance(row, RawRow) and isinstance(row.picture, PictureFile):
                yield replace(row, picture=replace(row.picture, within=cache))
            else:
                yield row

    return replace(source, about={**source.about, **folder.about}, rows=rows)
