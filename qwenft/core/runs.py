"""Run folders: where things lie in them, events, and the adapter's contract."""

import errno
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Final

from qwenft.core.answer import Prompts
from qwenft.core.config import DEFAULT_MODEL
from qwenft.core.errors import ModelError, RunError, nearest
from qwenft.core.events import Event
from qwenft.core.files import read_json, to_line, write_json, write_whole

CONTRACT_VERSION: Final = 1
CONTRACT_FILE: Final = "contract.json"


@dataclass(frozen=True, slots=True)
class Threshold:
    """The score under which a box is left out, and where it was chosen: by `eval`, on held-out questions."""

    score: float
    """In [0, 1], of token probabilities (core/predictions.py, SCORES)."""
    data: str
    split: str
    samples: int
    """Questions that it was chosen on."""

    @property
    def chosen_on(self) -> str:
        """For people."""
        return f"{self.data}/{self.split}"


@dataclass(frozen=True, slots=True)
class Contract:
    """What an adapter was trained with; `predict` and `eval` obey it.

    A base model folder may carry one too (without adapter and pictures): it says how that model is asked.
    """

    base: str
    """Hub id or path of the base model, as it was given."""
    config_sha256: str
    weights_sha256: str
    """Hash of the weight index: names, types and shapes of all tensors."""
    min_pixels: int
    max_pixels: int
    coordinates: str = "input_px"
    """The frame the answers are in.  Qwen2.5-VL: pixels of the resized input."""
    answer: str = "json"
    """The answer form of core/answer.py."""
    prompts: Prompts = field(default_factory=Prompts)
    tasks: tuple[str, ...] = ()
    data: str = ""
    """Name of the prepared data set; of several the names of all, with ", " between."""
    pictures: tuple[str, ...] = ()
    """SHA-256 of every training picture."""
    versions: Mapping[str, str] = field(default_factory=dict)
    quantize: str | None = None
    """How the base's weights were held while it was trained; None: as they are."""
    thresholds: Mapping[str, Threshold] = field(default_factory=dict)
    """Task -> the score under which `predict` leaves a box out; a task that is absent has none (docs/metrics.md)."""
    schema: int = CONTRACT_VERSION

    def write(self, folder: Path) -> None:
        """Write `contract.json` into an adapter's folder."""
        write_json(folder / CONTRACT_FILE, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> "Contract":
        """Read an adapter's contract.  Raises ModelError where it is missing or of another schema."""
        path = folder / CONTRACT_FILE
        if not path.is_file():
            raise ModelError(
                f"{folder.absolute()} has no {CONTRACT_FILE}: it says how the adapter must be asked",
                hint="use an adapter/ folder that qwenft train made",
            )
        value = read_json(path)
        if not isinstance(value, dict) or value.get("schema") != CONTRACT_VERSION:
            raise ModelError(f"{path.absolute()} is no contract of schema {CONTRACT_VERSION}")
        try:
            return cls(
                **{
                    **value,
                    "prompts": Prompts(**value["prompts"]),
                    "tasks": tuple(value["tasks"]),
                    "pictures": tuple(value["pictures"]),
                    "thresholds": {task: Threshold(**kept) for task, kept in value.get("thresholds", {}).items()},
                }
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{path.absolute()} is not whole: {error}") from error

    def with_budget(self, min_pixels: int | None, max_pixels: int | None) -> "Contract":
        """The same contract with another pixel budget; None keeps its own.

        Raises ModelError if it is upside down, or where the contract is an adapter's, which learned boxes in its own.
        """
        for name, asked in (("min_pixels", min_pixels), ("max_pixels", max_pixels)):
            if self.tasks and asked and asked != getattr(self, name):
                raise ModelError(
                    f"the adapter was trained with another pixel budget: {name} is {getattr(self, name)}, not {asked}",
                    hint=f"leave {name} out: an adapter brings its own",
                )
        changed = replace(self, min_pixels=min_pixels or self.min_pixels, max_pixels=max_pixels or self.max_pixels)
        if changed.min_pixels > changed.max_pixels:
            raise ModelError(f"min_pixels {changed.min_pixels} is over max_pixels {changed.max_pixels}")
        return changed

    def check(self, other: "Contract") -> None:
        """Compare with the model that was loaded.  Raises ModelError naming the field that differs."""
        for name in ("config_sha256", "weights_sha256", "coordinates", "answer"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise ModelError(
                    f"the adapter was trained on another base model: {name} is {mine[:12]}, "
                    f"the model loaded has {theirs[:12]}",
                    hint=f"it was trained on {self.base}",
                )


@dataclass(frozen=True, slots=True)
class Run:
    """A run's folder under runs/."""

    path: Path

    @property
    def name(self) -> str:
        """The folder's own name, also when it was reached through `latest`."""
        return self.path.resolve().name

    @property
    def config(self) -> Path:
        """The complete settings."""
        return self.path / "config.yaml"

    @property
    def events(self) -> Path:
        """One event a line."""
        return self.path / "events.jsonl"

    @property
    def log(self) -> Path:
        """Plain lines for people."""
        return self.path / "train.log"

    @property
    def adapter(self) -> Path:
        """The adapter with its contract."""
        return self.path / "adapter"

    @property
    def checkpoints(self) -> Path:
        """Holds step-<n>/ folders."""
        return self.path / "checkpoints"

    @property
    def evals(self) -> Path:
        """Holds <data>-<split>/ folders."""
        return self.path / "eval"

    @property
    def lock(self) -> Path:
        """Held by the process that trains here."""
        return self.path / ".lock"

    @property
    def finished(self) -> bool:
        """Training came to its end and the adapter stands."""
        return (self.adapter / CONTRACT_FILE).is_file() and any(e["event"] == "finished" for e in self.read_events())

    def read_events(self) -> Iterator[dict[str, Any]]:
        """The events so far; a line that a crash tore is left out."""
        if not self.events.is_file():
            return
        with self.events.open(encoding="utf-8", errors="replace") as file:  # a torn line may end within a character
            for line in file:
                try:
                    event = json.loads(line)
                except json.JSONDecodeError:
                    continue
                if isinstance(event, dict) and "event" in event:
                    yield event

    def append_event(self, event: Event) -> None:
        """Append one whole line, in one write; a line that a crash tore before it is closed first."""
        with self.events.open("a+b") as file:
            torn = file.seek(0, os.SEEK_END) > 0 and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n"
            file.write(b"\n" * torn + f"{to_line(dict(event))}\n".encode())

    def rewrite_events(self, events: Iterable[Event]) -> None:
        """Put these in place of all events so far, whole or not at all."""
        write_whole(self.events, "".join(f"{to_line(dict(event))}\n" for event in events))

    def hold(self) -> IO[str]:
        """Keep every other process from training here until the handle is closed or this process ends, however it ends.

        Raises RunError where another one is at it.  A record lock: a process forked from this one does not hold it.
        """
        file = self.lock.open("a+", encoding="utf-8")
        if not _locked(file):
            file.seek(0)
            who = file.read().strip()
            file.close()
            raise RunError(
                f"the run {self.path} is being trained right now, by process {who}",
                hint=f"wait until it ends, or: kill {who}",
            )
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        return file

    @property
    def held(self) -> bool:
        """Whether another process trains here now."""
        if not self.lock.is_file():
            return False
        try:
            with self.lock.open("a", encoding="utf-8") as file:
                return not _locked(file)
        except OSError:  # a folder that is only read
            return False


def _locked(file: IO[str]) -> bool:
    """Take the lock of an open file; False where another process has it.  A disk that cannot lock counts as free."""
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True


def all_runs(root: Path | None = None) -> list[Run]:
    """Every run under runs/, the one that moved last first."""
    found = [path for path in ((root or Path.cwd()) / "runs").glob("*/events.jsonl") if not path.parent.is_symlink()]
    found.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    return [Run(path.parent.absolute()) for path in found]


def new_run(root: Path, name: str | None, data_name: str) -> Run:
    """Choose a folder for a new run; it is not made yet.  Raises RunError if the name is taken."""
    chosen = name or f"{data_name}-{time.strftime('%Y%m%d-%H%M%S')}"
    path = root / "runs" / chosen
    if name is None:
        number = 2
        while path.exists():
            path = root / "runs" / f"{chosen}-{number}"
            number += 1
    elif path.exists():
        raise RunError(f"the run {path.absolute()} exists already", hint=f"--name {name}-2, or: rm -r {path}")
    return Run(path.absolute())


def open_run(name_or_path: str | Path, root: Path | None = None) -> Run:
    """Open a run by name or path.  Raises RunError that names the nearest.

    >>> from qwenft import open_run
    >>> run = open_run("first")
    >>> run.name, run.adapter.is_dir(), run.events.is_file()
    ('first', True, True)
    """
    base = root or Path.cwd()
    for path in (base / "runs" / str(name_or_path), base / Path(name_or_path).expanduser()):
        if (path / "events.jsonl").is_file():
            return Run(path.absolute())
    folder = base / "runs"
    names = [path.parent.name for path in folder.glob("*/events.jsonl")]
    raise RunError(
        f"there is no run {str(name_or_path)!r} under {folder.absolute()}",
        hint=nearest(str(name_or_path), names) if names else "qwenft train",
    )


def latest_run(root: Path | None = None) -> Run | None:
    """The newest finished run that is no demo, or None."""
    path = (root or Path.cwd()) / "runs" / "latest"
    return Run(path.absolute()) if (path / "events.jsonl").is_file() else None


def point_latest(run: Run) -> None:
    """Make runs/latest point to a finished run, in one step."""
    link = run.path.parent / "latest"
    temporary = run.path.parent / f".latest.{os.getpid()}"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(run.path.name, target_is_directory=True)
    temporary.replace(link)


@dataclass(frozen=True, slots=True)
class Answerer:
    """Which model answers: a base model, with the adapter of a run if there is one."""

    model: str
    run: Run | None = None
    contract: Contract | None = None
    """The adapter's."""
    aside: Run | None = None
    """The latest run where it was left aside, since it was trained on another model."""

    @property
    def adapter(self) -> Path | None:
        """The adapter's folder."""
        return self.run.adapter if self.run else None

    @property
    def trained(self) -> Contract | None:
        """The adapter's contract, or the one in the model's own folder, which exported weights bring; None: neither.

        Raises ModelError where it is not whole.
        """
        folder = Path(self.model).expanduser()
        exported = self.contract is None and (folder / CONTRACT_FILE).is_file()
        return Contract.read(folder) if exported else self.contract

    def text(self) -> str:
        """For people."""
        if self.run:
            return f"the run {self.run.name} answers, an adapter of {self.model}"
        left = (
            f"; the latest run {self.aside.name} is left aside: it was trained on another model" if self.aside else ""
        )
        return f"the base model {self.model} answers, without an adapter{left}"


def choose_answerer(run: str | None, model: str | None, root: Path | None = None) -> Answerer:
    """The run that is named; else the latest one, if `model` is unset or is what it was trained on; else a base model.

    Raises RunError for a run that is not there or has no adapter yet, ModelError for a contract that is not whole.
    """
    base = root or Path.cwd()
    chosen = open_run(run, base) if run is not None else latest_run(base)
    if chosen is None:
        return Answerer(model or DEFAULT_MODEL)
    chosen = Run(chosen.path.resolve())  # `latest` may point elsewhere before this is over
    if not (chosen.adapter / CONTRACT_FILE).is_file():
        raise RunError(
            f"the run {chosen.path} has no adapter yet: it is not finished",
            hint="choose another --run, or train this one to its end",
        )
    contract = Contract.read(chosen.adapter)
    if run is not None or model is None or _same_model(model, contract.base, base):
        return Answerer(model or contract.base, chosen, contract)
    return Answerer(model, aside=chosen)


def _same_model(one: str, other: str, root: Path) -> bool:
    paths = [root / Path(name).expanduser() for name in (one, other)]
    return one == other or (all(path.exists() for path in paths) and paths[0].samefile(paths[1]))
