"""The plan of a run, made on the meta device before weights are read: updates, LoRA scope, tokens, memory."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from qwenft.core.config import TrainConfig
from qwenft.core.devices import Devices
from qwenft.core.runs import Contract
from qwenft.core.samples import Sample
from qwenft.core.steps import Updates, count_updates
from qwenft.model.inputs import Encoder, image_tokens
from qwenft.model.load import load_config, load_processor, matched_in, meta_model, trainable_model
from qwenft.train.forecast import disk, learning_rates, sample_tokens, small_boxes
from qwenft.train.memory import is_compiled, memory_estimate, micro_batch, packed_tokens
from qwenft.train.mixture import Mixture


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
    config: TrainConfig, mixture: Mixture, contract: Contract, devices: Devices, folder: Path | None = None
) -> dict[str, Any]:
    """Everything that can be known before weights are read, as the `plan` event.

    Memory is an estimate for one device; its assumptions stand beside it.  folder: of the run, for the disk.
    """
    samples = mixture.samples
    updates = planned_updates(config, mixture.num_samples, devices.world)
    tokens = image_tokens(samples, contract)
    largest = max(image_tokens(_enlarged(samples, config.augment.scale), contract))
    model_config = load_config(config.model)
    scope = lora_scope(config, model_config)
    compiled = is_compiled(config, devices.kind)
    fits = packed_tokens(config, model_config, scope, largest, _gpu_memory(devices), compiled=compiled)
    room = (config.max_tokens or fits) if config.fast else None
    data = mixture.plan()
    row = micro_batch(config, room, largest, len(samples) / data["pictures"])
    return {
        "event": "plan",
        "data": data,
        "augment": config.augment.model_dump(exclude_defaults=True),
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
        "evaluations": _evaluation_steps(config, mixture, updates),
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


def _enlarged(samples: Sequence[Sample], share: float) -> Sequence[Sample]:
    """The samples with their pictures as large as they may be shown."""
    if share == 0:
        return samples
    return [
        replace(s, width=math.ceil(s.width * (1 + share)), height=math.ceil(s.height * (1 + share))) for s in samples
    ]


def _evaluation_steps(config: TrainConfig, mixture: Mixture, updates: Updates) -> list[int]:
    if config.eval_samples == 0 or not mixture.held_out:
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
