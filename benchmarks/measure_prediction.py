"""Measures prediction: questions/s and peak memory of the fast way beside `generate` at several batches, in one run.

    python benchmarks/measure_prediction.py OUT --config CONFIG.json --processor FOLDER   # that shape, random weights
    python benchmarks/measure_prediction.py OUT                                           # the embedded model

Random weights of the shape in CONFIG.json (a published Qwen2.5-VL config) with LoRA r 16 on the language model;
pictures of 640x480 px with several expressions each.  Every answer has exactly --tokens tokens.  The embedded model is
asked about pictures of its own kind and ends its answers itself.
`generate` is the stock way: LoRA beside the base, the stock vision tower, pictures decoded before the clock starts, at
1, 8 and 32 questions and at the most that fit; its last row is helped by the fast vision tower and merged LoRA.  The
fast way starts from files.  With random weights its last row answers in the expected form, one box and its label, as a
tuned model does: the fixed tokens are then judged in one pass; the choice is scripted, the computation is the same.
On the CPU seconds are CPU seconds of all threads: others may use the machine.
Prints a table and writes OUT/prediction.json.
"""

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, AutoProcessor, GenerationConfig, Qwen2_5_VLForConditionalGeneration

from qwenft.core.answer import write_answer
from qwenft.core.predictions import Question
from qwenft.core.runs import Contract
from qwenft.demo.scenes import write_scenes
from qwenft.model.attention import PLAIN, enable_fast_vision, set_fast_vision
from qwenft.model.inputs import END_OF_TURN, Encoder, collate
from qwenft.model.load import DEFAULT_MAX_PIXELS, add_lora, base_contract, load_base, load_processor, quiet_libraries
from qwenft.predict.engine import Chosen, Engine, Work
from qwenft.predict.generate import Predictor
from qwenft.predict.merge import MergedLora
from qwenft.predict.modes import answering

PEAK_FLOPS, PEAK_BYTES = 790e12, 3.35e12
"""An H100's matrix products as measured beside the training step, and its memory as published, each second."""


COMMON = ("the star", "the ring", "the largest shape", "the green circle", "the shape on the left", "the heart")


def make_predictor(options: argparse.Namespace) -> Predictor:
    device = torch.device(options.device)
    if options.config is None:
        base: Any = load_base("tiny", torch.float32 if device.type == "cpu" else torch.bfloat16, device)
        processor, contract = load_processor("tiny"), base_contract("tiny")
    else:
        base, processor = (
            random_model(options.config, options.processor, device),
            AutoProcessor.from_pretrained(options.processor),
        )
        size = processor.image_processor.size
        contract = Contract("random", "", "", size["shortest_edge"], min(size["longest_edge"], DEFAULT_MAX_PIXELS))
    if options.config:
        base.generation_config = GenerationConfig(do_sample=False, eos_token_id=None, pad_token_id=0)
    if why := enable_fast_vision(base):
        print(f"the fast vision tower is off: {why}")
    torch.manual_seed(1)
    model = add_lora(base, ("language",), 16, 32, 0.0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, 0, 0.01)
    return Predictor(model.eval(), Encoder(processor, contract), Path("adapter"), keep_engine=True)


def random_model(config: Path, processor: Path, device: torch.device) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(config.read_text())
        shape = AutoConfig.from_pretrained(folder)
    torch.set_default_dtype(torch.bfloat16)
    with device:
        model = Qwen2_5_VLForConditionalGeneration._from_config(shape, attn_implementation="sdpa")
    torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.02)
    return model.eval()


def make_questions(folder: Path, options: argparse.Namespace) -> list[Question]:
    """Each with words of its own, so that the scripted answers can be told apart."""
    if options.config is None:
        return scene_questions(folder, options)
    questions = []
    for number in range(options.pictures):
        path = folder / f"{number}.jpg"
        small = Image.effect_noise((64, 48), 80).convert("RGB")
        small.resize((640, 480), Image.Resampling.BICUBIC).save(path)
        for part in range(options.expressions):
            text = f"the red cup number {part} on table {number}"
            questions.append(Question(path, "grounding", text))
    return questions


