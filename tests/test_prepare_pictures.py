"""Pictures of strangers: decoded to the end, stored once each, upright, and never from outside their folder."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps
from prepare_inputs import picture

from qwenft.prepare.pictures import PictureError, decode, locate, turn_box
from qwenft.prepare.rows import PictureFile, Reason
from qwenft.prepare.store import PictureStore


def encoded(image: Image.Image, kind: str, **save: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **save)
    return buffer.getvalue()


def turned(orientation: int, size: tuple[int, int] = (60, 40)) -> bytes:
    image = Image.new("L", size)
    image.paste(255, (5, 8, 25, 20))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return encoded(image, "PNG", exif=exif)


def grey16() -> bytes:
    ramp = np.linspace(0, 65535, 64 * 48).reshape(48, 64).astype(np.uint16)
    return encoded(Image.fromarray(ramp), "PNG")


def animated() -> bytes:
    frames = [Image.new("RGB", (30, 20), colour) for colour in ("red", "green", "blue")]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


RGB = Image.new("RGB", (40, 30), "teal")


@pytest.mark.parametrize(
    ("content", "extension"),
    [
        pytest.param(encoded(RGB, "JPEG"), "jpg", id="JPEG"),
        pytest.param(encoded(RGB, "PNG"), "png", id="PNG"),
        pytest.param(encoded(RGB, "WEBP"), "webp", id="WebP"),
        pytest.param(encoded(RGB, "BMP"), "bmp", id="BMP"),
        pytest.param(encoded(RGB, "TIFF"), "tif", id="TIFF"),
        pytest.param(encoded(RGB.convert("CMYK"), "JPEG"), "jpg", id="CMYK"),
        pytest.param(encoded(RGB.convert("P"), "PNG", transparency=b"\0\x80"), "png", id="palette with transparency"),
        pytest.param(encoded(RGB.convert("LA"), "PNG"), "png", id="grey with alpha"),
        pytest.param(encoded(RGB.convert("1"), "PNG"), "png", id="one bit"),
        pytest.param(animated(), "gif", id="animated"),
    ],
)
def test_an_unusual_picture_is_taken_with_its_own_bytes(content: bytes, extension: str) -> None:
    found = decode(content)
    assert found.content == content
    assert (found.extension, found.converted) == (extension, False)


def test_sixteen_bits_keep_their_shades() -> None:
    """Pillow's own conversion to RGB would turn all but the darkest 1/256 white."""
    found = decode(grey16())
    with Image.open(io.BytesIO(found.content)) as image:
        shades = np.asarray(image.convert("RGB"))[..., 0].ravel()
    assert found.converted
    assert len(set(shades.tolist())) == 256
    assert (np.diff(shades.astype(int)) >= 0).all()


JPEG = picture(1, kind="JPEG")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(b"", Reason.PICTURE_EMPTY, id="zero bytes"),
        pytest.param(b"<!DOCTYPE html><html>404", Reason.PICTURE_NOT_ONE, id="HTML named .jpg"),
        pytest.param(JPEG[: len(JPEG) // 2], Reason.PICTURE_BROKEN, id="truncated JPEG"),
        pytest.param(picture(1)[:-60], Reason.PICTURE_BROKEN, id="truncated PNG"),
        pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", Reason.PICTURE_NOT_ONE, id="PostScript"),
        pytest.param(encoded(Image.new("1", (30_000, 30_000)), "PNG"), Reason.PICTURE_TOO_LARGE, id="bomb"),
        pytest.param(encoded(Image.new("1", (9_500, 9_500)), "PNG"), Reason.PICTURE_TOO_LARGE, id="over the limit"),
        pytest.param(encoded(Image.new("L", (402, 2)), "PNG"), Reason.PICTURE_TOO_THIN, id="over 200 times"),
        pytest.param(encoded(Image.new("F", (20, 20)), "TIFF"), Reason.PICTURE_DEPTH, id="float"),
    ],
)
def test_what_is_no_sound_picture_is_refused_with_its_reason(content: bytes, reason: Reason) -> None:
    with pytest.raises(PictureError) as caught:
        decode(content)
    assert caught.value.reason is reason


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"])
def test_damaged_bytes_never_end_in_anything_but_a_reason(kind: str) -> None:
    whole = picture(3, kind=kind)
    for seed in range(60):
        draw = np.random.default_rng(seed)
        damaged = bytearray(whole)
        for place in draw.integers(0, len(damaged), 8):
            damaged[place] = draw.integers(256)
        try:
            decode(bytes(damaged))
        except PictureError as error:
            assert error.reason in set(Reason)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_is_found_broken_wherever_a_whole_reading_finds_it_broken(mode: str) -> None:
    """It is read without its colours, which is faster: all of its bytes are read all the same."""
    with Image.open(io.BytesIO(picture(4, (320, 240)))) as opened:
        whole = encoded(opened.convert(mode), "JPEG", quality=90)
    for seed in range(80):
        draw = np.random.default_rng(seed)
        damaged = bytearray(whole[: int(draw.integers(1, len(whole)))] if seed % 2 else whole)
        for place in draw.integers(0, len(damaged), 0 if seed % 2 else 6):
            damaged[place] = draw.integers(256)
        try:
            with Image.open(io.BytesIO(damaged), formats=["JPEG"]) as opened:
                opened.load()
            sound = True
        except (OSError, SyntaxError):
            sound = False
        try:
            decode(bytes(damaged))
            taken = True
        except PictureError:
            taken = False
        assert taken == sound, seed


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_picture_is_stored_as_a_viewer_shows_it_and_boxes_turn_with_it(orientation: int) -> None:
    content = turned(orientation)
    found = decode(content)
    with Image.open(io.BytesIO(content)) as opened:
        expected = ImageOps.exif_transpose(opened)
    with Image.open(io.BytesIO(found.content)) as stored:
        assert stored.getexif().get(ExifTags.Base.Orientation, 1) == 1
        assert stored.tobytes() == expected.tobytes()
        assert found.image_wh == stored.size
        assert turn_box((5, 8, 25, 20), orientation, (60, 40)) == stored.point(lambda v: 255 * (v > 128)).getbbox()
    assert (found.content == content) == (orientation == 1)


