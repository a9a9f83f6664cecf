"""Before pictures and weights are read: versions, one all-reduce and one tiny step on the engine."""

import tempfile
import time
from datetime import timedelta
from importlib import metadata
from importlib.util import find_spec
from typing import Any, Final

from qwenft.core.config import TrainConfig
from qwenft.core.devices import Devices
from qwenft.core.errors import DataError, DeviceError, RunError
from qwenft.core.events import Event
from qwenft.core.runs import Run

NEEDED: Final = {"deepspeed": ("deepspeed", "0.19"), "4bit": ("bitsandbytes", "0.50")}
"""What a setting needs beside qwenft itself: package, the oldest version that was tried, as in pyproject's extras."""
EXTRAS: Final = {"deepspeed": "deepspeed", "bitsandbytes": "qlora"}
PAIRS: Final = {"ddp": ("torch", "accelerate"), "fsdp": ("torch", "accelerate"), "deepspeed": ("deepspeed", "torch")}
"""The two libraries whose versions must fit, by engine."""
TRIED: Final = {"torch": "2.15", "accelerate": "1.15", "deepspeed": "0.19.8", "bitsandbytes": "0.50.2"}
"""Versions that tests/test_engines.py ran with."""
WAIT_S: Final = 180
"""How long processes wait for each other's first word; the first start of NCCL may take a minute."""
SHARED_S: Final = 30
"""How long a network's file system may take to show a new folder."""
_FAILURES: Final = (
    RuntimeError,
    ImportError,
    AttributeError,
    TypeError,
    ValueError,
    OSError,
    AssertionError,
    LookupError,
)
"""What versions that do not fit end in."""


def check_packages(config: TrainConfig) -> None:
    """Raises DeviceError for a package that a setting needs and that is missing or too old; loads none of them."""
    from packaging.version import Version

    for setting in (config.engine, config.quantize):
        package, oldest = NEEDED.get(str(setting), ("", ""))
        if not package:
            continue
        mend = f"pip install 'qwenft[{EXTRAS[package]}]'"
        try:
            found = metadata.version(package)
        except metadata.PackageNotFoundError:
            raise DeviceError(f"{setting} needs the package {package}, which is not installed", hint=mend) from None
        if Version(found) < Version(oldest):
            partner = f"transformers {metadata.version('transformers')}"
            raise DeviceError(f"{package} {found} is too old for {partner}: {oldest} or later was tried", hint=mend)
    for dashboard in config.report_to:
        if find_spec(dashboard) is None:
            raise DeviceError(
                f"report_to={dashboard} needs the package {dashboard}, which is not installed",
                hint=f"pip install {dashboard}",
            )


def check_engine(config: TrainConfig, devices: Devices) -> None:
    """Raises DeviceError for an engine that has nothing to do here, and what `check_packages` raises."""
    if config.engine == "fsdp" and devices.world == 1:
        raise DeviceError("engine=fsdp divides weights among processes: here is one", hint="--gpus 0,1; or engine=ddp")
    check_packages(config)


def preflight(config: TrainConfig, devices: Devices) -> None:
    """Let the processes count themselves and take one tiny step on the engine.  Raises DeviceError.

    One process with engine=ddp has nothing to fit together and passes at once.
    """
    if devices.world == 1 and config.engine == "ddp":
        return
    try:
        with tempfile.TemporaryDirectory(prefix="qwenft-") as folder:
            trainer = _tiny_trainer(config, devices, folder)
            _count(devices)
            trainer.train()
            _is_as_asked(trainer.model, config)
    except _FAILURES as error:
        raise misfit(config.engine, error) from error
    if config.engine == "deepspeed":
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()


def check_shared(run: Run, plan: Event, devices: Devices) -> None:
    """Hold that several machines see the same data and the same run's folder.  Raises RunError or DataError."""
    if devices.machines.count == 1:
        return
    from torch import distributed

    seen: list[Any] = [None] * devices.world
    distributed.all_gather_object(seen, plan["data"]["sha256"])  # the first process has made the folder
    if any(hashes != seen[0] for hashes in seen):
        raise DataError(f"{plan['data']['path']} is not the same on all machines", hint="copy it, or share its folder")
    end = time.monotonic() + SHARED_S
    while not run.path.is_dir():
        if time.monotonic() > end:
            raise RunError(f"machine 0 made {run.path}, which is not here", hint="start all of them in a shared folder")
        time.sleep(0.2)


def misfit(engine: str, error: Exception) -> DeviceError:
    """The error for an engine that does not run: the two versions, and those that were tried."""
    pair = " with ".join(f"{name} {metadata.version(name)}" for name in PAIRS[engine])
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    tried = " ".join(
        f"'{name}=={TRIED[name]}.*'" if name == "torch" else f"'{name}=={TRIED[name]}'" for name in PAIRS[engine]
    )
    other = "" if engine == "ddp" else "; or engine=ddp"
    return DeviceError(f"a tiny step on engine={engine} fails, {pair}: {first}", hint=f"pip install {tried}{other}")


def _is_as_asked(model: Any, config: TrainConfig) -> None:
    from qwenft.train.engine import is_divided

    should = config.engine == "fsdp" or (config.engine == "deepspeed" and config.zero_stage == 3)
    if is_divided(model) != should:
        raise RuntimeError(f"the weights are {'not ' * should}divided: another engine was used than asked for")


def _count(devices: Devices) -> None:
    import torch
    from torch import distributed

    if not distributed.is_initialized():
        return
    here = torch.ones(1, device="cuda" if devices.kind == "cuda" else "cpu")
    work: Any = distributed.all_reduce(here, async_op=True)
    work.wait(timedelta(seconds=WAIT_S))
    if int(here.item()) != devices.world:
        raise RuntimeError(f"{int(here.item())} of {devices.world} processes answered")


def _tiny_trainer(config: TrainConfig, devices: Devices, folder: str) -> Any:
    import torch
    from transformers import PrinterCallback, Trainer, TrainingArguments

    from qwenft.train.engine import engine_arguments, hold_to_engine, start_deepspeed, with_precision

    class Tiny(torch.nn.Module):
        """One layer and a loss."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 4)

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": (self.layer(x).float() - labels).square().mean()}

    arguments = with_precision(
        TrainingArguments(
            output_dir=folder,
            use_cpu=devices.kind == "cpu",
            ddp_backend="gloo" if devices.kind == "cpu" and devices.world > 1 else None,
            bf16=config.dtype == "bfloat16" or (config.dtype == "auto" and devices.kind == "cuda"),
            max_steps=1,
            per_device_train_batch_size=1,
            ddp_find_unused_parameters=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **engine_arguments(config.model_copy(update={"checkpointing": False}), layers=["Linear"]),
        )
    )
    if config.engine == "deepspeed":
        start_deepspeed(devices.kind)
    rows = [{"x": torch.ones(4), "labels": torch.zeros(4)} for _ in range(devices.world)]
    trainer = Trainer(model=Tiny(), args=arguments, train_dataset=rows)
    trainer.remove_callback(PrinterCallback)
    hold_to_engine(trainer, config)
    return trainer
