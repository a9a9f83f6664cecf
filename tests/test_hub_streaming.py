"""Data sets of the hub that need not, or cannot, be fetched whole, and ones whose rows name their pictures."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from loopback_hub import LoopbackHub, environment, make_refcocog, refcocog_folder, serving
from prepare_inputs import good_rows, lines, picture, write_coco, write_records

from qwenft.core.files import write_jsonl
from qwenft.core.samples import PreparedDataset
from qwenft.prepare.build import prepare_dataset

SHARDS, ROWS = 4, 3

# The libraries take seconds to load and bind their cache when they do: one process does all cases, each on a
# repository of its own, which has a folder of its own in the cache.
SCRIPT = """
import json, sys
from pathlib import Path
from qwenft.core.errors import QwenftError
from qwenft.prepare.build import prepare_dataset
from qwenft.prepare.sources import hub, hubfiles, hubfolder

OTHERS = ("image_folder", "json_lines")
root, free_bytes, answers = Path(sys.argv[1]), hubfiles.free_bytes, {}
for name, dataset, free, options in json.loads(sys.stdin.read()):
    hub.free_bytes = hubfolder.free_bytes = free_bytes if free is None else (lambda: free)
    if name in OTHERS:
        answers.setdefault("parquet loaded scipy", "scipy" in sys.modules)
    events, answer = [], {}
    try:
        prepare_dataset(dataset, root=root, out=Path(name, "set"), emit=events.append, command="-", **options)
    except QwenftError as error:
        answer = {"message": str(error)}
    answers[name] = {**answer, "said": [event["text"] for event in events if event["event"] in ("note", "warning")]}
print(json.dumps(answers))
"""


def shards(folder: Path) -> Path:
    """Kangheng/refcocog's columns, the train split in four files."""
    import pyarrow.parquet as pq

    make_refcocog(folder, train=SHARDS * ROWS, test=2)
    whole = folder / "data" / "train-00000-of-00001.parquet"
    table = pq.read_table(whole)
    whole.unlink()
    for number in range(SHARDS):
        pq.write_table(table.slice(number * ROWS, ROWS), folder / "data" / f"train-{number:05}-of-{SHARDS:05}.parquet")
    return folder


def image_folder(folder: Path) -> Path:
    """Pictures of two splits beside their metadata."""
    for split, count in (("train", 5), ("test", 2)):
        rows = good_rows(folder / split, count)
        metadata = [{"file_name": row["image"], "text": row["expression"], "bbox": row["bbox"]} for row in rows]
        write_jsonl(folder / split / "metadata.jsonl", metadata)
    return folder


def json_lines(folder: Path) -> Path:
    """A file of records that names pictures of the repository, and some that are none of it."""
    rows = good_rows(folder / "images", 7)
    strange = [{**rows[0], "image": name} for name in ("/etc/hostname.png", "../secret.png", "images/none.png")]
    write_records(folder, [*rows[:3], *({**row, "image": f"images/{row['image']}"} for row in rows[3:]), *strange])
    listed = "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: train.jsonl\n"
    (folder / "README.md").write_text(f"---\n{listed}---\n")
    return folder


PARQUET = ("limit", "small", "before", "fits", "cut", "wrong")


def coco_folder(folder: Path) -> Path:
    """COCO's own form, which `datasets` would read as pictures without boxes, and a picture that lies elsewhere."""
    write_coco(folder, 8)
    document = json.loads((folder / "instances.json").read_text())
    (folder.parent / "secret.png").write_bytes(picture(99))
    document["images"].append({"id": 99, "file_name": str(folder.parent / "secret.png"), "width": 160, "height": 120})
    (folder / "instances.json").write_text(json.dumps(document))
    (folder / "captions.json").unlink()
    return folder


