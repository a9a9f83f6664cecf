"""What the embedded model can do on pictures that it was never trained on: the figures in assets/README.md.

    python -m qwenft.demo.exam MODEL OUT     writes sources, data sets and reports under OUT, prints a table

Everything goes the way a user's own data go: prepare, then eval.
"""

import random
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial, reduce
from operator import getitem
from pathlib import Path
from typing import Any, Final

from PIL import Image

from qwenft.core.answer import Task
from qwenft.core.events import ignore
from qwenft.core.files import read_records
from qwenft.demo.filled import make_filled
from qwenft.demo.language import SINGLE, Figure, absent, by_kind, draw_expressions, missed_relation
from qwenft.demo.scenes import Scene, write_scenes
from qwenft.evaluate.run import evaluate_run
from qwenft.prepare.build import prepare_dataset

NUM_PICTURES: Final = 300
SEED: Final = 20_000
"""Of the pictures: those of pretraining are seeded with words (demo/lessons.py)."""


def _one(rng: random.Random, enlarged: int = 1) -> Scene:
    """A picture and an expression for one thing in it.  enlarged: how many times, as a photo comes before resizing."""
    scene = _asked(rng, lambda figures: draw_expressions(rng, SINGLE, figures, 1))
    if enlarged == 1:
        return scene
    wh = (scene.image.width * enlarged, scene.image.height * enlarged)
    grown = [replace(q, figures=tuple(_grown(figure, enlarged) for figure in q.figures)) for q in scene.questions]
    return Scene(scene.image.resize(wh, Image.Resampling.BICUBIC), scene.figures, tuple(grown))


def _grown(figure: Figure, times: int) -> Figure:
    x1, y1, x2, y2 = (v * times for v in figure.box_xyxy)
    return replace(figure, box_xyxy=(x1, y1, x2, y2))


def _several(rng: random.Random) -> Scene:
    def ask(figures: Any) -> Any:
        return (one for one in draw_expressions(rng, (by_kind,), figures, 40) if len(one.figures) > 1)

    scene = _asked(rng, ask)
    return replace(scene, questions=scene.questions[:2])


def _mixed(rng: random.Random) -> Scene:
    """Two expressions for what is there and two for what is not."""
    return _asked(
        rng,
        lambda figures: (
            *draw_expressions(rng, (*SINGLE, by_kind), figures, 2),
            *draw_expressions(rng, (absent, missed_relation), figures, 2, none=True),
        ),
    )


def _asked(rng: random.Random, ask: Callable[[Any], Any]) -> Scene:
    import numpy as np

    scene = make_filled(np.random.default_rng(rng.getrandbits(64)))
    return replace(scene, questions=tuple(ask(scene.figures)))


PARTS: Final[Mapping[str, tuple[Task, Callable[[random.Random], Scene]]]] = {
    "one": ("grounding", _one),
    "enlarged": ("grounding", partial(_one, enlarged=3)),
    "several": ("grounding", _several),
    "mixed": ("grounding", _mixed),
    "detection": ("detection", _mixed),
    "caption": ("caption", _mixed),
}
"""What is examined -> task, and how a picture with its questions is drawn."""


FIGURES: Final[Mapping[str, tuple[tuple[str, ...], ...]]] = {
    "one": (("grounding", "positives", "Acc@0.5"),),
    "enlarged": (("grounding", "positives", "Acc@0.5"),),
    "several": (("grounding", "positives", "F1@0.5"),),
    "mixed": (("grounding", "negatives", "rejection_rate"), ("grounding", "positives", "discrimination")),
    "detection": (("detection", "F1@0.5"), ("detection", "AP50")),
    "caption": (("exact",),),
}
"""What is examined -> where its figures stand in the scores."""


def examine(model: str, folder: Path, num_pictures: int = NUM_PICTURES) -> dict[str, Any]:
    """The scores of each part, as in its metrics.json (docs/metrics.md), of captions the exactly equal ones too."""
    found = {}
    for part, (task, make) in PARTS.items():
        source = write_scenes(folder / part, num_train=1, num_val=num_pictures, seed=SEED, task=task, make=make)
        dataset = prepare_dataset(str(source), out=folder / "data" / part, bbox_format="xyxy", root=folder, emit=ignore)
        result = evaluate_run(model=model, data=part, split="val", batch_size=64, root=folder, emit=ignore)
        found[part] = dict(result.metrics["scores"])
        if task == "caption":
            texts = [record.value["text"] for record in read_records(result.folder / "predictions.jsonl")]
            pairs = zip(dataset.samples("val"), texts, strict=True)
            found[part]["exact"] = sum(text.strip() == sample.captions[0] for sample, text in pairs) / len(texts)
    return found


def _table(found: Mapping[str, Any]) -> str:
    lines = []
    for part, paths in FIGURES.items():
        for path in paths:
            figure = reduce(getitem, path, found[part])
            lines.append(f"{part:10} {path[-1]:16} {figure:.3f}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(_table(examine(sys.argv[1], Path(sys.argv[2]))) + "\n")
