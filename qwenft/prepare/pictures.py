"""Pictures of strangers: found inside their folder, decoded to the end, turned upright."""

import io
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import IO, Final, NamedTuple

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from qwenft.core.boxes import MAX_ASPECT, Box, Size
from qwenft.core.errors import DataError
from qwenft.prepare.rows import EXPLANATIONS, PictureFile, Reason

EXTENSIONS: Final = {
    "JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp", "GIF": "gif", "TIFF": "tif", "PPM": "ppm"
}  # fmt: skip
"""Formats that are decoded, by Pillow's name.  Others stay shut: some of Pillow's decoders start programs (EPS)."""
OPENED: Final = tuple(name for name in EXTENSIONS if name != "MPO")
"""MPO (two pictures of a phone in one file) is opened as JPEG and then says what it is."""
MAX_DECODED_PX: Final = 1024 * 1024 * 1024 // 4 // 3
"""Pillow's own threshold for a decompression bomb (89,478,485 px, Image.MAX_IMAGE_PIXELS)."""
MAX_FILE_BYTES: Final = 512 * 1024 * 1024
DECODE_ERRORS: Final = (
    OSError, SyntaxError, ValueError, EOFError, TypeError, IndexError, KeyError, OverflowError, AttributeError,
    struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
"""What Pillow's decoders raise on a broken file (a fuzzed file reaches all of them)."""
TURNED_QUALITY: Final = 95
DHASH_SIDE: Final = 16


class PictureError(Exception):
    """A picture that is not taken, and why."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.reason, self.detail))


class Stored(NamedTuple):
    """A picture of the prepared data set."""

    image: str
    """Path in the data set: images/ab/<sha256>.<ext>."""
    image_wh: Size
    """As stored, which is as a viewer shows it."""
    orientation: int
    """EXIF orientation of the source, 1 to 8; with 5 to 8 the source's own width and height are exchanged."""
    converted: bool = False
    """Rewritten with 8 bits a channel."""
    dhash: int = 0
    """What it looks like: see `dhash_of`."""

    @property
    def file_wh(self) -> Size:
        """Size before turning."""
        return self.image_wh[::-1] if self.orientation >= 5 else self.image_wh


class Decoded(NamedTuple):
    """A picture's bytes as they are to be stored, and what is known about them."""

    content: bytes
    extension: str
    image_wh: Size
    orientation: int
    converted: bool
    dhash: int


def decode(content: bytes) -> Decoded:
    """Decode a picture to its end; returns its original bytes, rewritten only where it is turned or deeper than 8 bits.

    Raises PictureError.
    """
    if not content:
        raise PictureError(Reason.PICTURE_EMPTY, "0 bytes")
    with _opened(io.BytesIO(content)) as opened:
        return _decoded(content, opened)


def open_upright(path: Path) -> Image.Image:
    """Open a picture as a viewer shows it: upright, 8 bits a channel, RGB.  Raises DataError saying what is wrong."""
    try:
        with path.open("rb") as file, _opened(file) as opened:
            opened.load()
            picture = _eight_bits(opened) if opened.mode.startswith("I;16") else opened
            return ImageOps.exif_transpose(picture).convert("RGB")
    except PictureError as error:
        raise _unreadable(path, error) from error
    except OSError as error:
        raise DataError(f"{path.absolute()} cannot be read: {error.strerror}", hint="check the path") from error


def upright_size(path: Path) -> Size:
    """(width, height) of a picture as a viewer shows it, by its header alone.  Raises DataError as `open_upright` does,
    but a picture that is broken further on passes.
    """
    try:
        with path.open("rb") as file, _opened(file) as opened:
            turned = opened.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
            return opened.size[::-1] if turned else opened.size
    except PictureError as error:
        raise _unreadable(path, error) from error
    except OSError as error:
        raise DataError(f"{path.absolute()} cannot be read: {error.strerror}", hint="check the path") from error


def _unreadable(path: Path, error: PictureError) -> DataError:
    return DataError(f"{path.absolute()}: {EXPLANATIONS[error.reason]} ({error.detail})")


@contextmanager
def _opened(source: IO[bytes]) -> Iterator[Image.Image]:
    """Open a stranger's picture; whatever its decoder raises in the block becomes a PictureError."""
    with warnings.catch_warnings():  # odd EXIF, palettes with transparency: of no use to the user
        warnings.simplefilter("ignore")
        try:
            opened = Image.open(source, formats=OPENED)
        except UnidentifiedImageError:
            source.seek(0)
            start = source.read(16)
            if not start:
                raise PictureError(Reason.PICTURE_EMPTY, "0 bytes") from None
            raise PictureError(Reason.PICTURE_NOT_ONE, f"starts with {start!r}") from None
        except Image.DecompressionBombError as error:
            raise PictureError(Reason.PICTURE_TOO_LARGE, str(error)) from error
        except DECODE_ERRORS as error:
            raise PictureError(Reason.PICTURE_BROKEN, str(error)) from error
        with opened:
            _check_size(opened.size)
            try:
                yield opened
            except DECODE_ERRORS as error:
                raise PictureError(Reason.PICTURE_BROKEN, str(error)) from error


def _decoded(content: bytes, opened: Image.Image) -> Decoded:
    extension = EXTENSIONS[opened.format or "PNG"]
    orientation = opened.getexif().get(ExifTags.Base.Orientation, 1)
    orientation = orientation if orientation in range(2, 9) else 1
    if (
        orientation == 1
    ):  # its pixels are not written again: a JPEG is read to its end without its colours, a quarter faster
        opened.draft("L", opened.size)
    opened.load()
    deep = opened.mode.startswith("I;16")
    if opened.mode in ("I", "F"):
        raise PictureError(Reason.PICTURE_DEPTH, f"mode {opened.mode}")
    picture = _eight_bits(opened) if deep else opened
    upright = ImageOps.exif_transpose(picture) if orientation != 1 else picture
    look = dhash_of(upright if upright.mode in ("L", "RGB") else upright.convert("RGB"))
    if orientation == 1 and not deep:
        return Decoded(content, extension, opened.size, 1, converted=False, dhash=look)
    kind = "JPEG" if extension == "jpg" else "PNG"
    buffer = io.BytesIO()
    if kind == "JPEG" and upright.mode not in ("L", "RGB", "CMYK"):
        upright = upright.convert("RGB")
    upright.save(buffer, kind, quality=TURNED_QUALITY, exif=b"")
    return Decoded(buffer.getvalue(), EXTENSIONS[kind], upright.size, orientation, converted=deep, dhash=look)


def dhash_of(picture: Image.Image) -> int:
    """256 bits of an RGB or grey picture: whether each of 16 x 16 fields is darker than its right neighbour.

    It survives another size, another quality and another format; pictures of the same scene differ in many bits.
    The idea: N. Krawetz, "Kind of Like That", hackerfactor.com, 2013 (there 8 x 8).
    """
    # No reducing_gap: it saves 0.1 ms, but then another size of the same picture differs in twice as many bits.
    fields = picture.convert("L").resize((DHASH_SIDE + 1, DHASH_SIDE), Image.Resampling.BOX).tobytes()
    rows = [fields[start : start + DHASH_SIDE + 1] for start in range(0, len(fields), DHASH_SIDE + 1)]
    bits = "".join("1" if left < right else "0" for row in rows for left, right in pairwise(row))
    return int(bits, 2)


def _eight_bits(picture: Image.Image) -> Image.Image:
    """The upper 8 of 16 bits.  Pillow's own conversion cuts all above 255 to white (seen with Pillow 13.0)."""
    import numpy as np

    converted = Image.fromarray((np.asarray(picture).astype(np.uint16) >> 8).astype(np.uint8))
    if exif := picture.info.get("exif"):
        converted.info["exif"] = exif
    return converted


def _check_size(image_wh: Size) -> None:
    width, height = image_wh
    if min(image_wh) <= 0:
        raise PictureError(Reason.PICTURE_BROKEN, f"{width} x {height} px")
    if width * height > MAX_DECODED_PX:
        raise PictureError(Reason.PICTURE_TOO_LARGE, f"{width} x {height} px, over {MAX_DECODED_PX:,}")
    if max(image_wh) > MAX_ASPECT * min(image_wh):
        raise PictureError(Reason.PICTURE_TOO_THIN, f"{width} x {height} px")


def locate(picture: PictureFile, follow_links: bool = False) -> Path:
    """Find the file of a picture inside the folder it must not leave.  Raises PictureError."""
    if "://" in picture.name[:12]:
        raise PictureError(Reason.PICTURE_REMOTE, picture.name[:200])
    within = picture.within.resolve()
    for folder in picture.folders:
        path = folder / picture.name
        try:
            target = path.resolve(strict=True)
        except (OSError, ValueError, RuntimeError):  # absent, a NUL in its name, too long, links in a circle
            continue
        if not target.is_file():
            continue
        if not follow_links and not target.is_relative_to(within):
            raise PictureError(
                Reason.PICTURE_OUTSIDE, f"{picture.name[:200]} leads out of it (--follow-links takes it)"
            )
        return target
    if not follow_links and _leaves(picture):
        raise PictureError(Reason.PICTURE_OUTSIDE, picture.name[:200])
    raise PictureError(Reason.PICTURE_MISSING, f"{picture.name[:200]!r} not found")


def _leaves(picture: PictureFile) -> bool:
    """Whether a name leads out of the folder even where nothing stands there."""
    within = Path(os.path.abspath(picture.within))  # noqa: PTH100 - resolve() would follow links
    return not any(
        Path(os.path.abspath(folder / picture.name.replace("\0", ""))).is_relative_to(within)  # noqa: PTH100
        for folder in picture.folders
    )


def read_bytes(path: Path) -> bytes:
    """Read a picture's file.  Raises PictureError."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise PictureError(Reason.PICTURE_TOO_LARGE, f"{path.stat().st_size:,} bytes")
        return path.read_bytes()
    except OSError as error:
        raise PictureError(Reason.PICTURE_MISSING, f"cannot be read: {error.strerror}") from error


def turn_box(box_xyxy: Box, orientation: int, file_wh: Size) -> Box:
    """Map a box from the stored (unturned) file's px to the px a viewer shows.

    orientation: EXIF, 1 to 8.  file_wh: (width, height) before turning.  Source: Exif 2.3, 4.6.4 A, tag 274; held
    against Pillow's exif_transpose by tests/test_prepare_pictures.py.

    >>> turn_box((0, 0, 10, 20), 6, (100, 50))
    (30, 0, 50, 10)
    """
    width, height = file_wh
    x1, y1, x2, y2 = box_xyxy
    if orientation in (2, 3, 7, 8):
        x1, x2 = width - x2, width - x1
    if orientation in (3, 4, 6, 7):
        y1, y2 = height - y2, height - y1
    return (y1, x1, y2, x2) if orientation >= 5 else (x1, y1, x2, y2)
