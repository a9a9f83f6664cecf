"""How the embedded model was made: a small Qwen2.5-VL learns generated pictures from random weights, on one GPU.

    python -m qwenft.demo.pretrain check OUT               a minute on the CPU: a few updates on few pictures
    python -m qwenft.demo.pretrain train OUT SECONDS       writes model, processor and contract to OUT
    python -m qwenft.demo.pretrain train OUT SECONDS FROM  goes on with the weights in FROM

Rows are packed and attended to as in every training (model/branches.py).  Matrices are stepped by Muon, the rest by
AdamW, in float32; products are in the weights' bfloat16.  Beside the answers each merged patch learns which shape and
colour covers it and where that lies, from a head that is thrown away: so the tower learns to see far sooner.
"""

import math
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch.nn import functional as nnf

from qwenft.core.boxes import FACTOR, MERGE, PATCH
from qwenft.core.events import Emit, note
from qwenft.demo.filled import MAX_FIGURES
from qwenft.demo.language import COLOURS, SHAPES
from qwenft.demo.lessons import Lesson, make_lesson
from qwenft.demo.tiny import make_contract, make_model, make_processor
from qwenft.model.branches import on_device, pack, row_order, with_pictures
from qwenft.model.fast import enable_fast_step
from qwenft.model.features import vision_geometry
from qwenft.model.inputs import IGNORED, Encoded, Encoder

PICTURES: Final = 256
"""In one update."""
LEARNING_RATE: Final = 2e-3
MATRIX_RATE: Final = 4e-3
WEIGHT_DECAY: Final = 0.05
WARM_UP: Final = 300
"""Updates."""
HELD: Final = 0.15
"""Share of the time at the full rate; then it falls to nothing, as a cosine."""
EASY: Final = 400
"""Updates in which the number of figures grows from 1 to MAX_FIGURES."""
SEEING: Final = 0.3
"""Weight of the patches' own loss at first; it falls to nothing by UNTIL of the time."""
UNTIL: Final = 0.6
SAVED_EVERY_S: Final = 120
HELD_OUT: Final = "held out"
"""Before the seeds of pictures that are never trained on."""
WORKERS: Final = max(1, (os.cpu_count() or 2) - 1)


@dataclass
class Batch:
    """Lessons of one update as the model takes them.  Shapes: P patches, M merged patches, C learned tokens."""

    packed: dict[str, Any]
    """Of model/branches.py."""
    pixels: torch.Tensor
    """(P, 3, 196) uint8, in the processor's order."""
    grid: torch.Tensor
    """(pictures, 3)."""
    shapes: torch.Tensor
    """(M,): number of the shape on each merged patch, from 1; 0 where there is none; IGNORED where nothing is known."""
    colours: torch.Tensor
    """(M,): number of its colour; IGNORED where there is none."""
    places: torch.Tensor
    """(M, 4): its box, from the merged patch's centre, in sides of the patch."""
    questions: torch.Tensor
    """(C,): which question each learned token answers."""
    kinds: list[str]
    """What the true answer of each question is."""

    def pin_memory(self) -> "Batch":
        """Called by torch's DataLoader."""
        self.pixels = self.pixels.pin_memory()
        return self