def test_each_distinct_picture_is_stored_once(tmp_path: Path) -> None:
    store = PictureStore(tmp_path)
    first, second = picture(1), picture(2)
    (tmp_path / "copy.png").write_bytes(first)
    named = PictureFile("copy.png", (tmp_path,), tmp_path)
    images = {store.add(p).image for p in (first, second, first, named)}
    assert images == {p.relative_to(tmp_path).as_posix() for p in (tmp_path / "images").glob("*/*")}
    assert len(images) == 2


def test_a_second_try_finds_the_pictures_of_the_first_and_sweeps_the_rest(tmp_path: Path) -> None:
    PictureStore(tmp_path).add(picture(1))
    PictureStore(tmp_path).add(picture(9))
    again = PictureStore(tmp_path)
    kept = again.add(picture(1)).image
    assert again.reused == 1
    assert again.sweep({kept}) == 1
    assert [p.relative_to(tmp_path).as_posix() for p in (tmp_path / "images").glob("*/*")] == [kept]


def test_a_torn_file_of_an_earlier_try_is_written_again(tmp_path: Path) -> None:
    image = tmp_path / PictureStore(tmp_path).add(picture(1)).image
    image.write_bytes(image.read_bytes()[:50])
    PictureStore(tmp_path).add(picture(1))
    assert image.read_bytes() == picture(1)


@pytest.fixture
def fenced(tmp_path: Path) -> Path:
    inside = tmp_path / "set"
    (inside / "images").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(picture(5))
    (inside / "images" / "a.png").write_bytes(picture(1))
    (inside / "images" / "inner.png").symlink_to("a.png")
    (inside / "images" / "out.png").symlink_to(tmp_path / "secret.png")
    (inside / "loop.png").symlink_to("loop.png")
    return inside


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        pytest.param("../secret.png", Reason.PICTURE_OUTSIDE, id="dots"),
        pytest.param("../../not-even-there.png", Reason.PICTURE_OUTSIDE, id="dots to nothing"),
        pytest.param("/etc/hostname", Reason.PICTURE_OUTSIDE, id="absolute"),
        pytest.param("out.png", Reason.PICTURE_OUTSIDE, id="link"),
        pytest.param("loop.png", Reason.PICTURE_MISSING, id="link in a circle"),
        pytest.param("none.png", Reason.PICTURE_MISSING, id="missing"),
        pytest.param("a.png\0b", Reason.PICTURE_MISSING, id="NUL"),
        pytest.param("x" * 5000, Reason.PICTURE_MISSING, id="too long a name"),
        pytest.param("images", Reason.PICTURE_MISSING, id="a folder"),
        pytest.param("https://example.com/a.png", Reason.PICTURE_REMOTE, id="address"),
    ],
)
def test_a_path_that_leaves_the_folder_or_leads_nowhere_is_refused(fenced: Path, name: str, reason: Reason) -> None:
    with pytest.raises(PictureError) as caught:
        locate(PictureFile(name, (fenced, fenced / "images"), fenced))
    assert caught.value.reason is reason


def test_links_are_followed_inside_the_folder_and_out_of_it_only_when_asked(fenced: Path) -> None:
    folders = (fenced / "images",)
    assert locate(PictureFile("inner.png", folders, fenced)).name == "a.png"
    assert locate(PictureFile("out.png", folders, fenced), follow_links=True).name == "secret.png"


def test_a_data_set_that_is_itself_a_link_is_read(fenced: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(fenced)
    assert locate(PictureFile("a.png", (link / "images",), link)).name == "a.png"
