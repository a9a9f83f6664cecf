"""Parquet files row by row as they lie: no copy of them in another form, and a few rows in memory at a time.

`datasets` would first write the whole table into its cache, uncompressed and with a picture repeated for each of its
expressions (90 MB become 900): twice the time and ten times the disk, for rows that are read once.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from qwenft.core.errors import DataError

ROWS_AT_ONCE: Final = 64


class ParquetTable:
    """The rows of some parquet files, in order; pictures stay {"bytes": …, "path": …}, as they are stored."""

    def __init__(self, files: Sequence[Path], features: Any = None) -> None:
        self._files = tuple(files)
        self._features = features

    @cached_property
    def features(self) -> Any:
        """Column -> `datasets` feature: as given, else as the first file's schema says."""
        from datasets import Features

        return self._features or Features.from_arrow_schema(self._open(self._files[0]).schema_arrow)

    def __len__(self) -> int:
        return self._rows

    @cached_property
    def _rows(self) -> int:
        return sum(self._open(file).metadata.num_rows for file in self._files)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        import pyarrow

        for file in self._files:
            try:
                opened = self._open(file)
                for group in range(opened.num_row_groups):  # over all groups at once, pyarrow would keep the whole file
                    for batch in opened.iter_batches(ROWS_AT_ONCE, row_groups=[group]):
                        yield from batch.to_pylist()
            except (pyarrow.ArrowException, OSError) as error:
                raise _broken(file, error) from error

    @staticmethod
    def _open(file: Path) -> Any:
        import pyarrow
        from pyarrow import parquet

        try:
            # Read ahead or not mapped, a group (often the whole file) would be held at once.
            return parquet.ParquetFile(file, memory_map=True, pre_buffer=False)
        except (pyarrow.ArrowException, OSError) as error:
            raise _broken(file, error) from error


def _broken(file: Path, error: BaseException) -> DataError:
    why = " ".join(str(error).split())[:200]
    return DataError(
        f"{file.absolute()} is no whole parquet file ({why})", hint="was its download or copy interrupted?"
    )
