"""A run: its state, settings, contract, checkpoints, and an adapter that does something."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from qwenft.core.config import load_config
from qwenft.core.errors import ConfigError, DataError, ModelError
from qwenft.core.runs import Contract, Run, open_run
from qwenft.doctor.findings import Finding, Verdict
from qwenft.train.checkpoints import complete_checkpoints, torn_checkpoints
from qwenft.train.overview import State, summarize

FILES: Final = ("adapter_model.safetensors", "trained_weights.safetensors")
"""What training leaves: LoRA, or whole weights."""
_STATES: Final[dict[State, Verdict]] = {"failed": "warning", "interrupted": "warning", "stopped": "note"}
EXPONENT: Final = {"F32": ("<u4", 0x7F800000), "BF16": ("<u2", 0x7F80), "F16": ("<u2", 0x7C00)}
"""Number format -> how it is read as whole numbers, and the bits that are all set in NaN and infinity."""


def check_run(name: str, *, root: Path | None = None) -> list[Finding]:
    """Look at what a run left.  Raises RunError where there is none of that name."""
    run = Run(open_run(name, root).path.resolve())
    return [_state(run), _settings(run), *_adapter(run), _checkpoints(run)]


def _state(run: Run) -> Finding:
    summary = summarize(run)
    steps = f"step {summary.step} of {summary.total}" if summary.total else f"step {summary.step}"
    best = f", {summary.metric} {summary.best:.3f} (base {summary.baseline:.3f})" if _measured(summary) else ""
    text = f"{summary.state}, {steps}{best}" + (f"; {summary.error}" if summary.error else "")
    mend = "" if summary.state in ("finished", "running") else summary.next_command
    troubles = f"; {len(summary.troubles)} warnings: {summary.troubles[0]}" if summary.troubles else ""
    verdict = _STATES.get(summary.state, "warning" if troubles else "ok")
    return Finding("state", verdict, text + troubles, mend)


def _measured(summary: object) -> bool:
    return getattr(summary, "best", None) is not None and getattr(summary, "baseline", None) is not None


def _settings(run: Run) -> Finding:
    try:
        config = load_config(run.config)
    except ConfigError as error:
        return Finding("settings", "warning", str(error), "another version of qwenft wrote it")
    return Finding("settings", "ok", f"{config.method} on {', '.join(config.parts)} of {config.model}")


def _adapter(run: Run) -> Iterator[Finding]:
    """The contract, and the weights as they lie in the file: no torch is loaded."""
    if not run.adapter.is_dir():
        yield Finding(
            "adapter", "note" if not run.finished else "broken", "there is none yet", f"qwenft runs {run.name}"
        )
        return
    try:
        contract = Contract.read(run.adapter)
    except (ModelError, DataError) as error:
        yield Finding(
            "contract", "broken", str(error), getattr(error, "hint", "") or f"qwenft train --resume {run.name}"
        )
    else:
        text = (
            f"{contract.base}, {contract.min_pixels} to {contract.max_pixels} px, {len(contract.pictures):,} pictures"
        )
        yield Finding("contract", "ok", text)
    path = next((run.adapter / file for file in FILES if (run.adapter / file).is_file()), None)
    if path is None:
        yield Finding("adapter", "broken", f"{run.adapter} has no weights", f"qwenft train --resume {run.name}")
        return
    yield weights_finding(path, f"qwenft train --resume {run.name}")


def weights_finding(path: Path, mend: str) -> Finding:
    """Whether a file of trained weights is whole, finite, and, for LoRA, not idle: B = 0 changes nothing."""
    try:
        idle, broken, count = _read_weights(path)
    except (ValueError, KeyError, OSError) as error:
        return Finding("adapter", "broken", f"{path} is no whole safetensors file: {error}", mend)
    if broken:
        return Finding(
            "adapter", "broken", f"{len(broken)} of {count} tensors hold NaN or infinity, e.g. {broken[0]}", mend
        )
    ups = count // 2
    if idle and len(idle) == ups:
        return Finding("adapter", "broken", f"all {ups} LoRA layers are zero: it changes nothing", "train it longer")
    if idle:
        text = f"{len(idle)} of {ups} LoRA layers are zero, e.g. {idle[0]}"
        return Finding("adapter", "warning", text, "did a gradient reach them? qwenft train asserts it")
    return Finding("adapter", "ok", f"{count:,} tensors, {path.stat().st_size / 1e6:.1f} MB, finite, none idle")


def _read_weights(path: Path) -> tuple[list[str], list[str], int]:
    """Names of LoRA's B matrices that are zero, of tensors that are not finite, and the number of all."""
    import numpy as np

    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        start = file.tell()
        header.pop("__metadata__", None)
        idle, broken = [], []
        for name, tensor in header.items():
            first, last = tensor["data_offsets"]
            kind, bits = EXPONENT[tensor["dtype"]]
            file.seek(start + first)
            values = np.frombuffer(file.read(last - first), kind)
            if values.size != math.prod(tensor["shape"]):
                raise ValueError(f"it ends within {name}")
            if ".lora_B." in name and not (values << 1).any():
                idle.append(name)  # shifted: a negative zero is one too
            if ((values & bits) == bits).any():
                broken.append(name)
    return idle, broken, len(header)


def _checkpoints(run: Run) -> Finding:
    whole, torn = complete_checkpoints(run.checkpoints), torn_checkpoints(run.checkpoints)
    text = f"{len(whole)} whole" + (f", the last one {whole[-1].name}" if whole else "")
    if torn:
        names = ", ".join(path.name for path in torn)
        return Finding("checkpoints", "warning", f"{text}; torn, and passed over: {names}", f"rm -r {torn[0]}")
    if not whole:
        return Finding("checkpoints", "note", "none: the run cannot be gone on with")
    return Finding("checkpoints", "ok", text)
