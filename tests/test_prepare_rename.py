"""`prepare --rename`: the user's own names for categories, in boxes, in questions and in what other tools get."""

import json
from pathlib import Path
from typing import Any

import pytest
from prepare_inputs import write_coco
from typer.testing import CliRunner

from qwenft.core.errors import DataError, QwenftError, UsageError
from qwenft.prepare.build import prepare_dataset
from qwenft.prepare.rename import read_names


def test_boxes_questions_and_exports_bear_the_new_name_and_the_manifest_says_what_was_renamed(tmp_path: Path) -> None:
    source = str(write_coco(tmp_path / "coco") / "instances.json")
    plain = prepare_dataset(source, root=tmp_path, out=tmp_path / "plain" / "set")
    data = prepare_dataset(source, root=tmp_path, rename={"toothbrush": "牙刷"}, export=("coco",))
    for split in data.manifest.splits:
        for one, other in zip(plain.samples(split), data.samples(split), strict=True):
            assert other.categories == ("person", "牙刷")
            renamed = [item.label.replace("toothbrush", "牙刷") for item in one.objects]
            assert [item.label for item in other.objects] == renamed
    assert data.manifest.source["renamed"] == {"toothbrush": "牙刷"}
    assert "1 category renamed: toothbrush is now 牙刷 (5)" in data.manifest.notes
    exported = json.loads((data.path / "exports/coco/annotations/instances_train.json").read_text())
    assert [category["name"] for category in exported["categories"]] == ["person", "牙刷"]


def test_two_categories_under_one_name_become_one(tmp_path: Path) -> None:
    data = prepare_dataset(
        str(write_coco(tmp_path / "coco") / "instances.json"),
        root=tmp_path,
        rename={"person": "thing", "toothbrush": "thing"},
    )
    samples = data.samples("train")
    assert {sample.categories for sample in samples} == {("thing",)}
    assert {item.label for sample in samples for item in sample.objects} == {"thing"}


def test_a_name_that_no_row_has_is_an_error_that_names_the_nearest(tmp_path: Path) -> None:
    source = str(write_coco(tmp_path / "coco") / "instances.json")
    with pytest.raises(DataError, match="no row has a category 'tothbrush'") as caught:
        prepare_dataset(source, root=tmp_path, rename={"tothbrush": "brush"})
    assert caught.value.hint == "did you mean 'toothbrush'?" and not list(tmp_path.rglob("manifest.json"))


def test_names_of_a_file_may_hold_commas_and_words_that_yaml_reads_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "names.yaml"
    path.write_text("RBC: cell, red\n0: cup\nno: 不\n", encoding="utf-8")
    assert read_names(str(path)) == {"RBC": "cell, red", "0": "cup", "no": "不"}


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("RBC", UsageError, "'RBC' is no old=new"),
        ("a=b,,c=d", UsageError, "'' is no old=new"),
        ("a=", UsageError, "'a=' is no old=new"),
        ("a=b,a=c", UsageError, "'a' is renamed twice"),
        ("missing.yaml", DataError, "missing.yaml cannot be read"),
        ("list.yaml", DataError, "needs a line `old: new`"),
        ("broken.yaml", DataError, "is no YAML"),
    ],
    ids=["no pair", "empty pair", "no new name", "twice", "no file", "a list", "no yaml"],
)
def test_what_is_no_renaming_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, error: type[QwenftError], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("list.yaml").write_text("- a\n- b\n")
    Path("broken.yaml").write_text("a: [b\n")
    with pytest.raises(error, match=says) as caught:
        read_names(text)
    assert caught.value.hint


def test_the_command_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qwenft.cli import app

    monkeypatch.chdir(tmp_path)
    write_coco(tmp_path / "coco")
    arguments = ["prepare", "--dataset", "coco/instances.json", "--rename", "person=human being", "--json"]
    done: Any = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["source"]["renamed"] == {"person": "human being"}
