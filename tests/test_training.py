"""Training on the CPU: the loss of rule 8, the LoRA scope, checkpoints, the contract, two processes."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training import train_here

from qwenft.core.config import make_config
from qwenft.core.errors import ModelError, RunError
from qwenft.core.runs import Contract, Run, latest_run
from qwenft.core.samples import PreparedDataset
from qwenft.demo.scenes import write_scenes
from qwenft.model.fetch import TINY_FOLDER
from qwenft.model.load import base_contract, load_base, load_config, lora_modules, meta_model
from qwenft.predict.generate import Predictor
from qwenft.prepare.build import prepare_dataset
from qwenft.train.checkpoints import complete_checkpoints, is_complete, publish
from qwenft.train.launch import train_adapter
from qwenft.train.plan import lora_scope, stops

SHARED = Path(__file__).parents[2] / "shared" / "data"


def adapter_of(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.adapter / "adapter_model.safetensors")


def losses(events: list[dict]) -> list[float]:
    return [event["loss"] for event in events if event["event"] == "step"]


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """‖one - other‖ / ‖other‖ over all tensors.

    Not element by element: where a gradient is nearly zero Adam's first updates are its sign, and rounding decides it.
    """
    assert one.keys() == other.keys()
    squares = [(float((one[k] - other[k]).square().sum()), float(other[k].square().sum())) for k in other]
    return (sum(d for d, _ in squares) / sum(o for _, o in squares)) ** 0.5


def test_one_times_eight_is_two_times_four_is_eight_times_one(workplace: Path) -> None:
    results = []
    for batch_size, accumulation in ((1, 8), (2, 4), (8, 1)):
        status, run, events = train_here(
            workplace,
            f"b{batch_size}",
            batch_size=batch_size,
            accumulation=accumulation,
            max_steps=3,
            learning_rate=1e-3,
        )
        assert status == 0
        results.append((losses(events), adapter_of(run)))
    reference_losses, reference = results[0]
    for found_losses, adapter in results[1:]:
        assert found_losses[0] == pytest.approx(reference_losses[0], rel=1e-6)
        assert found_losses == pytest.approx(reference_losses, rel=1e-5)
        assert distance(adapter, reference) < 1e-4


def test_the_fast_step_trains_what_the_plain_one_trains(workplace: Path) -> None:
    results = []
    for fast in (True, False):
        status, run, events = train_here(
            workplace, f"fast-{fast}", fast=fast, batch_size=4, accumulation=2, max_steps=3, learning_rate=1e-3,
            parts="language,vision",
        )  # fmt: skip
        assert status == 0
        assert not [event for event in events if event["event"] == "warning"]
        results.append((losses(events), adapter_of(run)))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    assert distance(results[0][1], results[1][1]) < 1e-3


def test_training_learns_and_leaves_everything_that_the_design_names(workplace: Path) -> None:
    status, run, events = train_here(
        workplace, "learns", batch_size=4, accumulation=1, epochs=6, learning_rate=5e-3, rank=8,
        parts="language,merger", eval_samples=4, eval_every=5, keep_last=1,
    )  # fmt: skip
    assert status == 0
    found = losses(events)
    assert sum(found[-3:]) < 0.5 * sum(found[:3])
    plan = next(event for event in events if event["event"] == "plan")
    assert len(found) == plan["updates"]["total"]
    assert [e["step"] for e in events if e["event"] == "eval"] == plan["evaluations"]
    assert [e["step"] for e in events if e["event"] == "checkpoint"] == plan["checkpoints"]
    assert [path.name for path in complete_checkpoints(run.checkpoints)] == [f"step-{plan['updates']['total']}"]
    for name in ("config.yaml", "events.jsonl", "curves.png", "adapter/README.md", "adapter/contract.json"):
        assert (run.path / name).stat().st_size > 0, name
    kept = [json.loads(line) for line in run.events.read_text().splitlines()]
    assert [e["step"] for e in kept if e["event"] == "step"] == list(range(1, plan["updates"]["total"] + 1))
    assert latest_run(workplace) is not None and latest_run(workplace).name == "learns"
    finished = events[-1]
    values = {e["step"]: e["value"] for e in events if e["event"] == "eval" and e["step"]}
    assert finished["value"] == max(values.values())
    assert finished["best_step"] == max(step for step, value in values.items() if value == finished["value"])


@pytest.mark.parametrize("parts", [("language",), ("merger",), ("vision",), ("language", "merger")], ids="+".join)
def test_lora_is_put_on_the_parts_asked_for_and_on_no_other(parts: tuple[str, ...]) -> None:
    scope = lora_scope(make_config({"parts": parts, "rank": 2}, "a test"), load_config("tiny"))
    model = meta_model(load_config("tiny"))
    expected = {"language": 6 * 7, "merger": 2, "vision": 4 * 5}
    assert scope["modules"] == {part: expected[part] for part in parts}
    for part, names in {p: lora_modules(model, p) for p in expected}.items():
        assert all((".language_model." in n) == (part == "language") for n in names)
        assert all((".merger." in n) == (part == "merger") for n in names)


def test_only_the_parts_asked_for_move(workplace: Path) -> None:
    status, run, _ = train_here(workplace, "merger", parts="merger", max_steps=2, batch_size=4, accumulation=1)
    assert status == 0
    adapter = adapter_of(run)
    assert adapter and all("visual.merger" in name for name in adapter)
    assert all(tensor.abs().sum() > 0 for name, tensor in adapter.items() if "lora_B" in name)


@pytest.mark.parametrize(("size", "billions", "modules"), [("3b", 3.75, 252), ("7b", 8.29, 196)], ids=["3b", "7b"])
def test_the_published_architectures_have_a_plan_without_weights(
    scenes: PreparedDataset, tmp_path: Path, size: str, billions: float, modules: int
) -> None:
    from qwenft.core.devices import Devices
    from qwenft.train.mixture import Mixture
    from qwenft.train.plan import make_plan

    published = SHARED / f"config-{size}.json"
    for file in TINY_FOLDER.iterdir():  # its processor; the plan reads no weights
        if file.suffix != ".safetensors" and file.name != "contract.json":
            shutil.copy(file, tmp_path / file.name)
    if published.is_file():
        shutil.copy(published, tmp_path / "config.json")
    else:
        from published_model import CONFIG

        shapes = {"3b": (2048, 11008, 36, 16, 2, True), "7b": (3584, 18944, 28, 28, 4, False)}[size]
        keys = (
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "tie_word_embeddings",
        )
        vision = {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": shapes[0],
        }
        value = {
            **CONFIG,
            **dict(zip(keys, shapes, strict=True)),
            "vision_config": {**CONFIG["vision_config"], **vision},
        }
        value |= {"vocab_size": 151936 if size == "3b" else 152064}
        (tmp_path / "config.json").write_text(json.dumps(value))
    config = make_config({"model": str(tmp_path)}, "a test")
    contract = base_contract(str(tmp_path), weights=False)
    plan = make_plan(config, Mixture.of([scenes]), contract, Devices("cuda", 2, (1, 3), ("A", "A")))
    assert plan["lora"]["total"] / 1e9 == pytest.approx(billions, rel=0.01)
    assert plan["lora"]["modules"] == {"language": modules}
    assert plan["batch"]["effective"] == 2 * 2 * 8
    assert plan["devices"] == ["cuda:0 = GPU 1 (A)", "cuda:1 = GPU 3 (A)"]
    assert plan["memory_gib"]["weights"] == pytest.approx(billions * 2e9 / 2**30, rel=0.01)


def test_an_adapter_obeys_its_contract_and_refuses_another_base(workplace: Path, tmp_path: Path) -> None:
    status, run, _ = train_here(
        workplace, "contract", max_steps=1, batch_size=2, accumulation=1, min_pixels=6272, max_pixels=12544
    )
    assert status == 0
    predictor = Predictor.load("tiny", run.adapter, gpus="cpu")
    contract = Contract.read(run.adapter)
    assert (predictor.contract.min_pixels, predictor.contract.max_pixels) == (6272, 12544)
    assert contract.data == "scenes" and contract.tasks == ("grounding",) and len(contract.pictures) == 16
    other = tmp_path / "other"
    shutil.copytree(TINY_FOLDER, other)
    config = json.loads((other / "config.json").read_text())
    config["text_config"]["rope_parameters"]["rope_theta"] = 11.0
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="config_sha256"):
        Predictor.load(str(other), run.adapter, gpus="cpu")


def test_a_model_without_safetensors_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    shutil.copytree(TINY_FOLDER, tmp_path / "a", ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save({}, tmp_path / "a" / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        load_base(str(tmp_path / "a"), torch.float32, "cpu")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelError, match="bert"):
        load_config(str(tmp_path / "b"))


def test_a_torn_checkpoint_is_not_taken_for_a_complete_one(tmp_path: Path) -> None:
    staged = tmp_path / "staged"
    staged.mkdir()
    (staged / "weights").write_bytes(b"0123456789")
    publish(staged, tmp_path / "step-10")
    assert is_complete(tmp_path / "step-10")
    shutil.copytree(tmp_path / "step-10", tmp_path / "step-20")
    (tmp_path / "step-20" / "weights").write_bytes(b"01234")
    shutil.copytree(tmp_path / "step-10", tmp_path / "step-9")
    (tmp_path / "step-9" / "complete.json").unlink()
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["step-10"]


def test_a_dry_run_shows_the_plan_and_writes_nothing(workplace: Path) -> None:
    status, run, events = train_here(workplace, "dry", dry_run=True)
    assert status == 0
    assert [event["event"] for event in events] == ["plan"]
    assert not run.path.exists() and not (workplace / "runs").exists()


def test_stops_fall_at_each_interval_and_at_the_end() -> None:
    assert stops(5, 10) == [5, 10]
    assert stops(4, 10) == [4, 8, 10]
    assert stops(100, 10) == [10]


@pytest.mark.timeout(300)
def test_two_processes_train_what_one_trains(workplace: Path) -> None:
    write_scenes(workplace / "captions", num_train=4, num_val=2, seed=2, task="caption")
    prepare_dataset("captions", root=workplace)
    settings = {
        "model": "tiny", "workers": 0, "rank": 4, "alpha": 8, "dropout": 0.0, "eval_samples": 3, "max_steps": 2,
        "learning_rate": 1e-3, "data": "scenes:1,captions:1", "augment": {"crop": 0.2, "hflip": 0.5},
    }  # fmt: skip
    _, one, events = train_here(
        workplace, "one", batch_size=12, accumulation=1, **{k: v for k, v in settings.items() if k != "model"}
    )
    seen: list[dict] = []
    two = train_adapter(
        make_config({**settings, "name": "two", "gpus": "cpu:2", "batch_size": 6, "accumulation": 1}, "a test"),
        root=workplace,
        emit=seen.append,
    )
    assert losses(seen) == pytest.approx(losses(events), rel=1e-5)
    by_task = [[e["loss_by_task"] for e in listed if e["event"] == "step"] for listed in (events, seen)]
    assert by_task[0] == [pytest.approx(found, rel=1e-4) for found in by_task[1]]
    reference, adapter = adapter_of(one), adapter_of(two)
    assert distance(adapter, reference) < 1e-4
    scores = [[e["scores"] for e in listed if e["event"] == "eval"] for listed in (events, seen)]
    assert scores[0][0] == scores[1][0]


def test_a_name_that_is_taken_is_refused_before_anything_starts(workplace: Path) -> None:
    (workplace / "runs" / "mine").mkdir(parents=True)
    with pytest.raises(RunError, match="exists already"):
        train_adapter(make_config({"model": "tiny", "name": "mine", "gpus": "cpu"}, "a test"), root=workplace)
