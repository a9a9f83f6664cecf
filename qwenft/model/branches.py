"""Many questions of a picture behind one reading of it: samples packed into one row without padding, and its attention.

Letters in shapes: T tokens of the row, D numbers a head, S pieces, G pictures with several questions.

A picture's tokens stand once, as a piece; its questions are pieces of their own that see the picture's piece and
themselves, each with positions that go on behind the picture.  A picture with one question is one piece with it.  The
row holds first the pictures' pieces that are shared, then the whole samples, then the branches, picture by picture:

    [picture a][picture b][picture c with its question][a's 1st question][a's 2nd][b's 1st] ...
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import accumulate, pairwise
from typing import Any, Final, cast

import torch
from torch.nn import functional as nnf
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_outputs import BaseModelOutputWithPooling

from qwenft.core.boxes import MERGE
from qwenft.model.attention import HALF
from qwenft.model.flash import flash_branches
from qwenft.model.inputs import IGNORED, Encoded, Picture

BRANCHES: Final = "qwenft_branches"
"""Name of the attention.  It stands in the language model's config alone.  Without a Layout it is SDPA."""


@dataclass(frozen=True)
class Layout:
    """Where the pieces of a packed row lie: borders, each starting with 0."""

    pieces: torch.Tensor
    """(S + 1,) int32: of all pieces."""
    prefixes: torch.Tensor
    """(G + 1,) int32: of the shared pictures' pieces."""
    branches: torch.Tensor
    """(G + 1,) int32: of each shared picture's branches, taken together, counted from the first branch's token."""
    sizes: torch.Tensor
    """(5,) int64, always on the CPU: number of the shared pictures' tokens, index of the first branch's token, and the
    longest piece, shared picture and picture's branches."""

    def on(self, device: torch.device) -> "Layout":
        """The same, where the row is."""
        moved = {f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self) if f.name != "sizes"}
        return Layout(**moved, sizes=self.sizes)


def pack(items: Sequence[Encoded], image_id: int, multiple: int = 1) -> tuple[dict[str, Any], list[int]]:
    """Lay samples out as one row; those of one picture, the same Picture object, share its tokens.

    multiple: of the row's length, which a piece of its own fills up: fewer lengths for torch.compile to meet.
    Returns the model's inputs but for the pictures: input_ids (1, T), position_ids (3, 1, T), attention_mask
    (a Layout), labels and shift_labels (the learned tokens in a row), logits_to_keep (the positions before them); and
    which item's picture each picture of the row is, in the order in which the row has them.
    """
    shared, whole = _by_sharing(items)
    row = _Row(image_id)
    for group in shared:
        row.add(items[group[0]], 0, items[group[0]].shared, learned=False)
    prefixes = [0, *accumulate(items[group[0]].shared for group in shared)]
    for number in whole:
        row.add(items[number], 0, len(items[number].input_ids))
    behind = sum(len(items[number].input_ids) - items[number].shared for group in shared for number in group)
    row.fill(-(len(row.input_ids) + behind) % multiple)
    first = len(row.input_ids)
    branches = [0]
    for group in shared:
        for number in group:
            row.add(items[number], items[number].shared, len(items[number].input_ids))
        branches.append(len(row.input_ids) - first)
    pieces = row.borders
    layout = Layout(
        torch.tensor(pieces, dtype=torch.int32),
        torch.tensor(prefixes, dtype=torch.int32),
        torch.tensor(branches, dtype=torch.int32),
        torch.tensor([prefixes[-1], first, _longest(pieces), _longest(prefixes), _longest(branches)]),
    )
    return row.tensors(layout), [group[0] for group in shared] + whole


def _by_sharing(items: Sequence[Encoded]) -> tuple[list[list[int]], list[int]]:
    """The items that share a picture, picture by picture, and those that have one to themselves."""
    groups: dict[int, list[int]] = {}
    for number, item in enumerate(items):
        groups.setdefault(id(item.picture), []).append(number)
    shared = [group for group in groups.values() if len(group) > 1]
    return shared, [group[0] for group in groups.values() if len(group) == 1]


def row_order(items: Sequence[Encoded]) -> list[int]:
    """The items in the order in which a packed row of them has what is learned."""
    shared, whole = _by_sharing(items)
    return [*whole, *(number for group in shared for number in group)]


def _longest(borders: list[int]) -> int:
    return max((after - before for before, after in pairwise(borders)), default=0)


class _Row:
    """A row while pieces are added to it."""

    def __init__(self, image_id: int) -> None:
        self.image_id = image_id
        self.input_ids: list[int] = []
        self.positions: list[torch.Tensor] = []
        self.keep: list[int] = []
        self.targets: list[int] = []
        self.borders = [0]

    def add(self, item: Encoded, start: int, end: int, *, learned: bool = True) -> None:
        """Append tokens start to end of an item as a piece; a token is learned from the one before it in the piece."""
        at = len(self.input_ids)
        self.input_ids += item.input_ids[start:end]
        self.positions.append(mrope_positions(item, self.image_id)[:, start:end])
        for index in range(start + 1, end) if learned else ():
            if item.labels[index] != IGNORED:
                self.keep.append(at + index - start - 1)
                self.targets.append(item.labels[index])
        self.borders.append(len(self.input_ids))

    def fill(self, count: int) -> None:
        """Append so many tokens, of which nothing is learned, as a piece."""
        if count:
            self.input_ids += [0] * count
            self.positions.append(torch.arange(count).expand(3, -1))
            self.borders.append(len(self.input_ids))

    def tensors(self, layout: Layout) -> dict[str, Any]:
        targets = torch.tensor(self.targets, dtype=torch.long)
        return {
            "input_ids": torch.tensor([self.input_ids]),
            "position_ids": torch.cat(self.positions, dim=1)[:, None],
            "attention_mask": layout,
            "labels": targets,
            "shift_labels": targets,
            "logits_to_keep": torch.tensor(self.keep, dtype=torch.long),
        }


