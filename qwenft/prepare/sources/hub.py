"""Data sets of the hub or in its layout, read through `datasets`; only the splits asked for are fetched."""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from qwenft.core.errors import DataError, HubError, nearest
from qwenft.core.events import Emit, ignore, note, warning
from qwenft.core.hub import PROBE_TIMEOUT_S, SCRIPTS_HINT, HubAccess, hub_errors, offline, open_hub, quiet_libraries
from qwenft.prepare.rows import WHOLE
from qwenft.prepare.sources.hubfiles import (
    OnDemand,
    Repository,
    Sizes,
    fetch,
    free_bytes,
    is_sound,
    missing_of,
    snapshot,
)
from qwenft.prepare.sources.parquet import ParquetTable
from qwenft.prepare.sources.remote import PicturedTable, RemoteTable

if TYPE_CHECKING:
    from collections.abc import Iterator

README: Final = "README.md"
_SHARD = re.compile(r"[-_.]\d{4,}-of-\d{4,}$")
_SPLIT_WORDS = re.compile(
    r"^(train|training|val|valid|validation|dev|test|testing|eval)([AB]|[-_.].*)?$", re.IGNORECASE
)


@dataclass(frozen=True)
class HubData:
    """A data set as `datasets` gives it, pictures left as the bytes that were stored."""

    splits: dict[str, Any]
    """Split -> ParquetTable or datasets.Dataset, in the source's words and order.

    An image column yields {"bytes": …, "path": …}: the bytes, or None with the path of a file that holds them.
    """
    revision: str
    """The commit (40 hex digits); empty for a local folder."""
    endpoint: str
    """Where it came from; empty for a local folder."""
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Split -> its files, relative to the repository or folder, where the layout says."""


def load_hub(
    dataset_id: str,
    *,
    config: str | None = None,
    revision: str | None = None,
    splits: Sequence[str] = (),
    limit: int | None = None,
    endpoint: str | None = None,
    send_token: bool = False,
    emit: Emit = ignore,
) -> HubData:
    """Fetch a data set of the hub into its usual cache and open it.

    dataset_id: `owner/name`.  splits: only these (empty: all), and only their files are fetched.
    limit: no more rows of each split will be read, so files are fetched one at a time, as their rows are reached; they
    are also where the disk would not hold all of them, and then each leaves the cache again once it was read.
    endpoint, send_token: as in `open_hub`.  With HF_HUB_OFFLINE=1 the cache alone is read.
    Raises HubError for everything that a hub, the way to it, or the cache can do, and for an unknown configuration,
    split or revision.
    """
    access = open_hub(endpoint, send_token=send_token)
    with hub_errors(dataset_id, access, revision=revision), _library_errors(dataset_id):
        if offline():
            return _load_cached(Repository(dataset_id, revision or "", access), config, splits, emit)
        _, sizes = look_up(dataset_id, revision, access)
        # The prefix keeps `datasets` from taking a local folder of that name.
        layout = _Layout.found(f"hf://datasets/{dataset_id}", config, revision, access)
        wanted = layout.choose(splits)
        repo = Repository(dataset_id, layout.commit, access)
        names = [name for split in wanted for name in layout.files[split]]
        files = OnDemand(repo, sizes, _too_large(repo, names, sizes, emit), emit)
        one_by_one = files.give_back or limit is not None
        if not all(name.endswith(".parquet") and name in sizes for name in names):
            if not one_by_one:
                fetch(repo, names, sizes, emit)
            return layout.open_with_pictures(files, wanted, streaming=one_by_one, emit=emit)
        if one_by_one:
            return layout.open_one_by_one(files, wanted)
        fetch(repo, names, sizes, emit)
        return layout.open(wanted, emit)


def _too_large(repo: Repository, names: Sequence[str], sizes: Sizes, emit: Emit) -> bool:
    """Whether the files and, once more, their pictures in the prepared data set would not fit on the disk."""
    needed, free = sum(sizes[name][0] for name in missing_of(repo, names, sizes)), free_bytes()
    if 2 * needed <= free:
        return False
    emit(
        note(
            f"{needed / 1e9:.3g} GB to fetch, and as much for the pictures taken from it, do not fit into "
            f"{free / 1e9:.3g} GB: each file is fetched when its rows are read, and then leaves the cache"
        )
    )
    return True


def load_folder(path: Path, splits: Sequence[str] = (), *, config: str | None = None, emit: Emit = ignore) -> HubData:
    """Open a local folder in the hub's layout, a `save_to_disk` folder, or one .parquet file.

    Split names are the README's or the file names' (`datasets` calls a flat val.parquet `validation`); one .parquet
    file keeps the word in its own name.  Raises DataError or HubError.
    """
    quiet_libraries()  # nothing is asked of a hub, so it does not matter which one this process uses
    where = path.absolute()
    if not where.exists():
        raise DataError(f"{where} does not exist")
    with _library_errors(str(where)):
        if where.is_file():
            return _load_file(where, splits)
        if (where / "dataset_dict.json").is_file() or (where / "state.json").is_file():
            return _load_saved(where, splits)
        layout = _Layout.found(str(where), config, None, HubAccess("", mirror=False, token=False))
        return layout.open(layout.choose(splits), emit)


def split_of(path: Path) -> str:
    """The split that a lone data file is named after, or `rows.WHOLE`.

    >>> split_of(Path("val-00000-of-00001.parquet")), split_of(Path("birds.parquet"))
    ('val', 'all')
    """
    stem = _SHARD.sub("", path.stem)
    return stem if _SPLIT_WORDS.match(stem) else WHOLE


def look_up(dataset_id: str, revision: str | None, access: HubAccess) -> tuple[str, Sizes]:
    """First question, without retries so that a dead endpoint shows at once: the commit, and its files.

    Raises HubError for a data set with a loading script.
    """
    from huggingface_hub import HfApi

    api = HfApi(endpoint=access.endpoint, token=access.token)
    info = api.dataset_info(dataset_id, revision=revision, timeout=PROBE_TIMEOUT_S, files_metadata=True)
    files = {file.rfilename: (file.size or 0, file.lfs.sha256 if file.lfs else "") for file in info.siblings or ()}
    if f"{dataset_id.rsplit('/', maxsplit=1)[-1]}.py" in files:
        raise _script(dataset_id)
    # A gated data set describes itself to everyone and refuses only its files.  Asked for by the revision's own name,
    # so that the cache knows which commit that is when there is no network.
    probe = README if README in files else min(files, key=lambda name: files[name][0], default="")
    if probe:
        api.hf_hub_download(dataset_id, probe, repo_type="dataset", revision=revision)
    return str(info.sha), files


def _script(dataset_id: str) -> HubError:
    return HubError(
        f"{dataset_id} is read by a script of its own, and nothing foreign is run here (datasets >= 4 refuses it too)",
        hint=f"the hub may keep a converted copy: {SCRIPTS_HINT}",
    )


@dataclass(frozen=True)
class _Layout:
    """Which files make up which split, before any of them is fetched."""

    target: str
    config: str | None
    access: HubAccess
    builder: Any
    commit: str
    files: Mapping[str, tuple[str, ...]]

    @classmethod
    def found(cls, target: str, config: str | None, revision: str | None, access: HubAccess, **more: Any) -> "_Layout":
        builder = _builder(target, config, revision, access, **more)
        commit = str(builder.hash) if target.startswith("hf://") else ""
        known = builder.config.data_files or {}
        prefix = _base(target, commit)
        files = {str(split): tuple(str(name).removeprefix(prefix) for name in names) for split, names in known.items()}
        return cls(target, config, access, builder, commit, files)

    @classmethod
    def cached(cls, folder: Path, config: str | None, patterns: Mapping[str, Sequence[str]]) -> "_Layout":
        """A folder of which only some splits are there (`patterns` names their files; empty: it is whole)."""
        from datasets.info import DatasetInfosDict

        access = HubAccess("", mirror=False, token=False)
        layout = cls.found(str(folder), config, None, access, **({"data_files": patterns} if patterns else {}))
        stated = DatasetInfosDict.from_directory(str(folder)).get(config or "default")
        if patterns and stated is not None:
            layout.builder.info.features = stated.features
        return layout

    def choose(self, splits: Sequence[str]) -> tuple[str, ...]:
        return _choose(self.target.removeprefix("hf://datasets/"), self.files, splits)

    def open(self, wanted: tuple[str, ...], emit: Emit) -> HubData:
        """Turn files into tables; fewer splits than there are become a data set of their own in the cache."""
        builder, stated = self.builder, dict(self.builder.info.splits or {})
        opened = self._as_they_lie(wanted) or self._through_cache(builder, wanted)
        for split, table in opened.items():
            count = stated[split].num_examples if split in stated else None
            if count and count != len(table):
                emit(warning(f"{split} has {len(table)} rows, its description says {count}"))
        files = {split: self.files.get(split, ()) for split in opened}
        return HubData(opened, self.commit, self.access.endpoint, files)

    def open_one_by_one(self, files: OnDemand, wanted: tuple[str, ...]) -> HubData:
        """Tables whose parquet files are fetched as their rows are read."""
        info, stated = self.builder.info, dict(self.builder.info.splits or {})
        tables: dict[str, Any] = {}
        for split in wanted:
            count = stated[split].num_examples if split in stated else None
            tables[split] = RemoteTable(files, self.files[split], info.features, count)
        return HubData(tables, self.commit, self.access.endpoint, {split: self.files[split] for split in wanted})

    def open_with_pictures(
        self, files: OnDemand, wanted: tuple[str, ...], *, streaming: bool, emit: Emit = ignore
    ) -> HubData:
        """Tables of other files than parquet, whose rows may name pictures of the repository.

        streaming: rows come over the wire as they are read, by `datasets`, and nothing of them is kept.
        """
        if streaming:
            opened = {split: self.builder.as_streaming_dataset(split=split).decode(False) for split in wanted}
            data = HubData(opened, self.commit, self.access.endpoint, {split: self.files[split] for split in wanted})
        else:
            data = self.open(wanted, emit)
        roots = (_base(self.target, self.commit), f"{snapshot(files.repo)}/")
        tables: dict[str, Any] = {}
        for split, table in data.splits.items():
            beside = dict.fromkeys(f"{Path(name).parent.as_posix()}/".removeprefix("./") for name in self.files[split])
            folders = dict.fromkeys(("", *beside, "images/", *(f"{folder}images/" for folder in beside)))
            tables[split] = PicturedTable(table, files, roots, tuple(folders))
        return HubData(tables, data.revision, data.endpoint, data.files)

    def _as_they_lie(self, wanted: tuple[str, ...]) -> dict[str, Any]:
        """Tables that are read straight from their files; empty where not all of them are parquet, and here."""
        opened = {}
        for split in wanted:
            places = [self._place(name) for name in self.files[split]]
            if not places or any(place is None or place.suffix != ".parquet" for place in places):
                return {}
            opened[split] = ParquetTable([place for place in places if place], self.builder.info.features)
        return opened

    def _place(self, name: str) -> Path | None:
        """Where a file of the data set lies on this machine."""
        from huggingface_hub import try_to_load_from_cache

        if not self.target.startswith("hf://"):
            return Path(self.target) / name
        dataset_id = self.target.removeprefix("hf://datasets/")
        stored = try_to_load_from_cache(dataset_id, name, revision=self.commit, repo_type="dataset")
        return Path(stored) if isinstance(stored, str) else None

    def _through_cache(self, builder: Any, wanted: tuple[str, ...]) -> dict[str, Any]:
        if len(wanted) < len(self.files):
            base = _base(self.target, self.commit)
            chosen = {split: [f"{base}{name}" for name in self.files[split]] for split in wanted}
            features = builder.info.features
            options = {"data_files": chosen, "features": features}
            builder = _builder(self.target, self.config, self.commit or None, self.access, **options)
        builder.download_and_prepare(verification_mode="no_checks")  # stale numbers in a README are said, not fatal
        return {str(split): _undecoded(table) for split, table in builder.as_dataset().items()}


def _base(target: str, commit: str) -> str:
    return f"{target}@{commit}/" if commit else f"{Path(target).as_posix()}/"


def _builder(target: str, config: str | None, revision: str | None, access: HubAccess, **more: Any) -> Any:
    import datasets
    from datasets.packaged_modules.parquet import parquet

    # The exported infos come from another host (datasets-server.<endpoint>, waited for up to 100 s) and are not needed.
    datasets.config.USE_PARQUET_EXPORT = False
    # A builder patches its module so that it can stream, and imports scipy for one of the patches (0.3 s of a start).
    # Parquet files are read here and not by their builder (datasets 5.2, streaming.py; until it imports when needed).
    parquet._patched_for_streaming = True
    try:
        return datasets.load_dataset_builder(target, name=config, revision=revision, token=access.token, **more)
    except ValueError as error:
        known = _config_names(target, revision, access)
        shown = target.removeprefix("hf://datasets/")
        if config is None and len(known) > 1:
            names = ", ".join(known)
            raise HubError(f"{shown} has several parts: {names}", hint=f"--dataset {shown}:{known[0]}") from error
        if config is not None and known and config not in known:
            raise HubError(f"{shown} has no part {config!r}", hint=nearest(config, known)) from error
        raise HubError(
            f"{shown} cannot be read as a data set: {_line(error)}", hint="--debug shows the cause"
        ) from error


def _config_names(target: str, revision: str | None, access: HubAccess) -> list[str]:
    import datasets

    try:
        return list(datasets.get_dataset_config_names(target, revision=revision, token=access.token))
    except ValueError:  # nothing could be made of its files at all; the first error says why
        return []


def _choose(source: str, known: Iterable[str], splits: Sequence[str]) -> tuple[str, ...]:
    names = tuple(known)
    for split in splits:
        if split not in names:
            raise HubError(f"{source} has no split {split!r}", hint=f"{nearest(split, names)} (--split)")
    return tuple(name for name in names if not splits or name in splits)


def _load_cached(repo: Repository, config: str | None, splits: Sequence[str], emit: Emit) -> HubData:
    """HF_HUB_OFFLINE=1: the files that the cache holds, opened as the folder they are."""
    from huggingface_hub import snapshot_download

    revision = repo.commit or None
    stored = snapshot_download(repo.dataset_id, repo_type="dataset", revision=revision, local_files_only=True)
    folder = Path(stored)
    present, absent = _stated_splits(folder, config)
    lacking = [split for split in splits or (*present, *absent) if split in absent]
    if lacking:
        raise HubError(
            f"HF_HUB_OFFLINE is set, and the cache holds no {', '.join(lacking)} of {repo.dataset_id}",
            hint=f"--split {next(iter(present))}" if present else "fetch it once with HF_HUB_OFFLINE=0",
        )
    layout = _Layout.cached(folder, config, present if absent else {})
    here = {path.relative_to(folder).as_posix(): (0, "") for path in folder.rglob("*") if path.is_file()}
    files = OnDemand(Repository(repo.dataset_id, folder.name, repo.access), here, give_back=False, emit=emit)
    data = layout.open_with_pictures(files, layout.choose(splits), streaming=False, emit=emit)
    emit(note(f"HF_HUB_OFFLINE is set: {', '.join(data.splits)} of {repo.dataset_id} come from the cache"))
    return HubData(data.splits, folder.name, repo.access.endpoint, data.files)


def _stated_splits(folder: Path, config: str | None) -> tuple[dict[str, list[str]], list[str]]:
    """From the README's list of files: split -> patterns of what is here, and the splits of which nothing is here."""
    from datasets.data_files import sanitize_patterns
    from huggingface_hub import DatasetCard

    if not (folder / README).is_file():
        return {}, []
    parts = DatasetCard.load(folder / README).data.to_dict().get("configs") or []
    chosen = [part for part in parts if config in (part.get("config_name"), None)][:1]
    present: dict[str, list[str]] = {}
    absent = []
    for part in chosen:
        for split, patterns in sanitize_patterns(part.get("data_files") or {}).items():
            inside = [str(Path(part.get("data_dir") or "") / pattern) for pattern in patterns]
            here = any(next(folder.glob(pattern), None) for pattern in inside)
            present.update({str(split): inside} if here else {})
            absent.extend([] if here else [str(split)])
    return present, absent


