"""The plan of a run, made on the meta device before weights are read: updates, LoRA scope, tokens, memory."""

import statistics
from collections.abc import Sequence
from typing import Any, Final

from qwenft.core.config import TrainConfig
from qwenft.core.devices import Devices
from qwenft.core.files import sha256_of_file
from qwenft.core.runs import Contract
from qwenft.core.samples import PreparedDataset, Sample
from qwenft.core.steps import Updates, count_updates
from qwenft.model.inputs import image_tokens
from qwenft.model.load import load_config, matched_in, meta_model, trainable_model

TEXT_TOKENS: Final = 110
"""Assumed for system text, question and answer of one sample: the Qwen team's prompt takes about 50, a box about 40."""
ANSWER_TOKENS: Final = 45
"""Assumed for the answer of one sample with one box: where the fast step computes logits."""
GIB: Final = 1024**3
ALLOCATOR_SHARE: Final = 0.08
"""What the allocator and the kernels' own buffers add: measured on the 3B shape (benchmarks/README.md)."""


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


def make_plan(config: TrainConfig, dataset: PreparedDataset, contract: Contract, devices: Devices) -> dict[str, Any]:
    """Everything that can be known before weights are read, as the `plan` event.

    Memory is an estimate for one device; its assumptions stand beside it.
    """
    samples = dataset.samples(dataset.train)
    updates = planned_updates(config, len(samples), devices.world)
    tokens = image_tokens(samples, contract)
    model_config = load_config(config.model)
    scope = lora_scope(config, model_config)
    return {
        "event": "plan",
        "data": {
            "path": str(dataset.path),
            "name": dataset.name,
            "split": dataset.train,
            "samples": len(samples),
            "pictures": len({sample.picture for sample in samples}),
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
        },
        "updates": {"total": updates.total_updates, "per_epoch": updates.updates_per_epoch, "formula": updates.formula},
        "evaluations": _evaluation_steps(config, dataset, updates),
        "checkpoints": stops(config.save_every or updates.updates_per_epoch, updates.total_updates),
        "lora": scope,
        "pixels": {"min": contract.min_pixels, "max": contract.max_pixels},
        "image_tokens": {"min": min(tokens), "median": int(statistics.median(tokens)), "max": max(tokens)},
        "memory_gib": memory_estimate(config, model_config, scope, max(tokens) + TEXT_TOKENS, devices.kind),
    }


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


def memory_estimate(
    config: TrainConfig, model_config: Any, scope: dict[str, Any], tokens: int, kind: str
) -> dict[str, Any]:
    """Peak memory of one device in GiB, by part; `assumes` names what it rests on.

    Activations without checkpointing: per token and layer the inputs that the backward pass keeps (norms, q, k, v,
    attention output, gate, up and their product), in the weights' format, plus float32 logits and their gradient.
    """
    wide = config.dtype == "float32" or (config.dtype == "auto" and kind == "cpu")
    size = 4 if wide else 2
    text, vision = model_config.text_config, model_config.vision_config
    rows = config.batch_size * tokens
    a_layer = rows * size * (10 * text.hidden_size + 4 * text.intermediate_size)
    layers = text.num_hidden_layers
    kept = a_layer * (1 if config.checkpointing else layers) + rows * size * text.hidden_size * layers
    learned = config.batch_size * ANSWER_TOKENS if config.fast else rows
    logits = learned * text.vocab_size * (4 + 4 + size)
    patches = config.batch_size * (tokens - TEXT_TOKENS) * 4
    tower = patches * size * (10 * vision.hidden_size + 4 * vision.intermediate_size)
    if {"vision", "merger"} & set(config.parts):
        tower *= vision.depth if "vision" in config.parts and not config.checkpointing else 1
    parts = {
        "weights": scope["total"] * size / GIB,
        "adapter, gradients, optimizer": scope["trainable"] * 16 / GIB,
        "activations": (kept + tower) / GIB,
        "logits": logits / GIB,
    }
    parts["allocator"] = ALLOCATOR_SHARE * sum(parts.values())
    return {
        **{name: round(value, 3) for name, value in parts.items()},
        "total": round(sum(parts.values()), 2),
        "assumes": f"{'float32' if wide else 'bfloat16'} weights, float32 adapter with AdamW, "
        f"{config.batch_size} samples of {tokens} tokens, checkpointing {'on' if config.checkpointing else 'off'}",
    }
