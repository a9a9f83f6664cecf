"""Checkpoints: staged, marked complete, renamed; a torn one never looks like one."""

import os
import re
import shutil
from pathlib import Path
from typing import Final

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
    return all(
        (folder / name).is_file() and (folder / name).stat().st_size == size for name, size in read_json(mark).items()
    )


def complete_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest step first."""
    found = [(int(match.group(1)), path) for path in folder.glob("step-*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found) if is_complete(path)]


def prune(folder: Path, keep_last: int) -> None:
    """Remove all but the newest complete checkpoints."""
    for path in complete_checkpoints(folder)[:-keep_last]:
        shutil.rmtree(path)
