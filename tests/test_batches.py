"""The order of samples and how they are laid out: each once an epoch, by picture, the same update for any processes."""

from collections import Counter
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from qwenft.core.samples import PreparedDataset
from qwenft.core.steps import count_updates
from qwenft.model.inputs import Encoder
from qwenft.model.load import base_contract, load_processor
from qwenft.train.batches import FILLER, Collator, PictureOrder, TrainingData, packed_parts
from qwenft.train.mixture import Mixture

PICTURES = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=40)
FEW = st.integers(1, 4)


def order(pictures: list[str], batch: int, accumulation: int, processes: int, **more: Any) -> PictureOrder:
    per_batch = more.pop("per_batch", batch * accumulation)
    return PictureOrder(pictures, 0, batch * accumulation * processes, processes, per_batch, **more)


def dealt(found: PictureOrder, processes: int) -> list[list[list[int]]]:
    """The batches of each process, as accelerate deals them out: in turn."""
    indices = list(found)
    assert len(indices) == len(found)
    batches = [indices[start : start + found.per_batch] for start in range(0, len(indices), found.per_batch)]
    return [batches[rank::processes] for rank in range(processes)]


@given(PICTURES, FEW, FEW, FEW, st.integers(0, 3), st.booleans())
def test_each_sample_once_an_epoch_and_each_update_the_same_for_any_number_of_processes(
    pictures: list[str], batch: int, accumulation: int, processes: int, epoch: int, counted_by_engine: bool
) -> None:
    per_batch = batch if counted_by_engine else batch * accumulation
    found = order(pictures, batch, accumulation, processes, epoch=epoch, per_batch=per_batch)
    ranks = dealt(found, processes)
    assert len({len(batches) for batches in ranks}) == 1
    real = [index for batches in ranks for indices in batches for index in indices if index != FILLER]
    assert sorted(real) == list(range(len(pictures)))
    updates = count_updates(len(pictures), batch, num_gpus=processes, accum=accumulation)
    in_an_update = accumulation if counted_by_engine else 1
    assert -(-len(ranks[0]) // in_an_update) == updates.updates_per_epoch
    alone = found.samples()
    for number in range(updates.updates_per_epoch):
        taken = [
            index
            for batches in ranks
            for indices in batches[number * in_an_update : (number + 1) * in_an_update]
            for index in indices
            if index != FILLER
        ]
        assert sorted(taken) == sorted(alone[number * found.per_update : (number + 1) * found.per_update])


@given(PICTURES, st.integers(0, 5))
def test_samples_of_a_picture_stand_together_in_an_order_of_the_epoch(pictures: list[str], epoch: int) -> None:
    found = order(pictures, 2, 2, 1, epoch=epoch)
    runs = [pictures[index] for index in found.samples()]
    changes = sum(one != other for one, other in pairwise(runs))
    assert changes == len(set(pictures)) - 1
    assert found.samples() == order(pictures, 7, 3, 2, epoch=epoch).samples()


def test_every_epoch_has_another_order() -> None:
    found = order([str(number // 2) for number in range(40)], 2, 2, 1)
    orders = []
    for epoch in range(3):
        found.set_epoch(epoch)
        orders.append(tuple(found))
    assert len(set(orders)) == 3


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 30)), min_size=1, max_size=30), st.integers(20, 200)
)  # fmt: skip
def test_rows_keep_their_order_and_their_budget(drawn: list[tuple[int, int]], room: int) -> None:
    pictures = [object() for _ in range(6)]
    items: Any = [
        SimpleNamespace(picture=pictures[picture], shared=15, input_ids=[0] * (15 + own))
        for picture, own in sorted(drawn)
    ]
    parts = packed_parts(items, room)
    assert [number for part in parts for number in part] == list(range(len(items)))
    for part in parts:
        kinds = Counter(id(items[number].picture) for number in part)
        tokens = 15 * len(kinds) + sum(len(items[number].input_ids) - 15 for number in part)
        assert tokens <= room or len(part) == 1


def encoder() -> Encoder:
    return Encoder(load_processor("tiny"), base_contract("tiny"))


def test_a_picture_is_read_once_for_all_its_questions(scenes: PreparedDataset) -> None:
    data = TrainingData(Mixture.of([scenes]).samples, encoder())
    image = data.samples[0].image
    of_it = [index for index, sample in enumerate(data.samples) if sample.image == image]
    named = data.__getitems__([*of_it, FILLER])
    assert len(of_it) > 1
    assert len(named) == len(of_it)
    assert len({id(item.picture) for _, item in named}) == 1


def test_a_picture_whose_features_are_known_is_not_read(scenes: PreparedDataset) -> None:
    plain = TrainingData(Mixture.of([scenes]).samples, encoder())
    sample = plain.samples[0]
    known = TrainingData(Mixture.of([scenes]).samples, encoder(), {sample.picture})
    (_, read), (_, unread) = plain.__getitems__([0])[0], known.__getitems__([0])[0]
    assert unread.input_ids == read.input_ids
    assert torch.equal(unread.picture.grid_thw, read.picture.grid_thw)
    assert len(unread.picture.pixel_values_PD) == 0


def test_a_process_without_samples_still_has_a_batch_from_which_nothing_is_learned(scenes: PreparedDataset) -> None:
    data = TrainingData(Mixture.of([scenes]).samples, encoder())
    for room in (None, 4096):
        batch = Collator(1, 12, 2, room)(data.__getitems__([FILLER, FILLER]))
        (micro_batch,) = batch["update"].micro_batches
        assert micro_batch.names == []
        assert len(batch["shift_labels"]) == 0


def test_padded_and_packed_batches_hold_the_same_samples(scenes: PreparedDataset) -> None:
    data = TrainingData(Mixture.of([scenes]).samples, encoder())
    named = data.__getitems__(list(range(8)))
    padded, packed = (Collator(1, 12, 3, room)(named) for room in (None, 300))
    assert [len(part.names) for part in padded["update"].micro_batches] == [3, 3, 2]
    assert len(packed["update"].micro_batches) > 1
    for batch in (padded, packed):
        names = [name for part in batch["update"].micro_batches for name in part.names]
        assert names == [sample.id for sample, _ in named]
        assert sum(part.tokens for part in batch["update"].micro_batches) == sum(len(i.input_ids) for _, i in named)
        for part in batch["update"].micro_batches:
            shown = part.shown(batch["update"], None)
            assert int(shown["image_grid_thw"].prod(-1).sum()) == len(shown["pixel_values"])
    assert torch.equal(padded["shift_labels"], packed["shift_labels"])
