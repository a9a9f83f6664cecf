"""A model's files, from a folder, the embedded assets or the hub: fetched once, safetensors only."""

import difflib
from pathlib import Path
from typing import Final

from qwenft.core.config import DEFAULT_MODEL, TINY
from qwenft.core.devices import choose_device
from qwenft.core.errors import HubError, ModelError
from qwenft.core.events import Emit, ignore, note, progress, warning
from qwenft.core.files import read_json
from qwenft.core.hub import PROBE_TIMEOUT_S, HubAccess, byte_meter, hub_errors, offline, open_hub

TINY_FOLDER: Final = Path(__file__).parents[1] / "demo" / "assets" / "tiny"
SMALL_FILES: Final = (".json", ".jinja", ".txt")
"""Configuration, tokenizer, chat template and weight index."""
WEIGHTS: Final = ".safetensors"
WEIGHT_INDEX: Final = "model.safetensors.index.json"
SINGLE_FILE: Final = "model.safetensors"

_fetched: dict[tuple[str, bool], Path] = {}
"""What this process has fetched already: the hub is asked once for each model."""


def model_folder(name: str, *, weights: bool = True, emit: Emit = ignore) -> Path:
    """Return the folder that holds a model's files: a folder as it is, `tiny`, or a hub id, fetched into the cache.

    weights: False fetches all but the weights, for a plan.
    Raises ModelError for what cannot be a model, HubError where the hub does not give it.
    """
    if folder := local_model(name):
        return folder
    for key in ((name, weights), (name, True)):
        if key in _fetched:
            return _fetched[key]
    _fetched[name, weights] = _from_cache(name, weights) if offline() else _from_hub(name, weights, emit)
    return _fetched[name, weights]


def local_model(name: str) -> Path | None:
    """The folder of a model that is on this machine; None: a hub id.  Cheap: to be asked before torch is loaded.

    Raises ModelError for what is neither, or is a folder without a model.
    """
    if name == TINY and not Path(name).is_dir():
        return TINY_FOLDER
    folder = Path(name).expanduser().absolute()
    hint = f"--model {DEFAULT_MODEL}, a folder, or {TINY}"
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"{folder} is no model: it has no config.json", hint=hint)
        return folder
    if folder.exists() or name.startswith(("/", "./", "../", "~")) or name.count("/") != 1:
        near = difflib.get_close_matches(name, [TINY, DEFAULT_MODEL, DEFAULT_MODEL.partition("/")[2]], n=1)
        if near:
            hint = f"--model {TINY if near[0] == TINY else DEFAULT_MODEL}"
        raise ModelError(f"there is no model at {folder}", hint=hint)
    return None


def check_answerable(name: str, gpus: str | None) -> None:
    """Hold that model and device are there, before seconds go into loading torch.  Raises ModelError, DeviceError."""
    local_model(name)
    choose_device(gpus)


def _from_hub(name: str, weights: bool, emit: Emit) -> Path:
    """The hub's newest files; where it cannot be reached, what the cache holds, if that is whole."""
    access = open_hub()
    try:
        with hub_errors(name, access, kind="model"):
            return _fetch(name, access, weights, emit)
    except HubError as error:
        try:
            folder = _from_cache(name, weights)
        except HubError:
            raise error from None
        emit(warning(f"{error}: going on with the copy of {name} in the cache"))
        return folder


def _from_cache(name: str, weights: bool) -> Path:
    """The cached snapshot.  Raises HubError where it is not whole."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, "config.json")
    folder = Path(config).parent if isinstance(config, str) else None
    if folder is None or (weights and not _weights_whole(folder)):
        raise HubError(
            f"HF_HUB_OFFLINE is set, and the cache does not hold the model {name}",
            hint="fetch it once with HF_HUB_OFFLINE=0",
        )
    return folder


def _weights_whole(folder: Path) -> bool:
    index = folder / WEIGHT_INDEX
    files = set(read_json(index)["weight_map"].values()) if index.is_file() else {SINGLE_FILE}
    return all((folder / file).is_file() for file in files)


def _fetch(name: str, access: HubAccess, weights: bool, emit: Emit) -> Path:
    from huggingface_hub import HfApi, try_to_load_from_cache

    api = HfApi(endpoint=access.endpoint, token=access.token)
    info = api.model_info(name, timeout=PROBE_TIMEOUT_S, files_metadata=True)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or () if "/" not in file.rfilename}
    wanted = [file for file in sizes if file.endswith(SMALL_FILES + ((WEIGHTS,) if weights else ()))]
    if "config.json" not in sizes:
        raise ModelError(f"{name} has no config.json: it is no model", hint=f"--model {DEFAULT_MODEL}")
    if weights and not any(file.endswith(WEIGHTS) for file in wanted):
        raise ModelError(f"{name} has no safetensors weights", hint="other formats can run code: convert it first")
    missing = [f for f in wanted if not isinstance(try_to_load_from_cache(name, f, revision=info.sha), str)]
    total, done = sum(sizes[file] for file in missing), 0
    if missing:
        emit(note(f"fetching {len(missing)} files of {name}, {total / 1e6:,.1f} MB, from {access.endpoint}"))
    for file in missing:
        api.hf_hub_download(name, file, revision=info.sha, tqdm_class=byte_meter(done, total, emit))
        done += sizes[file]
        emit(progress("fetch", done, total))
    api.hf_hub_download(
        name, "config.json"
    )  # without a revision: notes in the cache what `main` is, for HF_HUB_OFFLINE
    return Path(api.hf_hub_download(name, "config.json", revision=info.sha)).parent
