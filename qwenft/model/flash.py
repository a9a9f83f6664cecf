"""Branch attention on a GPU: torch's flash kernel, called once for all pieces and once for what the branches see.

Each piece to itself, causal; each picture's branches, taken together, to the picture's piece.  The softmax over both is
put together from their logsumexps, and its gradient is each call's own with the joint result, as in ring attention
(arXiv:2310.01889).  Shapes as in branches.py: T tokens, H heads, D numbers a head.
"""

from typing import Any

import torch

from qwenft.model.attention import Qkv

Both = tuple[torch.Tensor, torch.Tensor]


@torch.library.custom_op("qwenft::branch_attention", mutates_args=())
def flash_branches(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    pieces: torch.Tensor,
    prefixes: torch.Tensor,
    branches: torch.Tensor,
    sizes: torch.Tensor,
    scaling: float,
) -> Both:
    """q (T, H, D), k and v (T, fewer H, D) -> out (T, H, D) and its logsumexp (H, T), by torch's flash kernel.

    An operator of our own, so that torch.compile takes it as one and no length of a piece becomes a guard.
    """
    shared, first, longest, prefix, asked = sizes.tolist()
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    out, lse = _forward(q, k, v, (pieces, pieces), (longest, longest), True, scaling)
    if shared:
        inside = (q[first:], k[:shared], v[:shared])
        more, more_lse = _forward(*inside, (branches, prefixes), (asked, prefix), False, scaling)
        joint = torch.logaddexp(lse[:, first:], more_lse)
        own, other = ((x - joint).exp().t()[..., None] for x in (lse[:, first:], more_lse))
        out[first:] = out[first:] * own + more * other
        lse[:, first:] = joint
    return out, lse


@flash_branches.register_fake
def _flash_shapes(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *layout: torch.Tensor, scaling: float = 0.0
) -> Both:
    return torch.empty_like(q, memory_format=torch.contiguous_format), q.new_empty(
        (q.shape[1], q.shape[0]), dtype=torch.float32
    )


@torch.library.custom_op("qwenft::branch_attention_backward", mutates_args=())
def _flash_backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    pieces: torch.Tensor,
    prefixes: torch.Tensor,
    branches: torch.Tensor,
    sizes: torch.Tensor,
    scaling: float,
) -> Qkv:
    shared, first, longest, prefix, asked = sizes.tolist()
    grad, q, k, v = grad.contiguous(), q.contiguous(), k.contiguous(), v.contiguous()
    dq, dk, dv = _backward(grad, q, k, v, out, lse, (pieces, pieces), (longest, longest), True, scaling)
    if shared:
        inside = (q[first:], k[:shared], v[:shared], out[first:], lse[:, first:].contiguous())
        more = _backward(grad[first:], *inside, (branches, prefixes), (asked, prefix), False, scaling)
        dq[first:] += more[0]
        dk[:shared] += more[1]
        dv[:shared] += more[2]
    return dq, dk, dv


@_flash_backward.register_fake
def _flash_backward_shapes(grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: Any) -> Qkv:
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    return dq, dk, dv


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Both) -> None:
    *tensors, ctx.scaling = inputs
    ctx.save_for_backward(*tensors, *output)


def _gradients(ctx: Any, grad: torch.Tensor, _: Any) -> tuple[Any, ...]:
    q, k, v, pieces, prefixes, branches, sizes, out, lse = ctx.saved_tensors
    found = _flash_backward(grad, q, k, v, out, lse, pieces, prefixes, branches, sizes, ctx.scaling)
    return (*found, None, None, None, None, None)


flash_branches.register_autograd(_gradients, setup_context=_keep_for_backward)

Ends = tuple[torch.Tensor, torch.Tensor]
"""Borders of the queries' pieces and of the keys'."""


def _forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    ends: Ends,
    longest: tuple[int, int],
    causal: bool,
    scaling: float,
) -> Both:
    out, lse, *_ = torch.ops.aten._flash_attention_forward(q, k, v, *ends, *longest, 0.0, causal, False, scale=scaling)
    return out, lse


def _backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    ends: Ends,
    longest: tuple[int, int],
    causal: bool,
    scaling: float,
) -> Qkv:
    seed = torch.empty(2, dtype=torch.uint64, device=q.device)  # of a dropout that is 0
    unused = torch.empty(0, device=q.device)
    found: Qkv = torch.ops.aten._flash_attention_backward(
        grad, q, k, v, out, lse, *ends, *longest, 0.0, causal, seed, unused, scale=scaling
    )
    return found
