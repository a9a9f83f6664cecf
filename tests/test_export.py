"""Exports: other tools load them and answer as the run does; what is wrong is said before anything stands."""

import json
import os
import re
import resource
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from loopback_hub import LoopbackHub, environment, serving
from loopback_uploads import TOKEN
from PIL import Image
from published_model import make_published_model
from safetensors import safe_open
from safetensors.torch import load_file
from terminal import QWENFT
from training import train_here

from qwenft.core.boxes import iou
from qwenft.core.config import DEFAULT_MODEL
from qwenft.core.errors import ModelError, RunError
from qwenft.core.predictions import Question
from qwenft.core.runs import Contract, Run
from qwenft.core.samples import PreparedDataset, open_dataset
from qwenft.export.beside import with_budget, write_card
from qwenft.export.run import Exported, export_run, tensor_names
from qwenft.export.serving import serving_commands
from qwenft.model.fetch import TINY_FOLDER

BUDGET = (112 * 112, 140 * 140)
"""Not the model's own."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, scenes: PreparedDataset) -> Path:
    """A workplace with the run `mine`: LoRA on language and vision, in a budget of its own."""
    folder = tmp_path_factory.mktemp("exports")
    (folder / "data").mkdir()
    (folder / "data" / "scenes").symlink_to(scenes.path)
    budget = {"min_pixels": BUDGET[0], "max_pixels": BUDGET[1]}
    settings = {"data": "scenes", "parts": "language,vision", "learning_rate": 3e-3, "batch_size": 4, **budget}
    status, _, events = train_here(folder, "mine", accumulation=1, epochs=2, **settings)
    assert status == 0, events[-1]
    return folder


@pytest.fixture(scope="module")
def merged(root: Path) -> Exported:
    return export_run("mine", gpus="cpu", root=root)


@pytest.fixture(scope="module")
def adapter(root: Path) -> Exported:
    return export_run("mine", to="adapter", root=root)


def plain_answers(model: object, folder: str, questions: list[tuple[Path, str]]) -> list[str]:
    """What a script with nothing but transformers is answered."""
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    answers = []
    for path, prompt in questions:
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = processor(text=[text], images=[Image.open(path).convert("RGB")], return_tensors="pt")
        made = model.generate(**inputs, max_new_tokens=64)  # type: ignore[attr-defined]
        answers.append(processor.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    return answers


def asked_of_run(root: Path, count: int = 6) -> tuple[list[tuple[Path, str]], list[str]]:
    """Questions as they are sent, and the run's own answers."""
    from qwenft.predict.generate import Predictor

    data = open_dataset("scenes", root)
    predictor = Predictor.load("tiny", root / "runs" / "mine" / "adapter", gpus="cpu")
    questions = [Question.of(sample, data.path) for sample in data.samples("val")[:count]]
    answers = list(predictor.answer(questions))
    return [(answer.question.image, answer.prompt) for answer in answers], [answer.text for answer in answers]


def test_merged_weights_answer_in_plain_transformers_as_the_run_does(root: Path, merged: Exported) -> None:
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    questions, texts = asked_of_run(root)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(merged.path, dtype=torch.float32)
    answers = plain_answers(model, merged.path, questions)
    boxes = [(json.loads(a)[0]["bbox_2d"], json.loads(b)[0]["bbox_2d"]) for a, b in zip(answers, texts, strict=True)]
    assert sum(iou(tuple(one), tuple(other)) > 0.9 for one, other in boxes) >= len(boxes) - 1, boxes
    assert merged.dtype == "bfloat16"
    assert merged.difference is not None
    assert merged.effect is not None
    assert merged.difference < merged.effect / 4


def test_an_adapter_answers_in_plain_peft_exactly_as_the_run_does(root: Path, adapter: Exported) -> None:
    import torch
    from peft import PeftModel
    from transformers import Qwen2_5_VLForConditionalGeneration

    questions, texts = asked_of_run(root)
    base = Qwen2_5_VLForConditionalGeneration.from_pretrained(TINY_FOLDER, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, adapter.path)
    assert plain_answers(model, adapter.path, questions) == texts


def test_an_export_is_the_base_s_files_with_other_weights(root: Path, merged: Exported) -> None:
    folder = Path(merged.path)
    assert (folder / "config.json").read_bytes() == (TINY_FOLDER / "config.json").read_bytes()
    before, after = load_file(TINY_FOLDER / "model.safetensors"), load_file(folder / "model.safetensors")
    assert after.keys() == before.keys()
    changed = {name for name in after if not after[name].equal(before[name])}
    assert {name.split(".")[0] for name in changed} == {"model", "visual"}
    assert all(name.endswith("_proj.weight") or ".attn." in name for name in changed)
    contract = Contract.read(folder)
    assert (contract.min_pixels, contract.max_pixels) == BUDGET
    assert contract.pictures == Contract.read(root / "runs" / "mine" / "adapter").pictures
    assert json.loads((folder / "generation_config.json").read_text())["do_sample"] is False
    assert {oct(path.stat().st_mode & 0o777) for path in folder.iterdir()} == {"0o644"}


