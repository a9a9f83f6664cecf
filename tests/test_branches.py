"""Packed rows compute what padded ones do: loss, gradients, positions; and each piece, broken, is noticed."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_attention import distance, loss_and_gradients

from qwenft.core.samples import Sample, SceneObject
from qwenft.model import attention, branches, fast
from qwenft.model.attention import PLAIN
from qwenft.model.branches import BRANCHES, Layout, mrope_positions, on_device, pack, with_pictures
from qwenft.model.fast import compile_layers, eager_layers, enable_fast_step, set_fast_step
from qwenft.model.features import PictureFeatures
from qwenft.model.inputs import Encoded, Encoder, collate
from qwenft.model.load import add_lora, base_contract, load_base, load_processor
from qwenft.model.lora import FastLinear

QUERIES = ("the red star", "x", "the small blue circle to the left of the green square above the ring", "a ring")
SIDES = st.integers(56, 300)
PICTURES = st.lists(
    st.tuples(SIDES, SIDES, st.lists(st.integers(0, 3), min_size=1, max_size=4)), min_size=1, max_size=4
)
"""Width, height, and for each question its number of boxes; none: the true answer is that it is absent."""


def tuned(parts: tuple[str, ...]) -> Any:
    torch.manual_seed(0)
    model = add_lora(load_base("tiny", torch.float32, "cpu"), parts, 4, 8, 0.0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, 0, 0.02)
    return model


@pytest.fixture(scope="module")
def model() -> Any:
    return tuned(("language",))


@pytest.fixture(autouse=True)
def plain_again(model: Any) -> Iterator[None]:
    yield
    set_fast_step(model, False)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(load_processor("tiny"), base_contract("tiny").with_budget(784, 60_000))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pictures")


def items_of(encoder: Encoder, folder: Path, drawn: list[tuple[int, int, list[int]]]) -> list[Encoded]:
    items = []
    for number, (width, height, questions) in enumerate(drawn):
        draw = torch.Generator().manual_seed(number)
        noise = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=draw)
        picture = encoder.picture(Image.fromarray(noise.numpy()))
        for query, boxes in zip(QUERIES, questions, strict=False):
            objects = tuple(SceneObject((3.0 * i, 2.0, 20.0 + i, 25.0), f"thing {i}") for i in range(boxes))
            sample = Sample("s", "grounding", "s.png", width, height, query=query, objects=objects)
            items.append(encoder.sample(sample, folder, picture))
    return items


def padded(items: list[Encoded]) -> dict[str, Any]:
    return collate(items, 1, 12)


def packed(items: list[Encoded], features: PictureFeatures | None = None) -> dict[str, Any]:
    row, owners = pack(items, 12)
    pictures = [items[owner].picture for owner in owners]
    known = features(pictures, [str(number) for number in range(len(pictures))]) if features else None
    return with_pictures(row, pictures, known)


def fast_against_plain(model: Any, items: list[Encoded], features: bool = True) -> tuple[float, float]:
    """Relative differences of loss and gradients."""
    set_fast_step(model, False)
    plain_loss, plain = loss_and_gradients(model, padded(items))
    set_fast_step(model, True)
    row = packed(items, PictureFeatures(model.get_base_model(), 0) if features else None)
    loss, gradients = loss_and_gradients(model, row)
    set_fast_step(model, False)
    return abs(loss - plain_loss) / plain_loss, distance(gradients, plain)


@settings(max_examples=15)
@given(PICTURES)
def test_a_packed_row_has_the_loss_and_the_gradients_of_padded_ones(
    model: Any, encoder: Encoder, folder: Path, drawn: list[tuple[int, int, list[int]]]
) -> None:
    loss, gradients = fast_against_plain(model, items_of(encoder, folder, drawn))
    assert loss < 1e-5
    assert gradients < 1e-4


def test_with_the_vision_tower_trained_too(encoder: Encoder, folder: Path) -> None:
    items = items_of(encoder, folder, [(120, 90, [1, 0, 2]), (200, 150, [1]), (90, 260, [3, 1])])
    loss, gradients = fast_against_plain(tuned(("language", "merger", "vision")), items, features=False)
    assert loss < 1e-5
    assert gradients < 1e-4


def test_samples_of_a_picture_that_is_divided_add_up(model: Any, encoder: Encoder, folder: Path) -> None:
    items = items_of(encoder, folder, [(120, 90, [1, 0, 2, 1]), (200, 150, [1, 1])])
    learned = sum(label != -100 for item in items for label in item.labels)
    set_fast_step(model, True)
    results = []
    for parts in ([items], [items[:2], items[2:5], items[5:]]):
        model.zero_grad()
        losses = [model(**packed(part), num_items_in_batch=torch.tensor(learned)).loss for part in parts]
        sum(losses).backward()
        results.append(
            (float(sum(losses).detach()), {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad})
        )
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    assert distance(results[1][1], results[0][1]) < 1e-4


def _positions_off_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    right = branches.mrope_positions
    monkeypatch.setattr(branches, "mrope_positions", lambda item, image_id: right(item, image_id) + torch.arange(
        len(item.input_ids)).ge(item.shared).long())  # fmt: skip


def _targets_off_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    right = branches._Row.tensors
    monkeypatch.setattr(branches._Row, "tensors", lambda self, layout: {
        **(made := right(self, layout)), "logits_to_keep": made["logits_to_keep"] - 1})  # fmt: skip


def _broken_layout(change: Callable[[Layout], Layout]) -> Callable[[pytest.MonkeyPatch], None]:
    def apply(monkeypatch: pytest.MonkeyPatch) -> None:
        right = branches._by_picture
        monkeypatch.setattr(branches, "_by_picture", lambda q, k, v, layout, s: right(q, k, v, change(layout), s))

    return apply


def _sees_the_branch_before(layout: Layout) -> Layout:
    return replace(layout, pieces=torch.cat([layout.pieces[:-2], layout.pieces[-1:]]))


def _sees_half_the_picture(layout: Layout) -> Layout:
    return replace(layout, prefixes=torch.tensor([0, int(layout.prefixes[-1]) // 2]))


@pytest.mark.parametrize(
    "break_it",
    [
        pytest.param(_positions_off_by_one, id="a-position-off-by-one"),
        pytest.param(_targets_off_by_one, id="a-target-off-by-one"),
        pytest.param(_broken_layout(_sees_the_branch_before), id="a-branch-that-sees-its-neighbour"),
        pytest.param(_broken_layout(_sees_half_the_picture), id="a-mask-that-hides-the-picture"),
    ],
)
def test_a_broken_piece_is_noticed(
    model: Any, encoder: Encoder, folder: Path, monkeypatch: pytest.MonkeyPatch, break_it: Callable
) -> None:
    items = items_of(encoder, folder, [(120, 90, [1, 2, 1])])
    break_it(monkeypatch)
    loss, gradients = fast_against_plain(model, items)
    assert loss > 1e-5
    assert gradients > 1e-3


@settings(max_examples=20)
@given(SIDES, SIDES, st.integers(0, 3))
def test_positions_are_those_of_the_library(
    model: Any, encoder: Encoder, folder: Path, width: int, height: int, boxes: int
) -> None:
    item = items_of(encoder, folder, [(width, height, [boxes])])[0]
    batch = padded([item])
    expected, _ = model.get_base_model().model.get_rope_index(
        batch["input_ids"], batch["mm_token_type_ids"], batch["image_grid_thw"]
    )
    assert torch.equal(mrope_positions(item, 12), expected[:, 0])


def test_a_row_holds_each_picture_once_and_each_answer_once(encoder: Encoder, folder: Path) -> None:
    items = items_of(encoder, folder, [(120, 90, [1, 0, 2]), (200, 150, [1]), (90, 260, [3, 1])])
    row, owners = pack(items, 12)
    pictures = {id(item.picture): item for item in items}.values()
    tokens = sum(item.shared for item in pictures) + sum(len(item.input_ids) - item.shared for item in items)
    assert row["input_ids"].shape == (1, tokens)
    assert sorted(id(items[owner].picture) for owner in owners) == sorted(id(item.picture) for item in pictures)
    learned = sorted(label for item in items for label in item.labels if label != -100)
    assert sorted(row["shift_labels"].tolist()) == learned
    kept = row["input_ids"][0][row["logits_to_keep"] + 1]
    assert torch.equal(kept, row["shift_labels"])  # the token behind the kept position, in its own piece
    layout = row["attention_mask"]
    shared = items[0].shared + items[4].shared
    assert layout.sizes.tolist()[:2] == [shared, shared + len(items[3].input_ids)]
    assert all(a < b for a, b in pairwise(layout.pieces.tolist()))


@settings(max_examples=8)
@given(PICTURES, st.sampled_from([2, 64, 128]))
def test_a_row_filled_up_to_a_multiple_learns_the_same(
    model: Any, encoder: Encoder, folder: Path, drawn: list[tuple[int, int, list[int]]], multiple: int
) -> None:
    items = items_of(encoder, folder, drawn)
    set_fast_step(model, True)
    results = []
    for filled in (1, multiple):
        row, owners = pack(items, 12, filled)
        assert row["input_ids"].shape[1] % filled == 0
        shown = with_pictures(row, [items[owner].picture for owner in owners], None)
        results.append(loss_and_gradients(model, shown))
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-5)
    assert distance(results[1][1], results[0][1]) < 1e-4


def test_without_a_layout_the_attention_is_the_librarys(model: Any, encoder: Encoder, folder: Path) -> None:
    batch = padded(items_of(encoder, folder, [(120, 90, [1, 2]), (60, 200, [1])]))
    with torch.no_grad():
        plain = model(**batch).logits
        set_fast_step(model, True)
        assert model.get_base_model().config.text_config._attn_implementation == BRANCHES
        torch.testing.assert_close(model(**batch).logits, plain, rtol=1e-4, atol=1e-4)
        set_fast_step(model, False)
    assert model.get_base_model().config.text_config._attn_implementation == PLAIN
    assert not any(isinstance(module, FastLinear) for module in model.modules())


def test_an_adapter_that_is_off_or_merged_goes_the_librarys_way(model: Any, encoder: Encoder, folder: Path) -> None:
    batch = packed(items_of(encoder, folder, [(120, 90, [1])]))
    set_fast_step(model, True)
    with torch.no_grad():
        on = model(**batch).logits
        with model.disable_adapter():
            off = model(**batch).logits
        model.merge_adapter()
        merged = model(**batch).logits
        model.unmerge_adapter()
    torch.testing.assert_close(merged, on, rtol=1e-3, atol=1e-3)
    assert (off - on).abs().max() > 1e-2


# The probe


def test_the_probe_switches_on_what_is_the_same(model: Any) -> None:
    assert enable_fast_step(model) == ""
    assert model.get_base_model().config.text_config._attn_implementation == BRANCHES


def test_a_probe_that_fails_leaves_the_plain_step_and_says_why(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _broken_layout(_sees_half_the_picture)(monkeypatch)
    assert "differs from the plain one by" in enable_fast_step(model)
    assert model.get_base_model().config.text_config._attn_implementation == PLAIN

    def refuse(*_: Any) -> None:
        raise NotImplementedError("no kernel for this machine\nmore")

    monkeypatch.setattr(fast, "pack", refuse)
    assert enable_fast_step(model) == "it cannot run here (no kernel for this machine)"
    assert not any(isinstance(module, FastLinear) for module in model.modules())


# Features


def test_features_are_computed_once_and_do_not_depend_on_their_neighbours(
    model: Any, encoder: Encoder, folder: Path
) -> None:
    one, other = (item.picture for item in items_of(encoder, folder, [(120, 90, [1]), (60, 200, [1])]))
    base = model.get_base_model()
    features = PictureFeatures(base, 2**20)
    together = features([one, other, one], ["a", "b", "a"])
    assert torch.equal(together[0], together[2])
    assert features.known == {"a", "b"}
    alone = PictureFeatures(base, 0)([other], ["b"])[0]
    assert torch.equal(alone, together[1])
    known = replace(one, pixel_values_PD=torch.empty(0, 0))
    assert torch.equal(features([known], ["a"])[0], together[0])


def test_features_beyond_the_budget_are_computed_again(model: Any, encoder: Encoder, folder: Path) -> None:
    one, other = (item.picture for item in items_of(encoder, folder, [(120, 90, [1]), (60, 200, [1])]))
    size = PictureFeatures(model.get_base_model(), 0)([one], ["a"])[0].numel() * 4
    features = PictureFeatures(model.get_base_model(), size)
    features([one, other], ["a", "b"])
    assert features.known == {"a"}
    assert features([other], ["b"])[0].shape[0] == other.grid_thw.prod() // 4


@pytest.fixture
def traceable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attentions that can be traced on the CPU, where the real ones are loops; on a GPU they are single operators."""
    monkeypatch.setattr(branches, "_by_picture", lambda q, k, v, layout, scaling: q * scaling)
    monkeypatch.setattr(attention, "_by_length", lambda qkv, scaling, borders: qkv[0].transpose(1, 2) * scaling)


