"""YOLO, VOC, LabelMe, Label Studio, CSV and image folders: the same pictures give the same boxes in each form."""

import json
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from annotated import FORMS, LABELS, View, truth, voc_xml, write_csv, write_labelme, write_voc, write_yolo, yolo_lines
from prepare_inputs import DATA, good_rows, lines, picture, write_records

from qwenft.core.errors import DataError
from qwenft.core.samples import PreparedDataset, Sample
from qwenft.prepare.build import prepare_dataset
from qwenft.prepare.origin import judge_origin
from qwenft.prepare.sources import detect


def prepare(source: Path, root: Path, **options: Any) -> PreparedDataset:
    return prepare_dataset(str(source), root=root, **options)


def by_split(data: PreparedDataset) -> dict[str, list[Sample]]:
    return {split: list(data.samples(split)) for split in data.manifest.splits}


def found(data: PreparedDataset) -> dict[tuple[str, bytes], list[tuple[str, tuple[float, ...]]]]:
    """(split, picture's bytes) -> sorted labels and boxes."""
    return {
        (split, data.picture_path(sample).read_bytes()): sorted((item.label, item.bbox) for item in sample.objects)
        for split, samples in by_split(data).items()
        for sample in samples
    }


def expected(views: list[View]) -> dict[tuple[str, bytes], list[tuple[str, tuple[float, ...]]]]:
    return {(view.split, view.content): sorted((label, tuple(box)) for label, *box in view.boxes) for view in views}


def assert_same(data: PreparedDataset, views: list[View], within_px: float = 0.01) -> None:
    one, other = found(data), expected(views)
    assert one.keys() == other.keys()
    for key, objects in one.items():
        assert [label for label, _ in objects] == [label for label, _ in other[key]]
        for (_, box), (_, true_box) in zip(objects, other[key], strict=True):
            assert box == pytest.approx(true_box, abs=within_px)


def reasons(data: PreparedDataset) -> Counter[str]:
    return Counter(line["reason"] for line in lines(data.path / "rejected.jsonl"))


