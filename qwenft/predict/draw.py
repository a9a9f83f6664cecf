"""A picture with its boxes drawn, as a file."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from PIL import Image

from qwenft.core.files import write_whole
from qwenft.core.predictions import Detected

FORMATS: Final = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"}
COLOURS: Final = ["#00e5ff", "#ffd400", "#ff5cf4", "#5cff6b", "#ff8a3d", "#b5a8ff"]
"""Bright, so that they stand out on photos; the labels on them are black."""
READABLE_PX: Final = 400
"""Pictures with a longer side than this are drawn on at their own size."""


def draw_boxes(upright: Image.Image, objects: Sequence[Detected]) -> Image.Image:
    """Return a copy of an RGB picture with each box (image px), its label and score drawn on it.

    A picture under READABLE_PX is enlarged by a whole factor, so that the text on it can be read.
    """
    factor = -(-READABLE_PX // max(upright.size))
    picture = upright.resize((upright.width * factor, upright.height * factor), Image.Resampling.NEAREST)
    if not objects:
        return picture
    import numpy as np
    import supervision as sv

    found = sv.Detections(
        xyxy=np.array([item.box_xyxy for item in objects], dtype=float) * factor,
        class_id=np.arange(len(objects)),
    )
    texts = [_caption(item) for item in objects]
    side = max(picture.size)
    thickness = max(1, round(side / 300))
    palette = sv.ColorPalette.from_hex(COLOURS)
    picture = sv.BoxAnnotator(palette, thickness=thickness).annotate(picture, found)
    labels = sv.RichLabelAnnotator(
        palette,
        text_color=sv.Color.BLACK,
        font_size=max(12, round(side / 36)),
        text_padding=max(2, thickness),
        smart_position=True,  # inside the picture, beside each other
        max_line_length=32,
    )
    return labels.annotate(picture, found, labels=texts)


def _caption(item: Detected) -> str:
    label = item.label if len(item.label) <= 40 else item.label[:39] + "…"
    return label if item.score is None else f"{label} {item.score:.2f}".strip()


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture in the format of its suffix (one of FORMATS), whole or absent."""
    buffer = io.BytesIO()
    picture.save(buffer, FORMATS[path.suffix.lower()], quality=95)
    write_whole(path, buffer.getvalue())
