"""Models: the base from safetensors, its hashes, LoRA by an anchored pattern, adapters and their contract."""

import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoProcessor,
    BitsAndBytesConfig,
    GenerationConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.utils import logging as transformers_logging

from qwenft.core.answer import Prompts
from qwenft.core.config import DEFAULT_MODEL, TINY, TrainConfig
from qwenft.core.errors import ModelError, first_line
from qwenft.core.files import read_json, sha256_of
from qwenft.core.runs import CONTRACT_FILE, Contract
from qwenft.model.fetch import SINGLE_FILE, WEIGHT_INDEX, model_folder

DEFAULT_MAX_PIXELS: Final = 1280 * 28 * 28
"""1280 tokens a picture, the upper end that the Qwen2.5-VL model card recommends; the processor's own is 16384."""

# Anchored: a suffix list meant for the language model would hit the vision tower's gate/up/down_proj too
# (huggingface/peft #2615, 2U1/Qwen2-VL-Finetune #193).
_LAYERS: Final = {
    "language": r"model\.language_model\.layers\.\d+\.(?:self_attn\.[qkvo]_proj|mlp\.(?:gate|up|down)_proj)",
    "merger": r"model\.visual\.merger\.mlp\.[02]",
    "vision": r"model\.visual\.blocks\.\d+\.(?:attn\.(?:qkv|proj)|mlp\.(?:gate|up|down)_proj)",
}

_PARTS: Final = {
    "merger": re.compile(r"(?:^|\.)visual\.merger\."),
    "vision": re.compile(r"(?:^|\.)visual\.(?!merger\.)"),
    "language": re.compile(r"(?:^|\.)(?:language_model\.|lm_head\.)"),
}
"""Whole parts, by the names of their parameters; embeddings and head belong to the language model, as in the Qwen
team's own script (tune_mm_llm in QwenLM/Qwen2.5-VL, qwen-vl-finetune)."""
ADAPTER_FILE: Final = "adapter_model.safetensors"
WEIGHTS_FILE: Final = "trained_weights.safetensors"
"""Of a full fine-tuning, in place of a LoRA adapter: the weights that were trained, under the model's own names."""


def base_of(model: Any) -> Any:
    """The model itself, with LoRA inside its layers or without."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def quiet_libraries() -> None:
    """Keep the libraries' own bars and advice to developers out of our output; errors still come through."""
    # Where DeepSpeed is installed, transformers loads it to save a model; it sets its own level, and writes to stdout.
    logging.getLogger("DeepSpeed").addFilter(_is_error)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|torch)\.")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def load_config(name: str) -> Any:
    """Read a model's architecture.  Raises ModelError if it is not there or no Qwen2.5-VL."""
    config = _reading(name, lambda: AutoConfig.from_pretrained(model_folder(name, weights=False)))
    if config.model_type != "qwen2_5_vl":
        raise ModelError(
            f"{name} is a {config.model_type} model; qwenft trains Qwen2.5-VL", hint=f"--model {DEFAULT_MODEL}"
        )
    return config


def load_processor(name: str) -> Any:
    """Load tokenizer, chat template and image processor; padding is ours."""
    return _reading(name, lambda: AutoProcessor.from_pretrained(model_folder(name, weights=False)))


def load_base(
    name: str, dtype: torch.dtype, device: torch.device | str, quantize: str | None = None
) -> Qwen2_5_VLForConditionalGeneration:
    """Load the base model's weights, from safetensors only, greedy generation, in eval mode.

    quantize: `4bit` (NF4, its scales quantized too): the language model's layers; vision and head stay as they are.
    """
    load_config(name)
    more: dict[str, Any] = {}
    if quantize:
        check_quantization()
        more = {"quantization_config": _four_bits(dtype), "device_map": {"": device}}
    model = _reading(
        name,
        lambda: Qwen2_5_VLForConditionalGeneration.from_pretrained(
            model_folder(name), dtype=dtype, attn_implementation="sdpa", use_safetensors=True, **more
        ),
    )
    tokens = model.generation_config
    # The released generation_config samples and punishes repetition, which bends coordinates: digits repeat.
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=tokens.eos_token_id, pad_token_id=tokens.pad_token_id
    )
    if not quantize:
        model.to(device)
    for module in model.modules() if quantize else ():
        # bitsandbytes 0.50 repacks weights for AVX-512 when it answers: in bf16, and only widths its block divides.
        module.support_avx512bf16_for_cpu = False
    model.eval()
    return cast(Qwen2_5_VLForConditionalGeneration, model)


