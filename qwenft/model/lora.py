"""LoRA's products in the number format of the weights, over float32 matrices that the optimizer steps."""

from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch.nn import functional as nnf


class FastLinear(Linear):
    """W x + s B A dropout(x), where A and B are cast to x's format for the time of the product.

    peft's own layer casts x to the matrices' float32 and back (autocast_adapter_dtype), which reads and writes each
    input twice more.  Small gradients still add up in float32, since the cast is part of the graph.
    """

    def forward(self, x: torch.Tensor, *arguments: Any, **more: Any) -> torch.Tensor:
        """peft's own where no adapter, a merged one or several are active."""
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1 or arguments or more:
            plain: torch.Tensor = super().forward(x, *arguments, **more)
            return plain
        (name,) = self.active_adapters
        layer: Any = self
        down, up = layer.lora_A[name].weight.to(x.dtype), layer.lora_B[name].weight.to(x.dtype)
        inner = nnf.linear(layer.lora_dropout[name](x), down)
        result: torch.Tensor = layer.base_layer(x)
        if torch.compiler.is_compiling():  # the sum becomes part of what comes after it
            result = result + nnf.linear(inner, up) * layer.scaling[name]
        else:
            result.flatten(0, -2).addmm_(inner.flatten(0, -2), up.t(), alpha=layer.scaling[name])
        return result


def set_fast_lora(model: Any, fast: bool) -> None:
    """Switch every LoRA layer of a model between this product and peft's own.

    By its class, not by a method of its own: torch.compile then takes all layers of a kind for the same code.
    """
    before, after = (Linear, FastLinear) if fast else (FastLinear, Linear)
    for module in model.modules():
        if type(module) is before and not module.lora_variant:
            module.__class__ = after
