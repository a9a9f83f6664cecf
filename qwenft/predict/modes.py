"""What a model is switched to while it answers, and switched back from: evaluation, attention, fused norms."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.nn import functional as nnf
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRMSNorm


@contextmanager
def answering(base: Any, attention: str) -> Iterator[None]:
    """Inside, a Qwen2_5_VLForConditionalGeneration is in eval mode and its language model attends by this name.

    Training may have chosen another attention for its own rows, and compiled layers that would be compiled again for
    each new shape: neither is used.
    """
    configs = (base.config.text_config, base.model.language_model.config)
    before, was_training = [config._attn_implementation for config in configs], base.training
    if was_training:
        base.eval()
    for config in configs:
        config._attn_implementation = attention
    try:
        with torch.inference_mode(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation = name
        if was_training:
            base.train()


def _fused(norm: Any, x: torch.Tensor) -> torch.Tensor:
    return nnf.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)


@contextmanager
def fused_norms(base: Any) -> Iterator[None]:
    """Inside, each RMSNorm is one kernel in place of six: there are 73 in a step of the 3B model."""
    norms: list[Any] = [module for module in base.modules() if type(module) is Qwen2_5_VLRMSNorm]
    for norm in norms:
        norm.forward = partial(_fused, norm)
    try:
        yield
    finally:
        for norm in norms:
            vars(norm).pop("forward", None)
