"""Batched greedy generation: questions in, predictions in image px out, each with its status and score."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from qwenft.core.answer import Status, Task, read_answer, score_of
from qwenft.core.boxes import clip, to_image_px
from qwenft.core.devices import choose_devices
from qwenft.core.errors import DeviceError
from qwenft.core.events import Emit, ignore, progress, warning
from qwenft.core.predictions import Detected, Prediction, Question
from qwenft.core.runs import Contract
from qwenft.model.attention import enable_fast_vision
from qwenft.model.fetch import model_folder
from qwenft.model.inputs import Encoded, Encoder, collate
from qwenft.model.load import base_contract, load_adapter, load_base, load_processor, quiet_libraries

MAX_NEW_TOKENS: Final[dict[Task, int]] = {"grounding": 256, "detection": 2048, "caption": 128}
"""An answer is cut there; a box takes about 40 tokens.  A cut answer is salvaged and says so."""
BATCH_SIZE: Final = {"cpu": 16, "cuda": 32}


@dataclass
class Predictor:
    """A model that can be asked, and the contract that says how."""

    model: Any
    encoder: Encoder
    adapter: Path | None = None
    """The adapter that answers; None: the base model, or one that is still being trained."""

    @classmethod
    def load(
        cls,
        model: str,
        adapter: Path | None = None,
        *,
        gpus: str | None = None,
        dtype: str = "auto",
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        emit: Emit = ignore,
    ) -> "Predictor":
        """Load a base model and, if given, an adapter on it; the adapter's contract is checked and obeyed.

        gpus: one id as nvidia-smi shows it, or `cpu`; None: the first GPU, or the CPU.  min_pixels, max_pixels: the
        base model's pixel budget where it is not the default; an adapter brings its own.
        Raises ModelError, DeviceError.
        """
        quiet_libraries()
        device, weights = torch_device(gpus, dtype)
        model_folder(model, emit=emit)  # a download shows its progress
        contract = base_contract(model)
        if adapter is not None:
            trained = Contract.read(adapter)
            trained.check(contract)
            contract = trained
        if min_pixels or max_pixels:
            contract = contract.with_budget(min_pixels, max_pixels)
        network: Any = load_base(model, weights, device)
        if why := enable_fast_vision(network):
            emit(warning(f"the fast vision tower is off: {why}"))
        if adapter is not None:
            network = load_adapter(network, adapter)
        return cls(network, Encoder(load_processor(model), contract), adapter and adapter.absolute())

    @property
    def contract(self) -> Contract:
        """How the model is asked."""
        return self.encoder.contract

    @contextmanager
    def adapter_disabled(self) -> Iterator[None]:
        """Inside the block the base model answers, asked in the same way."""
        adapter, self.adapter = self.adapter, None
        try:
            with self.model.disable_adapter() if hasattr(self.model, "disable_adapter") else nullcontext():
                yield
        finally:
            self.adapter = adapter

    def answer(
        self,
        questions: Sequence[Question],
        *,
        batch_size: int | None = None,
        max_new_tokens: int | None = None,
        emit: Emit = ignore,
    ) -> Iterator[Prediction]:
        """Answer questions, in their order.  Out of memory halves the batch and goes on.

        Raises DataError for a picture that cannot be read, DeviceError if even one question does not fit.
        """
        size = batch_size or BATCH_SIZE[self.model.device.type]
        done = 0
        emit(progress("questions", 0, len(questions)))
        while done < len(questions):
            batch = questions[done : done + size]
            try:
                found = self._answer_batch(batch, max_new_tokens)
            except torch.cuda.OutOfMemoryError as error:
                torch.cuda.empty_cache()
                if size == 1:
                    raise DeviceError(f"one question does not fit in the GPU's memory: {error}") from error
                size = max(1, size // 2)
                emit(warning(f"out of GPU memory: the batch is now {size}"))
                continue
            yield from found
            done += len(batch)
            emit(progress("questions", done, len(questions)))

    @torch.inference_mode()
    def _answer_batch(self, questions: Sequence[Question], max_new_tokens: int | None) -> list[Prediction]:
        asked = [self.encoder.question(question) for question in questions]
        tokenizer = self.encoder.processor.tokenizer
        image_id = self.model.config.image_token_id
        batch = collate(asked, tokenizer.pad_token_id, image_id, left=True)
        del batch["labels"]
        limit = max_new_tokens or max(MAX_NEW_TOKENS[question.task] for question in questions)
        chosen = _ChosenProbabilities()
        was_training = self.model.training
        self.model.eval()
        generated = self.model.generate(
            **{name: tensor.to(self.model.device) for name, tensor in batch.items()},
            max_new_tokens=limit,
            use_cache=True,  # the config says False while it is trained
            logits_processor=LogitsProcessorList([chosen]),
        )
        self.model.train(was_training)
        answers = generated[:, batch["input_ids"].shape[1] :].tolist()
        probabilities = torch.stack(chosen.steps, dim=1).tolist()
        return [
            self._read(question, encoded, tokens, probs)
            for question, encoded, tokens, probs in zip(questions, asked, answers, probabilities, strict=True)
        ]

    def _read(self, question: Question, asked: Encoded, tokens: list[int], probs: list[float]) -> Prediction:
        """Turn one answer's tokens into boxes in image px."""
        tokenizer = self.encoder.processor.tokenizer
        ends = _end_tokens(self.model)
        tokens = tokens[: next((i for i, token in enumerate(tokens) if token in ends), len(tokens))]
        pieces = _pieces(tokenizer, tokens)
        text = "".join(pieces)
        if question.task == "caption":
            status: Status = "ok" if text.strip() else "unparsable"
            return self._prediction(question, status, (), text=text.strip(), prompt=asked.prompt)
        answer = read_answer(text)
        image_wh, input_wh = asked.picture.image_wh, asked.picture.input_wh
        objects = tuple(
            Detected(
                clip(to_image_px(found.box_xyxy, image_wh, input_wh), image_wh),
                found.label,
                score_of(_within(pieces, probs, found.span)) if found.span else None,
            )
            for found in answer.objects
        )
        return self._prediction(question, answer.status, objects, text=text, prompt=asked.prompt, how=answer.how)

    def _prediction(self, question: Question, status: Status, objects: tuple[Detected, ...], **said: str) -> Prediction:
        adapter = str(self.adapter) if self.adapter else None
        return Prediction(question, status, objects, **said, model=self.contract.base, adapter=adapter)


