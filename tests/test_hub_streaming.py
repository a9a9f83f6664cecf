"""Data sets of the hub that need not, or cannot, be fetched whole: files one at a time, and given back to the disk."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loopback_hub import LoopbackHub, environment, make_refcocog, serving

from qwenft.core.samples import PreparedDataset
from qwenft.prepare.build import prepare_dataset

NAME, SHARDS, ROWS = "o/shards", 4, 3

SCRIPT = """
import json, sys
from pathlib import Path
from qwenft.core.errors import QwenftError
from qwenft.prepare.build import prepare_dataset
from qwenft.prepare.sources import hub, hubfiles

root, dataset, free, options = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4])
if free >= 0:
    hub.free_bytes = hubfiles.free_bytes = lambda: free
events, answer = [], {}
try:
    prepare_dataset(dataset, root=root, emit=events.append, command="-", **options)
except QwenftError as error:
    answer = {"message": str(error), "hint": error.hint}
print(json.dumps({**answer, "said": [event["text"] for event in events if event["event"] in ("note", "warning")]}))
"""


def make_shards(folder: Path, **counts: int) -> Path:
    """Kangheng/refcocog's columns, the train split in four files; a split for each count given."""
    import pyarrow.parquet as pq

    make_refcocog(folder, train=SHARDS * ROWS, **counts)
    whole = folder / "data" / "train-00000-of-00001.parquet"
    table = pq.read_table(whole)
    whole.unlink()
    for number in range(SHARDS):
        pq.write_table(table.slice(number * ROWS, ROWS), folder / "data" / f"train-{number:05}-of-{SHARDS:05}.parquet")
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("source"), test=2)


@pytest.fixture(scope="module")
def hub(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackHub]:
    lines = tmp_path_factory.mktemp("lines")
    (lines / "train.jsonl").write_text('{"text": "' + "x" * 2000 + '"}\n')
    with serving({f"datasets/{NAME}": source, "datasets/o/lines": lines}) as running:
        yield running


def prepared(hub: LoopbackHub, folder: Path, dataset: str = NAME, free: int = -1, **options: Any) -> dict[str, Any]:
    """In a process of its own, with a cache of its own: what was said, what was fetched, what the cache holds."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    env, before = clean | environment(hub.url, folder / "home"), len(hub.fetched(dataset))
    command = [sys.executable, "-c", SCRIPT, folder, dataset, str(free), json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    kept = sorted(path.name for path in (folder / "home").rglob("*.parquet"))
    blobs = sum(path.stat().st_size for path in (folder / "home").rglob("blobs/*"))
    fetched = [name for name in hub.fetched(dataset)[before:] if name.endswith(".parquet")]
    return {**found, "fetched": [name.removeprefix("data/")[:11] for name in fetched], "kept": kept, "blobs": blobs}


def content_of(data: PreparedDataset) -> list[Any]:
    return [[*data.samples(split)] for split in data.manifest.splits]


def test_a_limit_fetches_no_more_files_than_its_rows_lie_in(hub: LoopbackHub, source: Path, tmp_path: Path) -> None:
    found = prepared(hub, tmp_path, limit=4, splits=["train"])
    assert found["fetched"] == ["train-00000", "train-00001"]
    assert len(found["kept"]) == 2  # an ordinary cache: the next call has them
    data = PreparedDataset.open(tmp_path / "data" / "shards")
    local = prepare_dataset(str(source), root=tmp_path, out=Path("local/shards"), limit=4, splits=["train"])
    assert data.manifest.counts["samples"] == 4 and content_of(data) == content_of(local)
    again = prepared(hub, tmp_path, limit=4, splits=["train"], overwrite=True)
    assert again["fetched"] == []


def test_a_set_that_does_not_fit_is_read_a_file_at_a_time_and_leaves_nothing_behind(
    hub: LoopbackHub, source: Path, tmp_path: Path
) -> None:
    found = prepared(hub, tmp_path, free=1000)
    assert any(
        "do not fit into 1e-06 GB: each file is fetched when its rows are read" in text for text in found["said"]
    )
    assert sorted(set(found["fetched"])) == ["test-00000-", *(f"train-{n:05}" for n in range(SHARDS))]
    assert found["kept"] == []
    assert found["blobs"] < 1000  # the description alone
    data = PreparedDataset.open(tmp_path / "data" / "shards")
    local = prepare_dataset(str(source), root=tmp_path, out=Path("local/shards"))
    assert data.manifest.counts["samples"] == SHARDS * ROWS + 2 and content_of(data) == content_of(local)


def test_what_was_in_the_cache_before_stays_there(hub: LoopbackHub, tmp_path: Path) -> None:
    prepared(hub, tmp_path, limit=1, splits=["train"])
    found = prepared(hub, tmp_path, free=1000, splits=["train"], overwrite=True)
    assert [name[:11] for name in found["kept"]] == ["train-00000"]
    assert found["fetched"].count("train-00001") == 1 and "train-00000" not in found["fetched"]


def test_a_set_that_fits_is_fetched_whole_and_kept(hub: LoopbackHub, tmp_path: Path) -> None:
    found = prepared(hub, tmp_path)
    assert len(found["kept"]) == SHARDS + 1 and not any("do not fit" in text for text in found["said"])


def test_what_is_no_parquet_and_does_not_fit_is_refused_with_ways_out(hub: LoopbackHub, tmp_path: Path) -> None:
    found = prepared(hub, tmp_path, "o/lines", free=1000)
    assert "o/lines is not parquet, so it cannot be read a file at a time" in found["message"]
    assert "HF_HOME" in found["hint"] and "refs/convert/parquet" in found["hint"]
    assert not (tmp_path / "data").exists() or not list((tmp_path / "data").glob("*"))


def test_a_connection_cut_while_rows_are_read_goes_on_and_a_dead_one_is_our_error(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    third = f"{NAME}/data/train-00002-of-00004.parquet"
    hub.faults.cut = {third}
    assert "message" not in prepared(hub, tmp_path / "a", free=1000, splits=["train"])
    hub.faults.wrong_bytes = {third: 9}
    found = prepared(hub, tmp_path / "b", free=1000, splits=["train"])
    hub.faults.wrong_bytes = {}
    assert "arrived broken twice" in found["message"]
    assert not (tmp_path / "b" / "data" / "shards").exists()
