"""The training process: plan, model, training, adapter; it tells its parent through a file of events."""

import importlib.metadata
import json
import math
import os
import platform
import shutil
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from transformers import TrainingArguments, set_seed

from qwenft import __version__
from qwenft.core.config import TrainConfig, make_config, to_yaml
from qwenft.core.devices import Devices
from qwenft.core.errors import DeviceError, QwenftError
from qwenft.core.events import Event
from qwenft.core.files import replace_folder, to_line, write_whole
from qwenft.core.runs import Contract, Run, point_latest
from qwenft.core.samples import PreparedDataset
from qwenft.evaluate.run import spread
from qwenft.model.fetch import model_folder
from qwenft.model.inputs import Encoder, TrainingData, collate
from qwenft.model.load import add_lora, base_contract, load_base, load_processor, quiet_libraries
from qwenft.predict.generate import Predictor
from qwenft.train.card import write_card, write_curves
from qwenft.train.checkpoints import complete_checkpoints
from qwenft.train.plan import make_plan
from qwenft.train.trainer import AdapterTrainer, Conductor, Examiner, StopRequest

KEPT_EVENTS: Final = frozenset({"plan", "step", "eval", "checkpoint", "adapter", "finished", "stopped"})
"""What stands in a run's events.jsonl."""


@dataclass
class Job:
    """What the parent asked for."""

    config: TrainConfig
    data: Path
    run: Run
    devices: Devices
    channel: Path
    demo: bool
    dry_run: bool

    @classmethod
    def read(cls, path: Path) -> "Job":
        """Read the parent's file."""
        value = json.loads(path.read_text(encoding="utf-8"))
        devices = value["devices"]
        return cls(
            make_config(value["config"], "the parent"),
            Path(value["data"]),
            Run(Path(value["run"])),
            Devices(devices["kind"], devices["processes"], tuple(devices["ids"]), tuple(devices["names"])),
            Path(value["channel"]),
            value["demo"],
            value["dry_run"],
        )

    @property
    def is_first(self) -> bool:
        """Whether this process reports and writes."""
        return int(os.environ.get("RANK", "0")) == 0

    def report(self, event: Event) -> None:
        """Tell the parent, and keep what belongs to the run."""
        if not self.is_first:
            return
        with self.channel.open("a", encoding="utf-8") as file:
            file.write(to_line(_finite(event)) + "\n")
        if event["event"] in KEPT_EVENTS and self.run.path.is_dir():
            self.run.append_event(_finite(event))


def _finite(event: Event) -> dict[str, Any]:
    """NaN and infinity are no JSON: a loss that is one is written as text."""
    return {
        key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in event.items()
    }


def main(arguments: list[str]) -> int:
    """Run the job in the file that the first argument names; returns the exit status."""
    job = Job.read(Path(arguments[0]))
    stop = StopRequest()
    stop.listen()
    try:
        return _work(job, stop)
    except QwenftError as error:
        job.report({"event": "error", "kind": type(error).__name__, "message": str(error), "hint": error.hint})
        return error.exit_code
    except torch.cuda.OutOfMemoryError as error:
        first = str(error).splitlines()[0]
        job.report(
            {
                "event": "error", "kind": DeviceError.__name__, "message": f"out of GPU memory: {first}",
                "hint": f"batch_size={max(1, job.config.batch_size // 2)} "
                f"accumulation={job.config.accumulation * 2} trains the same; or checkpointing=true, max_pixels=…",
            }
        )  # fmt: skip
        return 1


def _work(job: Job, stop: StopRequest) -> int:
    quiet_libraries()
    config, start = job.config, time.monotonic()
    dataset = PreparedDataset.open(job.data)
    contract = base_contract(config.model, weights=False).with_budget(config.min_pixels, config.max_pixels)
    plan = make_plan(config, dataset, contract, job.devices)
    if job.is_first and not job.dry_run:
        _make_folder(job, dataset)
    job.report(plan)
    if job.dry_run:
        return 0
    model_folder(config.model, emit=job.report)  # a download shows its progress
    contract = trained_contract(contract, config, dataset)
    trainer, examiner, best = _build(job, dataset, contract, plan, stop)
    if examiner and not stop.requested():
        examiner.measure(0)
    if not stop.requested():
        trainer.train()
    if number := stop.requested():
        made = complete_checkpoints(job.run.checkpoints)
        step = trainer.state.global_step
        checkpoint = str(made[-1]) if made else None
        job.report({"event": "stopped", "step": step, "checkpoint": checkpoint, "signal": number})
        return 128 + number
    if best.step is None:
        best.keep(trainer.state.global_step, None)
    if job.is_first:
        done = {"steps": trainer.state.global_step, "seconds": round(time.monotonic() - start, 1)}
        _finish(job, examiner.evals if examiner else [], best, done)
    return 0


def _make_folder(job: Job, dataset: PreparedDataset) -> None:
    job.run.path.mkdir(parents=True)
    resolved = job.config.model_copy(update={"data": str(dataset.path), "name": None})
    header = f"# {job.run.name}: complete and rerunnable. qwenft train --config config.yaml\n"
    write_whole(job.run.config, header + to_yaml(resolved))
    job.run.events.touch()
    job.report({"event": "run", "name": job.run.name, "path": str(job.run.path)})