def test_the_processor_beside_an_export_has_the_budget_of_the_training(merged: Exported, adapter: Exported) -> None:
    from transformers import AutoProcessor

    for made in (merged, adapter):
        size = AutoProcessor.from_pretrained(made.path).image_processor.size
        assert (size["shortest_edge"], size["longest_edge"]) == BUDGET


def test_an_export_is_a_base_model_for_qwenft(root: Path, merged: Exported) -> None:
    from qwenft.predict.find import find

    question = open_dataset("scenes", root).samples("val")[0]
    picture = root / "data" / "scenes" / question.image
    run, model = (
        find([picture], question.query, gpus="cpu", root=root, **chosen)[0]
        for chosen in ({"run": "mine"}, {"model": merged.path})
    )
    assert model.prompt == run.prompt
    assert iou(model.objects[0].box_xyxy, run.objects[0].box_xyxy) > 0.8


def test_the_card_names_the_budget_and_no_folder_of_this_machine(merged: Exported, adapter: Exported) -> None:
    for made, library in ((merged, "transformers"), (adapter, "peft")):
        card = (Path(made.path) / "README.md").read_text()
        assert card.startswith(f"---\nlibrary_name: {library}\n")
        assert card.count("library_name:") == 1
        assert (": a LoRA adapter merged into tiny" in card) is (made is merged)
        assert "--run" not in card and ("qwenft predict photo.jpg" in card) is (made is merged)
        assert f'"min_pixels": {BUDGET[0]}, "max_pixels": {BUDGET[1]}' in card
        assert str(Path(made.path).parent) not in card
        assert str(TINY_FOLDER.parent) not in card
    settings = json.loads((Path(adapter.path) / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(TINY_FOLDER)


def test_a_merge_that_does_not_take_is_seen_and_nothing_stands(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwenft.export.merge.merge", lambda model: None)
    with pytest.raises(ModelError, match="does not answer as the adapter does") as failed:
        export_run("mine", out=Path("lost"), gpus="cpu", root=root)
    assert failed.value.hint.startswith("qwenft export --to adapter")
    assert [path.name for path in root.iterdir() if "lost" in path.name] == []


def test_a_full_disk_is_one_error_and_nothing_stands(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000, before[1]))  # the weights are 9.7 MB
    try:
        with pytest.raises(RunError, match="could not be written") as failed:
            export_run("mine", out=Path("lost"), gpus="cpu", root=root)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert failed.value.hint == "--out on a larger disk"
    assert [path.name for path in root.iterdir() if "lost" in path.name] == []

    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1_000_000})())
    with pytest.raises(RunError, match=r"the export takes 0\.0 GB, and 0\.0 GB are free"):
        export_run("mine", out=Path("lost"), gpus="cpu", root=root)


def test_what_stands_is_never_written_over(root: Path, merged: Exported) -> None:
    with pytest.raises(RunError, match="exists already"):
        export_run("mine", gpus="cpu", root=root)
    with pytest.raises(RunError, match="no finished run"):
        export_run(root=root / "data")


def test_whole_weights_are_exported_as_merged_and_are_no_adapter(root: Path) -> None:
    status, run, events = train_here(
        root, "whole", data="scenes", method="full", max_steps=2, batch_size=4, accumulation=1, learning_rate=1e-3
    )
    assert status == 0, events[-1]
    with pytest.raises(ModelError, match="there is no adapter in it"):
        export_run("whole", to="adapter", root=root)
    made = export_run("whole", gpus="cpu", root=root)
    trained = load_file(run.adapter / "trained_weights.safetensors")
    written = load_file(Path(made.path) / "model.safetensors")
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    assert written["model.layers.0.mlp.up_proj.weight"].equal(trained[name].bfloat16())


