"""Boxes and frames: conventions, smart_resize, image px <-> input px, IoU; pure.

Frames: *image px* are pixels of the stored picture as a viewer shows it; *input px* are pixels of the resized picture
that the model sees, `image_grid_thw[1:] * 14`.  Qwen2.5-VL answers in input px.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

Box = tuple[float, float, float, float]
"""Four numbers; the name of the variable says the order (box_xyxy, box_xywh) and the frame (image_px, input_px)."""
Size = tuple[int, int]
"""(width, height) in pixels."""

PATCH: Final = 14
"""Side of a vision patch in input px: `patch_size` of the released preprocessor_config.json."""
MERGE: Final = 2
"""Patches merged to one token along each side: `merge_size` of the released preprocessor_config.json."""
FACTOR: Final = PATCH * MERGE
"""Side of the square that one image token covers, input px."""
MAX_ASPECT: Final = 200
"""smart_resize refuses longer pictures (transformers, image_processing_qwen2_vl.py)."""


def smart_resize(image_wh: Size, min_pixels: int, max_pixels: int, factor: int = FACTOR) -> Size:
    """Return the input (width, height) that the processor gives a picture: multiples of `factor` within the budget.

    Equal to transformers' function of that name, which cannot be used here since it loads torch; held so by
    tests/test_frames.py.  Raises ValueError if a side is not positive or the sides differ more than 200 times.

    >>> smart_resize((640, 480), 3136, 12845056)
    (644, 476)
    """
    width, height = image_wh
    if min(width, height) <= 0:
        raise ValueError(f"sides must be positive, got {width} x {height}")
    if max(width, height) / min(width, height) > MAX_ASPECT:
        raise ValueError(f"one side is over {MAX_ASPECT} times the other: {width} x {height}")
    w_bar, h_bar = round(width / factor) * factor, round(height / factor) * factor
    if h_bar * w_bar > max_pixels:
        beta = math.sqrt(height * width / max_pixels)
        h_bar = max(factor, math.floor(height / beta / factor) * factor)
        w_bar = max(factor, math.floor(width / beta / factor) * factor)
    elif h_bar * w_bar < min_pixels:
        beta = math.sqrt(min_pixels / (height * width))
        h_bar = math.ceil(height * beta / factor) * factor
        w_bar = math.ceil(width * beta / factor) * factor
    return w_bar, h_bar


def num_image_tokens(input_wh: Size) -> int:
    """How many tokens the model reads for a picture of this input size."""
    return (input_wh[0] // FACTOR) * (input_wh[1] // FACTOR)


def to_input_px(box_xyxy: Box, image_wh: Size, input_wh: Size) -> Box:
    """Map a box from image px to input px, the frame the model answers in; `to_image_px` undoes it.

    Neither rounded nor clipped.  Raises ValueError if a side is not positive.
    Source: image_grid_thw * 14 of the released processor; held by tests/test_frames.py.

    >>> to_input_px((320, 240, 640, 480), (640, 480), (644, 476))
    (322.0, 238.0, 644.0, 476.0)
    """
    if min(*image_wh, *input_wh) <= 0:
        raise ValueError(f"sides must be positive: image {image_wh}, input {input_wh}")
    sx, sy = input_wh[0] / image_wh[0], input_wh[1] / image_wh[1]
    return (box_xyxy[0] * sx, box_xyxy[1] * sy, box_xyxy[2] * sx, box_xyxy[3] * sy)


def to_image_px(box_xyxy: Box, image_wh: Size, input_wh: Size) -> Box:
    """Map a box from input px, where the model answered, back to image px.  Neither rounded nor clipped."""
    return to_input_px(box_xyxy, input_wh, image_wh)


def clip(box_xyxy: Box, image_wh: Size) -> Box:
    """Cut a box at the borders of its picture (same frame for both)."""
    x1, y1, x2, y2 = box_xyxy
    width, height = image_wh
    return (min(max(x1, 0.0), width), min(max(y1, 0.0), height), min(max(x2, 0.0), width), min(max(y2, 0.0), height))


def area(box_xyxy: Box) -> float:
    """Area in px²; 0 for a reversed or flat box."""
    return max(0.0, box_xyxy[2] - box_xyxy[0]) * max(0.0, box_xyxy[3] - box_xyxy[1])


def iou(one_xyxy: Box, other_xyxy: Box) -> float:
    """Intersection over union, in [0, 1]; 0 where both are flat.

    >>> iou((0, 0, 2, 2), (1, 0, 3, 2))
    0.3333333333333333
    """
    width = min(one_xyxy[2], other_xyxy[2]) - max(one_xyxy[0], other_xyxy[0])
    height = min(one_xyxy[3], other_xyxy[3]) - max(one_xyxy[1], other_xyxy[1])
    inter = max(0.0, width) * max(0.0, height)
    union = area(one_xyxy) + area(other_xyxy) - inter
    return inter / union if union > 0 else 0.0


def _xyxy(v: Sequence[float], _: Size) -> Box:
    return (v[0], v[1], v[2], v[3])


def _xywh(v: Sequence[float], _: Size) -> Box:
    return (v[0], v[1], v[0] + v[2], v[1] + v[3])


def _cxcywh(v: Sequence[float], _: Size) -> Box:
    return (v[0] - v[2] / 2, v[1] - v[3] / 2, v[0] + v[2] / 2, v[1] + v[3] / 2)


def _scaled(to_box: Callable[[Sequence[float], Size], Box], whole: float) -> Callable[[Sequence[float], Size], Box]:
    def convert(v: Sequence[float], image_wh: Size) -> Box:
        x1, y1, x2, y2 = to_box(v, image_wh)
        sx, sy = image_wh[0] / whole, image_wh[1] / whole
        return (x1 * sx, y1 * sy, x2 * sx, y2 * sy)

    return convert


CONVENTIONS: Final[Mapping[str, Callable[[Sequence[float], Size], Box]]] = {
    "xyxy": _xyxy,
    "xywh": _xywh,
    "cxcywh": _cxcywh,
    "xyxy_norm": _scaled(_xyxy, 1.0),
    "xywh_norm": _scaled(_xywh, 1.0),
    "cxcywh_norm": _scaled(_cxcywh, 1.0),
    "xyxy_1000": _scaled(_xyxy, 1000.0),
}
"""How four numbers of a source become a box: name -> (numbers, image_wh) -> x1, y1, x2, y2 in image px."""


def to_xyxy(numbers: Sequence[float], convention: str, image_wh: Size) -> Box:
    """Read four numbers of a source by a named convention; returns x1, y1, x2, y2 in image px.

    Raises KeyError for an unknown convention and ValueError unless there are four finite numbers.

    >>> to_xyxy([10, 20, 30, 40], "xywh", (100, 100))
    (10.0, 20.0, 40.0, 60.0)
    """
    if len(numbers) != 4 or not all(math.isfinite(n) for n in numbers):
        raise ValueError(f"a box needs four finite numbers, got {list(numbers)}")
    x1, y1, x2, y2 = CONVENTIONS[convention]([float(n) for n in numbers], image_wh)
    return (x1, y1, x2, y2)
