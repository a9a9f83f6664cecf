"""Measures `qwenft train` on a GPU: samples/s and peak memory beside the plan's estimate, over several settings.

    python benchmarks/measure_training.py CONFIG.json PROCESSOR_FOLDER OUT [--gpus 0 --gpus 0,1]

Random weights of the shape in CONFIG.json (a published Qwen2.5-VL config), generated pictures of 640x480 px with four
expressions each.  Prints a table and writes OUT/training.json.  Speed does not depend on the weights' values; scores
do, and none is measured here.
"""

import argparse
import json
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SETTINGS = (
    {"batch_size": 2, "accumulation": 8},
    {"batch_size": 2, "accumulation": 8, "rank": 16},
    {"batch_size": 4, "accumulation": 4},
    {"batch_size": 8, "accumulation": 2},
    {"batch_size": 8, "accumulation": 2, "checkpointing": True},
    {"batch_size": 16, "accumulation": 1, "checkpointing": True},
    {"batch_size": 2, "accumulation": 8, "max_pixels": 100352},
    {"batch_size": 2, "accumulation": 8, "parts": "language,merger,vision"},
    {"batch_size": 8, "accumulation": 4},
    {"batch_size": 8, "accumulation": 4, "compile": True},
    {"batch_size": 2, "accumulation": 8, "compile": True},
)


def make_model(config: Path, processor: Path, folder: Path) -> None:
    import torch
    from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration

    folder.mkdir()
    for file in processor.iterdir():
        shutil.copy(file, folder / file.name)
    shutil.copy(config, folder / "config.json")
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = Qwen2_5_VLForConditionalGeneration._from_config(AutoConfig.from_pretrained(folder))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.02)
    model.save_pretrained(folder)


def make_source(folder: Path, pictures: int) -> Path:
    from PIL import Image

    folder.mkdir()
    draw = random.Random(0)
    rows = []
    for number in range(pictures):
        small = Image.effect_noise((64, 48), 80).convert("RGB")
        small.resize((640, 480), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg")
        for part in range(4):
            x, y = draw.randrange(400), draw.randrange(300)
            box = [x, y, x + draw.randrange(40, 240), y + draw.randrange(40, 180)]
            rows.append(
                {"image": f"{number}.jpg", "query": f"the large thing number {part} near the window", "bbox": box}
            )
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(root: Path, name: str, gpus: str, settings: dict, *, steps: int, stop_after: int) -> dict:
    words = [f"{key}={value}" for key, value in settings.items()]
    command = [
        sys.executable,
        "-m",
        "qwenft",
        "train",
        "--model",
        str(root / "model"),
        "--data",
        "bench",
        "--name",
        name,
    ]
    command += ["--gpus", gpus, "--json", f"max_steps={steps}", "eval_samples=0", "workers=8", *words]
    kept = root / "runs" / name / "events.jsonl"
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None:  # a run long enough that its layers are compiled is stopped once it is measured
        time.sleep(0.5)
        if kept.is_file() and kept.read_text().count('"event": "step"') >= stop_after:
            process.send_signal(signal.SIGINT)
            break
    said = process.communicate()[1]
    events = [json.loads(line) for line in kept.read_text().splitlines()] if kept.is_file() else []
    if sum(event["event"] == "step" for event in events) < 3:
        return {"settings": settings, "gpus": gpus, "error": said[-1500:]}
    plan = next(event for event in events if event["event"] == "plan")
    later = [event for event in events if event["event"] == "step"][2:]
    peak, estimate = max(e["memory_gib"] for e in later), plan["memory_gib"]["total"]
    shutil.rmtree(root / "runs" / name)
    return {
        "settings": settings, "gpus": gpus, "peak_gib": peak, "estimate": plan["memory_gib"],
        "samples_per_s": round(statistics.median(e["samples_per_s"] for e in later), 2),
        "tokens_per_s": round(statistics.median(e["tokens_per_s"] for e in later)),
        "wait_share": round(statistics.median(e["wait_share"] for e in later), 3), "batch": plan["batch"],
        "warnings": [line for line in said.splitlines() if "warning" in line],
        "ratio": round(estimate / peak, 3), "losses": [round(e["loss"], 4) for e in events if e["event"] == "step"],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("processor", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--gpus", action="append")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--stop-after", type=int, default=10**9, help="updates, of a run that plans --steps of them")
    parser.add_argument("--plain", action="store_true", help="each setting a second time with fast=false")
    parser.add_argument(
        "--settings", type=int, nargs="*", default=range(len(SETTINGS)), help="numbers of the rows, from 0"
    )
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_model(options.config, options.processor, root / "model")
        source = make_source(root / "source", 96)
        prepare = [
            sys.executable,
            "-m",
            "qwenft",
            "prepare",
            "--dataset",
            str(source),
            "--out",
            "data/bench",
            "--preview",
            "0",
        ]
        subprocess.run(prepare, cwd=root, check=True)
        for gpus in options.gpus or ["0"]:
            for number in options.settings:
                for more in ({}, {"fast": False}) if options.plain else ({},):
                    name = f"r{gpus.replace(',', '-')}-{number}-{len(more)}"
                    rows.append(
                        run(
                            root, name, gpus, {**SETTINGS[number], **more}, steps=options.steps,
                            stop_after=options.stop_after,
                        )
                    )  # fmt: skip
                    print(json.dumps(rows[-1])[:600], flush=True)
                    (options.out / "training.json").write_text(json.dumps(rows, indent=1))
    print("gpus  samples/s  peak GiB  estimate  ratio  settings")
    for row in rows:
        if "error" not in row:
            print(
                f"{row['gpus']:<5} {row['samples_per_s']:9.2f} {row['peak_gib']:9.2f} {row['estimate']['total']:9.2f} "
                f"{row['ratio']:6.2f}  {row['settings']}"
            )


if __name__ == "__main__":
    main()
