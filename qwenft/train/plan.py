"""The plan of a run, made on the meta device before weights are read: updates, LoRA scope, tokens, memory."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from qwenft.core.config import TrainConfig
from qwenft.core.devices import Devices
from qwenft.core.files import sha256_of_file
from qwenft.core.runs import Contract
from qwenft.core.samples import PreparedDataset, Sample
from qwenft.core.steps import Updates, count_updates
from qwenft.model.inputs import Encoder, image_tokens
from qwenft.model.load import load_config, load_processor, matched_in, meta_model, trainable_model
from qwenft.train.forecast import disk, learning_rates, sample_tokens, small_boxes
from qwenft.train.memory import is_compiled, memory_estimate, micro_batch, packed_tokens


def planned_updates(config: TrainConfig, num_samples: int, processes: int) -> Updates:
    """The exact update count of a run, by the function that `qwenft steps` uses."""
    return count_updates(
        num_samples,
        config.batch_size,
        num_gpus=processes,
        accum=config.accumulation,
        epochs=config.epochs,
        max_steps=config.max_steps,
    )


def stops(every: int, total: int) -> list[int]:
    """The steps at which something falls that happens each `every` updates and at the end.

    >>> stops(40, 100)
    [40, 80, 100]
    """
    return sorted({*range(every, total + 1, every), total})


def make_plan(
    config: TrainConfig, dataset: PreparedDataset, contract: Contract, devices: Devices, folder: Path | None = None
) -> dict[str, Any]:
    """Everything that can be known before weights are read, as the `plan` event.

    Memory is an estimate for one device; its assumptions stand beside it.  folder: of the run, for the disk.
    """
    samples = dataset.samples(dataset.train)
    updates = planned_updates(config, len(samples), devices.world)
    tokens = image_tokens(samples, contract)
    model_config = load_config(config.model)
    scope = lora_scope(config, model_config)
    compiled = is_compiled(config, devices.kind)
    fits = packed_tokens(config, model_config, scope, max(tokens), _gpu_memory(devices), compiled=compiled)
    room = (config.max_tokens or fits) if config.fast else None
    pictures = len({sample.picture for sample in samples})
    row = micro_batch(config, room, max(tokens), len(samples) / pictures)
    return {
        "event": "plan",
        "data": {
            "path": str(dataset.path),
            "name": dataset.name,
            "split": dataset.train,
            "samples": len(samples),
            "pictures": pictures,
            "held_out": dataset.held_out,
            "absent": _absent(samples),
            "sha256": _file_hashes(dataset),
        },
        "model": config.model,
        "base_sha256": contract.config_sha256,
        "devices": devices.mapping(),
        "batch": {
            "batch_size": config.batch_size,
            "devices": devices.world,
            "accumulation": config.accumulation,
            "effective": updates.samples_per_update,
            "row_tokens": room,
            "compiled": compiled,
        },
        "updates": {"total": updates.total_updates, "per_epoch": updates.updates_per_epoch, "formula": updates.formula},
        "evaluations": _evaluation_steps(config, dataset, updates),
        "checkpoints": stops(config.save_every or updates.updates_per_epoch, updates.total_updates),
        "lora": scope,
        "pixels": {"min": contract.min_pixels, "max": contract.max_pixels},
        "image_tokens": {"min": min(tokens), "median": int(statistics.median(tokens)), "max": max(tokens)},
        "sample_tokens": sample_tokens(samples, Encoder(load_processor(config.model), contract)),
        "small_boxes": small_boxes(samples, contract),
        "learning_rates": learning_rates(config, updates.total_updates),
        "disk": disk(config, scope["trainable"], folder or Path.cwd()),
        "memory_gib": memory_estimate(config, model_config, scope, row, devices.kind, compiled=compiled),
    }


def _gpu_memory(devices: Devices) -> int | None:
    """Of the first GPU, in bytes; None on the CPU."""
    on_gpu = devices.kind == "cuda" and torch.cuda.is_available()
    return torch.cuda.get_device_properties(0).total_memory if on_gpu else None


def _file_hashes(dataset: PreparedDataset) -> dict[str, str]:
    """Of the files that training reads samples from: a run goes on only with the same ones."""
    files = {
        name: dataset.path / dataset.manifest.splits[name].file for name in (dataset.train, dataset.held_out) if name
    }
    return {name: sha256_of_file(path) for name, path in files.items()}


def _absent(samples: Sequence[Sample]) -> int:
    """Samples whose true answer is "not in this picture"; the plan says how many they are."""
    return sum(1 for sample in samples if sample.task != "caption" and not sample.objects)


def _evaluation_steps(config: TrainConfig, dataset: PreparedDataset, updates: Updates) -> list[int]:
    if config.eval_samples == 0 or dataset.held_out is None:
        return []
    return [0, *stops(config.eval_every or updates.updates_per_epoch, updates.total_updates)]


def lora_scope(config: TrainConfig, model_config: Any) -> dict[str, Any]:
    """What learns: modules under LoRA (or weights, with method=full) a part; parameters and their share."""
    model = meta_model(model_config)
    total = sum(parameter.numel() for parameter in model.parameters())
    matched = {part: len(matched_in(model, part, config.method)) for part in config.parts}
    tuned = trainable_model(model, config)
    trainable = sum(parameter.numel() for parameter in tuned.parameters() if parameter.requires_grad)
    return {
        "method": config.method,
        "modules": matched,
        "trainable": trainable,
        "total": total,
        "share": trainable / total,
    }
