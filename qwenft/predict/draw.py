"""A picture with its boxes drawn, as a file."""

import io
from collections.abc import Sequence
from functools import cache
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
CJK_FONTS: Final = (
    "notosanscjk", "notosanssc", "sourcehansans", "wqy", "droidsansfallback", "arialuni",  # Linux, many systems
    "msyh", "simhei", "simsun", "deng",  # Windows
    "pingfang", "hiragino", "stheiti", "songti",  # macOS
)  # fmt: skip
"""How the files of fonts with Chinese begin: looked at first, since a machine may have thousands of fonts."""


def draw_boxes(upright: Image.Image, objects: Sequence[Detected]) -> Image.Image:
    """Return a copy of an RGB picture with each box (image px), its label and score drawn on it.

    A picture under READABLE_PX is enlarged by a whole factor, so that the text on it can be read.  A label that no font
    here can show is drawn as its box's number in the answer, from #1 (see missing_characters).
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
    labels = [_short(item.label) for item in objects]
    font = font_for("".join(labels))
    if font is None:
        font = font_for("")
        labels = [f"#{n}" if _lacks(font, label) else label for n, label in enumerate(labels, 1)]
    texts = [_caption(label, item.score) for label, item in zip(labels, objects, strict=True)]
    side = max(picture.size)
    thickness = max(1, round(side / 300))
    palette = sv.ColorPalette.from_hex(COLOURS)
    picture = sv.BoxAnnotator(palette, thickness=thickness).annotate(picture, found)
    annotator = sv.RichLabelAnnotator(
        palette,
        font_path=font,
        text_color=sv.Color.BLACK,
        font_size=max(12, round(side / 36)),
        text_padding=max(2, thickness),
        smart_position=True,  # inside the picture, beside each other
        max_line_length=32,
    )
    return annotator.annotate(picture, found, labels=texts)


def missing_characters(objects: Sequence[Detected]) -> str:
    """What stands in the labels and no font here can show; empty where all can be drawn."""
    text = "".join(_short(item.label) for item in objects)
    return "" if font_for(text) is not None else _lacks(font_for(""), text)


def font_for(text: str) -> str | None:
    """A font's file that shows all of a text; None where there is none.  An own one comes with matplotlib."""
    needed = {ord(char) for char in text if not char.isspace()}
    return next((path for path in _fonts() if needed <= _shows(path)), None)


def _lacks(font: str | None, text: str) -> str:
    known = _shows(font) if font is not None else frozenset()
    return "".join(dict.fromkeys(char for char in text if not char.isspace() and ord(char) not in known))


@cache
def _fonts() -> tuple[str, ...]:
    """DejaVu Sans, which comes with matplotlib, then the machine's fonts, those with Chinese first."""
    from matplotlib import font_manager, get_data_path

    own = Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    found = sorted(font_manager.findSystemFonts())
    chinese = [path for path in found if Path(path).name.lower().replace("-", "").startswith(CJK_FONTS)]
    return (str(own), *dict.fromkeys([*chinese, *found]))


@cache
def _shows(font: str) -> frozenset[int]:
    """The code points that a font has; none of one that cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(font).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


def _short(label: str) -> str:
    label = " ".join(label.split())
    return label if len(label) <= 40 else label[:39] + "…"


def _caption(label: str, score: float | None) -> str:
    return label if score is None else f"{label} {score:.2f}".strip()


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture in the format of its suffix (one of FORMATS), whole or absent."""
    buffer = io.BytesIO()
    picture.save(buffer, FORMATS[path.suffix.lower()], quality=95)
    write_whole(path, buffer.getvalue())
