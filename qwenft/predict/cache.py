"""The answers' own key/value cache: a row a question, written in place, with grouped queries folded.

Letters in shapes: N layers, B rows of the cache, R rows of a pass, H query heads, K key heads, G = H / K query heads
that share a key head, L places of a row, S tokens of a pass, D numbers a head.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch.nn import functional as nnf
from transformers import AttentionInterface

ATTENTION: Final = "qwenft_rows"
"""The name under which the language model finds `row_attention` for as long as it answers."""


def row_attention(
    module: Any,
    q_RHSD: torch.Tensor,
    k_RKLD: torch.Tensor,
    v_RKLD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    **unused: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of a pass; the mask is `visible_mask`'s, or None where each token sees itself and those before it.

    The G query heads of a key head become rows of one product: keys and values are read once, not G times.
    Returns (R, S, H, D), as the interface wants it.
    """
    R, H, S, D = q_RHSD.shape
    if attention_mask is None:
        causal = nnf.scaled_dot_product_attention(
            q_RHSD, k_RKLD, v_RKLD, is_causal=True, scale=scaling, enable_gqa=True
        )
        return causal.transpose(1, 2).contiguous(), None
    K = k_RKLD.shape[1]
    folded = q_RHSD.reshape(R, K, H // K * S, D)
    out = nnf.scaled_dot_product_attention(folded, k_RKLD, v_RKLD, attn_mask=attention_mask, scale=scaling)
    return out.reshape(R, K, H // K, S, D).permute(0, 3, 1, 2, 4).reshape(R, S, H, D), None


AttentionInterface.register(ATTENTION, row_attention)


def visible_mask(places_RS: torch.Tensor, length: int, groups: int, dtype: torch.dtype) -> torch.Tensor:
    """What is added to the scores: a token at place p sees places 0 to p of its own row.  (R, 1, G * S, length)."""
    R, S = places_RS.shape
    seen_RSL = torch.arange(length, device=places_RS.device) <= places_RS[..., None]
    zero = torch.zeros((), dtype=dtype, device=places_RS.device)
    added_RSL = torch.where(seen_RSL, zero, float("-inf"))
    return added_RSL[:, None].expand(R, groups, S, length).reshape(R, 1, groups * S, length)


@dataclass
class Prefixes:
    """Keys and values of some pictures' prompts, as `Qwen2_5_VLTextModel` hands them over in its `cache`."""

    layers: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    """A layer each: keys and values, (pictures, K, L, D)."""

    def update(self, k: torch.Tensor, v: torch.Tensor, layer: int, **unused: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep a layer's keys and values."""
        self.layers.append((k, v))
        return k, v


class RowCache:
    """Keys and values of all rows, at addresses that do not move while the length stays."""

    def __init__(self, base: Any, rows: int, length: int) -> None:
        text = base.config.text_config
        heads, head_size = text.num_key_value_heads, text.hidden_size // text.num_attention_heads
        # Zeros, not whatever lies there: a place that is masked still takes part as 0 * value, and 0 * NaN is NaN.
        self.data_N2BKLD = torch.zeros(
            (text.num_hidden_layers, 2, rows, heads, length, head_size), dtype=_dtype(base), device=base.device
        )
        self._at: tuple[Any, torch.Tensor, int] = (slice(0, rows), torch.zeros(1, 1), length)

    @property
    def length(self) -> int:
        """Places of a row; the last one is scratch, for tokens that nobody asked for."""
        return self.data_N2BKLD.shape[4]

    def grow(self, length: int) -> None:
        """Give every row so many places; what stands there stays, at another address."""
        N, two, B, K, L, D = self.data_N2BKLD.shape
        longer = self.data_N2BKLD.new_zeros((N, two, B, K, length, D))
        longer[..., :L, :] = self.data_N2BKLD
        self.data_N2BKLD = longer

    def place(self, prefixes: Prefixes, numbers: Sequence[int], rows: Sequence[int]) -> None:
        """Copy picture numbers[i]'s keys and values to the front of rows[i]; what stood in the row is gone."""
        device = self.data_N2BKLD.device
        to, which = torch.tensor(rows, device=device), torch.tensor(numbers, device=device)
        for layer, kept in enumerate(prefixes.layers):
            for part, values in enumerate(kept):
                length = values.shape[2]
                self.data_N2BKLD[layer, part, to, :, :length] = values[which]
                self.data_N2BKLD[layer, part, to, :, length:] = 0

    def at(self, rows: slice | torch.Tensor, places_RS: torch.Tensor, length: int) -> None:
        """Say where the next pass writes, and how many places it may see."""
        self._at = (rows, places_RS, length)

    def update(self, k: torch.Tensor, v: torch.Tensor, layer: int, **unused: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Write a layer's new keys and values, (R, K, S, D); returns all that the rows hold, (R, K, length, D)."""
        rows, places_RS, length = self._at
        keys, values = self.data_N2BKLD[layer, 0], self.data_N2BKLD[layer, 1]
        number = rows if isinstance(rows, torch.Tensor) else torch.arange(rows.start, rows.stop, device=k.device)
        for kept, new in ((keys, k), (values, v)):
            kept[number[:, None], :, places_RS] = new.transpose(1, 2)
        return keys[rows, :, :length], values[rows, :, :length]


def bytes_per_place(base: Any) -> int:
    """How much memory one token of one row takes in a RowCache."""
    text = base.config.text_config
    numbers = text.num_hidden_layers * 2 * text.num_key_value_heads * (text.hidden_size // text.num_attention_heads)
    return int(numbers * _dtype(base).itemsize)


def _dtype(base: Any) -> torch.dtype:
    """The language model's number format: the vision tower's may be another one while weights are trained."""
    dtype: torch.dtype = base.model.language_model.embed_tokens.weight.dtype
    return dtype