COMMANDS = [
    ("merged", {}, "vllm", ["serve /out", "--mm-processor-kwargs {'min_pixels': 784, 'max_pixels': 7840}"]),
    ("merged", {}, "sglang", ["SGLANG_IMAGE_MAX_PIXELS=7840", "--model-path /out"]),
    (
        "adapter of the language model",
        {"base": "Qwen/Q", "name": "mine", "rank": 48},
        "vllm",
        ["serve Qwen/Q", "--max-lora-rank 64", "--lora-modules mine=/out"],
    ),
    (
        "adapter of vision too",
        {"base": "Qwen/Q", "name": "mine", "rank": 8, "vision": True},
        "vllm",
        ["--enable-tower-connector-lora"],
    ),
    ("adapter", {"base": "Qwen/Q", "name": "mine", "rank": 8}, "sglang", ["--lora-paths mine=/out"]),
]


@pytest.mark.parametrize(
    ("more", "tool", "parts"), [pytest.param(*row[1:], id=f"{row[2]}: {row[0]}") for row in COMMANDS]
)
def test_a_command_serves_in_the_trained_budget(more: dict[str, object], tool: str, parts: list[str]) -> None:
    command = serving_commands("/out", **more, min_pixels=784, max_pixels=7840)[tool]  # type: ignore[arg-type]
    words = " ".join(shlex.split(command)).replace('"', "'")
    assert all(part in words for part in parts), words
    assert "'max_pixels': 7840" in words


SETTINGS = [
    ("of transformers 4", {"patch_size": 14, "min_pixels": 1, "max_pixels": 2}, {"min_pixels": 3, "max_pixels": 4}),
    (
        "of both",
        {"patch_size": 14, "min_pixels": 1, "max_pixels": 2, "size": {"shortest_edge": 1, "longest_edge": 2}},
        {"min_pixels": 3, "max_pixels": 4, "size": {"shortest_edge": 3, "longest_edge": 4}},
    ),
    ("without a size", {"patch_size": 14}, {"size": {"shortest_edge": 3, "longest_edge": 4}}),
    ("that names no picture", {"processor_class": "P"}, {"processor_class": "P"}),
]


@pytest.mark.parametrize(("settings", "changed"), [pytest.param(*row[1:], id=row[0]) for row in SETTINGS])
def test_the_budget_is_set_under_the_keys_that_are_there(
    settings: dict[str, object], changed: dict[str, object]
) -> None:
    assert with_budget(settings, 3, 4) == {**settings, **changed}
    assert with_budget({"image_processor": settings}, 3, 4) == {"image_processor": {**settings, **changed}}


