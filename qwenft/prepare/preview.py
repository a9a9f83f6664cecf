"""Pictures with their boxes drawn, after a round trip through the frame the model answers in."""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw, ImageFont, ImageOps

from qwenft.core.boxes import Box, Size, smart_resize, to_image_px, to_input_px
from qwenft.core.samples import Sample
from qwenft.prepare.audit import MAX_PIXELS, MIN_PIXELS

SHEET: Final = 24
"""Pictures on the contact sheet."""
CELL_PX: Final = 240
COLUMNS: Final = 6
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
COLOURS: Final = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#800000")
_WORDS: Final = re.compile(r"\s*(?:[\u2e80-\uffff]|[^\s\u2e80-\uffff]+)")
"""A line may end behind each: words, and every Chinese character."""


def round_trip(box_xyxy: Box, image_wh: Size) -> Box:
    """Send a box (image px) to whole input px and back, as an answer of the model goes: drawn as coarse as learned."""
    input_wh = smart_resize(image_wh, MIN_PIXELS, MAX_PIXELS)
    x1, y1, x2, y2 = (float(round(v)) for v in to_input_px(box_xyxy, image_wh, input_wh))
    return to_image_px((x1, y1, x2, y2), image_wh, input_wh)


def pick(splits: Iterable[Iterable[Sample]], count: int) -> list[Sample]:
    """Choose samples evenly over the splits, each picture once; those with objects first."""
    chosen: dict[str, Sample] = {}
    for place in zip_longest(*map(_shown_first, splits)):
        for sample in filter(None, place):
            if len(chosen) < count:
                chosen.setdefault(sample.image, sample)
        if len(chosen) >= count:
            break
    return list(chosen.values())


def _shown_first(samples: Iterable[Sample]) -> Iterator[Sample]:
    yield from (sample for sample in samples if sample.objects or sample.captions)
    yield from (sample for sample in samples if not (sample.objects or sample.captions))


def draw(folder: Path, splits: Iterable[Iterable[Sample]], count: int) -> None:
    """Write `count` JPEGs, one a sample, into `folder`/preview, and a contact sheet with more of them, but smaller."""
    target = folder / "preview"
    target.mkdir(exist_ok=True)
    cells = []
    for number, sample in enumerate(pick(splits, max(count, SHEET)), 1):
        picture = _drawn(folder / sample.image, sample)
        if number <= count:
            name = "".join(c if c.isalnum() else "-" for c in sample.id)[-60:].strip("-")
            picture.save(target / f"{number:02}-{name}.jpg", quality=90)
        if number <= SHEET:
            picture.thumbnail((CELL_PX, CELL_PX))
            cells.append(picture)
    if cells:
        sheet(cells).save(target / "contact-sheet.jpg", quality=90)


def sheet(cells: Sequence[Image.Image], columns: int = COLUMNS) -> Image.Image:
    """Pictures side by side as one, so many in a row."""
    columns = min(columns, len(cells))
    width, height = max(cell.width for cell in cells) + 8, max(cell.height for cell in cells) + 8
    whole = Image.new("RGB", (columns * width + 8, -(-len(cells) // columns) * height + 8), "#dddddd")
    for number, cell in enumerate(cells):
        left, top = number % columns * width + 8, number // columns * height + 8
        whole.paste(cell, (left + (width - 8 - cell.width) // 2, top + (height - 8 - cell.height) // 2))
    return whole


def _drawn(path: Path, sample: Sample) -> Image.Image:
    with Image.open(path) as opened:
        picture = ImageOps.exif_transpose(opened).convert("RGB")
    pen = ImageDraw.Draw(picture)
    line = max(2, round(min(picture.size) / 200))
    font = ImageFont.load_default(max(12, min(picture.size) // 28))
    for number, item in enumerate(sample.objects):
        colour = COLOURS[number % len(COLOURS)]
        box = round_trip(item.bbox, sample.image_wh)
        pen.rectangle(box, outline=colour, width=line)
        if sample.task == "detection":
            label(pen, (box[0], box[1]), latin(item.label), font, colour)
    return with_caption(picture, latin(_caption(sample)), font)


def label(pen: ImageDraw.ImageDraw, at: tuple[float, float], text: str, font: Font, colour: str) -> None:
    """Write a text on a ground of a colour, its corner at a place of the picture (px)."""
    pen.rectangle(pen.textbbox(at, text, font=font), fill=colour)
    pen.text(at, text, fill="white", font=font)


def _caption(sample: Sample) -> str:
    if sample.task == "grounding":
        return sample.query or "" if sample.objects else f"{sample.query} (not in this picture)"
    if sample.task == "caption":
        return sample.captions[0]
    return f"{len(sample.objects)} object{'' if len(sample.objects) == 1 else 's'}"


def with_caption(picture: Image.Image, text: str, font: Font) -> Image.Image:
    """Put what was asked below the picture, so that it hides nothing: at most three lines."""
    lines, line = [], ""
    for word in _WORDS.findall(text[:400]):
        if line and font.getlength(line + word.rstrip()) > picture.width - 12:
            lines.append(line)
            line = ""
        line += word if line else word.lstrip()
    lines = [*lines, line][:3]
    height = round(font.getbbox("Ag")[3] * 1.3)
    framed = Image.new("RGB", (picture.width, picture.height + height * len(lines) + 8), "white")
    framed.paste(picture, (0, 0))
    pen = ImageDraw.Draw(framed)
    for number, content in enumerate(lines):
        pen.text((6, picture.height + 4 + number * height), content, fill="black", font=font)
    return framed


def latin(text: str) -> str:
    """The text as Pillow's own font can show it.

    Pillow's own font has no Chinese: a box for each such letter would tell nothing, a question mark tells that.
    """
    return "".join(c if ord(c) < 0x250 else "?" for c in text)
