"""The machine: Python, packages, driver, GPUs, torch, optional libraries, hub, disk and locale."""

import locale
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from qwenft.core.events import Emit, ignore, progress
from qwenft.doctor.findings import Finding
from qwenft.doctor.network import hub_finding
from qwenft.doctor.probes import ask
from qwenft.train.preflight import EXTRAS, NEEDED

PYTHON: Final = (3, 11)
BF16_FROM: Final = (8, 0)
"""Compute capability from which a GPU multiplies in bfloat16: Ampere."""
NO_DRIVER: Final = (9, 12)
"""NVML_ERROR_DRIVER_NOT_LOADED and NVML_ERROR_LIBRARY_NOT_FOUND (nvml.h)."""
ENOUGH_GB: Final = 10.0
"""Qwen2.5-VL-3B is 7.5 GB; a run of it with a data set and checkpoints takes a little more."""
CUDA_MEND: Final = "install the torch that fits your driver: https://pytorch.org/get-started/locally"
USES: Final = {"bitsandbytes": "quantize=4bit", "deepspeed": "engine=deepspeed"}


def check_machine(emit: Emit = ignore) -> list[Finding]:
    """Look at everything that qwenft depends on; heavy libraries load in child processes, each bounded in time."""
    parts: list[Callable[[], list[Finding]]] = [
        lambda: [python_finding(), packages_finding()],
        _devices,
        lambda: [optional_finding("bitsandbytes")],
        lambda: [optional_finding("deepspeed")],
        lambda: [hub_finding()],
        lambda: [cache_finding(), disk_finding(Path.cwd()), locale_finding()],
    ]
    found: list[Finding] = []
    emit(progress("checks", 0, len(parts)))
    with ThreadPoolExecutor(len(parts)) as pool:
        for done, part in enumerate([pool.submit(part) for part in parts], start=1):
            found += part.result()
            emit(progress("checks", done, len(parts)))
    return found


def python_finding() -> Finding:
    """The interpreter."""
    text = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info < PYTHON:
        return Finding("Python", "broken", text, "use Python 3.11 or newer: uv python install 3.12")
    return Finding("Python", "ok", text)


def packages_finding() -> Finding:
    """What qwenft says that it needs, against what is installed; nothing is imported."""
    from packaging.requirements import Requirement

    wrong, count = [], 0
    try:
        declared = metadata.requires("qwenft") or []
    except metadata.PackageNotFoundError:
        return Finding("packages", "note", "qwenft runs from a folder and is not installed", "pip install .")
    for text in declared:
        needed = Requirement(text)
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        count += 1
        try:
            version = metadata.version(needed.name)
        except metadata.PackageNotFoundError:
            wrong.append((needed, "missing"))
            continue
        if not needed.specifier.contains(version, prereleases=True):
            wrong.append((needed, version))
    if wrong:
        text = ", ".join(f"{needed.name} is {found}, needed {needed.specifier}" for needed, found in wrong)
        return Finding("packages", "broken", text, f"pip install '{wrong[0][0].name}{wrong[0][0].specifier}'")
    return Finding("packages", "ok", f"all {count} that are needed fit")


def _devices() -> list[Finding]:
    """Driver and GPUs as NVML shows them, and what torch makes of them."""
    gpus = list(gpu_findings())
    return [*gpus, *torch_findings(ask("torch"), num_gpus=sum(gpu.check.startswith("GPU") for gpu in gpus))]


