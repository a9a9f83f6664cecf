"""The training loop: a transformers.Trainer that reports events, measures by generation and stages checkpoints."""

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, cast

import torch
from accelerate.utils.fsdp_utils import save_fsdp_optimizer
from torch import distributed
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import SCHEDULER_NAME

from qwenft.core.config import TrainConfig
from qwenft.core.errors import DeviceError, RunError
from qwenft.core.events import Emit, note, warning
from qwenft.core.predictions import Prediction, Question
from qwenft.core.runs import Contract, Run
from qwenft.core.samples import Sample
from qwenft.evaluate.score import score_predictions
from qwenft.model.branches import on_device
from qwenft.model.fast import MAX_GRAPHS, eager_layers, num_graphs, uncompile_layers
from qwenft.model.features import PictureFeatures
from qwenft.model.load import read_trained, save_trained
from qwenft.predict.generate import Predictor
from qwenft.train import checkpoints
from qwenft.train.batches import PictureOrder, TrainingData, Update
from qwenft.train.engine import take_state, trained_state, whole_model
from qwenft.train.launch import PARENT
from qwenft.train.losses import TaskLosses
from qwenft.train.measure import measure
from qwenft.train.plan import stops
from qwenft.train.saving import BEST, is_stalled, link_copy, writing
from qwenft.train.watch import MicroBatch, Watch


@dataclass
class StopRequest:
    """Set by SIGINT or SIGTERM, or when the parent is gone; heeded at the next step's end."""

    signal: int = 0
    _parent: int = field(default_factory=os.getppid)
    _launcher: int = field(default_factory=lambda: int(os.environ.get(PARENT, "0")))
    """Behind torch's launcher: the process that started that one."""

    def listen(self) -> None:
        """Catch both signals from now on."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._caught)

    def _caught(self, number: int, frame: FrameType | None) -> None:
        self.signal = number

    def requested(self) -> int:
        """The signal's number, or 0."""
        if not self.signal and (os.getppid() != self._parent or not _is_there(self._launcher)):
            self.signal = signal.SIGTERM
        return self.signal

    def agreed(self, device: torch.device) -> int:
        """The same answer in every process: the largest of all."""
        if not distributed.is_initialized():
            return self.requested()
        flag = torch.tensor([self.requested()], device=device)
        distributed.all_reduce(flag, op=distributed.ReduceOp.MAX)
        self.signal = int(flag.item())
        return self.signal


def _is_there(process: int) -> bool:
    try:
        os.kill(process, 0)  # 0: nobody to ask for, and no signal sent
    except ProcessLookupError:
        return False
    return True


@dataclass
class Examiner:
    """Measures the model on held-out samples, by the scorer that `eval` uses; the processes share the work."""

    split: str
    samples: Sequence[Sample]
    """With the whole path of their picture."""
    predictor: Predictor
    report: Emit
    stop: StopRequest
    evals: list[dict[str, Any]] = field(default_factory=list)

    def measure(self, step: int) -> float | None:
        """Report an `eval` event and return the headline value; None where nothing can be measured, or after a stop."""
        start = time.monotonic()
        rank, world = _rank_and_world()
        mine = [Question.of(sample, Path()) for sample in self.samples[rank::world]]
        answers = []
        try:
            with whole_model(self.predictor.model), eager_layers(self.predictor.model), _same_chance():
                for answer in self.predictor.answer(mine, emit=self.report):
                    answers.append(answer)
                    if world == 1 and self.stop.requested():  # several processes must all come to the same end
                        return None
        except torch.cuda.OutOfMemoryError as error:
            raise DeviceError(
                f"out of GPU memory while measuring: {error}", hint="qwenft train eval_samples=0"
            ) from error
        predictions = _gathered(answers, world)
        scores = score_predictions(self.samples, predictions)
        metric, value, by_task = measure(scores)
        event = {
            "event": "eval", "step": step, "split": self.split, "samples": len(self.samples), "metric": metric,
            "value": value, "by_task": by_task, "parse_rate": scores["parse_rate"], "scores": scores,
            "seconds": round(time.monotonic() - start, 2),
        }  # fmt: skip
        self.evals.append(event)
        self.report(event)
        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()  # the next updates' memory is told by itself
        return value


@contextmanager
def _same_chance() -> Iterator[None]:
    """What is drawn inside the block changes nothing outside: a run with fewer evaluations drops out the same."""
    on_gpu = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(on_gpu):
        yield


def _rank_and_world() -> tuple[int, int]:
    return (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)


def _gathered(mine: list[Prediction], world: int) -> list[Prediction]:
    if world == 1:
        return mine
    parts: list[list[Prediction]] = [[] for _ in range(world)]
    distributed.all_gather_object(parts, mine)
    return [prediction for part in parts for prediction in part]


