"""Other tools' forms: written, read back through `prepare`, equal boxes, in the frame that each tool expects."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from annotated import truth, write_coco
from PIL import Image
from prepare_inputs import DATA, good_rows, lines, picture, write_records

from qwenft.core.boxes import Size, smart_resize, to_input_px
from qwenft.core.errors import DataError, UsageError
from qwenft.core.samples import PreparedDataset, Sample
from qwenft.prepare.build import prepare_dataset
from qwenft.prepare.exports import FORMS
from qwenft.prepare.sources import detect


def prepare(source: Path, root: Path, **options: Any) -> PreparedDataset:
    return prepare_dataset(str(source), root=root, **options)


def grounding(tmp_path: Path) -> PreparedDataset:
    """One box, several, none, odd words, and pictures small, thin and larger than any budget; all three splits."""
    folder = tmp_path / "source"
    rows = good_rows(folder, 24)
    (folder / "large.jpg").write_bytes(picture(70, (1300, 940), "JPEG"))
    (folder / "thin.png").write_bytes(picture(71, (900, 33)))
    rows[0] |= {"image": "large.jpg", "bbox": [700.5, 500.25, 1290, 933]}
    rows[1] |= {"image": "thin.png", "bbox": [450, 4, 880, 30]}
    rows[2] |= {"bbox": [rows[2]["bbox"], rows[3]["bbox"]], "expression": "both of the cups"}
    rows[3] |= {"bbox": None, "expression": "the moon"}
    rows[4]["expression"] = 'a "red" sign: <image> <bbox>, in the picture'
    rows[5]["expression"] = "穿红衣服的人"
    for number, split in enumerate(("train", "val", "test")):
        write_records(folder, rows[8 * number : 8 * number + 8], f"{split}.jsonl")
    return prepare(folder, tmp_path, out=Path("first"), export=("qwen", "swift", "llamafactory"))


def detection(tmp_path: Path, export: tuple[str, ...] = tuple(FORMS)) -> PreparedDataset:
    real = DATA / "coco36"
    source = real if real.is_dir() else write_coco(tmp_path / "source", truth())
    return prepare(source, tmp_path, out=Path("first"), export=export)


def spelled(text: str | None) -> str:
    return re.sub(r"<(image|bbox)>", r"(\1)", text or "")


def in_frame(sample: Sample, input_wh: Callable[[Size], Size]) -> list[tuple[str, tuple[float, ...]]]:
    """Labels and boxes (crowds apart) in px of the picture as it was exported."""
    wh = input_wh(sample.image_wh)
    boxes = ((o.label, to_input_px(o.bbox, sample.image_wh, wh)) for o in sample.objects if not o.crowd)
    return [(spelled(label), box) for label, box in boxes]


def assert_round_trip(first: PreparedDataset, form: str, root: Path, within_px: float) -> PreparedDataset:
    budget = FORMS[form].budget
    frame: Callable[[Size], Size] = (lambda wh: smart_resize(wh, *budget)) if budget else (lambda wh: wh)
    again = prepare(first.path / "exports" / form, root, out=Path("again") / form)
    assert set(again.manifest.splits) == set(first.manifest.splits)
    for split in first.manifest.splits:
        before, after = list(first.samples(split)), list(again.samples(split))
        if not budget:  # the picture's own bytes, so that they tell which is which
            before.sort(key=lambda s: (s.picture, spelled(s.query)))
            after.sort(key=lambda s: (s.picture, spelled(s.query)))
            assert [s.picture for s in after] == [s.picture for s in before]
        assert [s.query for s in after] == [spelled(s.query) if s.query else None for s in before]
        for one, other in zip(before, after, strict=True):
            assert_same_objects(in_frame(one, frame), in_frame(other, lambda wh: wh), within_px)
    assert again.manifest.counts["rejected"] == again.manifest.counts["objects_rejected"] == 0
    return again


def assert_same_objects(one: list[tuple[str, Any]], other: list[tuple[str, Any]], within_px: float) -> None:
    """In any order: tools that are given an answer are given it in the order in which it is learned."""
    left = list(other)
    for label, box in one:
        same = [item for item in left if item[0] == label and item[1] == pytest.approx(box, abs=within_px)]
        assert same, (label, box, left)
        left.remove(same[0])
    assert left == []


@pytest.mark.parametrize(("form", "within_px"), [("qwen", 0.5), ("llamafactory", 0.5), ("swift", 0.001)])
def test_expressions_come_back_equal_from_each_training_tools_form(tmp_path: Path, form: str, within_px: float) -> None:
    again = assert_round_trip(grounding(tmp_path), form, tmp_path, within_px)
    assert detect(tmp_path / "first" / "exports" / form) == (
        "llamafactory" if form == "llamafactory" else "conversations"
    )
    assert sum(not s.objects for split in again.manifest.splits for s in again.samples(split)) == 1


@pytest.mark.parametrize("form", FORMS)
def test_detection_comes_back_equal_from_every_form(tmp_path: Path, form: str) -> None:
    within_px = {"qwen": 0.5, "llamafactory": 0.5}.get(form, 0.002)
    first = detection(tmp_path, (form,))
    real_shrinks = first.manifest.counts["objects"] > 100
    if real_shrinks and FORMS[form].budget:
        within_px = 1.0  # a box under a pixel is written one pixel wide
    again = assert_round_trip(first, form, tmp_path, within_px)
    assert again.manifest.counts["objects"] > 20


@pytest.mark.parametrize("form", ["qwen", "llamafactory"])
def test_a_picture_for_a_tool_that_takes_boxes_as_text_has_the_size_that_the_model_will_see(
    tmp_path: Path, form: str
) -> None:
    first = grounding(tmp_path)
    low, high = FORMS[form].budget or (0, 0)
    folder = first.path / "exports" / form
    seen = set()
    for path in (folder / "images").glob("*/*"):
        with Image.open(path) as image:
            seen.add(image.size)
            assert smart_resize(image.size, low, high) == image.size  # the tool's resize leaves it as it is
            assert low <= image.width * image.height <= high
    assert smart_resize((1300, 940), low, high) in seen


def test_pictures_that_keep_their_size_are_links_and_survive_the_data_set_being_moved(tmp_path: Path) -> None:
    first = grounding(tmp_path)
    sample = first.samples("train")[0]
    linked = first.path / "exports" / "swift" / sample.image
    assert linked.samefile(first.picture_path(sample))
    assert "/" not in json.dumps(lines(first.path / "exports" / "swift" / "train.jsonl")[0]["images"][0])[:2]


def test_ms_swift_gets_px_of_the_picture_itself_and_texts_apart_from_the_turns(tmp_path: Path) -> None:
    row = lines(grounding(tmp_path).path / "exports" / "swift" / "train.jsonl")[0]
    assert row["objects"] == {"ref": ["thing 0", "thing 0"], "bbox": [[700.5, 500.25, 1290.0, 933.0]]}
    assert row["messages"][0]["content"].startswith("<image>Locate <ref-object> in this image")
    assert row["messages"][1]["content"] == '[{"bbox_2d": <bbox>, "label": "<ref-object>"}]'


def test_placeholders_in_a_text_of_the_data_do_not_speak_to_the_tool(tmp_path: Path) -> None:
    first = grounding(tmp_path)
    for form in ("qwen", "llamafactory", "swift"):
        for file in (first.path / "exports" / form).glob("train.json*"):
            assert file.read_text().count("<image>") == 8


def test_a_crowd_goes_into_coco_only_and_that_is_said(tmp_path: Path) -> None:
    source = write_coco(tmp_path / "crowd", truth())
    path = source / "train" / "_annotations.coco.json"
    document = json.loads(path.read_text())
    document["annotations"][0]["iscrowd"] = 1
    path.write_text(json.dumps(document))
    data = prepare(source, tmp_path, export=("coco", "yolo"))
    notes = " ".join(data.manifest.notes)
    assert "exports/yolo leaves out 1 crowd" in notes and "exports/coco leaves" not in notes
    again = prepare(data.path / "exports" / "coco", tmp_path, out=Path("again"))
    assert sum(o.crowd for split in again.manifest.splits for s in again.samples(split) for o in s.objects) == 1


def test_captions_are_an_exchange_a_reference_and_come_back_from_coco_as_they_were(tmp_path: Path) -> None:
    rows = [{"image": r["image"], "captions": [f"a {n}", f"b {n}"]} for n, r in enumerate(good_rows(tmp_path / "s"))]
    write_records(tmp_path / "s", rows)
    data = prepare(tmp_path / "s", tmp_path, val_fraction=0, export=("coco", "qwen"))
    again = prepare(data.path / "exports" / "coco", tmp_path, out=Path("a"), val_fraction=0)
    assert sorted(s.captions for s in again.samples("train")) == sorted(s.captions for s in data.samples("train"))
    exchanges = prepare(data.path / "exports" / "qwen", tmp_path, out=Path("b"), val_fraction=0)
    assert len(exchanges.samples("train")) == 20


def test_a_form_that_cannot_hold_the_task_is_refused_with_one_that_can(tmp_path: Path) -> None:
    write_records(tmp_path / "set", good_rows(tmp_path / "set"))
    with pytest.raises(DataError, match="yolo holds detection, this is grounding") as caught:
        prepare(tmp_path / "set", tmp_path, export=("yolo",))
    assert caught.value.hint == "--export qwen"
    with pytest.raises(UsageError, match="unknown --export") as mistyped:
        prepare(tmp_path / "nowhere", tmp_path, export=("yolov8",))
    assert mistyped.value.hint == "did you mean 'yolo'?"


# Forms of these tools that we do not write ourselves


ANSWER = '[{{"bbox_2d": {}, "label": "thing"}}]'


def alpaca(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "instruction": "<image>Find", "input": row["expression"], "output": ANSWER.format(row["bbox"]),
        "images": [row["image"]],
    }  # fmt: skip


def query_response(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "query": f"<image>find {row['expression']}",
        "response": ANSWER.format(row["bbox"]),
        "images": [row["image"]],
    }


def swift_legacy(row: dict[str, Any]) -> dict[str, Any]:
    turns = [("user", "<image>find <ref-object>"), ("assistant", "<ref-object><bbox>")]
    messages = [{"role": who, "content": text} for who, text in turns]
    objects = {"ref": [row["expression"], "it"], "bbox": [row["bbox"]]}
    return {"messages": messages, "images": [row["image"]], "objects": objects}


def swift_shares(row: dict[str, Any]) -> dict[str, Any]:
    found = swift_legacy(row)
    found["objects"]["bbox"] = [[v / side for v, side in zip(row["bbox"], (160, 120) * 2, strict=True)]]
    found["objects"]["bbox_type"] = "norm1"
    return found


def parts(row: dict[str, Any]) -> dict[str, Any]:
    asked = [{"type": "image", "image": row["image"]}, {"type": "text", "text": f"find {row['expression']}"}]
    answer = [{"type": "text", "text": ANSWER.format(row["bbox"])}]
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}


@pytest.mark.parametrize("write", [alpaca, query_response, swift_legacy, swift_shares, parts])
def test_other_forms_of_these_tools_are_read_too(tmp_path: Path, write: Callable[..., dict[str, Any]]) -> None:
    rows = good_rows(tmp_path / "set", 12)
    write_records(tmp_path / "set", [write(row) for row in rows])
    data = prepare(tmp_path / "set", tmp_path, val_fraction=0)
    found = {s.query: list(s.objects[0].bbox) for s in data.samples("train")}
    assert found.keys() == {row["expression"] for row in rows}
    for row in rows:
        assert found[row["expression"]] == pytest.approx(row["bbox"], abs=0.001)


def test_a_placeholder_without_its_object_rejects_the_row(tmp_path: Path) -> None:
    rows = [swift_legacy(row) for row in good_rows(tmp_path / "set", 12)]
    rows[4]["objects"]["bbox"] = []
    write_records(tmp_path / "set", rows)
    data = prepare(tmp_path / "set", tmp_path)
    (rejected,) = lines(data.path / "rejected.jsonl")
    assert rejected["reason"] == "box-unreadable" and data.manifest.counts["samples"] == 11
