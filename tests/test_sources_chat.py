"""Conversations: other tools' own names for columns and roles, several pictures in one record, several exchanges."""

import json
from pathlib import Path
from typing import Any

import pytest
from prepare_inputs import corners, good_rows, lines, write_records

from qwenft.core.errors import DataError
from qwenft.core.samples import PreparedDataset
from qwenft.prepare.build import prepare_dataset
from qwenft.prepare.sources import detect


def prepare(source: Path, root: Path, **options: Any) -> PreparedDataset:
    return prepare_dataset(str(source), root=root, val_fraction=0, **options)


def boxes_of(data: PreparedDataset) -> dict[str | None, list[float]]:
    """Query -> its box."""
    return {sample.query: list(sample.objects[0].bbox) for sample in data.samples("train")}


def answer(box: list[float]) -> str:
    return json.dumps([{"bbox_2d": box, "label": "thing"}])


def sharegpt(row: dict[str, Any]) -> dict[str, Any]:
    turns = [("sys", "Be brief."), ("me", f"<image>find {row['expression']}"), ("it", answer(row["bbox"]))]
    return {"talk": [{"who": who, "says": text} for who, text in turns], "photos": [row["image"]]}


def alpaca(row: dict[str, Any]) -> dict[str, Any]:
    earlier = [["<image>find the part before", answer([90, 70, 110, 90])]]
    return {
        "ask": "find",
        "of": row["expression"],
        "say": answer(row["bbox"]),
        "photos": [row["image"]],
        "past": earlier,
    }


def openai(row: dict[str, Any]) -> dict[str, Any]:
    turns = [("user", f"<image>find {row['expression']}"), ("assistant", answer(row["bbox"]))]
    return {"messages": [{"role": who, "content": text} for who, text in turns], "images": row["image"]}


DESCRIBED = [
    pytest.param(
        sharegpt,
        {
            "formatting": "sharegpt",
            "columns": {"messages": "talk", "images": "photos"},
            "tags": {"role_tag": "who", "content_tag": "says", "user_tag": "me", "assistant_tag": "it"},
        },
        id="sharegpt",
    ),
    pytest.param(
        alpaca,
        {"columns": {"prompt": "ask", "query": "of", "response": "say", "images": "photos", "history": "past"}},
        id="alpaca",
    ),
    pytest.param(openai, {"formatting": "openai", "columns": {"messages": "messages"}}, id="openai"),
]


@pytest.mark.parametrize(("write", "entry"), DESCRIBED)
def test_llama_factorys_own_names_are_read_from_its_dataset_info(tmp_path: Path, write: Any, entry: Any) -> None:
    rows = good_rows(tmp_path / "set", 12)
    write_records(tmp_path / "set", [write(row) for row in rows], "boxes.json")
    (tmp_path / "set" / "dataset_info.json").write_text(json.dumps({"mine": {"file_name": "boxes.json", **entry}}))
    for source in (tmp_path / "set", tmp_path / "set" / "boxes.json", tmp_path / "set" / "dataset_info.json"):
        data = prepare(source, tmp_path, out=Path("out") / source.name)
        found = boxes_of(data)
        assert detect(source) == data.manifest.source["kind"] == "llamafactory"
        assert {row["expression"]: row["bbox"] for row in rows}.items() <= found.items()
        assert data.manifest.counts["rejected"] == 0
        assert data.manifest.counts["rows_read"] == (24 if write is alpaca else 12)


def test_of_several_data_sets_that_are_described_one_must_be_chosen(tmp_path: Path) -> None:
    rows = good_rows(tmp_path / "set", 12)
    names = {"birds": "b.json", "boats": "c.json", "absent": "d.json", "away": "../b.json"}
    for name in ("b.json", "c.json"):
        write_records(tmp_path / "set", [openai(row) for row in rows], name)
    info = {name: {"file_name": file, "formatting": "openai"} for name, file in names.items()}
    (tmp_path / "set" / "dataset_info.json").write_text(json.dumps(info | {"hub": {"hf_hub_url": "o/n"}, "odd": 3}))
    with pytest.raises(DataError, match=r"several data sets: birds, boats$") as caught:
        prepare(tmp_path / "set", tmp_path)
    assert caught.value.hint == "choose with --split, e.g. --split birds"
    assert prepare(tmp_path / "set", tmp_path, splits=("boats",)).manifest.counts["samples"] == 12
    with pytest.raises(DataError) as mistyped:
        prepare(tmp_path / "set", tmp_path, out=Path("b"), splits=("bird",))
    assert mistyped.value.hint == "did you mean 'birds'?"


@pytest.mark.parametrize(
    "info",
    [
        "{",
        "[]",
        '{"x": {"file_name": "boxes.json", "columns": 3, "tags": [], "formatting": "openai"}}',
        '{"splits": {}}',
    ],
    ids=["broken", "another's", "odd values", "the datasets library's"],
)
def test_a_dataset_info_that_says_nothing_leaves_the_records_as_they_are(tmp_path: Path, info: str) -> None:
    rows = good_rows(tmp_path / "set", 12)
    write_records(tmp_path / "set", [openai(row) for row in rows], "boxes.json")
    (tmp_path / "set" / "dataset_info.json").write_text(info)
    assert len(boxes_of(prepare(tmp_path / "set", tmp_path))) == 12


