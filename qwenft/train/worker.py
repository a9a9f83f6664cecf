"""The training process: plan, model, training, adapter; it tells its parent through a file of events."""

import atexit
import importlib.metadata
import json
import math
import os
import platform
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Final, NoReturn

import torch
from torch import distributed
from transformers import set_seed

from qwenft import __version__
from qwenft.core.config import TrainConfig, make_config, to_yaml
from qwenft.core.devices import Devices, Machines
from qwenft.core.errors import DeviceError, ModelError, QwenftError, RunError
from qwenft.core.events import Event, memory_text, note, warning
from qwenft.core.files import to_line, write_whole
from qwenft.core.runs import Contract, Run, point_latest
from qwenft.core.samples import PreparedDataset
from qwenft.model.fast import COMPILED_MULTIPLE, compile_layers, enable_fast_step
from qwenft.model.features import PictureFeatures
from qwenft.model.fetch import model_folder
from qwenft.model.inputs import Encoder
from qwenft.model.load import (
    base_contract,
    load_base,
    load_processor,
    quiet_libraries,
    trainable_model,
    weights_hash,
)
from qwenft.predict.generate import Predictor
from qwenft.train.arguments import training_arguments
from qwenft.train.augment import Views
from qwenft.train.batches import Collator, PictureOrder, TrainingData
from qwenft.train.card import write_card, write_curves
from qwenft.train.checkpoints import complete_checkpoints, step_of
from qwenft.train.engine import hold_to_engine, start_deepspeed
from qwenft.train.gradients import GradientCheck
from qwenft.train.measure import held_out_samples
from qwenft.train.memory import is_wide
from qwenft.train.mixture import Mixture
from qwenft.train.plan import make_plan
from qwenft.train.preflight import check_shared, preflight
from qwenft.train.preview import write_preview
from qwenft.train.resume import check_same, events_until, first_plan
from qwenft.train.saving import UNWRITABLE, BestAdapter, is_stalled, unwritten
from qwenft.train.trainer import AdapterTrainer, Conductor, Examiner, StopRequest
from qwenft.train.watch import Watch

KEPT_EVENTS: Final = frozenset(
    {"plan", "resumed", "step", "eval", "checkpoint", "adapter", "trouble", "finished", "stopped", "error"}
)
"""What stands in a run's events.jsonl."""
KEPT_FEATURES: Final = 8 * 1024**3
"""Bytes of main memory for vision features that later epochs use again."""


@dataclass
class Job:
    """What the parent asked for."""

    config: TrainConfig
    data: tuple[Path, ...]
    """Of each prepared data set."""
    run: Run
    devices: Devices
    channel: Path
    demo: bool
    dry_run: bool
    resume: bool = False
    """The run has a folder already and goes on."""
    checkpoint: Path | None = None
    """From there; None: from its beginning."""
    training: bool = False
    """Whether the updates have begun: an out-of-memory then is one of the micro-batch."""
    lock: IO[str] | None = None
    """Held until this process ends."""

    @classmethod
    def read(cls, path: Path) -> "Job":
        """Read the parent's file."""
        value = json.loads(path.read_text(encoding="utf-8"))
        devices = value["devices"]
        return cls(
            make_config(value["config"], "the parent"),
            tuple(Path(path) for path in ([value["data"]] if isinstance(value["data"], str) else value["data"])),
            Run(Path(value["run"])),
            Devices(
                devices["kind"],
                devices["processes"],
                tuple(devices["ids"]),
                tuple(devices["names"]),
                machines=Machines(**devices["machines"]),
            ),
            Path(value["channel"]),
            value["demo"],
            value["dry_run"],
            value["resume"],
            Path(value["checkpoint"]) if value["checkpoint"] else None,
        )

    @property
    def is_first(self) -> bool:
        """Whether this process reports and writes."""
        return int(os.environ.get("RANK", "0")) == 0

    def report(self, event: Event) -> None:
        """Tell the parent, and keep what belongs to the run.  An error is told by whichever process has it."""
        is_error = event["event"] == "error"
        if not self.is_first and not is_error:
            return
        with self.channel.open("a", encoding="utf-8") as file:
            file.write(to_line(_finite(event)) + "\n")
        if event["event"] in KEPT_EVENTS and self.lock is not None:
            self.run.append_event(_finite(event))

    def fail(self, error: QwenftError, **more: Any) -> int:
        """Tell what ended this process, also where no disk takes a word; returns the exit status."""
        event = {"event": "error", "kind": type(error).__name__, "message": str(error), "hint": error.hint, **more}
        try:
            self.report(event)
        except OSError:
            sys.stderr.write(f"{error}\n")  # the parent shows the last lines
        return error.exit_code


