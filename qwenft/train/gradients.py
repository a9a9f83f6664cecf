"""Holds, in the first update, that a gradient reaches every part that was asked for and no other."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import distributed
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from qwenft.core.errors import RunError
from qwenft.model.load import part_of


class GradientCheck(TrainerCallback):
    """Looks once, before the first optimizer step of this process.  Raises RunError that names the part."""

    def __init__(self, parts: Sequence[str], *, taken_away: bool = False) -> None:
        """taken_away: the engine (DeepSpeed) keeps gradients to itself, so they are looked at as they come."""
        self.parts = parts
        self.taken_away = taken_away
        self._peaks: dict[str, torch.Tensor] = {}
        """The largest gradient of each part, by size."""
        self._hooks: list[Any] = []
        self._done = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Refuse what learns though it was not asked for; watch, where gradients will be gone."""
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            part = part_of(name)
            if part not in self.parts:
                raise RunError(f"{name} would learn, which is in no part of parts={','.join(self.parts)}: report this")
            if self.taken_away:
                self._hooks.append(parameter.register_hook(partial(self._note, part)))

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Judge the first update."""
        if self._done:
            return
        self._done = True
        for hook in self._hooks:
            hook.remove()
        if not self.taken_away:
            for name, parameter in model.named_parameters():
                if parameter.grad is not None:
                    self._note(part_of(name), parameter.grad)
        missing = [part for part, peak in zip(self.parts, self._largest(args.device), strict=True) if peak == 0]
        if missing:
            rest = ",".join(part for part in self.parts if part not in missing) or "language"
            raise RunError(
                f"no gradient reaches the part {', '.join(missing)}: its weights would stay as they are",
                hint=f"qwenft train parts={rest}; if the data should teach {missing[0]}, please report it",
            )

    def _note(self, part: str, gradient: torch.Tensor) -> None:
        own = gradient.to_local() if isinstance(gradient, DTensor) else gradient
        if own.numel():
            peak = own.detach().abs().amax().float()
            self._peaks[part] = torch.maximum(self._peaks[part], peak) if part in self._peaks else peak

    def _largest(self, device: torch.device) -> list[float]:
        zero = torch.zeros((), device=device)
        peaks = torch.stack([self._peaks.get(part, zero) for part in self.parts])
        if distributed.is_initialized():  # a process may hold no piece of a part, or a piece that is zero
            distributed.all_reduce(peaks, op=distributed.ReduceOp.MAX)
        return [float(peak) for peak in peaks]