class AdapterTrainer(Trainer):
    """Trainer with the loss of rule 8 and checkpoints that are whole or absent."""

    def __init__(
        self,
        *,
        run: Run,
        contract: Contract,
        keep_last: int,
        best_step: Callable[[], int | None],
        report: Emit,
        order: PictureOrder,
        tasks: Sequence[str],
        features: PictureFeatures | None,
        compiled: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        # Loss = sum over target tokens / their number in the whole update, so that 1x8 = 2x4 = 8x1.  The model class
        # says False, and a plain Trainer then averages the micro-batches' means (facts.md, section 5).
        self.model_accepts_loss_kwargs = True
        self.run = run
        self.contract = contract
        self.keep_last = keep_last
        self.best_step = best_step
        """Whose checkpoint stays beside the newest; None: no one's."""
        self.report = report
        self.order = order
        self.features = features
        self.compiled = compiled
        self.task_losses = TaskLosses(self.args.device) if len(tasks) > 1 else None
        """None where there is only one task."""
        self._learned_tasks: list[int] = []
        """Of the micro-batch at hand."""
        self.num_tokens = 0
        self.num_samples = 0
        self.seconds_waited = 0.0
        self.micro_batches: list[tuple[torch.Tensor, list[str]]] = []
        """Of the update so far: loss and sample ids.  The losses stay on the device: reading one waits for it."""

    def get_batch_samples(self, *arguments: Any, **more: Any) -> Any:
        """The Trainer's own, and the time it takes: while it waits for the loader the GPU has nothing to do."""
        start = time.monotonic()
        found = super().get_batch_samples(*arguments, **more)
        self.seconds_waited += time.monotonic() - start
        return found

    def _get_train_sampler(self, *_: Any) -> PictureOrder:
        return self.order

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return cast(dict[str, Any], on_device(inputs, self.args.device))

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """One update of this process, a micro-batch after another; counts what it holds and remembers whose it is."""
        update: Update = inputs["update"]
        features = self.features(update.pictures, update.keys) if self.features else None
        losses = []
        for micro_batch in update.micro_batches:
            is_last = micro_batch is update.micro_batches[-1]
            shown = micro_batch.shown(update, features)
            self._learned_tasks = micro_batch.tasks
            with nullcontext() if is_last else self.accelerator.no_sync(model):
                losses.append(super().training_step(model, shown, num_items_in_batch))
            self.num_tokens += micro_batch.tokens
            self.num_samples += len(micro_batch.names)
            self.micro_batches.append((losses[-1], micro_batch.names))
        if self.compiled and num_graphs() > MAX_GRAPHS:
            self.compiled = False
            uncompile_layers(model)
            self.report(warning("the layers are no longer compiled: torch compiles them anew for each length of a row"))
        return torch.stack(losses).sum()

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The Trainer's own; where there are several tasks the loss of each is noted too."""
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if self.task_losses is not None:
            self.task_losses.add(outputs.logits, inputs, self._learned_tasks)
        return (loss, outputs) if return_outputs else loss

    def all_micro_batches(self) -> list[MicroBatch]:
        """Those of the last update in all processes: loss (its share of the update's) and sample ids."""
        mine: list[MicroBatch] = [(float(loss), names) for loss, names in self.micro_batches]
        world = _rank_and_world()[1]
        if world == 1:
            return mine
        parts: list[list[MicroBatch]] = [[] for _ in range(world)]
        distributed.all_gather_object(parts, mine)
        return [pair for part in parts for pair in part]

    def go_on(self, checkpoint: Path) -> None:
        """Take the adapter of a checkpoint; `train(resume_from_checkpoint=…)` takes the rest."""
        self._load_from_checkpoint(str(checkpoint))
        self.state.global_step = checkpoints.step_of(checkpoint)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write what is trained, whole, whatever the engine; all processes come here together."""
        state = trained_state(cast(torch.nn.Module, self.model))
        if self.args.should_save:
            save_trained(self.model, state, Path(str(output_dir)))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        module = cast(torch.nn.Module, self.model)
        take_state(module, read_trained(module, Path(resume_from_checkpoint)))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        # The Trainer would write the model a second time here, with its frozen weights.
        save_fsdp_optimizer(
            self.accelerator.state.fsdp_plugin, self.accelerator, self.optimizer, self.model, output_dir
        )
        if self.args.should_save:
            torch.save(cast(Any, self.lr_scheduler).state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        step = self.state.global_step
        staged, final = Path(str(self.args.output_dir)) / f"checkpoint-{step}", self.run.checkpoints / f"step-{step}"
        with writing(f"the checkpoint of step {step}", self.run, staged):
            super()._save_checkpoint(model, trial)  # into the staging folder: args.output_dir
            if distributed.is_initialized():
                distributed.barrier()
            if self.args.should_save:
                self.contract.write(staged)
                if self.run.adapter.is_dir():
                    link_copy(self.run.adapter, staged / BEST)
                checkpoints.publish(staged, final)
                checkpoints.prune(self.run.checkpoints, self.keep_last, self.best_step())
        if self.args.should_save:
            self.report({"event": "checkpoint", "step": step, "path": str(final)})


class Conductor(TrainerCallback):
    """Says when to measure, save and stop, and reports each step."""

    def __init__(
        self,
        *,
        config: TrainConfig,
        total: int,
        per_epoch: int,
        stop: StopRequest,
        examiner: Examiner | None,
        keep_best: Callable[[int, float | None], None],
        watch: Watch,
    ) -> None:
        self.trainer: AdapterTrainer | None = None
        """Set once it exists: each needs the other."""
        self.total = total
        self.per_epoch = per_epoch
        self.eval_steps = frozenset(stops(config.eval_every or per_epoch, total)) if examiner else frozenset()
        self.save_steps = frozenset(stops(config.save_every or per_epoch, total))
        self.stop = stop
        self.examiner = examiner
        self.keep_best = keep_best
        self.watch = watch
        self.early_stopping = config.early_stopping
        self.lower_rate = config.learning_rate / 2
        self.peak_gib = 0.0
        """Of the updates alone: what an evaluation takes does not count."""
        self._clock = time.monotonic()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Hold the plan's update count against the trainer's own."""
        if state.max_steps != self.total:
            raise RunError(
                f"the plan counts {self.total} updates, the trainer {state.max_steps}: a bug, please report it"
            )
        self._clock = time.monotonic()

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Order the samples of this epoch: accelerate's own call does not reach the order behind skipped batches.

        The loader's processes, which begin after this call, show the pictures as this epoch has them.
        """
        if self.trainer is not None:
            epoch = state.global_step // self.per_epoch
            self.trainer.order.set_epoch(epoch)
            cast(TrainingData, self.trainer.train_dataset).epoch = epoch

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Decide what happens after this update."""
        if self.stop.agreed(args.device):
            control.should_save = True
            control.should_training_stop = True
        elif state.global_step in self.save_steps:
            control.should_save = True

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Turn the trainer's log of an update into a `step` event; then measure, if it is time."""
        if not logs or "loss" not in logs or self.trainer is None:
            return
        seconds = max(time.monotonic() - self._clock, 1e-9)
        memory_gib = peak_memory_gib(args.device)
        self.peak_gib = max(self.peak_gib, memory_gib)
        trainer, world = self.trainer, args.world_size
        by_task = trainer.task_losses.take() if trainer.task_losses else {}
        trainer.report(
            {
                "event": "step", "step": state.global_step, "epoch": round(float(state.epoch or 0), 4),
                "loss": logs["loss"], "learning_rate": logs["learning_rate"], "grad_norm": logs.get("grad_norm"),
                "samples_per_s": round(trainer.num_samples * world / seconds, 2),
                "tokens_per_s": round(trainer.num_tokens * world / seconds, 1),
                "wait_share": round(min(trainer.seconds_waited / seconds, 1.0), 3),
                "memory_gib": round(memory_gib, 3),
                **({"loss_by_task": by_task} if len(by_task) > 1 else {}),
            }
        )  # fmt: skip
        trainer.num_samples = trainer.num_tokens = 0
        trainer.seconds_waited = 0.0
        self._watch_over(trainer, state.global_step, logs)
        if state.global_step in self.eval_steps and self.examiner and not self.stop.signal:
            value = self.examiner.measure(state.global_step)
            if self.stop.agreed(args.device):
                control.should_save = control.should_training_stop = True
            else:
                self.keep_best(state.global_step, value)
            if is_stalled(self.examiner.evals, self.early_stopping):
                trainer.report(note(f"stopping early: {self.early_stopping} evaluations brought nothing better"))
                control.should_save = control.should_training_stop = True
        self._clock = time.monotonic()

    def _watch_over(self, trainer: AdapterTrainer, step: int, logs: Any) -> None:
        """Say what is wrong with this update, with its samples.  Raises RunError where training cannot go on."""
        trouble = self.watch.look(step, logs["loss"], logs.get("grad_norm"), trainer.all_micro_batches)
        trainer.micro_batches.clear()
        if trouble is None:
            return
        trainer.report(trouble.event())
        if trouble.ends:
            made = checkpoints.complete_checkpoints(trainer.run.checkpoints)
            stands = f"; the checkpoint {made[-1]} is from before" if made else ""
            text = f"{trouble.text}{stands}. Look at these samples; if they are sound, learn more slowly"
            raise RunError(text, hint=f"qwenft train --config {trainer.run.config} learning_rate={self.lower_rate:g}")
        trainer.report(warning(trouble.text))


def peak_memory_gib(device: torch.device) -> float:
    """Peak since the last evaluation: allocated on a GPU; on the CPU resident in this process, since it began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1024**3
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