def shown(image: str, text: str) -> list[dict[str, str]]:
    return [{"type": "image", "image": image}, {"type": "text", "text": text}]


def swift(turns: list[tuple[str, str]], images: list[str], **objects: Any) -> dict[str, Any]:
    messages = [
        {"role": who, "content": text} for pair in turns for who, text in zip(("user", "assistant"), pair, strict=True)
    ]
    return {"messages": messages, "images": images, "objects": objects}


FIND, FOUND = "<image>find {}", '[{{"bbox_2d": {}}}]'
TWO = ["0.png", "1.png"]


@pytest.mark.parametrize(
    ("record", "taken", "reasons"),
    [
        pytest.param(
            swift([(FIND.format("cup"), "<bbox>"), (FIND.format("pen"), "<bbox>")], TWO, ref=[],
                  bbox=[corners(0), corners(1)], image_id=[0, 1]),
            {"cup": ("0.png", corners(0)), "pen": ("1.png", corners(1))}, [], id="each question its own picture",
        ),
        pytest.param(
            swift([(FIND.format("cup"), "<bbox>"), (FIND.format("pen"), "<bbox>")], TWO, ref=[],
                  bbox=[corners(0), corners(1)], image_id=[0, 0]),
            {"cup": ("0.png", corners(0))}, ["picture-several"], id="a box in another picture",
        ),
        pytest.param(
            swift([(FIND.format("cup"), "<bbox>"), (FIND.format("pen"), "<bbox>")], TWO, ref=[],
                  bbox=[corners(0), corners(1)]),
            {"cup": ("0.png", corners(0))}, ["picture-several"], id="without ids all lie in the first",
        ),
        pytest.param(
            swift([("<image><image>find cup in both", "<bbox><bbox>")], TWO, ref=[], bbox=[corners(0)] * 2,
                  image_id=[0, 1]),
            {}, ["picture-several"], id="a question about both",
        ),
        pytest.param(
            swift([("find cup in both", "<bbox>")], TWO, ref=[], bbox=[corners(0)], image_id=[1]),
            {}, ["picture-several"], id="no tag shows all",
        ),
        pytest.param(
            swift([(FIND.format("cup"), "<bbox>"), ("find pen", "<bbox>"), (FIND.format("jar"), "<bbox>"),
                   ("find lid", "<bbox>")], TWO, ref=[], bbox=[corners(0)] * 4, image_id=[0, 0, 1, 1]),
            {"cup": ("0.png", corners(0)), "pen": ("0.png", corners(0)), "jar": ("1.png", corners(0))},
            ["picture-several"], id="a question after two pictures may mean either",
        ),
        pytest.param(
            {"image": TWO, "conversations": [
                {"from": "human", "value": FIND.format("cup")}, {"from": "gpt", "value": FOUND.format(corners(0))},
                {"from": "human", "value": FIND.format("pen")}, {"from": "gpt", "value": FOUND.format(corners(1))}]},
            {"cup": ("0.png", corners(0)), "pen": ("1.png", corners(1))}, [], id="Qwen's form",
        ),
        pytest.param(
            {"image": TWO, "conversations": [
                {"from": "human", "value": "<image><image>" + FIND.format("cup")},
                {"from": "gpt", "value": FOUND.format(corners(0))}]},
            {}, ["row-unreadable"], id="more tags than pictures",
        ),
        pytest.param(
            {"images": ["0.png"], "conversation": [
                {"human": FIND.format("cup"), "assistant": FOUND.format(corners(0))},
                {"human": FIND.format("pen"), "assistant": FOUND.format(corners(1))}]},
            {"cup": ("0.png", corners(0)), "pen": ("0.png", corners(1))}, [], id="one picture shown twice",
        ),
        pytest.param(
            {"messages": [
                {"role": "user", "content": shown("1.png", "find cup")},
                {"role": "assistant", "content": [{"type": "text", "text": FOUND.format(corners(1))}]},
                {"role": "user", "content": shown("0.png", "find pen")},
                {"role": "assistant", "content": FOUND.format(corners(0))}]},
            {"cup": ("1.png", corners(1)), "pen": ("0.png", corners(0))}, [], id="pictures inside the turns",
        ),
    ],
)  # fmt: skip
def test_of_several_pictures_the_questions_about_one_are_taken_and_the_others_say_why(
    tmp_path: Path, record: dict[str, Any], taken: dict[str, tuple[str, list[float]]], reasons: list[str]
) -> None:
    rows = good_rows(tmp_path / "set", 12)
    good = [openai({**row, "expression": f"other {n}"}) for n, row in enumerate(rows)]
    write_records(tmp_path / "set", [*good, record])
    data = prepare(tmp_path / "set", tmp_path)
    found = {
        sample.query: (data.picture_path(sample).read_bytes(), [list(item.bbox) for item in sample.objects])
        for sample in data.samples("train")
        if sample.query and not sample.query.startswith("other")
    }
    assert found == {query: ((tmp_path / "set" / name).read_bytes(), [box]) for query, (name, box) in taken.items()}
    assert [line["reason"] for line in lines(data.path / "rejected.jsonl")] == reasons
    assert data.manifest.counts["rows_read"] == 12 + len(taken) + len(reasons)