def mrope_positions(item: Encoded, image_id: int) -> torch.Tensor:
    """(3, L): time, row and column of each token, as Qwen2_5_VLModel.get_rope_index counts them for one picture."""
    before = item.input_ids.index(image_id)
    rows, columns = (int(side) // MERGE for side in item.picture.grid_thw[1:])
    row = torch.arange(rows).repeat_interleave(columns)
    column = torch.arange(columns).repeat(rows)
    picture = torch.stack([torch.zeros_like(row), row, column]) + before
    behind = len(item.input_ids) - before - rows * columns
    text = torch.arange(before).expand(3, -1), (torch.arange(behind) + before + max(rows, columns)).expand(3, -1)
    return torch.cat([text[0], picture, text[1]], dim=1)


def branch_attention(
    module: Any,
    q_BHTD: torch.Tensor,
    k_BHTD: torch.Tensor,
    v_BHTD: torch.Tensor,
    attention_mask: "Layout | torch.Tensor | None",
    *,
    scaling: float,
    **more: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention of a packed row where attention_mask is a Layout; everywhere else the library's SDPA.

    Fewer heads of keys than of queries are shared in groups.  Returns (1, T, H, D), as the interface wants it.
    """
    if not isinstance(attention_mask, Layout):
        return sdpa_attention_forward(module, q_BHTD, k_BHTD, v_BHTD, attention_mask, scaling=scaling, **more)
    q, k, v = (x[0].transpose(0, 1) for x in (q_BHTD, k_BHTD, v_BHTD))
    layout = attention_mask
    if q.is_cuda and q.dtype in HALF:
        out, _ = flash_branches(q, k, v, layout.pieces, layout.prefixes, layout.branches, layout.sizes, scaling)
    else:
        out = _by_picture(q, k, v, layout, scaling)
    return out[None], None


AttentionInterface.register(BRANCHES, branch_attention)
AttentionMaskInterface.register(BRANCHES, sdpa_mask)


def _by_picture(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: Layout, scaling: float) -> torch.Tensor:
    """The same without the kernel: one SDPA call for each piece that is no branch, one for a picture's branches."""
    pieces, prefixes, branches = (x.tolist() for x in (layout.pieces, layout.prefixes, layout.branches))
    first = int(layout.sizes[1])
    done = [_sdpa(q[a:b], k[a:b], v[a:b], None, scaling) for a, b in pairwise(pieces) if b <= first]
    owner = torch.bucketize(torch.arange(len(q), device=q.device), layout.pieces[1:], right=True)
    for number in range(len(prefixes) - 1):
        keys = slice(prefixes[number], prefixes[number + 1])
        own = slice(first + branches[number], first + branches[number + 1])
        same = owner[own, None] == owner[None, own]
        sees_picture = same.new_ones(len(same), keys.stop - keys.start)
        mask = torch.cat([sees_picture, same.tril()], dim=1)
        seen_k, seen_v = (torch.cat([x[keys], x[own]]) for x in (k, v))
        done.append(_sdpa(q[own], seen_k, seen_v, mask, scaling))
    return torch.cat(done)


def _sdpa(
    q_THD: torch.Tensor, k_THD: torch.Tensor, v_THD: torch.Tensor, mask: torch.Tensor | None, scaling: float
) -> torch.Tensor:
    q, k, v = (x.transpose(0, 1)[None] for x in (q_THD, k_THD, v_THD))
    out = nnf.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
    )
    return out[0].transpose(0, 1)


def with_pictures(
    packed: dict[str, Any], pictures: Sequence[Picture], features: Sequence[torch.Tensor] | None
) -> dict[str, Any]:
    """A packed row as the model takes it.  features: of its pictures where they are known; else pixels go with it."""
    shown: dict[str, Any]
    if features is not None:
        known: Any = BaseModelOutputWithPooling(pooler_output=cast(Any, list(features)))
        shown = {"mm_encoder_outputs": {"image": known}}
    else:
        shown = {
            "pixel_values": torch.cat([picture.pixel_values_PD for picture in pictures]),
            "image_grid_thw": torch.stack([picture.grid_thw for picture in pictures]),
        }
    return {**packed, **shown, "attention_mask": {"full_attention": packed["attention_mask"]}, "use_cache": False}


def on_device(inputs: Any, device: torch.device) -> Any:
    """The model's inputs where the model is."""
    if isinstance(inputs, torch.Tensor):
        return inputs.to(device, non_blocking=True)
    if isinstance(inputs, Layout):
        return inputs.on(device)
    if type(inputs) is dict:
        return {key: on_device(value, device) for key, value in inputs.items()}
    return inputs
