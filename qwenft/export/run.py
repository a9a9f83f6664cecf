"""The body of `export`: a run becomes a folder that transformers, peft, vLLM and SGLang load, whole or absent."""

import json
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from safetensors import SafetensorError

from qwenft.core.errors import ModelError, RunError
from qwenft.core.events import Emit, ignore, note, waiting, warning
from qwenft.core.files import read_json, sha256_of_file, whole_folder, write_json
from qwenft.core.runs import Contract, Run, choose_answerer
from qwenft.export.beside import is_hub_id, write_beside, write_card
from qwenft.export.push import check_push, push
from qwenft.export.serving import serving_commands
from qwenft.model.fetch import WEIGHTS, model_folder

Form = Literal["merged", "adapter"]
FORMS: Final[tuple[Form, ...]] = ("merged", "adapter")
ADAPTER_FILE: Final = "adapter_model.safetensors"
ADAPTER_CONFIG: Final = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class Exported:
    """What was made, and how it is served."""

    run: str
    to: Form
    path: str
    base: str
    commands: dict[str, str]
    """Tool -> the command that serves it in the pixel budget of the training."""
    dtype: str | None = None
    """Of merged weights."""
    difference: float | None = None
    """Merged against unmerged: mean difference in log probability of the likeliest token."""
    effect: float | None = None
    """What the adapter itself changes, in the same measure."""
    url: str | None = None
    """Where it was published."""

    def to_json(self) -> dict[str, Any]:
        """One JSON object."""
        return asdict(self)

    @property
    def next_command(self) -> str:
        """What one would type now."""
        if self.to == "merged":
            return f"qwenft eval --model {shlex.quote(self.path)}"
        return self.commands["vllm"]


def export_run(
    run: str | None = None,
    *,
    to: Form = "merged",
    out: Path | None = None,
    push_to: str | None = None,
    send_token: bool = False,
    gpus: str | None = None,
    root: Path | None = None,
    emit: Emit = ignore,
) -> Exported:
    """Write a run's result into a folder for other tools, and publish it where `push_to` names a repository.

    run: None is the latest finished one.  to: `merged`, whole weights in the base's number format;
    `adapter`, LoRA as it is.  out: None is runs/<name>/export/<to>.  Merged weights are read back and compared with
    the adapter beside its base before the folder gets its name.
    Raises UsageError, RunError, ModelError, DeviceError, HubError.

    >>> from qwenft import export_run
    >>> made = export_run("first", to="adapter")
    >>> made.base, sorted(made.commands)
    ('tiny', ['sglang', 'vllm'])
    """
    source, model, contract = _chosen(run, root)
    folder = ((root or Path.cwd()) / out if out else source.path / "export" / to).absolute()
    if folder.exists():
        raise RunError(f"{folder} exists already", hint=f"--out another-folder, or: rm -r {shlex.quote(str(folder))}")
    if to == "adapter" and not (source.adapter / ADAPTER_FILE).is_file():
        raise ModelError(f"the run {source.name} trained whole weights: there is no adapter in it", hint="--to merged")
    access = check_push(push_to, send_token=send_token) if push_to else None
    emit(note(f"exporting the run {source.name}, trained on {model}"))
    base_folder = model_folder(model, weights=to == "merged", emit=emit)
    _check_room(folder, _bytes_of(base_folder if to == "merged" else source.adapter))
    job = _Job(source, model, contract, base_folder, folder)
    with _writing(folder), whole_folder(folder) as staging:
        made = _merged(job, staging, gpus, emit) if to == "merged" else _adapter(job, staging)
        card = source.adapter / "README.md"
        text = card.read_text(encoding="utf-8") if card.is_file() else f"# {source.name}\n"
        write_card(staging, text, contract, job.commands(to, push_to or "FOLDER"), merged=to == "merged")
        for path in staging.iterdir():
            path.chmod(0o644)  # safetensors leaves its files to their owner alone
    if access is None or push_to is None:
        return made
    return replace(made, url=push(folder, push_to, access, emit))