def gpu_findings() -> Iterator[Finding]:
    """The driver, then each GPU by nvidia-smi's number."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        if getattr(error, "value", None) in NO_DRIVER:
            yield Finding("driver", "note", f"no NVIDIA driver ({error}): training runs on the CPU", "--gpus cpu")
        else:
            yield Finding("driver", "broken", f"the NVIDIA driver answers: {error}", "nvidia-smi; then start again")
        return
    try:
        cuda = pynvml.nvmlSystemGetCudaDriverVersion()
        yield Finding(
            "driver", "ok", f"{pynvml.nvmlSystemGetDriverVersion()}, CUDA up to {cuda // 1000}.{cuda % 1000 // 10}"
        )
        for number in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(number)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            capability = tuple(pynvml.nvmlDeviceGetCudaComputeCapability(handle))
            yield gpu_finding(
                number, pynvml.nvmlDeviceGetName(handle), capability, memory.total / 2**30, memory.free / 2**30
            )
    except pynvml.NVMLError as error:
        yield Finding("driver", "broken", f"the NVIDIA driver answers: {error}", "nvidia-smi")
    finally:
        pynvml.nvmlShutdown()


def gpu_finding(number: int, name: str, capability: tuple[int, ...], total_gib: float, free_gib: float) -> Finding:
    """One GPU: its memory, and whether it multiplies in bfloat16."""
    bf16 = capability >= BF16_FROM
    text = f"{name}, {free_gib:.1f} of {total_gib:.1f} GiB free, bf16 {'yes' if bf16 else 'no'}"
    if not bf16:
        return Finding(f"GPU {number}", "warning", text, "dtype=float32 trains on it, slowly")
    if free_gib < total_gib / 2:
        return Finding(f"GPU {number}", "warning", f"{text}: others are using it", "nvidia-smi shows who")
    return Finding(f"GPU {number}", "ok", text)


def torch_findings(found: dict[str, Any], *, num_gpus: int) -> list[Finding]:
    """What the probe of torch says, against the GPUs that NVML sees."""
    if "error" in found:
        return [
            Finding("torch", "broken", f"cannot be loaded: {found['error']}", "pip install --force-reinstall torch")
        ]
    build = f"{found['version']}, {'CUDA ' + found['cuda'] if found['cuda'] else 'a CPU build'}"
    if num_gpus and not found["available"] and os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        rows = [
            Finding("torch", "note", f"{build}; CUDA_VISIBLE_DEVICES hides every GPU", "unset CUDA_VISIBLE_DEVICES")
        ]
    elif num_gpus and not found["available"]:
        rows = [Finding("torch", "broken", f"{build}: it cannot use the GPUs that are there", CUDA_MEND)]
    else:
        rows = [Finding("torch", "ok", f"{build}, loads in {found['seconds']} s")]
    if found["torchvision"]:
        mend = "pip install --force-reinstall torch torchvision"
        rows.append(Finding("torchvision", "broken", f"does not fit this torch: {found['torchvision']}", mend))
    for number, why in enumerate(found["devices"]):
        if why:
            rows.append(Finding(f"cuda:{number}", "broken", f"a product in bf16 fails: {why}", CUDA_MEND))
    return [*rows, _varlen_finding(found["varlen"], found["available"]), _nccl_finding(found["nccl"], num_gpus)]


def _varlen_finding(why: str, has_gpu: bool) -> Finding:
    name = "varlen attention"
    if not why:
        return Finding(name, "ok", "works")
    if not has_gpu:
        return Finding(name, "note", "needs a GPU; the CPU takes the plain way, with equal results")
    return Finding(name, "warning", f"{why}: the vision tower takes the plain way, slower", CUDA_MEND)


def _nccl_finding(version: str | None, num_gpus: int) -> Finding:
    if version:
        return Finding("NCCL", "ok", version)
    if num_gpus > 1:
        return Finding("NCCL", "warning", "this torch has none: several GPUs cannot train together", CUDA_MEND)
    return Finding("NCCL", "note", "not in this torch; only several GPUs need it")


def optional_finding(name: str) -> Finding:
    """A library that only one setting needs."""
    mend = f"pip install 'qwenft[{EXTRAS[name]}]'"
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding(name, "note", f"not installed; only {USES[name]} needs it", mend)
    from packaging.version import Version

    oldest = next(least for package, least in NEEDED.values() if package == name)
    if Version(version) < Version(oldest):
        return Finding(name, "warning", f"{version}; {oldest} or later was tried", mend)
    found = ask(name)
    if "error" in found or not found.get("works", True):
        why = found.get("error", "it packs weights wrongly")
        return Finding(name, "warning", f"{version} does not work, {USES[name]} needs it: {why}", mend)
    return Finding(name, "ok", version)


def cache_finding() -> Finding:
    """Where the hub's files are kept, and whether a model fits there."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser().absolute()
    return _room("cache", cache, "export HF_HOME=/a/larger/disk")


def disk_finding(folder: Path) -> Finding:
    """The disk on which data/ and runs/ lie."""
    return _room("disk", folder.absolute(), "go to a folder on a larger disk")


def _room(name: str, folder: Path, mend: str) -> Finding:
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free_gb = shutil.disk_usage(there).free / 1e9
    text = f"{folder}, {free_gb:.1f} GB free"
    if not os.access(there, os.W_OK):
        return Finding(name, "warning", f"{text}, and you may not write there", mend)
    if free_gb < ENOUGH_GB:
        return Finding(name, "warning", f"{text}: the 3B model alone takes 7.5", mend)
    return Finding(name, "ok", text)


def locale_finding() -> Finding:
    """Whether names and labels of any language can be read and shown."""
    encodings = {
        "files": sys.getfilesystemencoding(),
        "text": locale.getpreferredencoding(False),
        "stdout": sys.stdout.encoding or "none",
    }
    others = {what: name for what, name in encodings.items() if name.lower().replace("-", "") not in ("utf8", "none")}
    if others:
        text = ", ".join(f"{what} in {name}" for what, name in others.items())
        return Finding("locale", "warning", f"{text}, not UTF-8: some names cannot be shown", "export PYTHONUTF8=1")
    return Finding("locale", "ok", "UTF-8")
