"""The body of `train`: the parent that starts the worker, follows its events and stops it cleanly; no torch."""

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, Final

from qwenft.core.config import TrainConfig
from qwenft.core.devices import ALONE, Devices, Machines, choose_devices
from qwenft.core.errors import FAMILY, DeviceError, QwenftError, RunError, UsageError
from qwenft.core.events import Emit, Event, PlainLines, ignore, note, waiting, warning
from qwenft.core.files import write_json
from qwenft.core.runs import Run, new_run
from qwenft.model.fetch import local_model
from qwenft.train.mixture import Mixture, open_mixture
from qwenft.train.preflight import check_engine
from qwenft.train.resume import first_plan, newest_checkpoint, plan_resumption, smaller_micro_batch

_CONTROL: Final = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")
POLL_S: Final = 0.1
TAIL_LINES: Final = 15
_OF_THE_LAUNCHER: Final = re.compile(r"torch/distributed/elastic/multiprocessing/api\.py")
"""Where torch's launcher begins to speak of a worker that failed; what the worker said stands before it."""


def train_adapter(
    config: TrainConfig,
    *,
    root: Path | None = None,
    demo: bool = False,
    dry_run: bool = False,
    machines: Machines = ALONE,
    emit: Emit = ignore,
) -> Run:
    """Train an adapter in a process of its own and return its run.

    root: where data/ and runs/ lie; None: the current folder.  demo: runs/latest stays where it points.
    dry_run: ends after the `plan` event; the run returned has no folder.  machines: this one among several, which share
    root and are each given the same call; the run is written by the first.
    Raises the error that ended the worker; KeyboardInterrupt after a Ctrl-C that it ended cleanly by a checkpoint.

    >>> from qwenft import TrainConfig, train_adapter
    >>> settings = TrainConfig(model="tiny", data="scenes", name="first", gpus="cpu", batch_size=4, max_steps=2)
    >>> run = train_adapter(settings)
    >>> run.name, (run.adapter / "contract.json").is_file(), (run.path / "curves.png").is_file()
    ('first', True, True)
    """
    base = (root or Path.cwd()).absolute()
    devices = replace(choose_devices(config.gpus, imagined=dry_run), machines=machines)
    check_engine(config, devices)
    local_model(config.model)
    mixture = open_mixture(config.data, base)
    _ = mixture.samples  # a broken line is found before torch is loaded
    if machines.count > 1 and config.name is None:
        raise UsageError("several machines need one name for their run", hint="--name first, the same on each")
    # The first machine makes the folder; another may find it there already.
    run = (
        Run(base / "runs" / str(config.name))
        if machines.number
        else new_run(base, config.name, mixture.name.replace(", ", "-"))
    )
    return _carry_out(_Order(config, mixture, run, devices, demo, dry_run), emit)


def resume_training(
    run: str | None = None,
    overrides: Iterable[str] = (),
    *,
    root: Path | None = None,
    dry_run: bool = False,
    machines: Machines = ALONE,
    emit: Emit = ignore,
    **options: object,
) -> Run:
    """Go on with a run from its newest complete checkpoint, as if it had never stopped, and return it.

    run: a name under runs/ or a path; None: the newest that has not finished.  overrides, options: settings that may
    change (train/resume.py, FREE), as `key=value` or by name.
    Raises RunError where there is nothing to resume, ConfigError for a setting that would change the run, DataError or
    ModelError where data set or base model changed, and what train_adapter raises.

    >>> from qwenft import QwenftError, resume_training
    >>> try:
    ...     resume_training("first")
    ... except QwenftError as error:
    ...     print(error.hint)
    qwenft eval --run first --baseline
    """
    base = (root or Path.cwd()).absolute()
    plan = plan_resumption(run, overrides, options, base, machines)
    check_engine(plan.config, plan.devices)
    order = _Order(
        plan.config, plan.mixture, plan.run, plan.devices, demo=False, dry_run=dry_run, resume=True,
        aloud=plan.aloud,
    )  # fmt: skip
    return _carry_out(order, emit)


