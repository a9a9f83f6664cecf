"""What a run leaves for people: the adapter's model card and the curves."""

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from qwenft.core.config import TrainConfig, to_yaml
from qwenft.core.files import write_whole
from qwenft.core.runs import Contract, Run

_KINDS: Final = {"lora": "a LoRA adapter for", "full": "weights from a full fine-tuning of"}


def write_card(
    folder: Path, config: TrainConfig, contract: Contract, evals: Sequence[Mapping[str, Any]], memory: str
) -> None:
    """Write README.md beside an adapter: what it is, what was measured, how it is used.

    memory: what its training took, as a sentence's end.
    """
    rows = "\n".join(
        f"| {e['step']} | {metric} | {_shown(value)} | {e['samples']} |" for e in evals for metric, value in _figures(e)
    )
    measured = (
        f"| step | metric | value | held-out samples |\n|---|---|---|---|\n{rows}" if evals else "Nothing was measured."
    )
    write_whole(
        folder / "README.md",
        f"""---
base_model: {contract.base}
library_name: {"peft" if config.method == "lora" else "transformers"}
pipeline_tag: image-text-to-text
tags: [qwen2.5-vl, grounding, {config.method}, qwenft]
---
# {contract.data}: {_KINDS[config.method]} {contract.base}

Trained by qwenft {contract.versions.get("qwenft", "")} on {len(contract.pictures)} pictures of {_named(contract)}
({", ".join(contract.tasks)}). Step 0 is the base model, asked in the same way. Its training took {memory}.

{measured}

Boxes are answered in pixels of the resized input ({contract.min_pixels} to {contract.max_pixels} px a picture);
`contract.json` says all that the adapter depends on.

    qwenft predict photo.jpg "find the dog" --run {folder.parent.name}

Settings:

```yaml
{to_yaml(config)}```
""",
    )


def _named(contract: Contract) -> str:
    return ", ".join(f"`{name}`" for name in contract.data.split(", "))


def _figures(event: Mapping[str, Any]) -> list[tuple[str, float | None]]:
    """What an evaluation measured; of several tasks their mean and each."""
    parts = event.get("by_task", {})
    found = [(event["metric"], event["value"])]
    if len(parts) > 1:
        found += [(f"{task}: {part['metric']}", part["value"]) for task, part in parts.items()]
    return found


def _shown(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}"


def write_curves(run: Run) -> None:
    """Draw loss and held-out metric over the steps into curves.png."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    events = list(run.read_events())
    figure = Figure(figsize=(9, 3.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    losses = [(e["step"], e["loss"]) for e in events if e["event"] == "step"]
    _line(left, losses, "loss a target token", marker="")
    evals = [(e["step"], e["value"]) for e in events if e["event"] == "eval" and e["value"] is not None]
    metric = next((e["metric"] for e in events if e["event"] == "eval"), "not measured")
    _line(right, evals, f"{metric}, held out", marker="o")
    right.set_ylim(0, 1)
    figure.suptitle(run.name)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_whole(run.path / "curves.png", buffer.getvalue())


def _line(axes: Any, points: Iterable[tuple[int, float]], title: str, marker: str) -> None:
    pairs = list(points)
    axes.plot([x for x, _ in pairs], [y for _, y in pairs], marker=marker, linewidth=1.5, color="#1f6feb")
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("update")
    axes.grid(alpha=0.3)
