"""One LoRA step of Qwen2.5-VL, piece by piece, on one GPU: samples/s, peak memory, share of the matrix peak.

    python benchmarks/train_step.py CONFIG.json OUT [--shapes 8x4 32x1] [--only NAME ...] [--profile NAME]

Random weights of the shape in CONFIG.json; pictures of 644x476 input px (391 tokens) with questions of about 36 tokens
and answers of about 42, as RefCOCOg's are.  Every row is the same work: the same samples, their loss over all target
tokens, its gradients in every LoRA matrix, clipped, one AdamW step.  The pieces are the product's own functions.
Prints a table and writes OUT/train_step.json.
"""

import argparse
import gc
import itertools
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration

from qwenft.model.attention import set_fast_vision
from qwenft.model.branches import on_device, pack, with_pictures
from qwenft.model.fast import compile_layers, set_branches
from qwenft.model.features import PictureFeatures
from qwenft.model.inputs import IGNORED, Encoded, Picture, collate
from qwenft.model.load import add_lora
from qwenft.model.lora import set_fast_lora
from qwenft.train.batches import packed_parts

GRID = (34, 46)
VARIANTS: dict[str, dict[str, Any]] = {
    "plain, checkpointing, mb 8": {"checkpointing": True, "mb": 8},
    "plain, mb 2": {"mb": 2},
    "plain, mb 8": {"mb": 8},
    "plain, mb 16": {"mb": 16},
    "fast vision, mb 8": {"vision": True, "mb": 8},
    "packed rows": {"vision": True, "packed": True, "features": True},
    "+ LoRA in bf16": {"vision": True, "packed": True, "features": True, "lora": True},
    "+ compiled layers": {"vision": True, "packed": True, "features": True, "lora": True, "compiled": True},
    "+ features known": {
        "vision": True, "packed": True, "features": True, "lora": True, "compiled": True, "known": True,
    },
    "fast, checkpointing": {
        "vision": True, "packed": True, "features": True, "lora": True, "compiled": True, "checkpointing": True,
    },
}  # fmt: skip


def make_items(pictures: int, questions: int, image_id: int, vocabulary: int) -> list[Encoded]:
    draw = torch.Generator().manual_seed(1)

    def tokens(low: int, high: int) -> list[int]:
        count = int(torch.randint(low, high, (1,), generator=draw))
        return torch.randint(0, min(vocabulary, image_id) - 1, (count,), generator=draw).tolist()

    items = []
    for _ in range(pictures):
        rows, columns = GRID
        pixels = torch.randn(rows * columns, 1176, generator=draw).pin_memory()
        wh = (columns * 14, rows * 14)
        picture = Picture(pixels, torch.tensor([1, rows, columns]), wh, wh)
        shared = [*tokens(14, 15), *[image_id] * (rows * columns // 4), *tokens(1, 2)]
        for _ in range(questions):
            asked, answered = tokens(28, 44), tokens(36, 48)
            ids = shared + asked + answered
            labels = [IGNORED] * (len(shared) + len(asked)) + answered
            items.append(Encoded(ids, labels, picture, "", len(shared)))
    return items


def make_model(config: Path, rank: int, dropout: float) -> Any:
    settings = AutoConfig.from_pretrained(config)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        base = Qwen2_5_VLForConditionalGeneration._from_config(settings, attn_implementation="sdpa")
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in base.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.02)
    base.config.use_cache = base.model.language_model.config.use_cache = False
    model = add_lora(base, ("language",), rank, 16, dropout)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, 0, 0.01)
    return model


def operations(config: Any, rank: int, items: list[Encoded], *, vision: bool) -> float:
    """Multiplications and additions that one update needs where each picture is read once; recomputing not counted."""
    text, tower = config.text_config, config.vision_config
    wide, inner, head = text.hidden_size, text.intermediate_size, text.hidden_size // text.num_attention_heads
    keys = text.num_key_value_heads * head
    matrices = 2 * wide * wide + 2 * wide * keys + 3 * wide * inner
    adapters = rank * (2 * (wide + wide) + 2 * (wide + keys) + 3 * (wide + inner))
    pictures = {id(item.picture): item for item in items}.values()
    tokens = sum(item.shared for item in pictures) + sum(len(item.input_ids) - item.shared for item in items)
    seen = sum(item.shared**2 / 2 for item in pictures)
    for item in items:
        own = len(item.input_ids) - item.shared
        seen += own * item.shared + own**2 / 2
    layers = text.num_hidden_layers * (tokens * (4 * matrices + 6 * adapters) + 3 * 4 * wide * seen)
    learned = sum(label != IGNORED for item in items for label in item.labels)
    total = layers + 4 * learned * wide * text.vocab_size
    if vision:
        patches = sum(len(item.picture.pixel_values_PD) for item in pictures)
        block = 4 * tower.hidden_size**2 + 3 * tower.hidden_size * tower.intermediate_size
        merger = (4 * tower.hidden_size) ** 2 + 4 * tower.hidden_size * tower.out_hidden_size
        total += patches * 2 * (tower.depth * block + 1176 * tower.hidden_size + merger / 4)
        full = len(tower.fullatt_block_indexes)
        total += sum(4 * tower.hidden_size * len(p.picture.pixel_values_PD) ** 2 for p in pictures) * full
        total += patches * 4 * tower.hidden_size * 64 * (tower.depth - full)
    return total


def matrix_peak() -> float:
    one = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    other = torch.randn_like(one)
    for _ in range(3):
        one @ other
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(20):
        one @ other
    torch.cuda.synchronize()
    return 2 * 8192**3 * 20 / (time.perf_counter() - start)


