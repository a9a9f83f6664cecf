"""Detection asks about all categories, some of them, or a long list in parts; what answers leave out is counted."""

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prepare_inputs import DATA, good_rows, picture, write_records

from qwenft.core.answer import MOST_BOXES, MOST_CATEGORIES
from qwenft.core.errors import UsageError
from qwenft.core.samples import PreparedDataset, Sample
from qwenft.prepare.build import prepare_dataset


def write_coco(folder: Path, num_categories: int, count: int = 10, boxes: int = 3) -> Path:
    """Pictures whose things are drawn from the first half of the categories."""
    draw = random.Random(2)
    (folder / "images").mkdir(parents=True)
    document: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    document["categories"] = [{"id": n, "name": f"thing {n:03d}"} for n in range(num_categories)]
    for number in range(count):
        (folder / "images" / f"{number}.jpg").write_bytes(picture(number, kind="JPEG"))
        document["images"].append({"id": number, "file_name": f"{number}.jpg", "width": 160, "height": 120})
        for _ in range(boxes):
            category = draw.randrange(max(1, num_categories // 2))
            box = [draw.randrange(100), draw.randrange(80), draw.randrange(5, 60), draw.randrange(5, 40)]
            number_of = len(document["annotations"])
            document["annotations"].append(
                {"id": number_of, "image_id": number, "category_id": category, "bbox": box, "iscrowd": 0}
            )
    (folder / "instances.json").write_text(json.dumps(document))
    return folder


def coco36(tmp_path: Path) -> Path:
    real = DATA / "coco36"
    return real if real.is_dir() else write_coco(tmp_path / "generated" / "coco36", 30, 36)


def parted(data: PreparedDataset, split: str, mark: str) -> tuple[list[Sample], list[Sample]]:
    """The samples of a split whose id has the mark, and the others."""
    samples = data.samples(split)
    return [s for s in samples if mark in s.id], [s for s in samples if mark not in s.id]


def test_questions_about_some_categories_have_the_boxes_of_those_and_no_others(tmp_path: Path) -> None:
    source = str(coco36(tmp_path))
    data = prepare_dataset(source, root=tmp_path, subsets=3)
    again = prepare_dataset(source, root=tmp_path, subsets=3, out=tmp_path / "again" / "coco36")
    some, whole = parted(data, "train", "/some-")
    assert again.samples("train") == data.samples("train")
    assert len(some) == 3 * len(whole) == data.manifest.counts["subsets_made"] == data.manifest.counts["questions_made"]
    assert not parted(data, "val", "/some-")[0]  # what is held out is asked in one way
    of_picture = {sample.picture: sample for sample in whole}
    for sample in some:
        full = of_picture[sample.picture]
        assert set(sample.categories) < set(full.categories) and len(sample.categories) <= MOST_CATEGORIES
        assert sample.objects == tuple(item for item in full.objects if item.label in sample.categories)
        assert replace(sample, id="", categories=(), objects=()) == replace(full, id="", categories=(), objects=())
    asked = Counter((sample.picture, frozenset(sample.categories)) for sample in some)
    assert max(asked.values()) == 1


def test_neither_the_length_of_a_list_nor_its_order_tells_what_is_there(tmp_path: Path) -> None:
    some, _ = parted(prepare_dataset(str(coco36(tmp_path)), root=tmp_path, subsets=8), "train", "/some-")
    present = [len({item.label for item in sample.objects}) / len(sample.categories) for sample in some]
    assert sum(share == 0 for share in present) > len(some) / 10  # nothing of it is there
    assert sum(share == 1 for share in present) > len(some) / 20  # all of it is there
    assert sum(0 < share < 1 for share in present) > len(some) / 4  # absent ones among them
    lengths = [len(sample.categories) for sample in some]
    assert Counter(lengths)[1] > 5 and max(lengths) > 20
    for low, high in ((1, 4), (4, 12), (12, 80)):
        empty = [not sample.objects for sample in some if low <= len(sample.categories) < high]
        assert 0.1 < sum(empty) / len(empty) < 0.9
    first = [sample.categories[0] in {i.label for i in sample.objects} for sample in some if len(sample.categories) > 1]
    last = [sample.categories[-1] in {i.label for i in sample.objects} for sample in some if len(sample.categories) > 1]
    assert abs(sum(first) - sum(last)) < len(some) / 8


def test_where_a_picture_was_not_searched_for_all_categories_none_is_made_and_it_is_said(tmp_path: Path) -> None:
    source = write_coco(tmp_path / "scenes", 6)
    document = json.loads((source / "instances.json").read_text())
    for image in document["images"]:
        image["not_exhaustive_category_ids"] = [1]
    (source / "instances.json").write_text(json.dumps(document))
    data = prepare_dataset(str(source), root=tmp_path, subsets=1)
    assert data.manifest.counts["subsets_made"] == 0
    assert any("0 of 9 questions about some of the categories made" in note for note in data.manifest.notes)


def test_expressions_have_no_categories_to_choose_from(tmp_path: Path) -> None:
    folder = tmp_path / "refs"
    data = prepare_dataset(str(write_records(folder, good_rows(folder))), root=tmp_path, subsets=1)
    assert "subsets_made" not in data.manifest.counts


@pytest.mark.parametrize("ratio", [-1, float("nan"), 1000])
def test_a_number_of_questions_that_cannot_be_is_refused(tmp_path: Path, ratio: float) -> None:
    with pytest.raises(UsageError, match="--subsets must be from 0 to 100") as caught:
        prepare_dataset(str(tmp_path), root=tmp_path, subsets=ratio)
    assert caught.value.hint == "--subsets 0.5"


def test_a_list_too_long_for_one_question_is_trained_on_in_parts_and_held_out_whole(tmp_path: Path) -> None:
    source = str(write_coco(tmp_path / "scenes", 2 * MOST_CATEGORIES + 40))
    data = prepare_dataset(source, root=tmp_path)
    (held_out,) = data.samples("val")
    assert len(held_out.categories) == 200 and len(held_out.objects) == 3
    parts, whole = parted(data, "train", "/part-")
    assert not whole and {len(sample.categories) for sample in parts} == {66, 67}
    pictures = {sample.picture for sample in parts}
    objects = [item for sample in parts for item in sample.objects]
    assert len(pictures) == 9 and len(objects) == 27 == data.manifest.counts["objects"] - 3
    for sample in parts:
        assert {item.label for item in sample.objects} <= set(sample.categories) < set(held_out.categories)
    empty = Counter(sample.picture for sample in parts if not sample.objects)
    assert set(empty) == pictures and set(empty.values()) == {1}  # the last third has nothing in any picture
    counts = data.manifest.counts
    assert counts["rows_read"] + counts["questions_made"] == counts["samples"] + counts["rejected"]
    assert counts["parts_made"] == len(parts) - 9
    assert any(note.startswith("9 questions about more than 80 categories divided") for note in data.manifest.notes)


def test_boxes_beyond_what_one_answer_lists_and_repeated_ones_are_counted(tmp_path: Path) -> None:
    source = write_coco(tmp_path / "scenes", 2, count=4, boxes=MOST_BOXES + 9)
    document = json.loads((source / "instances.json").read_text())
    for number, annotation in enumerate(document["annotations"]):
        annotation["bbox"] = [number % 100, number % 71, 20 + number // 100, 9]
    document["annotations"] += [{**a, "id": a["id"] + 5000} for a in document["annotations"] if a["image_id"] == 0]
    (source / "instances.json").write_text(json.dumps(document))
    data = prepare_dataset(str(source), root=tmp_path, val_fraction=0)
    assert data.manifest.counts["objects_not_learned"] == 4 * 9
    assert data.manifest.counts["objects"] == 5 * (MOST_BOXES + 9)  # scores know them all
    notes = "\n".join(data.manifest.notes)
    assert f"4 answers with more than {MOST_BOXES} boxes: the 36 beyond are not learned" in notes
    assert f"{MOST_BOXES + 9} boxes that stand twice in one question are learned once" in notes
