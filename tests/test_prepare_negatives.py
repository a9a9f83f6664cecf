"""`prepare --negatives`: only what the annotations prove, checked by a script that shares no code with the maker."""

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from annotation_judge import CHINESE, ENGLISH, Judge, coco36, write_scenes
from prepare_inputs import good_rows, write_records

from qwenft.core.errors import UsageError
from qwenft.core.samples import PreparedDataset, Sample, SceneObject
from qwenft.prepare.build import prepare_dataset
from qwenft.prepare.questions import Wanted, more_questions
from qwenft.prepare.splits import Division
from qwenft.prepare.swaps import COLOURS, side_swaps, worded_swaps


def all_samples(data: PreparedDataset) -> list[Sample]:
    return [sample for split in data.manifest.splits for sample in data.samples(split)]


def made_in(data: PreparedDataset) -> list[Sample]:
    return [sample for sample in all_samples(data) if sample.negative]


def positives_in(data: PreparedDataset) -> list[Sample]:
    return [sample for sample in all_samples(data) if "/positive/" in sample.id]


SOURCES = pytest.mark.parametrize(
    ("names", "ratio"), [((), 0.5), (ENGLISH, 3.0), (CHINESE, 3.0)], ids=["coco36", "made-up, English", "made-up, 中文"]
)


@SOURCES
def test_every_negative_is_refuted_by_the_annotations(tmp_path: Path, names: tuple[str, ...], ratio: float) -> None:
    source = write_scenes(tmp_path / "scenes", names) if names else coco36(tmp_path)
    data, judge = prepare_dataset(str(source), root=tmp_path, negatives=ratio), Judge(source)
    found = made_in(data)
    for sample in found:
        text = str(sample.query)
        assert sample.objects == () and judge.refutes(sample.picture, text), (text, judge.boxes[sample.picture])
        present = {name for name, _ in judge.boxes[sample.picture]}
        if sample.negative == "absent_category":
            assert text in judge.names
        elif sample.negative == "foreign_expression":
            assert not any(name in text for name in present)
        else:
            assert any(name in text for name in present) or sample.negative == "wrong_attribute"
    kinds = {str(sample.negative) for sample in found}
    assert {"absent_category", "wrong_size", "wrong_position", "wrong_relation", "foreign_expression"} <= kinds
    assert "wrong_attribute" in kinds or not names
    texts = [(sample.picture, sample.query) for sample in all_samples(data) if sample.task == "grounding"]
    assert len(set(texts)) == len(texts)


@SOURCES
def test_what_a_question_looks_like_does_not_tell_its_answer(
    tmp_path: Path, names: tuple[str, ...], ratio: float
) -> None:
    """To each negative a positive of the same form, whose boxes are all that the annotations say is meant.

    So whoever knows the task, the form, the language and the length of a question's form guesses as well as a coin.
    """
    source = write_scenes(tmp_path / "scenes", names) if names else coco36(tmp_path)
    data, judge = prepare_dataset(str(source), root=tmp_path, negatives=ratio), Judge(source)
    for sample in positives_in(data):
        meaning = judge.meaning(sample.picture, str(sample.query))
        assert None not in {verdict for _, verdict in meaning}, sample.query
        true = sorted([round(x, 1), round(y, 1)] for (x, y, _, _), meant in meaning if meant)
        assert true and true == sorted([round(v, 1) for v in item.bbox[:2]] for item in sample.objects)
        assert {item.label for item in sample.objects} == {sample.query}
    for split in data.manifest.splits:
        asked = [sample for sample in data.samples(split) if sample.task == "grounding"]
        answers: dict[str, Counter[bool]] = {}
        for sample in asked:
            answers.setdefault(judge.form(str(sample.query)), Counter())[bool(sample.objects)] += 1
        right = sum(max(count.values()) for count in answers.values())  # the best guess that a form allows
        assert right == len(asked) / 2, answers
        if split == "train":
            assert len(answers) > 5
            assert not names or all(any(re.search(w, form) for form in answers) for w in ("wider|宽", "tiny|小X"))
    about = Counter(next(n for n in judge.names if n in str(s.query)) for s in positives_in(data))
    assert max(about.values()) <= len(positives_in(data)) / 2  # not one category's
    assert data.manifest.counts["positives_made"] == data.manifest.counts["negatives_made"] == len(positives_in(data))


