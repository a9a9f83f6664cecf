"""Pictures in folders: listed once, found by name or by stem."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

SUFFIXES: Final = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
)
"""What a picture's file name ends in; what the file holds is seen when it is decoded."""


def is_picture_name(name: str) -> bool:
    """Whether a file name ends as a picture's."""
    return os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122 - a name, and 100,000 of them


def pictures_in(folder: Path) -> list[Path]:
    """All pictures of a folder and those below it, in the order of their names.  Links to folders are not followed."""
    found = [Path(where) / name for where, _, names in os.walk(folder) for name in names if is_picture_name(name)]
    return sorted(found)


def by_stem(folders: Iterable[Path]) -> dict[str, Path]:
    """Stem -> picture, of the pictures directly in the folders; earlier folders first."""
    found: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(_listed(folder)):
            found.setdefault(path.stem, path)
    return found


def _listed(folder: Path) -> Iterator[Path]:
    try:
        with os.scandir(folder) as entries:
            yield from (folder / entry.name for entry in entries if is_picture_name(entry.name))
    except (FileNotFoundError, NotADirectoryError):
        return