def _finite(event: Event) -> dict[str, Any]:
    """NaN and infinity are no JSON: a loss that is one is written as text."""
    found: dict[str, Any] = {}
    for key, value in event.items():
        broken = isinstance(value, float) and not math.isfinite(value)
        found[key] = str(value) if broken else _finite(value) if isinstance(value, dict) else value
    return found


def main(arguments: list[str]) -> int:
    """Run the job in the file that the first argument names; returns the exit status."""
    job = Job.read(Path(arguments[0]))
    stop = StopRequest()
    stop.listen()
    try:
        status = _work(job, stop)
        if distributed.is_initialized():
            distributed.barrier()  # the first process still writes when the others are done
        return status
    except QwenftError as error:
        return job.fail(error)
    except torch.cuda.OutOfMemoryError as error:
        return job.fail(_out_of_memory(job, error), out_of_memory=job.training)
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        if not job.run.path.is_dir():
            why = f"the run's folder {job.run.path} cannot be made: {error.strerror or error}"
            return job.fail(RunError(why, hint="start it in a folder that can be written"))
        return job.fail(unwritten(Path(error.filename or job.run.events).name, job.run, error.strerror or str(error)))
    finally:
        if (
            distributed.is_initialized()
        ):  # else gloo's threads outlive it now and then, and the process ends in an abort
            distributed.destroy_process_group()


def _out_of_memory(job: Job, error: Exception) -> DeviceError:
    config = job.config
    smaller = f"batch_size={max(1, config.batch_size // 2)} accumulation={config.accumulation * 2} trains the same"
    advice = smaller if config.batch_size > 1 else "checkpointing=true"
    if config.fast:
        advice = "a smaller max_tokens=… trains the same"
    return DeviceError(
        f"out of GPU memory: {str(error).splitlines()[0]}",
        hint=f"{advice}; or a smaller max_pixels=…, or auto_micro_batch=true",
    )


def _work(job: Job, stop: StopRequest) -> int:
    quiet_libraries()
    config, start = job.config, time.monotonic()
    mixture = Mixture.of([PreparedDataset.open(path) for path in job.data], config.data)
    contract = base_contract(config.model, weights=False).with_budget(config.min_pixels, config.max_pixels)
    plan = make_plan(config, mixture, contract, job.devices, job.run.path)
    before = list(job.run.read_events()) if job.resume else []
    check_same(first_plan(before), plan)
    for text in _without_effect(config, plan):
        job.report(warning(text))
    if job.dry_run:
        job.report(plan)
        return 0
    if plan["disk"]["needed_gb"] > plan["disk"]["free_gb"]:
        job.report(warning("the disk may not hold this run: {needed_gb} GB of {free_gb} free".format(**plan["disk"])))
    preflight(config, job.devices)
    kept = events_until(before, job.checkpoint)
    if job.is_first:
        job.lock = _go_on(job, mixture, plan, kept) if job.resume else _make_folder(job, mixture)
    check_shared(job.run, plan, job.devices)
    if not job.resume:
        job.report(plan)
    model_folder(config.model, emit=job.report)  # a download shows its progress
    contract = trained_contract(contract, config, mixture)
    if job.checkpoint:
        _check_contract(job, Contract.read(job.checkpoint), contract)
    if config.augment.is_on:
        job.report(note("augment.*: pictures change in each epoch, so that each is decoded and read anew in each"))
    session = _build(job, mixture, contract, plan, stop)
    if job.resume:
        session.recall(job, kept)
    _train(job, session, stop)
    trainer, best = session.trainer, session.best
    if number := stop.requested():
        made = complete_checkpoints(job.run.checkpoints)
        step, checkpoint = trainer.state.global_step, str(made[-1]) if made else None
        job.report({"event": "stopped", "step": step, "checkpoint": checkpoint, "signal": number, "run": job.run.name})
        return 128 + number
    if best.step is None:
        best.keep(trainer.state.global_step, None)
    if job.is_first:
        done = {
            "steps": trainer.state.global_step, "seconds": round(time.monotonic() - start, 1),
            "memory_gib": round(session.conductor.peak_gib, 2),
            # On the CPU a process holds its libraries too: no figure to compare.
            "estimate_gib": plan["memory_gib"]["total"] if job.devices.kind == "cuda" else None,
        }  # fmt: skip
        _finish(job, session.evals, best, done)
    return 0


def _without_effect(config: TrainConfig, plan: dict[str, Any]) -> list[str]:
    """Settings that do not do here what they say."""
    said = []
    if config.compile and not plan["batch"]["compiled"]:
        said.append("compile=true does nothing on the CPU")
    largest = plan["sample_tokens"]["max"]
    if config.fast and config.max_tokens and config.max_tokens < largest:
        said.append(f"max_tokens={config.max_tokens} is under the largest sample's {largest}: such a sample goes alone")
    return said