def check_quantization() -> None:
    """Raises ModelError where bitsandbytes is missing or does not work."""
    try:
        import bitsandbytes  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        raise ModelError(
            f"quantize=4bit needs bitsandbytes, which cannot be loaded: {error}", hint="pip install 'qwenft[qlora]'"
        ) from error


def _four_bits(dtype: torch.dtype) -> BitsAndBytesConfig:
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=["visual", "lm_head"],  # the name is old: it holds for 4 bits too (transformers 5.24)
    )


def meta_model(config: Any) -> Qwen2_5_VLForConditionalGeneration:
    """The same model without weights, on the meta device: costs neither memory nor time."""
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration._from_config(config, attn_implementation="sdpa")
    return cast(Qwen2_5_VLForConditionalGeneration, model)


def _reading(name: str, read: Callable[[], Any]) -> Any:
    """Read a model's files; what the library says of a broken one becomes ModelError."""
    try:
        return read()
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        first = first_line(error)
        raise ModelError(
            f"the model {name!r} cannot be loaded: {first}", hint=f"--model {DEFAULT_MODEL}, a folder, or {TINY}"
        ) from error


def add_lora(model: Any, parts: Sequence[str], rank: int, alpha: int, dropout: float) -> PeftModel:
    """Put LoRA on the named parts.  Raises ModelError if a part has no layer that matches."""
    for part in parts:
        if not lora_modules(model, part):
            raise ModelError(f"no layer of the model matches the part {part!r}: {_LAYERS[part]}")
    pattern = "|".join(f"(?:{_LAYERS[part]})" for part in parts)
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=rf"^(?:{pattern})$")
    return get_peft_model(model, config)


def lora_modules(model: Any, part: str) -> list[str]:
    """Names of a part's layers that get LoRA."""
    pattern = re.compile(_LAYERS[part])
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and pattern.fullmatch(name)
    ]


def part_of(name: str) -> str:
    """Which part a parameter belongs to, by its name; "" for none.

    >>> part_of("base_model.model.model.visual.merger.mlp.0.lora_A.default.weight"), part_of("lm_head.weight")
    ('merger', 'language')
    """
    return next((part for part, pattern in _PARTS.items() if pattern.search(name)), "")


def trainable_model(base: Any, config: TrainConfig) -> Any:
    """The base with what `config` lets learn: LoRA, or the weights of its parts."""
    if config.method == "full":
        return train_whole_parts(base, config.parts)
    return add_lora(base, config.parts, config.rank, config.alpha, config.dropout)


def train_whole_parts(model: Any, parts: Sequence[str]) -> Any:
    """Let the weights of the named parts learn, in float32, and no other: full fine-tuning.

    float32: AdamW's steps are smaller than what bfloat16 can tell apart.  Weights divided by ZeRO-3 stay as they are:
    DeepSpeed keeps its own float32 copy.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of(name) in parts)
        if parameter.requires_grad and not hasattr(parameter, "ds_id"):
            parameter.data = parameter.data.float()
    return model


def save_trained(model: Any, state: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Write what was trained: a LoRA adapter in PEFT's form, or the changed weights.

    state: the trainable parameters by name, whole (`trained_state` in train/engine.py).
    """
    if isinstance(model, PeftModel):
        # "auto" would ask the hub whether the vocabulary grew; it does not here.
        model.save_pretrained(str(folder), state_dict=dict(state), save_embedding_layers=False)
        return
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, str(folder / WEIGHTS_FILE))


