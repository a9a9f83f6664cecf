"""Greedy generation: questions in, predictions in image px out, each with its status and score."""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from qwenft.core.answer import Answer, Status, Task, read_answer, score_of, write_answer
from qwenft.core.boxes import MERGE, PATCH, clip, to_image_px
from qwenft.core.devices import choose_device
from qwenft.core.errors import DeviceError, QwenftError
from qwenft.core.events import Emit, ignore, progress, warning
from qwenft.core.predictions import Detected, Prediction, Question
from qwenft.core.runs import Contract
from qwenft.model.attention import PLAIN, enable_fast_vision
from qwenft.model.fetch import model_folder
from qwenft.model.inputs import END_OF_TURN, Encoded, Encoder, Picture, collate
from qwenft.model.load import base_contract, base_of, load_adapter, load_base, load_processor, quiet_libraries
from qwenft.predict import probe
from qwenft.predict.cache import bytes_per_place
from qwenft.predict.engine import Engine, Prefix
from qwenft.predict.merge import MergedLora
from qwenft.predict.modes import answering
from qwenft.predict.parts import in_parts, put_together
from qwenft.predict.schedule import Finished, Form, Schedule, Shown, Turn, loops, until_over
from qwenft.prepare.pictures import open_upright

MAX_NEW_TOKENS: Final[dict[Task, int]] = {"grounding": 512, "detection": 2048, "caption": 128}
"""An answer is cut there; a box takes 30 to 40 tokens.  A cut answer is salvaged and says so."""
MAX_ROWS: Final = {"cpu": 64, "cuda": 256}
"""Questions that are answered side by side, where memory allows (docs/decisions.md)."""
MEMORY_SHARE: Final = 0.6
"""Of a GPU's free memory, for the cache; the rest is for what a pass computes."""
LOOP: Final = "loop"
"""How an answer was repaired that said the same thing over and over, and was stopped."""
PLAIN_BATCH: Final = {"cpu": 16, "cuda": 32}
_QUESTION_TOKENS: Final = 128
"""Room for a prompt's text when memory is divided; a longer one makes the cache grow."""
_READERS: Final = {"cpu": 1, "cuda": min(8, os.cpu_count() or 1)}
"""Threads that decode pictures while the model answers."""