def torch_device(gpus: str | None, dtype: str) -> tuple[torch.device, torch.dtype]:
    """The one device to answer on and its number format.  Raises DeviceError."""
    devices = choose_devices(gpus)
    if devices.processes > 1:
        raise DeviceError(f"predict and eval use one device, {gpus} names {devices.processes}", hint="--gpus 0")
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # nvidia-smi's ids, if CUDA has not started yet
    if devices.kind == "cuda" and not torch.cuda.is_available():
        raise DeviceError("a GPU is there, but this torch cannot use it", hint="nvidia-smi; or --gpus cpu")
    device = torch.device("cuda", devices.indices[0]) if devices.kind == "cuda" else torch.device("cpu")
    automatic = torch.bfloat16 if devices.kind == "cuda" else torch.float32
    return device, automatic if dtype == "auto" else getattr(torch, dtype)


class _ChosenProbabilities(LogitsProcessor):
    """Keeps the probability of each greedily chosen token: (B,) a step."""

    def __init__(self) -> None:
        self.steps: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        logits = scores.float()
        self.steps.append((logits.max(dim=-1).values - logits.logsumexp(dim=-1)).exp())
        return scores


def _end_tokens(model: Any) -> set[int]:
    ids = model.generation_config.eos_token_id
    return set(ids) if isinstance(ids, list) else {ids}


def _pieces(tokenizer: Any, tokens: list[int]) -> list[str]:
    """The text that each token adds; a character of several tokens belongs to the last of them."""
    pieces, before = [], ""
    for count in range(1, len(tokens) + 1):
        text = tokenizer.decode(tokens[:count], skip_special_tokens=True)
        whole = text if count == len(tokens) else text.rstrip("�")
        pieces.append(whole[len(before) :])
        before = whole
    return pieces


def _within(pieces: list[str], probs: list[float], span: tuple[int, int]) -> list[float]:
    """Probabilities of the tokens with a digit inside a span of characters."""
    inside, at = [], 0
    for piece, prob in zip(pieces, probs, strict=False):
        if span[0] < at + len(piece) and at < span[1] and any(c.isdigit() for c in piece):
            inside.append(prob)
        at += len(piece)
    return inside
