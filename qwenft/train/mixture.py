"""The prepared data sets that a run learns from, as one: what an epoch takes from each, and what is held out; no torch.

An epoch has as many samples as all sets together.  Without weights each sample comes once.  With weights each set gives
its share of that number: without repeats until the set is used up, then anew in another order; what an epoch left over
comes first in the next.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from qwenft.core.config import DataSource
from qwenft.core.errors import UsageError
from qwenft.core.files import sha256_of_file
from qwenft.core.samples import PreparedDataset, Sample, open_dataset

Data = str | tuple[DataSource, ...] | None
"""The setting `data`."""


@dataclass(frozen=True)
class Mixture:
    """One prepared data set, or several with the number of samples that an epoch takes from each."""

    datasets: tuple[PreparedDataset, ...]
    drawn: tuple[int, ...]
    """Samples of an epoch from each; without weights all that it has."""
    weights: tuple[float, ...] | None = None

    @classmethod
    def of(cls, datasets: Sequence[PreparedDataset], data: Data = None) -> "Mixture":
        """Data sets that are open already, with the weights of the setting `data`.

        Raises UsageError where two have the same name or a weight is too small to give a sample.
        """
        names = [dataset.name for dataset in datasets]
        for name in names:
            if names.count(name) > 1:
                raise UsageError(
                    f"two of the data sets are called {name}", hint=f"qwenft prepare --dataset … --out data/{name}-2"
                )
        weights = _weights(data)
        drawn = shares([_num_samples(dataset) for dataset in datasets], weights)
        for dataset, number in zip(datasets, drawn, strict=True):
            if number == 0:
                raise UsageError(
                    f"the weight of {dataset.name} gives it not one of an epoch's {sum(drawn)} samples",
                    hint="leave it out, or give it a larger weight",
                )
        return cls(tuple(datasets), tuple(drawn), weights)

    @property
    def name(self) -> str:
        """The names of all."""
        return ", ".join(dataset.name for dataset in self.datasets)

    @property
    def num_samples(self) -> int:
        """Of an epoch; the samples are not read for it."""
        return sum(self.drawn)

    @cached_property
    def samples(self) -> tuple[Sample, ...]:
        """The training samples of all sets, one set behind another; `image` is a whole path."""
        return tuple(one for dataset in self.datasets for one in whole(dataset, dataset.samples(dataset.train)))

    @property
    def parts(self) -> tuple[tuple[int, int], ...]:
        """(samples that it has, samples of an epoch) of each set, in the order of `samples`."""
        return tuple((_num_samples(one), drawn) for one, drawn in zip(self.datasets, self.drawn, strict=True))

    @property
    def tasks(self) -> tuple[str, ...]:
        """What is learned, in alphabetical order."""
        return tuple(sorted({sample.task for sample in self.samples}))

    @property
    def held_out(self) -> tuple[tuple[PreparedDataset, str], ...]:
        """The sets that have something to measure on, with its split."""
        return tuple((dataset, dataset.held_out) for dataset in self.datasets if dataset.held_out is not None)

    @property
    def held_out_name(self) -> str | None:
        """The split that is measured on; of several sets with their names."""
        splits = [self._named(dataset, split) for dataset, split in self.held_out]
        return ", ".join(splits) or None

    def setting(self) -> str | tuple[DataSource, ...]:
        """The setting `data` by whole paths, wherever it is read."""
        paths = [str(dataset.path) for dataset in self.datasets]
        if len(paths) == 1:
            return paths[0]
        weights = self.weights or (None,) * len(paths)
        return tuple(DataSource(path=path, weight=weight) for path, weight in zip(paths, weights, strict=True))

    def plan(self) -> dict[str, Any]:
        """What a plan says of the data."""
        chosen = [(dataset, dataset.train) for dataset in self.datasets]
        return {
            "path": ", ".join(str(dataset.path) for dataset in self.datasets),
            "name": self.name,
            "split": ", ".join(dict.fromkeys(split for _, split in chosen)),
            "samples": self.num_samples,
            "pictures": len({sample.picture for sample in self.samples}),
            "held_out": self.held_out_name,
            "absent": sum(1 for sample in self.samples if sample.task != "caption" and not sample.objects),
            "tasks": {task: sum(sample.task == task for sample in self.samples) for task in self.tasks},
            "sets": [
                {"name": one.name, "path": str(one.path), "split": split, "samples": part[0], "drawn": part[1]}
                for (one, split), part in zip(chosen, self.parts, strict=True)
            ],
            "sha256": {
                self._named(dataset, split): sha256_of_file(dataset.path / dataset.manifest.splits[split].file)
                for dataset, split in (*chosen, *self.held_out)
            },
        }

    def _named(self, dataset: PreparedDataset, split: str) -> str:
        return split if len(self.datasets) == 1 else f"{dataset.name}/{split}"


def open_mixture(data: Data, root: Path | None = None) -> Mixture:
    """Open what the setting `data` names.  Raises DataError, and what `Mixture.of` raises."""
    named = [source.path for source in data] if isinstance(data, tuple) else [data]
    return Mixture.of([open_dataset(name, root) for name in named], data)


def whole(dataset: PreparedDataset, samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """The samples with the whole path of their picture, so that those of several sets can stand beside each other."""
    return tuple(replace(sample, image=str(dataset.picture_path(sample))) for sample in samples)


def shares(sizes: Sequence[int], weights: Sequence[float] | None) -> list[int]:
    """Divide as many samples as there are by weight: whole numbers, the largest remainders rounded up.

    >>> shares([300, 100], [0.5, 0.5]), shares([300, 100], None), shares([5, 5], [2, 1])
    ([200, 200], [300, 100], [7, 3])
    """
    if weights is None:
        return list(sizes)
    total = sum(sizes)
    exact = [total * weight / sum(weights) for weight in weights]
    found = [int(value) for value in exact]
    order = sorted(range(len(exact)), key=lambda number: found[number] - exact[number])
    for number in order[: total - sum(found)]:
        found[number] += 1
    return found


def _weights(data: Data) -> tuple[float, ...] | None:
    if not isinstance(data, tuple):
        return None
    given = tuple(source.weight for source in data if source.weight is not None)
    return given or None


def _num_samples(dataset: PreparedDataset) -> int:
    return dataset.manifest.splits[dataset.train].samples