def scene_questions(folder: Path, options: argparse.Namespace) -> list[Question]:
    """The demo's pictures with their own expressions and as many common ones as are wanted."""
    write_scenes(folder, num_train=options.pictures, num_val=1, seed=0)
    asked: dict[str, list[str]] = {}
    for line in (folder / "train.jsonl").read_text().splitlines():
        row = json.loads(line)
        asked.setdefault(row["image"], []).append(row["query"])
    return [
        Question(folder / image, "grounding", query)
        for image, queries in asked.items()
        for query in (queries + list(COMMON))[: options.expressions]
    ]


def sync() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def clock() -> float:
    return time.perf_counter() if torch.cuda.is_available() else time.process_time()


def fresh() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gib() -> float | None:
    return round(torch.cuda.max_memory_allocated() / 1024**3, 2) if torch.cuda.is_available() else None


def measured(name: str, count: int, work: Callable[[], Any], repeats: int = 1) -> dict[str, Any]:
    """One row; out of memory and other failures are a row too."""
    fresh()
    try:
        seconds = []
        for _ in range(repeats):
            sync()
            start = clock()
            work()
            sync()
            seconds.append(clock() - start)
    except torch.cuda.OutOfMemoryError as error:
        return {"name": name, "error": f"out of memory: {str(error).splitlines()[0][:200]}"}
    row = {"name": name, "questions_per_s": round(count / statistics.median(seconds), 3), "questions": count}
    return {**row, "seconds": [round(value, 3) for value in seconds], "peak_gib": peak_gib()}


def generate(predictor: Predictor, batches: list[dict[str, torch.Tensor]], tokens: int) -> None:
    with answering(predictor.base, PLAIN):
        for batch in batches:
            inputs = {name: tensor.to(predictor.base.device) for name, tensor in batch.items()}
            forced = predictor.base.generation_config.eos_token_id is None
            made = predictor.base.generate(**inputs, max_new_tokens=tokens, use_cache=True)
            assert not forced or made.shape[1] == batch["input_ids"].shape[1] + tokens


def encoded(predictor: Predictor, questions: Sequence[Question], size: int) -> list[dict[str, torch.Tensor]]:
    pad_id, image_id = predictor.encoder.processor.tokenizer.pad_token_id, predictor.base.config.image_token_id
    batches = []
    for start in range(0, len(questions), size):
        items = [predictor.encoder.question(question) for question in questions[start : start + size]]
        batch = collate(items, pad_id, image_id, left=True)
        del batch["labels"]
        batches.append(batch)
    return batches


def measure_generate(predictor: Predictor, questions: list[Question], options: argparse.Namespace) -> list[dict]:
    predictor._engine = None  # its memory is no part of theirs
    set_fast_vision(predictor.base, False)
    generate(predictor, encoded(predictor, questions[:1], 1), 4)  # warm
    rows = []
    for size, count in ((1, 4), (8, 24), (32, 64)):
        batches = encoded(predictor, questions[:count], size)
        rows.append(
            measured(
                f"generate, batch {size}",
                min(count, len(questions)),
                lambda b=batches: generate(predictor, b, options.tokens),
            )
        )
        show(rows[-1])
    size = len(questions)
    while True:  # the most that fit
        batches = encoded(predictor, questions[:size], size)
        row = measured(f"generate, batch {size}", size, lambda b=batches: generate(predictor, b, options.tokens))
        if "error" not in row or size == 1:
            break
        size //= 2
    rows.append(row)
    show(row)
    set_fast_vision(predictor.base, True)
    lora = MergedLora(predictor.model)
    with lora.applied():
        row = measured(
            f"generate, batch {size}, fast vision, LoRA merged",
            size,
            lambda: generate(predictor, batches, options.tokens),
        )
    rows.append(row)
    show(row)
    return rows


