"""Which devices a command uses: ids as nvidia-smi shows them, checked before torch is imported."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from qwenft.core.errors import DeviceError, UsageError


@dataclass(frozen=True, slots=True)
class Machines:
    """The machines of one training; each is given the same command with its own number."""

    count: int = 1
    number: int = 0
    """From 0; machine 0 writes the run."""
    meeting: str = ""
    """host:port of machine 0, where they find each other."""


ALONE: Final = Machines()


@dataclass(frozen=True, slots=True)
class Devices:
    """The devices of a command on this machine, one process each."""

    kind: Literal["cuda", "cpu"]
    processes: int
    ids: tuple[int, ...] = ()
    """As nvidia-smi shows them."""
    names: tuple[str, ...] = ()
    indices: tuple[int, ...] = ()
    """What torch calls them in a process that sees what this one sees: positions in CUDA_VISIBLE_DEVICES."""
    machines: Machines = ALONE

    @property
    def world(self) -> int:
        """Processes on all machines."""
        return self.processes * self.machines.count

    def environment(self) -> dict[str, str]:
        """What a child process must be given before its CUDA starts; there cuda:0 is the first of `ids`."""
        visible = ",".join(str(i) for i in self.ids)
        return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": visible}

    def mapping(self) -> list[str]:
        """How torch's names and nvidia-smi's ids belong together: `cuda:0 = GPU 1 (NVIDIA H100)`."""
        if self.kind == "cpu":
            return ["cpu"] if self.processes == 1 else [f"cpu, {self.processes} processes"]
        pairs = zip(self.ids, self.names, strict=True)
        return [f"cuda:{number} = GPU {gpu} ({name})" for number, (gpu, name) in enumerate(pairs)]


def choose_machines(count: int, number: int | None, meeting: str | None) -> Machines:
    """Read `--nnodes`, `--node-rank` and `--rdzv`.  Raises UsageError for what does not fit together."""
    if count == 1 and number is None and meeting is None:
        return ALONE
    hint = f"--nnodes {max(count, 2)} --node-rank 0 --rdzv host-of-machine-0:29500"
    if count < 2:
        raise UsageError("--node-rank and --rdzv are for several machines: --nnodes says how many", hint=hint)
    if number is None or not 0 <= number < count:
        raise UsageError(f"--node-rank must be 0 to {count - 1}, a number of its own for each machine", hint=hint)
    if meeting is None or not re.fullmatch(r"[^\s:]+:\d{1,5}|\[[0-9a-fA-F:]+\]:\d{1,5}", meeting):
        raise UsageError("--rdzv must be host:port of machine 0, the same on each machine", hint=hint)
    return Machines(count, number, meeting)


def choose_devices(gpus: str | None, environment: Mapping[str, str] = os.environ, *, imagined: bool = False) -> Devices:
    """Read `--gpus`: `0`, `1,3`, `all`, `cpu`, `cpu:2`; None: the first GPU, or the CPU where there is none.

    A CUDA_VISIBLE_DEVICES that is set already is respected: ids outside it are refused.
    imagined: on a machine without any GPU take those named as if they were there, for a plan.
    Raises UsageError for what cannot be read, DeviceError for what is not there.
    """
    text = "auto" if gpus is None else gpus.strip().lower()
    if match := re.fullmatch(r"cpu(?::([1-9]\d?))?", text):
        return Devices("cpu", int(match.group(1) or 1))
    names, problem = _installed_gpus()
    allowed = _allowed(environment.get("CUDA_VISIBLE_DEVICES"), names)
    if text == "auto":
        return _cuda(allowed[:1], names, allowed) if allowed else Devices("cpu", 1)
    ids = allowed if text == "all" else _parse_ids(text)
    if not names and imagined and ids:
        return Devices("cuda", len(ids), ids, ("not on this machine",) * len(ids), tuple(range(len(ids))))
    if not names:
        raise DeviceError(f"--gpus {gpus}: no NVIDIA GPU is there ({problem})", hint="--gpus cpu")
    for gpu in ids:
        if gpu not in names:
            listed = ", ".join(f"{i} ({name})" for i, name in names.items())
            raise DeviceError(f"--gpus {gpus}: there is no GPU {gpu}", hint=f"there are: {listed}")
        if gpu not in allowed:
            outside = environment.get("CUDA_VISIBLE_DEVICES")
            inside = f"--gpus {','.join(map(str, allowed))}, or " if allowed else ""
            raise DeviceError(
                f"--gpus {gpus}: GPU {gpu} is outside CUDA_VISIBLE_DEVICES={outside}",
                hint=f"{inside}unset CUDA_VISIBLE_DEVICES",
            )
    if not ids:
        raise DeviceError("--gpus all: CUDA_VISIBLE_DEVICES hides every GPU", hint="--gpus cpu")
    return _cuda(ids, names, allowed)


def choose_device(gpus: str | None) -> Devices:
    """The one device that answers.  Raises DeviceError where several are named, and what `choose_devices` raises."""
    devices = choose_devices(gpus)
    if devices.processes > 1:
        raise DeviceError(f"predict and eval use one device, {gpus} names {devices.processes}", hint="--gpus 0")
    return devices


def _cuda(ids: tuple[int, ...], names: Mapping[int, str], allowed: tuple[int, ...]) -> Devices:
    return Devices("cuda", len(ids), ids, tuple(names[i] for i in ids), tuple(allowed.index(i) for i in ids))


def _parse_ids(text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",")]
    if not all(re.fullmatch(r"\d{1,3}", word) for word in words):
        raise UsageError(f"--gpus {text!r} cannot be read", hint="--gpus 0, --gpus 1,3, --gpus all, or --gpus cpu")
    ids = tuple(int(word) for word in words)
    doubled = {gpu for gpu in ids if ids.count(gpu) > 1}
    if doubled:
        raise UsageError(f"--gpus {text}: GPU {min(doubled)} stands there twice", hint="name each GPU once")
    return ids


def _installed_gpus() -> tuple[dict[int, str], str]:
    """id -> name in nvidia-smi's order, through NVML, which needs no CUDA; and why there is none."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return {}, str(error)
    try:
        count = pynvml.nvmlDeviceGetCount()
        return {i: pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(i)) for i in range(count)}, "none found"
    except pynvml.NVMLError as error:
        return {}, str(error)
    finally:
        pynvml.nvmlShutdown()


def _allowed(visible: str | None, names: Mapping[int, str]) -> tuple[int, ...]:
    if visible is None:
        return tuple(names)
    words = [word.strip() for word in visible.split(",") if word.strip()]
    if not all(word.lstrip("-").isdigit() for word in words):
        raise DeviceError(
            f"CUDA_VISIBLE_DEVICES={visible} names GPUs by UUID, --gpus by number",
            hint="set it to the numbers that nvidia-smi shows, or unset it",
        )
    ids = []
    for word in words:  # as CUDA reads it: the list ends at the first id that is not there
        if int(word) not in names:
            break
        ids.append(int(word))
    return tuple(ids)
