"""What `prepare --negatives` buys and costs on the embedded model: with and without, same positives, same updates.

    python benchmarks/negatives.py OUT [--pictures 1000] [--epochs 1] [--seeds 0 1 2]

Pictures as in the demo, annotated with all their shapes.  `--negatives 1` makes as many questions about what is not
there as there are pictures, and as many of the same forms about what is.  One run learns both, the other the positives
alone, half as many samples in each of as many updates.  Both answer the held-out questions of both kinds.  Prints a
table in docs/negatives.md's form and writes OUT/negatives.json.
"""

import argparse
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from qwenft.core.config import make_config
from qwenft.core.files import write_jsonl
from qwenft.core.samples import PreparedDataset, Sample
from qwenft.demo.demo import SETTINGS
from qwenft.demo.scenes import write_scenes
from qwenft.evaluate.run import evaluate_run
from qwenft.prepare.build import prepare_dataset
from qwenft.train.launch import train_adapter

NUM_VAL = 150


def prepared(root: Path, pictures: int) -> PreparedDataset:
    """The demo's pictures with the questions that --negatives makes."""
    source = write_scenes(root / "scenes", num_train=pictures, num_val=NUM_VAL, seed=0, task="detection")
    return prepare_dataset(str(source), out=root / "asked", root=root, negatives=1.0, bbox_format="xyxy")


def as_source(root: Path, name: str, asked: PreparedDataset, *, negatives: bool) -> str:
    """The made questions as a user's own records; held-out questions of both kinds in any case."""
    folder = root / name
    shutil.copytree(asked.path / "images", folder / "images")
    for split, role in (("train", negatives), ("val", True)):
        samples = (s for s in asked.samples(split) if s.task == "grounding" and (role or s.negative is None))
        write_jsonl(folder / f"{split}.jsonl", records(samples))
    prepare_dataset(str(folder), out=root / "data" / name, root=root, bbox_format="xyxy", columns=COLUMNS)
    return name


COLUMNS = {"image": "image", "query": "query", "bbox": "bbox"}


def records(samples: Iterable[Sample]) -> Iterable[dict[str, Any]]:
    for sample in samples:
        yield {"image": sample.image, "query": sample.query, "bbox": [list(item.bbox) for item in sample.objects]}


def measured(root: Path, name: str, seed: int, batch_size: int, updates: int) -> dict[str, Any]:
    """Train on a data set and score it on the held-out questions."""
    run = f"{name}-{seed}"
    settings = {**SETTINGS, "max_steps": updates, "batch_size": batch_size, "seed": seed}
    given = {**settings, "model": "tiny", "data": name, "name": run}
    train_adapter(make_config(given, "the benchmark"), root=root)
    result = evaluate_run(run, data="with", split="val", batch_size=64, gpus="cpu", root=root)
    scores = result.metrics["scores"]["grounding"]
    positives, negatives = scores["positives"], scores["negatives"]
    figures = {key: positives["intervals"][key] for key in ("discrimination", "F1@0.5")}
    return {**figures, "rejection_rate": negatives["intervals"]["rejection_rate"], "parse_rate": scores["parse_rate"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    root = arguments.out.absolute()
    asked = prepared(root, arguments.pictures)
    print(asked.manifest.counts)
    sets = {name: as_source(root, name, asked, negatives=name == "with") for name in ("with", "without")}
    updates = len(PreparedDataset.open(root / "data" / "without").samples("train")) // 4 * arguments.epochs
    found: dict[str, Any] = {}
    print("| trained | seed | rejection | discrimination | F1@0.5 | parsed |\n|---|---|---|---|---|---|")
    for seed in arguments.seeds:
        for name in sets:
            figures = measured(root, name, seed, 8 if name == "with" else 4, updates)
            found[f"{name}-{seed}"] = figures
            cells = [
                f"{figures[key]['estimate']:.3f} [{figures[key]['low']:.3f}, {figures[key]['high']:.3f}]"
                for key in ("rejection_rate", "discrimination", "F1@0.5")
            ]
            print(f"| {name} negatives | {seed} | {' | '.join(cells)} | {figures['parse_rate']:.3f} |", flush=True)
    (root / "negatives.json").write_text(json.dumps({"updates": updates, **found}, indent=1))


if __name__ == "__main__":
    main()
