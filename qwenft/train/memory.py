"""What a device's memory has to hold: an estimate by part, and how many tokens of a packed row fit."""

from typing import Any, Final

from qwenft.core.config import TrainConfig

TEXT_TOKENS: Final = 110
"""Assumed for system text, question and answer of one sample: the Qwen team's prompt takes about 50, a box about 40."""
OWN_TOKENS: Final = 95
"""Of them those that a question of a picture does not share with the picture's others."""
ANSWER_TOKENS: Final = 45
"""Assumed for the answer of one sample with one box: where the fast step computes logits."""
GIB: Final = 1024**3
ALLOCATOR_SHARE: Final = 0.08
"""What the allocator and the kernels' own buffers add: measured on the 3B shape (benchmarks/README.md)."""
ROOM: Final = 0.85
"""Share of a GPU's memory that packed rows may fill by the estimate, which is within 15 % (benchmarks/README.md)."""
NF4_BYTES: Final = 0.516
"""A weight of 4 bits with its scales: 8 bits for 64 weights, 32 for 256 of those (QLoRA, arXiv:2305.14314)."""
CPU_TOKENS: Final = 4096
"""Of a packed row on the CPU, where a longer one is no faster."""


def is_compiled(config: TrainConfig, kind: str) -> bool:
    """Whether a run compiles its layers."""
    return config.compile and kind == "cuda"


def is_wide(config: TrainConfig, kind: str) -> bool:
    """Whether the weights are float32."""
    return config.dtype == "float32" or (config.dtype == "auto" and kind == "cpu")


def kept_numbers(config: TrainConfig, text: Any, *, compiled: bool) -> float:
    """How many numbers of a token a layer keeps for its backward pass.

    Padded rows, by counting: inputs of norms, q, k, v, attention's output, gate, up and their product.  The fast step,
    measured on the 3B shape (benchmarks/README.md): its layers keep less, compiled ones least; dropout keeps each LoRA
    layer's input anew, with a mask.
    """
    wide, inner = float(text.hidden_size), float(text.intermediate_size)
    if not config.fast:
        return 10 * wide + 4 * inner
    kept = 3.2 * wide + 3 * inner if compiled else 4.3 * wide + 4 * inner
    return kept + (5.5 * wide + 0.45 * inner if config.dropout and config.method == "lora" else 0)


def token_bytes(config: TrainConfig, text: Any, kind: str, *, compiled: bool) -> float:
    """Memory that the backward pass needs for each token of a micro-batch, in bytes, logits not counted."""
    size = 4 if is_wide(config, kind) else 2
    a_layer = size * kept_numbers(config, text, compiled=compiled)
    layers = int(text.num_hidden_layers)
    return a_layer + size * float(text.hidden_size) * layers if config.checkpointing else a_layer * layers


def weight_bytes(config: TrainConfig, model_config: Any, scope: dict[str, Any], size: int) -> float:
    """Of what does not learn.  With method=full what learns is float32 and counted with its optimizer."""
    frozen = scope["total"] - (scope["trainable"] if config.method == "full" else 0)
    if config.quantize is None:
        return float(frozen * size)
    text = model_config.text_config
    wide, inner = text.hidden_size, text.intermediate_size
    keys = wide // text.num_attention_heads * text.num_key_value_heads
    in_four_bits = text.num_hidden_layers * (2 * wide * wide + 2 * wide * keys + 3 * wide * inner)
    return float((frozen - in_four_bits) * size + in_four_bits * NF4_BYTES)


def packed_tokens(
    config: TrainConfig,
    model_config: Any,
    scope: dict[str, Any],
    image_tokens: int,
    total: int | None,
    *,
    compiled: bool,
) -> int:
    """The most tokens that a packed row may have.

    image_tokens: of the largest picture.  total: the GPU's memory in bytes; None: on the CPU.
    """
    longest = image_tokens + TEXT_TOKENS
    if total is None:
        return max(CPU_TOKENS, longest)
    text = model_config.text_config
    size = 4 if config.dtype == "float32" else 2
    fixed = weight_bytes(config, model_config, scope, size) + scope["trainable"] * 16
    logits = ANSWER_TOKENS / longest * text.vocab_size * (8 + size)
    a_token = token_bytes(config, text, "cuda", compiled=compiled) + logits
    return max(longest, int((ROOM * total / (1 + ALLOCATOR_SHARE) - fixed) / a_token))


def micro_batch(config: TrainConfig, room: int | None, image_tokens: int, questions: float) -> dict[str, int]:
    """The largest micro-batch to be expected: its `tokens`, `samples` and `image_tokens`.

    room: tokens of a packed row; None: rows are padded.  image_tokens: of the largest picture.  questions: a picture
    has, on average.
    """
    if room is None:
        shown = config.batch_size * image_tokens
        return {"tokens": shown + config.batch_size * TEXT_TOKENS, "samples": config.batch_size, "image_tokens": shown}
    update = config.batch_size * (config.accumulation if config.engine != "deepspeed" else 1)
    a_picture = image_tokens + TEXT_TOKENS - OWN_TOKENS
    a_sample = OWN_TOKENS + a_picture / questions
    samples = max(1, min(update, int(room / a_sample)))
    pictures = min(samples, -(-samples // max(1, int(questions))) + (questions > 1))
    tokens = min(max(room, a_picture + OWN_TOKENS), samples * OWN_TOKENS + pictures * a_picture)
    return {"tokens": tokens, "samples": samples, "image_tokens": pictures * image_tokens}


def memory_estimate(
    config: TrainConfig, model_config: Any, scope: dict[str, Any], row: dict[str, int], kind: str, *, compiled: bool
) -> dict[str, Any]:
    """Peak memory of one device in GiB, by part; `assumes` names what it rests on.

    row: as micro_batch gives it.
    """
    wide = is_wide(config, kind)
    size = 4 if wide else 2
    text, vision = model_config.text_config, model_config.vision_config
    kept = row["tokens"] * token_bytes(config, text, kind, compiled=compiled)
    learned = row["samples"] * ANSWER_TOKENS if config.fast else row["tokens"]
    logits = learned * text.vocab_size * (4 + 4 + size)
    tower = row["image_tokens"] * 4 * size * (10 * vision.hidden_size + 4 * vision.intermediate_size)
    if {"vision", "merger"} & set(config.parts):
        tower *= vision.depth if "vision" in config.parts and not config.checkpointing else 1
    elif config.fast:
        tower = 0  # it is done with the pictures before the language model begins
    parts = {
        "weights": weight_bytes(config, model_config, scope, size) / GIB,
        "adapter, gradients, optimizer": scope["trainable"] * 16 / GIB,
        "activations": (kept + tower) / GIB,
        "logits": logits / GIB,
    }
    parts["allocator"] = ALLOCATOR_SHARE * sum(parts.values())
    return {
        **{name: round(value, 3) for name, value in parts.items()},
        "total": round(sum(parts.values()), 2),
        "assumes": f"{'float32' if wide else 'bfloat16'} weights, float32 adapter with AdamW, "
        f"{row['samples']} samples in {row['tokens']} tokens at a time, "
        f"checkpointing {'on' if config.checkpointing else 'off'}",
    }
