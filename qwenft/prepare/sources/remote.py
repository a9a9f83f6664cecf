"""Tables of the hub whose files are fetched as their rows are read: parquet files, or the pictures that rows name."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

from qwenft.core.events import warning
from qwenft.core.hub import hub_errors
from qwenft.prepare.sources.folders import is_picture_name
from qwenft.prepare.sources.hubfiles import OnDemand
from qwenft.prepare.sources.parquet import ParquetTable


@dataclass(frozen=True)
class RemoteTable:
    """The rows of a split's parquet files in order, each file fetched when its rows are reached."""

    files: OnDemand
    names: Sequence[str]
    stated: Any
    """Features as the data set's description has them, or None."""
    rows_stated: int | None

    @cached_property
    def features(self) -> Any:
        """Column -> `datasets` feature: as given, else as the first file's schema says."""
        return self.stated or ParquetTable([self.files.path(self.names[0])]).features

    def head(self, count: int) -> list[dict[str, Any]]:
        """The first rows of the first file that has any; what was fetched for them stays."""
        heads = (list(islice(ParquetTable([self.files.path(name)]), count)) for name in self.names)
        return next(filter(None, heads), [])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        count = 0
        for name in self.names:
            try:
                for row in ParquetTable([self.files.path(name)]):
                    count += 1
                    yield row
            finally:
                self.files.done(name)
        if self.rows_stated and count != self.rows_stated:
            self.files.emit(warning(f"{count} rows were read, the description says {self.rows_stated}"))


@dataclass(frozen=True)
class PicturedTable:
    """The rows of a table that names its pictures as files of its repository, with their bytes."""

    table: Any
    """`datasets.Dataset` or `IterableDataset`, pictures not decoded."""
    files: OnDemand
    roots: Sequence[str]
    """What stands before a file's name in the repository, where a path is whole."""
    folders: Sequence[str]
    """Where pictures may lie in the repository, likeliest first; "" is its top."""

    @property
    def features(self) -> Any:
        """Column -> `datasets` feature."""
        return self.table.features

    def head(self, count: int) -> list[dict[str, Any]]:
        """The first rows, their pictures as they are named."""
        with self._errors():
            return list(islice(self.table, count))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        with self._errors():
            for row in self.table:
                yield {column: self._with_bytes(value) for column, value in row.items()}

    def _errors(self) -> hub_errors:
        repo = self.files.repo
        return hub_errors(repo.dataset_id, repo.access, revision=repo.commit)

    def _with_bytes(self, value: Any) -> Any:
        path = value.get("path") if isinstance(value, Mapping) and not value.get("bytes") else value
        name = self._name(path) if isinstance(path, str) and is_picture_name(path) else None
        if name is None:
            return value
        try:
            return {"bytes": self.files.path(name).read_bytes(), "path": name}
        finally:
            self.files.done(name)

    def _name(self, path: str) -> str | None:
        """A picture's name in the repository: of what is listed there only, so a path leads nowhere else."""
        for root in self.roots:
            path = path.removeprefix(root)
        return next((name for folder in self.folders if (name := f"{folder}{path}") in self.files.sizes), None)
