"""What is kept while a run goes on: the best adapter; a disk that takes no more becomes our own error."""

import errno
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError

from qwenft.core.errors import RunError
from qwenft.core.events import Emit
from qwenft.core.files import replace_folder
from qwenft.core.runs import Contract, Run
from qwenft.model.load import save_trained
from qwenft.train.checkpoints import complete_checkpoints
from qwenft.train.engine import trained_state

UNWRITABLE: Final = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO}
)
"""What a disk that is full, read-only or broken answers."""
_TORCH_SAYS: Final = re.compile(r"PytorchStreamWriter|unexpected pos|cannot be opened|Parent directory")
"""torch.save gives a RuntimeError without a number; seen with torch 2.15 under a limit on the file size."""
BEST: Final = Path("best") / "adapter"
"""Where a checkpoint keeps the best adapter so far; two levels deep: one level deep the Trainer would load it."""


@contextmanager
def writing(what: str, run: Run, staged: Path) -> Iterator[None]:
    """Around everything that is saved; what was staged is removed on failure, for it takes the room that is missing.

    Raises RunError that names the checkpoint which still stands.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno not in UNWRITABLE:
            raise
        if isinstance(error, RuntimeError) and not _TORCH_SAYS.search(str(error)):
            raise
        shutil.rmtree(staged, ignore_errors=True)
        why = "the disk took only a part of it" if isinstance(error, RuntimeError) else str(error)
        raise unwritten(what, run, why) from error


def unwritten(what: str, run: Run, why: str) -> RunError:
    """The error for something that could not be saved."""
    free = f"{shutil.disk_usage(run.path).free / 1e9:.1f} GB are free there"
    made = complete_checkpoints(run.checkpoints)
    stands = f"the checkpoint {made[-1]} stands" if made else "there is no checkpoint yet"
    return RunError(
        f"{what} could not be written to {run.path}: {why} ({free}); {stands}", hint=f"qwenft train --resume {run.name}"
    )


@dataclass
class BestAdapter:
    """Keeps the adapter with the highest held-out metric in the run's adapter/ folder; the later one on a tie."""

    run: Run
    report: Emit
    is_first: bool
    model: Any
    contract: Contract
    step: int | None = None
    value: float | None = None

    def keep(self, step: int, value: float | None) -> None:
        """Write the adapter as it is now, unless an earlier one measured better.  Raises RunError if it cannot."""
        if self.value is not None and (value is None or value < self.value):
            return
        self.step, self.value = step, value
        state = trained_state(self.model)
        if self.is_first:
            staged = self.run.path / ".adapter.partial"
            with writing(f"the adapter of step {step}", self.run, staged):
                shutil.rmtree(staged, ignore_errors=True)
                save_trained(self.model, state, staged)
                self.contract.write(staged)
                replace_folder(staged, self.run.adapter)
        self.report({"event": "adapter", "step": step, "value": value, "path": str(self.run.adapter)})

    def recall(self, events: Iterable[Mapping[str, Any]], checkpoint: Path | None) -> None:
        """After a resume: the best one as it was at the checkpoint, also where a later one had taken its place."""
        for event in events:
            if event["event"] == "adapter":
                self.step, self.value = event["step"], event["value"]
        if not self.is_first:
            return
        kept = checkpoint / BEST if checkpoint else None
        if kept is None or not kept.is_dir():
            shutil.rmtree(self.run.adapter, ignore_errors=True)
            return
        staged = self.run.path / ".adapter.partial"
        with writing("the best adapter so far", self.run, staged):
            link_copy(kept, staged)
            replace_folder(staged, self.run.adapter)


def link_copy(source: Path, target: Path) -> None:
    """Copy a folder by hard links where the disk has them: files here are replaced, never changed."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, copy_function=_link)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def is_stalled(evals: Iterable[Mapping[str, Any]], patience: int | None) -> bool:
    """Whether the last `patience` evaluations of the adapter brought nothing better than one before them.

    Step 0 is the base model and does not count; neither does an evaluation that could not be measured.
    """
    values = [e["value"] for e in evals if e["step"] > 0 and e["value"] is not None]
    return patience is not None and bool(values) and len(values) - 1 - values.index(max(values)) >= patience
