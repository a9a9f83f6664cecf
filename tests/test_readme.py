"""Every command that README shows is run, in its order, by a user who has what it names."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from loopback_hub import environment, refcocog_folder, serving
from PIL import Image
from prepare_inputs import good_rows, picture, write_coco, write_records

from qwenft.model.fetch import TINY_FOLDER

ROOT = Path(__file__).parents[1]
SMALL = ["max_steps=1", "accumulation=1", "batch_size=1", "max_pixels=50176", "workers=0", "rank=4", "eval_samples=1"]
"""Added to every training: the same command on less work."""
ELSEWHERE = {
    "uv run qwenft demo": "tests/test_demo.py runs it, small",
    "uv run pytest": "this is it",
    "qwenft app --run first": "tests/test_app.py serves the page",
}
HERE = {"--gpus 1,3": "--gpus cpu"}
"""What a machine without GPUs cannot have."""

RUNNER = """
import contextlib, io, json, sys
from qwenft.cli import main
results = []
for words in json.loads(sys.stdin.read()):
    sys.argv = ["qwenft", *words]
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    results.append({"code": code, "out": out.getvalue(), "err": err.getvalue()})
print(json.dumps(results))
"""


def commands(name: str = "README.md") -> list[str]:
    """The lines of a README's console blocks, in order."""
    text = (ROOT / name).read_text(encoding="utf-8")
    blocks = re.findall(r"^```console\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def furnish(folder: Path) -> None:
    """What the README's user has: pictures, records with names of their own, a COCO folder, somebody's results."""
    (folder / "image.jpg").write_bytes(picture(1, kind="JPEG"))
    (folder / "photos").mkdir()
    for number in range(2):
        Image.effect_noise((150, 120), 60).convert("RGB").save(folder / "photos" / f"{number}.jpg")
    rows = [{"img": r["image"], "text": r["expression"], "box": r["bbox"]} for r in good_rows(folder / "my", 10)]
    write_records(folder / "my", rows, "annotations.jsonl")
    write_coco(folder / "my" / "coco-folder", count=12)
    coco = json.loads((folder / "my" / "coco-folder" / "instances.json").read_text())
    (folder / "instances.json").write_text(json.dumps(coco))
    results = [{"score": 0.9, **{k: a[k] for k in ("image_id", "category_id", "bbox")}} for a in coco["annotations"]]
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "configs").symlink_to(ROOT / "configs")


@pytest.mark.timeout(300)
def test_every_command_of_the_readme_runs(tmp_path: Path) -> None:
    lines = commands()
    assert {"uv run qwenft demo", "uv run pytest"} < set(lines)
    typed = [line for line in lines if line not in ELSEWHERE]
    named = {"prepare", "train", "eval", "predict", "steps", "export", "doctor", "config"}
    assert {shlex.split(line)[1] for line in typed} == named
    words = []
    for line in typed:
        for there, here in HERE.items():
            line = line.replace(there, here)  # noqa: PLW2901
        command = shlex.split(line)
        assert command.pop(0) == "qwenft"
        words.append(command + (SMALL if command[0] == "train" else []))
    user = tmp_path / "user"
    user.mkdir()
    furnish(user)
    served = {
        "datasets/Kangheng/refcocog": refcocog_folder(tmp_path / "source"),
        "models/Qwen/Qwen2.5-VL-3B-Instruct": TINY_FOLDER,  # answers in 40 tokens; random weights never end
    }
    with serving(served) as hub:
        done = subprocess.run(
            [sys.executable, "-c", RUNNER], input=json.dumps(words), cwd=user, capture_output=True, text=True,
            env={**os.environ, **environment(hub.url, tmp_path / "home")}, timeout=280, check=True,
        )  # fmt: skip
    for line, result in zip(typed, json.loads(done.stdout), strict=True):
        assert result["code"] == 0, f"{line}\n{result['err']}"


def test_what_a_newcomer_needs_stands_in_the_first_forty_lines() -> None:
    head = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:40]
    assert "uv run qwenft demo" in head
    shown = [re.search(r"!\[.+\]\((.+)\)", line) for line in head]
    pictures = [match.group(1) for match in shown if match]
    assert pictures and all((ROOT / path).is_file() for path in pictures)


def test_both_languages_show_the_same_commands_in_the_same_order() -> None:
    assert commands("README.zh-CN.md") == commands()
