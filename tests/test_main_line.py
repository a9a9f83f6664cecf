"""The main line as a user types it: a data set and the 3B model by their hub names, and a run of the tiny model."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from loopback_hub import environment, refcocog_folder, serving
from PIL import Image
from published_model import make_published_model

from qwenft.core.files import sha256_of
from qwenft.core.samples import PreparedDataset

PHOTOS = Path(__file__).parents[2] / "shared" / "data" / "coco36" / "images"


def qwenft(*words: str, cwd: Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command as its own process; it must end well."""
    done = subprocess.run(
        [sys.executable, "-m", "qwenft", *words],
        cwd=cwd,
        env=env or {**os.environ},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done


def photo(folder: Path) -> Path:
    """A real photo, or a drawn one where there is none."""
    if PHOTOS.is_dir():
        return sorted(PHOTOS.iterdir())[0]
    Image.effect_noise((640, 480), 60).convert("RGB").save(folder / "photo.jpg")
    return folder / "photo.jpg"


def check_prepared(prepared: PreparedDataset, source: Path) -> None:
    """Boxes equal to an independent reading of the parquet files; each distinct picture once."""
    expected: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    pictures = set()
    for file in sorted(source.rglob("*.parquet")):
        for row in pq.read_table(file).to_pylist():
            picture = sha256_of(row["image"]["bytes"])
            pictures.add(picture)
            expected.setdefault((picture, row["question"]), []).append(tuple(json.loads(row["bbox"])))
    found: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    for split in prepared.manifest.splits:
        for sample in prepared.samples(split):
            found.setdefault((sample.picture, sample.query or ""), []).append(sample.objects[0].bbox)
    assert {key: sorted(boxes) for key, boxes in found.items()} == {
        key: [pytest.approx(box, abs=1e-3) for box in sorted(boxes)] for key, boxes in expected.items()
    }
    stored = [path.stem for path in (prepared.path / "images").glob("*/*")]
    assert sorted(stored) == sorted(pictures)


@pytest.mark.timeout(400)
def test_the_published_names_work_end_to_end_against_a_loopback_hub(tmp_path: Path) -> None:
    model = make_published_model(tmp_path / "published")
    source = refcocog_folder(tmp_path / "source")
    name = "Qwen/Qwen2.5-VL-3B-Instruct"
    with serving({"datasets/Kangheng/refcocog": source, f"models/{name}": model}) as hub:
        env = {**os.environ, **environment(hub.url, tmp_path / "home")}
        prepared = json.loads(
            qwenft("prepare", "--dataset", "Kangheng/refcocog", "--json", cwd=tmp_path, env=env).stdout
        )
        dataset = PreparedDataset.open(Path(prepared["path"]))
        check_prepared(dataset, source)
        assert sum(info.samples for info in dataset.manifest.splits.values()) == prepared["counts"]["rows_read"]
        settings = ("max_steps=2", "accumulation=1", "max_pixels=50176", "rank=4", "workers=0", "eval_samples=0")
        trained = json.loads(
            qwenft("train", "--gpus", "cpu", "--name", "r", "--json", *settings, cwd=tmp_path, env=env).stdout
        )
        assert trained["steps"] == 2
        shards = [file for file in hub.fetched(name) if file.endswith(".safetensors")]
        assert len(shards) == 2  # each once, whatever was asked of the model since
    offline = {**env, "HF_HUB_OFFLINE": "1"}
    scored = json.loads(qwenft("eval", "--limit", "1", "--gpus", "cpu", "--json", cwd=tmp_path, env=offline).stdout)
    assert scored["model"] == name
    assert scored["run"] == "r"
    answer = json.loads(
        qwenft(
            "predict", str(photo(tmp_path)), "find the dog", "--gpus", "cpu", "--json", cwd=tmp_path, env=offline
        ).stdout
    )
    assert answer["query"] == "the dog"
    assert answer["status"] in ("ok", "salvaged", "empty", "unparsable")
    assert answer["prompt"].startswith("Locate the dog in this image")


@pytest.mark.timeout(300)
def test_the_four_commands_with_the_tiny_model(tmp_path: Path) -> None:
    source = refcocog_folder(tmp_path / "source")
    prepared = qwenft("prepare", "--dataset", str(source), "--out", "data/refcocog", cwd=tmp_path)
    assert "next: qwenft train" in prepared.stderr
    words = ("train", "--model", "tiny", "--gpus", "cpu", "max_steps=3", "rank=4", "workers=0", "eval_samples=2")
    trained = qwenft(*words, "accumulation=1", cwd=tmp_path)
    assert re.search(r"^step 3/3 .*loss ", trained.stderr, re.MULTILINE)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", trained.stdout + trained.stderr)
    (run,) = [path for path in (tmp_path / "runs").iterdir() if path.name != "latest"]
    log = (run / "train.log").read_text()
    assert "step 3/3" in log
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", log)
    scored = qwenft("eval", "--limit", "4", "--gpus", "cpu", cwd=tmp_path)
    assert "grounding Acc@0.5\t" in scored.stdout
    words = ("predict", str(photo(tmp_path)), "find the dog", "--gpus", "cpu", "--json", "--save", "out.png")
    answer: dict[str, Any] = json.loads(qwenft(*words, cwd=tmp_path).stdout)
    assert Image.open(tmp_path / "out.png").size == Image.open(photo(tmp_path)).size
    assert len(answer["objects"]) == 1
