"""COCO files as streams: the same rows whatever their order and their ids, and memory that hardly grows with them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prepare_inputs import lines, write_coco

from qwenft.core import files
from qwenft.core.errors import DataError
from qwenft.core.samples import PreparedDataset, Sample
from qwenft.prepare.build import prepare_dataset
from qwenft.prepare.rows import Request
from qwenft.prepare.sources import coco, detect


def prepare(source: Path, root: Path, **options: Any) -> PreparedDataset:
    return prepare_dataset(str(source), root=root, **options)


def scenes_of(data: PreparedDataset) -> list[tuple[str, Any]]:
    found: list[Sample] = [sample for split in data.manifest.splits for sample in data.samples(split)]
    return sorted((sample.image, sample.objects) for sample in found)


def written(tmp_path: Path, **change: Any) -> Path:
    """The usual generated COCO folder without its captions, its document changed."""
    folder = write_coco(tmp_path, 12)
    (folder / "captions.json").unlink()
    document = json.loads((folder / "instances.json").read_text())
    for key, function in change.items():
        document[key] = function(document[key])
    (folder / "instances.json").write_text(json.dumps(document))
    return folder


def renamed_ids(annotations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**item, "id": f"a{item['id']}"} for item in annotations]


@pytest.mark.parametrize("chunk", [50, 1_000_000], ids=["cut into small chunks", "in one chunk"])
def test_the_order_of_the_members_and_the_kind_of_ids_make_no_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(files, "CHUNK_CHARACTERS", chunk)
    plain = prepare(written(tmp_path / "plain"), tmp_path, out=Path("a"))
    folder = written(tmp_path / "odd", annotations=renamed_ids)
    document = json.loads((folder / "instances.json").read_text())
    backwards = {"note": [1], **{key: document[key] for key in ("annotations", "categories", "images")}, "year": 2017}
    (folder / "instances.json").write_text(json.dumps(backwards))
    odd = prepare(folder, tmp_path, out=Path("b"))
    assert scenes_of(odd) == scenes_of(plain)
    assert [r["source"] for r in lines(odd.path / "rejected.jsonl")] == ["annotation a9000"]
    assert odd.manifest.counts | {"pictures": 12} == plain.manifest.counts


def test_a_rejected_annotation_is_shown_as_it_stood_and_without_its_outline(tmp_path: Path) -> None:
    bad = [
        {"id": 9001, "image_id": 7, "category_id": 1, "bbox": [5, 5, 0, 9], "iscrowd": 0, "segmentation": [[1] * 40]},
        {"id": 9002, "image_id": 7, "category_id": 1, "bbox": "none", "source": "me", "segmentation": [[1] * 40]},
        {"id": 9003, "image_id": 7, "category_id": 1, "bbox": [5, float("nan"), 4, 9]},
        {"id": 9004, "image_id": [7], "category_id": {"a": 1}, "bbox": [5, 5, 4, 9]},
        {"id": 9005, "image_id": 7, "category_id": None, "bbox": [5, 5, 4, 9]},
        {"id": 10**30, "image_id": 7, "category_id": 1, "bbox": [5, 5, 4, 10**400]},
    ]
    data = prepare(written(tmp_path / "set", annotations=lambda kept: [*kept[:-1], *bad]), tmp_path)
    found = {
        (r["source"].rpartition("annotation ")[2], r["reason"]): r["row"] for r in lines(data.path / "rejected.jsonl")
    }
    assert found["9001", "box-flat"] == {
        "id": 9001,
        "image_id": 7,
        "category_id": 1,
        "bbox": [5, 5, 0, 9],
        "iscrowd": 0,
    }
    assert found["9002", "box-unreadable"] == {
        "id": 9002,
        "image_id": 7,
        "category_id": 1,
        "bbox": "none",
        "source": "me",
    }
    assert found["9003", "box-not-finite"]["bbox"] == [5, "nan", 4, 9]
    assert set(found) >= {("9004", "image-id-unknown"), ("9005", "label-unknown"), (str(10**30), "box-unreadable")}
    assert len(found) == len(bad) and data.manifest.counts["samples"] == 12


def test_only_the_file_of_the_split_asked_for_is_read(tmp_path: Path) -> None:
    folder = written(tmp_path / "set")
    (folder / "annotations").mkdir()
    (folder / "instances.json").rename(folder / "annotations" / "instances_val2017.json")
    broken = '{"images": [], "annotations": [{"image_id": 1}], "categories": [}'
    (folder / "annotations" / "instances_train2017.json").write_text(broken)
    assert prepare(folder, tmp_path, splits=("val",)).manifest.counts["samples"] == 12
    with pytest.raises(DataError, match=r"instances_train2017\.json, line 1, column 65"):
        prepare(folder, tmp_path, out=Path("b"))


@pytest.mark.parametrize(
    ("text", "form"),
    [
        pytest.param('{"info": {}, "images": [{"id": 1}]', "coco", id="broken behind its pictures"),
        pytest.param('{"annotations": [{"id": 1, "image_id": 3}], "images": []}', "coco", id="annotations first"),
        pytest.param(
            '{"images": ["a.png"], "messages": [{"role": "user", "content": "x"}]}', "conversations", id="chat"
        ),
        pytest.param(
            '{"images": [], "messages": []}\n{"images": "a.png", "messages": []}', "conversations", id="lines"
        ),
        pytest.param('{"annotations": [{"image": "a.png", "bbox": [1, 2, 3, 4]}]}', "records", id="records"),
    ],
)
def test_a_coco_file_is_told_by_its_first_items(tmp_path: Path, text: str, form: str) -> None:
    (tmp_path / "x.json").write_text(text)
    assert detect(tmp_path / "x.json") == form


PEAK = """
import resource, sys
from pathlib import Path
import numpy
from qwenft.prepare.rows import Request
from qwenft.prepare.sources import coco

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

before = peak()
source = coco.open_source(Path(sys.argv[1]), Request())
boxes = sum(len(row.boxes) for row in source.rows())
print(boxes, peak() - before)
"""


def test_a_file_is_never_held_whole_and_an_annotation_costs_its_numbers_only(tmp_path: Path) -> None:
    outline = json.dumps([[round(7.13 * n % 640, 2) for n in range(60)]])
    images = ",".join(json.dumps({"id": n, "file_name": f"{n}.jpg", "width": 640, "height": 480}) for n in range(200))
    grown = {}
    for count in (10_000, 50_000):
        path = tmp_path / f"{count}.json"
        with path.open("w") as file:
            file.write(f'{{"images": [{images}], "categories": [{{"id": 1, "name": "cup"}}], "annotations": [')
            for n in range(count):
                item = f'"id": {n}, "image_id": {n % 200}, "category_id": 1, "bbox": [{n % 500}.5, 3, 90, 80.25]'
                file.write(f'{"," if n else ""}{{{item}, "iscrowd": 0, "segmentation": {outline}}}')
            file.write("]}")
        done = subprocess.run([sys.executable, "-c", PEAK, path], capture_output=True, text=True, check=True)
        boxes, grown[count] = map(int, done.stdout.split())
        assert boxes == count
    assert path.stat().st_size > 25_000_000
    assert grown[50_000] < path.stat().st_size / 2.5
    assert (grown[50_000] - grown[10_000]) / 40_000 < 150
    assert coco.open_source(tmp_path / "10000.json", Request()).total == 200