@pytest.mark.parametrize("form", FORMS)
def test_the_same_truth_in_each_form_gives_the_same_splits_pictures_labels_and_boxes(tmp_path: Path, form: str) -> None:
    views = truth()
    source = FORMS[form](tmp_path / "set", views)
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    data = prepare(source, tmp_path)
    assert detect(source) == form.split(" as ", maxsplit=1)[0].split(" lists", maxsplit=1)[0].replace(" ", "")
    assert_same(data, views)
    assert not reasons(data)
    assert data.manifest.counts["negatives"] == 3
    assert {path: path.read_bytes() for path in source.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("form", FORMS)
def test_one_split_and_a_limit_are_obeyed_in_each_form_and_a_wrong_split_names_the_nearest(
    tmp_path: Path, form: str
) -> None:
    source = FORMS[form](tmp_path / "set", truth())
    data = prepare(source, tmp_path, splits=("test",), limit=2)
    assert data.manifest.counts["rows_read"] == 2
    with pytest.raises(DataError) as caught:
        prepare(source, tmp_path, out=Path("other"), splits=("tets",))
    assert caught.value.hint == "did you mean 'test'?"


# Real data where it lies beside the project, the same form generated elsewhere.


def bccd(tmp_path: Path) -> Path:
    real = DATA / "bccd"
    if real.is_dir():
        return real
    source = write_voc(tmp_path / "generated" / "bccd", truth(12))
    for number in range(2):
        file = source / "Annotations" / f"train-{number}.xml"
        flat = "<xmin>9</xmin><ymin>9</ymin><xmax>9</xmax><ymax>9</ymax>"
        extra = f"<object><name>cup</name><bndbox>{flat}</bndbox></object></annotation>"
        file.write_text(file.read_text().replace("</annotation>", extra))
    return source


def independent(source: Path) -> list[View]:
    """A reading of a VOC folder that shares no code with the package."""
    views = []
    for split in ("train", "val", "test"):
        for stem in (source / "ImageSets" / "Main" / f"{split}.txt").read_text().split():
            root = ElementTree.parse(source / "Annotations" / f"{stem}.xml").getroot()
            size = (int(root.findtext("size/width", "")), int(root.findtext("size/height", "")))
            boxes = []
            for node in root.iter("object"):
                x1, y1, x2, y2 = (int(node.findtext(f"bndbox/{c}", "")) for c in ("xmin", "ymin", "xmax", "ymax"))
                if x2 > x1 and y2 > y1:
                    boxes.append((node.findtext("name", ""), x1 - 1, y1 - 1, x2, y2))
            content = (source / "JPEGImages" / f"{stem}.jpg").read_bytes()
            views.append(View(stem, split, content, tuple(boxes), size))
    return views


def test_the_blood_cells_keep_their_splits_and_every_box_but_the_two_without_a_size(tmp_path: Path) -> None:
    source = bccd(tmp_path)
    data, views = prepare(source, tmp_path), independent(source)
    assert_same(data, views)
    sizes = {name: info.samples for name, info in data.manifest.splits.items()}
    rejected = lines(data.path / "rejected.jsonl")
    assert [line["reason"] for line in rejected] == ["box-flat", "box-flat"]
    assert any(note.startswith("pixels count from 1: ") for note in data.manifest.notes)
    if source == DATA / "bccd":
        labels = Counter(o.label for samples in by_split(data).values() for s in samples for o in s.objects)
        assert sizes == {"train": 75, "val": 25, "test": 24}
        assert labels == {"RBC": 1446, "Platelets": 147, "WBC": 125}
        names = {line["source"].partition(".")[0] for line in rejected}
        assert names == {"BloodImage_00338", "BloodImage_00343"}


def test_the_blood_cells_as_coco_and_as_yolo_by_an_independent_script_give_the_same_boxes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    views = independent(bccd(tmp_path))
    names = tuple(sorted({label for view in views for label, *_ in view.boxes}))
    monkeypatch.setattr("annotated.LABELS", names)
    for form in ("coco", "yolo"):
        source = FORMS[form](tmp_path / form, views)
        if form == "yolo":
            write_names(source, names)
        data = prepare(source, tmp_path)
        assert_same(data, views, within_px=0.001 if form == "coco" else 0.01)
        assert data.manifest.counts["objects"] == sum(len(view.boxes) for view in views)


def write_names(source: Path, names: tuple[str, ...]) -> None:
    settings = json.loads((source / "data.yaml").read_text())
    (source / "data.yaml").write_text(json.dumps({**settings, "names": list(names)}))


# VOC


@pytest.mark.parametrize(
    ("boxes", "otherwise", "first"),
    [
        pytest.param([(0, 5, 9, 9), (1, 5, 9, 9), (1, 1, 9, 9), (1, 7, 9, 9)], 1, 0, id="one zero refutes"),
        pytest.param([(1, 5, 9, 9)] * 4, 0, 1, id="crowded at one"),
        pytest.param([(1, 5, 9, 9), (2, 5, 9, 9), (8, 5, 9, 9)], 0, 0, id="one by chance"),
        pytest.param([(7, 5, 9, 9)], 1, 1, id="nothing tells"),
        pytest.param([(0, 5, 0, 9), (1, 5, 9, 9)], 1, 1, id="a flat box is no evidence"),
    ],
)
def test_where_pixels_begin_is_decided_by_boxes_at_the_border(
    boxes: list[tuple[int, ...]], otherwise: int, first: int
) -> None:
    assert judge_origin(((box, "here") for box in boxes), otherwise).first == first


def test_voc_from_zero_is_seen_by_a_box_at_zero_and_said(tmp_path: Path) -> None:
    views = truth()
    data = prepare(write_voc(tmp_path / "set", views, first=0), tmp_path)
    assert_same(data, views)
    assert any("pixels count from 0" in note and "at 0, e.g. train-" in note for note in data.manifest.notes)


def test_difficult_objects_are_kept_and_counted(tmp_path: Path) -> None:
    views = truth()
    data = prepare(write_voc(tmp_path / "set", views), tmp_path)
    difficult = sum(label == "pen" for view in views for label, *_ in view.boxes)
    assert data.manifest.source["difficult"] == difficult > 0
    assert f"{difficult} objects marked difficult, kept as objects" in data.manifest.notes


def test_damaged_voc_is_counted_line_by_line_and_the_rest_is_kept(tmp_path: Path) -> None:
    views = truth(10)
    source = write_voc(tmp_path / "set", views)
    annotations = source / "Annotations"

    def change(number: int, text: str) -> None:
        (annotations / f"train-{number}.xml").write_text(text)

    change(0, voc_xml(views[0])[:60])
    bomb = '<!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;&b;&b;">]>'
    change(1, bomb + voc_xml(views[1]).replace("cup", "&c;"))
    change(2, voc_xml(views[2], size=(300, 200)))
    (annotations / "train-3.xml").unlink()
    change(4, voc_xml(views[4]).replace("<bndbox><xmax>", "<bndbox><xmax>x", 1))
    change(5, voc_xml(views[5]).replace("<name>cup</name>", "", 1))
    change(6, voc_xml(views[6], filename="another.jpg", size=(0, 0)))
    (source / "JPEGImages" / "train-7.jpg").unlink()
    listed = source / "ImageSets" / "Main" / "train.txt"
    listed.write_text(listed.read_text().replace("train-8\n", "") + "train-9\n")
    change(9, voc_xml(views[9]).replace("</annotation>", "<object><name>cup</name></object></annotation>"))
    data = prepare(source, tmp_path)
    assert reasons(data) == {
        "row-unreadable": 1, "row-unsafe": 1, "size-differs": 1, "annotation-missing": 1, "box-unreadable": 2,
        "label-unknown": 1, "picture-missing": 1, "duplicate-id": 1,
    }  # fmt: skip
    kept = {data.picture_path(s).read_bytes() for s in data.samples("train")}
    assert kept == {views[n].content for n in (4, 5, 6, 9)}
    notes = " ".join(data.manifest.notes)
    assert "1 annotation file name another picture than their own" in notes
    assert "1 annotation file without a usable size" in notes and "1 annotation file in no list" in notes


def test_pictures_beside_annotations_without_lists_are_one_whole_that_is_divided(tmp_path: Path) -> None:
    views = truth(8, ("train",))
    source = write_voc(tmp_path / "set", views)
    for file in (source / "ImageSets" / "Main").glob("*"):
        file.unlink()
    (source / "JPEGImages" / "unmarked.jpg").write_bytes(picture(99, kind="JPEG"))
    data = prepare(source, tmp_path)
    assert {name: info.samples for name, info in data.manifest.splits.items()} == {"train": 7, "val": 1}
    assert reasons(data) == {"annotation-missing": 1}


def test_an_annotation_that_names_a_picture_outside_does_not_reach_it(tmp_path: Path) -> None:
    views = truth()
    source = write_voc(tmp_path / "set", views)
    (tmp_path / "secret.jpg").write_bytes(picture(77, kind="JPEG"))
    (source / "JPEGImages" / "train-0.jpg").unlink()
    (source / "Annotations" / "train-0.xml").write_text(voc_xml(views[0], filename="../../secret.jpg"))
    assert reasons(prepare(source, tmp_path)) == {"picture-outside-folder": 1}


# YOLO


def test_damaged_yolo_lines_are_objects_of_their_own_and_their_pictures_stay(tmp_path: Path) -> None:
    views = truth(10)
    source = write_yolo(tmp_path / "set", views)
    bad = ["2 .5 .5 .1 .1", "-1 .5 .5 .1 .1", "0.5 .5 .5 .1 .1", "0 .5 .5 .1", "0 .5 .5 nan .1", "0 .5 .5 .1 0", "x"]
    bad += ["0 .99 .5 .2 .2", "0 .5 .5 .1 .1 0.87"]
    (source / "labels" / "train" / "train-0.txt").write_text(yolo_lines(views[0]) + "\n" + "\n".join(bad))
    (source / "labels" / "train" / "train-1.txt").write_bytes(b"\xff\xfe0")
    data = prepare(source, tmp_path)
    assert reasons(data) == {
        "label-unknown": 3, "box-unreadable": 3, "box-not-finite": 1, "box-flat": 1, "box-outside": 1,
        "row-unreadable": 1,
    }  # fmt: skip
    assert next(line for line in lines(data.path / "rejected.jsonl") if line["row"].get("line") == bad[0])[
        "source"
    ].endswith("train-0.txt, line 3")
    assert_same_but(data, views, views[1])


def assert_same_but(data: PreparedDataset, views: list[View], *missing: View) -> None:
    assert_same(data, [view for view in views if view not in missing])


def test_a_split_without_one_label_file_is_unlabelled_not_empty(tmp_path: Path) -> None:
    views = truth()
    source = write_yolo(tmp_path / "set", views)
    for file in (source / "labels" / "test").glob("*"):
        file.unlink()
    data = prepare(source, tmp_path)
    assert reasons(data) == {"annotation-missing": 6}
    assert_same_but(data, views, *(view for view in views if view.split == "test"))


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"train": "../train/images", "val": "../val/images"}, id="Roboflow's way up"),
        pytest.param({"path": ".", "train": ["train/images"], "val": "val/images"}, id="a list of folders"),
        pytest.param({"path": "/nowhere/at/all", "train": "train/images", "val": "val/images"}, id="a path elsewhere"),
    ],
)
def test_yolo_folders_are_found_however_the_yaml_names_them(tmp_path: Path, settings: dict[str, Any]) -> None:
    views = truth(6, ("train", "val"))
    source = write_yolo(tmp_path / "set", views)
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (source / split).mkdir(exist_ok=True)
            (source / kind / split).rename(source / split / kind)
    (source / "data.yaml").write_text(json.dumps({**settings, "nc": 2, "names": list(LABELS)}))
    one, other = prepare(source, tmp_path), prepare(source / "data.yaml", tmp_path, out=Path("again"))
    assert_same(one, views)
    assert found(one) == found(other)