@dataclass(frozen=True)
class _Order:
    """What a worker is to do."""

    config: TrainConfig
    mixture: Mixture
    run: Run
    devices: Devices
    demo: bool
    dry_run: bool
    resume: bool = False
    aloud: tuple[Event, ...] = ()
    """Said before the worker speaks."""

    def write(self, job: Path, channel: Path) -> None:
        """Write the worker's job."""
        checkpoint = newest_checkpoint(self.run) if self.resume else None
        write_json(
            job,
            {
                "config": self.config.model_dump(mode="json"), "run": str(self.run.path),
                "data": [str(dataset.path) for dataset in self.mixture.datasets],
                "devices": asdict(self.devices), "channel": str(channel), "demo": self.demo, "dry_run": self.dry_run,
                "resume": self.resume, "checkpoint": str(checkpoint) if checkpoint else None,
            },
        )  # fmt: skip

    def smaller(self) -> "_Order | None":
        """The same with a smaller micro-batch, after a GPU ran out of memory; None: not asked for or not possible."""
        config = self.config
        smaller = smaller_micro_batch(config, first_plan(self.run.read_events())) if config.auto_micro_batch else None
        if smaller is None:
            return None
        keys = ("max_tokens", "batch_size", "accumulation")
        words = [f"{key}={new}" for key in keys if (new := getattr(smaller, key)) != getattr(config, key)]
        text = f"out of GPU memory: going on with {' '.join(words)}; each update keeps its samples"
        return replace(self, config=smaller, resume=self.run.events.is_file(), aloud=(warning(text),))


def _carry_out(order: _Order, emit: Emit) -> Run:
    """Follow a worker to its end; after an out-of-memory start another with less at a time, if that was asked for."""
    while True:
        with tempfile.TemporaryDirectory(prefix="qwenft-") as folder:
            channel, job = Path(folder) / "events.jsonl", Path(folder) / "job.json"
            channel.touch()
            order.write(job, channel)
            emit(waiting("loading torch and transformers"))  # the worker's first event comes after seconds
            worker = _Worker(job, channel, order, emit)
            try:
                worker.follow()
            except DeviceError:
                smaller = order.smaller() if worker.out_of_memory else None
                if smaller is None:
                    raise
                order = smaller
            else:
                return order.run


