"""Passes of the model: a prompt once a picture, then new tokens of many rows at once, one each as a CUDA graph.

Letters in shapes: I pictures, R rows of a pass, S tokens of a pass, V vocabulary, C numbers a token (hidden size).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Final

import torch

from qwenft.model.features import vision_geometry
from qwenft.model.inputs import Picture
from qwenft.predict.cache import ATTENTION, Prefixes, RowCache, visible_mask
from qwenft.predict.merge import MergedLora
from qwenft.predict.modes import answering, fused_norms

ROUND: Final = {"cpu": 32, "cuda": 256}
"""Places are counted in steps of so many: a pass reads no more of the cache than it must, and few graphs are made."""
HEAD_ROWS: Final = 512
"""Logits are made for so many tokens at a time: a vocabulary of 151,936 in float32 is 0.6 MB a token."""
PREFIX_TOKENS: Final = {"cpu": 1024, "cuda": 8192}
"""Pictures share a pass as long as their prompts, padded to one length, take at most so many tokens."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """A picture with the prompt up to its end: what all its questions share."""

    tokens: tuple[int, ...]
    picture: Picture


@dataclass(frozen=True, slots=True)
class Work:
    """New tokens of one row, behind `place` tokens that stand there already."""

    row: int
    tokens: Sequence[int]
    place: int
    shift: int
    """Position minus place: a picture takes fewer positions than places (mRoPE)."""
    asked: int
    """What comes after each of the last so many tokens is wanted."""


Chosen = list[tuple[int, float]]
"""Behind each token that was asked about: the most probable next token, and its probability."""


class Engine:
    """A model, a cache of a fixed number of rows, and the passes over them.  Everything stands in inference mode."""

    def __init__(self, base: Any, rows: int, lora: MergedLora | None = None) -> None:
        """base: a Qwen2_5_VLForConditionalGeneration.  lora: what is merged into it for as long as a pass lasts."""
        self.base = base
        self.device = base.device
        self.rows = rows
        self.cache = RowCache(base, 0, 1)
        self._text = base.model.language_model
        self.has_lora = lora is not None
        self._lora = lora.applied if lora else nullcontext
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._state_3R = torch.zeros((3, rows), dtype=torch.long, device=base.device)
        """Input of the graphs: token, place, position."""
        self._chosen_2R = torch.zeros((2, rows), dtype=torch.float64, device=base.device)
        """Output of the graphs: chosen token, its probability."""

    @contextmanager
    def engaged(self) -> Iterator[None]:
        """Inside, the model attends through the cache; afterwards it is as it was."""
        with answering(self.base, ATTENTION), fused_norms(self.base), self._lora():
            yield

    def reserve(self, places: int) -> None:
        """Have room for sequences of so many tokens, and the scratch place behind them."""
        if places < self.cache.length:
            return
        length = _rounded(places + 1, ROUND[self.device.type])
        if self.cache.data_N2BKLD.shape[2] == self.rows:
            self.cache.grow(length)
        else:
            self.cache = RowCache(self.base, self.rows, length)
        self._graphs.clear()  # they hold the old address

    def read_pictures(self, prefixes: Sequence[Prefix]) -> tuple[Prefixes, list[int]]:
        """Vision tower and prompts of pictures, padded on the right: what comes after a token does not reach it.

        Returns their keys and values, and the position behind each.
        """
        longest = max(len(prefix.tokens) for prefix in prefixes)
        device, image_id = self.device, self.base.config.image_token_id
        ids_IS = torch.tensor([[*prefix.tokens, *[0] * (longest - len(prefix.tokens))] for prefix in prefixes])
        # Where the pictures' tokens are is found here: on a GPU the answer would have to be waited for.
        image_places = (ids_IS == image_id).flatten().nonzero()[:, 0].to(device)
        positions_3IS, behind = self._positions(prefixes, longest)
        pixels_PD = torch.cat([prefix.picture.pixel_values_PD.to(device, non_blocking=True) for prefix in prefixes])
        grids_I3 = torch.stack([prefix.picture.grid_thw for prefix in prefixes])
        geometry = vision_geometry(self.base.config.vision_config, grids_I3, device)
        features = torch.cat(self.base.model.get_image_features(pixels_PD, grids_I3, **geometry).pooler_output)
        embedded_ISC = self._text.embed_tokens(ids_IS.to(device))
        embedded_ISC.flatten(0, 1)[image_places] = features.to(embedded_ISC.dtype)
        kept = Prefixes()
        self._forward(embedded_ISC, positions_3IS.to(device), None, kept)
        return kept, behind

    def _positions(self, prefixes: Sequence[Prefix], longest: int) -> tuple[torch.Tensor, list[int]]:
        """The library's own positions of each prompt, (3, I, longest), and the next one behind it."""
        positions, behind = torch.zeros((3, len(prefixes), longest), dtype=torch.long), []
        known: dict[Any, torch.Tensor] = {}  # pictures of one size share theirs
        for number, prefix in enumerate(prefixes):
            grid = prefix.picture.grid_thw.cpu()
            key = (prefix.tokens, *grid.tolist())
            if key not in known:
                ids_1S = torch.tensor([prefix.tokens])
                kinds_1S = (ids_1S == self.base.config.image_token_id).int()
                known[key] = self.base.model.get_rope_index(ids_1S, kinds_1S, image_grid_thw=grid[None])[0][:, 0]
            positions[:, number, : len(prefix.tokens)] = known[key]
            behind.append(int(known[key].max()) + 1)
        return positions, behind

    def _forward(
        self, embedded: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None, cache: Prefixes | RowCache
    ) -> torch.Tensor:
        hidden: torch.Tensor = self._text(
            inputs_embeds=embedded,
            position_ids=positions,
            attention_mask={"full_attention": mask},
            cache=cache,
            use_cache=False,  # else a cache of the library's is wanted; this one is written through `update`
        ).last_hidden_state
        return hidden

    def _pass(
        self, rows: slice | torch.Tensor, tokens_RS: torch.Tensor, places_RS: torch.Tensor, positions_RS: torch.Tensor,
        length: int,
    ) -> torch.Tensor:  # fmt: skip
        text = self.base.config.text_config
        groups = text.num_attention_heads // text.num_key_value_heads
        self.cache.at(rows, places_RS, length)
        mask = visible_mask(places_RS, length, groups, self.cache.data_N2BKLD.dtype)
        positions_3RS = positions_RS[None].expand(3, -1, -1)
        return self._forward(self._text.embed_tokens(tokens_RS), positions_3RS, mask, self.cache)

    def _choose(self, hidden_RC: torch.Tensor) -> torch.Tensor:
        """The most probable next token and its probability, (2, R): what greedy `generate` takes."""
        logits_RV = self.base.lm_head(hidden_RC).float()
        best = logits_RV.max(dim=-1)
        probability_R = (best.values - logits_RV.logsumexp(dim=-1)).exp()
        return torch.stack([best.indices.double(), probability_R.double()])

    def advance(self, work: Sequence[Work]) -> list[Chosen]:
        """Write each row's new tokens and say what comes next; rows are padded on the right into the scratch place."""
        longest, scratch = max(len(item.tokens) for item in work), self.cache.length - 1
        table = []
        for item in work:
            fill = longest - len(item.tokens)
            places = [*range(item.place, item.place + len(item.tokens)), *[scratch] * fill]
            table.append([[*item.tokens, *[0] * fill], places, [place + item.shift for place in places]])
        wanted = [
            (number, column)
            for number, item in enumerate(work)
            for column in range(len(item.tokens) - item.asked, len(item.tokens))
        ]
        device = self.device
        tokens_RS, places_RS, positions_RS = torch.tensor(table).to(device).unbind(1)
        rows = torch.tensor([item.row for item in work], device=device)
        hidden_RSC = self._pass(rows, tokens_RS, places_RS, positions_RS, self._length(work))
        where_W2 = torch.tensor(wanted).to(device)
        picked_WC = hidden_RSC[where_W2[:, 0], where_W2[:, 1]]
        tokens, probabilities = torch.cat([self._choose(part) for part in picked_WC.split(HEAD_ROWS)], dim=1).tolist()
        chosen = iter(zip(map(int, tokens), probabilities, strict=True))
        return [[next(chosen) for _ in range(item.asked)] for item in work]

    def step(self, work: Sequence[Work]) -> list[Chosen]:
        """Advance each row by its one token.  On a GPU it is a CUDA graph over all rows; idle ones write to scratch."""
        used = self.rows if self.device.type == "cuda" else max(item.row for item in work) + 1
        scratch = self.cache.length - 1
        state = [[0] * used, [scratch] * used, [0] * used]
        for item in work:
            for line, value in zip(state, (item.tokens[0], item.place, item.place + item.shift), strict=True):
                line[item.row] = value
        self._state_3R[:, :used] = torch.tensor(state)
        length = self._length(work)
        if self.device.type == "cuda":
            if length not in self._graphs:
                self._graphs[length] = self._capture(length)
            self._graphs[length].replay()
        else:
            self._step(used, length)
        tokens, probabilities = self._chosen_2R.tolist()
        return [[(int(tokens[item.row]), probabilities[item.row])] for item in work]

    def _length(self, work: Sequence[Work]) -> int:
        end = max(item.place + len(item.tokens) for item in work)
        return min(_rounded(end, ROUND[self.device.type]), self.cache.length)

    def _step(self, used: int, length: int) -> None:
        tokens_RS, places_RS, positions_RS = self._state_3R[:, :used, None]
        hidden_RSC = self._pass(slice(0, used), tokens_RS, places_RS, positions_RS, length)
        self._chosen_2R[:, :used] = self._choose(hidden_RSC[:, 0])

    def _capture(self, length: int) -> torch.cuda.CUDAGraph:
        """The step as one graph.  It writes what the replay will write again, so that warming up changes nothing.

        Warm-up on a side stream, static inputs and outputs: https://docs.pytorch.org/docs/stable/notes/cuda.html.
        "thread_local": a loader's pinning thread may call CUDA meanwhile, and that is no part of the graph.
        """
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                self._step(self.rows, length)
        torch.cuda.current_stream().wait_stream(side)
        pool = next(iter(self._graphs.values())).pool() if self._graphs else None
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            self._step(self.rows, length)
        return graph


def _rounded(number: int, step: int) -> int:
    return -(-number // step) * step
