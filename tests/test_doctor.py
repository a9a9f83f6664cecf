"""The doctor: what is fine is said to be fine, and each thing that is broken on purpose is found and named."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from loopback_hub import environment, serving
from safetensors.torch import load_file, save_file
from training import train_here

from qwenft.core.config import DEFAULT_MODEL
from qwenft.core.files import read_json, write_json, write_jsonl
from qwenft.core.runs import Run
from qwenft.core.samples import PreparedDataset
from qwenft.doctor import network, probes
from qwenft.doctor.data import check_data
from qwenft.doctor.environment import (
    disk_finding,
    gpu_finding,
    gpu_findings,
    locale_finding,
    optional_finding,
    packages_finding,
    torch_findings,
)
from qwenft.doctor.findings import Finding, broken_error
from qwenft.doctor.run import check_run
from qwenft.model.fetch import TINY_FOLDER

# The machine

EXAMINE = """
import json, sys
from qwenft.doctor.environment import check_machine
found = [finding.to_json() for finding in check_machine()]
heavy = [name for name in ("torch", "transformers", "numpy", "bitsandbytes", "deepspeed") if name in sys.modules]
print(json.dumps({"found": found, "heavy": heavy}))
"""


def test_the_machine_is_looked_at_without_loading_anything_heavy(tmp_path: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    with serving({f"models/{DEFAULT_MODEL}": TINY_FOLDER}) as hub:
        done = subprocess.run(
            [sys.executable, "-c", EXAMINE],
            env={**clean, **environment(hub.url, tmp_path, HF_TOKEN="hf_secret"), "PYTHONUTF8": "1"},
            capture_output=True, text=True, check=True, timeout=120,
        )  # fmt: skip
        assert [seen.token for seen in hub.seen] == [None] * len(hub.seen)
    said = json.loads(done.stdout)
    assert said["heavy"] == []
    found = {row["check"]: row for row in said["found"]}
    named = {"Python", "packages", "driver", "torch", "varlen attention", "NCCL", "bitsandbytes", "deepspeed"}
    assert named | {"hub", "cache", "disk", "locale"} <= found.keys()
    assert {found[name]["verdict"] for name in ("Python", "packages", "torch", "hub", "locale")} == {"ok"}
    assert "(a mirror) answers in" in found["hub"]["found"]
    assert "MB/s" in found["hub"]["found"]


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Lets this process ask a hub, whatever it asked before."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("huggingface_hub.constants", "datasets.config"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for name in ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY", "HF_UPDATE_DOWNLOAD_COUNTS"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    return lambda url: monkeypatch.setenv("HF_ENDPOINT", url)


def test_a_hub_that_is_not_there_is_a_warning_with_another_address(endpoint: Callable[[str], None]) -> None:
    endpoint("http://127.0.0.1:9")
    found = network.hub_finding()
    assert (found.verdict, "cannot reach http://127.0.0.1:9" in found.found) == ("warning", True)
    assert found.mend.startswith("export HF_ENDPOINT=https://hf-mirror.com")


def test_a_hub_that_says_nothing_is_given_up_in_time(
    endpoint: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "LIMIT_S", 0.3)
    with serving({}) as hub:
        hub.faults.silent_s = 3
        endpoint(hub.url)
        found = network.hub_finding()
    assert "no answer within" in found.found


def test_a_hub_without_the_model_and_no_address_are_told(endpoint: Callable[[str], None]) -> None:
    with serving({}) as hub:
        endpoint(hub.url)
        assert "HTTP 40" in network.hub_finding().found
    endpoint("hf-mirror.com")
    assert network.hub_finding().verdict == "warning"


def test_a_probe_that_hangs_or_fails_is_a_finding_and_no_traceback() -> None:
    assert probes.ask("torch", limit_s=0.01) == {"error": "no answer within 0 s"}
    assert "exit status 1" in probes.ask("nothing")["error"]


FINE: dict[str, Any] = {
    "version": "2.15.0", "cuda": "13.0", "available": True, "torchvision": "", "varlen": "", "devices": ["", ""],
    "nccl": "2.27", "seconds": 1.0,
}  # fmt: skip
TORCH = [
    ("all is well", {}, 2, []),
    ("cannot be loaded", {"error": "killed by signal 11"}, 2, [("torch", "broken")]),
    ("a CPU build beside GPUs", {"available": False, "cuda": None, "nccl": None}, 2, [("torch", "broken")]),
    ("a kernel is missing", {"devices": ["", "no kernel image"]}, 2, [("cuda:1", "broken")]),
    ("torchvision of another build", {"torchvision": "operator nms does not exist"}, 1, [("torchvision", "broken")]),
    ("no varlen", {"varlen": "not compiled"}, 1, [("varlen attention", "warning")]),
    ("no NCCL for two", {"nccl": None}, 2, [("NCCL", "warning")]),
    ("no GPU at all", {"available": False, "varlen": "there is no GPU", "nccl": None}, 0, []),
]


@pytest.mark.parametrize(("change", "gpus", "wrong"), [pytest.param(*row[1:], id=row[0]) for row in TORCH])
def test_what_torch_says_is_judged_against_the_gpus(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], gpus: int, wrong: list[tuple[str, str]]
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = torch_findings({**FINE, **change}, num_gpus=gpus)
    bad = [(row.check, row.verdict) for row in found if row.verdict in ("warning", "broken")]
    assert set(wrong) <= set(bad)
    assert bad[:1] == wrong[:1]
    assert all(row.mend for row in found if row.verdict in ("warning", "broken"))


def test_hidden_gpus_are_no_fault_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = torch_findings({**FINE, "available": False}, num_gpus=2)[0]
    assert (found.verdict, found.mend) == ("note", "unset CUDA_VISIBLE_DEVICES")


GPUS = [
    ("free", (9, 0), 79.0, "ok", "bf16 yes"),
    ("old", (7, 5), 15.0, "warning", "bf16 no"),
    ("in use", (8, 0), 8.0, "warning", "others are using it"),
]


@pytest.mark.parametrize(("capability", "free", "verdict", "says"), [pytest.param(*r[1:], id=r[0]) for r in GPUS])
def test_a_gpu_is_told_by_memory_and_bf16(capability: tuple[int, int], free: float, verdict: str, says: str) -> None:
    total = 16.0 if capability < (8, 0) else 80.0
    found = gpu_finding(1, "NVIDIA X", capability, total, free)
    assert (found.check, found.verdict) == ("GPU 1", verdict)
    assert says in found.found


class NoDriver(Exception):
    """Stands for NVMLError."""

    value = 12


def nvml(**changes: Any) -> SimpleNamespace:
    """What pynvml says on a machine with two GPUs."""
    said: dict[str, Any] = {
        "NVMLError": NoDriver,
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlSystemGetDriverVersion": lambda: "575.57",
        "nvmlSystemGetCudaDriverVersion": lambda: 12090,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda number: number,
        "nvmlDeviceGetName": lambda number: f"NVIDIA X{number}",
        "nvmlDeviceGetMemoryInfo": lambda number: SimpleNamespace(total=80 * 2**30, free=(79 - 60 * number) * 2**30),
        "nvmlDeviceGetCudaComputeCapability": lambda number: (9, 0),
    }
    return SimpleNamespace(**{**said, **changes})


class Mismatch(NoDriver):
    value = 18


def absent() -> None:
    raise NoDriver("NVML Shared Library Not Found")


def refuse(*_: object) -> None:
    raise Mismatch("driver/library version mismatch")


def test_driver_and_gpus_are_read_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml())
    found = list(gpu_findings())
    assert [(row.check, row.verdict) for row in found] == [("driver", "ok"), ("GPU 0", "ok"), ("GPU 1", "warning")]
    assert found[0].found == "575.57, CUDA up to 12.9"
    assert found[1].found == "NVIDIA X0, 79.0 of 80.0 GiB free, bf16 yes"


def test_no_driver_is_a_note_and_one_that_does_not_fit_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml(nvmlInit=absent))
    assert [row.verdict for row in gpu_findings()] == ["note"]
    for broken in ("nvmlInit", "nvmlDeviceGetCount"):
        monkeypatch.setitem(sys.modules, "pynvml", nvml(**{broken: refuse}))
        found = list(gpu_findings())[-1]
        assert (found.verdict, "version mismatch" in found.found) == ("broken", True)


def test_packages_that_are_missing_or_too_old_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    own = metadata.version
    assert packages_finding().verdict == "ok"

    def version(name: str) -> str:
        if name == "peft":
            raise metadata.PackageNotFoundError(name)
        return "4.51.3" if name == "transformers" else own(name)

    monkeypatch.setattr(metadata, "version", version)
    found = packages_finding()
    assert found.verdict == "broken"
    assert "peft is missing" in found.found
    assert "transformers is 4.51.3, needed <6,>=5.24" in found.found
    assert found.mend.startswith("pip install 'peft>=")
    monkeypatch.setattr(metadata, "requires", lambda name: (_ for _ in ()).throw(metadata.PackageNotFoundError(name)))
    assert packages_finding().verdict == "note"


def test_an_optional_library_is_only_noted_where_it_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    found = optional_finding("deepspeed")
    assert (found.verdict, found.mend) == ("note", "pip install 'qwenft[deepspeed]'")
    monkeypatch.setattr(metadata, "version", lambda name: "0.10")
    assert optional_finding("deepspeed").verdict == "warning"
    monkeypatch.setattr(metadata, "version", lambda name: "0.99")
    monkeypatch.setattr("qwenft.doctor.environment.ask", lambda name: {"error": "libcudart is missing"})
    assert "quantize=4bit needs it: libcudart is missing" in optional_finding("bitsandbytes").found


def test_a_full_disk_and_a_foreign_locale_are_warnings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert disk_finding(tmp_path / "not" / "there").found.startswith(f"{tmp_path}/not/there, ")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2e9))
    assert disk_finding(tmp_path).verdict == "warning"
    monkeypatch.setattr("locale.getpreferredencoding", lambda _: "ANSI_X3.4-1968")
    assert (locale_finding().verdict, locale_finding().mend) == ("warning", "export PYTHONUTF8=1")


def test_the_exit_says_what_is_broken_and_only_then() -> None:
    fine = [Finding("a", "ok", ""), Finding("b", "warning", "", "mend b"), Finding("c", "note", "")]
    assert broken_error(fine) is None
    error = broken_error([*fine, Finding("d", "broken", "", "mend d")])
    assert (str(error), error and error.hint) == ("1 of 4 checks failed: d", "mend d")


# A data set


@pytest.fixture
def data(scenes: PreparedDataset, tmp_path: Path) -> Path:
    return Path(shutil.copytree(scenes.path, tmp_path / "data" / "scenes"))


def first_row(data: Path) -> tuple[list[dict[str, Any]], Path]:
    rows = [json.loads(line) for line in (data / "train.jsonl").read_text().splitlines()]
    return rows, data / rows[0]["image"]


def without_picture(data: Path) -> None:
    first_row(data)[1].unlink()


def with_changed_picture(data: Path) -> None:
    path = first_row(data)[1]
    path.write_bytes(path.read_bytes() + b"\0")


def with_box(box: list[float]) -> Callable[[Path], None]:
    def change(data: Path) -> None:
        rows, _ = first_row(data)
        rows[0]["objects"][0]["bbox"] = box
        write_jsonl(data / "train.jsonl", rows)

    return change


def with_size(data: Path) -> None:
    rows, path = first_row(data)
    for row in rows:
        if data / row["image"] == path:
            row["width"] += 10
    write_jsonl(data / "train.jsonl", rows)


def without_a_row(data: Path) -> None:
    write_jsonl(data / "train.jsonl", first_row(data)[0][1:])


def with_an_id_twice(data: Path) -> None:
    rows, _ = first_row(data)
    rows[1]["id"] = rows[0]["id"]
    write_jsonl(data / "train.jsonl", rows)


def with_a_leak(data: Path) -> None:
    rows, path = first_row(data)
    held = [json.loads(line) for line in (data / "val.jsonl").read_text().splitlines()]
    held[0] |= {key: rows[0][key] for key in ("image", "width", "height", "objects")}
    write_jsonl(data / "val.jsonl", held)
    assert path.is_file()


SABOTAGE = [
    ("a picture is gone", without_picture, "pictures", "broken", "1 missing"),
    ("a picture is another", with_changed_picture, "pictures", "broken", "1 changed"),
    ("a box beyond the side", with_box([0, 0, 5000, 20]), "boxes", "broken", "1 outside the picture"),
    ("a box turned round", with_box([30, 30, 10, 40]), "boxes", "broken", "1 flat or reversed"),
    ("a declared size is wrong", with_size, "sizes", "broken", "1 of another size"),
    ("a row is gone", without_a_row, "split train", "broken", "its manifest says"),
    ("an id stands twice", with_an_id_twice, "samples", "broken", "1 ids stand there twice"),
    ("a picture in two splits", with_a_leak, "splits", "warning", "1 pictures stand in more than one"),
]


@pytest.mark.parametrize(
    ("sabotage", "check", "verdict", "says"), [pytest.param(*row[1:], id=row[0]) for row in SABOTAGE]
)
def test_a_data_set_that_was_changed_is_found_out(
    data: Path, sabotage: Callable[[Path], None], check: str, verdict: str, says: str
) -> None:
    assert {row.verdict for row in check_data(data)} == {"ok"}
    sabotage(data)
    found = {row.check: row for row in check_data(data)}
    assert found[check].verdict == verdict, found
    assert says in found[check].found
    assert found[check].mend


def test_a_data_set_is_named_as_everywhere_and_broken_ones_end_with_1(data: Path) -> None:
    without_picture(data)
    done = subprocess.run(
        [sys.executable, "-m", "qwenft", "doctor", "--data", "scenes", "--json"],
        cwd=data.parents[1], capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    said = json.loads(done.stdout)
    assert said["verdict"] == "broken"
    assert "error: 1 of 5 checks failed: pictures" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("try: qwenft prepare --dataset ")


# A run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, scenes: PreparedDataset) -> Path:
    root = tmp_path_factory.mktemp("doctor")
    (root / "data").mkdir()
    (root / "data" / "scenes").symlink_to(scenes.path)
    status, _, events = train_here(
        root, "mine", data="scenes", max_steps=2, save_every=1, batch_size=2, accumulation=1, learning_rate=1e-2
    )
    assert status == 0, events[-1]
    return root


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Run:
    return Run(Path(shutil.copytree(trained / "runs" / "mine", tmp_path / "runs" / "mine")))


def weights(run: Run) -> Path:
    return run.adapter / "adapter_model.safetensors"


def zero(run: Run, share: float) -> None:
    tensors = load_file(weights(run))
    ups = sorted(name for name in tensors if ".lora_B." in name)
    for name in ups[: round(len(ups) * share)]:
        tensors[name] = -0.0 * tensors[name]
    save_file(tensors, weights(run))


def idle(run: Run) -> None:
    zero(run, 1)


def half_idle(run: Run) -> None:
    zero(run, 0.5)


def not_finite(run: Run) -> None:
    tensors = load_file(weights(run))
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, weights(run))


def in_half_precision(run: Run) -> None:
    save_file({name: tensor.bfloat16() for name, tensor in load_file(weights(run)).items()}, weights(run))


def truncated(run: Run) -> None:
    weights(run).write_bytes(weights(run).read_bytes()[:-100])


def torn(run: Run) -> None:
    newest = max(run.checkpoints.iterdir())
    (newest / "trainer_state.json").unlink()


def without_contract(run: Run) -> None:
    (run.adapter / "contract.json").unlink()


def other_settings(run: Run) -> None:
    run.config.write_text(f"{run.config.read_text()}colour: red\n")


def unfinished(run: Run) -> None:
    run.rewrite_events([event for event in run.read_events() if event["event"] not in ("finished", "adapter")])
    shutil.rmtree(run.adapter)


RUNS = [
    ("idle", idle, "adapter", "broken", "changes nothing"),
    ("half of it idle", half_idle, "adapter", "warning", "LoRA layers are zero"),
    ("not finite", not_finite, "adapter", "broken", "1 of "),
    ("in half precision", in_half_precision, "adapter", "ok", "none idle"),
    ("truncated", truncated, "adapter", "broken", "no whole safetensors file"),
    ("a torn checkpoint", torn, "checkpoints", "warning", "torn, and passed over: step-2"),
    ("no contract", without_contract, "contract", "broken", "contract.json"),
    ("settings of another version", other_settings, "settings", "warning", "unknown setting 'colour'"),
    ("unfinished", unfinished, "state", "warning", "interrupted"),
    ("unfinished, so no adapter", unfinished, "adapter", "note", "none yet"),
]


@pytest.mark.parametrize(("sabotage", "check", "verdict", "says"), [pytest.param(*row[1:], id=row[0]) for row in RUNS])
def test_a_run_that_was_harmed_is_found_out(
    run: Run, tmp_path: Path, sabotage: Callable[[Run], None], check: str, verdict: str, says: str
) -> None:
    assert {row.verdict for row in check_run("mine", root=tmp_path)} == {"ok"}
    sabotage(run)
    found = {row.check: row for row in check_run("mine", root=tmp_path)}
    assert found[check].verdict == verdict, found
    assert says in found[check].found


def test_manifest_stays_as_it_was(data: Path) -> None:
    before = read_json(data / "manifest.json")
    check_data(data)
    assert read_json(data / "manifest.json") == before
    write_json(data / "manifest.json", {**before, "schema_version": 99})
    with pytest.raises(Exception, match="schema version 99"):
        check_data(data)