class _Worker:
    """One worker, from its start to its end."""

    def __init__(self, job: Path, channel: Path, order: _Order, emit: Emit) -> None:
        self.channel = channel
        self.run = order.run
        number = order.devices.machines.number
        self.log = self.run.path / f"train.{number}.log" if number else self.run.log
        self.emit = emit
        self.error: QwenftError | None = None
        self.out_of_memory = False
        """Of a GPU, in an update."""
        self.stopped: Event | None = None
        self._plain = PlainLines()
        self._pending: list[str] = []
        """Lines for train.log that came before the run's folder."""
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._launcher_speaks = False
        self._lines: queue.Queue[str] = queue.Queue()
        self._offset = 0
        self._log_is_broken = False
        for event in order.aloud:
            self._take(event)
        # A session of its own: Ctrl-C in the terminal reaches the parent alone, which then stops the worker in order.
        self.process = subprocess.Popen(
            _command(job, order),
            env={
                **os.environ,
                **order.devices.environment(),
                **deepspeed_environment(order.devices),
                **_QUIET,
                PARENT: str(os.getpid()),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True).start()

    def _read(self, stream: IO[bytes]) -> None:
        for raw in stream:
            self._lines.put(_CONTROL.sub("", raw.decode(errors="replace").rsplit("\r", 1)[-1]).rstrip())

    def follow(self) -> None:
        """Hand events on until the worker ends.  Raises what ended it."""
        with _sigterm_as_exception():
            try:
                self._until_end()
            except (KeyboardInterrupt, _TerminatedError) as reason:
                self._stop(signal.SIGINT if isinstance(reason, KeyboardInterrupt) else signal.SIGTERM)
                if isinstance(reason, _TerminatedError):
                    raise SystemExit(128 + signal.SIGTERM) from None
                raise
            except BaseException:
                self._kill()
                raise
        self._verdict()

    def _until_end(self) -> None:
        while self.process.poll() is None:
            self._drain(POLL_S)
        self._drain(POLL_S)

    def _drain(self, wait_s: float) -> None:
        with contextlib.suppress(queue.Empty):
            line = self._lines.get(timeout=wait_s)
            while True:
                if line:
                    self._keep(line)
                    self._log(f"[worker] {line}")
                line = self._lines.get_nowait()
        for event in self._new_events():
            self._take(event)

    def _keep(self, line: str) -> None:
        """Remember the last lines, those of a worker itself: the launcher's own long table hides what happened."""
        self._launcher_speaks = self._launcher_speaks or bool(_OF_THE_LAUNCHER.search(line))
        if not self._launcher_speaks or "SIGKILL" in line:
            self._tail.append(line)

    def _new_events(self) -> Iterator[dict[str, Any]]:
        with self.channel.open("rb") as file:
            file.seek(self._offset)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            yield json.loads(line)

    def _take(self, event: Event) -> None:
        if event["event"] == "error":
            self.error = FAMILY.get(event["kind"], QwenftError)(event["message"], hint=event["hint"])
            self.out_of_memory = event.get("out_of_memory", False)
        if event["event"] == "stopped":
            self.stopped = event
        for line in self._plain.lines(event):
            self._log(line)
        self.emit(event)

    def _log(self, line: str) -> None:
        """Keep train.log; what comes before the run's folder waits for it.  A disk that is full ends the log only."""
        self._pending.append(line)
        if self._log_is_broken or not self.run.path.is_dir():
            return
        try:
            with self.log.open("a", encoding="utf-8") as file:
                file.write("".join(f"{text}\n" for text in self._pending))
        except OSError as error:
            self._log_is_broken = True
            self.emit(warning(f"{self.log} cannot be written: {error.strerror}; the training goes on"))
        self._pending.clear()

    def _stop(self, number: signal.Signals) -> None:
        """Ask for a checkpoint and the end; a second Ctrl-C ends at once."""
        try:
            self.emit({"event": "stopping", "signal": int(number)})
            self._signal(number)
            self._until_end()
            if not self.run.path.is_dir():
                self.emit(note(f"stopped before the run {self.run.name} began: nothing was written"))
        except (KeyboardInterrupt, _TerminatedError):
            self._kill()
            self.emit(warning("ended at once, without a checkpoint of the last steps"))

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def _kill(self) -> None:
        self._signal(signal.SIGKILL)
        self.process.wait()

    def _verdict(self) -> None:
        status = self.process.returncode
        if self.error is not None:
            raise self.error
        if status == 0:
            return
        if self.stopped is not None:
            raise RunError(
                f"the worker was stopped by signal {self.stopped['signal']} at step {self.stopped['step']}",
                hint=f"qwenft train --resume {self.run.name}",
            )
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        killed = "; the system may have been out of memory" if status == -signal.SIGKILL else ""
        tail = "".join(f"\n  {line}" for line in self._tail)
        message = f"the training process {how}{killed}{'. Its last lines:' if tail else ''}{tail}"
        if not self.run.log.is_file():
            raise RunError(message, hint="it ended before the run had a folder; please report it with these lines")
        if status > 0 and not any("SIGKILL" in line for line in self._tail):  # torch's launcher of several says so
            raise RunError(message, hint=f"less {self.run.log}")
        checkpoint = newest_checkpoint(self.run) or "none yet"
        raise RunError(
            f"{message}\nlog: {self.run.log}\ncheckpoint: {checkpoint}", hint=f"qwenft train --resume {self.run.name}"
        )


_QUIET: Final = {"PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
PARENT: Final = "QWENFT_PARENT"
"""Names this process to workers behind torch's launcher: they are not its children and would not see it go."""


def deepspeed_environment(devices: Devices) -> dict[str, str]:
    """What DeepSpeed must be told before it is imported, which accelerate does wherever it is installed.

    Nothing is compiled, the device is known, and its checkpoints are read without pickle's power to run code.
    """
    return {"DS_BUILD_OPS": "0", "DS_ACCELERATOR": devices.kind, "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"}


def _command(job: Path, order: _Order) -> list[str]:
    worker = ["-m", "qwenft.train.worker", str(job)]
    devices, machines = order.devices, order.devices.machines
    if devices.world == 1 and order.config.engine == "ddp":
        return [sys.executable, *worker]
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={devices.processes}"]
    if machines.count == 1:
        launcher.append("--standalone")
    else:  # static: ranks follow the machines' numbers, so that the first process is on the first machine
        launcher += [f"--nnodes={machines.count}", f"--node_rank={machines.number}"]
        launcher += ["--rdzv_backend=static", f"--rdzv_endpoint={machines.meeting}"]
    return [sys.executable, *launcher, *worker]


class _TerminatedError(Exception):
    """SIGTERM came."""


@contextlib.contextmanager
def _sigterm_as_exception() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # a notebook's thread: signals are not ours there
        yield
        return

    def caught(number: int, frame: object) -> None:
        raise _TerminatedError

    before = signal.signal(signal.SIGTERM, caught)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