def test_boxes_of_a_pose_file_are_read_without_its_points(tmp_path: Path) -> None:
    views = truth()
    source = write_yolo(tmp_path / "set", views)
    settings = json.loads((source / "data.yaml").read_text())
    (source / "data.yaml").write_text(json.dumps({**settings, "kpt_shape": [2, 3]}))
    for file in (source / "labels").rglob("*.txt"):
        file.write_text("".join(f"{line} 0.1 0.1 2 0.2 0.2 1\n" for line in file.read_text().splitlines()))
    data = prepare(source, tmp_path)
    assert_same(data, views)
    assert not reasons(data)


def test_a_list_file_cannot_reach_pictures_outside_unless_links_are_followed(tmp_path: Path) -> None:
    source = write_yolo(tmp_path / "set", truth(6, ("train", "val")))
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "secret.jpg").write_bytes(picture(77, kind="JPEG"))
    settings = json.loads((source / "data.yaml").read_text())
    (source / "more.txt").write_text("../images/secret.jpg\n")
    (source / "data.yaml").write_text(json.dumps({**settings, "train": ["images/train", "more.txt"]}))
    assert reasons(prepare(source, tmp_path)) == {"picture-outside-folder": 1}
    assert not reasons(prepare(source, tmp_path, out=Path("b"), follow_links=True))


