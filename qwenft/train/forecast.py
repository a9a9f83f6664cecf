"""What a plan foretells beside memory: tokens a sample, boxes too small, disk, the learning rate's course."""

import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from transformers import get_scheduler

from qwenft.core.boxes import PATCH, smart_resize, to_input_px
from qwenft.core.config import TrainConfig
from qwenft.core.runs import Contract
from qwenft.core.samples import Sample
from qwenft.model.inputs import Encoder, image_tokens, target_text

COUNTED: Final = 20_000
"""Samples whose texts are tokenized for the plan, at even distances: more would take seconds."""
POINTS: Final = 24
"""Of the learning rate's course."""
SCHEDULES: Final = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}
"""Our word -> transformers'."""


def sample_tokens(samples: Sequence[Sample], encoder: Encoder) -> dict[str, int]:
    """Tokens of a sample with its picture, question and answer: smallest, median, largest."""
    chosen = samples[:: -(-len(samples) // COUNTED)]
    pictures = image_tokens(chosen, encoder.contract)
    prompts = encoder.contract.prompts
    asked = [prompts.text(s.task, s.query, s.categories) for s in chosen]
    answers = [target_text(s, input_wh_of(s, encoder.contract)) for s in chosen]
    first = encoder.frame(chosen[0].image_wh)
    around = len(encoder.asked(first, "").input_ids) - pictures[0] + 1  # and the end of the answer's turn
    texts = [len(ids) for ids in encoder.processor.tokenizer(asked + answers, add_special_tokens=False).input_ids]
    half = len(chosen)
    totals = [pictures[i] + around + texts[i] + texts[half + i] for i in range(half)]
    return {"min": min(totals), "median": int(statistics.median(totals)), "max": max(totals)}


def input_wh_of(sample: Sample, contract: Contract) -> tuple[int, int]:
    """The size in which a sample's picture is shown to the model, px."""
    return smart_resize(sample.image_wh, contract.min_pixels, contract.max_pixels)


def small_boxes(samples: Sequence[Sample], contract: Contract) -> dict[str, int]:
    """How many boxes are narrower or lower than one patch of the model (`px`) at this pixel budget, `of` how many."""
    small = total = 0
    for sample in samples:
        input_wh = input_wh_of(sample, contract)
        for item in sample.objects:
            x1, y1, x2, y2 = to_input_px(item.bbox, sample.image_wh, input_wh)
            total += 1
            small += min(x2 - x1, y2 - y1) < PATCH
    return {"boxes": small, "of": total, "px": PATCH}


def disk(config: TrainConfig, trainable: int, folder: Path) -> dict[str, float]:
    """What a run takes at most and what is free, in GB: float32 weights, AdamW's two moments, a set in the making."""
    weights, moments = 4 * trainable, 8 * trainable
    sets = config.keep_last + 1 + int(config.keep_best)
    needed = sets * (weights + moments) + 3 * weights  # adapter/, the next one, and the best that a checkpoint keeps
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    return {"needed_gb": round(needed / 1e9, 3), "free_gb": round(shutil.disk_usage(there).free / 1e9, 1)}


def warmup_updates(config: TrainConfig, total: int) -> int:
    """Updates in which the learning rate rises."""
    return int(config.warmup * total)


def learning_rates(config: TrainConfig, total: int) -> list[float]:
    """The learning rate at POINTS places of the run, by the trainer's own schedule."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.learning_rate)
    schedule: Any = get_scheduler(SCHEDULES[config.schedule], optimizer, warmup_updates(config, total), total)
    factor = schedule.lr_lambdas[0]
    points = min(POINTS, total)
    return [config.learning_rate * factor(number * total // points) for number in range(points)]
