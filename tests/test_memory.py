"""The memory estimate: what it counts, and rows that fill what is there and no more."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenft.core.config import TrainConfig, make_config
from qwenft.model.fetch import TINY_FOLDER
from qwenft.model.load import load_config
from qwenft.train.memory import (
    GIB,
    NF4_BYTES,
    TEXT_TOKENS,
    memory_estimate,
    micro_batch,
    packed_tokens,
    weight_bytes,
)  # fmt: skip


@pytest.fixture(scope="module")
def shape() -> Any:
    """The 3B's text and vision sizes: on these the estimate was measured."""
    config = load_config(str(TINY_FOLDER))
    text, vision = config.text_config, config.vision_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = 2048, 11008, 36
    text.num_attention_heads, text.num_key_value_heads, text.vocab_size = 16, 2, 151936
    vision.hidden_size, vision.intermediate_size, vision.depth = 1280, 3420, 32
    return config


SCOPE = {"total": 3_754_622_976, "trainable": 119_734_272}


def config_of(**settings: Any) -> TrainConfig:
    return make_config({"batch_size": 8, "accumulation": 4, **settings}, "a test")


def estimate(config: TrainConfig, shape: Any, tokens: int, samples: int, *, compiled: bool = False) -> float:
    row = {"tokens": tokens, "samples": samples, "image_tokens": 8 * 391}
    return memory_estimate(config, shape, SCOPE, row, "cuda", compiled=compiled)["total"]


@pytest.mark.parametrize(
    ("settings", "compiled", "measured"),
    [
        ({"dropout": 0.05}, False, 42.05),
        ({"dropout": 0.05}, True, 36.31),
        ({"dropout": 0.0}, False, 33.2 + 1.34),  # measured with rank 16: 90 million fewer weights of 16 bytes
        ({"dropout": 0.0}, True, 27.4 + 1.34),
        ({"dropout": 0.0, "checkpointing": True}, False, 10.6 + 1.34),
    ],
    ids=["dropout", "dropout, compiled", "no dropout", "no dropout, compiled", "checkpointing"],
)
def test_the_estimate_is_within_fifteen_percent_of_what_the_step_took_on_an_h100(
    shape: Any, settings: dict[str, Any], compiled: bool, measured: float
) -> None:
    """8 pictures of 391 tokens with 4 questions each: benchmarks/train_step.py (benchmarks/README.md)."""
    found = estimate(config_of(**settings), shape, tokens=5_987, samples=32, compiled=compiled)
    assert found == pytest.approx(measured, rel=0.15)


@given(st.integers(16, 96), st.floats(0, 0.3), st.booleans(), st.integers(64, 1280))
def test_a_row_of_as_many_tokens_as_fit_is_estimated_to_fit(
    shape: Any, gib: int, dropout: float, checkpointing: bool, image_tokens: int
) -> None:
    config = config_of(dropout=dropout, checkpointing=checkpointing, batch_size=64, accumulation=64)
    tokens = packed_tokens(config, shape, SCOPE, image_tokens, gib * GIB, compiled=False)
    longest = image_tokens + TEXT_TOKENS
    assert tokens >= longest
    row = {"tokens": tokens, "samples": tokens // longest, "image_tokens": tokens // longest * image_tokens}
    if tokens > longest:
        assert memory_estimate(config, shape, SCOPE, row, "cuda", compiled=False)["total"] < gib


def test_more_memory_takes_longer_rows_and_the_cpu_one_of_its_own(shape: Any) -> None:
    config = config_of()
    rows = [packed_tokens(config, shape, SCOPE, 391, gib * GIB, compiled=False) for gib in (24, 48, 80)]
    assert rows == sorted(rows)
    assert rows[0] < rows[2]
    assert packed_tokens(config, shape, SCOPE, 391, None, compiled=False) == 4096


@pytest.mark.parametrize(
    ("settings", "room", "expected"),
    [
        ({"fast": False}, None, {"tokens": 8 * 501, "samples": 8, "image_tokens": 8 * 391}),
        ({}, 100_000, {"tokens": 32 * 95 + 9 * 406, "samples": 32, "image_tokens": 9 * 391}),
        ({"engine": "deepspeed"}, 100_000, {"tokens": 8 * 95 + 3 * 406, "samples": 8, "image_tokens": 3 * 391}),
    ],
    ids=["padded rows", "one row an update", "deepspeed counts for itself"],
)
def test_what_goes_through_at_a_time(settings: dict[str, Any], room: int | None, expected: dict[str, int]) -> None:
    assert micro_batch(config_of(**settings), room, 391, 4.0) == expected


def test_a_row_is_cut_at_its_room() -> None:
    assert micro_batch(config_of(), 2_000, 391, 4.0)["tokens"] <= 2_000
    assert micro_batch(config_of(), 100, 391, 1.0)["samples"] == 1


def test_weights_that_learn_or_take_four_bits_are_counted_as_such(shape: Any) -> None:
    whole = weight_bytes(config_of(), shape, SCOPE, 2)
    assert whole == SCOPE["total"] * 2
    assert weight_bytes(config_of(method="full"), shape, SCOPE, 2) == whole - SCOPE["trainable"] * 2
    layers = 36 * (2 * 2048**2 + 2 * 2048 * 256 + 3 * 2048 * 11008)
    four = weight_bytes(config_of(quantize="4bit"), shape, SCOPE, 2)
    assert four == pytest.approx(whole - layers * (2 - NF4_BYTES))
