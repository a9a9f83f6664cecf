"""The training loop: a transformers.Trainer that reports events, measures by generation and stages checkpoints."""

import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, cast

import torch
from peft import PeftModel
from torch import distributed
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from qwenft.core.config import TrainConfig
from qwenft.core.errors import RunError
from qwenft.core.events import Emit
from qwenft.core.predictions import Prediction, Question
from qwenft.core.runs import Run
from qwenft.core.samples import PreparedDataset, Sample
from qwenft.evaluate.score import headline, score_predictions
from qwenft.predict.generate import Predictor
from qwenft.train import checkpoints
from qwenft.train.plan import stops


@dataclass
class StopRequest:
    """Set by SIGINT or SIGTERM, or when the parent is gone; heeded at the next step's end."""

    signal: int = 0
    _parent: int = field(default_factory=os.getppid)

    def listen(self) -> None:
        """Catch both signals from now on."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._caught)

    def _caught(self, number: int, frame: FrameType | None) -> None:
        self.signal = number

    def requested(self) -> int:
        """The signal's number, or 0."""
        if not self.signal and os.getppid() != self._parent:
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


@dataclass
class Examiner:
    """Measures the model on held-out samples, by the scorer that `eval` uses; the processes share the work."""

    dataset: PreparedDataset
    split: str
    samples: Sequence[Sample]
    predictor: Predictor
    report: Emit
    stop: StopRequest
    evals: list[dict[str, Any]] = field(default_factory=list)

    def measure(self, step: int) -> float | None:
        """Report an `eval` event and return the headline value; None where nothing can be measured, or after a stop."""
        start = time.monotonic()
        rank, world = _rank_and_world()
        mine = [Question.of(sample, self.dataset.path) for sample in self.samples[rank::world]]
        answers = []
        for answer in self.predictor.answer(mine, emit=self.report):
            answers.append(answer)
            if world == 1 and self.stop.requested():  # several processes must all come to the same end
                return None
        predictions = _gathered(answers, world)
        scores = score_predictions(self.samples, predictions)
        metric, value = headline(scores)
        event = {
            "event": "eval", "step": step, "split": self.split, "samples": len(self.samples), "metric": metric,
            "value": value, "parse_rate": scores["parse_rate"], "scores": scores,
            "seconds": round(time.monotonic() - start, 2),
        }  # fmt: skip
        self.evals.append(event)
        self.report(event)
        return value


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

    def __init__(self, *, run: Run, keep_last: int, report: Emit, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # Loss = sum over target tokens / their number in the whole update, so that 1x8 = 2x4 = 8x1.  The model class
        # says False, and a plain Trainer then averages the micro-batches' means (facts.md, section 5).
        self.model_accepts_loss_kwargs = True
        self.run = run
        self.keep_last = keep_last
        self.report = report
        self.num_tokens = 0
        self.num_samples = 0

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """One micro-batch; counts what it holds."""
        self.num_tokens += int(inputs["attention_mask"].sum())
        self.num_samples += len(inputs["input_ids"])
        return super().training_step(model, inputs, num_items_in_batch)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if self.args.should_save:
            # "auto" would ask the hub whether the vocabulary grew; it does not here.
            cast(PeftModel, self.model).save_pretrained(str(output_dir), save_embedding_layers=False)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)  # into the staging folder: args.output_dir
        if distributed.is_initialized():
            distributed.barrier()
        if self.args.should_save:
            step = self.state.global_step
            final = self.run.checkpoints / f"step-{step}"
            checkpoints.publish(Path(str(self.args.output_dir)) / f"checkpoint-{step}", final)
            checkpoints.prune(self.run.checkpoints, self.keep_last)
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
    ) -> None:
        self.trainer: AdapterTrainer | None = None
        """Set once it exists: each needs the other."""
        self.total = total
        self.eval_steps = frozenset(stops(config.eval_every or per_epoch, total)) if examiner else frozenset()
        self.save_steps = frozenset(stops(config.save_every or per_epoch, total))
        self.stop = stop
        self.examiner = examiner
        self.keep_best = keep_best
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
        trainer, world = self.trainer, args.world_size
        trainer.report(
            {
                "event": "step", "step": state.global_step, "epoch": round(float(state.epoch or 0), 4),
                "loss": logs["loss"], "learning_rate": logs["learning_rate"], "grad_norm": logs.get("grad_norm"),
                "samples_per_s": round(trainer.num_samples * world / seconds, 2),
                "tokens_per_s": round(trainer.num_tokens * world / seconds, 1),
                "memory_gib": round(peak_memory_gib(args.device), 3),
            }
        )  # fmt: skip
        trainer.num_samples = trainer.num_tokens = 0
        if state.global_step in self.eval_steps and self.examiner and not self.stop.signal:
            value = self.examiner.measure(state.global_step)
            if self.stop.agreed(args.device):
                control.should_save = control.should_training_stop = True
            else:
                self.keep_best(state.global_step, value)
        self._clock = time.monotonic()


def peak_memory_gib(device: torch.device) -> float:
    """Peak so far: allocated on a GPU, resident of this process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1024**3
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