@pytest.mark.usefixtures("traceable")
def test_layers_are_compiled_once_for_rows_of_all_lengths(encoder: Encoder, folder: Path) -> None:
    from torch._dynamo.utils import counters

    model = tuned(("language",))
    set_fast_step(model, True)
    rows = [items_of(encoder, folder, drawn) for drawn in (
        [(120, 90, [1, 0])], [(200, 150, [1]), (90, 260, [3, 1, 1])], [(60, 60, [1])],
    )]  # fmt: skip

    def losses() -> list[float]:
        found = []
        for items in rows:
            row = packed(items, PictureFeatures(model.get_base_model(), 0))
            loss = model(**row, num_items_in_batch=torch.tensor(50)).loss
            loss.backward()
            found.append(float(loss.detach()))
        return found

    plain = losses()
    torch._dynamo.reset()
    assert compile_layers(model, vision=True, backend="eager") == ""
    graphs = counters["stats"]["unique_graphs"]
    assert losses() == pytest.approx(plain, rel=1e-5)
    assert counters["stats"]["unique_graphs"] == graphs
    layer = model.get_base_model().model.language_model.layers[0]
    with eager_layers(model):
        assert "forward" not in vars(layer)
        assert losses() == pytest.approx(plain, rel=1e-5)
    assert "forward" in vars(layer)


def test_layers_that_do_not_compile_stay_as_they_are(model: Any) -> None:
    set_fast_step(model, True)

    def refuse(*_: Any) -> None:
        raise RuntimeError("no compiler here\nmore")

    torch._dynamo.reset()
    assert "no compiler here" in compile_layers(model, vision=False, backend=refuse)
    assert not any("forward" in vars(layer) for layer in model.get_base_model().model.language_model.layers)


def test_inputs_move_but_for_the_sizes_that_are_read_on_the_cpu(encoder: Encoder, folder: Path) -> None:
    row = packed(items_of(encoder, folder, [(120, 90, [1, 1])]))
    moved = on_device(row, torch.device("meta"))
    assert moved["input_ids"].is_meta
    layout = moved["attention_mask"]["full_attention"]
    assert layout.pieces.is_meta
    assert layout.sizes.device.type == "cpu"