class Script:
    """Puts the answer that is expected of a question in the place of the one that random weights would choose."""

    def __init__(self, predictor: Predictor, questions: Sequence[Question]) -> None:
        tokenizer, image_id = predictor.encoder.processor.tokenizer, predictor.base.config.image_token_id
        end = tokenizer.convert_tokens_to_ids(END_OF_TURN)
        self.answers: dict[tuple[int, ...], list[int]] = {}
        self.rows: dict[int, tuple[list[int], int]] = {}
        picture = predictor.encoder.picture(_upright(questions[0].image))
        for number, question in enumerate(questions):
            ids = predictor.encoder.asked(picture, predictor._prompt(question)).input_ids
            asked = tuple(ids[len(ids) - ids[::-1].index(image_id) :])
            box = (101.0 + number % 100, 110.0 + number % 50, 305.0 + number % 90, 400.0)
            text = write_answer([(box, question.query or "")], (640, 480))
            self.answers[asked] = [*tokenizer(text, add_special_tokens=False).input_ids, end]

    def around(self, right: Callable[[Engine, Sequence[Work]], list[Chosen]]) -> Any:
        def scripted(engine: Engine, work: Sequence[Work]) -> list[Chosen]:
            found = right(engine, work)
            for item, chosen in zip(work, found, strict=True):
                asked = tuple(item.tokens[: len(item.tokens) - item.asked + 1])
                if asked in self.answers:
                    self.rows[item.row] = (self.answers[asked], item.place + len(asked))
                answer, start = self.rows[item.row]
                first = item.place + len(item.tokens) - item.asked + 1 - start
                chosen[:] = [
                    (answer[min(first + n, len(answer) - 1)], probability) for n, (_, probability) in enumerate(chosen)
                ]
            return found

        return scripted


def _upright(path: Path) -> Any:
    from qwenft.prepare.pictures import open_upright

    return open_upright(path)


def measure_fast(predictor: Predictor, questions: list[Question], options: argparse.Namespace) -> list[dict]:
    rows = []
    said: list[Any] = []

    def answer(size: int | None, tokens: int = options.tokens) -> None:
        found = list(predictor.answer(questions, batch_size=size, max_new_tokens=tokens, emit=said.append))
        assert len(found) == len(questions)

    for size in (*options.rows, None):
        name = (
            f"ours, {size} rows"
            if size
            else f"ours, {min(predictor._rows(options.tokens), len(questions))} rows (default)"
        )
        answer(size)  # warm: probe, kernels
        rows.append(
            {
                **measured(name, len(questions), lambda s=size: answer(s), options.repeats),
                "passes": passes(lambda s=size: answer(s)),
            }
        )
        show(rows[-1])
    if options.config:
        rows.append(scripted(predictor, questions, options, lambda: answer(None, 2 * options.tokens)))
    for event in said:
        if event["event"] == "warning":
            print("warning:", event["text"])
    return rows


def scripted(
    predictor: Predictor, questions: list[Question], options: argparse.Namespace, answer: Callable[[], None]
) -> dict:
    script, right = Script(predictor, questions), (Engine.advance, Engine.step)
    Engine.advance, Engine.step = script.around(right[0]), script.around(right[1])  # type: ignore[method-assign]
    end = predictor.encoder.processor.tokenizer.convert_tokens_to_ids(END_OF_TURN)
    predictor.base.generation_config.eos_token_id = end
    try:
        lengths = [len(answer) for answer in script.answers.values()]
        name = f"ours, default rows, answers in the expected form ({min(lengths)} to {max(lengths)} tokens)"
        row = measured(name, len(questions), answer, options.repeats)
        row["passes"] = passes(answer)
    finally:
        Engine.advance, Engine.step = right  # type: ignore[method-assign]
        predictor.base.generation_config.eos_token_id = None
    show(row)
    return row


