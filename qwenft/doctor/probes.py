"""Probes of heavy libraries, each run in a process of its own: `python -m qwenft.doctor.probes torch`.

A probe prints one JSON object as its last line.  It may crash or hang; the one who asked says so.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from qwenft.core.errors import first_line

LIMIT_S: Final = 90
"""A first `import torch` from a slow disk may take a minute."""


def ask(name: str, limit_s: float = LIMIT_S) -> dict[str, Any]:
    """Run a probe in a child process; what went wrong stands under `error`."""
    began = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "qwenft.doctor.probes", name],
            capture_output=True, text=True, errors="replace", timeout=limit_s, check=False, env={**os.environ},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {limit_s:.0f} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        how = f"killed by signal {-done.returncode}" if done.returncode < 0 else f"exit status {done.returncode}"
        return {"error": f"{said[-1] if said else 'no word'} ({how})"}
    found: dict[str, Any] = json.loads(lines[-1])
    return {**found, "seconds": round(time.monotonic() - began, 1)}


def _torch() -> dict[str, Any]:
    import torch

    found: dict[str, Any] = {"version": torch.__version__, "cuda": torch.version.cuda}
    found["available"] = torch.cuda.is_available()
    found["torchvision"] = _trial(_torchvision)
    found["varlen"] = _trial(_varlen) if found["available"] else "there is no GPU"
    found["devices"] = [_trial(_multiply, f"cuda:{i}") for i in range(torch.cuda.device_count())]
    nccl = torch.distributed.is_available() and torch.distributed.is_nccl_available()
    found["nccl"] = ".".join(map(str, torch.cuda.nccl.version())) if nccl and torch.version.cuda else None
    return found


def _trial(what: Callable[..., object], *arguments: str) -> str:
    """Empty where it works, else why it does not."""
    try:
        what(*arguments)
    except (ImportError, RuntimeError, NotImplementedError, OSError, AttributeError, TypeError, ValueError) as error:
        return first_line(error)
    return ""


def _torchvision() -> None:
    import torch
    import torchvision.transforms.v2.functional as tvf

    tvf.resize(torch.zeros(3, 8, 8, dtype=torch.uint8), [4, 4], antialias=True)


def _varlen() -> None:
    import torch
    from torch.nn.attention.varlen import varlen_attn

    qkv = torch.randn(16, 2, 64, device="cuda", dtype=torch.bfloat16)
    borders = torch.tensor([0, 6, 16], device="cuda", dtype=torch.int32)
    varlen_attn(qkv, qkv, qkv, borders, borders, 10, 10)
    torch.cuda.synchronize()


def _multiply(device: str) -> None:
    """A product in bfloat16: what a GPU without it, or a torch without its kernels, refuses."""
    import torch

    ones = torch.ones(64, 64, device=device, dtype=torch.bfloat16)
    if float((ones @ ones).sum()) != 64.0**3:
        raise RuntimeError("a product of ones is wrong")


def _bitsandbytes() -> dict[str, Any]:
    import bitsandbytes
    import torch
    from bitsandbytes import functional

    device = "cuda" if torch.cuda.is_available() else "cpu"
    weights = torch.ones(64, 64, device=device)
    packed, state = functional.quantize_4bit(weights, quant_type="nf4")
    far = float((functional.dequantize_4bit(packed, state) - weights).abs().max())
    return {"version": bitsandbytes.__version__, "device": device, "works": far < 0.1}


def _deepspeed() -> dict[str, Any]:
    import deepspeed

    return {"version": deepspeed.__version__}


PROBES: Final[Mapping[str, Callable[[], dict[str, Any]]]] = {
    "torch": _torch,
    "bitsandbytes": _bitsandbytes,
    "deepspeed": _deepspeed,
}

if __name__ == "__main__":
    sys.stdout.write(f"\n{json.dumps(PROBES[sys.argv[1]]())}\n")
