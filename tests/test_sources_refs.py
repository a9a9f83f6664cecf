"""RefCOCO's and gRefCOCO's own files: one box, several or none an expression, and what does not fit together."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from prepare_inputs import lines, picture

from qwenft.core.errors import DataError
from qwenft.core.samples import PreparedDataset, Sample
from qwenft.prepare.build import prepare_dataset
from qwenft.prepare.sources import detect

COUNT = 16


def prepare(source: Path, root: Path, **options: Any) -> PreparedDataset:
    return prepare_dataset(str(source), root=root, **options)


def samples_of(data: PreparedDataset) -> dict[str | None, Sample]:
    return {sample.query: sample for split in data.manifest.splits for sample in data.samples(split)}


def name_of(number: int) -> str:
    return f"COCO_train2014_{number:012}.jpg"


def box_of(annotation: int) -> list[float]:
    return [5.0 + annotation % 40, 6.5, 60.0, 40.0 + annotation % 30]


def ref_of(number: int) -> dict[str, Any]:
    """The n-th ref asks for n % 4 things on its own picture, in two sentences."""
    meant = [100 * number + part for part in range(number % 4)]
    words = [f"thing {number}", f"that of {number}"]
    return {
        "ref_id": number,
        "image_id": number,
        "split": ("train", "val", "testA")[number % 3],
        "file_name": name_of(number).replace(".jpg", f"_{number}.jpg"),
        "ann_id": meant or [-1],
        "category_id": [1] * len(meant) or [-1],
        "no_target": not meant,
        "sentences": [{"sent_id": n, "sent": text, "raw": text.title(), "tokens": []} for n, text in enumerate(words)],
    }


def write_grefs(folder: Path, refs: list[dict[str, Any]], pictures: str = "images") -> Path:
    """`grefs(unc).json` beside `instances.json`, pictures below `pictures`."""
    (folder / pictures).mkdir(parents=True)
    for number in range(COUNT):
        (folder / pictures / name_of(number)).write_bytes(picture(number, kind="JPEG"))
    images = [{"id": n, "file_name": name_of(n), "width": 160, "height": 120} for n in range(COUNT)]
    annotations = [
        {"id": 100 * n + part, "image_id": n, "category_id": 1, "bbox": box_of(100 * n + part), "segmentation": [[1.0]]}
        for n in range(COUNT)
        for part in range(5)
    ]
    document = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cup"}]}
    (folder / "instances.json").write_text(json.dumps(document))
    (folder / "grefs(unc).json").write_text(json.dumps(refs))
    return folder


def test_expressions_for_one_thing_for_several_and_for_none_come_with_their_splits(tmp_path: Path) -> None:
    folder = write_grefs(tmp_path / "grefcoco", [ref_of(n) for n in range(COUNT)])
    data = prepare(folder, tmp_path)
    found = samples_of(data)
    assert detect(folder) == detect(folder / "grefs(unc).json") == "refs"
    assert data.manifest.counts["rows_read"] == len(found) == 2 * COUNT
    assert data.manifest.counts["negatives"] == 2 * COUNT // 4
    for number in range(COUNT):
        boxes = [box_of(100 * number + part) for part in range(number % 4)]
        expected = [(x, y, x + w, y + h) for x, y, w, h in boxes]
        for query in (f"thing {number}", f"that of {number}"):
            assert [item.bbox for item in found[query].objects] == expected
            assert data.picture_path(found[query]).read_bytes() == picture(number, kind="JPEG")
    assert set(data.manifest.splits) >= {"train", "val"} and data.manifest.bbox["convention"] == "xywh"
    assert Counter(len(s.objects) for s in found.values()) == {0: 8, 1: 8, 2: 8, 3: 8}


def test_refs_of_refcoco_have_one_annotation_and_their_pictures_may_lie_as_in_the_refer_toolbox(tmp_path: Path) -> None:
    refs = [{**ref_of(n), "ann_id": 100 * n, "category_id": 1} for n in range(COUNT)]
    for ref in refs:
        del ref["no_target"]
    folder = write_grefs(tmp_path / "refer" / "refcoco", refs, "../images/mscoco/images/train2014")
    (folder / "grefs(unc).json").rename(folder / "refs(unc).json")
    found = samples_of(prepare(folder, tmp_path))
    assert len(found) == 2 * COUNT and all(len(sample.objects) == 1 for sample in found.values())


def test_one_split_and_a_limit_are_obeyed(tmp_path: Path) -> None:
    folder = write_grefs(tmp_path / "set", [ref_of(n) for n in range(COUNT)])
    data = prepare(folder, tmp_path, splits=("val",), limit=3)
    assert set(samples_of(data)) == {"thing 1", "that of 1", "thing 4"}
    with pytest.raises(DataError) as caught:
        prepare(folder, tmp_path, out=Path("b"), splits=("testa",))
    assert caught.value.hint == "did you mean 'testA'?"


def test_what_does_not_fit_together_is_a_line_for_each_sentence(tmp_path: Path) -> None:
    refs = [ref_of(n) for n in range(COUNT)]
    refs[1]["ann_id"] = [101, 999_999]
    refs[2]["no_target"] = True
    refs[3] |= {"image_id": 77, "file_name": ""}
    refs[5]["sentences"] = []
    refs[6]["sentences"][1] = {"sent": " "}
    refs[7] |= {"image_id": 77, "file_name": name_of(7).replace(".jpg", "_7.jpg")}  # not listed, but there
    refs[9]["file_name"], refs[9]["image_id"] = name_of(9), None
    data = prepare(write_grefs(tmp_path / "set", refs), tmp_path)
    reasons = Counter(line["reason"] for line in lines(data.path / "rejected.jsonl"))
    assert reasons == {"annotation-unknown": 2, "row-unreadable": 2, "picture-missing": 2, "expression-empty": 2}
    assert len(samples_of(data)) == data.manifest.counts["rows_read"] - 8 == 2 * COUNT - 1 - 8
    assert {"thing 7", "thing 9"} <= set(samples_of(data))


def test_without_its_annotations_or_with_several_files_the_next_step_is_named(tmp_path: Path) -> None:
    folder = write_grefs(tmp_path / "set", [ref_of(n) for n in range(COUNT)])
    (folder / "grefs(google).json").write_text((folder / "grefs(unc).json").read_text())
    with pytest.raises(DataError, match=r"several files of refs: grefs\(google\)\.json") as caught:
        prepare(folder, tmp_path)
    assert caught.value.hint.startswith("qwenft prepare --dataset '")
    (folder / "instances.json").unlink()
    with pytest.raises(DataError, match=r"no instances\.json") as missing:
        prepare(folder / "grefs(unc).json", tmp_path)
    assert "instances_train2014.json" in missing.value.hint