def test_pixels_in_yolo_files_are_not_taken_for_shares(tmp_path: Path) -> None:
    views = truth()
    source = write_yolo(tmp_path / "set", views)
    for view in views:
        text = "".join(f"0 {(a + c) / 2} {(b + d) / 2} {c - a} {d - b}\n" for _, a, b, c, d in view.boxes)
        (source / "labels" / view.split / f"{view.stem}.txt").write_text(text)
    with pytest.raises(DataError, match="should be cxcywh_norm") as caught:
        prepare(source, tmp_path)
    assert "--bbox-format cxcywh" in caught.value.hint


@pytest.mark.parametrize("place", ["names", "train", "path"])
def test_aliases_that_stand_for_gigabytes_are_refused_at_once(tmp_path: Path, place: str) -> None:
    write_yolo(tmp_path / "set", truth())
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    settings = {"names": "[cup, pen]", "train": "images/train", "path": ".", place: "[*a11]"}
    text = "\n".join([*lines, *(f"{key}: {value}" for key, value in settings.items())])
    (tmp_path / "set" / "data.yaml").write_text(text)
    if place == "path":
        assert prepare(tmp_path / "set", tmp_path).manifest.counts["samples"] == 6
        return
    with pytest.raises(DataError, match="holds"):
        prepare(tmp_path / "set", tmp_path)


# LabelMe and Label Studio


def test_labelme_pictures_may_lie_beside_their_files_and_shapes_without_area_are_left_out(tmp_path: Path) -> None:
    views = truth()
    source = write_labelme(tmp_path / "set", views, inside=False)
    file = source / "train" / "train-0.json"
    document = json.loads(file.read_text())
    circle = {"label": "cup", "shape_type": "circle", "points": [[80, 60], [83, 64]]}
    point = {"label": "cup", "shape_type": "point", "points": [[5, 5]]}
    file.write_text(json.dumps({**document, "shapes": [circle, point, {**circle, "label": ""}, "x"]}))
    (source / "train" / "train-1.json").write_text('{"shapes": 3, "version": "5"}')
    data = prepare(source, tmp_path)
    assert reasons(data) == {"box-unreadable": 2, "label-unknown": 1, "row-unreadable": 1}
    assert found(data)["train", views[0].content] == [("cup", (75, 55, 85, 65))]