def _chosen(run: str | None, root: Path | None) -> tuple[Run, str, Contract]:
    """The run, the base model it was trained on, and its contract."""
    chosen = choose_answerer(run, None, root)
    if chosen.run is None or chosen.contract is None:
        raise RunError("there is no finished run to export", hint="qwenft runs")
    return chosen.run, chosen.model, chosen.contract


@dataclass(frozen=True, slots=True)
class _Job:
    """What is exported to where."""

    run: Run
    model: str
    contract: Contract
    base_folder: Path
    """The base model's own files."""
    folder: Path

    def commands(self, to: Form, target: str) -> dict[str, str]:
        """How `target` is served: the folder, or where it was published."""
        low, high = self.contract.min_pixels, self.contract.max_pixels
        if to == "merged":
            return serving_commands(target, min_pixels=low, max_pixels=high)
        return serving_commands(
            target,
            base=self.base,
            name=self.run.name,
            rank=int(read_json(self.run.adapter / ADAPTER_CONFIG)["r"]),
            vision=any(".visual." in name for name in tensor_names(self.run.adapter / ADAPTER_FILE)),
            min_pixels=low,
            max_pixels=high,
        )

    @property
    def base(self) -> str:
        """The base as others can name it: its hub id, else its folder here."""
        return self.model if is_hub_id(self.model) else str(self.base_folder)


def _merged(job: _Job, staging: Path, gpus: str | None, emit: Emit) -> Exported:
    emit(waiting("loading torch and the model"))
    from qwenft.export.merge import merged_contract, write_merged
    from qwenft.model.load import quiet_libraries
    from qwenft.predict.generate import torch_device

    quiet_libraries()
    if job.contract.quantize:
        emit(warning("trained on a base in 4 bits, merged into the whole weights: score the result before you use it"))
    device, _ = torch_device(gpus, "auto")
    emit(waiting("merging, writing, reading back and comparing"))
    found = write_merged(job.model, job.run.adapter, job.contract, staging, device)
    if found.effect == 0:
        emit(warning("the adapter changes nothing: the export answers as the base model does"))
    # As the base's own file says it: what read that one reads this one, and newer keys confuse older tools.
    shutil.copyfile(job.base_folder / "config.json", staging / "config.json")
    write_beside(job.base_folder, staging, merged_contract(job.contract, staging))
    made = Exported(job.run.name, "merged", str(job.folder), job.model, job.commands("merged", str(job.folder)))
    return replace(made, dtype=found.dtype, difference=found.difference, effect=found.effect)


def _adapter(job: _Job, staging: Path) -> Exported:
    source, target = job.run.adapter / ADAPTER_FILE, staging / ADAPTER_FILE
    shutil.copyfile(source, target)
    if sha256_of_file(source) != sha256_of_file(target):
        raise ModelError(f"the copy of {source} differs from it", hint="check the disk, and type it again")
    settings = read_json(job.run.adapter / ADAPTER_CONFIG)
    # PEFT noted where the base lay in this machine's cache.
    write_json(staging / ADAPTER_CONFIG, {**settings, "base_model_name_or_path": job.base})
    write_beside(job.base_folder, staging, job.contract)
    return Exported(job.run.name, "adapter", str(job.folder), job.model, job.commands("adapter", str(job.folder)))


def tensor_names(path: Path) -> list[str]:
    """Names of the tensors in a safetensors file, read off its header."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return [name for name in header if name != "__metadata__"]


def _bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.suffix == WEIGHTS)


def _check_room(folder: Path, needed: int) -> None:
    """Raises RunError where the disk has no room for the weights: said before they are read."""
    there = next(parent for parent in folder.parents if parent.exists())
    free = shutil.disk_usage(there).free
    if free < needed * 1.02:
        raise RunError(
            f"the export takes {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free at {there}",
            hint="--out on a larger disk",
        )


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """What a disk says that takes no more becomes RunError; nothing stands at `folder` then."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        from qwenft.train.saving import UNWRITABLE  # torch, so only where something went wrong

        if isinstance(error, OSError) and error.errno not in UNWRITABLE:
            raise
        raise RunError(
            f"the export could not be written to {folder}: {error}", hint="--out on a larger disk"
        ) from error
