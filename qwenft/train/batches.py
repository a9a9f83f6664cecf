"""What one process learns in one update: samples in the order of their pictures, laid out as micro-batches."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import torch

from qwenft.core.samples import TASKS, Sample
from qwenft.model.branches import pack, row_order, with_pictures
from qwenft.model.inputs import IGNORED, Encoded, Encoder, Picture, check_size, collate
from qwenft.prepare.pictures import open_upright
from qwenft.train.augment import View, Views

FILLER: Final = -1
"""Index of a sample from which nothing is learned: a process that has none left in an update still takes part in it."""


@dataclass
class PictureOrder(torch.utils.data.Sampler[int]):
    """The samples of an epoch, in an order of its own; those of a picture stand together, so that it is read once.

    Each sample once, but where `parts` says how many an epoch takes of each data set (train/mixture.py).
    An update takes the next `per_update` samples, whatever the number of processes: each gets one run of them, its
    batches in turn with the others' (accelerate deals batches out in turn).  The last update of an epoch is divided
    evenly and filled up with FILLER, so that no sample counts twice.
    """

    pictures: Sequence[str]
    """Of each sample."""
    seed: int
    per_update: int
    """Samples of all processes in an update."""
    processes: int
    per_batch: int
    """Samples that a process takes at a time."""
    parts: Sequence[tuple[int, int]] = ()
    """Of each data set, in the order of the samples: how many it has, how many of them an epoch takes.  As many in all
    as there are samples.  Empty: there is one set."""
    epoch: int = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        whole, rest = divmod(len(self.pictures), self.per_update)
        return whole * self.per_update + len(self._dealt(list(range(rest))))

    def __iter__(self) -> Iterator[int]:
        order = self.samples()
        for start in range(0, len(order), self.per_update):
            yield from self._dealt(order[start : start + self.per_update])

    def samples(self) -> list[int]:
        """The epoch's order of samples, before they are dealt out."""
        streams, first = [], 0
        for size, taken in self.parts or ((len(self.pictures), len(self.pictures)),):
            streams.append(list(self._stream(range(first, first + size), taken)))
            first += size
        turns = [number for number, groups in enumerate(streams) for _ in groups]
        _drawing(f"{self.seed} {self.epoch} turns").shuffle(turns)
        groups = [iter(stream) for stream in streams]
        return [index for number in turns for index in next(groups[number])]

    def _stream(self, indices: range, taken: int) -> Iterator[list[int]]:
        """What this epoch takes of a data set, by picture: epochs go on where the one before ended, round after round.

        A round has each sample once, in an order of its own.
        """
        start, end, size = self.epoch * taken, (self.epoch + 1) * taken, len(indices)
        for number in range(start // size, -(-end // size)):
            at = number * size
            for group in self._round(indices, number):
                if chosen := group[max(start - at, 0) : max(end - at, 0)]:
                    yield chosen
                at += len(group)

    def _round(self, indices: range, number: int) -> list[list[int]]:
        draw = _drawing(f"{self.seed} {number}")
        groups: dict[str, list[int]] = {}
        for index in indices:
            groups.setdefault(self.pictures[index], []).append(index)
        dealt = list(groups.values())
        draw.shuffle(dealt)
        for group in dealt:
            draw.shuffle(group)
        return dealt

    def _dealt(self, update: list[int]) -> list[int]:
        if self.processes == 1 or not update:
            return update
        most = -(-len(update) // self.processes)
        room = -(-most // self.per_batch) * self.per_batch
        ends = [len(update) * rank // self.processes for rank in range(self.processes + 1)]
        parts = [update[a:b] + [FILLER] * (room - (b - a)) for a, b in pairwise(ends)]
        starts = range(0, room, self.per_batch)
        return [index for start in starts for part in parts for index in part[start : start + self.per_batch]]


def _drawing(seed: str) -> random.Random:
    return random.Random(seed)  # noqa: S311 - an order, no secret


Named = tuple[Sample, Encoded]
"""A sample, and what the model is given of it."""


@dataclass
class TrainingData(torch.utils.data.Dataset[Named]):
    """Samples, decoded and encoded when a batch is made; nothing heavy is kept."""

    samples: Sequence[Sample]
    """With the whole path of their picture."""
    encoder: Encoder
    known: set[str] = field(default_factory=set)
    """Pictures (Sample.picture) whose features are kept: they are not read again."""
    views: Views | None = None
    """How pictures are changed; None: they are shown as they are."""
    epoch: int = 0

    def __len__(self) -> int:
        return len(self.samples)

    def __getitems__(self, indices: Sequence[int]) -> list[Named]:
        """Several samples, each picture read once: torch's DataLoader asks for a whole batch at once."""
        chosen = [self.samples[index] for index in indices if index != FILLER]
        shown = {
            one.picture: self._shown(one) for one in {one.picture: one for one in chosen or self.samples[:1]}.values()
        }
        if not chosen:
            filler = self._encoded(self.samples[0], shown)
            return [(replace(self.samples[0], id=""), replace(filler, labels=[IGNORED] * len(filler.labels)))]
        return [(one, self._encoded(one, shown)) for one in chosen]

    def _shown(self, sample: Sample) -> tuple[Picture, View | None]:
        """A sample's picture, and how it was changed."""
        if sample.picture in self.known:
            return self.encoder.frame(sample.image_wh), None
        upright = open_upright(Path(sample.image))
        if self.views is None:
            return self.encoder.picture(upright), None
        check_size(sample, Path(), upright.size)
        view = self.views.of(sample, self.epoch)
        return self.encoder.picture(view.cut(upright), as_wh=view.as_wh, change=view.change), view

    def _encoded(self, sample: Sample, shown: Mapping[str, tuple[Picture, View | None]]) -> Encoded:
        picture, view = shown[sample.picture]
        return self.encoder.sample(sample if view is None else view.sample(sample), Path(), picture)


@dataclass
class MicroBatch:
    """What goes through the model at a time."""

    names: list[str]
    """Ids of the samples; none where there is only a filler."""
    tokens: int
    """Of all samples, each with its picture, whether or not they share it."""
    inputs: dict[str, Any]
    """Of the model, but for the pictures where the row is packed."""
    pictures: list[int]
    """Which pictures of the update the row has, in its order."""
    tasks: list[int]
    """Number in TASKS of each learned token's task, in the order in which the row has them."""

    def shown(self, update: "Update", features: Sequence[torch.Tensor] | None) -> dict[str, Any]:
        """The model's inputs, pictures included.  features: of the update's pictures, where they are known."""
        if "position_ids" not in self.inputs:
            return self.inputs
        pictures = [update.pictures[number] for number in self.pictures]
        return with_pictures(self.inputs, pictures, features and [features[number] for number in self.pictures])


@dataclass
class Update:
    """What one process learns at a time, as micro-batches whose gradients add up."""

    micro_batches: list[MicroBatch]
    pictures: list[Picture]
    keys: list[str]
    """Sample.picture of each."""

    def pin_memory(self) -> "Update":
        """Called by torch's DataLoader, so that the pixels reach the GPU while it computes."""
        self.pictures = [replace(one, pixel_values_PD=one.pixel_values_PD.pin_memory()) for one in self.pictures]
        return self


@dataclass
class Collator:
    """Lays out the samples of a batch as an Update."""

    pad_id: int
    image_id: int
    batch_size: int
    """Samples in a micro-batch where rows are padded."""
    max_tokens: int | None
    """Packed rows of at most so many tokens (a sample is never cut); None: padded rows, each with its picture."""
    multiple: int = 1
    """Of a packed row's length."""

    def __call__(self, named: Sequence[Named]) -> dict[str, Any]:
        """The Update under `update`, and shift_labels, by which the Trainer counts what is learned."""
        items = [item for _, item in named]
        index = {id(item.picture): number for number, item in enumerate(items)}
        order = {first: number for number, first in enumerate(index.values())}
        owner = [order[index[id(item.picture)]] for item in items]
        parts = self._padded_parts(items) if self.max_tokens is None else packed_parts(items, self.max_tokens)
        micro_batches = []
        for part in parts:
            chosen = [items[number] for number in part]
            order_in_row = list(range(len(chosen)))
            if self.max_tokens is None:
                inputs, rows = collate(chosen, self.pad_id, self.image_id), list(range(len(chosen)))
            else:
                inputs, rows = pack(chosen, self.image_id, self.multiple)
                order_in_row = row_order(chosen)
            tasks = [
                TASKS.index(named[part[place]][0].task)
                for place in order_in_row
                for label in chosen[place].labels
                if label != IGNORED
            ]
            names = [named[number][0].id for number in part if named[number][0].id]
            tokens = sum(len(item.input_ids) for item in chosen)
            micro_batches.append(MicroBatch(names, tokens, inputs, [owner[part[row]] for row in rows], tasks))
        firsts = [named[number] for number in order]
        update = Update(micro_batches, [item.picture for _, item in firsts], [sample.picture for sample, _ in firsts])
        learned = [label for item in items for label in item.labels if label != IGNORED]
        counted = torch.tensor(learned, dtype=torch.long)
        return {"update": update, "labels": counted, "shift_labels": counted}

    def _padded_parts(self, items: Sequence[Encoded]) -> list[list[int]]:
        numbers = list(range(len(items)))
        return [numbers[start : start + self.batch_size] for start in range(0, len(items), self.batch_size)]


def packed_parts(items: Sequence[Encoded], max_tokens: int) -> list[list[int]]:
    """Divide samples, in their order, into as few rows as max_tokens allows, of about the same length.

    A sample behind another of its picture in the same row costs only its own tokens.
    """
    own = [len(item.input_ids) - item.shared for item in items]
    together = sum(own) + sum({id(item.picture): item.shared for item in items}.values())
    aim = together / -(-together // max_tokens)
    parts: list[list[int]] = []
    tokens = 0.0
    for number, item in enumerate(items):
        follows = bool(parts) and items[parts[-1][-1]].picture is item.picture
        cost = own[number] + (0 if follows else item.shared)
        if not parts or tokens >= aim or tokens + cost > max_tokens:
            parts.append([])
            tokens, cost = 0, own[number] + item.shared
        parts[-1].append(number)
        tokens += cost
    return parts
