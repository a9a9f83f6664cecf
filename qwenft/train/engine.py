"""Engines: how processes share a model, in the Trainer's words; and whole weights out of divided ones."""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import torch
from accelerate import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import TrainingArguments

from qwenft.core.config import TrainConfig

LAYERS: Final = ("Qwen2_5_VLDecoderLayer", "Qwen2_5_VLVisionBlock")
"""What FSDP gathers and lets go of at a time."""


def engine_arguments(config: TrainConfig, layers: Sequence[str] = LAYERS) -> dict[str, Any]:
    """What TrainingArguments are told about the engine and about recomputing activations.

    layers: classes of the modules that FSDP divides one by one.
    """
    if config.engine == "fsdp":
        divided = {
            "version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "transformer_layer_cls_to_wrap": list(layers),
            "reshard_after_forward": True, "state_dict_type": "FULL_STATE_DICT",
            "activation_checkpointing": config.checkpointing,
        }  # fmt: skip
        return {"fsdp": True, "fsdp_config": divided}
    if config.engine == "deepspeed":
        return {"deepspeed": _zero(config), "activation_checkpointing": config.checkpointing}
    return {"activation_checkpointing": config.checkpointing}


def _zero(config: TrainConfig) -> dict[str, Any]:
    """DeepSpeed's settings.  No "optimizer": the Trainer's AdamW, torch's own, is used, and no op is built."""
    return {
        "zero_optimization": {"stage": config.zero_stage, "overlap_comm": True, "contiguous_gradients": True},
        "bf16": {"enabled": "auto"},
        "gradient_clipping": "auto",
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }


def start_deepspeed(kind: str) -> None:
    """Let DeepSpeed take over the process group that is there, before a model is read under ZeRO-3."""
    import deepspeed
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    logging.getLogger("accelerate.accelerator").setLevel(logging.ERROR)  # of accumulation, which the Trainer counts
    if kind == "cpu":
        # Else it compiles an operator for shared memory, with DS_BUILD_OPS=0 too (deepspeed 0.19, comm/torch.py).
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # What its checkpoints hold beside tensors; the launcher has torch refuse everything else.
    torch.serialization.add_safe_globals([LossScaler, ZeroStageEnum, fragment_address])
    deepspeed.init_distributed("gloo" if kind == "cpu" else "nccl", auto_mpi_discovery=False, verbose=False)


def with_precision(arguments: TrainingArguments) -> TrainingArguments:
    """Let FSDP add gradients up in float32 and hand the loss on as it is; accelerate alone would round both to bf16."""
    if arguments.fsdp_plugin_args is not None and arguments.bf16:
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        arguments.fsdp_plugin_args["mixed_precision_policy"] = policy
    return arguments


def hold_to_engine(trainer: Any, config: TrainConfig) -> None:
    """Let accelerate divide by FSDP on the CPU too: it leaves the plugin out there and takes DDP without a word.

    Seen with accelerate 1.15 (state.py); preflight looks whether weights are divided as asked.
    """
    # The Trainer multiplies the loss in place, which is no view; the logits are one, and nothing is done to them.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view", category=UserWarning)
    if config.engine == "fsdp" and not trainer.is_fsdp_enabled:
        state = trainer.accelerator.state
        state.fsdp_plugin = FullyShardedDataParallelPlugin(**trainer.args.fsdp_plugin_args)
        state.distributed_type = DistributedType.FSDP
        trainer.is_fsdp_enabled = True


def is_divided(model: torch.nn.Module) -> bool:
    """Whether a process holds only its share of a weight."""
    return any(isinstance(parameter, DTensor) or _is_zero3(parameter) for parameter in model.parameters())


def _is_zero3(parameter: torch.nn.Parameter) -> bool:
    return hasattr(parameter, "ds_id")


@contextmanager
def whole_model(model: torch.nn.Module) -> Iterator[None]:
    """Inside the block every process has all weights of a divided model, and its layers keep them.

    So the processes may walk through it each in its own time, as generation does.  All must come here together.
    Weights of two formats (float32 where they learn, bfloat16 where they are frozen) meet in bfloat16.
    """
    with ExitStack() as stack:
        formats = {p.dtype for name, p in model.named_parameters() if p.is_floating_point() and "lora_" not in name}
        if len(formats) > 1:
            stack.enter_context(torch.autocast(next(model.parameters()).device.type, torch.bfloat16))
        divided = [module for module in model.modules() if isinstance(module, FSDPModule)]
        for module in divided:
            module.set_reshard_after_forward(False)
            module.set_reshard_after_backward(False)
            module.unshard()
        by_zero: list[Any] = [parameter for parameter in model.parameters() if _is_zero3(parameter)]
        if by_zero:
            import deepspeed

            stack.enter_context(deepspeed.zero.GatheredParameters(by_zero))
        kept = [parameter for parameter in by_zero if not parameter.ds_persist]
        for parameter in kept:
            parameter.ds_persist = True  # else the first layer's end would let it go
        try:
            yield
        finally:
            for parameter in kept:
                parameter.ds_persist = False
            for module in divided:
                module.set_reshard_after_forward(True)
                module.set_reshard_after_backward(True)
                module.reshard()


def trained_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Every trainable parameter by name, whole, on the CPU.  All processes must come here together."""
    return {name: _whole(p) for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def _whole(parameter: torch.nn.Parameter) -> torch.Tensor:
    if isinstance(parameter, DTensor):
        return parameter.full_tensor().cpu()
    if _is_zero3(parameter):
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().cpu().clone()
    return parameter.detach().cpu().clone()


@torch.no_grad()
def take_state(model: torch.nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Put whole tensors in the place of the parameters of these names, divided as those are."""
    parameters = dict(model.named_parameters())
    for name, value in state.items():
        parameter = parameters[name]
        if isinstance(parameter, DTensor):
            divided = distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
            parameter.copy_(divided)
        elif _is_zero3(parameter):
            import deepspeed

            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                parameter.copy_(value)
        else:
            parameter.copy_(value)
