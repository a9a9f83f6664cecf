"""Exact counts of optimizer updates; pure.

L = ceil(N / (bs x ranks)) batches a rank and epoch (floor with drop_last), U = ceil(L / accum) updates an epoch,
total = ceil(epochs x U); max_steps overrides.  Source: transformers.Trainer (>= 4.52, which ceils U); held equal to
the Trainer's own count by tests/test_steps.py.
"""

import math
from dataclasses import dataclass

from qwenft.core.errors import UsageError


@dataclass(frozen=True, slots=True)
class Updates:
    """How many optimizer updates a run makes, and the formula with its numbers in it."""

    batches_per_epoch: int
    """Micro-batches that one process sees in an epoch."""
    updates_per_epoch: int
    total_updates: int
    samples_per_update: int
    """Batch x processes x accumulation: the effective batch."""
    formula: str

    def text(self) -> str:
        """The formula and the four numbers, a line each."""
        return (
            f"{self.formula}\n"
            f"batches per epoch   {self.batches_per_epoch:,}\n"
            f"updates per epoch   {self.updates_per_epoch:,}\n"
            f"updates in all      {self.total_updates:,}\n"
            f"samples per update  {self.samples_per_update:,}"
        )


def count_updates(
    n: int,
    bs: int,
    *,
    num_gpus: int = 1,
    accum: int = 1,
    epochs: float = 1.0,
    drop_last: bool = False,
    max_steps: int | None = None,
) -> Updates:
    """Count the optimizer updates of a run over `n` samples with micro-batches of `bs`.

    num_gpus: data-parallel processes (with `device_map="auto"` several GPUs are one).  epochs may be a fraction.
    Raises UsageError for a value that is not positive, or if the result is zero updates.

    >>> count_updates(8000, 4).formula
    'ceil(ceil(8000 / 4) / 1) x 1 = 2000'
    >>> count_updates(21, 2, accum=4, epochs=1.5).total_updates
    5
    """
    for name, value in (("n", n), ("bs", bs), ("num-gpus", num_gpus), ("accum", accum), ("epochs", epochs)):
        if not math.isfinite(value) or value <= 0:
            raise UsageError(f"--{name} must be over 0, got {value}", hint="qwenft steps --n 8000 --bs 4")
    if max_steps is not None and not 0 < max_steps < math.inf:  # NaN fails it too
        raise UsageError(f"--max-steps must be over 0, got {max_steps}", hint="leave it out to train whole epochs")
    batch = bs * num_gpus
    batches = n // batch if drop_last else -(-n // batch)
    if batches == 0:
        what = f"{bs} x {num_gpus} GPUs = {batch}" if num_gpus > 1 else str(bs)
        raise UsageError(
            f"0 updates: the {n} samples do not fill one batch of {what}, and --drop-last drops a part of a batch",
            hint=f"leave out --drop-last, or use --bs {max(1, n // num_gpus)} or less",
        )
    per_epoch = -(-batches // accum)
    by_epochs = math.ceil(epochs * per_epoch)  # in floats, as the Trainer: 0.07 x 100 gives 8
    divisor = str(bs) if num_gpus == 1 else f"({bs} x {num_gpus})"
    formula = f"ceil({'floor' if drop_last else 'ceil'}({n} / {divisor}) / {accum}) x {epochs:g}"
    formula = f"{formula if float(epochs).is_integer() else f'ceil({formula})'} = {by_epochs}"
    if max_steps is not None:
        formula += f", but max_steps = {max_steps}"
    return Updates(batches, per_epoch, max_steps or by_epochs, batch * accum, formula)