def test_the_judge_of_these_tests_tells_true_from_false(tmp_path: Path) -> None:
    judge = Judge(write_scenes(tmp_path / "scenes"))
    content = next(key for key, boxes in judge.boxes.items() if boxes)
    name, (x, _, w, _) = judge.boxes[content][0]
    side = "left" if x + w / 2 <= 80 else "right"
    assert not judge.refutes(content, name)
    assert not judge.refutes(content, f"{name} in the {side} half of the picture")
    assert judge.form(f"{name} above the cup") == "X above the X"
    with pytest.raises(AssertionError):
        judge.refutes(content, "something else")


@pytest.mark.parametrize("ratio", [0.25, 0.5, 2.0])
def test_the_ratio_is_kept_in_each_split_and_counted_by_kind(tmp_path: Path, ratio: float) -> None:
    data = prepare_dataset(str(write_scenes(tmp_path / "scenes")), root=tmp_path, negatives=ratio)
    for split in data.manifest.splits:
        samples = data.samples(split)
        own = [sample for sample in samples if "/positive/" not in sample.id]
        positives = sum(any(not item.crowd for item in sample.objects) for sample in own)
        assert sum(sample.negative is not None for sample in samples) == round(ratio * positives)
    counts, kinds = data.manifest.counts, Counter(str(sample.negative) for sample in made_in(data))
    assert {kind: counts[f"negatives_{kind}"] for kind in kinds} == kinds
    assert counts["negatives_made"] == kinds.total()
    assert counts["questions_made"] == counts["negatives_made"] + counts["positives_made"]
    assert counts["rows_read"] + counts["questions_made"] == counts["samples"] + counts["rejected"]
    assert counts["objects_repeated"] == sum(len(sample.objects) for sample in positives_in(data))
    said = [note for note in data.manifest.notes if "made for" in note]
    assert len(said) == 1 and said[0].startswith(f"{kinds.total()} negatives made for ")


def test_the_same_seed_gives_the_same_negatives_and_leaves_the_samples_alone(tmp_path: Path) -> None:
    source = str(write_scenes(tmp_path / "scenes"))
    plain = all_samples(prepare_dataset(source, root=tmp_path, out=tmp_path / "plain" / "set"))
    one, again, other = (
        prepare_dataset(source, root=tmp_path, out=tmp_path / out / "set", negatives=1, seed=seed)
        for out, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert all_samples(again) == all_samples(one) and made_in(one) != []
    assert [sample for sample in all_samples(again) if sample.task == "detection"] == plain
    assert {(s.picture, s.query) for s in made_in(other)} != {(s.picture, s.query) for s in made_in(one)}


def test_exports_of_boxes_hold_no_questions_and_those_of_conversations_all(tmp_path: Path) -> None:
    """A phrase that was asked for is no category of a COCO or YOLO data set."""
    source = str(write_scenes(tmp_path / "scenes"))
    data = prepare_dataset(source, root=tmp_path, negatives=1, export=("coco", "yolo", "qwen"))
    exports, number = data.path / "exports", data.manifest.counts["questions_made"]
    names = [
        c["name"] for c in json.loads((exports / "coco/annotations/instances_train.json").read_text())["categories"]
    ]
    assert sorted(names) == sorted(ENGLISH)
    assert "half of the picture" not in (exports / "yolo/data.yaml").read_text()
    asked = [row for split in data.manifest.splits for row in json.loads((exports / f"qwen/{split}.json").read_text())]
    assert len(asked) == data.manifest.counts["samples"]
    for form in ("coco", "yolo"):
        assert f"exports/{form} cannot hold {number} samples of other tasks" in data.manifest.notes


def test_a_ratio_beyond_what_can_be_proved_is_said_with_both_numbers(tmp_path: Path) -> None:
    data = prepare_dataset(str(write_scenes(tmp_path / "scenes", ("dog", "cup"), 8)), root=tmp_path, negatives=50)
    number = data.manifest.counts["negatives_made"]
    assert 0 < number < 300
    assert any(
        re.match(rf"{number} of [0-9]+ negatives made: the annotations prove no more", n) for n in data.manifest.notes
    )


# What proves nothing


def change(folder: Path, edit: Any) -> Path:
    path = folder / "instances.json"
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))
    return folder


def spoil(document: dict[str, Any]) -> None:
    """A flat box in every picture with an even number: what it was is not taken, so it may be anything."""
    for image in document["images"][::2]:
        flat = {"id": 5000 + image["id"], "image_id": image["id"], "category_id": 1, "bbox": [5, 5, 0, 9], "iscrowd": 0}
        document["annotations"].append(flat)