def typed(root: Path, home: Path, hub: LoopbackHub, *words: str, token: str = TOKEN) -> tuple[int, str, str]:
    """`qwenft export --run mine --to adapter …` in a process of its own, which knows this hub alone."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        [*QWENFT, "export", "--run", "mine", "--to", "adapter", *words],
        env={**clean, **environment(hub.url, home, **({"HF_TOKEN": token} if token else {}))},
        cwd=root, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_an_export_is_published_as_it_stands_and_private(root: Path, tmp_path: Path) -> None:
    with serving({}) as hub:
        status, out, err = typed(root, tmp_path, hub, "--out", "sent", "--push", "me/mine", "--send-token", "--json")
    assert status == 0, err
    assert json.loads(out)["url"] == f"{hub.url}/me/mine"
    assert hub.uploads.visibility == {"me/mine": "private"}
    stored = {path.name: path.read_bytes() for path in (root / "sent").iterdir()}
    assert hub.uploads.files["me/mine"] == stored
    assert "--lora-modules mine=me/mine" in stored["README.md"].decode()


def test_a_publication_that_fails_leaves_the_folder_and_says_how_to_go_on(root: Path, tmp_path: Path) -> None:
    with serving({}) as hub:
        hub.uploads.refuse.add("me/mine")
        status, _, err = typed(root, tmp_path, hub, "--out", "kept", "--push", "me/mine", "--send-token")
    assert status == 1
    assert err.splitlines()[-1] == f"try: hf upload me/mine {root / 'kept'}"
    assert (root / "kept" / "adapter_model.safetensors").is_file()


REFUSED = [
    ("no id", "mine", ["--send-token"], TOKEN, "is no repository"),
    ("a mirror without leave", "me/mine", [], TOKEN, "nothing is published there without your token"),
    ("no token", "me/mine", ["--send-token"], "", "does not know who you are"),
    ("a token that is unknown", "me/mine", ["--send-token"], "hf_other", "does not know who you are"),
]


@pytest.mark.parametrize(("repo", "words", "token", "says"), [pytest.param(*row[1:], id=row[0]) for row in REFUSED])
def test_who_may_not_publish_is_told_before_any_work(
    root: Path, tmp_path: Path, repo: str, words: list[str], token: str, says: str
) -> None:
    with serving({}) as hub:
        status, _, err = typed(root, tmp_path, hub, "--out", "never", "--push", repo, *words, token=token)
    assert status in (1, 2)
    assert says in err
    assert "Traceback" not in err
    assert not (root / "never").exists()
    assert hub.uploads.visibility == {}


def test_tensor_names_are_read_off_the_header(adapter: Exported) -> None:
    path = Path(adapter.path) / "adapter_model.safetensors"
    with safe_open(str(path), "pt") as file:
        assert sorted(tensor_names(path)) == sorted(file.keys())


def test_nothing_but_the_object_stands_on_stdout(root: Path) -> None:
    done = subprocess.run(
        [*QWENFT, "export", "--run", "mine", "--out", "spoken", "--gpus", "cpu", "--json"],
        cwd=root, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["path"] == str(root / "spoken")


def test_another_base_than_the_one_trained_on_is_refused(root: Path) -> None:
    run = Run(root / "runs" / "mine")
    contract = Contract.read(run.adapter)
    replace(contract, weights_sha256="0" * 64).write(run.adapter)
    try:
        with pytest.raises(ModelError, match="trained on another base model: weights_sha256"):
            export_run("mine", out=Path("other"), gpus="cpu", root=root)
    finally:
        contract.write(run.adapter)
    assert not (root / "other").exists()


def test_a_run_trained_in_four_bits_is_merged_with_a_warning(root: Path) -> None:
    run = Run(root / "runs" / "mine")
    contract = Contract.read(run.adapter)
    replace(contract, quantize="4bit").write(run.adapter)
    events: list[dict[str, object]] = []
    try:
        made = export_run("mine", out=Path("whole"), gpus="cpu", root=root, emit=events.append)  # type: ignore[arg-type]
    finally:
        contract.write(run.adapter)
    assert any("4 bits" in str(event.get("text")) for event in events if event["event"] == "warning")
    assert Contract.read(Path(made.path)).quantize is None


def test_a_card_shows_no_folder_of_the_machine_that_trained(tmp_path: Path, root: Path) -> None:
    card = (
        "---\nlibrary_name: peft\nbase_model: /data/models/mine\n---\n# faces: a LoRA adapter for /data/models/mine\n\n"
        "data: '/data/people/faces'  # Prepared data set, min/max https://example.org/a/b\n"
    )
    contract = Contract.read(root / "runs" / "mine" / "adapter")
    write_card(tmp_path, card, replace(contract, base="/data/models/mine"), {}, merged=True)
    shown = (tmp_path / "README.md").read_text()
    assert "/data" not in shown
    assert "base_model" not in shown
    assert "adapter merged into mine\n" in shown
    assert "data: 'faces'  # Prepared data set, min/max https://example.org/a/b" in shown
    write_card(tmp_path, card, replace(contract, base=DEFAULT_MODEL), {}, merged=True)
    assert f"\nbase_model: {DEFAULT_MODEL}\n" in (tmp_path / "README.md").read_text()


def test_a_model_in_the_published_layout_keeps_its_names_and_shards(root: Path, tmp_path: Path) -> None:
    base = make_published_model(tmp_path / "Q", TINY_FOLDER)
    status, _, events = train_here(
        root, "published", data="scenes", model=str(base), max_steps=2, batch_size=2, accumulation=1, learning_rate=3e-2
    )
    assert status == 0, events[-1]
    folder = Path(export_run("published", gpus="cpu", root=root).path)
    index = json.loads((base / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(tensor_names(folder / "model.safetensors")) == set(index)
    assert (folder / "config.json").read_bytes() == (base / "config.json").read_bytes()
    assert "repetition_penalty" not in (folder / "generation_config.json").read_text()


def test_the_snippet_of_the_documents_brings_a_served_box_back_to_the_picture() -> None:
    text = (Path(__file__).parents[1] / "docs" / "export.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, object] = {}
    exec(snippet, names)
    assert names["input_wh"] == (1316, 728)
    ((x1, y1, x2, y2),) = names["boxes"]  # type: ignore[misc]
    assert (round(x1), round(y1), round(x2), round(y2)) == (146, 74, 975, 555)


def test_merged_weights_still_tell_which_pictures_they_were_trained_on(root: Path, merged: Exported) -> None:
    from qwenft.evaluate.run import evaluate_run

    said: dict[str, list[str]] = {}
    for split in ("train", "val"):
        events: list[dict[str, object]] = []
        evaluate_run(
            model=merged.path,
            data="scenes",
            split=split,
            limit=2,
            gpus="cpu",
            root=root,
            emit=events.append,  # type: ignore[arg-type]
        )
        said[split] = [str(event["text"]) for event in events if event["event"] == "warning"]
    assert any("pictures were trained on" in text for text in said["train"])
    assert not any("pictures were trained on" in text for text in said["val"])