@dataclass
class Lessons(torch.utils.data.IterableDataset[Batch]):
    """Batches of lessons without end; each worker of the loader makes every so many-th."""

    encoder: Encoder
    pictures: int = PICTURES
    first: int = 0
    name: str = "lesson"

    def __iter__(self) -> Iterator[Batch]:
        torch.set_num_threads(1)
        info = torch.utils.data.get_worker_info()
        number, step = (info.id, info.num_workers) if info else (0, 1)
        while True:
            yield self.batch(self.first + number)
            number += step

    def batch(self, number: int) -> Batch:
        """The batch of that number: always the same."""
        most = MAX_FIGURES if self.name == HELD_OUT else min(1 + number * MAX_FIGURES // EASY, MAX_FIGURES)
        lessons = [make_lesson(f"{self.name} {number} {index}", most) for index in range(self.pictures)]
        owner = [index for index, lesson in enumerate(lessons) for _ in lesson.asked]
        items = self._encoded(lessons)
        packed, order = pack(items, self.encoder.processor.tokenizer.convert_tokens_to_ids("<|image_pad|>"))
        shown = [lessons[owner[item]] for item in order]
        shapes, colours, places = zip(*(_on_patches(lesson) for lesson in shown), strict=True)
        row = row_order(items)
        learned = [sum(label != IGNORED for label in items[item].labels) for item in row]
        asked = [pair for lesson in lessons for pair in lesson.asked]
        return Batch(
            packed,
            torch.from_numpy(np.concatenate([_cut(lesson) for lesson in shown])),
            torch.stack([items[item].picture.grid_thw for item in order]),
            torch.from_numpy(np.concatenate(shapes)),
            torch.from_numpy(np.concatenate(colours)),
            torch.from_numpy(np.concatenate(places)),
            torch.arange(len(row)).repeat_interleave(torch.tensor(learned)),
            [_kind(asked[item][1]) for item in row],
        )

    def _encoded(self, lessons: Sequence[Lesson]) -> list[Encoded]:
        """As Encoder.sample makes them, with one call of the tokenizer for all: a call costs as much as six texts."""
        tokenizer = self.encoder.processor.tokenizer
        texts = [text for lesson in lessons for pair in lesson.asked for text in pair]
        tokens = iter(tokenizer(texts, add_special_tokens=False).input_ids)
        end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        items = []
        for lesson in lessons:
            frame = self.encoder.asked(self.encoder.frame(lesson.image.size), "")
            before, after = frame.input_ids[: frame.shared], frame.input_ids[frame.shared :]
            for _ in lesson.asked:
                prompt, answer = next(tokens), [*next(tokens), end]
                asked = [*before, *prompt, *after]
                labels = [IGNORED] * len(asked) + answer
                items.append(Encoded(asked + answer, labels, frame.picture, "", frame.shared))
        return items


def _kind(answer: str) -> str:
    if answer in ("Yes", "No"):
        return "verified"
    if not answer.startswith("["):
        return "caption"
    return ("none", "one box", "several")[min(answer.count("bbox_2d"), 2)]


def _cut(lesson: Lesson) -> np.ndarray:
    """(P, 3, 196) uint8: the picture's patches, merged ones together, as the processor orders them."""
    pixels = np.asarray(lesson.image)
    rows, columns = pixels.shape[0] // FACTOR, pixels.shape[1] // FACTOR
    cut = pixels.reshape(rows, MERGE, PATCH, columns, MERGE, PATCH, 3).transpose(0, 3, 1, 4, 6, 2, 5)
    return cut.reshape(-1, 3, PATCH * PATCH)


def _on_patches(lesson: Lesson) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each merged patch: shape, colour and place of the figure that covers most of it."""
    width, height = lesson.image.size
    y, x = (axis.ravel() for axis in np.mgrid[0:height:FACTOR, 0:width:FACTOR])
    shapes, colours = np.zeros(len(x), np.int64), np.full(len(x), IGNORED, np.int64)
    places = np.zeros((len(x), 4), np.float32)
    if not lesson.figures:  # a box is drawn in the picture: only its questions are learned
        return shapes + IGNORED, colours, places
    best = np.full(len(x), 1.0)
    for figure in lesson.figures:
        x1, y1, x2, y2 = figure.box_xyxy
        wide = np.minimum(x2, x + FACTOR) - np.maximum(x1, x)
        high = np.minimum(y2, y + FACTOR) - np.maximum(y1, y)
        covered = wide.clip(0) * high.clip(0)
        on = (covered > best) & (covered >= min(0.2 * figure.area, FACTOR * FACTOR / 8))
        best[on] = covered[on]
        shapes[on], colours[on] = SHAPES.index(figure.shape) + 1, COLOURS.index(figure.colour)
        centre = np.stack([x, y, x, y], 1)[on] + FACTOR / 2
        places[on] = (np.array(figure.box_xyxy) - centre) / FACTOR
    return shapes, colours, places


class Pupil:
    """The model, its optimizers, and the head through which its patches are told what they show."""

    def __init__(self, model: Any, processor: Any, device: str) -> None:
        self.model, self.processor = model, processor
        self.device = torch.device(device)
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        hidden = model.config.text_config.hidden_size
        self.head = torch.nn.Linear(hidden, len(SHAPES) + 1 + len(COLOURS) + 4)
        masters = [weight.detach().clone().to(device) for weight in (*model.parameters(), *self.head.parameters())]
        model.to(device, dtype).train()
        self.head.to(device, dtype)
        self.weights = [*model.parameters(), *self.head.parameters()]
        image_processor = processor.image_processor
        self.mean, self.std = (
            torch.tensor(numbers, device=device)[:, None] * 255
            for numbers in (image_processor.image_mean, image_processor.image_std)
        )
        # float32 copies, which the optimizers step; a convolution's as the matrix that it is.
        self.masters = [master.flatten(1) if master.dim() > 2 else master for master in masters]
        matrices: list[torch.Tensor] = []
        rest: list[torch.Tensor] = []
        for name, master in zip_longest((name for name, _ in model.named_parameters()), self.masters):
            is_matrix = name is not None and "embed_tokens" not in name and master.dim() == 2  # the head has no name
            (matrices if is_matrix else rest).append(master)
        self.optimizers: tuple[Any, ...] = (
            torch.optim.Muon(
                matrices, lr=MATRIX_RATE, weight_decay=WEIGHT_DECAY, momentum=0.95, adjust_lr_fn="match_rms_adamw"
            ),
            torch.optim.AdamW(rest, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0, foreach=True),
        )

    def answer(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Loss of the answers, loss of the patches, and whether each learned token (C,) is the likeliest."""
        pixels = batch.pixels.to(self.device, non_blocking=True).float()
        pixels = ((pixels - self.mean) / self.std).to(self.head.weight.dtype)
        patches = pixels[:, :, None].expand(-1, -1, 2, -1).flatten(1)  # a picture is two equal frames
        geometry = vision_geometry(self.model.config.vision_config, batch.grid, self.device)
        seen = self.model.model.get_image_features(patches, batch.grid, return_dict=True, **geometry).pooler_output
        inputs = on_device(with_pictures(batch.packed, [], seen), self.device)
        out = self.model(**inputs)
        hits = out.logits[0].argmax(-1) == inputs["shift_labels"]
        return out.loss, self._patch_loss(torch.cat(list(seen)), batch), hits

    def _patch_loss(self, seen_MD: torch.Tensor, batch: Batch) -> torch.Tensor:
        told = nnf.linear(seen_MD, self.head.weight, self.head.bias).float()
        shape, colour, place = told.split([len(SHAPES) + 1, len(COLOURS), 4], dim=1)
        shapes, colours, places = (t.to(self.device) for t in (batch.shapes, batch.colours, batch.places))
        on = (colours != IGNORED).float()[:, None]
        apart = nnf.smooth_l1_loss(place, places, reduction="none", beta=0.2) * on
        return (
            nnf.cross_entropy(shape, shapes, ignore_index=IGNORED)
            + nnf.cross_entropy(colour, colours, ignore_index=IGNORED)
            + apart.sum() / on.sum().clamp(min=1)
        )

    def learn(self, batch: Batch, share: float, update: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """One update; `share` of the time is over.  Returns both losses and the hits."""
        loss, seen, hits = self.answer(batch)
        (loss + SEEING * max(0.0, 1 - share / UNTIL) * seen).backward()
        for weight, master in zip(self.weights, self.masters, strict=True):
            master.grad = None if weight.grad is None else weight.grad.float().view_as(master)
            weight.grad = None
        torch.nn.utils.clip_grad_norm_(self.masters, 1.0, foreach=True)
        fallen = 0.5 * (1 + math.cos(math.pi * max(0.0, share - HELD) / (1 - HELD)))
        part = min(1.0, (update + 1) / WARM_UP) * max(fallen, 0.003)
        for optimizer, rate in zip(self.optimizers, (MATRIX_RATE, LEARNING_RATE), strict=True):
            optimizer.param_groups[0]["lr"] = rate * part
            optimizer.step()
        with torch.no_grad():
            for weight, master in zip(self.weights, self.masters, strict=True):
                weight.copy_(master.view_as(weight))
        return loss.detach(), seen.detach(), hits

    @torch.no_grad()
    def examine(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Share of questions whose whole answer is the likeliest, token by token behind the true one, by kind."""
        right: dict[str, list[bool]] = defaultdict(list)
        for batch in batches:
            hits = self.answer(batch)[2].cpu()
            wrong = torch.zeros(len(batch.kinds)).index_add_(0, batch.questions, (~hits).float())
            for kind, missed in zip(batch.kinds, wrong.tolist(), strict=True):
                right[kind].append(missed == 0)
        return {kind: round(sum(hit) / len(hit), 4) for kind, hit in sorted(right.items())}

    def save(self, folder: Path) -> None:
        """Model in bfloat16, processor and contract."""
        dtype = next(self.model.parameters()).dtype
        self.model.to(torch.bfloat16).save_pretrained(folder)
        self.model.to(dtype)
        self.processor.save_pretrained(folder)
        make_contract().write(folder)


def pretrain(folder: Path, seconds: float, start: Path | None, emit: Emit, pictures: int = PICTURES) -> Pupil:
    """Train for so many seconds, then write the model to `folder`.  start: a folder of weights to go on with."""
    torch.manual_seed(0)
    processor = make_processor()
    model = make_model(processor.tokenizer)
    if start:
        model = type(model).from_pretrained(start, dtype=torch.float32, attn_implementation="sdpa")
    pupil = Pupil(model, processor, "cuda" if torch.cuda.is_available() else "cpu")
    if why := enable_fast_step(model):
        raise RuntimeError(f"the packed row cannot be trained here: {why}")
    model.train()
    encoder = Encoder(processor, make_contract())
    held_out = [Lessons(encoder, pictures, name=HELD_OUT).batch(number) for number in range(2)]
    loader = torch.utils.data.DataLoader(
        Lessons(encoder, pictures, first=10**6 if start else 0),
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=WORKERS,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=2,
    )
    began = saved = time.monotonic()
    waited, last = 0.0, began
    for update, batch in enumerate(loader):
        waited += time.monotonic() - last
        share = (time.monotonic() - began) / seconds
        loss, seen, hits = pupil.learn(batch, share, update)
        if share >= 1:
            break
        if update % 100 == 0 or time.monotonic() - saved > SAVED_EVERY_S:
            figures = f"loss {loss:.4f}, patches {seen:.4f}, tokens right {hits.float().mean():.4f}"
            spent = time.monotonic() - began
            emit(note(f"{spent:.0f} s, update {update}: {figures}; {waited / max(spent, 1):.0%} of the time waited"))
        if time.monotonic() - saved > SAVED_EVERY_S:
            saved = time.monotonic()
            emit(note(f"whole answers right: {pupil.examine(held_out)}"))
            pupil.save(folder)
        last = time.monotonic()
    pupil.save(folder)
    emit(note(f"{update + 1} updates of {pictures} pictures; whole answers right: {pupil.examine(held_out)}"))
    return pupil


def _as_it_is(batch: Any) -> Any:
    return batch


def main(arguments: list[str]) -> int:
    """Run what the module's first lines name."""

    def say(event: Any) -> None:
        sys.stderr.write(f"{event['text']}\n")

    if arguments[:1] == ["check"] and len(arguments) == 2:
        pretrain(Path(arguments[1]), 60, None, say, pictures=8)
        return 0
    if arguments[:1] == ["train"] and len(arguments) in (3, 4):
        start = Path(arguments[3]) if len(arguments) == 4 else None
        pretrain(Path(arguments[1]), float(arguments[2]), start, say)
        return 0
    sys.stderr.write(f"{__doc__}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