def federate(document: dict[str, Any]) -> None:
    for image in document["images"][::2]:
        image |= {"neg_category_ids": [], "not_exhaustive_category_ids": [2]}


@pytest.mark.parametrize("edit", [spoil, federate], ids=["a rejected annotation", "LVIS: searched for some only"])
def test_a_picture_that_was_not_annotated_in_full_gives_no_negative(tmp_path: Path, edit: Any) -> None:
    source = change(write_scenes(tmp_path / "scenes"), edit)
    data, judge = prepare_dataset(str(source), root=tmp_path, negatives=3), Judge(source)
    asked = {judge.images[sample.picture]["id"] % 2 for sample in made_in(data)}
    assert asked == {1}


def test_headings_and_names_within_names_are_never_called_absent(tmp_path: Path) -> None:
    """Roboflow's first category is a heading without boxes; who boxed a `hot dog` may have meant `dog` too."""
    source = write_scenes(tmp_path / "scenes", ("dog", "hot dog", "cup"))
    change(source, lambda document: document["categories"].append({"id": 99, "name": "things"}))
    data, judge = prepare_dataset(str(source), root=tmp_path, negatives=20), Judge(source)
    for sample in made_in(data):
        text = str(sample.query)
        assert "things" not in text
        if sample.negative == "absent_category" and text in ("dog", "hot dog"):
            assert not {name for name, _ in judge.boxes[sample.picture]} & {"dog", "hot dog"}
    assert any(sample.query == "dog" for sample in made_in(data))


def test_expressions_alone_prove_nothing_so_none_is_made_and_it_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "refs"
    source = write_records(folder, good_rows(folder, 12))
    data = prepare_dataset(str(source), root=tmp_path, negatives=0.5)
    assert made_in(data) == [] and data.manifest.counts["negatives_made"] == 0
    assert any(
        "nothing proves that a thing is absent" in note and "--negatives-unproved" in note
        for note in data.manifest.notes
    )


def write_refs(folder: Path, *, extract: bool) -> Path:
    """RefCOCO's own form: two expressions a picture, beside all that COCO boxes in it, or an extract of that."""
    write_scenes(folder, ENGLISH)
    document = json.loads((folder / "instances.json").read_text())
    refs: list[dict[str, Any]] = []
    for item in document["annotations"][::3]:
        name = ENGLISH[item["category_id"] - 1]
        sentences = [{"sent": f"the shiny {name}"}, {"sent": f"{name} number {item['id']}"}]
        ref = {"ref_id": item["id"], "image_id": item["image_id"], "ann_id": item["id"], "sentences": sentences}
        refs.append({**ref, "split": ("train", "val")[item["image_id"] % 2], "file_name": f"{item['image_id']}.jpg"})
    if extract:
        document["annotations"] = document["annotations"][::3]
    (folder / "instances.json").write_text(json.dumps(document))
    (folder / "refs(unc).json").write_text(json.dumps(refs))
    return folder


def test_expressions_beside_all_of_cocos_boxes_give_negatives_that_those_refute(tmp_path: Path) -> None:
    source = write_refs(tmp_path / "refcoco", extract=False)
    data, judge = prepare_dataset(str(source), root=tmp_path, negatives=2), Judge(source)
    found = made_in(data)
    assert data.manifest.source["kind"] == "refs" and {sample.task for sample in found} == {"grounding"}
    for sample in found:
        text = str(sample.query)
        if sample.negative == "foreign_expression":
            name = re.sub(r"^the shiny | number [0-9]+$", "", text)
            assert name in judge.names and not judge.of(sample.picture, name)
        else:
            assert judge.refutes(sample.picture, text), (text, judge.boxes[sample.picture])
    assert {"absent_category", "foreign_expression", "wrong_position"} <= {sample.negative for sample in found}
    composed = Counter(judge.form(str(s.query)) for s in found if s.negative != "foreign_expression")
    assert Counter(judge.form(str(s.query)) for s in positives_in(data)) == composed  # expressions are their own


def test_an_extract_of_the_annotations_proves_nothing(tmp_path: Path) -> None:
    data = prepare_dataset(str(write_refs(tmp_path / "refcoco", extract=True)), root=tmp_path, negatives=2)
    assert made_in(data) == []
    assert any("nothing proves that a thing is absent" in note for note in data.manifest.notes)


