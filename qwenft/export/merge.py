"""An adapter merged into its base, and held to answer as it did beside it."""

import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from peft.tuners.lora import Linear
from safetensors import SafetensorError

from qwenft.core.answer import write_answer
from qwenft.core.errors import ModelError
from qwenft.core.runs import Contract
from qwenft.demo.scenes import make_scene
from qwenft.model.inputs import Encoder
from qwenft.model.load import base_contract, base_of, load_adapter, load_base, load_config, load_processor, weights_hash
from qwenft.predict.engine import Prefix
from qwenft.predict.probe import plain_logits

NUM_PICTURES: Final = 3
LIMIT: Final = {torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.1}
"""Mean difference in log probability of the likeliest token that is put up with: probe.TOLERANCE allows single tokens
more."""
ROUNDING: Final = {torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.02}
"""What rounding alone explains, however little the adapter changes."""
SHARD: Final = "5GB"
"""Files of the size in which the released models lie."""


@dataclass(frozen=True, slots=True)
class Merged:
    """How the merged model compares with the adapter beside its base: means over tokens, in log probability."""

    dtype: str
    difference: float
    effect: float
    """What the adapter itself changes of the base's answers."""


def export_dtype(base: str) -> torch.dtype:
    """The number format of merged weights: the base's own, which is bfloat16 for the released models."""
    dtype: torch.dtype | None = load_config(base).dtype
    return dtype if dtype in LIMIT else torch.bfloat16


def write_merged(base: str, adapter: Path, contract: Contract, folder: Path, device: torch.device) -> Merged:
    """Merge an adapter, write the weights into `folder`, read them back, and compare.

    The logits are compared on what was read back: so the check covers merging, names and files.  Raises ModelError
    for a base that is not the one trained on, and where the logits differ by more than rounding explains, or by half
    as much as the adapter itself changes.
    """
    processor = load_processor(base)
    contract.check(base_contract(base, processor=processor))
    dtype, asked = export_dtype(base), _asked(Encoder(processor, contract))
    model: Any = load_adapter(load_base(base, dtype, device), adapter)
    with_it = _likeliest(asked, base_of(model))
    with model.disable_adapter():
        effect = _difference(asked, base_of(model), with_it)
    merge(model)
    whole = model.unload() if hasattr(model, "unload") else model
    vars(whole).pop("disable_adapter", None)
    whole.save_pretrained(str(folder), max_shard_size=SHARD)
    del model, whole
    again: Any = _read_back(folder, dtype, device)
    difference = _difference(asked, again, with_it)
    allowed = max(ROUNDING[dtype], min(LIMIT[dtype], effect / 2))
    if not difference <= allowed:  # NaN too
        raise ModelError(
            f"the merged model does not answer as the adapter does beside its base: log probabilities differ by "
            f"{difference:.2g} on average, {allowed:.2g} would be rounding (the adapter itself changes {effect:.2g})",
            hint="qwenft export --to adapter keeps the adapter as it is",
        )
    return Merged(str(dtype).removeprefix("torch."), difference, effect)


@torch.no_grad()
def merge(model: Any) -> None:
    """Add LoRA's product to the weights under it, in float32 and rounded once.

    PEFT's own merge rounds the product to the weights' format first and the sum again.
    """
    for layer in model.modules():
        if isinstance(layer, Linear):
            weight: Any = layer.get_base_layer().weight
            for name in layer.active_adapters:
                added = layer.get_delta_weight(name).float()
                weight.data = (weight.data.float() + added).to(weight.dtype)


def merged_contract(contract: Contract, folder: Path) -> Contract:
    """The contract of merged weights: asked in the same way, with the hash of what they are now."""
    return replace(contract, weights_sha256=weights_hash(folder), quantize=None)


def _read_back(folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
    from transformers import Qwen2_5_VLForConditionalGeneration

    try:
        model: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            str(folder), dtype=dtype, attn_implementation="sdpa", use_safetensors=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"the merged weights cannot be read back: {error}", hint="type it again") from error
    return model.to(device).eval()


@dataclass(frozen=True, slots=True)
class _Asked:
    """A prompt with the true answer behind it."""

    prefix: Prefix
    tokens: list[int]


def _asked(encoder: Encoder) -> list[_Asked]:
    """Generated pictures, each with a question and its answer, as the contract says."""
    rng = random.Random(0)  # noqa: S311  pictures, no secrets
    image_id = encoder.processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    asked: list[_Asked] = []
    while len(asked) < NUM_PICTURES:
        scene = make_scene(rng)
        if not scene.questions:
            continue
        question = scene.questions[0]
        prompt = encoder.contract.prompts.text("grounding", question.text)
        encoded = encoder.asked(encoder.picture(scene.image), prompt)
        end = len(encoded.input_ids) - encoded.input_ids[::-1].index(image_id)
        boxes = [(figure.box_xyxy, question.text) for figure in question.figures]
        text = write_answer(boxes, encoded.picture.input_wh)
        answer = encoder.processor.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
        prefix = Prefix(tuple(encoded.input_ids[:end]), encoded.picture)
        asked.append(_Asked(prefix, [*encoded.input_ids[end:], *answer]))
    return asked


def _log_p(asked: _Asked, model: Any) -> torch.Tensor:
    """Log probabilities behind the picture, (tokens of question and answer, vocabulary), float32 on the CPU."""
    return plain_logits(model, asked.prefix, asked.tokens)[-len(asked.tokens) :].log_softmax(-1).cpu()


_Tokens = list[tuple[torch.Tensor, torch.Tensor]]


def _likeliest(asked: list[_Asked], model: Any) -> _Tokens:
    """The likeliest token at each place, and its log probability."""
    return [(best.indices, best.values) for best in (_log_p(item, model).max(-1) for item in asked)]


def _difference(asked: list[_Asked], model: Any, other: _Tokens) -> float:
    """How far another model is from those, in the mean over all places."""
    far = [
        (_log_p(item, model).gather(-1, tokens[:, None])[:, 0] - values).abs()
        for item, (tokens, values) in zip(asked, other, strict=True)
    ]
    return float(torch.cat(far).mean())