def _train(job: Job, session: "Session", stop: StopRequest) -> None:
    """Measure the base model, then train from the checkpoint, or from the beginning, to the end or to a stop."""
    trainer, examiner = session.trainer, session.examiner
    if examiner and not stop.requested() and all(e["step"] != 0 for e in examiner.evals):
        examiner.measure(0)
    if job.checkpoint:
        trainer.go_on(job.checkpoint)
        _measure_what_a_stop_left_out(session, stop)
    done = trainer.state.global_step >= session.total or is_stalled(session.evals, job.config.early_stopping)
    if done or stop.agreed(trainer.args.device):
        return
    if trainer.state.global_step == 0 and job.is_first:
        write_preview(job.run, trainer.order, session.data, job.report)
    job.training = True
    trainer.train(resume_from_checkpoint=str(job.checkpoint) if job.checkpoint else None)
    job.training = False


def _measure_what_a_stop_left_out(session: "Session", stop: StopRequest) -> None:
    step = session.trainer.state.global_step
    if session.examiner is None or step not in session.conductor.eval_steps:
        return
    if stop.agreed(session.trainer.args.device):
        return
    if all(event["step"] != step for event in session.evals):
        value = session.examiner.measure(step)
        if not stop.agreed(session.trainer.args.device):
            session.best.keep(step, value)


def _make_folder(job: Job, mixture: Mixture) -> IO[str]:
    job.run.path.mkdir(parents=True)
    lock = job.run.hold()
    _write_config(job, mixture)
    job.run.events.touch()
    job.report({"event": "run", "name": job.run.name, "path": str(job.run.path)})
    return lock


def _write_config(job: Job, mixture: Mixture) -> None:
    resolved = job.config.model_copy(update={"data": mixture.setting(), "name": None})
    header = f"# {job.run.name}: complete and rerunnable. qwenft train --config config.yaml\n"
    write_whole(job.run.config, header + to_yaml(resolved))


def _go_on(job: Job, mixture: Mixture, plan: Event, kept: Sequence[Event]) -> IO[str]:
    """Cut the run's events back to the checkpoint, so that each step will stand once; its settings as they are now."""
    lock = job.run.hold()
    shutil.rmtree(job.run.checkpoints / ".staging", ignore_errors=True)
    step = step_of(job.checkpoint) if job.checkpoint else 0
    resumed = {"event": "resumed", "step": step, "checkpoint": str(job.checkpoint) if job.checkpoint else None}
    _write_config(job, mixture)
    job.run.rewrite_events([plan, *(event for event in kept if event["event"] != "plan"), resumed])
    job.report({"event": "run", "name": job.run.name, "path": str(job.run.path)})
    for event in (plan, resumed):
        job.report(event)  # told to the parent alone: the lock that keeps events is not the job's yet
    return lock


def _check_contract(job: Job, before: Contract, now: Contract) -> None:
    """Hold the checkpoint against the base model and the data as they are now.  Raises ModelError."""
    before.check(now)
    for name in ("min_pixels", "max_pixels", "prompts", "tasks", "pictures"):
        if getattr(before, name) != getattr(now, name):
            raise ModelError(f"{name} of the run {job.run.name} changed since its checkpoint", hint="qwenft train")
    changed = {key: value for key, value in now.versions.items() if before.versions.get(key) != value}
    if changed:
        listed = ", ".join(f"{key} {before.versions.get(key)} -> {value}" for key, value in changed.items())
        job.report(warning(f"other versions than before: {listed}; rounding may differ from the run without a stop"))


def trained_contract(base: Contract, config: TrainConfig, mixture: Mixture) -> Contract:
    """The contract of the adapter that this run makes."""
    packages = ["torch", "transformers", "peft", "accelerate"]
    packages += ["deepspeed"] * (config.engine == "deepspeed") + ["bitsandbytes"] * (config.quantize is not None)
    versions = {name: importlib.metadata.version(name) for name in packages}
    versions |= {"qwenft": __version__, "python": platform.python_version()}
    return replace(
        base,
        weights_sha256=weights_hash(model_folder(config.model)),
        tasks=mixture.tasks,
        data=mixture.name,
        quantize=config.quantize,
        pictures=tuple(sorted({sample.picture for sample in mixture.samples})),
        versions=versions,
    )


@dataclass
class Session:
    """What trains, measures and keeps."""

    trainer: AdapterTrainer
    conductor: Conductor
    examiner: Examiner | None
    best: BestAdapter
    total: int
    data: TrainingData

    @property
    def evals(self) -> list[dict[str, Any]]:
        """All evaluations so far."""
        return self.examiner.evals if self.examiner else []

    def recall(self, job: Job, events: Sequence[Event]) -> None:
        """Know what happened up to the checkpoint."""
        self.best.recall(events, job.checkpoint)
        self.conductor.watch.recall(events)
        self.evals.extend(dict(event) for event in events if event["event"] == "eval")


