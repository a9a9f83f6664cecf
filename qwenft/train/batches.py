"""Batches that carry the ids of their samples beside what the model sees."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from qwenft.model.inputs import Encoded, TrainingData, collate, only_supervised

IDS: Final = "sample_ids"
"""Key of a batch that never reaches the model."""


@dataclass
class NamedData:
    """The training data, each item with its sample's id; a map-style data set for torch's DataLoader."""

    data: TrainingData

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[str, Encoded]:
        return self.data.samples[index].id, self.data[index]


def collate_named(
    items: Sequence[tuple[str, Encoded]], pad_id: int, image_id: int, *, fast: bool = False
) -> dict[str, Any]:
    """A batch as `collate` makes it, and the ids of its samples.  fast: logits are asked for where learned only."""
    batch = collate([item for _, item in items], pad_id, image_id)
    return {**(only_supervised(batch) if fast else batch), IDS: [name for name, _ in items]}
