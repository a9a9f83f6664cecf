"""The fast vision tower is the same computation: losses and adapter gradients equal the plain path's in float32."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from qwenft.core.samples import Sample, SceneObject
from qwenft.model import attention
from qwenft.model.attention import enable_fast_vision, set_fast_vision
from qwenft.model.inputs import Encoder, collate
from qwenft.model.load import add_lora, base_contract, load_base, load_processor

SIDES = st.integers(30, 420)
QUERIES = st.sampled_from(["the red star", "x", "the small blue circle to the left of the green square above the ring"])


@pytest.fixture(scope="module")
def tuned() -> tuple[Any, Encoder]:
    """A LoRA on language and vision whose second matrices are not zero, and an encoder with room for many windows."""
    torch.manual_seed(0)
    model = add_lora(load_base("tiny", torch.float32, "cpu"), ("language", "vision"), 4, 8, 0.0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, 0, 0.02)
    return model, Encoder(load_processor("tiny"), base_contract("tiny").with_budget(784, 160_000))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pictures")


def batch_of(encoder: Encoder, folder: Path, drawn: list[tuple[int, int, str, int]]) -> dict[str, torch.Tensor]:
    """Pictures of the sizes drawn, each with a question and so many true boxes."""
    items = []
    for width, height, query, boxes in drawn:
        path = folder / f"{width}x{height}.png"
        if not path.exists():
            noise = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8)
            Image.fromarray(noise.numpy()).save(path)
        objects = tuple(SceneObject((3.0 * i, 2.0, 20.0 + i, 25.0), f"thing {i}") for i in range(boxes))
        sample = Sample(f"{width}", "grounding", path.name, width, height, query=query, objects=objects)
        items.append(encoder.sample(sample, folder))
    return collate(items, encoder.processor.tokenizer.pad_token_id, 12)


def loss_and_gradients(model: Any, batch: dict[str, torch.Tensor]) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(**batch, num_items_in_batch=torch.tensor(int((batch["labels"] != -100).sum()))).loss
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest relative difference of any adapter matrix' gradient."""
    assert one.keys() == other.keys()
    return max(float((one[n] - other[n]).norm() / other[n].norm().clamp(min=1e-6)) for n in other)


def fast_against_plain(model: Any, batch: dict[str, torch.Tensor]) -> tuple[float, float]:
    set_fast_vision(model.get_base_model(), False)
    plain_loss, plain = loss_and_gradients(model, batch)
    set_fast_vision(model.get_base_model(), True)
    try:
        loss, gradients = loss_and_gradients(model, batch)
    finally:
        set_fast_vision(model.get_base_model(), False)
    assert len(plain) == 2 * (6 * 7 + 4 * 5)
    return abs(loss - plain_loss) / plain_loss, distance(gradients, plain)


@settings(max_examples=12)
@given(st.lists(st.tuples(SIDES, SIDES, QUERIES, st.integers(0, 4)), min_size=1, max_size=4))
def test_the_fast_tower_has_the_loss_and_the_gradients_of_the_plain_one(
    tuned: tuple[Any, Encoder], folder: Path, drawn: list[tuple[int, int, str, int]]
) -> None:
    model, encoder = tuned
    loss, gradients = fast_against_plain(model, batch_of(encoder, folder, drawn))
    assert loss < 1e-5
    assert gradients < 1e-4


def _neighbours_seen(borders: torch.Tensor) -> torch.Tensor:
    return torch.stack([borders[0], borders[-1]])


def _off_by_one(borders: torch.Tensor) -> torch.Tensor:
    moved = borders.clone()
    moved[1:-1] += 1
    return moved


@pytest.mark.parametrize("broken", [_neighbours_seen, _off_by_one], ids=["windows-that-see-all", "borders-off-by-one"])
def test_a_broken_window_is_noticed(
    tuned: tuple[Any, Encoder], folder: Path, monkeypatch: pytest.MonkeyPatch, broken: Callable
) -> None:
    model, encoder = tuned
    batch = batch_of(encoder, folder, [(300, 260, "x", 1), (200, 400, "x", 1)])
    right = attention._by_length
    monkeypatch.setattr(attention, "_by_length", lambda qkv, scaling, borders: right(qkv, scaling, broken(borders)))
    loss, gradients = fast_against_plain(model, batch)
    assert loss > 1e-5
    assert gradients > 1e-4


def test_switching_back_restores_the_stock_tower(tuned: tuple[Any, Encoder]) -> None:
    base = tuned[0].get_base_model()
    set_fast_vision(base, True)
    assert base.model.visual.config._attn_implementation == attention.VARLEN
    assert base.model.language_model.config._attn_implementation == "sdpa"
    set_fast_vision(base, False)
    assert base.model.visual.config._attn_implementation == "sdpa"
    assert "forward" not in vars(base.model.visual.patch_embed)


def test_a_probe_that_fails_leaves_the_stock_tower_and_says_why(
    tuned: tuple[Any, Encoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tuned[0].get_base_model()
    assert enable_fast_vision(base) == ""
    assert base.model.visual.config._attn_implementation == attention.VARLEN
    right = attention._by_length
    monkeypatch.setattr(
        attention, "_by_length", lambda qkv, scaling, borders: right(qkv, scaling, _off_by_one(borders))
    )
    assert "differs" in enable_fast_vision(base)
    assert base.model.visual.config._attn_implementation == "sdpa"

    def missing(*_: Any) -> torch.Tensor:
        raise NotImplementedError("no kernel for this device")

    monkeypatch.setattr(attention, "_by_length", missing)
    assert "no kernel for this device" in enable_fast_vision(base)
    assert base.model.visual.config._attn_implementation == "sdpa"


def test_a_frozen_mlp_is_as_wide_as_the_kernels_like_and_gives_the_same() -> None:
    base = load_base("tiny", torch.float32, "cpu").requires_grad_(False)
    mlp = base.model.visual.blocks[0].mlp
    before = {name: tensor.clone() for name, tensor in mlp.state_dict().items()}
    width = before["up_proj.weight"].shape[0]
    seen = torch.randn(5, before["up_proj.weight"].shape[1])
    plain = mlp(seen)
    attention._set_width(mlp, width + 36)
    assert [layer.weight.shape[0] for layer in (mlp.gate_proj, mlp.up_proj)] == [width + 36] * 2
    assert torch.equal(mlp.down_proj.weight[:, width:], torch.zeros(len(mlp.down_proj.weight), 36))
    torch.testing.assert_close(mlp(seen), plain)
    attention._set_width(mlp, width)
    assert all(torch.equal(tensor, before[name]) for name, tensor in mlp.state_dict().items())


def test_an_mlp_with_lora_keeps_its_width(tuned: tuple[Any, Encoder]) -> None:
    mlp = tuned[0].get_base_model().model.visual.blocks[0].mlp
    width = mlp.gate_proj.weight.shape[0]
    attention._set_width(mlp, width + 36)
    assert mlp.gate_proj.weight.shape[0] == width
