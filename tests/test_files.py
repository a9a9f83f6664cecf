"""Whole-or-absent writing under failures and a kill, and JSON and JSONL read by content."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenft.core import files
from qwenft.core.errors import DataError
from qwenft.core.files import (
    jsonable,
    read_json,
    read_members,
    read_records,
    replace_folder,
    to_line,
    whole_folder,
    write_json,
    write_jsonl,
    write_whole,
)

ROWS = [{"a": 1, "text": "红，\n\"'"}, {"a": 2.5, "deep": [{"b": None}]}]


def values(path: Path) -> list:
    return [record.value for record in read_records(path)]


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every array is large, and a chunk holds a few characters."""
    monkeypatch.setattr(files, "STREAM_BYTES", 0)
    monkeypatch.setattr(files, "CHUNK_CHARACTERS", 3)


CONTENT = [
    ("array", json.dumps(ROWS)),
    ("indented array", json.dumps(ROWS, indent=2)),
    ("array with a BOM", "\ufeff" + json.dumps(ROWS)),
    ("array with CRLF", json.dumps(ROWS, indent=1).replace("\n", "\r\n")),
    ("lines", "\n".join(map(json.dumps, ROWS))),
    ("lines with a BOM, CRLF and blank lines", "\ufeff\r\n" + "\r\n\r\n".join(map(json.dumps, ROWS)) + "\r\n\r\n"),
    ("under data", json.dumps({"version": 1, "data": ROWS})),
    ("under annotations, indented", json.dumps({"annotations": ROWS, "info": {}}, indent=2)),
]


@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.txt"])
@pytest.mark.parametrize("text", [row[1] for row in CONTENT], ids=[row[0] for row in CONTENT])
def test_records_are_read_by_content_not_by_name(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_bytes(text.encode())
    assert values(tmp_path / name) == ROWS


@pytest.mark.usefixtures("streamed")
@pytest.mark.parametrize("text", [row[1] for row in CONTENT], ids=[row[0] for row in CONTENT])
def test_large_documents_are_read_as_small_ones(tmp_path: Path, text: str) -> None:
    (tmp_path / "x").write_bytes(text.encode())
    assert values(tmp_path / "x") == ROWS


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 1}', [{"a": 1}]),
        ('{\n "a": 1\n}\n', [{"a": 1}]),
        ('{"data": [{"a": 1}], "rows": [{"a": 2}]}', [{"data": [{"a": 1}], "rows": [{"a": 2}]}]),
        ("[]", []),
        (" [ ] ", []),
    ],
    ids=["one object", "one object on lines", "two candidates: the object is the record", "empty", "empty with spaces"],
)
def test_small_documents(tmp_path: Path, text: str, expected: list) -> None:
    write_whole(tmp_path / "x", text)
    assert values(tmp_path / "x") == expected


def test_where_a_record_stood_is_told(tmp_path: Path) -> None:
    write_whole(tmp_path / "x.jsonl", '{"a": 1}\n\n{"a": 2}\n')
    write_whole(tmp_path / "x.json", '[{"a": 1}, {"a": 2}]')
    assert [record.where for record in read_records(tmp_path / "x.jsonl")] == ["line 1", "line 3"]
    assert [record.where for record in read_records(tmp_path / "x.json")] == ["item 1", "item 2"]


BROKEN = [
    ("trailing comma in an array", '[{"a": 1},\n {"a": 2},\n]', "line 3, column 1", "comma"),
    ("trailing comma in an object", '[{"a": 1},\n {"a": 2,}]', "line 2, column 10", "comma"),
    ("a missing comma", '[{"a": 1}\n {"a": 2}]', "line 2, column 2", "mend"),
    ("cut off", '[{"a": 1},\n {"a": ', "line 2, column", "mend"),
    ("no end", '[{"a": 1}', "line 1, column 10", "mend"),
    ("something behind the end", '[{"a": 1}]\n]', "line 2, column 1", "mend"),
    ("a bare word", '[{"a": 1},\n\n  {"a": dog}]', "line 3, column 9", "mend"),
]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("text", "where", "hint"), [row[1:] for row in BROKEN], ids=[row[0].replace(" ", "-") for row in BROKEN]
)
def test_broken_json_is_an_error_with_line_and_column(
    tmp_path: Path, request: pytest.FixtureRequest, text: str, where: str, hint: str, stream: bool
) -> None:
    if stream:
        request.getfixturevalue("streamed")
    write_whole(tmp_path / "x.json", "\ufeff" + text.replace("\n", "\r\n"))
    with pytest.raises(DataError, match=where) as caught:
        values(tmp_path / "x.json")
    assert hint in caught.value.hint


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_an_object_is_read_member_by_member_as_json_reads_it_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(files, "CHUNK_CHARACTERS", chunk)
    document = {"year": 2017, "none": [], "rows": [*ROWS, 12345, [1, [2]]], "of": {"a": [1]}, "last": -1.25e3}
    for text in (json.dumps(document), json.dumps(document, indent=1).replace("\n", "\r\n"), "{}", " { } "):
        write_whole(tmp_path / "x.json", "\ufeff" + text)
        found = {
            key: value if isinstance(value, (int, float, dict)) else list(value)
            for key, value in read_members(tmp_path / "x.json")
        }
        assert found == json.loads(text)


