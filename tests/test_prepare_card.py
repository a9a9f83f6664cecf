"""A prepared data set in other libraries: `datasets` opens its folder, supervision its COCO export."""

from pathlib import Path

import pytest
from PIL import Image
from prepare_inputs import good_rows, write_coco, write_records

from qwenft.core.samples import PreparedDataset
from qwenft.prepare.build import prepare_dataset


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`load_dataset` with a cache of its own, called from another folder than the data set's."""
    import datasets

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    datasets.disable_progress_bars()
    return lambda path, **options: datasets.load_dataset(str(path), cache_dir=str(tmp_path / "cache"), **options)


def test_every_sample_of_every_split_opens_with_its_picture(scenes: PreparedDataset, load) -> None:
    opened = load(scenes.path)
    assert list(opened) == list(scenes.manifest.splits)
    for split, rows in opened.items():
        for sample, row in zip(scenes.samples(split), rows, strict=True):
            assert row["image"].size == sample.image_wh
            assert row["image"].convert("RGB").tobytes() == rgb(scenes.picture_path(sample))
            assert (row["id"], row["query"]) == (sample.id, sample.query)
            assert [tuple(item["bbox"]) for item in row["objects"]] == [item.bbox for item in sample.objects]


def rgb(path: Path) -> bytes:
    with Image.open(path) as picture:
        return picture.convert("RGB").tobytes()


def test_a_split_without_a_box_and_a_split_with_a_hyphen_open_too(tmp_path: Path, load) -> None:
    rows = good_rows(tmp_path / "mine", 6)
    write_records(tmp_path / "mine", rows[:4], "train.jsonl")
    write_records(tmp_path / "mine", [{**row, "bbox": []} for row in rows[4:]], "test-b.jsonl")
    data = prepare_dataset("mine", root=tmp_path, val_fraction=0.3)
    opened = load(data.path)
    assert {name.replace("_", "-") for name in opened} == set(data.manifest.splits)
    absent = next(rows for name, rows in opened.items() if name.startswith("test"))
    assert [row["objects"] for row in absent] == [[], []]


def test_what_was_loaded_before_is_not_shown_for_another_data_set_of_the_name(tmp_path: Path, load) -> None:
    """`datasets` looks for what it read before by the folder's last name, and does not look at the files."""
    rows = good_rows(tmp_path / "source", 8)
    for place, part in (("here", rows[:4]), ("here", rows[4:]), ("there", rows[4:])):
        write_records(tmp_path / "source", part)
        data = prepare_dataset("source", root=tmp_path, out=Path(place) / "mine", overwrite=True, val_fraction=0)
        opened = load(data.path)["train"]
        assert [row["query"] for row in opened] == [sample.query for sample in data.samples("train")]
        assert {Path(row["image"].filename).parents[2] for row in opened} == {data.path}


def test_a_prepared_data_set_is_prepared_again_from_its_own_lines(scenes: PreparedDataset, tmp_path: Path) -> None:
    again = prepare_dataset(str(scenes.path), out=tmp_path / "again")
    assert again.manifest.source["kind"] == "records"
    assert again.samples("val")[0].objects == scenes.samples("val")[0].objects


def test_the_card_names_nothing_of_this_machine(scenes: PreparedDataset) -> None:
    text = (scenes.path / "README.md").read_text(encoding="utf-8")
    assert str(scenes.path.parents[1]) not in text
    assert "/scenes" not in text


def test_supervision_opens_the_coco_export(tmp_path: Path) -> None:
    import supervision as sv

    write_coco(tmp_path / "things", count=6)
    data = prepare_dataset("things", root=tmp_path, export=["coco"])
    folder = data.path / "exports" / "coco"
    opened = sv.DetectionDataset.from_coco(
        images_directory_path=str(folder / "images"),
        annotations_path=str(folder / "annotations" / "instances_train.json"),
    )
    expected = {Path(sample.image).name: sample for sample in data.samples("train")}
    assert len(opened) == len(expected)
    for path, image, found in opened:
        sample = expected[Path(path).name]
        assert image.shape[:2] == (sample.height, sample.width)
        labelled = {
            (opened.classes[number], tuple(box))
            for number, box in zip(found.class_id, found.xyxy.tolist(), strict=True)
        }
        assert labelled == {(item.label, item.bbox) for item in sample.objects}
