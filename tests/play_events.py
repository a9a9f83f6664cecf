"""Plays one sequence of events on a Screen, as a command would: the process that tests/test_ui.py looks at."""

import sys
import time

from qwenft.core.errors import RunError
from qwenft.ui import Screen

PATH = "/data/of/somebody/with/a/long/path/runs/first"
PLAN = {
    "event": "plan",
    "devices": ["cuda:0 = GPU 3 (NVIDIA H100)"],
    "data": {"name": "dogs", "split": "train", "samples": 80, "pictures": 40, "absent": 1},
    "model": "tiny",
    "batch": {"batch_size": 4, "devices": 1, "accumulation": 2, "effective": 8},
    "updates": {"total": 10, "per_epoch": 10, "formula": "ceil(ceil(80 / 4) / 2) x 1 = 10"},
    "evaluations": [0, 10],
    "checkpoints": [10],
    "lora": {"modules": {"language": 42}, "trainable": 175104, "total": 4837000, "share": 0.0362},
    "image_tokens": {"min": 28, "median": 30, "max": 36},
    "memory_gib": {"total": 0.09, "assumes": "float32 weights"},
}
EVAL = {"event": "eval", "samples": 6, "metric": "Acc@0.5", "parse_rate": 1.0, "seconds": 2.0}


def step(number: int) -> dict[str, object]:
    return {
        "event": "step", "step": number, "epoch": number / 10, "loss": 4.0 - number / 10, "learning_rate": 1e-4,
        "grad_norm": 1.5, "samples_per_s": 30.0, "tokens_per_s": 3000.0, "memory_gib": 1.25,
    }  # fmt: skip


EVENTS = [
    {"event": "waiting", "text": "loading torch and transformers"},
    {"event": "run", "name": "first", "path": PATH},
    PLAN,
    {"event": "progress", "what": "fetch", "done": 1_500_000_000, "total": 7_500_000_000},
    {"event": "progress", "what": "fetch", "done": 7_500_000_000, "total": 7_500_000_000},
    {**EVAL, "step": 0, "value": 0.25},
    *(step(number) for number in range(1, 11)),
    {**EVAL, "step": 10, "value": 0.5},
    {"event": "adapter", "step": 10, "value": 0.5, "path": f"{PATH}/adapter"},
    {"event": "checkpoint", "step": 10, "path": f"{PATH}/checkpoints/step-10"},
    {
        "event": "finished", "steps": 10, "seconds": 12.0, "adapter": f"{PATH}/adapter", "best_step": 10,
        "value": 0.5, "metric": "Acc@0.5", "baseline": 0.25,
    },
    {"event": "warning", "text": "xyxy: 68 of 68 boxes fit; xywh is refuted by 58, e.g. line 1: [20, 213, 81, 285]"},
]  # fmt: skip


def main(mode: str) -> None:
    with Screen() as screen:
        for event in EVENTS:
            screen.emit(event)
            time.sleep(0.15 if event["event"] == "progress" else 0.04)
        if mode == "json":
            screen.result({"run": "first", "label": "红 dog é", "path": PATH})
            return
        screen.facts([("run", PATH), ("adapter", f"{PATH}/adapter")])
        screen.table("scores", ("figure", "base", "adapter"), [("Acc@0.5", "0.250", "0.500"), ("[bold]x", "", "1.000")])
        screen.hint("qwenft eval --run first --baseline")
        screen.error(RunError("there is no run 'frist'", hint="did you mean 'first'?"))


if __name__ == "__main__":
    main(sys.argv[1])
