"""The loss of each task in an update of several: read off the logits that the step has computed anyway."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import distributed
from torch.nn import functional as nnf

from qwenft.core.samples import TASKS
from qwenft.model.inputs import IGNORED

AT_A_TIME: Final = 128
"""Tokens whose logits are widened at a time: 75 MiB of float32 with a vocabulary of 152,000."""


class TaskLosses:
    """Sums the losses of learned tokens by task, over the micro-batches and processes of an update."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(2, len(TASKS), device=device)
        """Losses and tokens of each task.  They stay on the device: reading one waits for it."""

    @torch.no_grad()
    def add(self, logits_BLV: torch.Tensor, inputs: Mapping[str, Any], tasks: Sequence[int]) -> None:
        """Add a micro-batch.  inputs: of the model.  tasks: number in TASKS of each learned token's, in their order."""
        logits, targets = _learned(logits_BLV, inputs)
        owners = torch.tensor(tasks, device=targets.device, dtype=torch.long)
        for start in range(0, len(targets), AT_A_TIME):
            part = slice(start, start + AT_A_TIME)
            losses = nnf.cross_entropy(logits[part].float(), targets[part], reduction="none")
            self._sums[0].index_add_(0, owners[part], losses)
            self._sums[1].index_add_(0, owners[part], torch.ones_like(losses))

    def take(self) -> dict[str, float]:
        """The mean loss over the learned tokens of each task in the update, of all processes; begins anew."""
        if distributed.is_initialized():
            distributed.all_reduce(self._sums)
        losses, tokens = self._sums.tolist()
        self._sums.zero_()
        return {task: losses[n] / tokens[n] for n, task in enumerate(TASKS) if tokens[n]}


def _learned(logits_BLV: torch.Tensor, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, V) logits and (N,) targets of the learned tokens: packed rows have only those, padded ones are sought out."""
    if "shift_labels" in inputs:
        return logits_BLV[0], inputs["shift_labels"]
    targets_BL = inputs["labels"][:, 1:]
    learned = targets_BL != IGNORED
    return logits_BLV[:, :-1][learned], targets_BL[learned]