OTHERS = {"image_folder": image_folder, "json_lines": json_lines}
JOBS: list[tuple[str, str, int | None, Mapping[str, Any]]] = [
    ("limit", "o/limit", None, {"limit": 4, "splits": ["train"]}),
    ("limit again", "o/limit", None, {"limit": 4, "splits": ["train"]}),
    ("small", "o/small", 1000, {}),
    ("before", "o/before", None, {"limit": 1, "splits": ["train"]}),
    ("after", "o/before", 1000, {"splits": ["train"]}),
    ("fits", "o/fits", None, {}),
    ("cut", "o/cut", 1000, {"splits": ["train"]}),
    ("wrong", "o/wrong", 1000, {"splits": ["train"]}),
    *((name, f"o/{name}", None, {}) for name in OTHERS),
    *((f"{name} small", f"o/{name}_small", 100, {}) for name in OTHERS),
    ("image_folder limit", "o/image_folder_limit", None, {"limit": 2}),
    ("published", "Kangheng/refcocog", None, {}),
    ("coco", "o/coco", None, {}),
    ("coco small", "o/coco_small", 3000, {}),
]


@dataclass(frozen=True)
class Done:
    """What the jobs left behind."""

    root: Path
    hub: LoopbackHub
    answers: Mapping[str, Any]

    def content(self, name: str) -> list[Any]:
        data = PreparedDataset.open(self.root / name / "set")
        return [[*data.samples(split)] for split in data.manifest.splits]

    def cached(self, repository: str) -> list[str]:
        """The files that the cache holds of a repository, its description apart."""
        names = (path.name for path in self._cache(repository).glob("snapshots/**/*") if path.is_file())
        return sorted(name for name in names if name != "README.md")

    def cached_bytes(self, repository: str) -> int:
        return sum(path.stat().st_size for path in self._cache(repository).glob("blobs/*"))

    def fetched(self, repository: str) -> list[str]:
        names = (Path(name).name for name in self.hub.fetched(f"o/{repository}"))
        return [name[:11] for name in names if name.endswith(".parquet")]

    def _cache(self, repository: str) -> Path:
        return self.root / "home" / "hub" / f"datasets--o--{repository}"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shards(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def done(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Done]:
    folders = {f"datasets/o/{name}": source for name in PARQUET}
    for name, make in OTHERS.items():
        folder = make(tmp_path_factory.mktemp(name))
        folders |= {f"datasets/o/{name}{tail}": folder for tail in ("", "_small", "_limit")}
    coco = coco_folder(tmp_path_factory.mktemp("coco") / "set")
    folders |= {"datasets/o/coco": coco, "datasets/o/coco_small": coco}
    folders["datasets/Kangheng/refcocog"] = refcocog_folder(tmp_path_factory.mktemp("refcocog"))
    root, third = tmp_path_factory.mktemp("root"), "data/train-00002-of-00004.parquet"
    with serving(folders) as hub:
        hub.faults.cut, hub.faults.wrong_bytes = {f"o/cut/{third}"}, {f"o/wrong/{third}": 9}
        yield Done(root, hub, run(hub, root, JOBS))


def run(hub: LoopbackHub, root: Path, jobs: Any, **variables: str) -> dict[str, Any]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    child = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(root)],
        input=json.dumps(jobs),
        env=clean | environment(hub.url, root / "home", **variables),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    found: dict[str, Any] = json.loads(child.stdout)
    return found


def local(source: Path, root: Path, **options: Any) -> list[Any]:
    data = prepare_dataset(str(source), root=root, out=Path("local/set"), **options)
    return [[*data.samples(split)] for split in data.manifest.splits]


def test_the_published_data_set_gives_the_same_as_its_folder_and_is_called_a_benchmark(
    done: Done, tmp_path: Path
) -> None:
    fetched = PreparedDataset.open(done.root / "published" / "set")
    assert done.content("published") == local(refcocog_folder(tmp_path / "source"), tmp_path)
    about = fetched.manifest.source
    commit = done.hub.commit("datasets/Kangheng/refcocog")
    assert (about["kind"], about["id"], about["revision"]) == ("hub", "Kangheng/refcocog", commit)
    assert any(note.startswith("Kangheng/refcocog is a benchmark") for note in fetched.manifest.notes)


