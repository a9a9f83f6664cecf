"""What is wrong with a data set as a whole is said, with a number and an example, and stands in the manifest."""

import io
import random
from pathlib import Path
from typing import Any

import pytest
from annotated import truth, write_voc
from PIL import Image, ImageDraw, ImageEnhance
from prepare_inputs import DATA, corners, good_rows, picture, write_records

from qwenft.core.boxes import smart_resize
from qwenft.core.samples import PreparedDataset, Sample, SceneObject
from qwenft.prepare.audit import MAX_PIXELS, MIN_PIXELS, alike, audit
from qwenft.prepare.build import prepare_dataset
from qwenft.prepare.pictures import dhash_of


def prepare(source: Path, root: Path, **options: Any) -> PreparedDataset:
    return prepare_dataset(str(source), root=root, **options)


def check_of(data: PreparedDataset, start: str) -> dict[str, Any]:
    return next(check for check in data.manifest.checks if check["check"].startswith(start))


def scene(seed: int, size: tuple[int, int] = (320, 240)) -> Image.Image:
    """A picture with something everywhere, as photos have: light and dark fields of all sizes."""
    with Image.open(io.BytesIO(picture(seed, size))) as opened:
        image = opened.convert("RGB")
    draw, pen = random.Random(seed), ImageDraw.Draw(image)
    for _ in range(60):
        x, y = draw.randrange(size[0]), draw.randrange(size[1])
        colour = tuple(draw.randrange(256) for _ in range(3))
        pen.ellipse((x - 30, y - 20, x + draw.randrange(60), y + draw.randrange(50)), fill=colour)
    return image


def _recompressed(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=40)
    return Image.open(buffer)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda image: image.resize((200, 150)), id="smaller"),
        pytest.param(lambda image: image.resize((640, 480)), id="larger"),
        pytest.param(lambda image: ImageEnhance.Brightness(image).enhance(0.8), id="darker"),
        pytest.param(_recompressed, id="recompressed"),
    ],
)
def test_the_same_picture_in_another_size_light_or_quality_in_another_split_is_a_warning(
    tmp_path: Path, change: Any
) -> None:
    rows = good_rows(tmp_path / "set", 24)
    for number in range(24):
        scene(number).save(tmp_path / "set" / f"{number}.png")
    change(scene(3)).save(tmp_path / "set" / "20.png")
    write_records(tmp_path / "set", rows[:12], "train.jsonl")
    write_records(tmp_path / "set", rows[12:], "val.jsonl")
    events: list[Any] = []
    data = prepare(tmp_path / "set", tmp_path, bbox_format="xyxy", clip=True, emit=events.append)
    warned = [e["text"] for e in events if e["event"] == "warning"]
    assert [text for text in warned if "look like" in text] == [
        text for text in warned if text.startswith("1 picture of val look like one of train, e.g. images/")
    ]
    found = check_of(data, "no picture that looks like")
    assert (found["result"], found["number"]) == ("warning", 1)
    one, other = (next(s for s in data.samples(split) if s.image == image) for split, image in zip(
        ("train", "val"), found["pairs"][0]["images"], strict=True))  # fmt: skip
    assert (one.query, other.query) == ("thing 3", "thing 20")


def test_different_pictures_of_one_kind_and_empty_ones_are_not_taken_for_the_same(tmp_path: Path) -> None:
    real = DATA / "bccd"
    source = real if real.is_dir() else write_voc(tmp_path / "source", truth(12))
    data = prepare(source, tmp_path)
    assert check_of(data, "no picture that looks like")["number"] == 0
    blank = {split: [sample_of(f"images/00/{split}{n}.png") for n in range(3)] for split in ("train", "val")}
    looks = {s.image: dhash_of(Image.new("RGB", (50, 40), "white")) for part in blank.values() for s in part}
    assert not list(alike(blank, looks))


def sample_of(image: str, query: str | None = "q", boxes: Any = (), wh: tuple[int, int] = (640, 480)) -> Sample:
    objects = tuple(SceneObject(tuple(map(float, box)), query or "x") for box in boxes)
    task = "grounding" if query else "detection"
    return Sample(f"id {image} {query}", task, image, *wh, query=query, objects=objects)


def test_finding_lookalikes_agrees_with_comparing_all_pairs() -> None:
    draw = random.Random(1)
    base = [draw.getrandbits(256) for _ in range(40)]
    looks = {f"images/00/{n}.png": look for n, look in enumerate(base)}
    for n, look in enumerate(base):
        flipped = look
        for bit in draw.sample(range(256), n % 16 if n % 4 else 30):
            flipped ^= 1 << bit
        looks[f"images/01/{n}.png"] = flipped
    splits = {
        "train": [sample_of(image) for image in looks if "/00/" in image],
        "val": [sample_of(image) for image in looks if "/01/" in image],
    }
    expected = {
        (one.image, other.image)
        for one in splits["train"]
        for other in splits["val"]
        if (looks[one.image] ^ looks[other.image]).bit_count() <= 20
    }
    assert {found.images for found in alike(splits, looks)} == expected
    assert 20 < len(expected) < 40


