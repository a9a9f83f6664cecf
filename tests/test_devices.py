"""Which GPUs `--gpus` means: as nvidia-smi numbers them, whatever order they are named in."""

import pytest

from qwenft.core import devices
from qwenft.core.devices import choose_devices
from qwenft.core.errors import DeviceError, QwenftError, UsageError

FOUR = {0: "NVIDIA A", 1: "NVIDIA B", 2: "NVIDIA C", 3: "NVIDIA D"}


@pytest.fixture(autouse=True)
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_installed_gpus", lambda: (FOUR, ""))


@pytest.mark.parametrize(
    ("gpus", "visible", "mapping", "exported"),
    [
        pytest.param(None, None, ["cuda:0 = GPU 0 (NVIDIA A)"], "0", id="the first one by default"),
        pytest.param("2", None, ["cuda:0 = GPU 2 (NVIDIA C)"], "2", id="one"),
        pytest.param("3,1", None, ["cuda:0 = GPU 3 (NVIDIA D)", "cuda:1 = GPU 1 (NVIDIA B)"], "3,1", id="order kept"),
        pytest.param(" 1 , 3 ", None, ["cuda:0 = GPU 1 (NVIDIA B)", "cuda:1 = GPU 3 (NVIDIA D)"], "1,3", id="spaces"),
        pytest.param("ALL", "2,0", ["cuda:0 = GPU 2 (NVIDIA C)", "cuda:1 = GPU 0 (NVIDIA A)"], "2,0", id="all visible"),
        pytest.param(None, "3,1", ["cuda:0 = GPU 3 (NVIDIA D)"], "3", id="the first visible one"),
        pytest.param(
            "0", "0,9,1", ["cuda:0 = GPU 0 (NVIDIA A)"], "0", id="CUDA's list ends at an id that is not there"
        ),
        pytest.param(None, "", ["cpu"], "", id="all hidden"),
        pytest.param(None, "-1", ["cpu"], "", id="hidden by -1"),
        pytest.param("cpu", None, ["cpu"], "", id="cpu"),
        pytest.param("CPU:2", None, ["cpu, 2 processes"], "", id="two processes"),
    ],
)
def test_the_mapping_says_which_gpu_each_name_of_torch_is(
    gpus: str | None, visible: str | None, mapping: list[str], exported: str
) -> None:
    chosen = choose_devices(gpus, {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    assert chosen.mapping() == mapping
    assert chosen.processes == (2 if gpus == "CPU:2" else len(mapping))
    assert chosen.environment() == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": exported}


@pytest.mark.parametrize(
    ("gpus", "visible", "kind", "said", "hint"),
    [
        pytest.param("7", None, DeviceError, "no GPU 7", "0 (NVIDIA A)", id="not there"),
        pytest.param("1", "0,2", DeviceError, "outside CUDA_VISIBLE_DEVICES=0,2", "--gpus 0,2", id="outside"),
        pytest.param("1", "0,9,1", DeviceError, "outside CUDA_VISIBLE_DEVICES", "--gpus 0", id="behind a wrong id"),
        pytest.param("1", "GPU-5a1b", DeviceError, "by UUID", "numbers", id="UUID"),
        pytest.param("all", "", DeviceError, "hides every GPU", "--gpus cpu", id="all of none"),
        pytest.param("0,0", None, UsageError, "GPU 0 stands there twice", "once", id="twice"),
        pytest.param("0,00", None, UsageError, "GPU 0 stands there twice", "once", id="twice, written in two ways"),
        pytest.param(",", None, UsageError, "cannot be read", "--gpus 1,3", id="a comma"),
        pytest.param("", None, UsageError, "cannot be read", "--gpus 1,3", id="empty"),
        pytest.param("0,", None, UsageError, "cannot be read", "--gpus 1,3", id="a comma too many"),
        pytest.param("cuda:1", None, UsageError, "cannot be read", "--gpus 1,3", id="torch's name"),
        pytest.param("-1", None, UsageError, "cannot be read", "--gpus 1,3", id="negative"),
        pytest.param("cpu:0", None, UsageError, "cannot be read", "--gpus 1,3", id="no process"),
    ],
)
def test_what_cannot_be_used_is_refused_with_a_way_out(
    gpus: str, visible: str | None, kind: type[QwenftError], said: str, hint: str
) -> None:
    with pytest.raises(kind, match=r".") as caught:
        choose_devices(gpus, {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    assert said in str(caught.value)
    assert hint in caught.value.hint


def test_without_any_gpu_the_cpu_is_taken_unless_a_gpu_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_installed_gpus", lambda: ({}, "no driver"))
    assert choose_devices(None, {}).mapping() == ["cpu"]
    for gpus in ("0", "all"):
        with pytest.raises(DeviceError, match="no NVIDIA GPU is there \\(no driver\\)"):
            choose_devices(gpus, {})


def test_hidden_gpus_are_not_said_to_be_absent() -> None:
    with pytest.raises(DeviceError) as caught:
        choose_devices("0", {"CUDA_VISIBLE_DEVICES": ""})
    assert "outside CUDA_VISIBLE_DEVICES=" in str(caught.value)
    assert caught.value.hint == "unset CUDA_VISIBLE_DEVICES"