def _load_file(path: Path, splits: Sequence[str]) -> HubData:
    name = split_of(path)
    _choose(str(path), [name], splits)
    if not is_sound(path, ""):
        raise DataError(f"{path} is no whole parquet file", hint="was its download or copy interrupted?")
    return HubData({name: ParquetTable([path])}, "", "", {name: (path.name,)})


def _load_saved(path: Path, splits: Sequence[str]) -> HubData:
    import datasets

    saved = datasets.load_from_disk(str(path))
    tables = dict(saved) if isinstance(saved, datasets.DatasetDict) else {WHOLE: saved}
    wanted = _choose(str(path), [str(name) for name in tables], splits)
    return HubData({name: _undecoded(tables[name]) for name in wanted}, "", "")


def _undecoded(table: Any) -> Any:
    """The same table with every picture as it was stored: {"bytes": …, "path": …}."""
    for column, feature in table.features.items():
        plain = _plain(feature)
        if plain != feature:
            table = table.cast_column(column, plain)
    return table


def _plain(feature: Any) -> Any:
    import copy

    if hasattr(feature, "decode"):
        same = copy.copy(feature)
        same.decode = False
        return same
    if isinstance(feature, dict):
        return {name: _plain(inner) for name, inner in feature.items()}
    if hasattr(feature, "feature"):
        same = copy.copy(feature)
        same.feature = _plain(feature.feature)
        return same
    return feature


@contextmanager
def _library_errors(source: str) -> "Iterator[None]":
    """Turn what `datasets` itself finds wrong into our errors; what the hub did goes on to `hub_errors`."""
    import datasets
    from datasets import exceptions

    try:
        yield
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        raise _script(source) from error
    except exceptions.DataFilesNotFoundError as error:
        raise HubError(
            f"{source} holds no data files: {_line(error)}", hint="it needs parquet, json, csv or pictures"
        ) from error
    except exceptions.DatasetNotFoundError:
        raise
    except datasets.exceptions.DatasetsError as error:
        cause = error.__cause__ or error
        raise HubError(f"{source} does not open: {_line(cause)}", hint="--debug shows the cause") from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