def test_an_array_that_nobody_reads_is_stepped_over(tmp_path: Path) -> None:
    write_whole(tmp_path / "x.json", '{"a": [{"b": [1, 2]}, "]"], "c": [3]}')
    assert [(key, next(value)) for key, value in read_members(tmp_path / "x.json") if key == "c"] == [("c", 3)]


@pytest.mark.parametrize(
    ("text", "where"),
    [
        pytest.param('{"a": [1,\n 2,]}', "line 2, column 4", id="trailing comma in an array"),
        pytest.param('{"a": [1],\n}', "line 2, column 1", id="trailing comma in an object"),
        pytest.param('{"a": [1]\n "b": 2}', "line 2, column 2", id="a missing comma"),
        pytest.param('{"a" [1]}', "line 1, column 6", id="a missing colon"),
        pytest.param('{"a": [{"b": dog}]}', "line 1, column 14", id="a bare word"),
        pytest.param('{"a": [1,', "line 1, column 10", id="cut off"),
        pytest.param('{"a": 1} x', "line 1, column 10", id="something behind the end"),
        pytest.param("{a: 1}", "line 1, column 2", id="a key without quotes"),
    ],
)
def test_a_broken_member_is_an_error_with_line_and_column(tmp_path: Path, text: str, where: str) -> None:
    write_whole(tmp_path / "x.json", text)
    with pytest.raises(DataError, match=where):
        [list(value) if not isinstance(value, int) else value for _, value in read_members(tmp_path / "x.json")]


@pytest.mark.parametrize(
    ("text", "where"),
    [
        pytest.param('{"a": [1, 2\n\n', "line 1, column 12", id="the only line"),
        pytest.param('{"a": 1}\n{"a": [1\n', "line 2, column 9", id="the last line"),
    ],
)
def test_a_line_that_was_cut_off_is_named_where_it_ends(tmp_path: Path, text: str, where: str) -> None:
    write_whole(tmp_path / "x.jsonl", text)
    with pytest.raises(DataError, match=f"{where}: broken JSON .*, but the file ends"):
        values(tmp_path / "x.jsonl")


