"""Pictures of the report as small JPEGs in data addresses, within a stated size."""

import base64
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from qwenft.core.errors import DataError
from qwenft.prepare.pictures import open_upright

SIDE_PX: Final = 320
"""Longer side of a thumbnail."""
QUALITY: Final = 72
BUDGET_BYTES: Final = 8_000_000
"""Of all thumbnails together, as they stand in the page."""


def thumbnails(pictures: Iterable[tuple[str, Path]], budget_bytes: int = BUDGET_BYTES) -> dict[str, str]:
    """Data addresses by key, in the order given until the budget is spent; a picture is read only if there is room.

    pictures: key and file.  A file that cannot be read is left out: its boxes are then drawn on a plain ground.
    """
    found: dict[str, str] = {}
    left = budget_bytes
    for key, path in pictures:
        if key in found:
            continue
        try:
            address = data_address(path)
        except DataError:
            continue
        left -= len(address)
        if left < 0:
            break
        found[key] = address
    return found


def data_address(path: Path) -> str:
    """A picture as a `data:` address, at most SIDE_PX long, without metadata.  Raises DataError."""
    picture = open_upright(path)
    picture.thumbnail((SIDE_PX, SIDE_PX))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
