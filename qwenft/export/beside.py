"""What lies beside exported weights: processor with the trained pixel budget, greedy generation, contract and card."""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from qwenft.core.files import read_json, write_json, write_whole
from qwenft.core.runs import Contract
from qwenft.export.serving import serving_text

PROCESSOR_FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)
"""Under which names a Qwen2.5-VL processor lies, written by transformers 4 or 5."""
IMAGE_SETTINGS: Final = ("preprocessor_config.json", "processor_config.json")
"""Those that say how pictures are resized."""
TOKEN_KEYS: Final = ("bos_token_id", "eos_token_id", "pad_token_id")
_FOLDERS: Final = re.compile(r"(?<![\w.:/~])(?:/|~/)(?:[^\s/`'\"]+/)+([^\s/`'\"]+)")
"""A path of the machine that trained: a card shows the last name alone."""
_ASKED: Final = re.compile(r"^( {4}qwenft predict .*)--run .*\n+", re.MULTILINE)
"""How the run is asked where it was trained."""
_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def is_hub_id(name: str) -> bool:
    """Whether a model's name can be one on the hub: `owner/name`, and no folder here.

    >>> is_hub_id("Qwen/Qwen2.5-VL-3B-Instruct"), is_hub_id("tiny"), is_hub_id("../models/mine")
    (True, False, False)
    """
    return bool(_HUB_ID.fullmatch(name)) and not Path(name).exists()


def write_beside(base_folder: Path, folder: Path, contract: Contract) -> None:
    """Write all that an export needs beside its weights; `base_folder` holds the base model's own files."""
    for name in PROCESSOR_FILES:
        if (base_folder / name).is_file():
            shutil.copyfile(base_folder / name, folder / name)
    for name in IMAGE_SETTINGS:
        if (folder / name).is_file():
            write_json(folder / name, with_budget(read_json(folder / name), contract.min_pixels, contract.max_pixels))
    write_json(folder / "generation_config.json", greedy(base_folder))
    contract.write(folder)


def with_budget(settings: dict[str, Any], min_pixels: int, max_pixels: int) -> dict[str, Any]:
    """Image settings with another pixel budget, under the keys that are there: those of transformers 4, of 5, or both.

    >>> with_budget({"patch_size": 14, "min_pixels": 3136, "max_pixels": 12845056}, 784, 7840)
    {'patch_size': 14, 'min_pixels': 784, 'max_pixels': 7840}
    """
    if "image_processor" in settings:
        return {**settings, "image_processor": with_budget(settings["image_processor"], min_pixels, max_pixels)}
    if "patch_size" not in settings:
        return settings  # a processor_config.json that leaves the pictures to its neighbour
    changed = dict(settings)
    if "max_pixels" in settings:
        changed |= {"min_pixels": min_pixels, "max_pixels": max_pixels}
    if "max_pixels" not in settings or "size" in settings:
        changed["size"] = {"shortest_edge": min_pixels, "longest_edge": max_pixels}
    return changed


def greedy(base_folder: Path) -> dict[str, Any]:
    """The base's generation settings without sampling or a penalty on repetition: coordinates repeat digits."""
    path = base_folder / "generation_config.json"
    given = read_json(path) if path.is_file() else {}
    return {"do_sample": False, **{key: given[key] for key in TOKEN_KEYS if given.get(key) is not None}}


def write_card(folder: Path, card: str, contract: Contract, commands: Mapping[str, str], *, merged: bool) -> None:
    """Write README.md: the run's model card, told for what it is now, with how it is loaded and served."""
    library = "transformers" if merged else "peft"
    head, body = _split(card)
    lines = [line for line in head if not line.startswith(("base_model", "library_name:"))]
    if is_hub_id(contract.base):  # the hub refuses a card whose base is none of its ids
        lines.insert(0, f"base_model: {contract.base}")
    front = "\n".join(["---", f"library_name: {library}", *lines, "---"])
    body = _ASKED.sub(r"\1--model FOLDER" if merged else "", body)
    if merged:
        body = body.replace(": a LoRA adapter for ", ": a LoRA adapter merged into ", 1)
    told = _FOLDERS.sub(r"\1", f"{body.rstrip()}\n\n{_usage(contract, commands, merged=merged)}")
    write_whole(folder / "README.md", f"{front}\n{told}")


def _split(card: str) -> tuple[list[str], str]:
    """The lines between the two `---` of a card, and what follows."""
    if card.startswith("---\n") and "\n---\n" in card[4:]:
        head, _, body = card[4:].partition("\n---\n")
        return head.splitlines(), body
    return [], card


def _usage(contract: Contract, commands: Mapping[str, str], *, merged: bool) -> str:
    where = "this folder" if merged else "the base model, and this folder on it with peft"
    loading = (
        'model = Qwen2_5_VLForConditionalGeneration.from_pretrained("FOLDER", dtype="auto")'
        if merged
        else f"""base = Qwen2_5_VLForConditionalGeneration.from_pretrained("{contract.base}", dtype="auto")
model = PeftModel.from_pretrained(base, "FOLDER")"""
    )
    imports = "from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration"
    return f"""## Use it elsewhere

Load {where}; the processor beside it has the pixel budget of the training.

```python
{imports if merged else f"from peft import PeftModel{chr(10)}{imports}"}

processor = AutoProcessor.from_pretrained("FOLDER")
{loading}
```

Served; another budget than {contract.min_pixels} to {contract.max_pixels} px would shift the boxes:

{serving_text(commands)}

Ask with `{contract.prompts.grounding}` and temperature 0. Boxes come in pixels of the picture as the
processor resized it (`image_grid_thw * 14`): multiply x by width / resized width and y by height / resized height.
"""
