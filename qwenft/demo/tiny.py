"""The embedded model before it learned anything: its sizes, its own tokenizer, random weights, its contract."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from qwenft.core.answer import Prompts
from qwenft.core.boxes import MERGE, PATCH
from qwenft.core.runs import Contract
from qwenft.demo.filled import MAX_SIDE, MIN_SIDE
from qwenft.demo.language import COLOURS, SHAPES
from qwenft.demo.lessons import CAPTION, DETECTION, GROUNDING, REWORDED, STRANGERS
from qwenft.predict import verify

VOCABULARY: Final = 960
TEXT: Final[dict[str, Any]] = {
    "hidden_size": 192, "intermediate_size": 576, "num_hidden_layers": 6, "num_attention_heads": 6,
    "num_key_value_heads": 3, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10.0, "mrope_section": [4, 6, 6]},
}  # fmt: skip
VISION: Final[dict[str, Any]] = {
    "depth": 4, "hidden_size": 192, "intermediate_size": 512, "num_heads": 6, "out_hidden_size": 192,
    "patch_size": PATCH, "spatial_merge_size": MERGE, "temporal_patch_size": 2, "window_size": 112,
    "fullatt_block_indexes": [1, 3],
}  # fmt: skip
SPECIAL: Final = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
"""Those of the released tokenizer that a picture and a dialogue need, in its order."""
CHUNKS: Final = r'\[\{"bbox_2d": \[|"\}, \{"bbox_2d": \[|\], "label": "|"\}\]|, (?=\d)|\d| ?\p{L}+| ?[^\p{L}\d\s]+|\s'
"""What a token never crosses: the fixed pieces of an answer, single digits, words."""


def make_processor() -> Any:
    """Tokenizer, chat template and image processor, of the released model's classes."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2_5_VLProcessor
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    tokenizer = Tokenizer(models.BPE())
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(CHUNKS), "isolated"), bytewise])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=2,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    template = _chat_template()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",  # noqa: S106
        pad_token="<|endoftext|>",  # noqa: S106
        additional_special_tokens=list(SPECIAL[1:]),
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        chat_template=template,
    )
    pixels = {"shortest_edge": MIN_SIDE**2, "longest_edge": MAX_SIDE**2}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=pixels),
        tokenizer=wrapped,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=template,
    )


def _texts() -> Iterator[str]:
    """What the tokenizer's words are counted in: each often enough to become one token, bare and after a space."""
    prompts = [*GROUNDING, *DETECTION, *CAPTION, verify.PROMPT]
    words = [*SHAPES, *COLOURS, *STRANGERS, *(word for pair in REWORDED for word in (pair[0], *pair[1]))]
    words += [f"{shape}s" for shape in SHAPES] + ["crosses", "a", "an", "the", "all", "and", "half", "upper", "lower"]
    words += ["two", "three", "four", "five", "six", "red", "Yes", "No", "system", "user", "assistant"]
    for word in dict.fromkeys(words):
        yield from (word, f" {word}", f" {word}", f"{word.capitalize()}") * 40
    for prompt in prompts:
        yield from [prompt.replace("{expression}", "the").replace("{categories}", "the").replace("{label}", "the")] * 40
    fixed = ('[{"bbox_2d": [', '], "label": "', '"}]', '"}, {"bbox_2d": [', ", 1", "[]", "You are a helpful assistant.")
    for _ in range(60):
        yield from fixed


def _chat_template() -> str:
    return (Path(__file__).parent / "assets" / "tiny" / "chat_template.jinja").read_text(encoding="utf-8")


def make_model(tokenizer: Any) -> Any:
    """A Qwen2_5_VLForConditionalGeneration with random weights of a spread that trains quickly, float32."""
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    ids = tokenizer.convert_tokens_to_ids
    ends = {"bos_token_id": ids("<|endoftext|>"), "eos_token_id": ids("<|im_end|>"), "pad_token_id": None}
    config = Qwen2_5_VLConfig(
        text_config={**TEXT, **ends, "vocab_size": len(tokenizer)},
        vision_config=VISION,
        tie_word_embeddings=True,
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
    )
    model = Qwen2_5_VLForConditionalGeneration._from_config(config, attn_implementation="sdpa").float()
    depth = TEXT["num_hidden_layers"] + VISION["depth"]
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                ends_a_block = any(part in name for part in ("o_proj", "down_proj", "attn.proj"))
                spread = weight[0].numel() ** -0.5 * ((2 * depth) ** -0.5 if ends_a_block else 1)
                weight.normal_(0, 0.05 if "embed_tokens" in name else spread)
    settings = model.generation_config
    settings.eos_token_id, settings.pad_token_id = ids("<|im_end|>"), ids("<|endoftext|>")
    settings.bos_token_id, settings.do_sample = None, False
    return model


def make_contract() -> Contract:
    """What the model was trained with."""
    return Contract(
        base="tiny",
        config_sha256="",
        weights_sha256="",
        min_pixels=MIN_SIDE**2,
        max_pixels=MAX_SIDE**2,
        prompts=Prompts(),
        tasks=("caption", "detection", "grounding"),
    )