def test_a_limit_fetches_no_more_files_than_its_rows_lie_in(done: Done, source: Path, tmp_path: Path) -> None:
    assert done.content("limit") == local(source, tmp_path, limit=4, splits=["train"])
    assert done.content("limit again") == done.content("limit")
    assert done.fetched("limit") == ["train-00000", "train-00001"]  # an ordinary cache: the second call had them
    assert len(done.cached("limit")) == 2


def test_a_set_that_does_not_fit_is_read_a_file_at_a_time_and_leaves_nothing_behind(
    done: Done, source: Path, tmp_path: Path
) -> None:
    said = done.answers["small"]["said"]
    assert any("do not fit into 1e-06 GB: each file is fetched when its rows are read" in text for text in said)
    assert sorted(set(done.fetched("small"))) == ["test-00000-", *(f"train-{n:05}" for n in range(SHARDS))]
    assert done.cached("small") == [] and done.cached_bytes("small") < 1000  # the description alone
    assert done.content("small") == local(source, tmp_path)


def test_what_was_in_the_cache_before_stays_there(done: Done) -> None:
    assert [name[:11] for name in done.cached("before")] == ["train-00000"]
    assert done.fetched("before").count("train-00000") == done.fetched("before").count("train-00001") == 1


def test_a_set_that_fits_is_fetched_whole_and_kept(done: Done) -> None:
    assert len(done.cached("fits")) == SHARDS + 1
    assert not any("do not fit" in text for text in done.answers["fits"]["said"])


def test_a_connection_cut_while_rows_are_read_goes_on_and_a_dead_one_is_our_error(done: Done) -> None:
    assert "message" not in done.answers["cut"] and sum(map(len, done.content("cut"))) == SHARDS * ROWS
    assert "arrived broken twice" in done.answers["wrong"]["message"]
    assert not (done.root / "wrong" / "set").exists()


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_parquet_is_read_with_its_pictures_whole_or_one_at_a_time(done: Done, name: str) -> None:
    content = done.content(name)
    assert sum(map(len, content)) == 7
    assert len([file for file in done.cached(name) if file.endswith(".png")]) == 7
    assert any("do not fit" in text for text in done.answers[f"{name} small"]["said"])
    assert done.content(f"{name} small") == content
    assert not [file for file in done.cached(f"{name}_small") if file.endswith(".png")]


def test_a_limit_fetches_no_more_pictures_than_it_has_rows(done: Done) -> None:
    assert done.cached("image_folder_limit") == ["0.png", "0.png", "1.png", "1.png", *["metadata.jsonl"] * 2]


def test_a_picture_that_is_no_file_of_the_repository_is_a_rejected_row(done: Done) -> None:
    rejected = lines(done.root / "json_lines" / "set" / "rejected.jsonl")
    assert [row["reason"] for row in rejected] == ["picture-missing"] * 3


def test_scipy_is_not_imported_for_parquet(done: Done) -> None:
    """`datasets` would import it for a builder that is not used here."""
    assert not done.answers["parquet loaded scipy"]


def test_a_repository_in_a_tools_own_form_is_read_as_the_folder_that_it_is(done: Done, tmp_path: Path) -> None:
    source = coco_folder(tmp_path / "set")
    (source.parent / "secret.png").unlink()
    assert done.content("coco") == local(source, tmp_path)
    manifest = PreparedDataset.open(done.root / "coco" / "set").manifest
    assert (manifest.source["kind"], manifest.source["id"]) == ("coco", "o/coco")
    rejected = lines(done.root / "coco" / "set" / "rejected.jsonl")
    assert [row["reason"] for row in rejected if row["what"] == "row"] == ["picture-outside-folder"]
    assert "is read as a whole folder" in done.answers["coco small"]["message"]


def test_offline_the_pictures_come_from_the_cache_too(done: Done) -> None:
    before = len(done.hub.seen)
    names = (*OTHERS, "coco")
    run(done.hub, done.root, [(f"{name} offline", f"o/{name}", None, {}) for name in names], HF_HUB_OFFLINE="1")
    for name in names:
        assert done.content(f"{name} offline") == done.content(name)
    assert len(done.hub.seen) == before
