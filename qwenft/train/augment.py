"""Pictures changed anew in each epoch, with boxes that follow: which change is drawn, what limits it, what it does.

The change hangs on seed, epoch and picture alone, so that it is the same in any process, in the fast step and in the
plain one, and after a resume.  All questions about a picture see the same view of it.
"""

import io
import math
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as tvf

from qwenft.core.boxes import MAX_ASPECT, Box, Size, area, clip
from qwenft.core.config import Augment
from qwenft.core.samples import Sample
from qwenft.prepare.swaps import SIDE_OF, is_chinese

NUM_DRAWN: Final = 11
"""Random numbers of a view: all are drawn, so that a setting that is turned on leaves the others' draws as they are."""
MIN_SIGMA: Final = 0.05
"""px.  A blur under it changes no pixel."""


def _words(words: Iterable[str]) -> re.Pattern[str]:
    """A text that has one of the words, English ones with any ending: `left` finds `leftmost`."""
    every = list(words)
    english = "|".join(word for word in every if not is_chinese(word))
    chinese = "|".join(word for word in every if is_chinese(word))
    return re.compile(rf"\b(?:{english})\w*|{chinese}", re.IGNORECASE)


_SIDES: Final = _words([*(word for word, side in SIDE_OF.items() if side in ("left", "right")), "clockwise", "o'clock",
                        "counterclockwise", "anticlockwise", "顺时针", "逆时针", "点钟"])  # fmt: skip
_PLACES: Final = _words([
    *SIDE_OF, "middle", "center", "centre", "central", "corner", "edge", "border", "half", "quarter", "picture",
    "image", "photo", "frame", "screen", "中间", "中央", "中心", "角", "边", "半", "图", "画面", "照片", "屏幕",
    "above", "below", "under", "beneath", "behind", "front", "beside", "next", "near", "between", "among", "close",
    "far", "旁", "前", "后", "间", "附近", "远", "近",
])  # fmt: skip
"""Where in the picture a thing is, or beside which other thing, which a crop may lose."""


@lru_cache(maxsize=1 << 16)
def names_side(text: str) -> bool:
    """Whether a text may be false of a mirrored picture, since it names left or right.

    >>> names_side("the leftmost dog"), names_side("a bright dog"), names_side("右边的狗"), names_side("桌上的狗")
    (True, False, True, False)
    """
    return _SIDES.search(text) is not None


@lru_cache(maxsize=1 << 16)
def names_place(text: str) -> bool:
    """Whether a text may be false of a part of the picture, since it says where a thing is, or beside what.

    >>> names_place("the dog in the upper half"), names_place("the red dog"), names_place("画面中的狗")
    (True, False, True)
    """
    return names_side(text) or _PLACES.search(text) is not None


@dataclass(frozen=True, slots=True)
class View:
    """How a picture is shown to the model."""

    window_xyxy: tuple[int, int, int, int]
    """What is kept, image px."""
    mirrored: bool
    as_wh: Size
    """The kept part is resized as if it had this size, px."""
    brightness: float
    """This factor and the next two are 1.0 where nothing changes."""
    contrast: float
    saturation: float
    blur: float
    """Sigma, px of the model's input."""
    jpeg: int | None
    """Quality."""

    def cut(self, upright: Image.Image) -> Image.Image:
        """The part of a picture that is kept, mirrored where it is to be; the size is the window's."""
        x1, y1, x2, y2 = self.window_xyxy
        part: Image.Image = tvf.crop(upright, y1, x1, y2 - y1, x2 - x1)
        return tvf.horizontal_flip(part) if self.mirrored else part

    def change(self, pixels_CHW: torch.Tensor) -> torch.Tensor:
        """Colour, blur and JPEG noise on the model's input, uint8; the shape stays."""
        for factor, adjust in (
            (self.brightness, tvf.adjust_brightness),
            (self.contrast, tvf.adjust_contrast),
            (self.saturation, tvf.adjust_saturation),
        ):
            pixels_CHW = pixels_CHW if factor == 1 else adjust(pixels_CHW, factor)
        if self.blur >= MIN_SIGMA:
            reach = min(math.ceil(3 * self.blur), min(pixels_CHW.shape[1:]) - 1)
            pixels_CHW = tvf.gaussian_blur(pixels_CHW, [2 * reach + 1] * 2, [self.blur] * 2)
        return pixels_CHW if self.jpeg is None else _as_jpeg(pixels_CHW, self.jpeg)

    def sample(self, sample: Sample) -> Sample:
        """The sample as it is true of this view: its boxes moved with the picture, in px of the kept part.

        No target's box is cut (Views sees to it); a crowd, which is no target, is cut or left out with its place.
        """
        x1, y1, x2, y2 = self.window_xyxy
        wh = (x2 - x1, y2 - y1)
        if not sample.objects:
            return replace(sample, width=wh[0], height=wh[1])
        numbers = torch.tensor([item.bbox for item in sample.objects], dtype=torch.float64)
        boxes = tv_tensors.BoundingBoxes(numbers, format="XYXY", canvas_size=(sample.height, sample.width))
        boxes = tvf.crop(boxes, y1, x1, wh[1], wh[0])
        boxes = tvf.horizontal_flip(boxes) if self.mirrored else boxes
        moved = [replace(item, bbox=_box(row)) for item, row in zip(sample.objects, boxes.tolist(), strict=True)]
        return replace(
            sample,
            width=wh[0],
            height=wh[1],
            objects=tuple(item for item in moved if not item.crowd or area(item.bbox) > 0),
        )


