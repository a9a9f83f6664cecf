"""Whether the fast way to answer gives what the plain one gives, and whether an adapter does anything: asked once."""

from typing import Any, Final

import torch

from qwenft.core.boxes import MERGE, PATCH
from qwenft.core.errors import first_line
from qwenft.model.attention import HALF, PLAIN
from qwenft.model.inputs import Picture
from qwenft.model.load import base_of
from qwenft.predict.engine import Engine, Prefix
from qwenft.predict.modes import answering
from qwenft.predict.schedule import Form, Schedule, Shown, Turn

GRIDS: Final = ((4, 6), (8, 4))
"""Patches of the two pictures: rows, columns."""
QUESTIONS: Final = ((5, 9), (12, 7))
"""Tokens of each question behind each picture."""
ROWS: Final = 3
"""Of the engine that is probed: the last question waits for a row to be free."""
TOKENS: Final = 6
"""Length of each answer."""
TOLERANCE: Final = {False: 1e-3, True: 0.25}
"""Difference in log probability that rounding explains: in float32, in half precision."""


def objection(base: Any, engine: Engine) -> str:
    """What speaks against the fast way with this model, or "" where nothing does."""
    if any(hasattr(parameter, "ds_id") or hasattr(parameter, "device_mesh") for parameter in base.parameters()):
        return "needs whole weights, and they are divided among processes"
    try:
        found = difference(base, engine)
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError, ImportError) as error:
        return f"cannot run here ({first_line(error)})"
    half = any(parameter.dtype in HALF for parameter in base.parameters())
    return "" if found <= TOLERANCE[half] else f"differs from it by {found:.1e} in log probability"


def difference(base: Any, engine: Engine) -> float:
    """The largest difference in log probability of any token that the fast way chooses, on pictures and texts of noise.

    The plain way reads each prompt with its answer in one pass, without any cache.  engine: made for `base`.
    """
    shown = _shown(base)
    schedule = Schedule(engine, frozenset())
    answers = {answer.key: answer for finished in schedule.run(iter(shown)) for answer in finished}
    asked = [(picture.prefix, turn) for picture in shown for turn in picture.turns]
    worst = 0.0
    for prefix, turn in asked:
        answer = answers[turn.key]
        # An image token among them, from a model that does not know better, would want a second picture.
        said = answer.tokens[: ([*answer.tokens, base.config.image_token_id]).index(base.config.image_token_id) + 1]
        log_p = plain_logits(base, prefix, [*turn.tokens, *said[:-1]])[-len(said) :].log_softmax(-1)
        plain = log_p.gather(-1, torch.tensor(said, device=log_p.device)[:, None])[:, 0].double().cpu()
        fast = torch.tensor(answer.probabilities[: len(said)], dtype=torch.float64).log()
        worst = max(worst, float((plain - fast).abs().nan_to_num(nan=float("inf")).max()))
    return worst


def plain_logits(base: Any, prefix: Prefix, tokens: list[int]) -> torch.Tensor:
    """The model's own forward pass over a picture's prompt and what follows, (tokens in all, vocabulary), float32."""
    ids = torch.tensor([[*prefix.tokens, *tokens]], device=base.device)
    with answering(base, PLAIN):
        logits: torch.Tensor = base(
            input_ids=ids,
            mm_token_type_ids=(ids == base.config.image_token_id).int(),
            pixel_values=prefix.picture.pixel_values_PD.to(base.device),
            image_grid_thw=prefix.picture.grid_thw[None].to(base.device),
            use_cache=False,
        ).logits
    return logits[0].float()


def is_idle(model: Any) -> bool:
    """Whether a model answers the same with its adapter and without: zero weights, or an adapter that is not active.

    model: what `load_adapter` gives, with `disable_adapter()`.  (huggingface/peft and colpali #424: no one says so.)
    """
    base = base_of(model)
    shown = _shown(base)[0]
    with_it = plain_logits(base, shown.prefix, list(shown.turns[0].tokens))
    with model.disable_adapter():
        return torch.equal(with_it, plain_logits(base, shown.prefix, list(shown.turns[0].tokens)))


def _shown(base: Any) -> list[Shown]:
    draw = torch.Generator().manual_seed(0)
    image_id, patches = base.config.image_token_id, base.model.visual.patch_embed.proj.weight[0].numel()

    def words(count: int) -> tuple[int, ...]:
        drawn = torch.randint(0, base.config.text_config.vocab_size, (count,), generator=draw).tolist()
        return tuple(token if token != image_id else 0 for token in drawn)

    shown, key = [], 0
    for (rows, columns), lengths in zip(GRIDS, QUESTIONS, strict=True):
        wh = (columns * PATCH, rows * PATCH)
        pixels_PD = torch.randn(rows * columns, patches, generator=draw)
        prefix = (*words(4 + rows), *[image_id] * (rows * columns // MERGE**2))
        turns = [Turn(key + n, words(length), TOKENS, Form(words(2), words(3))) for n, length in enumerate(lengths)]
        key += len(turns)
        shown.append(Shown(Prefix(prefix, Picture(pixels_PD, torch.tensor([1, rows, columns]), wh, wh)), tuple(turns)))
    return shown
