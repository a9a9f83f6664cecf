"""Models: the base from safetensors, its hashes, LoRA by an anchored pattern, adapters and their contract."""

import json
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoProcessor, GenerationConfig, Qwen2_5_VLForConditionalGeneration
from transformers.utils import logging as transformers_logging

from qwenft.core.answer import Prompts
from qwenft.core.config import DEFAULT_MODEL, TINY
from qwenft.core.errors import ModelError
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


def quiet_libraries() -> None:
    """Keep the libraries' own bars and advice to developers out of our output; errors still come through."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|torch)\.")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


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


def load_base(name: str, dtype: torch.dtype, device: torch.device | str) -> Qwen2_5_VLForConditionalGeneration:
    """Load the base model's weights, from safetensors only, greedy generation, in eval mode."""
    load_config(name)
    model = _reading(
        name,
        lambda: Qwen2_5_VLForConditionalGeneration.from_pretrained(
            model_folder(name), dtype=dtype, attn_implementation="sdpa", use_safetensors=True
        ),
    )
    tokens = model.generation_config
    # The released generation_config samples and punishes repetition, which bends coordinates: digits repeat.
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=tokens.eos_token_id, pad_token_id=tokens.pad_token_id
    )
    model.to(device)
    model.eval()
    return cast(Qwen2_5_VLForConditionalGeneration, model)


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
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
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


def load_adapter(base: Any, folder: Path) -> PeftModel:
    """Put a trained adapter on its base, in eval mode.  Raises ModelError where it cannot be read."""
    try:
        model = PeftModel.from_pretrained(base, str(folder))
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"the adapter {folder.absolute()} cannot be loaded: {error}") from error
    return model.eval()


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
