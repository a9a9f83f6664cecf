"""On a GPU: the doctor's probes, known boxes, and an export that is merged and compared there."""

from pathlib import Path

import pytest
from training import train_here

from qwenft.core.samples import PreparedDataset
from qwenft.doctor.diagnose import diagnose
from qwenft.doctor.environment import gpu_findings, torch_findings
from qwenft.doctor.probes import ask
from qwenft.export.run import export_run

pytestmark = pytest.mark.gpu


def test_the_driver_the_gpus_and_torch_are_found_well() -> None:
    gpus = list(gpu_findings())
    assert gpus[0].verdict == "ok"
    assert all("bf16 yes" in gpu.found for gpu in gpus[1:])
    found = {row.check: row for row in torch_findings(ask("torch"), num_gpus=len(gpus) - 1)}
    assert {found[name].verdict for name in ("torch", "varlen attention", "NCCL")} == {"ok"}
    assert not [row for row in found.values() if row.verdict == "broken"]


def test_the_embedded_model_finds_the_known_boxes_on_a_gpu() -> None:
    found = diagnose(model="tiny", gpus="0").model
    assert found is not None
    assert found.readings["input pixels"] > 0.9
    assert found.parse_rate == 1


def test_an_adapter_is_merged_and_compared_on_a_gpu(scenes: PreparedDataset, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "scenes").symlink_to(scenes.path)
    settings = {"data": "scenes", "parts": "language,vision", "learning_rate": 3e-3, "batch_size": 4}
    status, _, events = train_here(tmp_path, "mine", accumulation=1, epochs=2, **settings)
    assert status == 0, events[-1]
    made = export_run("mine", gpus="0", root=tmp_path)
    assert made.difference is not None
    assert made.effect is not None
    assert made.difference < made.effect / 4