def trained_contract(base: Contract, config: TrainConfig, dataset: PreparedDataset) -> Contract:
    """The contract of the adapter that this run makes."""
    samples = dataset.samples(dataset.train)
    packages = ("torch", "transformers", "peft", "accelerate")
    versions = {name: importlib.metadata.version(name) for name in packages}
    versions |= {"qwenft": __version__, "python": platform.python_version()}
    return replace(
        base,
        weights_sha256=base_contract(config.model).weights_sha256,
        tasks=tuple(sorted({sample.task for sample in samples})),
        data=dataset.name,
        pictures=tuple(sorted({sample.picture for sample in samples})),
        versions=versions,
    )


@dataclass
class BestAdapter:
    """Keeps the adapter with the highest held-out metric in the run's adapter/ folder; the later one on a tie."""

    job: Job
    model: Any
    contract: Contract
    step: int | None = None
    value: float | None = None

    def keep(self, step: int, value: float | None) -> None:
        """Write the adapter as it is now, unless an earlier one measured better."""
        if self.value is not None and (value is None or value < self.value):
            return
        self.step, self.value = step, value
        if self.job.is_first:
            staged = self.job.run.path / ".adapter.partial"
            shutil.rmtree(staged, ignore_errors=True)
            self.model.save_pretrained(staged, save_embedding_layers=False)
            self.contract.write(staged)
            replace_folder(staged, self.job.run.adapter)
        self.job.report({"event": "adapter", "step": step, "value": value, "path": str(self.job.run.adapter)})


def _build(
    job: Job, dataset: PreparedDataset, contract: Contract, plan: dict[str, Any], stop: StopRequest
) -> tuple[AdapterTrainer, Examiner | None, BestAdapter]:
    config = job.config
    arguments = training_arguments(job, plan["updates"]["total"])
    dtype = torch.bfloat16 if arguments.bf16 else torch.float32
    set_seed(config.seed)
    base = load_base(config.model, dtype, arguments.device)
    base.model.language_model.config.use_cache = False
    model = add_lora(base, config.parts, config.rank, config.alpha, config.dropout)
    encoder = Encoder(load_processor(config.model), contract)
    examiner = _examiner(job, dataset, Predictor(model, encoder), stop)
    best = BestAdapter(job, model, contract)
    updates = plan["updates"]
    conductor = Conductor(
        config=config,
        total=updates["total"],
        per_epoch=updates["per_epoch"],
        stop=stop,
        examiner=examiner,
        keep_best=best.keep,
    )
    pad_id = encoder.processor.tokenizer.pad_token_id
    trainer = AdapterTrainer(
        run=job.run,
        keep_last=config.keep_last,
        report=job.report,
        model=model,
        args=arguments,
        train_dataset=TrainingData(dataset, dataset.samples(dataset.train), encoder),
        data_collator=partial(collate, pad_id=pad_id, image_id=base.config.image_token_id),
        callbacks=[conductor],
    )
    _silence(trainer)
    conductor.trainer = trainer
    return trainer, examiner, best


def _silence(trainer: AdapterTrainer) -> None:
    from transformers import PrinterCallback, ProgressCallback

    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)


def _examiner(job: Job, dataset: PreparedDataset, predictor: Predictor, stop: StopRequest) -> Examiner | None:
    config, split = job.config, dataset.held_out
    if split is None or config.eval_samples == 0:
        return None
    chosen = spread(dataset.samples(split), config.eval_samples)
    return Examiner(dataset, split, chosen, predictor, job.report, stop)


def training_arguments(job: Job, total: int) -> TrainingArguments:
    """Our settings in the Trainer's words."""
    config, on_gpu = job.config, job.devices.kind == "cuda"
    if on_gpu and not torch.cuda.is_available():
        raise DeviceError("a GPU is there, but this torch cannot use it", hint="nvidia-smi; or --gpus cpu")
    schedules = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}
    return TrainingArguments(
        output_dir=str(job.run.checkpoints / ".staging"),
        use_cpu=not on_gpu,
        ddp_backend="gloo" if job.devices.processes > 1 and not on_gpu else None,
        ddp_find_unused_parameters=False,
        bf16=config.dtype == "bfloat16" or (config.dtype == "auto" and on_gpu),
        seed=config.seed,
        data_seed=config.seed,
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulation,
        learning_rate=config.learning_rate,
        lr_scheduler_type=schedules[config.schedule],
        warmup_steps=int(config.warmup * total),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        activation_checkpointing=config.checkpointing,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",  # Conductor says when
        eval_strategy="no",
        remove_unused_columns=False,
        dataloader_num_workers=config.workers,
        dataloader_pin_memory=on_gpu,
        report_to=list(config.report_to) or "none",
        run_name=job.run.name,
        disable_tqdm=True,
    )


def _finish(job: Job, evals: list[dict[str, Any]], best: BestAdapter, done: dict[str, Any]) -> None:
    write_card(job.run.adapter, job.config, best.contract, evals)
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
