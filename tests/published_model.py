"""A small random model in the files, names and config layout in which Qwen/Qwen2.5-VL-3B-Instruct lies on the hub."""

import json
import shutil
from pathlib import Path
from typing import Any

SHARED = Path(__file__).parents[2] / "shared" / "data"
REAL_PROCESSOR = SHARED / "qwen25vl-processor"
TINY = Path(__file__).parents[1] / "qwenft" / "demo" / "assets" / "tiny"
PROCESSOR_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "merges.txt",
)

CONFIG: dict[str, Any] = {
    # The published keys, the text model at the top level (transformers 4.41 wrote it so); only sizes are smaller.
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "vision_token_id": 151654,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "hidden_act": "silu",
    "hidden_size": 64,
    "initializer_range": 0.02,
    "intermediate_size": 128,
    "max_position_embeddings": 128000,
    "max_window_layers": 70,
    "model_type": "qwen2_5_vl",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.41.2",
    "use_cache": True,
    "use_sliding_window": False,
    "vision_config": {
        "depth": 2,
        "hidden_act": "silu",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_heads": 4,
        "in_chans": 3,
        "out_hidden_size": 64,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [1],
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
    },
    "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
    "vocab_size": 151936,
}
# From memory of the published file; the penalty and the temperature are what a reader of it must not take over unseen.
GENERATION: dict[str, Any] = {
    "bos_token_id": 151643,
    "pad_token_id": 151643,
    "do_sample": True,
    "eos_token_id": [151645, 151643],
    "repetition_penalty": 1.05,
    "temperature": 0.000001,
    "transformers_version": "4.49.0",
}
TOKEN_KEYS = (
    "vocab_size",
    "bos_token_id",
    "eos_token_id",
    "vision_start_token_id",
    "vision_end_token_id",
    "image_token_id",
    "video_token_id",
)
"""What depends on the tokenizer."""


def make_published_model(folder: Path, processor: Path | None = None, *, seed: int = 0) -> Path:
    """Write the model into `folder` and return it: about 20 MB with the real tokenizer's 151,936 tokens, in bf16.

    processor: the folder whose tokenizer and processor files are copied; None means the real ones where the shared data
    lie beside the project, else the embedded tiny model's, with its vocabulary.
    """
    source = processor or (REAL_PROCESSOR if REAL_PROCESSOR.is_dir() else TINY)
    folder.mkdir(parents=True, exist_ok=True)
    config, generation = _fitted(source)
    for name in PROCESSOR_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    _write(folder / "config.json", config)
    _write(folder / "generation_config.json", generation)
    _write_shards(folder, published_tensors(folder, seed))
    return folder


def published_tensors(folder: Path, seed: int) -> dict[str, Any]:
    """Random weights under the published names: `model.layers.…`, `visual.blocks.…`, no `lm_head` (it is tied)."""
    import torch
    from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(AutoConfig.from_pretrained(folder))
        for weight in model.parameters():  # norms start at one, biases at zero: mixed up, they would look right
            weight.data += 0.02 * torch.randn(weight.shape)
        model.to(torch.bfloat16)
    return {
        name.replace("model.language_model.", "model.").replace("model.visual.", "visual."): tensor.contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }


def _fitted(source: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Config and generation settings with the token ids of the tokenizer in `source`."""
    if not (source / "config.json").is_file():
        return CONFIG, GENERATION
    own = json.loads((source / "config.json").read_text())
    flat = {**own.get("text_config", {}), **own}
    config = {**CONFIG, **{key: flat[key] for key in TOKEN_KEYS if flat.get(key) is not None}}
    settings = json.loads((source / "generation_config.json").read_text())
    return config, {**GENERATION, **{key: value for key, value in settings.items() if key.endswith("token_id")}}


def _write_shards(folder: Path, tensors: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    half = len(tensors) // 2
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[:half], names[half:]), 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    _write(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": weight_map})


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
