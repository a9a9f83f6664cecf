"""Broken input: a line in rejected.jsonl for each row not taken, or one error that says where and what to do."""

import io
import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from PIL import ExifTags, Image
from prepare_inputs import good_rows, lines, picture, write_coco, write_records

from qwenft.core.errors import DataError
from qwenft.core.samples import PreparedDataset
from qwenft.prepare.build import prepare_dataset
from qwenft.prepare.rows import EXPLANATIONS, Reason


def prepare(source: Path, root: Path, **options: Any) -> PreparedDataset:
    return prepare_dataset(str(source), root=root, **options)


def damage(folder: Path) -> None:
    """Files that a row may name by mistake."""
    (folder / "empty.png").write_bytes(b"")
    (folder / "page.jpg").write_bytes(b"<html>not found</html>")
    (folder / "half.jpg").write_bytes(picture(50, kind="JPEG")[:400])
    (folder / "thin.png").write_bytes(picture(51)[:0] + _thin())
    (folder.parent / "outside.png").write_bytes(picture(52))
    (folder / "half.png").write_bytes(picture(53)[:-60])
    (folder / "away.png").symlink_to(folder.parent / "outside.png")
    (folder / "bomb.png").write_bytes(_bomb())
    Image.new("F", (40, 30)).save(folder / "float.tif")


@cache
def _bomb() -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(buffer, "PNG")
    return buffer.getvalue()


def _thin() -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (900, 3)).save(buffer, "PNG")
    return buffer.getvalue()


BROKEN = [
    pytest.param({"image": "empty.png"}, Reason.PICTURE_EMPTY, id="zero bytes"),
    pytest.param({"image": "page.jpg"}, Reason.PICTURE_NOT_ONE, id="HTML"),
    pytest.param({"image": "half.jpg"}, Reason.PICTURE_BROKEN, id="truncated"),
    pytest.param({"image": "thin.png"}, Reason.PICTURE_TOO_THIN, id="thin"),
    pytest.param({"image": "none.png"}, Reason.PICTURE_MISSING, id="missing"),
    pytest.param({"image": None}, Reason.PICTURE_MISSING, id="no picture"),
    pytest.param({"image": "../outside.png"}, Reason.PICTURE_OUTSIDE, id="outside"),
    pytest.param({"image": "http://example.com/a.png"}, Reason.PICTURE_REMOTE, id="address"),
    pytest.param({"image": ["0.png", "1.png"]}, Reason.PICTURE_SEVERAL, id="two pictures"),
    pytest.param({"expression": "  "}, Reason.QUERY_EMPTY, id="empty expression"),
    pytest.param({"expression": None}, Reason.QUERY_EMPTY, id="no expression"),
    pytest.param({"bbox": [1, 2, 3]}, Reason.BOX_UNREADABLE, id="three numbers"),
    pytest.param({"bbox": "left of it"}, Reason.BOX_UNREADABLE, id="prose"),
    pytest.param({"bbox": [1, 2, 3, "x"]}, Reason.BOX_UNREADABLE, id="a word"),
    pytest.param({"bbox": [1, math.nan, 30, 40]}, Reason.BOX_NOT_FINITE, id="NaN"),
    pytest.param({"bbox": [1, 2, math.inf, 40]}, Reason.BOX_NOT_FINITE, id="infinity"),
    pytest.param({"bbox": [100, 80, 60, 90]}, Reason.BOX_REVERSED, id="reversed"),
    pytest.param({"bbox": [100, 80, 100, 90]}, Reason.BOX_FLAT, id="flat"),
    pytest.param({"bbox": [100, 80, 170, 90]}, Reason.BOX_OUTSIDE, id="outside the picture"),
    pytest.param({"bbox": [[100, 80, 120, 90], [9, 9, 9, 9]]}, Reason.BOX_FLAT, id="one of two is flat"),
    pytest.param({"image": "bomb.png"}, Reason.PICTURE_TOO_LARGE, id="decompression bomb"),
    pytest.param({"image": "float.tif"}, Reason.PICTURE_DEPTH, id="float pixels"),
    pytest.param({"image": "half.png"}, Reason.PICTURE_BROKEN, id="truncated PNG"),
    pytest.param({"image": "away.png"}, Reason.PICTURE_OUTSIDE, id="a link out of the folder"),
    pytest.param({"image": "/etc/hostname"}, Reason.PICTURE_OUTSIDE, id="absolute path"),
    pytest.param({"image": "a\0b.png"}, Reason.PICTURE_MISSING, id="NUL in the name"),
    pytest.param({"image": "\x1b[31m<b>[bold]x.png"}, Reason.PICTURE_MISSING, id="control characters and markup"),
    pytest.param({"image": "n" * 5000}, Reason.PICTURE_MISSING, id="endless name"),
    pytest.param({"bbox": [True, False, True, True]}, Reason.BOX_UNREADABLE, id="truth values"),
    pytest.param({"bbox": {"left": 1}}, Reason.BOX_UNREADABLE, id="an object without a box"),
    pytest.param({"bbox": [-90, 80, 120, 90]}, Reason.BOX_OUTSIDE, id="left of the picture"),
    pytest.param({"bbox": [100, 80, 120, 1e300]}, Reason.BOX_OUTSIDE, id="endless box"),
]


