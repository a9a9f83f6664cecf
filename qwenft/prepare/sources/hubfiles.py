"""Files of a hub data set: fetched into the cache and checked, all at once or one at a time as their rows are read."""

import hashlib
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from qwenft.core.errors import HubError
from qwenft.core.events import Emit, note, progress, warning
from qwenft.core.hub import MIRROR, PUBLIC_HUB, HubAccess, byte_meter, hub_errors
from qwenft.prepare.sources.parquet import ParquetTable

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
class RemoteTable:
    """The rows of a split's parquet files in order, each file fetched when its rows are reached."""

    repo: Repository
    names: Sequence[str]
    sizes: Sizes
    stated: Any
    """Features as the data set's description has them, or None."""
    rows_stated: int | None
    give_back: bool
    """Whether a file that was fetched leaves the cache once it was read."""
    emit: Emit

    @cached_property
    def features(self) -> Any:
        """Column -> `datasets` feature: as given, else as the first file's schema says."""
        return self.stated or ParquetTable([self._file(self.names[0])[0]]).features

    def head(self, count: int) -> list[dict[str, Any]]:
        """The first rows of the first file that has any; what was fetched for them stays."""
        heads = (list(islice(ParquetTable([self._file(name)[0]]), count)) for name in self.names)
        return next(filter(None, heads), [])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        count = 0
        for name in self.names:
            path, ours = self._file(name)
            try:
                for row in ParquetTable([path]):
                    count += 1
                    yield row
            finally:
                if ours and self.give_back:
                    _remove(path)
        if self.rows_stated and count != self.rows_stated:
            self.emit(warning(f"{count} rows were read, the description says {self.rows_stated}"))

    @cached_property
    def _ours(self) -> set[str]:
        return set()

    def _file(self, name: str) -> tuple[Path, bool]:
        """Where a file lies, and whether this run has fetched it."""
        repo = self.repo
        with hub_errors(repo.dataset_id, repo.access, revision=repo.commit):
            stored = repo.cached(name)
            if stored is None:
                size, sha256 = self.sizes[name]
                self.emit(note(f"fetching {name}, {size / 1e6:.1f} MB"))
                stored = _fetch_file(repo, name, sha256, byte_meter(0, size, self.emit))
                self.emit(progress("fetch", size, size))
                self._ours.add(name)
        return stored, name in self._ours
