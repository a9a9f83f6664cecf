"""Each source format is recognized by content and read as the same raw rows."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prepare_inputs import corners, good_rows, picture, write_coco, write_records

from qwenft.core.errors import DataError
from qwenft.core.files import STREAM_BYTES
from qwenft.core.samples import PreparedDataset, Sample
from qwenft.prepare.build import prepare_dataset
from qwenft.prepare.columns import read_boxes
from qwenft.prepare.sources import detect, name_of, resolve


def prepare(source: Path, root: Path, **options: Any) -> PreparedDataset:
    return prepare_dataset(str(source), root=root, **options)


def samples_of(data: PreparedDataset) -> list[Sample]:
    found = [sample for split in data.manifest.splits for sample in data.samples(split)]
    return sorted(found, key=lambda s: int(s.id.rsplit("/", 1)[1]))


@pytest.mark.parametrize(
    "names",
    [
        pytest.param({}, id="our test's own"),
        pytest.param({"image": "img", "expression": "query", "bbox": "box"}, id="img query box"),
        pytest.param({"image": "image_path", "expression": "question", "bbox": "bbox_2d"}, id="bbox_2d"),
        pytest.param({"image": "file_name", "expression": "caption", "bbox": "bboxes"}, id="caption beside a box"),
        pytest.param({"image": "path", "expression": "text", "bbox": "boxes"}, id="text"),
        pytest.param({"image": "images", "expression": "phrase", "bbox": "objects"}, id="objects"),
    ],
)
def test_columns_are_recognized_by_their_usual_names(tmp_path: Path, names: dict[str, str]) -> None:
    rows = good_rows(tmp_path / "set")
    write_records(tmp_path / "set", [{names.get(k, k): v for k, v in row.items()} for row in rows])
    found = samples_of(prepare(tmp_path / "set", tmp_path))
    assert [(s.query, list(s.objects[0].bbox)) for s in found] == [(r["expression"], r["bbox"]) for r in rows]


def test_columns_can_be_named_and_a_wrong_name_is_answered_with_the_nearest(tmp_path: Path) -> None:
    rows = [{"foto": r["image"], "was": r["expression"], "wo": r["bbox"]} for r in good_rows(tmp_path / "set")]
    write_records(tmp_path / "set", rows)
    with pytest.raises(DataError, match="among foto, was, wo"):
        prepare(tmp_path / "set", tmp_path)
    with pytest.raises(DataError) as caught:
        prepare(tmp_path / "set", tmp_path, columns={"image": "photo"})
    assert caught.value.hint == "did you mean 'foto'?"
    data = prepare(tmp_path / "set", tmp_path, columns={"image": "foto", "query": "was", "bbox": "wo"})
    assert samples_of(data)[0].query == "thing 0"


def test_columns_that_are_not_used_are_said(tmp_path: Path) -> None:
    write_records(tmp_path / "set", [{**row, "source": "human"} for row in good_rows(tmp_path / "set")])
    data = prepare(tmp_path / "set", tmp_path)
    assert "columns: image=image, query=expression, bbox=bbox; not used: source" in data.manifest.notes


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(None, [], id="null"),
        pytest.param([], [], id="empty"),
        pytest.param("[]", [], id="JSON text of nothing"),
        pytest.param("null", [], id="JSON text of null"),
        pytest.param([1, 2, 3, 4], [(1, 2, 3, 4)], id="four numbers"),
        pytest.param("[1, 2, 3.5, 4]", [(1, 2, 3.5, 4)], id="JSON text"),
        pytest.param("1 2 3 4", [(1, 2, 3, 4)], id="four numbers as text"),
        pytest.param([[1, 2, 3, 4], [5, 6, 7, 8]], [(1, 2, 3, 4), (5, 6, 7, 8)], id="lists"),
        pytest.param({"x1": 1, "y1": 2, "x2": 3, "y2": 4}, [(1, 2, 3, 4)], id="named corners"),
        pytest.param([{"bbox": [1, 2, 3, 4], "label": "a"}], [(1, 2, 3, 4)], id="objects"),
        pytest.param({"bbox": [[1, 2, 3, 4]], "category": [0]}, [(1, 2, 3, 4)], id="a dict of lists"),
        pytest.param({"bbox": [], "category": []}, [], id="a dict of empty lists"),
    ],
)
def test_a_box_column_may_hold_any_of_the_usual_forms(value: Any, expected: list[tuple[float, ...]]) -> None:
    boxes, bad = read_boxes(value, None, ("cat",), "line 1")
    assert [box.numbers for box in boxes] == expected and not bad


@pytest.mark.parametrize("value", ["abc", [[1, 2, 3]], 7, {"a": 1}, [True, False, True, True], [None] * 4], ids=str)
def test_what_is_no_box_is_never_taken_for_an_absence(value: Any) -> None:
    boxes, bad = read_boxes(value, None, (), "line 1")
    assert not boxes and bad


def test_records_with_objects_and_labels_are_detection(tmp_path: Path) -> None:
    rows = [
        {"image": r["image"], "objects": [{"bbox": r["bbox"], "label": ("cup", "pen")[n % 2]}]}
        for n, r in enumerate(good_rows(tmp_path / "set"))
    ]
    write_records(tmp_path / "set", [*rows, {"image": "0.png", "objects": []}])
    found = samples_of(prepare(tmp_path / "set", tmp_path))
    assert {s.task for s in found} == {"detection"} and len(found) == 11
    assert found[0].categories == ("cup", "pen") and found[1].objects[0].label == "pen" and not found[10].objects


def test_pictures_may_lie_in_images_beside_the_file(tmp_path: Path) -> None:
    write_records(tmp_path / "set", good_rows(tmp_path / "set" / "images"))
    assert len(samples_of(prepare(tmp_path / "set" / "train.jsonl", tmp_path))) == 10


def test_a_file_in_annotations_reaches_the_pictures_beside_that_folder(tmp_path: Path) -> None:
    rows = good_rows(tmp_path / "set" / "images")
    write_records(tmp_path / "set" / "annotations", [{**r, "image": f"../images/{r['image']}"} for r in rows])
    data = prepare(tmp_path / "set" / "annotations" / "train.jsonl", tmp_path)
    assert data.name == "set" and len(samples_of(data)) == 10


def test_one_json_array_is_read_like_lines(tmp_path: Path) -> None:
    rows = good_rows(tmp_path / "set")
    (tmp_path / "set" / "boxes.json").write_text(json.dumps({"data": rows}), encoding="utf-8-sig")
    data = prepare(tmp_path / "set" / "boxes.json", tmp_path)
    assert data.name == "set-boxes" and len(samples_of(data)) == 10


def conversation(image: str, human: str, model: str) -> dict[str, Any]:
    turns = [{"from": "human", "value": f"<image>\n{human}"}, {"from": "gpt", "value": model}]
    return {"image": image, "conversations": turns}


def test_qwen_conversations_give_the_phrase_and_the_box_of_the_answer(tmp_path: Path) -> None:
    prompt = "Locate {} in this image and output the bbox coordinates in JSON format."
    rows = [
        conversation(
            r["image"],
            prompt.format(r["expression"]),
            f'```json\n[{{"bbox_2d": {r["bbox"]}, "label": "thing"}}]\n```',
        )
        for r in good_rows(tmp_path / "set")
    ]
    rows.append(conversation("0.png", prompt.format("the moon"), "[]"))
    rows.append(conversation("0.png", prompt.format("the sun"), "I would rather not."))
    rows.append({"image": "1.png", "conversations": []})
    write_records(tmp_path / "set", rows)
    data = prepare(tmp_path / "set", tmp_path)
    found = samples_of(data)
    assert data.manifest.source["kind"] == "conversations"
    assert [s.query for s in found] == [*(f"thing {n}" for n in range(10)), "the moon"]
    assert [list(s.objects[0].bbox) for s in found[:10]] == [corners(n) for n in range(10)] and not found[10].objects
    assert data.manifest.counts["rejected"] == 2
    assert any("resized input" in text for text in data.manifest.notes)


def test_several_exchanges_of_a_conversation_are_questions_of_their_own(tmp_path: Path) -> None:
    good_rows(tmp_path / "set")
    rows = []
    for number in range(10):
        turns = []
        for part in range(2):
            turns.append({"from": "human", "value": f"{'' if part else '<image>'}find the part {part}"})
            turns.append({"from": "gpt", "value": json.dumps([{"bbox_2d": corners(20 * part + number)}])})
        rows.append({"image": f"{number}.png", "conversations": turns})
    write_records(tmp_path / "set", rows)
    data = prepare(tmp_path / "set", tmp_path)
    assert data.manifest.counts["rows_read"] == data.manifest.counts["samples"] == 20


def test_conversations_in_thousandths_are_found_out(tmp_path: Path) -> None:
    good_rows(tmp_path / "set", 10)
    boxes = [[round(v / s * 1000) for v, s in zip(corners(n), (160, 120, 160, 120), strict=True)] for n in range(10)]
    rows = [
        conversation(f"{n}.png", "find the thing", json.dumps([{"bbox_2d": box, "label": "a"}]))
        for n, box in enumerate(boxes)
    ]
    write_records(tmp_path / "set", rows)
    data = prepare(tmp_path / "set", tmp_path)
    assert data.manifest.bbox["convention"] == "xyxy_1000"
    assert samples_of(data)[3].objects[0].bbox == pytest.approx(corners(3), abs=0.1)


def test_conversations_without_boxes_are_captions(tmp_path: Path) -> None:
    rows = [
        conversation(r["image"], "Describe it.", f"A view, {n}.") for n, r in enumerate(good_rows(tmp_path / "set"))
    ]
    write_records(tmp_path / "set", rows)
    assert samples_of(prepare(tmp_path / "set", tmp_path))[4].captions == ("A view, 4.",)


def test_hub_detection_tables_keep_their_bytes_and_category_names(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Image, List, Value

    names = ["cat", "dog"]
    features = Features(
        {
            "image_id": Value("int64"),
            "image": Image(),
            "objects": {"bbox": List(List(Value("float32"))), "category": List(ClassLabel(names=names))},
        }
    )
    xywh = [[box[0], box[1], box[2] - box[0], box[3] - box[1]] for box in map(corners, range(12))]
    xywh[5] = [2.0, 3.0, 60.0, 50.0]  # refutes the centre form
    rows = [
        {
            "image_id": n,
            "image": {"bytes": picture(n, kind="JPEG"), "path": None},
            "objects": {"bbox": [xywh[n]] if n else [], "category": [n % 2] if n else []},
        }
        for n in range(12)
    ]
    (tmp_path / "set" / "data").mkdir(parents=True)
    Dataset.from_list(rows, features=features).to_parquet(tmp_path / "set" / "data" / "train-00000-of-00001.parquet")
    data = prepare(tmp_path / "set", tmp_path)
    found = samples_of(data)
    assert data.manifest.bbox["convention"] == "xywh"
    assert found[3].categories == ("cat", "dog") and found[3].objects[0].label == "dog"
    assert list(found[3].objects[0].bbox) == corners(3) and not found[0].objects
    assert data.picture_path(found[3]).read_bytes() == picture(3, kind="JPEG")


def test_expressions_in_a_list_beside_a_constant_question_are_rows_of_their_own(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    boxes = [*([float(n), 3.0, 90.0, 80.0] for n in range(4)), *(corners(n) for n in range(4, 12))]
    table = {
        "question_id": [str(n) for n in range(12)],
        "image": [{"bytes": picture(n), "path": None} for n in range(12)],
        "question": ["Please describe the region."] * 12,
        "answer": [[f"thing {n}", f"the {n}th"] for n in range(12)],
        "bbox": [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in boxes],
    }
    (tmp_path / "set").mkdir()
    pq.write_table(pa.table(table), tmp_path / "set" / "val.parquet")
    data = prepare(tmp_path / "set" / "val.parquet", tmp_path)
    found = samples_of(data)
    assert data.manifest.counts["rows_read"] == 24 and len(found) == 24
    assert [s.query for s in found[:4]] == ["thing 0", "the 0th", "thing 1", "the 1th"]
    assert list(found[2].objects[0].bbox) == boxes[1]


def test_coco_splits_are_named_by_file_or_folder(tmp_path: Path) -> None:
    source = write_coco(tmp_path / "one", 12)
    document = json.loads((source / "instances.json").read_text())
    for layout, files in {
        "official": {
            "annotations/instances_train2017.json": "train2017",
            "annotations/instances_val2017.json": "val2017",
        },
        "roboflow": {"train/_annotations.coco.json": "train", "valid/_annotations.coco.json": "valid"},
    }.items():
        for number, (file, pictures) in enumerate(files.items()):
            images = document["images"][number::2]
            for image in images:
                target = tmp_path / layout / pictures / image["file_name"]
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes((source / "images" / image["file_name"]).read_bytes())
            known = {image["id"] for image in images}
            kept = [a for a in document["annotations"] if a["image_id"] in known]
            path = tmp_path / layout / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({**document, "images": images, "annotations": kept}))
        data = prepare(tmp_path / layout, tmp_path)
        assert {name: info.samples for name, info in data.manifest.splits.items()} == {"train": 6, "val": 6}, layout


def test_coco_boxes_that_are_corners_are_not_taken_for_sides(tmp_path: Path) -> None:
    source = write_coco(tmp_path / "set", 12)
    document = json.loads((source / "instances.json").read_text())
    for number, annotation in enumerate(document["annotations"]):
        annotation["bbox"] = corners(number)
    (source / "instances.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match="should be xywh") as caught:
        prepare(source, tmp_path)
    assert "--bbox-format xyxy" in caught.value.hint
    assert prepare(source, tmp_path, bbox_format="xyxy").manifest.bbox["convention"] == "xyxy"


def test_a_local_path_goes_before_a_hub_id_and_says_so(tmp_path: Path) -> None:
    write_records(tmp_path / "owner" / "name", good_rows(tmp_path / "owner" / "name"))
    events: list[Any] = []
    prepare_dataset("owner/name", root=tmp_path, emit=events.append)
    said = [e["text"] for e in events if e["event"] == "note"]
    assert said[0].startswith("owner/name is taken from the local") and said[0].endswith("not from the hub")


@pytest.mark.parametrize(
    ("dataset", "hub_id", "config", "name"),
    [
        ("Kangheng/refcocog", "Kangheng/refcocog", None, "refcocog"),
        ("lmms-lab/RefCOCO:testA", "lmms-lab/RefCOCO", "testA", "RefCOCO-testA"),
    ],
)
def test_a_hub_id_is_told_from_a_path(tmp_path: Path, dataset: str, hub_id: str, config: str | None, name: str) -> None:
    target = resolve(dataset, tmp_path, lambda _: None)
    assert (target.hub_id, target.config, target.name, target.path) == (hub_id, config, name, None)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("coco36/instances.json", "coco36"),
        ("coco/annotations/instances_val2017.json", "coco"),
        ("coco/annotations/captions_val2017.json", "coco-captions_val2017"),
        ("coco36/expressions.jsonl", "coco36-expressions"),
        ("refs/train.jsonl", "refs"),
        ("my set/a b.json", "my-set-a-b"),
    ],
)
def test_a_data_set_is_named_after_its_folder_and_a_telling_file_name(path: str, name: str) -> None:
    assert name_of(Path(path)) == name


def test_the_format_is_told_by_content_not_by_name(tmp_path: Path) -> None:
    source = write_coco(tmp_path / "coco")
    renamed = source / "whatever.json"
    (source / "instances.json").rename(renamed)
    records = write_records(tmp_path / "set", good_rows(tmp_path / "set"), "instances.json")
    assert (detect(renamed), detect(source), detect(records)) == ("coco", "coco", "records")


def test_a_row_may_ask_for_several_things_for_one_or_for_none(tmp_path: Path) -> None:
    """As gRefCOCO has it: sentences with their tokens, and a list of boxes that may be empty."""
    rows = []
    for number, row in enumerate(good_rows(tmp_path / "set", 12)):
        sentences = [{"sent": f"thing {number}", "tokens": ["thing"]}, {"sent": f"that of {number}", "tokens": []}]
        boxes = [
            [b[0], b[1], b[2] - b[0], b[3] - b[1]] for b in (corners(number), [2, 3, 90, 80], corners(number + 50))
        ]
        rows.append(
            {"image": row["image"], "sentences": sentences, "bbox": boxes[: number % 4], "no_target": not number % 4}
        )
    write_records(tmp_path / "set", rows)
    data = prepare(tmp_path / "set", tmp_path, val_fraction=0)
    found = {s.query: s.objects for s in data.samples("train")}
    assert data.manifest.bbox["convention"] == "xywh"
    assert len(found) == data.manifest.counts["rows_read"] == 24 and data.manifest.counts["negatives"] == 6
    for number in range(12):
        assert len(found[f"thing {number}"]) == len(found[f"that of {number}"]) == number % 4
        assert {o.label for o in found[f"thing {number}"]} <= {f"thing {number}"}
    assert list(found["thing 3"][2].bbox) == corners(53)


def test_a_split_named_by_the_data_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    rows = good_rows(tmp_path / "set", 12)
    for number, row in enumerate(rows):
        row["split"] = ("train", "../../../evil", "rejected")[number % 3]
    write_records(tmp_path / "set", rows)
    data = prepare(tmp_path / "set", tmp_path)
    assert list(data.manifest.splits) == ["train", "evil", "rejected-rows"]
    assert not list(tmp_path.rglob("*evil.jsonl"))[1:] and (data.path / "evil.jsonl").is_file()
    assert data.manifest.counts["rejected"] == 0


def test_a_table_is_read_as_it_lies_without_a_copy_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setattr(datasets.DatasetBuilder, "download_and_prepare", None)  # a call would be an error
    rows = [
        {"image": {"bytes": picture(n), "path": None}, "question": f"q {n}", "bbox": corners(n), "kind": n % 2}
        for n in range(150)
    ]
    (tmp_path / "set" / "data").mkdir(parents=True)
    for split, part in (("train", rows[:90]), ("test", rows[90:])):
        table = pa.Table.from_pylist(part)
        pq.write_table(table, tmp_path / "set" / "data" / f"{split}-00000-of-00001.parquet", row_group_size=40)
    data = prepare(tmp_path / "set", tmp_path)
    found = {s.query: list(s.objects[0].bbox) for split in data.manifest.splits for s in data.samples(split)}
    assert found == {f"q {n}": corners(n) for n in range(150)}
    assert data.manifest.splits["test"].samples == 60


def test_a_table_cut_off_in_its_middle_is_an_error_that_names_it(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "set" / "train.parquet"
    path.parent.mkdir()
    rows = [{"image": {"bytes": picture(n), "path": None}, "question": "q", "bbox": corners(n)} for n in range(300)]
    pq.write_table(pa.Table.from_pylist(rows), path, compression="zstd", row_group_size=100)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2000] = b"\0" * 2000
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"train\.parquet is no whole parquet file") as caught:
        prepare(path.parent, tmp_path)
    assert "interrupted" in caught.value.hint


@pytest.mark.parametrize("group", [50, 100_000], ids=["small groups", "one group"])
def test_a_large_table_is_not_held_in_memory(tmp_path: Path, group: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from qwenft.prepare.sources.parquet import ParquetTable

    noise = [random.Random(n).randbytes(100_000) for n in range(400)]  # 40 MB that do not shrink
    table = pa.table({"image": noise})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=group, write_batch_size=16)  # pages of 16 rows
    del table
    most = rows = 0
    for row in ParquetTable([tmp_path / "a.parquet"]):
        most, rows = max(most, pa.total_allocated_bytes()), rows + (row["image"] == noise[rows])
    assert rows == 400
    assert most < 20_000_000


ARRAY_PEAK = """
import resource, sys
from pathlib import Path
from qwenft.core.files import read_records

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(sum(1 for _ in read_records(Path(sys.argv[1]))), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize(
    ("start", "indent", "end"),
    [
        pytest.param("[", "", "]", id="on one line"),
        pytest.param("[", "\n  ", "]", id="indented"),
        pytest.param('{"data": [', "", "]}", id="inside an object"),
    ],
)
def test_a_single_array_of_any_size_is_never_held_in_memory(tmp_path: Path, start: str, indent: str, end: str) -> None:
    row = json.dumps({"image": "0.png", "expression": "a thing " * 400, "bbox": [1, 2, 3, 4]})
    with (tmp_path / "a.json").open("w") as file:
        file.write(start)
        for number in range(22_000):
            file.write(f"{',' if number else ''}{indent}{row}")
        file.write(end)
    assert (tmp_path / "a.json").stat().st_size > STREAM_BYTES
    child = [sys.executable, "-c", ARRAY_PEAK, tmp_path / "a.json"]
    count, kilobytes = map(int, subprocess.run(child, capture_output=True, text=True, check=True).stdout.split())
    assert count == 22_000
    assert kilobytes < 30_000