@pytest.mark.parametrize(("change", "reason"), BROKEN)
def test_a_broken_row_is_one_line_in_rejected_with_its_place_and_its_values(
    tmp_path: Path, change: dict[str, Any], reason: Reason
) -> None:
    rows = good_rows(tmp_path / "set", 12)
    damage(tmp_path / "set")
    bad = {**rows[5], "expression": "the bad one", **change}
    write_records(tmp_path / "set", [*rows[:5], bad, *rows[6:]])
    data = prepare(tmp_path / "set", tmp_path)
    assert data.manifest.counts["samples"] == 11
    (rejected,) = lines(data.path / "rejected.jsonl")
    assert rejected["reason"] == reason and rejected["source"].startswith("train.jsonl, line 6")
    assert rejected["detail"].startswith(EXPLANATIONS[reason])
    assert rejected["row"]["image"] == bad["image"]


def test_all_breakage_at_once_is_counted_by_reason(tmp_path: Path) -> None:
    rows = good_rows(tmp_path / "set", 40)
    damage(tmp_path / "set")
    bad = [{**rows[n % 40], "expression": "bad", **p.values[0]} for n, p in enumerate(BROKEN)]  # type: ignore[dict-item]
    absent = {key: value for key, value in rows[0].items() if key != "bbox"}
    write_records(tmp_path / "set", [*rows, *bad, absent])
    events: list[Any] = []
    data = prepare(tmp_path / "set", tmp_path, emit=events.append)
    assert len(BROKEN) > 30
    assert data.manifest.counts["rows_read"] == 41 + len(BROKEN) and data.manifest.counts["samples"] == 40
    assert sorted(r["reason"] for r in lines(data.path / "rejected.jsonl")) == sorted(
        [*(str(p.values[1]) for p in BROKEN), "box-absent"]
    )
    assert any(
        e["event"] == "warning" and f"{len(BROKEN) + 1} of {len(BROKEN) + 41} rows rejected" in e["text"]
        for e in events
    )


def test_half_a_character_rejects_what_it_stands_in(tmp_path: Path) -> None:
    """JSON can spell it, no UTF-8 file can hold it."""
    rows = good_rows(tmp_path / "set", 12)
    bad = [{**rows[3], "expression": "half \ud83d"}, {**rows[4], "split": "\udc80"}, {**rows[5], "image": "\ud800.png"}]
    text = "".join(json.dumps({"split": "train", **row}) + "\n" for row in [*rows, *bad])
    (tmp_path / "set" / "train.jsonl").write_text(text)
    data = prepare(tmp_path / "set", tmp_path)
    rejected = lines(data.path / "rejected.jsonl")
    assert data.manifest.counts["samples"] == 12
    assert [row["reason"] for row in rejected] == ["picture-missing", "text-broken", "text-broken"]
    assert rejected[1]["row"]["expression"] == "half \\ud83d"