def _as_jpeg(pixels_CHW: torch.Tensor, quality: int) -> torch.Tensor:
    """Written and read again by Pillow: torchvision's own coders are on their way out (a warning since 0.29)."""
    buffer = io.BytesIO()
    tvf.to_pil_image(pixels_CHW).save(buffer, format="JPEG", quality=quality)
    with Image.open(buffer) as written:
        changed: torch.Tensor = tvf.pil_to_tensor(written)
    return changed


def _box(row: Sequence[float]) -> Box:
    x1, y1, x2, y2 = row
    return (x1, y1, x2, y2)


@dataclass(slots=True)
class _Limits:
    """What the questions about a picture forbid."""

    kept: Box | None = None
    """Around every target of every question, image px."""
    may_cut: bool = True
    may_mirror: bool = True

    def add(self, sample: Sample) -> None:
        """One more question about the picture."""
        asked = (sample.query or "", *sample.categories, *(item.label for item in sample.objects))
        for text in (*asked, *sample.captions):
            self.may_mirror = self.may_mirror and not names_side(text)
        # Nothing says where the things of a caption are: any part of the picture may be told of.
        self.may_cut = self.may_cut and not sample.captions and not any(map(names_place, asked))
        for item in sample.objects:
            if not item.crowd:
                box, before = clip(item.bbox, sample.image_wh), self.kept
                self.kept = box if before is None else _around(before, box)


def _around(one: Box, other: Box) -> Box:
    return (min(one[0], other[0]), min(one[1], other[1]), max(one[2], other[2]), max(one[3], other[3]))


class Views:
    """The views of a run's pictures.

    A crop keeps the targets of all questions about the picture.  A picture is not cropped where one of them says where
    a thing is, or is a caption; it is not mirrored where one of them names left or right.
    """

    def __init__(self, augment: Augment, seed: int, samples: Sequence[Sample]) -> None:
        self.augment = augment
        self.seed = seed
        self._limits: dict[str, _Limits] = {}
        for sample in samples:
            self._limits.setdefault(sample.picture, _Limits()).add(sample)

    def of(self, sample: Sample, epoch: int) -> View:
        """How the picture of a sample is shown in an epoch."""
        draw = random.Random(f"{self.seed} {epoch} {sample.picture}")  # noqa: S311 - a view, no secret
        numbers = [draw.random() for _ in range(NUM_DRAWN)]
        augment, limits = self.augment, self._limits[sample.picture]
        window = self._window(sample.image_wh, limits, numbers[0:4])
        wh = (window[2] - window[0], window[3] - window[1])
        factor = 1 + _signed(augment.scale, numbers[4])
        as_wh = (max(1, round(wh[0] * factor)), max(1, round(wh[1] * factor)))
        brightness, contrast, saturation = (1 + _signed(augment.colour, number) for number in numbers[6:9])
        return View(
            window,
            limits.may_mirror and numbers[5] < augment.hflip,
            as_wh if _can_be_shown(as_wh) else wh,
            brightness,
            contrast,
            saturation,
            blur=augment.blur * numbers[9],
            jpeg=None if augment.jpeg is None else augment.jpeg + int((100 - augment.jpeg) * numbers[10]),
        )

    def _window(self, image_wh: Size, limits: _Limits, numbers: Sequence[float]) -> tuple[int, int, int, int]:
        width, height = image_wh
        if not limits.may_cut:
            return (0, 0, width, height)
        x1, y1, x2, y2 = limits.kept or (width, height, 0.0, 0.0)
        share = self.augment.crop
        left = min(int(width * share * numbers[0]), math.floor(x1))
        top = min(int(height * share * numbers[1]), math.floor(y1))
        right = width - min(int(width * share * numbers[2]), math.floor(width - x2))
        bottom = height - min(int(height * share * numbers[3]), math.floor(height - y2))
        window = (left, top, right, bottom)
        return window if _can_be_shown((right - left, bottom - top)) else (0, 0, width, height)


def _signed(most: float, number: float) -> float:
    """A number of [0, 1) spread over -most to most; exactly 0 where most is 0."""
    return most * (2 * number - 1)


def _can_be_shown(wh: Size) -> bool:
    return max(wh) <= MAX_ASPECT * min(wh)