def make_step(model: Any, items: list[Encoded], variant: dict[str, Any], max_tokens: int) -> Any:
    base = model.get_base_model()
    image_id, learned = base.config.image_token_id, sum(label != IGNORED for item in items for label in item.labels)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0, fused=True)
    number = torch.tensor(learned, device="cuda")
    packed = variant.get("packed")
    parts = packed_parts(items, max_tokens) if packed else [
        list(range(a, min(a + variant["mb"], len(items)))) for a in range(0, len(items), variant["mb"])
    ]  # fmt: skip
    chosen = [[items[index] for index in part] for part in parts]
    made = [pack(part, image_id) if packed else (collate(part, 0, image_id), []) for part in chosen]
    features = PictureFeatures(base, 2**34 if variant.get("known") else 0)

    def step(mark: Any = lambda _: None) -> tuple[float, float]:
        mark("start")
        total = torch.zeros((), device="cuda")
        seen = list({id(item.picture): item.picture for item in items}.values())
        names = [str(id(picture)) for picture in seen]
        known = dict(zip(names, features(seen, names), strict=True)) if variant.get("features") else None
        mark("vision")
        for part, (inputs, owners) in zip(chosen, made, strict=True):
            if packed:
                shown = [part[owner].picture for owner in owners]
                inputs = with_pictures(inputs, shown, known and [known[str(id(picture))] for picture in shown])
            inputs = on_device(inputs, torch.device("cuda"))
            with torch.autocast("cuda", dtype=torch.bfloat16, enabled=not variant.get("lora")):
                loss = model(**inputs, num_items_in_batch=number).loss
            mark("forward")
            loss.backward()
            mark("backward")
            total += loss.detach()
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        mark("optimizer")
        return float(total), float(norm)

    return step


def measure(model: Any, items: list[Encoded], variant: dict[str, Any], options: Any, name: str) -> dict[str, Any]:
    base = model.get_base_model()
    set_fast_vision(base, bool(variant.get("vision")))
    set_branches(base, bool(variant.get("packed")))
    set_fast_lora(model, bool(variant.get("lora")))
    if variant.get("checkpointing"):
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    model.train()
    for layer in [*base.model.language_model.layers, *base.model.visual.blocks]:
        layer._compiled_call_impl = None
    if variant.get("compiled"):
        compile_layers(base)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    step = make_step(model, items, variant, options.max_tokens)
    start = time.perf_counter()
    loss, norm = step()
    first = time.perf_counter() - start
    step()
    seconds = []
    for _ in range(options.steps):
        torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    if options.profile == name:
        profiled(step, options.out)
    if variant.get("checkpointing"):
        base.gradient_checkpointing_disable()
        model.disable_input_require_grads()
    took = statistics.median(seconds)
    counted = operations(base.config, options.rank, items, vision=not variant.get("known"))
    return {
        "name": name, "samples_per_s": round(len(items) / took, 2), "step_ms": round(took * 1e3, 1),
        "tokens_per_s": round(sum(len(item.input_ids) for item in items) / took),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2), "first_step_s": round(first, 1),
        "tflops": round(counted / took / 1e12, 1), "loss": round(loss, 5), "grad_norm": round(norm, 5),
    }  # fmt: skip


def profiled(step: Any, out: Path) -> None:
    from torch.profiler import ProfilerActivity, profile

    marks: list[tuple[str, float, torch.cuda.Event]] = []

    def mark(name: str) -> None:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        marks.append((name, time.perf_counter(), event))

    step(mark)
    torch.cuda.synchronize()
    for before, after in itertools.pairwise(marks):
        spent = f"{(after[1] - before[1]) * 1e3:7.1f} ms CPU {before[2].elapsed_time(after[2]):7.1f} ms GPU"
        print(f"{after[0]:10} {spent}", flush=True)
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as trace:
        step()
        torch.cuda.synchronize()
    averages = trace.key_averages()
    kernels = sorted(
        (e for e in averages if e.self_device_time_total > 0 and "::" not in e.key[:12]),
        key=lambda e: -e.self_device_time_total,
    )
    total = sum(e.self_device_time_total for e in kernels)
    lines = [f"kernels {total / 1e3:.1f} ms, {sum(e.count for e in kernels)} launches"]
    lines += [f"{e.self_device_time_total / 1e3:8.2f} ms {e.count:6d}x {e.key[:120]}" for e in kernels[:45]]
    (out / "profile.txt").write_text("\n".join(lines) + "\n")
    print("\n".join(lines[:32]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shapes", nargs="*", default=["8x4"], help="pictures x questions of an update")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, default=8192)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--profile", default="")
    options = parser.parse_args()
    model = make_model(options.config, options.rank, options.dropout)
    config = model.get_base_model().config
    peak = matrix_peak()
    rows = []
    print(
        f"{torch.cuda.get_device_name()} torch {torch.__version__} matrix peak {peak / 1e12:.0f} TFLOP/s, "
        f"rank {options.rank}, dropout {options.dropout}", flush=True,
    )  # fmt: skip
    for shape in options.shapes:
        pictures, questions = map(int, shape.split("x"))
        items = make_items(pictures, questions, config.image_token_id, config.text_config.vocab_size)
        for name, variant in VARIANTS.items():
            if options.only and name not in options.only:
                continue
            try:
                row = measure(model, items, variant, options, name)
            except (RuntimeError, ValueError, TypeError) as error:  # a piece that fails here is a row too
                row = {"name": name, "error": f"{type(error).__name__}: {str(error)[:600]}"}
                model.zero_grad()
            row |= {"shape": shape, "share_of_peak": round(row.get("tflops", 0) * 1e12 / peak, 3)}
            rows.append(row)
            print(json.dumps(row), flush=True)
            (options.out / "train_step.json").write_text(json.dumps({"peak": peak, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
