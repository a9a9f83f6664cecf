"""A question and its answer become tokens, pixels and labels; batches are padded here.

Letters in shapes: B questions, L tokens, P patches of all pictures in the batch, D numbers a patch (1176).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tvf

from qwenft.core import answer
from qwenft.core.boxes import FACTOR, MERGE, PATCH, Size, num_image_tokens, smart_resize, to_input_px
from qwenft.core.errors import DataError, ModelError
from qwenft.core.predictions import Question
from qwenft.core.runs import Contract
from qwenft.core.samples import Sample
from qwenft.prepare.pictures import open_upright

IGNORED: Final = -100
"""Label of a token that is not learned (torch.nn.functional.cross_entropy's default ignore_index)."""
IMAGE_TOKEN: Final = "<|image_pad|>"
"""Stands for one merged patch: `image_token` of the released processor."""
END_OF_TURN: Final = "<|im_end|>"
_TEXT_GOES_HERE: Final = "\x00text\x00"


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as the model sees it."""

    pixel_values_PD: torch.Tensor
    """(0, D) where only the frame is wanted, since the picture's features are known."""
    grid_thw: torch.Tensor
    """(3,): 1, rows of patches, columns of patches."""
    image_wh: Size
    """Upright, before resizing, px."""
    input_wh: Size
    """Read off the grid: what the answer's coordinates refer to, px."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One question, with its answer where it is to be learned."""

    input_ids: list[int]
    labels: list[int]
    picture: Picture
    prompt: str
    """The user's turn as text, without the picture."""
    shared: int
    """So many tokens at the beginning are the same for every question about the picture."""


@dataclass
class Encoder:
    """Turns questions and samples into tokens and pixels, as the contract says."""

    processor: Any
    contract: Contract
    _frame: tuple[list[int], list[int], list[int]] = field(init=False, repr=False)
    """Token ids before the picture, between picture and text, and after the text."""

    def __post_init__(self) -> None:
        made_for = (self.processor.image_processor.patch_size, self.processor.image_processor.merge_size)
        if made_for != (PATCH, MERGE):
            raise ModelError(f"patches of {made_for[0]} px merged by {made_for[1]}: Qwen2.5-VL has {PATCH} and {MERGE}")
        content = [{"type": "image"}, {"type": "text", "text": _TEXT_GOES_HERE}]
        frame = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        before, image, rest = frame.partition(IMAGE_TOKEN)
        between, text, after = rest.partition(_TEXT_GOES_HERE)
        if not image or not text:
            raise ModelError("the model's chat template has no place for a picture and a text")
        self._frame = (self._ids(before), self._ids(between), self._ids(after))

    def _ids(self, text: str, *, special: bool = True) -> list[int]:
        """Tokens of a text.  special=False: what looks like a special token in it is only text."""
        tokenizer = self.processor.tokenizer
        ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=not special).input_ids
        return ids

    def question(self, question: Question) -> Encoded:
        """Encode what is asked, up to where the answer begins.  Raises DataError for an unreadable picture."""
        picture = self.picture(open_upright(question.image))
        prompt = question.ask or self.contract.prompts.text(question.task, question.query, question.categories)
        return self.asked(picture, prompt)

    def asked(self, picture: Picture, prompt: str) -> Encoded:
        """Encode a prompt behind a picture, up to where the answer begins."""
        before, between, after = self._frame
        image_id = self.processor.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        num_tokens = num_image_tokens(picture.input_wh)
        shared = before + [image_id] * num_tokens + between
        ids = shared + self._ids(prompt, special=False) + after
        return Encoded(ids, [IGNORED] * len(ids), picture, prompt, len(shared))

    def sample(self, sample: Sample, folder: Path, picture: Picture | None = None) -> Encoded:
        """Encode a sample to learn from: labels cover the answer and the end of its turn, nothing else.

        picture: the sample's, where it is there already; samples that are given the same one can share its tokens.
        Raises DataError for a picture that cannot be read or is not what `prepare` saw.
        """
        picture = picture or self.picture(open_upright(folder / sample.image))
        check_size(sample, folder, picture.image_wh)
        asked = self.asked(picture, self.contract.prompts.text(sample.task, sample.query, sample.categories))
        target = self._ids(target_text(sample, asked.picture.input_wh), special=False)
        target.append(self.processor.tokenizer.convert_tokens_to_ids(END_OF_TURN))
        return replace(asked, input_ids=asked.input_ids + target, labels=asked.labels + target)

    def picture(
        self,
        upright: Image.Image,
        *,
        as_wh: Size | None = None,
        change: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> Picture:
        """Resize once, by our own call, and cut into patches.

        as_wh: resize as if the picture had this size, px; None: its own.  change: of the resized picture, uint8
        (3, height, width), which keeps that shape.  Raises DataError where the frame would not hold.
        """
        wanted_wh = self._input_wh(as_wh or upright.size)
        pixels = tvf.pil_to_tensor(upright)
        # The processor's own resize (same call, same kernel), made here so that its size is ours and it happens once.
        resized = tvf.resize(pixels, [wanted_wh[1], wanted_wh[0]], InterpolationMode.BICUBIC, antialias=True)
        resized = resized if change is None else change(resized)
        made = self.processor.image_processor(images=[resized], do_resize=False, return_tensors="pt")
        grid = made["image_grid_thw"][0]
        input_wh = (int(grid[2]) * PATCH, int(grid[1]) * PATCH)
        num_patches = made["pixel_values"].shape[0]
        if input_wh != wanted_wh or num_patches * PATCH * PATCH != input_wh[0] * input_wh[1]:
            raise ModelError(f"resized to {wanted_wh}, but the processor's grid says {input_wh}, {num_patches} patches")
        return Picture(made["pixel_values"], grid, upright.size, input_wh)

    def frame(self, image_wh: Size) -> Picture:
        """What is known of a picture of this size, in px, without reading it: all but its pixels."""
        input_wh = self._input_wh(image_wh)
        grid = torch.tensor([1, input_wh[1] // PATCH, input_wh[0] // PATCH])
        return Picture(torch.empty(0, 0), grid, image_wh, input_wh)

    def _input_wh(self, image_wh: Size) -> Size:
        try:
            return smart_resize(image_wh, self.contract.min_pixels, self.contract.max_pixels)
        except ValueError as error:
            raise DataError(f"the picture cannot be shown to the model: {error}") from error


def check_size(sample: Sample, folder: Path, image_wh: Size) -> None:
    """Hold that a sample's picture has the size that `prepare` saw.  Raises DataError."""
    if image_wh != sample.image_wh:
        raise DataError(
            f"{folder / sample.image} is {image_wh}, its sample {sample.id} says {sample.image_wh}",
            hint="it was changed after prepare: prepare it again",
        )


def target_text(sample: Sample, input_wh: Size) -> str:
    """What the model is to answer: boxes in input px, in the order of `write_answer`, no crowds; a caption as it is."""
    if sample.task == "caption":
        return sample.captions[0]
    boxes = [
        (to_input_px(item.bbox, sample.image_wh, input_wh), item.label) for item in sample.objects if not item.crowd
    ]
    return answer.write_answer(boxes, input_wh)


def collate(items: Sequence[Encoded], pad_id: int, image_id: int, *, left: bool = False) -> dict[str, torch.Tensor]:
    """Pad tokens to one length and lay the patches of all pictures one behind another.

    left: pad on the left, which generation needs.  Returns input_ids, attention_mask, labels and mm_token_type_ids
    (B, L), pixel_values (P, D), image_grid_thw (B, 3).
    """
    length = max(len(item.input_ids) for item in items)

    def padded(rows: list[list[int]], value: int) -> torch.Tensor:
        fill = [[value] * (length - len(row)) for row in rows]
        return torch.tensor([(f + r) if left else (r + f) for r, f in zip(rows, fill, strict=True)])

    input_ids = padded([item.input_ids for item in items], pad_id)
    return {
        "input_ids": input_ids,
        "attention_mask": padded([[1] * len(item.input_ids) for item in items], 0),
        "labels": padded([item.labels for item in items], IGNORED),
        # Without it transformers >= 5.3 silently counts positions along one axis.
        "mm_token_type_ids": padded([[int(i == image_id) for i in item.input_ids] for item in items], 0),
        "pixel_values": torch.cat([item.picture.pixel_values_PD for item in items]),
        "image_grid_thw": torch.stack([item.picture.grid_thw for item in items]),
    }


def image_tokens(samples: Sequence[Sample], contract: Contract) -> list[int]:
    """How many tokens the picture of each sample takes at the contract's pixel budget."""
    sizes = {sample.image_wh for sample in samples}
    tokens = {wh: num_image_tokens(smart_resize(wh, contract.min_pixels, contract.max_pixels, FACTOR)) for wh in sizes}
    return [tokens[sample.image_wh] for sample in samples]