def test_half_a_character_in_a_label_rejects_its_object(tmp_path: Path) -> None:
    rows = good_rows(tmp_path / "set", 6)
    objects = [[{"bbox": row["bbox"], "label": "cup"}] for row in rows]
    objects[2].append({"bbox": rows[2]["bbox"], "label": "\ud83d"})
    text = [{"image": row["image"], "objects": found} for row, found in zip(rows, objects, strict=True)]
    (tmp_path / "set" / "train.json").write_text(json.dumps(text))
    data = prepare(tmp_path / "set", tmp_path)
    assert data.manifest.counts["objects"] == 6 and data.manifest.counts["samples"] == 6
    assert [row["reason"] for row in lines(data.path / "rejected.jsonl")] == ["text-broken"]


def test_every_reason_has_a_sentence() -> None:
    assert set(EXPLANATIONS) == set(Reason)


def test_boxes_a_little_outside_are_cut_and_others_only_with_clip(tmp_path: Path) -> None:
    rows = good_rows(tmp_path / "set", 12)
    rows[0]["bbox"] = [100, 80, 160.7, 120.9]
    rows[1]["bbox"] = [100, 80, 190, 110]
    write_records(tmp_path / "set", rows)
    strict = prepare(tmp_path / "set", tmp_path, out=Path("strict"))
    clipped = prepare(tmp_path / "set", tmp_path, out=Path("clipped"), clip=True)
    boxes = {s.query: s.objects[0].bbox for split in clipped.manifest.splits for s in clipped.samples(split)}
    assert boxes["thing 0"] == (100, 80, 160, 120) and boxes["thing 1"] == (100, 80, 160, 110)
    assert [r["reason"] for r in lines(strict.path / "rejected.jsonl")] == ["box-outside"]


