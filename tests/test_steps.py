"""Update counts: the known cases, the Trainer's own count, and what cannot be counted."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from qwenft.core.errors import UsageError
from qwenft.core.steps import Updates, count_updates

CASES = [
    # n, bs, accum, ranks, epochs, drop_last, total
    (8000, 4, 1, 1, 1, False, 2000),
    (1000, 2, 8, 1, 1, False, 63),
    (1000, 2, 8, 1, 3, False, 189),
    (10, 1, 4, 1, 3, False, 9),
    (21, 2, 4, 1, 3, False, 9),
    (33, 2, 4, 1, 2, True, 8),
    (33, 8, 1, 1, 2, True, 8),
    (33, 8, 1, 1, 2, False, 10),
    (21, 2, 4, 1, 1.5, False, 5),
    (1000, 2, 8, 2, 1, False, 32),
    (21, 2, 4, 2, 3, False, 6),
]


@pytest.mark.parametrize(("n", "bs", "accum", "ranks", "epochs", "drop_last", "total"), CASES)
def test_known_cases(n: int, bs: int, accum: int, ranks: int, epochs: float, drop_last: bool, total: int) -> None:
    counted = count_updates(n, bs, accum=accum, num_gpus=ranks, epochs=epochs, drop_last=drop_last)
    assert counted.total_updates == total
    assert counted.samples_per_update == bs * accum * ranks


def test_the_parts_of_a_count_are_shown() -> None:
    assert count_updates(1000, 2, accum=8, num_gpus=2, epochs=3) == Updates(
        batches_per_epoch=250,
        updates_per_epoch=32,
        total_updates=96,
        samples_per_update=32,
        formula="ceil(ceil(1000 / (2 x 2)) / 8) x 3 = 96",
    )
    assert count_updates(21, 2, accum=4, epochs=1.5).formula == "ceil(ceil(ceil(21 / 2) / 4) x 1.5) = 5"
    assert count_updates(33, 2, drop_last=True).formula == "ceil(floor(33 / 2) / 1) x 1 = 16"


def test_max_steps_overrides_the_epochs_and_the_formula_says_so() -> None:
    counted = count_updates(8000, 4, epochs=3, max_steps=10)
    assert (counted.total_updates, counted.updates_per_epoch) == (10, 2000)
    assert counted.formula == "ceil(ceil(8000 / 4) / 1) x 3 = 6000, but max_steps = 10"


NOT_POSITIVE = (0, -1, math.nan, math.inf, -math.inf)


@pytest.mark.parametrize("value", NOT_POSITIVE)
@pytest.mark.parametrize("name", ["n", "bs", "num_gpus", "accum", "epochs"])
def test_a_value_that_is_not_a_positive_number_is_refused_by_its_name(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')} must be over 0, got {value}") as caught:
        count_updates(**{"n": 100, "bs": 4, name: value})
    assert caught.value.exit_code == 2
    assert caught.value.hint


@pytest.mark.parametrize("value", NOT_POSITIVE)
def test_max_steps_must_be_positive(value: float) -> None:
    with pytest.raises(UsageError, match="--max-steps must be over 0"):
        count_updates(100, 4, max_steps=value)


@pytest.mark.parametrize(("n", "bs", "ranks", "hint"), [(3, 4, 1, "--bs 3"), (7, 4, 2, "--bs 3"), (1, 4, 8, "--bs 1")])
def test_zero_updates_are_an_error_that_says_why(n: int, bs: int, ranks: int, hint: str) -> None:
    with pytest.raises(
        UsageError, match=f"0 updates: the {n} samples do not fill one batch of .*--drop-last"
    ) as caught:
        count_updates(n, bs, num_gpus=ranks, drop_last=True)
    assert hint in caught.value.hint


def test_large_counts_are_exact() -> None:
    n = 2**60 + 1
    assert count_updates(n, 2).batches_per_epoch == 2**59 + 1


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> object:
    return make_trainer(tmp_path_factory.mktemp("trainer"), 8, per_device_train_batch_size=2)


def make_trainer(folder: Path, n: int, **arguments: object):
    """A real Trainer on a model of one parameter, on the CPU."""
    import torch
    from transformers import Trainer, TrainingArguments

    class OneParameter(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x: "torch.Tensor") -> dict[str, "torch.Tensor"]:
            return {"loss": ((self.weight - x) ** 2).mean()}

    settings = TrainingArguments(
        output_dir=str(folder), use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True, **arguments
    )
    return Trainer(OneParameter(), settings, train_dataset=[{"x": torch.ones(1)} for _ in range(n)])


@given(
    n=st.integers(1, 5000),
    bs=st.integers(1, 64),
    accum=st.integers(1, 32),
    epochs=st.one_of(st.integers(1, 20), st.floats(0.01, 20)),
    drop_last=st.booleans(),
    max_steps=st.one_of(st.none(), st.integers(1, 500)),
)
def test_the_count_is_the_trainers_own(
    trainer, n: int, bs: int, accum: int, epochs: float, drop_last: bool, max_steps: int | None
) -> None:
    from torch.utils.data import DataLoader

    assume(not (drop_last and n < bs))
    loader = DataLoader(range(n), batch_size=bs, drop_last=drop_last)
    arguments = SimpleNamespace(
        max_steps=max_steps or -1,
        num_train_epochs=epochs,
        gradient_accumulation_steps=accum,
        train_batch_size=bs,
        world_size=1,
    )
    trainer._train_batch_size = bs
    values = trainer.set_initial_training_values(arguments, loader)
    counted = count_updates(n, bs, accum=accum, epochs=epochs, drop_last=drop_last, max_steps=max_steps)
    assert counted.batches_per_epoch == len(loader)
    assert (counted.updates_per_epoch, counted.total_updates) == (values[1], values[6])
    assert counted.samples_per_update == values[4]


@given(
    n=st.integers(1, 500),
    bs=st.integers(1, 16),
    ranks=st.integers(2, 8),
    drop_last=st.booleans(),
    rank=st.integers(0, 7),
)
def test_the_batches_of_a_rank_are_accelerates_own(n: int, bs: int, ranks: int, drop_last: bool, rank: int) -> None:
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler, SequentialSampler

    assume(not (drop_last and n < bs * ranks))
    sampler = BatchSampler(SequentialSampler(range(n)), bs, drop_last)
    shard = BatchSamplerShard(sampler, ranks, rank % ranks)
    counted = count_updates(n, bs, num_gpus=ranks, drop_last=drop_last)
    assert counted.batches_per_epoch == len(shard) == len(list(shard))


@pytest.mark.parametrize(
    ("n", "bs", "accum", "epochs", "drop_last", "max_steps"),
    [
        (21, 2, 4, 3, False, None),
        (21, 2, 4, 1.5, False, None),
        (33, 2, 4, 2, True, None),
        (33, 8, 1, 2, True, None),
        (10, 1, 4, 3, False, None),
        (100, 1, 1, 0.07, False, None),
        (5, 2, 2, 1, False, 7),
    ],
)
def test_a_real_run_ends_after_as_many_updates_as_were_counted(
    tmp_path: Path, n: int, bs: int, accum: int, epochs: float, drop_last: bool, max_steps: int | None
) -> None:
    trainer = make_trainer(
        tmp_path,
        n,
        per_device_train_batch_size=bs,
        gradient_accumulation_steps=accum,
        num_train_epochs=epochs,
        dataloader_drop_last=drop_last,
        max_steps=max_steps or -1,
    )
    trainer.train()
    counted = count_updates(n, bs, accum=accum, epochs=epochs, drop_last=drop_last, max_steps=max_steps)
    assert trainer.state.global_step == trainer.state.max_steps == counted.total_updates