def test_a_rotated_rectangle_of_label_studio_becomes_the_box_around_it(tmp_path: Path) -> None:
    views = truth()
    source = FORMS["label studio"](tmp_path / "set", views)
    file = source / "train.json"
    tasks = json.loads(file.read_text())
    value = {"x": 50, "y": 50, "width": 25, "height": 25, "rotation": 90, "rectanglelabels": ["cup", "pen"]}
    region = {"type": "rectanglelabels", "original_width": 160, "original_height": 120, "value": value}
    brush = {"type": "brushlabels", "value": {"rle": [1, 2]}}
    tasks[0]["annotations"] = [{"result": [region, brush, {**region, "image_rotation": 90}]}, {"result": []}]
    tasks[1]["annotations"] = []
    tasks[2]["data"] = {"image": None}
    tasks[3]["data"] = {"image": "https://example.com/there/train-3.jpg?x=1"}
    file.write_text(json.dumps(tasks))
    data = prepare(source, tmp_path)
    assert found(data)["train", views[0].content] == [("cup", (50, 60, 80, 100)), ("pen", (50, 60, 80, 100))]
    assert ("train", views[3].content) in found(data)
    assert reasons(data) == {"box-unreadable": 2, "annotation-missing": 1, "picture-missing": 1}
    assert any("1 further one left alone" in note for note in data.manifest.notes)


def test_json_min_tells_shapes_by_their_keys_and_takes_the_first_annotation_of_a_task(tmp_path: Path) -> None:
    views = truth()
    source = FORMS["label studio as JSON-MIN"](tmp_path / "set", views)
    records = json.loads((source / "train.json").read_text())
    sides = {"original_width": 160, "original_height": 120}
    shapes = [
        {"points": [[10, 10], [20, 10], [20, 30]], "polygonlabels": ["cup"], **sides},
        {"x": 50, "y": 50, "radiusX": 10, "radiusY": 10, "ellipselabels": ["pen"], **sides},
        {"x": 50, "y": 50, "width": 25, "height": 25, "rotation": 90, **sides},
        {"format": "rle", "rle": [1, 2], "brushlabels": ["cup"], **sides},
    ]
    records[0]["tag"] = shapes
    records[1] |= {"annotation_id": None}
    records.append({**records[2], "annotation_id": 10, "tag": []})
    (source / "train.json").write_text(json.dumps(records))
    data = prepare(source, tmp_path)
    boxes = [("cup", (16, 12, 32, 36)), ("object", (50, 60, 80, 100)), ("pen", (64, 48, 96, 72))]
    assert found(data)["train", views[0].content] == boxes
    assert reasons(data) == {"box-unreadable": 1, "annotation-missing": 1, "duplicate-id": 1}


@pytest.mark.parametrize("form", ["label studio", "label studio as JSON-MIN"])
def test_an_export_of_texts_is_not_taken_for_pictures_without_objects(tmp_path: Path, form: str) -> None:
    source = FORMS[form](tmp_path / "set", [View(v.stem, v.split, v.content, ()) for v in truth()])
    with pytest.raises(DataError, match="without one region") as caught:
        prepare(source, tmp_path)
    assert "CSV" in caught.value.hint


# CSV


def test_damaged_csv_lines_are_objects_of_their_own(tmp_path: Path) -> None:
    views = truth()
    source = write_csv(tmp_path / "set", views)
    with (source / "train.csv").open("a") as file:
        for cells in ("cup,x,1,9,9", ",5,5,9,9", "cup,5,5,5,9", "cup,nan,5,9,9", "cup,5,5,9,", "cup,5,5,500,9"):
            file.write(f"train-0.jpg,160,120,{cells}\r\n")
        file.write("gone.jpg,160,120,cup,5,5,9,9\n,160,120,cup,5,5,9,9\n")
    data = prepare(source, tmp_path)
    assert reasons(data) == {
        "box-unreadable": 2, "label-unknown": 1, "box-flat": 1, "box-not-finite": 1, "box-outside": 1,
        "picture-missing": 2,
    }  # fmt: skip
    assert_same(data, views)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"], ids=["comma", "semicolon", "tab"])