@dataclass
class Predictor:
    """A model that can be asked, and the contract that says how."""

    model: Any
    encoder: Encoder
    adapter: Path | None = None
    """The adapter that answers; None: the base model, or one that is still being trained."""
    fast: bool = True
    """A picture's prompt once for all its questions, on a cache of our own, if that gives what `generate` gives: probed
    at the first answer.  False: `generate`, the plain twin."""
    keep_engine: bool = False
    """Keep cache, graphs and merged weights between calls of `answer`; a model in training has no memory for them."""
    _engine: Engine | None = field(default=None, init=False, repr=False)
    """Not in use by any call; one that is in use belongs to its call alone."""
    _probed: bool = field(default=False, init=False, repr=False)

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
        processor = load_processor(model)
        contract = base_contract(model, processor=processor)
        if adapter is not None:
            trained = Contract.read(adapter)
            trained.check(contract)
            contract = trained
        if min_pixels or max_pixels:
            contract = contract.with_budget(min_pixels, max_pixels)
        network: Any = load_base(model, weights, device, contract.quantize)
        if adapter is None:
            network.requires_grad_(False)  # frozen layers may be laid out as the kernels like them
        else:  # before the tower is widened: what was trained has the widths of the model's own files
            network = load_adapter(network, adapter)
        if why := enable_fast_vision(base_of(network)):
            emit(warning(f"the fast vision tower is off: {why}"))
        if adapter is not None and probe.is_idle(network):
            emit(warning(f"the adapter {adapter.absolute()} changes nothing: every answer is the base model's own"))
        return cls(network, Encoder(processor, contract), adapter and adapter.absolute(), keep_engine=True)

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

        A detection question about more than MOST_CATEGORIES is asked in several; their answers become one.
        batch_size: questions side by side; None: what fits, at most MAX_ROWS.
        Raises DataError at the turn of a picture that cannot be read, DeviceError if even one question does not fit.
        """
        emit(progress("questions", 0, len(questions)))
        answers = self._fast_answers if self._is_fast(emit) else self._plain_answers
        asked = [part for question in questions for part in in_parts(question)]
        found = put_together(questions, answers(asked, batch_size, max_new_tokens, emit))
        for done, prediction in enumerate(found, start=1):
            yield prediction
            emit(progress("questions", done, len(questions)))

    @property
    def base(self) -> Any:
        """The model itself; LoRA is inside its layers."""
        return base_of(self.model)

    def _is_fast(self, emit: Emit) -> bool:
        """Whether the fast way is used; it is probed once, and what is wrong with it is said."""
        if self.fast and not self._probed:
            self._probed = True
            if why := probe.objection(self.base, Engine(self.base, probe.ROWS, self._merged(ignore))):
                self.fast = False
                emit(warning(f"answers come from `generate`, slowly: the fast way {why}"))
        return self.fast

    def _merged(self, emit: Emit) -> MergedLora | None:
        """The adapter merged for the time of a run; None where there is none, or while it is trained."""
        if self.adapter is None:
            return None
        try:
            return MergedLora(self.model)
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            emit(warning("the merged weights do not fit in the GPU's memory: LoRA is computed beside the base, slower"))
            return None

    def _fast_answers(
        self, questions: Sequence[Question], batch_size: int | None, max_new_tokens: int | None, emit: Emit
    ) -> Iterator[Prediction]:
        """Answers in order; pictures are read as they are first asked about, so that no answer waits for later ones."""
        limits = [max_new_tokens or MAX_NEW_TOKENS[question.task] for question in questions]
        rows = min(batch_size or self._rows(max(limits, default=1)), max(1, len(questions)))
        ready: dict[int, Prediction | QwenftError] = {}
        turn = 0
        while turn < len(questions):
            left = [key for key in range(turn, len(questions)) if key not in ready]
            try:
                with self._borrowed_engine(rows, emit) as engine:
                    for found in self._run(engine, questions, limits, left):
                        ready |= found
                        while turn in ready:
                            answer = ready.pop(turn)
                            if isinstance(answer, QwenftError):
                                raise answer
                            yield answer
                            turn += 1
            except torch.cuda.OutOfMemoryError as error:
                if rows == 1:
                    raise DeviceError(f"one question does not fit in the GPU's memory: {error}") from error
                rows //= 2
                emit(warning(f"out of GPU memory: {rows} questions side by side from now on"))
            torch.cuda.empty_cache()

    @contextmanager
    def _borrowed_engine(self, rows: int, emit: Emit) -> Iterator[Engine]:
        """The engine that was kept, if it fits; else a new one."""
        engine, self._engine = self._engine, None
        fits = (rows, self.adapter is not None, self.base.device)
        if engine is None or (engine.rows, engine.has_lora, engine.device) != fits:
            engine = None  # its memory is wanted
            engine = Engine(self.base, rows, self._merged(emit))
        try:
            yield engine
        finally:
            if self.keep_engine:
                self._engine = engine

    def _rows(self, limit: int) -> int:
        """How many questions are answered side by side: on a GPU as many as its memory holds."""
        kind = self.base.device.type
        if kind == "cpu":
            return MAX_ROWS[kind]
        places = self.contract.max_pixels // (PATCH * MERGE) ** 2 + _QUESTION_TOKENS + limit
        free, _ = torch.cuda.mem_get_info(self.base.device)
        reserved = torch.cuda.memory_reserved(self.base.device) - torch.cuda.memory_allocated(self.base.device)
        kept = self._engine.cache.data_N2BKLD.nbytes if self._engine else 0
        fitting = int((free + reserved + kept) * MEMORY_SHARE) // (places * bytes_per_place(self.base))
        return max(1, min(MAX_ROWS[kind], fitting))

    def _run(
        self, engine: Engine, questions: Sequence[Question], limits: Sequence[int], keys: Sequence[int]
    ) -> Iterator[dict[int, Prediction | QwenftError]]:
        """Answers and unreadable pictures by the question's number, as they come."""
        asked: dict[int, Encoded] = {}
        failed: dict[int, QwenftError] = {}

        def shown() -> Iterator[Shown]:
            for picture, of_it in self._pictures(questions, keys, engine.rows):
                if isinstance(picture, QwenftError):
                    failed.update(dict.fromkeys(of_it, picture))
                    continue
                encoded = {key: self.encoder.asked(picture, self._prompt(questions[key])) for key in of_it}
                # The patches are the largest thing there is, and wanted only until the picture is read.
                frame = replace(picture, pixel_values_PD=picture.pixel_values_PD[:0])
                asked.update({key: replace(item, picture=frame) for key, item in encoded.items()})
                yield self._shown(picture, {key: (encoded[key], questions[key], limits[key]) for key in of_it})

        for finished in Schedule(engine, self._ends()).run(shown()):
            found = {answer.key: self._of(questions[answer.key], asked.pop(answer.key), answer) for answer in finished}
            yield {**found, **failed}
            failed.clear()
        yield dict(failed)

    def _pictures(
        self, questions: Sequence[Question], keys: Sequence[int], ahead: int
    ) -> Iterator[tuple[Picture | QwenftError, list[int]]]:
        """Each picture once with the numbers of its questions; `ahead` pictures are decoded meanwhile."""
        groups: dict[Path, list[int]] = {}
        for key in keys:
            groups.setdefault(questions[key].image, []).append(key)
        waiting: deque[tuple[Future[Picture | QwenftError], list[int]]] = deque()
        with ThreadPoolExecutor(_READERS[self.base.device.type]) as pool:
            try:
                for path, of_it in groups.items():
                    waiting.append((pool.submit(self._picture, path), of_it))
                    if len(waiting) > ahead:
                        future, first = waiting.popleft()
                        yield future.result(), first
                while waiting:
                    future, first = waiting.popleft()
                    yield future.result(), first
            finally:
                pool.shutdown(cancel_futures=True)

    def _picture(self, path: Path) -> Picture | QwenftError:
        try:
            picture = self.encoder.picture(open_upright(path))
        except QwenftError as error:
            return error
        pixels_PD = picture.pixel_values_PD.to(self.base.dtype)
        return replace(
            picture, pixel_values_PD=pixels_PD.pin_memory() if self.base.device.type == "cuda" else pixels_PD
        )

    def _prompt(self, question: Question) -> str:
        return question.ask or self.contract.prompts.text(question.task, question.query, question.categories)

    def _shown(self, picture: Picture, asked: dict[int, tuple[Encoded, Question, int]]) -> Shown:
        image_id = self.base.config.image_token_id
        turns: list[Turn] = []
        prefix: tuple[int, ...] = ()
        for key, (encoded, question, limit) in asked.items():
            ids = encoded.input_ids
            end = len(ids) - ids[::-1].index(image_id)
            prefix = tuple(ids[:end])
            turns.append(Turn(key, tuple(ids[end:]), limit, self._form(question)))
        return Shown(Prefix(prefix, picture), tuple(turns))

    def _form(self, question: Question) -> Form:
        """The fixed tokens of an answer with one box, labelled as it was asked for; the coordinates are free."""
        if question.task != "grounding" or not question.query:
            return Form()
        tokenizer, size = self.encoder.processor.tokenizer, (8, 8)
        one, other = (
            tokenizer(
                write_answer([(box, question.query)], size), add_special_tokens=False, split_special_tokens=True
            ).input_ids
            for box in ((1.0, 1.0, 5.0, 5.0), (2.0, 2.0, 6.0, 6.0))
        )
        differing = [i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b]
        if len(one) != len(other) or not differing:
            return Form()
        end = tokenizer.convert_tokens_to_ids(END_OF_TURN)
        return Form(tuple(one[: differing[0]]), (*one[differing[-1] + 1 :], end))

    def _ends(self) -> frozenset[int]:
        ids = self.base.generation_config.eos_token_id
        return frozenset(ids if isinstance(ids, list) else [] if ids is None else [ids])

    def _plain_answers(
        self, questions: Sequence[Question], batch_size: int | None, max_new_tokens: int | None, emit: Emit
    ) -> Iterator[Prediction]:
        """The plain twin: batches through `generate`, each question with its own picture."""
        size = batch_size or PLAIN_BATCH[self.base.device.type]
        done = 0
        while done < len(questions):
            batch = questions[done : done + size]
            try:
                found = self._generate(batch, max_new_tokens)
            except torch.cuda.OutOfMemoryError as error:
                torch.cuda.empty_cache()
                if size == 1:
                    raise DeviceError(f"one question does not fit in the GPU's memory: {error}") from error
                size = max(1, size // 2)
                emit(warning(f"out of GPU memory: the batch is now {size}"))
                continue
            yield from found
            done += len(batch)

    def _generate(self, questions: Sequence[Question], max_new_tokens: int | None) -> list[Prediction]:
        asked = [self.encoder.question(question) for question in questions]
        pad_id, image_id = self.encoder.processor.tokenizer.pad_token_id, self.base.config.image_token_id
        batch = collate(asked, pad_id, image_id, left=True)
        del batch["labels"]
        limits = [max_new_tokens or MAX_NEW_TOKENS[question.task] for question in questions]
        chosen = _ChosenProbabilities()
        with answering(self.base, PLAIN):
            generated = self.base.generate(
                **{name: tensor.to(self.base.device) for name, tensor in batch.items()},
                max_new_tokens=max(limits),
                use_cache=True,  # the config says False while it is trained
                logits_processor=LogitsProcessorList([chosen]),
            )
        answers = generated[:, batch["input_ids"].shape[1] :].tolist()
        probabilities = torch.stack(chosen.steps, dim=1).tolist()
        found = []
        for key, (question, encoded, limit) in enumerate(zip(questions, asked, limits, strict=True)):
            tokens = until_over(answers[key], self._ends(), limit)
            found.append(self._of(question, encoded, Finished(key, tokens, probabilities[key][: len(tokens)])))
        return found

    def _of(self, question: Question, asked: Encoded, answer: Finished) -> Prediction:
        """Turn one answer's tokens into boxes in image px."""
        pieces = _pieces(self.encoder.processor.tokenizer, answer.tokens)
        text = "".join(pieces)
        if question.task == "caption":
            status: Status = "ok" if text.strip() else "unparsable"
            return self._prediction(question, status, (), text=text.strip(), prompt=asked.prompt)
        read = read_answer(text)
        if loops(answer.tokens):
            read = Answer("salvaged" if read.objects else "unparsable", read.objects, LOOP)
        image_wh, input_wh = asked.picture.image_wh, asked.picture.input_wh
        scores = _scores(text, pieces, answer.probabilities, [found.span for found in read.objects])
        objects = tuple(
            Detected(
                clip(to_image_px(found.box_xyxy, image_wh, input_wh), image_wh),
                found.label.strip(),  # a token often begins with the space before its word
                score,
            )
            for found, score in zip(read.objects, scores, strict=True)
        )
        return self._prediction(question, read.status, objects, text=text, prompt=asked.prompt, how=read.how)

    def _prediction(
        self,
        question: Question,
        status: Status,
        objects: tuple[Detected, ...],
        *,
        text: str,
        prompt: str,
        how: str = "",
    ) -> Prediction:
        adapter = str(self.adapter) if self.adapter else None
        return Prediction(question, status, objects, text, prompt, how, self.contract.base, adapter)


def torch_device(gpus: str | None, dtype: str) -> tuple[torch.device, torch.dtype]:
    """The one device to answer on and its number format.  Raises DeviceError."""
    devices = choose_device(gpus)
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


def _pieces(tokenizer: Any, tokens: list[int]) -> list[str]:
    """The text that each token adds; a character of several tokens belongs to the last of them."""
    pieces, held = [], []
    for number, token in enumerate(tokens, start=1):
        held.append(token)
        text = tokenizer.decode(held, skip_special_tokens=True)
        whole = number == len(tokens) or not text.endswith("\N{REPLACEMENT CHARACTER}")
        pieces.append(text if whole else "")
        if whole:
            held = []
    return pieces


def _scores(
    text: str, pieces: list[str], probs: list[float], spans: Sequence[tuple[int, int] | None]
) -> list[float | None]:
    """The score of each box; spans: where its numbers stand in the text, in characters.

    What leads to a box begins with the answer or where the box before is closed: at its "}", if there is one.
    """
    starts = [0]
    for piece in pieces:
        starts.append(starts[-1] + len(piece))
    places = list(zip(starts, pieces, probs, strict=False))
    found: dict[tuple[int, int], float | None] = {}
    before = 0
    for start, end in sorted({span for span in spans if span}):
        opens = max(text.rfind("}", before, start), before)
        inside = [(at, piece, prob) for at, piece, prob in places if at < end and opens < at + len(piece)]
        coordinates = [prob for at, piece, prob in inside if start < at + len(piece) and any(map(str.isdigit, piece))]
        lead = [prob for at, piece, prob in inside if at + len(piece) <= start]
        found[start, end] = score_of(coordinates, lead)
        before = end
    return [found[span] if span else None for span in spans]