def _build(job: Job, mixture: Mixture, contract: Contract, plan: dict[str, Any], stop: StopRequest) -> Session:
    config = job.config
    arguments = training_arguments(config, job.devices, job.run, plan["updates"]["total"])
    dtype = torch.float32 if is_wide(config, job.devices.kind) else torch.bfloat16
    if config.engine == "deepspeed":
        start_deepspeed(job.devices.kind)
    set_seed(config.seed)
    base = load_base(config.model, dtype, arguments.device, config.quantize)
    base.model.language_model.config.use_cache = False
    model = trainable_model(base, config)
    fast = config.fast
    if fast and (why := _divided_at_once(config) or enable_fast_step(model)):
        job.report(warning(f"the fast step is off: {why}"))
        fast = False
    encoder = Encoder(load_processor(config.model), contract)
    examiner = _examiner(job, mixture, Predictor(model, encoder, fast=config.fast), stop)
    best = BestAdapter(job.run, job.report, job.is_first, model, contract)
    updates = plan["updates"]
    conductor = Conductor(
        config=config,
        total=updates["total"],
        per_epoch=updates["per_epoch"],
        stop=stop,
        examiner=examiner,
        keep_best=best.keep,
        watch=Watch(),
    )
    again = updates["total"] > updates["per_epoch"] and not config.augment.is_on
    features = _features(config, base, KEPT_FEATURES if again else 0) if fast else None
    compiled = fast and plan["batch"]["compiled"]
    if compiled and (why := compile_layers(model, vision=features is not None)):
        job.report(warning(f"the layers are not compiled: {why}"))
        compiled = False
    views = Views(config.augment, config.seed, mixture.samples) if config.augment.is_on else None
    data = TrainingData(mixture.samples, encoder, features.known if features else set(), views)
    trainer = AdapterTrainer(
        run=job.run,
        contract=contract,
        keep_last=config.keep_last,
        best_step=lambda: best.step if config.keep_best else None,
        report=job.report,
        model=model,
        args=arguments,
        order=PictureOrder(
            [sample.picture for sample in data.samples],
            config.seed,
            config.batch_size * config.accumulation * job.devices.world,
            job.devices.world,
            arguments.per_device_train_batch_size,
            mixture.parts,
        ),
        tasks=mixture.tasks,
        features=features,
        compiled=compiled,
        train_dataset=data,
        data_collator=Collator(
            encoder.processor.tokenizer.pad_token_id,
            base.config.image_token_id,
            config.batch_size,
            (sys.maxsize if config.engine == "deepspeed" else plan["batch"]["row_tokens"]) if fast else None,
            COMPILED_MULTIPLE if compiled else 1,
        ),
        callbacks=[conductor, GradientCheck(config.parts, taken_away=config.engine == "deepspeed")],
    )
    _silence(trainer)
    hold_to_engine(trainer, config)
    conductor.trainer = trainer
    return Session(trainer, conductor, examiner, best, updates["total"], data)


def _features(config: TrainConfig, base: Any, budget: int) -> PictureFeatures | None:
    """Pictures are read by the vision tower once an update, or once for all epochs, where it is whole and frozen."""
    if config.engine != "ddp" or {"vision", "merger"} & set(config.parts):
        return None
    return PictureFeatures(base, budget)


def _divided_at_once(config: TrainConfig) -> str:
    """Why the vision tower cannot be probed, if it cannot."""
    zero3 = config.engine == "deepspeed" and config.zero_stage == 3
    return "ZeRO-3 divides its weights as they are read" if zero3 else ""


def _silence(trainer: AdapterTrainer) -> None:
    from transformers import PrinterCallback, ProgressCallback

    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)


def _examiner(job: Job, mixture: Mixture, predictor: Predictor, stop: StopRequest) -> Examiner | None:
    samples, split = held_out_samples(mixture, job.config.eval_samples), mixture.held_out_name
    return Examiner(split, samples, predictor, job.report, stop) if samples and split else None


def _finish(job: Job, evals: list[dict[str, Any]], best: BestAdapter, done: dict[str, Any]) -> None:
    write_card(job.run.adapter, job.config, best.contract, evals, memory_text(done))
    shutil.rmtree(job.run.checkpoints / ".staging", ignore_errors=True)
    job.report(
        {
            "event": "finished", **done, "adapter": str(job.run.adapter),
            "best_step": best.step, "value": best.value, "metric": evals[0]["metric"] if evals else None,
            "baseline": evals[0]["value"] if evals else None,
        }
    )  # fmt: skip
    write_curves(job.run)
    if not job.demo:
        point_latest(job.run)


def _end(status: int) -> NoReturn:
    """End without the interpreter's teardown, in which a thread of torch's that still runs aborts the process."""
    atexit._run_exitfuncs()  # loaders' processes, dashboards
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    _end(main(sys.argv[1:]))
