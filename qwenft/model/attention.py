"""The vision tower without loops from Python: all windows in one attention call, the patch embedding as a product.

Letters in shapes: H heads, S patches of all pictures in the batch, D numbers a head.
Both are the same computation as the stock code; tests/test_attention.py holds them equal, and a run probes them.
"""

from functools import partial
from typing import Any, Final, cast

import torch
from torch.nn import functional as nnf
from transformers import AttentionInterface

from qwenft.core.errors import first_line

VARLEN: Final = "qwenft_flash_attention_2_varlen"
"""A name that contains "flash_attention_2" makes the vision tower hand over all windows at once with their borders
(transformers 5.24, Qwen2_5_VLVisionAttention).  It must stand in the vision config alone."""
PLAIN: Final = "sdpa"
HALF: Final = (torch.bfloat16, torch.float16)
"""What torch's varlen kernel takes."""


def windowed_attention(
    module: Any,
    q_1HSD: torch.Tensor,
    k_1HSD: torch.Tensor,
    v_1HSD: torch.Tensor,
    attention_mask: None,
    *,
    scaling: float,
    cu_seq_lens_q: torch.Tensor,
    max_length_q: int | torch.Tensor,
    **unused: Any,
) -> tuple[torch.Tensor, None]:
    """Attention inside each window: patches cu_seq_lens_q[i] to cu_seq_lens_q[i + 1] see each other and nobody else.

    One varlen call in bf16 or fp16 on a GPU; elsewhere one SDPA call for all windows of the same length.
    Returns (1, S, H, D), as the interface wants it.
    """
    if q_1HSD.is_cuda and q_1HSD.dtype in HALF:
        longest = int(max_length_q) if isinstance(max_length_q, torch.Tensor) else max_length_q
        return _varlen((q_1HSD, k_1HSD, v_1HSD), scaling, cu_seq_lens_q, longest), None
    return _by_length((q_1HSD, k_1HSD, v_1HSD), scaling, cu_seq_lens_q), None


Qkv = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _varlen(qkv_1HSD: Qkv, scaling: float, borders: torch.Tensor, longest: int) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    head_size = qkv_1HSD[0].shape[-1]
    q, k, v = (nnf.pad(x[0].transpose(0, 1), (0, -head_size % 8)).contiguous() for x in qkv_1HSD)
    borders = borders.to(torch.int32)
    out = cast(torch.Tensor, varlen_attn(q, k, v, borders, borders, longest, longest, scale=scaling))
    return out[None, ..., :head_size]


def _by_length(qkv_1HSD: Qkv, scaling: float, borders: torch.Tensor) -> torch.Tensor:
    lengths = borders[1:] - borders[:-1]
    out_SHD = torch.empty_like(qkv_1HSD[0][0].transpose(0, 1))
    for length in lengths.unique().tolist():
        starts = borders[:-1][lengths == length]
        rows = (starts[:, None] + torch.arange(length, device=borders.device)).to(out_SHD.device)  # windows, length
        q, k, v = (x[0][:, rows].transpose(0, 1) for x in qkv_1HSD)  # windows, H, length, D
        done = nnf.scaled_dot_product_attention(q, k, v, scale=scaling)
        out_SHD = out_SHD.index_copy(0, rows.flatten(), done.transpose(1, 2).flatten(0, 1))
    return out_SHD[None]


AttentionInterface.register(VARLEN, windowed_attention)


def _as_product(embed: Any, patches: torch.Tensor) -> torch.Tensor:
    """The patch embedding as a matrix product, since its stride is its kernel; Conv3d is slow in bf16."""
    weight = embed.proj.weight
    return nnf.linear(patches.to(weight.dtype).view(-1, weight[0].numel()), weight.flatten(1))


def set_fast_vision(base: Any, fast: bool) -> None:
    """Switch a Qwen2_5_VLForConditionalGeneration between the fast vision tower and the stock one."""
    tower = base.model.visual
    name = VARLEN if fast else PLAIN
    base.config.vision_config._attn_implementation = tower.config._attn_implementation = name
    if fast:
        tower.patch_embed.forward = partial(_as_product, tower.patch_embed)
    else:
        vars(tower.patch_embed).pop("forward", None)
    for block in tower.blocks:
        _set_width(block.mlp, -(-block.mlp.intermediate_size // WIDTH) * WIDTH if fast else block.mlp.intermediate_size)


WIDTH: Final = 64
"""Rows of whole 128 bytes in half precision, on which the GPU's matrix kernels are fast; Qwen2.5-VL's have 3420."""


def _set_width(mlp: Any, width: int) -> None:
    """Widen a frozen MLP's inner layer with zeros, or cut them off again: silu(0) x 0 adds nothing to what it gives."""
    layers = (mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    if any(type(layer) is not torch.nn.Linear or layer.weight.requires_grad for layer in layers):
        return  # LoRA on it, or trained itself: its parameters stay as they are
    more = width - mlp.gate_proj.weight.shape[0]
    for layer in layers[:2]:
        layer.weight.data = nnf.pad(layer.weight.data, (0, 0, 0, more))
        if layer.bias is not None:
            layer.bias.data = nnf.pad(layer.bias.data, (0, more))
    mlp.down_proj.weight.data = nnf.pad(mlp.down_proj.weight.data, (0, more))


PROBE_GRID: Final = (1, 16, 12)
"""Two windows of 64 patches in full, and smaller ones at the borders."""


PROBE_TOLERANCE: Final = {False: 1e-4, True: 5e-2}
"""Relative norm of the difference that rounding explains: in float32, in half precision."""


def enable_fast_vision(base: Any) -> str:
    """Switch the fast vision tower on if it gives what the stock one gives, on a picture of noise.

    Returns "" where it is on, else why it is not; the model is then left as it was.
    """
    try:
        difference = _probe(base)
    except (RuntimeError, NotImplementedError, ImportError, ValueError) as error:
        set_fast_vision(base, False)
        return f"it cannot run here ({first_line(error)})"
    if difference > PROBE_TOLERANCE[base.dtype in HALF]:
        set_fast_vision(base, False)
        return f"it differs from the stock one by {difference:.1e}"
    return ""


@torch.no_grad()
def _probe(base: Any) -> float:
    tower = base.model.visual
    patches = torch.randn(
        PROBE_GRID[1] * PROBE_GRID[2],
        tower.patch_embed.proj.weight[0].numel(),
        generator=torch.Generator().manual_seed(0),
    ).to(base.device, base.dtype)
    grid = torch.tensor([PROBE_GRID], device=base.device)
    outputs = []
    for fast in (False, True):
        set_fast_vision(base, fast)
        outputs.append(tower(patches, grid_thw=grid).pooler_output.float())
    return float((outputs[1] - outputs[0]).norm() / outputs[0].norm())