def test_questions_in_csv_are_grounding_with_boxes_in_one_column_or_in_four(tmp_path: Path, delimiter: str) -> None:
    rows = good_rows(tmp_path / "set")
    one = [["image", "expression", "bbox"], *([r["image"], r["expression"], f'"{r["bbox"]}"'] for r in rows)]
    one.append(["0.png", '"the moon, above"', ""])
    four = [["image", "x1", "y1", "x2", "y2", "expression"]]
    four += [[r["image"], *map(str, r["bbox"]), r["expression"]] for r in rows]
    for name, table in (("one", one), ("four", four)):
        text = "\r\n".join(delimiter.join(cells) for cells in table)
        (tmp_path / "set" / f"{name}.csv").write_text(text, encoding="utf-8-sig")
        data = prepare(tmp_path / "set" / f"{name}.csv", tmp_path, val_fraction=0)
        boxes = {s.query: [list(o.bbox) for o in s.objects] for s in data.samples("train")}
        absent = {"the moon, above": []} if name == "one" else {}
        assert boxes == {r["expression"]: [r["bbox"]] for r in rows} | absent


def test_shares_of_the_sides_in_csv_are_found_out(tmp_path: Path) -> None:
    views = truth()
    source = write_csv(tmp_path / "set", views)
    for split in ("train", "val", "test"):
        part = [view for view in views if view.split == split]
        rows = [
            f"{view.stem}.jpg,{label},{a / 160},{c / 160},{b / 120},{d / 120}"
            for view in part
            for label, a, b, c, d in view.boxes
        ]
        (source / f"{split}.csv").write_text("\n".join(["ImageID,LabelName,XMin,XMax,YMin,YMax", *rows]))
    data = prepare(source, tmp_path)
    assert data.manifest.bbox["convention"] == "xyxy_norm"
    assert_same(data, [view for view in views if view.boxes])


def test_names_and_labels_cannot_speak_to_the_terminal(tmp_path: Path) -> None:
    source = write_yolo(tmp_path / "set", truth())
    write_names(source, ("\x1b[31mcup", "pen\x07"))
    (source / "labels" / "train" / "train-0.txt").rename(source / "labels" / "train" / "\x1b]0;x.txt")
    (source / "images" / "train" / "train-0.jpg").rename(source / "images" / "train" / "\x1b]0;x.jpg")
    (source / "labels" / "train" / "\x1b]0;x.txt").write_text("7 .5 .5 .1 .1\n")
    events: list[Any] = []
    data = prepare(source, tmp_path, dry_run=True, emit=events.append)
    said = [event["text"] for event in events if "text" in event]
    assert all(text.isprintable() for text in said)
    assert any("\\x1b[31mcup" in text for text in said) and any("\\x1b]0;x.txt, line 1" in text for text in said)
    assert "\x1b[31mcup" in {o.label for o in data.samples("train")[1].objects}  # the data stay as they are


# Image folders


def test_metadata_at_the_top_tells_splits_by_the_folders_of_the_pictures(tmp_path: Path) -> None:
    rows = []
    for split in ("train", "test"):
        for row in good_rows(tmp_path / "set" / split):
            rows.append({"file_name": f"{split}/{row['image']}", "text": row["expression"], "bbox": row["bbox"]})
    write_records(tmp_path / "set", rows, "metadata.jsonl")
    data = prepare(tmp_path / "set", tmp_path)
    assert detect(tmp_path / "set") == "imagefolder"
    assert {name: info.role for name, info in data.manifest.splits.items()} == {
        "train": "train", "val": "held-out", "test": "test",
    }  # fmt: skip
    assert data.manifest.splits["test"].samples == 10


def test_metadata_in_csv_are_captions_where_no_boxes_are(tmp_path: Path) -> None:
    rows = good_rows(tmp_path / "set")
    text = "\n".join(["file_name,text", *(f'{row["image"]},"a view, {n}"' for n, row in enumerate(rows))])
    (tmp_path / "set" / "metadata.csv").write_text(text)
    data = prepare(tmp_path / "set", tmp_path, val_fraction=0)
    assert [s.captions for s in data.samples("train")] == [(f"a view, {n}",) for n in range(10)]