def test_a_broken_line_of_jsonl_is_named(tmp_path: Path) -> None:
    write_whole(tmp_path / "x.jsonl", '{"a": 1}\n{"a": 2,}\n{"a": 3}\n')
    with pytest.raises(DataError, match="line 2, column 9"):
        values(tmp_path / "x.jsonl")
    write_whole(tmp_path / "x.jsonl", '{"a": 1,}\n{"a": 2}\n')
    with pytest.raises(DataError, match="line 1, column 9"):
        values(tmp_path / "x.jsonl")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<html>", "neither JSON nor JSONL"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b'{"a": 1}\n{"a": "\xff"}', "not UTF-8"),
        (b'[{"a": "\xff"}]', "not UTF-8"),
        (b"[1, 2]", "item 1: expected an object, found int"),
        (b'{"a": 1}\n[2]\n', "line 2: expected an object, found list"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"[" * 100_000 + b"\n{}", "nested too deeply|broken JSON"),
        (b'[{"a": ' + b"1" * 5000 + b"}]", "broken JSON.*digits"),
    ],
    ids=["empty", "html", "latin-1", "latin-1 line", "latin-1 array", "numbers", "a list on a line", "deep array",
         "deep object", "huge number"],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_what_is_no_json_is_our_error_never_a_traceback(
    tmp_path: Path, request: pytest.FixtureRequest, content: bytes, message: str, stream: bool
) -> None:
    if stream:
        request.getfixturevalue("streamed")
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(DataError, match=message):
        values(tmp_path / "x")


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        values(tmp_path / "none")
    with pytest.raises(DataError, match="is a folder"):
        values(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        read_json(tmp_path / "none")
    with pytest.raises(DataError, match="cannot be read"):
        read_json(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@given(st.lists(st.dictionaries(st.text(), JSON, max_size=4), max_size=5), st.sampled_from([None, 1]))
def test_a_streamed_array_gives_what_the_whole_one_gives(rows: list, indent: int | None) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder) / "x.json"
        write_whole(path, json.dumps(rows, indent=indent, ensure_ascii=False))
        assert values(path) == rows
        patch.setattr(files, "STREAM_BYTES", 0)
        patch.setattr(files, "CHUNK_CHARACTERS", 2)
        assert values(path) == rows


def test_a_stream_takes_the_numbers_that_the_whole_reading_takes(tmp_path: Path, streamed: None) -> None:
    write_whole(tmp_path / "x.json", '[{"id": 123456789012345678901234567890, "nan": NaN, "x": 1e-3}]')
    (row,) = values(tmp_path / "x.json")
    assert (row["id"], row["x"]) == (123456789012345678901234567890, 0.001)
    assert math.isnan(row["nan"])


def test_a_stream_is_not_held_whole_and_an_endless_item_ends(
    tmp_path: Path, streamed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_ITEM_CHARACTERS", 1000)
    monkeypatch.setattr(files, "CHUNK_CHARACTERS", 100)
    write_whole(tmp_path / "x.json", '[{"a": 1}, {"a": "' + "x" * 100_000)
    records = read_records(tmp_path / "x.json")
    assert next(records).value == {"a": 1}
    with pytest.raises(DataError, match="line 1, column 18: broken JSON"):
        next(records)


def test_jsonl_comes_back_and_nan_is_refused(tmp_path: Path) -> None:
    assert write_jsonl(tmp_path / "deep" / "x.jsonl", ROWS) == 2
    assert values(tmp_path / "deep" / "x.jsonl") == ROWS
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "y.json", {"a": math.nan})
    assert not (tmp_path / "y.json").exists()


def test_foreign_values_are_made_fit_for_a_line() -> None:
    row = {"bytes": b"abc", "nan": math.nan, 3: (1, {2}), "path": Path("a/b"), "ok": [True, None, 1.5, "x"]}
    expected = {"bytes": "<3 bytes>", "nan": "nan", "3": [1, [2]], "path": "a/b", "ok": [True, None, 1.5, "x"]}
    assert json.loads(to_line(jsonable(row))) == expected
    assert to_line(jsonable({"é\ud800": Path("\udcff")})).encode().decode() == '{"é\\\\ud800": "\\\\udcff"}'


# Whole or absent


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    write_whole(tmp_path / "x", "old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((os, "fsync") if failing == "fsync" else (Path, "replace")), fail)
    with pytest.raises(OSError, match="No space"):
        write_whole(tmp_path / "x", "new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"x": "old"}


@pytest.mark.parametrize("round_number", range(3))
def test_kill_9_in_mid_write_leaves_a_whole_file(tmp_path: Path, round_number: int) -> None:
    script = (
        "import sys; from pathlib import Path; from qwenft.core.files import write_whole\n"
        "path, number = Path(sys.argv[1]), 0\n"
        "while True: number += 1; write_whole(path, f'{number:09d}\\n' * 200_000)"
    )
    path = tmp_path / "x"
    process = subprocess.Popen([sys.executable, "-c", script, str(path)])
    try:
        while not path.exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(0.05 + 0.037 * round_number)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    lines = path.read_text().splitlines()
    assert len(lines) == 200_000
    assert len(set(lines)) == 1


def test_a_folder_stands_only_after_the_block_ended_well(tmp_path: Path) -> None:
    target = tmp_path / "set"
    with pytest.raises(RuntimeError), whole_folder(target) as staging:
        write_whole(staging / "a", "half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with whole_folder(target) as staging:
        write_whole(staging / "a", "whole")
        assert not target.exists()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["set", "set/a"]


def test_a_failed_replacement_leaves_the_old_folder(tmp_path: Path) -> None:
    write_whole(tmp_path / "set" / "a", "old")
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "set") as staging:
        write_whole(staging / "a", "new")
        raise KeyboardInterrupt
    assert (tmp_path / "set" / "a").read_text() == "old"
    with pytest.raises(FileNotFoundError):
        replace_folder(tmp_path / "never made", tmp_path / "set")
    assert (tmp_path / "set" / "a").read_text() == "old"


def test_what_is_to_be_kept_outlives_an_interruption_and_nothing_else_does(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "set", keep="images") as staging:
        write_whole(staging / "images" / "1.jpg", "one")
        write_whole(staging / "train.jsonl", "half")
        raise KeyboardInterrupt
    with whole_folder(tmp_path / "set", keep="images") as staging:
        assert [path.name for path in staging.iterdir()] == ["images"]
        assert (staging / "images" / "1.jpg").read_text() == "one"
    assert not list(tmp_path.glob(".set*"))


@pytest.mark.parametrize("dangling", [False, True], ids=["link to a folder", "link to nothing yet"])
def test_a_link_to_another_disk_stays_a_link(tmp_path: Path, dangling: bool) -> None:
    disk, link = tmp_path / "disk" / "set", tmp_path / "data" / "set"
    if not dangling:
        write_whole(disk / "a", "old")
    link.parent.mkdir()
    link.symlink_to(disk, target_is_directory=True)
    with whole_folder(link) as staging:
        assert staging.parent == disk.parent  # a rename across disks fails
        write_whole(staging / "a", "new")
    assert link.is_symlink()
    assert (disk / "a").read_text() == "new"
    assert [path.name for path in disk.parent.iterdir()] == ["set"]
