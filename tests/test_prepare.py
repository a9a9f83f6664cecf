"""`prepare` from the outside: real data, roles, books that balance, whole-or-absent, and what is said aloud."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from prepare_inputs import DATA, corners, good_rows, lines, picture, write_coco, write_records

from qwenft.core.boxes import smart_resize
from qwenft.core.errors import DataError, UsageError
from qwenft.core.files import sha256_of
from qwenft.core.samples import PreparedDataset, Sample
from qwenft.prepare.build import prepare_dataset
from qwenft.prepare.preview import round_trip


def prepare(source: Path, root: Path, **options: Any) -> PreparedDataset:
    return prepare_dataset(str(source), root=root, **options)


def all_samples(data: PreparedDataset) -> list[Sample]:
    return [sample for split in data.manifest.splits for sample in data.samples(split)]


def stored(data: PreparedDataset) -> set[str]:
    return {path.relative_to(data.path).as_posix() for path in (data.path / "images").glob("*/*")}


def assert_whole(data: PreparedDataset) -> None:
    """What holds for every prepared data set."""
    samples, counts = all_samples(data), data.manifest.counts
    assert counts["samples"] == len(samples) and len({s.id for s in samples}) == len(samples)
    assert counts["rows_read"] == counts["samples"] + counts["rejected"]
    assert stored(data) == {s.image for s in samples}
    for sample in samples:
        content = data.picture_path(sample).read_bytes()
        assert sample.picture == sha256_of(content)
        with Image.open(io.BytesIO(content)) as image:
            assert image.size == sample.image_wh
        for item in sample.objects:
            x1, y1, x2, y2 = item.bbox
            assert 0 <= x1 < x2 <= sample.width and 0 <= y1 < y2 <= sample.height
    assert "train" in data.manifest.splits and data.held_out is not None
    assert not list(data.path.parent.glob(".*"))


# Real data where it lies beside the project, the same form generated elsewhere.


def refcocog(tmp_path: Path) -> Path:
    real = DATA / "hub" / "Kangheng" / "refcocog"
    if real.is_dir():
        return real
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path / "generated" / "refcocog"
    (folder / "data").mkdir(parents=True)
    for split, count in (("val", 22), ("test", 46)):
        rows: Mapping[str, list[Any]] = {
            "question_id": [f"{split}{n}" for n in range(count)],
            "image": [{"bytes": picture(n // 2 + 1000 * (split == "val")), "path": None} for n in range(count)],
            "image_size": [[160, 120]] * count,
            "question": [f"thing {n}" for n in range(count)],
            "bbox": [json.dumps(corners(n)) for n in range(count)],
        }
        pq.write_table(pa.table(rows), folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def coco36(tmp_path: Path) -> tuple[Path, int]:
    real = DATA / "coco36"
    return (real, 36) if real.is_dir() else (write_coco(tmp_path / "generated" / "coco36", 36), 36)


def test_refcocog_gives_68_samples_with_the_boxes_of_an_independent_reading(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    source = refcocog(tmp_path)
    data = prepare(source, tmp_path)
    expected, pictures = {}, set()
    for split in ("val", "test"):
        for number, row in enumerate(pq.read_table(next(source.glob(f"data/{split}-*"))).to_pylist()):
            expected[f"refcocog/{split}/{number}"] = (row["question"], json.loads(row["bbox"]), row["image"]["bytes"])
            pictures.add(row["image"]["bytes"])
    found = {s.id: (s.query, list(s.objects[0].bbox), data.picture_path(s).read_bytes()) for s in all_samples(data)}
    assert len(found) == 68
    assert found == expected
    assert data.manifest.bbox["convention"] == "xyxy"
    assert len(stored(data)) == len(pictures)
    assert_whole(data)


def test_a_benchmark_without_train_split_gets_one_from_val_and_says_so(tmp_path: Path) -> None:
    data = prepare(refcocog(tmp_path), tmp_path)
    splits = data.manifest.splits
    assert {name: info.role for name, info in splits.items()} == {"train": "train", "val": "held-out", "test": "test"}
    assert splits["train"].samples + splits["val"].samples == 22 and splits["test"].samples == 46
    assert splits["val"].pictures == 1
    assert not {s.picture for s in data.samples("train")} & {s.picture for s in data.samples("val")}
    assert {s.id.split("/")[1] for s in data.samples("test")} == {"test"}
    notes = " ".join(data.manifest.notes)
    assert "no train split: val divided by picture into train" in notes and "benchmark" in notes


def test_a_coco_folder_gives_detection_and_says_that_the_captions_were_left(tmp_path: Path) -> None:
    source, count = coco36(tmp_path)
    events: list[Any] = []
    data = prepare(source, tmp_path, emit=events.append)
    assert data.manifest.counts["samples"] == count
    assert {s.task for s in all_samples(data)} == {"detection"}
    said = [e["text"] for e in events if e["event"] == "note"]
    assert any("captions.json was left alone: qwenft prepare --dataset" in text for text in said)
    document = json.loads((source / "instances.json").read_text())
    names = {c["id"]: c["name"] for c in document["categories"]}
    sizes = {i["id"]: (i["width"], i["height"]) for i in document["images"]}
    expected = sorted(
        (names[a["category_id"]], *(round(v, 3) for v in _clipped(a["bbox"], sizes[a["image_id"]])))
        for a in document["annotations"]
        if a["bbox"][2] > 0
    )
    found = sorted((o.label, *o.bbox) for s in all_samples(data) for o in s.objects)
    assert [label for label, *_ in found] == [label for label, *_ in expected]
    assert [n for _, *box in found for n in box] == pytest.approx([n for _, *box in expected for n in box], abs=1e-3)
    assert all(s.categories == tuple(names.values()) for s in all_samples(data))
    assert_whole(data)


def _clipped(xywh: list[float], image_wh: tuple[int, int]) -> list[float]:
    x, y, w, h = xywh
    return [max(x, 0), max(y, 0), min(x + w, image_wh[0]), min(y + h, image_wh[1])]


def test_coco_captions_give_one_sample_a_picture_with_all_its_references(tmp_path: Path) -> None:
    source, count = coco36(tmp_path)
    data = prepare(source / "captions.json", tmp_path)
    assert data.name == f"{source.name}-captions"
    document = json.loads((source / "captions.json").read_text())
    assert sum(len(s.captions) for s in all_samples(data)) == len(document["annotations"])
    assert {s.task for s in all_samples(data)} == {"caption"} and len(all_samples(data)) == count
    assert_whole(data)


def test_expressions_give_grounding_with_negatives(tmp_path: Path) -> None:
    source = DATA / "coco36" / "expressions.jsonl"
    rows = good_rows(tmp_path / "generated", 68)
    negatives = [{**rows[n], "expression": f"absent {n}", "bbox": None} for n in range(2)]
    source = (
        source if source.is_file() else write_records(tmp_path / "generated", rows + negatives, "expressions.jsonl")
    )
    data = prepare(source, tmp_path)
    samples = all_samples(data)
    assert len(samples) == 70 and sum(not s.objects for s in samples) == 2
    expected = {(r["expression"], tuple(round(v, 3) for v in r["bbox"] or ())) for r in lines(source)}
    assert {(s.query, s.objects[0].bbox if s.objects else ()) for s in samples} == expected
    assert_whole(data)


@pytest.mark.parametrize(
    ("splits", "roles"),
    [
        pytest.param(("only",), {"train": "train", "val": "held-out"}, id="one split"),
        pytest.param(("train",), {"train": "train", "val": "held-out"}, id="train alone"),
        pytest.param(("train", "validation"), {"train": "train", "val": "held-out"}, id="train and validation"),
        pytest.param(("train", "test"), {"train": "train", "val": "held-out", "test": "test"}, id="train and test"),
        pytest.param(("test",), {"train": "train", "val": "held-out"}, id="test alone"),
        pytest.param(("train", "val", "test"), {"train": "train", "val": "held-out", "test": "test"}, id="all three"),
    ],
)
def test_every_data_set_leaves_with_something_to_train_on_and_something_held_out(
    tmp_path: Path, splits: tuple[str, ...], roles: dict[str, str]
) -> None:
    rows = good_rows(tmp_path / "set", 20 * len(splits))
    for number, split in enumerate(splits):
        write_records(tmp_path / "set", rows[20 * number : 20 * number + 20], f"{split}.jsonl")
    data = prepare(tmp_path / "set", tmp_path)
    assert {name: info.role for name, info in data.manifest.splits.items()} == roles
    assert_whole(data)


def test_the_division_hangs_on_the_seed_and_the_pictures_only(tmp_path: Path) -> None:
    write_records(tmp_path / "set", good_rows(tmp_path / "set", 30))

    def held(name: str, **options: Any) -> set[str | None]:
        return {s.query for s in prepare(tmp_path / "set", tmp_path, out=Path(name), **options).samples("val")}

    assert held("a", seed=1) == held("b", seed=1)
    assert held("c", seed=2) != held("a2", seed=1)
    assert len(held("d", val_fraction=0.5)) == 15


def test_a_picture_that_stands_in_two_splits_is_reported(tmp_path: Path) -> None:
    rows = good_rows(tmp_path / "set", 12)
    (tmp_path / "set" / "again.png").write_bytes(picture(0))
    write_records(tmp_path / "set", rows[:8], "train.jsonl")
    write_records(tmp_path / "set", [*rows[8:], {**rows[0], "image": "again.png"}], "val.jsonl")
    events: list[Any] = []
    data = prepare(tmp_path / "set", tmp_path, emit=events.append)
    warned = [e["text"] for e in events if e["event"] == "warning"]
    assert warned == ["1 picture in both train and val (1 with the same question): scores on val are too good"]
    found = next(c for c in data.manifest.checks if c["check"] == "no picture in two splits")
    assert found["result"] == "warning" and found["pairs"][0]["pictures"] == 1


def test_crowds_flat_boxes_and_pictures_without_objects_are_kept_apart(tmp_path: Path) -> None:
    data = prepare(write_coco(tmp_path / "set"), tmp_path)
    samples = all_samples(data)
    assert sum(o.crowd for s in samples for o in s.objects) == 1
    assert sum(not s.objects for s in samples) == data.manifest.counts["negatives"] == 1
    assert [(r["source"], r["what"], r["reason"]) for r in lines(data.path / "rejected.jsonl")] == [
        ("annotation 9000", "object", "box-flat")
    ]
    counts = data.manifest.counts
    assert (counts["objects_read"], counts["objects"], counts["objects_rejected"]) == (11, 10, 1)
    assert_whole(data)


def test_the_array_form_is_read_back_like_the_lines(tmp_path: Path) -> None:
    write_records(tmp_path / "set", good_rows(tmp_path / "set"))
    one = prepare(tmp_path / "set", tmp_path, out=Path("same/x"))
    other = prepare(tmp_path / "set", tmp_path, out=Path("other/x"), output_format="json")
    assert json.loads((other.path / "train.json").read_text())[0] == lines(one.path / "train.jsonl")[0]
    assert all_samples(one) == all_samples(other)


def test_a_prepared_data_set_is_itself_a_source_and_comes_out_the_same(tmp_path: Path) -> None:
    for name, source in (("g", tmp_path / "set"), ("d", write_coco(tmp_path / "coco", 12))):
        write_records(tmp_path / "set", good_rows(tmp_path / "set", 12))
        first = prepare(source, tmp_path, out=Path("one") / name)
        again = prepare(first.path, tmp_path, out=Path("two") / name)
        key = [(s.image, s.query, s.objects, s.categories) for s in all_samples(first)]
        assert [(s.image, s.query, s.objects, s.categories) for s in all_samples(again)] == key


def test_a_limit_takes_the_first_rows_of_each_split(tmp_path: Path) -> None:
    rows = good_rows(tmp_path / "set", 20)
    write_records(tmp_path / "set", rows[:10], "train.jsonl")
    write_records(tmp_path / "set", rows[10:], "val.jsonl")
    data = prepare(tmp_path / "set", tmp_path, limit=3)
    assert [s.query for s in data.samples("train")] == ["thing 0", "thing 1", "thing 2"]
    assert [s.query for s in data.samples("val")] == ["thing 10", "thing 11", "thing 12"]


def test_only_the_splits_asked_for_are_read_and_an_unknown_one_is_an_error(tmp_path: Path) -> None:
    rows = good_rows(tmp_path / "set", 20)
    write_records(tmp_path / "set", rows[:10], "train.jsonl")
    write_records(tmp_path / "set", rows[10:], "test.jsonl")
    assert prepare(tmp_path / "set", tmp_path, splits=("test",)).manifest.counts["rows_read"] == 10
    with pytest.raises(DataError) as caught:
        prepare(tmp_path / "set", tmp_path, out=Path("b"), splits=("tset",))
    assert caught.value.hint == "did you mean 'test'?"


def test_an_existing_data_set_is_replaced_only_when_asked(tmp_path: Path) -> None:
    write_records(tmp_path / "set", good_rows(tmp_path / "set"))
    data = prepare(tmp_path / "set", tmp_path)
    with pytest.raises(DataError, match="exists already") as caught:
        prepare(tmp_path / "set", tmp_path)
    assert caught.value.hint.endswith("--overwrite")
    prepare(tmp_path / "set", tmp_path, overwrite=True, limit=5)
    assert PreparedDataset.open(data.path).manifest.counts["samples"] == 5
    assert len(stored(data)) == 5


def test_neither_the_source_nor_a_foreign_folder_is_ever_replaced(tmp_path: Path) -> None:
    source = tmp_path / "data" / "set"
    write_records(source, good_rows(source))
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "mine.txt").write_text("keep")
    for out in (None, foreign, tmp_path / "data"):
        with pytest.raises(DataError):
            prepare(source, tmp_path, out=out, overwrite=True)
    assert (foreign / "mine.txt").read_text() == "keep"
    assert len(list(source.iterdir())) == 11


def test_an_interrupted_prepare_leaves_nothing_finished_and_goes_on_from_its_pictures(tmp_path: Path) -> None:
    write_records(tmp_path / "set", good_rows(tmp_path / "set", 120))

    def stop(event: Mapping[str, Any]) -> None:
        if event.get("done") == 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "set", tmp_path, emit=stop)
    assert not (tmp_path / "data" / "set").exists()
    events: list[Any] = []
    data = prepare(tmp_path / "set", tmp_path, limit=40, emit=events.append)
    assert {"event": "note", "text": "40 pictures of an earlier prepare used again"} in events
    assert data.manifest.counts["samples"] == 40
    assert_whole(data)


def test_the_source_is_never_changed(tmp_path: Path) -> None:
    source = write_coco(tmp_path / "set")
    before = {p: p.read_bytes() for p in source.rglob("*") if p.is_file()}
    prepare(source, tmp_path)
    assert {p: p.read_bytes() for p in source.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("image_wh", [(640, 480), (160, 1200), (4000, 3000)], ids=str)
def test_a_preview_box_is_off_by_no_more_than_the_models_own_rounding(image_wh: tuple[int, int]) -> None:
    width, height = image_wh
    box = (width * 0.11, height * 0.23, width * 0.87, height * 0.71)
    input_wh = smart_resize(image_wh, 3136, 1003520)
    there_and_back = round_trip(box, image_wh)
    for side, (before, after) in enumerate(zip(box, there_and_back, strict=True)):
        assert abs(before - after) <= 0.5 * image_wh[side % 2] / input_wh[side % 2] + 1e-9


def test_previews_show_pictures_of_each_split(tmp_path: Path) -> None:
    write_records(tmp_path / "set", good_rows(tmp_path / "set", 20))
    data = prepare(tmp_path / "set", tmp_path, preview=4)
    drawn = sorted((data.path / "preview").glob("[0-9]*"))
    assert len(drawn) == 4
    with Image.open(data.path / "preview" / "contact-sheet.jpg") as sheet:
        assert sheet.size == (6 * 168 + 8, 4 * 156 + 8)  # all 20, whatever the number of previews
    held = {s.id.rsplit("/", 1)[1] for s in data.samples("val")}
    assert any(path.stem.rsplit("-", 1)[1] in held for path in drawn)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        pytest.param({"limit": 0}, "--limit", id="limit"),
        pytest.param({"preview": -1}, "--preview", id="preview"),
        pytest.param({"val_fraction": 1.0}, "--val-fraction", id="val_fraction"),
        pytest.param({"bbox_format": "xyhw"}, "--bbox-format", id="bbox_format"),
        pytest.param({"output_format": "csv"}, "csv", id="format"),
        pytest.param({"exif": "left"}, "--exif", id="exif"),
    ],
)
def test_an_impossible_option_is_named_before_anything_is_read(
    tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        prepare(tmp_path / "nowhere", tmp_path, **options)
