"""What people give by mistake ends in one message that says what it is, and in the next thing to do."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from annotated import truth, write_yolo
from prepare_inputs import good_rows, write_records

from qwenft.core.errors import DataError
from qwenft.prepare.build import prepare_dataset

Write = Callable[[Path], object]


def file(name: str, content: bytes = b"?") -> Write:
    return lambda folder: (folder / name).write_bytes(content)


def yolo_without_yaml(folder: Path) -> None:
    write_yolo(folder, truth())
    (folder / "data.yaml").unlink()


def labels_beside_pictures(folder: Path) -> None:
    good_rows(folder, 3)
    (folder / "0.txt").write_text("0 .5 .5 .1 .1")


def folder_in_folder(folder: Path) -> None:
    inner = folder / "the set"
    write_records(inner, good_rows(inner))


def table_without_pictures(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["a", "b"], "label": [0, 1]}), folder / "train.parquet")


def csv_without_names(folder: Path) -> None:
    good_rows(folder, 3)
    (folder / "l.csv").write_text("0.png,100,80,120,99,cup\n1.png,100,80,120,99,cup\n")


MISTAKES = [
    pytest.param(file("set.zip"), "set.zip", "no known format", "unzip {}/set.zip -d set", id="zip"),
    pytest.param(file("my set.tar.gz"), "my set.tar.gz", "no known format", "tar -xf '{}/my set.tar.gz'", id="tar.gz"),
    pytest.param(file("set.zip"), "", "no known format", "unzip {}/set.zip", id="a folder with an archive"),
    pytest.param(file("a.xlsx"), "a.xlsx", "no known format", "save the sheet as CSV", id="spreadsheet"),
    pytest.param(file("refs(unc).p"), "refs(unc).p", "no known format", "a pickle could run code", id="pickle"),
    pytest.param(lambda folder: None, "", "no known format", "it is empty", id="empty folder"),
    pytest.param(yolo_without_yaml, "", "no known format", "YOLO needs {}/data.yaml", id="YOLO without data.yaml"),
    pytest.param(labels_beside_pictures, "", "no known format", "YOLO needs {}/data.yaml", id="texts beside pictures"),
    pytest.param(lambda folder: good_rows(folder, 3), "", "no known format", "metadata.jsonl", id="pictures alone"),
    pytest.param(lambda folder: good_rows(folder / "cat", 3) + good_rows(folder / "dog", 3), "", "no known format",
                 "metadata.jsonl", id="a folder a class"),
    pytest.param(folder_in_folder, "", "no known format", "--dataset '{}/the set'", id="one folder too high"),
    pytest.param(csv_without_names, "l.csv", "no names in its first line", "filename,xmin", id="CSV without names"),
    pytest.param(table_without_pictures, "", "no column for image among text, label", "image=NAME", id="text"),
    pytest.param(file("a.jsonl", '{"image": "0.png"}'.encode("utf-16")), "a.jsonl", "neither", "UTF-8", id="UTF-16"),
    pytest.param(file("a.json", b"[[1, 2]]"), "a.json", "item 1: expected an object, found list", "", id="lists"),
    pytest.param(file("a.jsonl", b"{'image': '0.png'}\n"), "a.jsonl", "line 1, column 2", "export it", id="Python"),
    pytest.param(file("a.json", json.dumps([{"conversations": [
        {"from": "human", "value": "hello"}, {"from": "gpt", "value": "hi"}]}]).encode()), "a.json",
        "no picture is named", "", id="a chat without pictures"),
]  # fmt: skip


@pytest.mark.parametrize(("write", "name", "said", "hint"), MISTAKES)
def test_a_mistake_is_named_with_the_next_thing_to_do(
    tmp_path: Path, write: Write, name: str, said: str, hint: str
) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    write(folder)
    with pytest.raises(DataError) as caught:
        prepare_dataset(str(folder / name if name else folder), root=tmp_path)
    assert said in str(caught.value)
    assert hint.format(folder) in caught.value.hint
    assert not list((tmp_path / "data").glob("*"))