def test_an_expression_with_two_boxes_in_one_picture_is_a_contradiction_but_a_repeat_is_none(tmp_path: Path) -> None:
    rows = good_rows(tmp_path / "set", 12)
    rows.append({**rows[2], "expression": "Thing  2", "bbox": corners(77)})
    rows.append({**rows[4], "bbox": [v + 0.2 for v in rows[4]["bbox"]]})
    write_records(tmp_path / "set", rows)
    data = prepare(tmp_path / "set", tmp_path, val_fraction=0)
    assert check_of(data, "no expression with different boxes")["number"] == 1
    assert check_of(data, "no question asked twice")["repeated"] == 1
    assert any(
        "1 expression asked twice of a picture with different boxes, e.g. 'thing 2'" in n for n in data.manifest.notes
    )


def test_boxes_under_a_patch_are_counted_in_the_frame_of_the_model_with_what_helps() -> None:
    large, small = (4000, 3000), (320, 240)
    boxes = {large: [(0, 0, 40, 40), (0, 0, 60, 600), (0, 0, 900, 50)], small: [(0, 0, 13, 90), (0, 0, 20, 20)]}
    samples = [sample_of(f"images/00/{n}.png", "q", b, wh) for n, (wh, b) in enumerate(boxes.items())]
    expected = [
        min((x2 - x1) * smart_resize(wh, MIN_PIXELS, MAX_PIXELS)[0] / wh[0],
            (y2 - y1) * smart_resize(wh, MIN_PIXELS, MAX_PIXELS)[1] / wh[1]) < 14
        for wh, b in boxes.items() for x1, y1, x2, y2 in b
    ]  # fmt: skip
    found = audit({"train": samples}, {s.image: 0 for s in samples}).small
    assert (found.boxes, found.shrunk, found.total) == (sum(expected), sum(expected[:3]), 5)
    assert found.sentence() == (
        f"{found.boxes} of 5 boxes are under 14 px in the model's frame ({found.shrunk} in pictures that max_pixels "
        "1003520 shrinks: raise it; 1 in pictures that it leaves: a higher min_pixels enlarges them)"
    )


def test_labels_are_counted_and_their_spellings_compared(tmp_path: Path) -> None:
    source = write_voc(tmp_path / "set", truth(8))
    file = source / "Annotations" / "train-1.xml"
    file.write_text(file.read_text().replace("<name>cup</name>", "<name>Cup </name>"))
    data = prepare(source, tmp_path)
    found = check_of(data, "labels are spelled")
    assert found["result"] == "warning" and found["spellings"] == [["Cup", "cup"]]
    assert any("'Cup' = 'cup'; --rename 'Cup=cup'" in note for note in data.manifest.notes)
    assert sum(found["labels"].values()) == data.manifest.counts["objects"]
    assert list(found["labels"]) == sorted(found["labels"], key=lambda name: (-found["labels"][name], name))


def test_a_dry_run_says_the_same_and_writes_nothing(tmp_path: Path) -> None:
    rows = good_rows(tmp_path / "set", 12)
    (tmp_path / "set" / "3.png").write_bytes(b"<html>")
    write_records(tmp_path / "set", rows)
    before = sorted(tmp_path.rglob("*"))
    dry_events: list[Any] = []
    dry = prepare(tmp_path / "set", tmp_path, dry_run=True, export=("qwen",), command="-", emit=dry_events.append)
    assert sorted(tmp_path.rglob("*")) == before
    events: list[Any] = []
    data = prepare(tmp_path / "set", tmp_path, command="-", emit=events.append)
    assert dry.manifest == data.manifest
    assert [e for e in dry_events if e["event"] != "note"] == [e for e in events if e["event"] != "note"]
    said = [e["text"] for e in dry_events if e["event"] == "note"]
    assert said[-1] == "a dry run, nothing was written; samples it would give: train 10, val 1"
    assert said[-2].startswith(
        "picture-not-a-picture 1: the file is no picture, whatever its name says, e.g. train.jsonl"
    )
    assert dry.samples("train") == data.samples("train")
    again = prepare(tmp_path / "set", tmp_path, dry_run=True)  # what stands there is no obstacle
    assert again.manifest.counts == data.manifest.counts