def test_unproved_negatives_are_made_on_demand_and_bear_the_mark(tmp_path: Path) -> None:
    folder = tmp_path / "refs"
    words = ("zebra", "kettle", "ladder", "window", "pillow", "rocket", "basket", "tomato", "camera", "violin")
    rows = [{**row, "expression": f"the {word}"} for row, word in zip(good_rows(folder), words, strict=True)]
    data = prepare_dataset(str(write_records(folder, rows)), root=tmp_path, negatives=0.5, negatives_unproved=True)
    own = {sample.picture: sample.query for sample in all_samples(data) if not sample.negative}
    found = made_in(data)
    assert len(found) == data.manifest.counts["negatives_unproved_foreign_expression"] >= 4
    for sample in found:
        assert sample.negative == "unproved_foreign_expression" and sample.objects == ()
        assert sample.query != own[sample.picture] and sample.query in own.values()
    assert any("that nothing proves" in note for note in data.manifest.notes)


@pytest.mark.parametrize(
    "options",
    [{"negatives": -0.5}, {"negatives": float("nan")}, {"negatives": 1000}, {"negatives_unproved": True}],
    ids=["below 0", "nan", "too many", "unproved without a ratio"],
)
def test_a_ratio_that_cannot_be_is_refused_with_a_hint(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="--negatives") as caught:
        prepare_dataset(str(tmp_path), root=tmp_path, **options)
    assert caught.value.hint == "--negatives 0.5"


# Expressions beside annotations: what is true of a picture is known, and what is in it


def sample_of(number: int, task: Any, text: str, objects: tuple[SceneObject, ...]) -> Sample:
    image = f"images/ab/{number:064d}.png"
    categories = ("car", "tree", "zebra") if task == "detection" else ()
    return Sample(f"{task}/{number}/{text}", task, image, 160, 120, text or None, objects, categories)


def mixed(text: str, *, several: bool = False, first: int = 0) -> list[Sample]:
    """Six pictures with a car (or two) and a tree, all on the left, and `text` for a car; six with one zebra."""
    samples = []
    boxes = [("car", (10.0, 20.0, 60.0, 50.0)), ("tree", (5.0, 70.0, 40.0, 110.0)), ("car", (70.0, 60.0, 79.0, 90.0))]
    for number in range(first, first + 12):
        things = boxes[: 3 if several else 2] if number < first + 6 else [("zebra", (100.0, 60.0, 150.0, 110.0))]
        objects = tuple(SceneObject(box, label) for label, box in things)
        asked = text if number < first + 6 else f"the zebra number {number}"
        samples.append(sample_of(number, "detection", "", objects))
        samples.append(sample_of(number, "grounding", asked, (replace(objects[0], label=asked),)))
    return samples


def negatives_for(ratio: float = 4.0, **splits: list[Sample]) -> dict[str, list[Sample]]:
    division = Division({name: tuple(samples) for name, samples in splits.items()}, {}, ())
    made = more_questions(division, "set", Wanted(negatives=ratio)).division
    return {name: [sample for sample in samples if sample.negative] for name, samples in made.samples.items()}


@pytest.mark.parametrize(
    ("text", "kind", "false"),
    [
        pytest.param("the red car", "wrong_attribute", "the blue car", id="colour"),
        pytest.param("the big car", "wrong_size", "the small car", id="size"),
        pytest.param("the car on the left", "wrong_position", "the car on the right", id="side"),
        pytest.param("the red car that is not parked", "wrong_attribute", None, id="with a negation"),
        pytest.param("the car by a red fence", "wrong_attribute", None, id="said of something else"),
        pytest.param("the car left of the tree", "wrong_position", None, id="no side of the picture"),
        pytest.param("the car on the right", "wrong_position", None, id="a side on which it is not"),
        pytest.param("the red one", "wrong_attribute", None, id="category not named"),
    ],
)
def test_one_word_of_a_true_expression_is_exchanged_where_that_makes_it_false(
    text: str, kind: str, false: str | None
) -> None:
    found = {str(sample.query) for sample in negatives_for(train=mixed(text))["train"] if sample.negative == kind}
    composed = re.compile(r".* half of the picture|tiny .*")
    assert {query for query in found if not composed.fullmatch(query)} == ({false} if false else set())


def test_a_word_is_not_exchanged_where_the_category_is_there_twice() -> None:
    """Beside the red car stands another one: it may well be blue."""
    found = negatives_for(train=mixed("the red car", several=True))["train"]
    assert found and "the blue car" not in {sample.query for sample in found}


