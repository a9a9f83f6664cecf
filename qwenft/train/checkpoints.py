"""Checkpoints: staged, marked complete, renamed; a torn one never looks like one."""

import os
import re
import shutil
from pathlib import Path
from typing import Final

from qwenft.core.errors import DataError
from qwenft.core.files import read_json, write_json

MARK: Final = "complete.json"
"""Lists every file of a checkpoint with its size; written last."""
_NAME: Final = re.compile(r"step-(\d+)")


def publish(staged: Path, final: Path) -> None:
    """Mark a staged checkpoint as complete and move it to its place in one step; an older one there is replaced."""
    sizes = {str(p.relative_to(staged)): p.stat().st_size for p in sorted(staged.rglob("*")) if p.is_file()}
    for name in sizes:
        _to_disk(staged / name)
    write_json(staged / MARK, sizes)
    if final.exists():
        shutil.rmtree(final)
    staged.rename(final)
    _to_disk(final.parent)


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_complete(folder: Path) -> bool:
    """Whether every file that the mark lists is there in its full size."""
    mark = folder / MARK
    if not mark.is_file():
        return False
    try:
        sizes = read_json(mark)
    except DataError:
        return False
    return all((folder / name).is_file() and (folder / name).stat().st_size == size for name, size in sizes.items())


def complete_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest step first."""
    return [path for path in _all(folder) if is_complete(path)]


def torn_checkpoints(folder: Path) -> list[Path]:
    """Those that are not whole and newer than every complete one: a resume passes over them."""
    found = _all(folder)
    whole = [at for at, path in enumerate(found) if is_complete(path)]
    return found[whole[-1] + 1 :] if whole else found


def step_of(checkpoint: Path) -> int:
    """The update after which a checkpoint was made."""
    return int(checkpoint.name.rpartition("-")[2])


def _all(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("step-*") if _NAME.fullmatch(path.name)), key=step_of)


def prune(folder: Path, keep_last: int, best: int | None = None) -> None:
    """Remove all but the newest complete checkpoints, and the torn ones among the older.  best: this step stays too."""
    whole = complete_checkpoints(folder)
    kept = {*whole[-keep_last:], *torn_checkpoints(folder), *(path for path in whole if step_of(path) == best)}
    for path in _all(folder):
        if path not in kept:
            shutil.rmtree(path)
