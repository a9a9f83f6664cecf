"""Files of a hub data set: fetched into the cache, checked, and given back to the disk."""

import hashlib
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwenft.core.errors import HubError
from qwenft.core.events import Emit, ignore, note, progress
from qwenft.core.hub import MIRROR, PUBLIC_HUB, HubAccess, byte_meter, hub_errors
from qwenft.prepare.sources.folders import is_picture_name

Sizes = Mapping[str, tuple[int, str]]
"""File -> (size in bytes, SHA-256 or "")."""


@dataclass(frozen=True, slots=True)
class Repository:
    """A data set at a commit."""

    dataset_id: str
    commit: str
    access: HubAccess

    def cached(self, name: str) -> Path | None:
        """Where a file lies in the cache; None where it does not, or is not whole."""
        from huggingface_hub import try_to_load_from_cache

        stored = try_to_load_from_cache(self.dataset_id, name, revision=self.commit, repo_type="dataset")
        return Path(stored) if isinstance(stored, str) and is_sound(Path(stored), "") else None


def missing_of(repo: Repository, names: Iterable[str], sizes: Sizes) -> list[str]:
    """Which files are not in the cache."""
    return [name for name in dict.fromkeys(names) if name in sizes and repo.cached(name) is None]


def fetch(repo: Repository, names: Iterable[str], sizes: Sizes, emit: Emit) -> None:
    """Bring files into the cache, where `datasets` then finds them: so there is progress, and a check of each."""
    known = [name for name in dict.fromkeys(names) if name in sizes]
    missing = missing_of(repo, known, sizes)
    total, done = sum(sizes[name][0] for name in missing), 0
    if missing:
        text = f"fetching {len(missing)} of {len(known)} files, {total / 1e6:.1f} MB, from {repo.access.endpoint}"
        emit(note(text))
    for name in missing:
        _fetch_file(repo, name, sizes[name][1], byte_meter(done, total, emit))
        done += sizes[name][0]
        emit(progress("fetch", done, total))


def snapshot(repo: Repository) -> Path:
    """The folder of the cache in which the files of a commit lie by their names."""
    from huggingface_hub import constants, file_download

    folder = file_download.repo_folder_name(repo_id=repo.dataset_id, repo_type="dataset")
    return Path(constants.HF_HUB_CACHE) / folder / "snapshots" / repo.commit


def free_bytes() -> int:
    """Room on the disk of the cache."""
    from huggingface_hub import constants

    place = Path(constants.HF_HUB_CACHE)
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def _fetch_file(repo: Repository, name: str, sha256: str, meter: type[Any]) -> Path:
    """Fetch one file; what arrives other than the hub says it is, is fetched once more."""
    from huggingface_hub import HfApi

    api = HfApi(endpoint=repo.access.endpoint, token=repo.access.token)
    for _ in range(2):
        stored = api.hf_hub_download(repo.dataset_id, name, repo_type="dataset", revision=repo.commit, tqdm_class=meter)
        if is_sound(Path(stored), sha256):
            return Path(stored)
        _remove(Path(stored))
    raise HubError(
        f"{name} of {repo.dataset_id} arrived broken twice from {repo.access.endpoint}",
        hint=f"ask another endpoint: --hf-endpoint {MIRROR if repo.access.endpoint == PUBLIC_HUB else PUBLIC_HUB}",
    )


def _remove(stored: Path) -> None:
    """Take a file out of the cache: the blob, then the link to it."""
    stored.resolve().unlink(missing_ok=True)
    stored.unlink(missing_ok=True)


def is_sound(path: Path, sha256: str) -> bool:
    """Whether a file is what the hub says (by hash, where it was just fetched), and a parquet file opens."""
    if sha256:
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                return False
    if path.suffix != ".parquet":
        return True
    import pyarrow
    from pyarrow import parquet

    try:
        parquet.read_metadata(path)
    except (pyarrow.ArrowInvalid, OSError):
        return False
    return True


@dataclass(frozen=True)
class OnDemand:
    """The files of a data set, each fetched when it is asked for."""

    repo: Repository
    sizes: Sizes
    give_back: bool
    """Whether a file that was fetched here leaves the cache once it was read."""
    emit: Emit
    _ours: set[str] = field(default_factory=set)

    def path(self, name: str) -> Path:
        """Where a file lies, fetched if need be.  Raises HubError."""
        repo = self.repo
        with hub_errors(repo.dataset_id, repo.access, revision=repo.commit):
            stored = repo.cached(name)
            if stored is None:
                stored = self._fetched(name)
        return stored

    def _fetched(self, name: str) -> Path:
        size, sha256 = self.sizes[name]
        alone = not is_picture_name(name)  # pictures come by the thousand, and their rows are counted
        if alone:
            self.emit(note(f"fetching {name}, {size / 1e6:.1f} MB"))
        stored = _fetch_file(self.repo, name, sha256, byte_meter(0, size, self.emit if alone else ignore))
        if alone:
            self.emit(progress("fetch", size, size))
        self._ours.add(name)
        return stored

    def done(self, name: str) -> None:
        """Say that a file was read: it makes room if it was fetched for that alone."""
        if self.give_back and name in self._ours:
            stored = self.repo.cached(name)
            if stored is not None:
                _remove(stored)
            self._ours.discard(name)
