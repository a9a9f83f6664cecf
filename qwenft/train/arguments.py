"""The settings of a run in the Trainer's words."""

import torch
from transformers import TrainingArguments

from qwenft.core.config import TrainConfig
from qwenft.core.devices import Devices
from qwenft.core.errors import DeviceError
from qwenft.core.runs import Run
from qwenft.train.engine import engine_arguments, with_precision
from qwenft.train.forecast import SCHEDULES, warmup_updates
from qwenft.train.memory import is_wide


def training_arguments(config: TrainConfig, devices: Devices, run: Run, total: int) -> TrainingArguments:
    """What the Trainer is told.  total: of the run's updates.  Raises DeviceError for a GPU that torch cannot use."""
    on_gpu = devices.kind == "cuda"
    if on_gpu and not torch.cuda.is_available():
        raise DeviceError("a GPU is there, but this torch cannot use it", hint="nvidia-smi; or --gpus cpu")
    casts_itself = config.fast and config.method == "lora" and config.engine == "ddp"  # model/lora.py: no autocast
    by_deepspeed = config.engine == "deepspeed"  # its engine steps at each backward: it has to count them itself
    arguments = TrainingArguments(
        output_dir=str(run.checkpoints / ".staging"),
        use_cpu=not on_gpu,
        ddp_backend="gloo" if devices.world > 1 and not on_gpu else None,
        ddp_find_unused_parameters=False,
        bf16=not is_wide(config, devices.kind) and not casts_itself,
        seed=config.seed,
        data_seed=config.seed,
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        per_device_train_batch_size=config.batch_size * (1 if by_deepspeed else config.accumulation),
        gradient_accumulation_steps=config.accumulation if by_deepspeed else 1,
        learning_rate=config.learning_rate,
        lr_scheduler_type=SCHEDULES[config.schedule],
        warmup_steps=warmup_updates(config, total),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        **engine_arguments(config),
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",  # Conductor says when
        eval_strategy="no",
        remove_unused_columns=False,
        dataloader_num_workers=config.workers,
        dataloader_pin_memory=on_gpu,
        report_to=list(config.report_to) or "none",
        run_name=run.name,
        disable_tqdm=True,
    )
    return with_precision(arguments)
