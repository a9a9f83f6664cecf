"""The first update as the model sees it, before the first step: pixels from its patches, boxes from its tokens."""

import io
from typing import Any, Final

import torch
from PIL import Image, ImageDraw, ImageFont

from qwenft.core.answer import FoundBox, read_answer
from qwenft.core.boxes import MERGE, PATCH
from qwenft.core.events import Emit, note
from qwenft.core.files import write_whole
from qwenft.core.runs import Run
from qwenft.model.inputs import END_OF_TURN, IGNORED, Encoded, Encoder, Picture
from qwenft.predict.draw import font_for
from qwenft.prepare.preview import COLOURS, Font, label, latin, sheet, with_caption
from qwenft.train.batches import PictureOrder, TrainingData

FILE: Final = "preview.png"
SHOWN: Final = 24
"""Samples on the sheet."""
SIDE_PX: Final = 320
"""Pictures are shown with this longer side."""
COLUMNS: Final = 4
FONT_PX: Final = 12


def write_preview(run: Run, order: PictureOrder, data: TrainingData, report: Emit) -> None:
    """Draw what the run's first update learns from into the run's folder: at most SHOWN samples of all processes."""
    indices = order.samples()[: min(order.per_update, SHOWN)]
    path = run.path / FILE
    buffer = io.BytesIO()
    cells = [draw_encoded(item, data.encoder) for _, item in data.__getitems__(indices)]
    sheet(cells, COLUMNS).save(buffer, format="PNG")
    write_whole(path, buffer.getvalue())
    report(note(f"the first update as the model sees it: {path}"))


def draw_encoded(item: Encoded, encoder: Encoder) -> Image.Image:
    """A sample as the model is given it, with its boxes and, below, what is to be answered and what is asked."""
    picture = picture_of(item.picture, encoder.processor.image_processor)
    target, boxes = target_of(item, encoder)
    factor = SIDE_PX / max(picture.size)
    shown = picture.resize((round(picture.width * factor), round(picture.height * factor)))
    pen = ImageDraw.Draw(shown)
    several = len({box.label for box in boxes}) > 1
    for number, box in enumerate(boxes):
        colour = COLOURS[number % len(COLOURS)]
        x1, y1, x2, y2 = (value * factor for value in box.box_xyxy)
        pen.rectangle((x1, y1, x2, y2), outline=colour, width=2)
        if several:
            label(pen, (x1, y1), *_drawable(box.label), colour)
    answer = f"{len(boxes)} box{'es' if len(boxes) > 1 else ''}" if boxes else target
    return with_caption(shown, *_drawable(f"{answer} <- {item.prompt}"))


def target_of(item: Encoded, encoder: Encoder) -> tuple[str, tuple[FoundBox, ...]]:
    """The text that is learned, read back from its tokens, and the boxes that it says, in input px."""
    learned = [token for token in item.labels if token != IGNORED]
    text: str = encoder.processor.tokenizer.decode(learned)
    text = text.removesuffix(END_OF_TURN)
    return text, read_answer(text).objects


def picture_of(picture: Picture, image_processor: Any) -> Image.Image:
    """The pixels that the model is given, laid out again from their patches: the picture in input px.

    The inverse of Qwen2VLImageProcessor.patchify and its normalization (transformers 5.24); the second of the two equal
    frames of a patch is left out.
    """
    _, rows, columns = (int(side) for side in picture.grid_thw)
    patches = picture.pixel_values_PD.reshape(rows // MERGE, columns // MERGE, MERGE, MERGE, 3, -1, PATCH, PATCH)[
        :, :, :, :, :, 0
    ]
    pixels = patches.permute(4, 0, 2, 5, 1, 3, 6).reshape(3, rows * PATCH, columns * PATCH)
    mean, std = (torch.tensor(getattr(image_processor, name))[:, None, None] for name in ("image_mean", "image_std"))
    numbers = ((pixels * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(numbers.permute(1, 2, 0).numpy())


def _drawable(text: str) -> tuple[str, Font]:
    """A text with a font that shows it: Pillow's own, or one of this machine; where none does, what can be shown."""
    path = None if text == latin(text) else font_for(text)
    return (text, ImageFont.truetype(path, FONT_PX)) if path else (latin(text), ImageFont.load_default(FONT_PX))