def read_trained(model: Any, folder: Path) -> dict[str, torch.Tensor]:
    """What `save_trained` wrote, under the names of the model's parameters.  Raises ModelError if it does not fit."""
    lora = isinstance(model, PeftModel)
    saved = _reading_adapter(folder, lambda: load_file(str(folder / (ADAPTER_FILE if lora else WEIGHTS_FILE))))
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    state = {name: saved[name.replace(".default.", ".") if lora else name] for name in names}
    if len(state) != len(saved):
        raise ModelError(f"{folder} holds {len(saved)} tensors, the model trains {len(state)}")
    return state


def matched_in(model: Any, part: str, method: str) -> list[str]:
    """Names of what learns in a part: layers under LoRA, weights of a full fine-tuning."""
    if method == "lora":
        return lora_modules(model, part)
    return [name for name, _ in model.named_parameters() if part_of(name) == part]


def load_adapter(base: Any, folder: Path) -> Any:
    """Put what was trained on its base, in eval mode: LoRA, or whole weights.  Raises ModelError if it cannot be read.

    The model returned has `disable_adapter()`: inside that block the base model answers.
    """
    if not (folder / WEIGHTS_FILE).is_file():
        return _reading_adapter(folder, lambda: PeftModel.from_pretrained(base, str(folder))).eval()
    trained = _reading_adapter(folder, lambda: load_file(str(folder / WEIGHTS_FILE)))
    parameters = dict(base.named_parameters())
    if unknown := trained.keys() - parameters.keys():
        raise ModelError(f"{folder / WEIGHTS_FILE} has weights that the model does not have: {min(unknown)}")
    base.disable_adapter = partial(
        _with, parameters, {name: parameters[name].detach().cpu().clone() for name in trained}
    )
    _put(parameters, trained)
    return base.eval()


def _reading_adapter(folder: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"the adapter {folder.absolute()} cannot be loaded: {error}") from error


@torch.no_grad()
def _put(parameters: Mapping[str, torch.nn.Parameter], values: Mapping[str, torch.Tensor]) -> None:
    for name, value in values.items():
        parameters[name].copy_(value)


@contextmanager
def _with(parameters: Mapping[str, torch.nn.Parameter], values: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Inside the block these weights hold."""
    before = {name: parameters[name].detach().cpu().clone() for name in values}
    _put(parameters, values)
    try:
        yield
    finally:
        _put(parameters, before)


def base_contract(name: str, *, weights: bool = True, processor: Any = None) -> Contract:
    """How a base model is asked, with the hashes of its files.  A contract in its folder beats the defaults.

    weights: False leaves the weights' hash empty and fetches none, for a plan.  processor: the model's, where it is
    loaded already.
    """
    folder = model_folder(name, weights=False)
    given = Contract.read(folder) if (folder / CONTRACT_FILE).is_file() else None
    size = (processor or load_processor(name)).image_processor.size
    return Contract(
        base=name,
        config_sha256=_config_hash(folder),
        weights_sha256=weights_hash(model_folder(name)) if weights else "",
        min_pixels=given.min_pixels if given else int(size["shortest_edge"]),
        max_pixels=given.max_pixels if given else min(int(size["longest_edge"]), DEFAULT_MAX_PIXELS),
        prompts=given.prompts if given else Prompts(),
    )


def _config_hash(folder: Path) -> str:
    """SHA-256 of config.json without what changes with the library or the copy."""
    value = read_json(folder / "config.json")
    for key in ("transformers_version", "_name_or_path", "torch_dtype", "dtype"):
        value.pop(key, None)
    return sha256_of(json.dumps(value, sort_keys=True).encode())


def weights_hash(folder: Path) -> str:
    """SHA-256 of the weight index: which tensors there are and where; of a single file, their names and shapes."""
    index, single = folder / WEIGHT_INDEX, folder / SINGLE_FILE
    if index.is_file():
        return sha256_of(json.dumps(read_json(index)["weight_map"], sort_keys=True).encode())
    if not single.is_file():
        raise ModelError(f"{folder} has no safetensors weights", hint="other formats can run code: convert it first")
    with safe_open(str(single), "pt") as file:
        shapes = {key: file.get_slice(key).get_shape() for key in sorted(file.keys())}
    return sha256_of(json.dumps(shapes, sort_keys=True).encode())