def test_a_repeated_id_is_rejected_but_a_column_that_numbers_pictures_is_not_an_id(tmp_path: Path) -> None:
    rows = [{**row, "id": number} for number, row in enumerate(good_rows(tmp_path / "set", 12))]
    write_records(tmp_path / "set", [*rows, {**rows[3], "expression": "another"}])
    data = prepare(tmp_path / "set", tmp_path)
    assert [r["reason"] for r in lines(data.path / "rejected.jsonl")] == ["duplicate-id"]
    write_records(tmp_path / "set", [{**row, "id": row["id"] // 4} for row in rows])
    again = prepare(tmp_path / "set", tmp_path, overwrite=True)
    assert again.manifest.counts["samples"] == 12
    assert any("ids repeat" in text for text in again.manifest.notes)


def test_a_size_that_is_not_the_pictures_rejects_its_row(tmp_path: Path) -> None:
    rows = [{**row, "width": 160, "height": 120} for row in good_rows(tmp_path / "set", 12)]
    rows[4] |= {"width": 320, "height": 240}
    write_records(tmp_path / "set", rows)
    data = prepare(tmp_path / "set", tmp_path)
    (rejected,) = lines(data.path / "rejected.jsonl")
    assert (
        rejected["reason"] == "size-differs" and "320 x 240 is declared, the picture is 160 x 120" in rejected["detail"]
    )


def test_sizes_given_as_height_and_width_are_seen_through(tmp_path: Path) -> None:
    write_records(tmp_path / "set", [{**r, "image_size": [120, 160]} for r in good_rows(tmp_path / "set", 12)])
    data = prepare(tmp_path / "set", tmp_path)
    assert data.manifest.counts["samples"] == 12
    assert "the declared sizes are (height, width): read so" in data.manifest.notes


def turned_rows(folder: Path, orientation: int, boxes: list[list[float]], **more: Any) -> None:
    """Pictures of 160 x 120 in the file with an EXIF turn."""
    folder.mkdir(parents=True)
    rows = []
    for number, box in enumerate(boxes):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        (folder / f"{number}.jpg").write_bytes(picture(number, kind="JPEG", exif=exif))
        rows.append({"image": f"{number}.jpg", "expression": f"thing {number}", "bbox": box, **more})
    write_records(folder, rows)


HIGH = [[70.0, 90.0, 110.0, 150.0], [60.0, 100.0, 100.0, 140.0], [65.0, 80.0, 115.0, 155.0]]
WIDE = [[90.0, 70.0, 150.0, 110.0], [100.0, 60.0, 140.0, 100.0], [80.0, 65.0, 155.0, 115.0]]
SMALL = [[70.0, 70.0, 110.0, 110.0], [80.0, 75.0, 100.0, 100.0], [62.0, 63.0, 110.0, 115.0]]


@pytest.mark.parametrize(
    ("boxes", "more", "options", "expected"),
    [
        pytest.param(HIGH, {}, {}, (70, 90, 110, 150), id="boxes fit upright"),
        pytest.param(WIDE, {}, {}, (10, 90, 50, 150), id="boxes fit the stored way"),
        pytest.param(SMALL, {"width": 120, "height": 160}, {}, (70, 70, 110, 110), id="size says upright"),
        pytest.param(SMALL, {"width": 160, "height": 120}, {}, (10, 70, 50, 110), id="size says stored"),
        pytest.param(SMALL, {}, {"exif": "upright"}, (70, 70, 110, 110), id="told upright"),
        pytest.param(SMALL, {}, {"exif": "stored"}, (10, 70, 50, 110), id="told stored"),
    ],
)
def test_boxes_of_turned_pictures_are_read_the_way_the_data_set_means_them(
    tmp_path: Path, boxes: list[list[float]], more: dict[str, int], options: dict[str, str], expected: tuple[int, ...]
) -> None:
    turned_rows(tmp_path / "set", 6, boxes, **more)
    data = prepare(tmp_path / "set", tmp_path, bbox_format="xyxy", **options)
    samples = {s.query: s for split in data.manifest.splits for s in data.samples(split)}
    assert samples["thing 0"].image_wh == (120, 160)
    assert samples["thing 0"].objects[0].bbox == expected
    assert data.manifest.counts["turned"] == 3


def test_turned_pictures_whose_boxes_may_be_meant_either_way_are_not_guessed(tmp_path: Path) -> None:
    turned_rows(tmp_path / "set", 6, SMALL)
    with pytest.raises(DataError, match="stored turned") as caught:
        prepare(tmp_path / "set", tmp_path, bbox_format="xyxy")
    assert "--exif upright" in caught.value.hint


def test_broken_coco_annotations_are_lines_of_their_own_and_their_picture_stays(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "set", 12)
    document = json.loads((folder / "instances.json").read_text())
    document["annotations"] += [
        {"id": 9001, "image_id": 7, "category_id": 5, "bbox": [1, 1, 9, 9]},
        {"id": 9002, "image_id": 999, "category_id": 1, "bbox": [1, 1, 9, 9]},
        {"id": 9003, "image_id": 7, "category_id": 1, "bbox": []},
        {"id": 9004, "image_id": 7, "category_id": 1, "bbox": [-30, 1, 50, 9]},
        {"id": 0, "image_id": 7, "category_id": 1, "bbox": [1, 1, 9, 9]},
    ]
    document["images"].append(dict(document["images"][0]))
    (folder / "instances.json").write_text(json.dumps(document))
    data = prepare(folder, tmp_path)
    found = {(r["source"], r["reason"]) for r in lines(data.path / "rejected.jsonl")}
    assert found == {
        ("annotation 9000", "box-flat"),
        ("annotation 9001", "label-unknown"),
        ("instances.json, annotation 9002", "image-id-unknown"),
        ("annotation 9003", "box-unreadable"),
        ("annotation 9004", "box-outside"),
        ("annotation 0", "duplicate-id"),
        ("instances.json, image 7", "duplicate-id"),
    }
    assert data.manifest.counts["samples"] == 12


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        pytest.param("a.json", b"", "is empty", id="zero bytes"),
        pytest.param("a.json", b'[{"image": "0.png",}]', "line 1, column 20", id="trailing comma"),
        pytest.param("a.jsonl", b'{"image": "0.png"}\n{"image": \n', "line 2, column", id="broken line"),
        pytest.param("a.jsonl", b'{"image": "0.png", "x": 1}\n', "no column for", id="no known columns"),
        pytest.param("a.json", b"[]", "no records", id="no records"),
        pytest.param("a.json", b"<html>", "neither JSON nor JSONL", id="HTML"),
        pytest.param("a.jsonl", b'{"image": "\xff"}\n', "not UTF-8", id="not text"),
        pytest.param("a.json", b'{"images": [1], "annotations": []}', "no list of objects", id="not quite COCO"),
        pytest.param("a.json", b'{"images": [], "annotations": [}', "line 1, column", id="broken COCO"),
        pytest.param("a.txt", b"image,bbox", "no known format", id="unknown format"),
        pytest.param("a.csv", b"image,bbox", "no records", id="CSV without records"),
        pytest.param("a.csv", b"image,bbox\n0.png,1,2\n", "line 2: 3 cells under 2 names", id="CSV cells"),
        pytest.param("a.csv", b'image,query,bbox\n0.png,"a,\n', "broken CSV", id="CSV with an open quote"),
        pytest.param("data.yaml", b"names: [a\ntrain: x", "line 2, column", id="broken YAML"),
        pytest.param("data.yaml", b"names: [a]\ntrain: !!python/object/apply:os.system [x]", "YAML", id="YAML tag"),
        pytest.param("data.yaml", b"names: [a]\ntrain: gone", "neither a folder nor a file", id="YOLO folder"),
        pytest.param("data.yaml", b"names: {a: b}\ntrain: .", "no number and name", id="YOLO names"),
        pytest.param("a.parquet", b"PAR1 cut", "parquet", id="broken parquet"),
    ],
)
def test_an_unreadable_source_is_one_error_that_says_where(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        prepare(tmp_path / "set" / name, tmp_path)
    assert said in str(caught.value)
    assert not (tmp_path / "data").exists() or not list((tmp_path / "data").glob("*"))


@pytest.mark.parametrize(
    ("dataset", "hint"),
    [
        pytest.param("sett/train.jsonl", "", id="missing folder"),
        pytest.param("set/tran.jsonl", "did you mean 'train.jsonl'?", id="mistyped file"),
        pytest.param("nothing", "", id="neither a path nor an id"),
    ],
)
def test_a_source_that_is_not_there_is_named_with_what_is(tmp_path: Path, dataset: str, hint: str) -> None:
    write_records(tmp_path / "set", good_rows(tmp_path / "set"))
    with pytest.raises(DataError, match="does not exist") as caught:
        prepare_dataset(dataset, root=tmp_path)
    assert caught.value.hint and (not hint or caught.value.hint == hint)


def test_where_no_row_can_be_used_the_reasons_are_counted_and_a_way_is_named(tmp_path: Path) -> None:
    write_records(
        tmp_path / "set", [{**row, "image": f"gone/{n}.png"} for n, row in enumerate(good_rows(tmp_path / "x"))]
    )
    with pytest.raises(DataError, match="none of 10 rows") as caught:
        prepare(tmp_path / "set", tmp_path)
    assert "10 x the picture is not there, e.g. train.jsonl, line 1" in str(caught.value)
    assert "--columns image=NAME" in caught.value.hint