def passes(work: Callable[[], None]) -> dict[str, Any]:
    """How often each kind of pass runs and how long it takes, in a run of its own that waits for each of them."""
    spent: dict[str, list[float]] = {}
    right = {name: getattr(Engine, name) for name in ("read_pictures", "advance", "step", "_capture")}

    def timed(name: str) -> Any:
        def run(*arguments: Any) -> Any:
            sync()
            start = clock()
            found = right[name](*arguments)
            sync()
            spent.setdefault(name, []).append(clock() - start)
            return found

        return run

    for name in right:
        setattr(Engine, name, timed(name))
    try:
        start = clock()
        work()
        whole = clock() - start
    finally:
        for name, method in right.items():
            setattr(Engine, name, method)
    table = {name: {"times": len(values), "ms": round(1e3 * sum(values), 1)} for name, values in spent.items()}
    return {**table, "whole_ms": round(1e3 * whole, 1)}


def limit(predictor: Predictor, options: argparse.Namespace, rows: int) -> float:
    """Questions/s if every product ran at PEAK_FLOPS and every step read weights and cache once at PEAK_BYTES."""
    config = predictor.base.config
    text, vision = config.text_config, config.vision_config
    patches, prefix, question = 34 * 46, 34 * 46 // 4 + 15, 40
    heads = text.num_key_value_heads * (text.hidden_size // text.num_attention_heads)
    layer = 2 * text.hidden_size**2 + 2 * text.hidden_size * heads + 3 * text.hidden_size * text.intermediate_size
    weights, head = text.num_hidden_layers * layer, text.vocab_size * text.hidden_size
    block = 4 * vision.hidden_size**2 + 3 * vision.hidden_size * vision.intermediate_size
    full = len(vision.fullatt_block_indexes)
    seen = full * patches + (vision.depth - full) * 64
    tower = 2 * patches * vision.depth * block + 4 * vision.hidden_size * patches * seen

    def read(tokens: float, before: float) -> float:
        return 2 * tokens * weights + 4 * text.num_hidden_layers * text.hidden_size * tokens * (before + tokens / 2)

    each = (tower + read(prefix, 0)) / options.expressions + read(question, prefix)
    cache = rows * (prefix + question + options.tokens / 2) * text.num_hidden_layers * 2 * heads * 2
    step = max((2 * (weights + head) + cache) / PEAK_BYTES, 2 * rows * (weights + head) / PEAK_FLOPS)
    return 1 / (each / PEAK_FLOPS + (options.tokens - 1) * step / rows)


def show(row: dict[str, Any]) -> None:
    print(json.dumps(row), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--processor", type=Path)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--expressions", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--rows", type=int, nargs="*", default=[32])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    quiet_libraries()
    start = time.perf_counter()
    predictor = make_predictor(options)
    with tempfile.TemporaryDirectory() as folder:
        questions = make_questions(Path(folder), options)
        rows = measure_fast(predictor, questions, options) + measure_generate(predictor, questions, options)
    result = {
        "device": device_name(options.device),
        "torch": torch.__version__, "pictures": options.pictures, "expressions": options.expressions,
        "tokens": options.tokens, "rows": rows, "seconds": round(time.perf_counter() - start, 1),
    }  # fmt: skip
    if options.config and options.device == "cuda":
        result["limit_128_rows"] = round(limit(predictor, options, 128), 1)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "prediction.json").write_text(json.dumps(result, indent=1))
    table(result)


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} CPU threads"


def table(result: dict[str, Any]) -> None:
    speeds = {row["name"]: row.get("questions_per_s") for row in result["rows"]}
    peer = speeds.get("generate, batch 32")
    size = f"{result['pictures']} pictures x {result['expressions']}, {result['tokens']} tokens"
    print(f"\n{result['device']}, torch {result['torch']}, {size}")
    print(f"{'questions/s':>11} {'to batch 32':>11} {'peak GiB':>9}  way")
    for row in result["rows"]:
        speed, memory = row.get("questions_per_s"), row.get("peak_gib")
        cells = (
            row.get("error", "") if speed is None else f"{speed:.2f}",
            f"{speed / peer:.2f}" if speed and peer else "-",
        )
        print(f"{cells[0]:>11} {cells[1]:>11} {'-' if memory is None else f'{memory:.2f}':>9}  {row['name']}")
    if "limit_128_rows" in result:
        print(f"limit counted from products and bytes at 128 rows: {result['limit_128_rows']} questions/s")


if __name__ == "__main__":
    main()
