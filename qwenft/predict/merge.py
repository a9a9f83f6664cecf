"""LoRA merged for the time of a run, without its extra products; afterwards the base is exactly as it was."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from peft.tuners.lora import Linear


class MergedLora:
    """The weights with the adapter in them, beside the model's own; they change places and nothing is computed back.

    PEFT's `unmerge` subtracts what was added, which in bf16 does not give the weights that were there.
    """

    @torch.no_grad()
    def __init__(self, model: Any) -> None:
        self._layers = [module for module in model.modules() if isinstance(module, Linear)]
        self._own = [_weight(layer).data for layer in self._layers]
        self._merged: list[torch.Tensor] = []
        try:
            for layer in self._layers:
                layer.merge(safe_merge=True)  # a new tensor; the old one stays in self._own
                self._merged.append(_weight(layer).data)
        finally:
            self._put(self._own, merged=False)

    def _put(self, weights: list[torch.Tensor], *, merged: bool) -> None:
        for layer, weight in zip(self._layers, weights, strict=True):
            _weight(layer).data = weight
            layer.merged_adapters[:] = layer.active_adapters if merged else []

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the merged weights are the model's."""
        self._put(self._merged, merged=True)
        try:
            yield
        finally:
            self._put(self._own, merged=False)


def _weight(layer: Linear) -> torch.nn.Parameter:
    return cast(torch.nn.Parameter, layer.get_base_layer().weight)
