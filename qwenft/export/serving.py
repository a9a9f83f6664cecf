"""The commands that serve an export with vLLM or SGLang, with the pixel budget that it was trained in; pure."""

import json
import shlex
from collections.abc import Mapping
from typing import Final

VLLM_RANKS: Final = (8, 16, 32, 64, 128, 256, 320, 512)
"""What `--max-lora-rank` of vLLM takes (vllm/config/lora.py)."""


def serving_commands(
    target: str,
    *,
    base: str = "",
    name: str = "",
    rank: int = 0,
    vision: bool = False,
    min_pixels: int,
    max_pixels: int,
) -> dict[str, str]:
    """Tool -> the command that serves `target`, a folder or a hub id.

    base, name, rank, vision: of an adapter: its base model, what it is called in a request, and whether it reaches
    beyond the language model, which vLLM leaves out unless told (vllm-project/vllm #23796, #31479).

    vLLM hands `--mm-processor-kwargs` to the processor (vllm-project/vllm #13184); per request it cannot be changed.
    SGLang resizes by SGLANG_IMAGE_MAX_PIXELS before the processor resizes again (sgl-project/sglang #20025): both need
    the same budget, or a picture is resized twice and its boxes shift.
    """
    budget = {"min_pixels": min_pixels, "max_pixels": max_pixels}
    vllm, sglang = ["vllm", "serve", base or target], ["--model-path", base or target]
    if base:
        fitting = next((size for size in VLLM_RANKS if size >= rank), rank)
        vllm += ["--enable-lora", "--max-lora-rank", str(fitting), "--lora-modules", f"{name}={target}"]
        vllm += ["--enable-tower-connector-lora"] * vision
        sglang += ["--enable-lora", "--max-lora-rank", str(rank), "--lora-paths", f"{name}={target}"]
    vllm += ["--mm-processor-kwargs", json.dumps(budget)]
    # The released generation_config.json punishes repetition, and digits repeat.
    vllm += ["--generation-config", "vllm", "--override-generation-config", json.dumps({"temperature": 0})]
    sglang += ["--mm-process-config", json.dumps({"image": budget}), "--sampling-defaults", "openai"]
    start = f"SGLANG_IMAGE_MAX_PIXELS={max_pixels} python -m sglang.launch_server"
    return {"vllm": shlex.join(vllm), "sglang": f"{start} {shlex.join(sglang)}"}


def serving_text(commands: Mapping[str, str]) -> str:
    """The same for a model card: a block each."""
    return "\n\n".join(f"```console\n{command}\n```" for command in commands.values())