def test_expressions_of_other_pictures_come_from_the_same_split_and_mean_what_is_absent() -> None:
    splits = {"train": mixed("the red car"), "val": mixed("the shiny car", first=100)}
    seen = 0
    for split, found in negatives_for(2.0, **splits).items():
        there = {s.picture: {o.label for o in s.objects} for s in splits[split] if s.task == "detection"}
        true = {s.query for s in splits[split] if s.task == "grounding"}
        for sample in found:
            assert sample.task == "grounding" and sample.picture in there
            if sample.negative == "foreign_expression":
                seen += 1
                assert sample.query in true
                assert ("zebra" if "zebra" in str(sample.query) else "car") not in there[sample.picture]
    assert seen >= 8


def test_of_a_crowd_only_its_presence_is_known() -> None:
    crowd = (SceneObject((5.0, 5.0, 30.0, 30.0), "car", crowd=True), SceneObject((90.0, 70.0, 99.0, 99.0), "tree"))
    other = (SceneObject((9.0, 7.0, 19.0, 19.0), "tree"),)
    samples = [sample_of(number, "detection", "", crowd if number < 3 else other) for number in range(6)]
    found = negatives_for(30.0, train=samples)["train"]
    asked = {str(sample.query) for sample in found if sample.picture in {s.picture for s in samples[:3]}}
    assert "tree in the left half of the picture" in asked and not any("car" in text for text in asked)


def test_what_another_split_knows_of_the_same_picture_counts_too() -> None:
    """The zebra is boxed in the copy in val only: nothing in train may call it absent."""
    alone = [sample_of(0, "detection", "", (SceneObject((1.0, 1.0, 20.0, 20.0), "car"),)), *mixed("the car", first=50)]
    copy = [sample_of(0, "detection", "", (SceneObject((80.0, 60.0, 150.0, 110.0), "zebra"),))]
    found = negatives_for(9.0, train=alone, val=copy)
    asked = {str(s.query or s.categories[0]) for part in found.values() for s in part if s.picture == alone[0].picture}
    assert asked and "zebra" not in asked and "car" not in asked and not any("zebra number" in text for text in asked)


def test_negatives_of_the_source_stay_as_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "refs"
    rows = good_rows(folder, 12)
    rows[3]["bbox"] = None
    data = prepare_dataset(str(write_records(folder, rows)), root=tmp_path, negatives=1)
    (own,) = [sample for sample in all_samples(data) if not sample.objects]
    assert own.negative is None and own.query == "thing 3" and "negative" not in own.to_json()


def test_a_sample_keeps_the_kind_on_its_way_to_disk_and_older_lines_are_read() -> None:
    sample = Sample("s/0", "grounding", f"images/ab/{'ab' * 32}.png", 9, 9, "no dog", negative="absent_category")
    value = sample.to_json()
    assert value["negative"] == "absent_category" and Sample.from_json(json.loads(json.dumps(value))) == sample
    del value["negative"]
    assert Sample.from_json(value).negative is None


@pytest.mark.parametrize(
    ("text", "label", "expected"),
    [
        ("红色的汽车", "汽车", "蓝色的汽车"),
        ("白色汽车", "汽车", "黑色汽车"),
        ("大的狗", "狗", "小的狗"),
        ("The Tall person", "person", "The short person"),
        ("the man in a hat", "person", "the woman in a hat"),
        ("the redcar", "car", None),
        ("the biggest car", "car", None),
    ],
)
def test_words_before_a_category_are_exchanged(text: str, label: str, expected: str | None) -> None:
    assert [found for _, found in worded_swaps(text, label)] == ([expected] if expected else [])


@pytest.mark.parametrize(
    ("text", "label", "expected"),
    [
        ("左边的狗", "狗", ("left", "右边的狗")),
        ("upper dog", "dog", ("top", "lower dog")),
        ("the dog on the left side", "dog", ("left", "the dog on the right side")),
        ("the man with his left hand up", "man", None),
        ("树左边的狗", "狗", None),
    ],
)
def test_a_side_of_the_picture_is_exchanged(text: str, label: str, expected: tuple[str, str] | None) -> None:
    assert side_swaps(text, label) == ([expected] if expected else [])


def test_no_colour_becomes_itself_or_one_that_leads_nowhere() -> None:
    assert all(one != other and other in COLOURS for one, other in COLOURS.items())
