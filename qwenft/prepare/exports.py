"""The same samples in another tool's form, under exports/<form>/, boxes in the frame that the tool expects.

A tool that takes boxes as text (`qwen`, `llamafactory`) shows the model whatever size its own budget gives, and leaves
the text alone.  So its pictures are written here in the size that the model will see under the tool's default budget:
multiples of 28 within the budget, which every later resize leaves as they are, and boxes in px of these pictures.
Sources of the budgets and frames are with each form.
"""

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Final

import yaml
from PIL import Image

from qwenft.core.answer import Prompts, Task, write_answer
from qwenft.core.boxes import Box, Size, smart_resize, to_input_px
from qwenft.core.errors import DataError
from qwenft.core.events import Emit, ignore, progress
from qwenft.core.files import write_json, write_jsonl, write_whole
from qwenft.core.samples import TASKS, Sample, SceneObject
from qwenft.prepare.pictures import open_upright
from qwenft.prepare.rows import counted

QWEN_BUDGET: Final = (28 * 28 * 16, 28 * 28 * 576)
"""min_pixels, max_pixels: defaults of qwen-vl-finetune (qwenvl/train/argument.py)."""
LLAMAFACTORY_BUDGET: Final = (56 * 56, 768 * 768)
"""The processor's own min_pixels; image_max_pixels (src/llamafactory/hparams/model_args.py), applied before it."""
JPEG_QUALITY: Final = 95
REPORT_EVERY: Final = 50
"""Samples between two reports of progress."""
CONTROL: Final = re.compile(r"<(image|video|audio|bbox|ref-object)>")
"""Placeholders of these tools: in a text of the data they would speak as control."""

Splits = Mapping[str, Sequence[Sample]]


@dataclass(frozen=True, slots=True)
class Form:
    """A tool's form."""

    write: Callable[["Exporter"], None]
    tasks: tuple[Task, ...]
    frame: str
    """For people: what its boxes are relative to, and what else must be set in the tool."""
    budget: tuple[int, int] | None = None
    """Where its pictures are rewritten in the size that the model sees: min_pixels, max_pixels."""


@dataclass(frozen=True, slots=True)
class Exporter:
    """Where from, where to, and what."""

    source: Path
    """Folder of the prepared data set: pictures are linked or rewritten from here."""
    target: Path
    splits: Splits
    budget: tuple[int, int] | None
    tick: Callable[[], None]
    """Called once a sample."""

    def input_wh(self, sample: Sample) -> Size:
        """Size of the picture as it is written."""
        return smart_resize(sample.image_wh, *self.budget) if self.budget else sample.image_wh

    def box(self, item: SceneObject, sample: Sample) -> Box:
        """A box in px of the picture as it is written."""
        return to_input_px(item.bbox, sample.image_wh, self.input_wh(sample))

    def picture(self, sample: Sample, name: str | None = None) -> str:
        """Put the sample's picture below the target, once; returns its path relative to the target."""
        self.tick()
        relative = name or sample.image
        same_size = self.input_wh(sample) == sample.image_wh
        if not same_size and not relative.endswith((".jpg", ".png")):
            relative = str(Path(relative).with_suffix(".png"))
        path = self.target / relative
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            if same_size:
                _link(self.source / sample.image, path)
            else:
                picture = open_upright(self.source / sample.image)
                picture.resize(self.input_wh(sample), Image.Resampling.BICUBIC).save(path, quality=JPEG_QUALITY)
        return relative


def _link(source: Path, path: Path) -> None:
    """A hard link takes no room; where the disk has none, a copy."""
    try:
        os.link(source, path)
    except OSError:
        shutil.copyfile(source, path)


def export(source: Path, splits: Splits, form: str, emit: Emit = ignore) -> list[str]:
    """Write the samples below `source`/exports/<form>; returns what is to be said.  Raises DataError."""
    chosen = FORMS[form]
    found = Counter(sample.task for samples in splits.values() for sample in samples)
    if not any(found[task] for task in chosen.tasks):
        other = next(name for name, item in FORMS.items() if set(found) & set(item.tasks))
        raise DataError(
            f"{form} holds {' or '.join(chosen.tasks)}, this is {', '.join(found)}", hint=f"--export {other}"
        )
    kept = {name: tuple(s for s in samples if s.task in chosen.tasks) for name, samples in splits.items()}
    what, total = f"exporting {form}", sum(map(len, kept.values()))
    tick = _ticker(what, total, emit)
    exporter = Exporter(source, source / "exports" / form, kept, chosen.budget, tick)
    exporter.target.mkdir(parents=True)
    chosen.write(exporter)
    emit(progress(what, total, total))
    return [f"exports/{form}: {chosen.frame}", *_left_out(splits, kept, found, chosen, form)]


def _ticker(what: str, total: int, emit: Emit) -> Callable[[], None]:
    """Count pictures and report now and then.  Captions are counted more than once: that is cut at `total`."""
    numbers = count(1)

    def tick() -> None:
        done = next(numbers)
        if done % REPORT_EVERY == 0 and done < total:
            emit(progress(what, done, total))

    return tick


def _left_out(splits: Splits, kept: Splits, found: Counter[Task], chosen: Form, form: str) -> Iterator[str]:
    other = sum(number for task, number in found.items() if task not in chosen.tasks)
    if other:
        yield f"exports/{form} cannot hold {counted(other, 'sample')} of other tasks"
    crowds = sum(item.crowd for samples in kept.values() for sample in samples for item in sample.objects)
    if crowds and form != "coco":
        yield f"exports/{form} leaves out {counted(crowds, 'crowd')}"


# Conversations


def _question(sample: Sample, query: str = "") -> str:
    categories = [plain(name) for name in sample.categories or dict.fromkeys(o.label for o in sample.objects)]
    return Prompts().text(sample.task, query or plain(sample.query or ""), categories)


def plain(text: str) -> str:
    """The text without these tools' placeholders.

    >>> plain("a sign that says <image>")
    'a sign that says (image)'
    """
    return CONTROL.sub(r"(\1)", text)


def _exchanges(exporter: Exporter, samples: Iterable[Sample]) -> Iterator[tuple[Sample, str, str, str]]:
    """(sample, id, question, answer); a caption is one exchange a reference."""
    for sample in samples:
        if sample.task == "caption":
            for number, caption in enumerate(sample.captions, 1):
                yield sample, f"{sample.id}/{number}", _question(sample), plain(caption)
        else:
            objects = [(exporter.box(o, sample), plain(o.label)) for o in sample.objects if not o.crowd]
            yield sample, sample.id, _question(sample), write_answer(objects, exporter.input_wh(sample))


def _write_qwen(exporter: Exporter) -> None:
    """Source: QwenLM/Qwen2.5-VL, qwen-vl-finetune (README.md; qwenvl/data/data_processor.py: text is left alone)."""
    for split, samples in exporter.splits.items():
        rows = [
            {
                "id": key,
                "image": exporter.picture(sample),
                "conversations": [
                    {"from": "human", "value": f"<image>\n{question}"},
                    {"from": "gpt", "value": answer},
                ],
            }
            for sample, key, question, answer in _exchanges(exporter, samples)
        ]
        write_json(exporter.target / f"{split}.json", rows)


def _write_llamafactory(exporter: Exporter) -> None:
    """Source: hiyouga/LLaMA-Factory, data/README.md; src/llamafactory/data/mm_plugin.py resizes, boxes stay as text."""
    info: dict[str, Any] = {}
    for split, samples in exporter.splits.items():
        rows = [
            {
                "messages": [
                    {"role": "user", "content": f"<image>{question}"},
                    {"role": "assistant", "content": answer},
                ],
                "images": [exporter.picture(sample)],
            }
            for sample, _, question, answer in _exchanges(exporter, samples)
        ]
        write_json(exporter.target / f"{split}.json", rows)
        info[split] = {
            "file_name": f"{split}.json",
            "formatting": "sharegpt",
            "columns": {"messages": "messages", "images": "images"},
            "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
        }
    write_json(exporter.target / "dataset_info.json", info)


def _write_swift(exporter: Exporter) -> None:
    """Source: modelscope/ms-swift, docs, Customization/Custom-dataset (grounding).

    Boxes are px of the picture itself; ms-swift scales them with its own resize.  A text goes in through `ref`.
    """
    for split, samples in exporter.splits.items():
        write_jsonl(exporter.target / f"{split}.jsonl", _swift_rows(exporter, samples))


def _swift_rows(exporter: Exporter, samples: Iterable[Sample]) -> Iterator[dict[str, Any]]:
    for sample in samples:
        picture = [exporter.picture(sample)]
        if sample.task == "caption":
            for caption in sample.captions:
                yield {"messages": _messages(_question(sample), plain(caption)), "images": picture}
            continue
        boxes = sorted((item for item in sample.objects if not item.crowd), key=lambda o: (o.bbox[1], o.bbox[0]))
        asked = [plain(sample.query or "")] if sample.task == "grounding" else []
        answer = ", ".join('{"bbox_2d": <bbox>, "label": "<ref-object>"}' for _ in boxes)
        # Inside the answer a label stands between quotes: it must be JSON there.
        labels = [json.dumps(plain(item.label), ensure_ascii=False)[1:-1] for item in boxes]
        objects = {"ref": [*asked, *labels], "bbox": [[round(v, 3) for v in item.bbox] for item in boxes]}
        question = _question(sample, "<ref-object>" if asked else "")
        yield {"messages": _messages(question, f"[{answer}]"), "images": picture, "objects": objects}


def _messages(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"<image>{question}"}, {"role": "assistant", "content": answer}]


# Detection


def _categories(splits: Splits) -> list[str]:
    every = [sample for samples in splits.values() for sample in samples]
    asked = dict.fromkeys(name for sample in every for name in sample.categories)
    return list(asked | dict.fromkeys(item.label for sample in every for item in sample.objects))


def _by_picture(samples: Iterable[Sample]) -> list[tuple[Sample, list[SceneObject]]]:
    """One entry a picture: in these forms it holds all its objects, whichever question they answer."""
    found: dict[str, tuple[Sample, list[SceneObject]]] = {}
    for sample in samples:
        _, objects = found.setdefault(sample.image, (sample, []))
        objects += [item for item in sample.objects if item not in objects]
    return list(found.values())


def _write_coco(exporter: Exporter) -> None:
    """Source: cocodataset.org/#format-data: x, y, width, height in px of the picture, from 0."""
    names = _categories(exporter.splits)
    categories = [{"id": number, "name": name} for number, name in enumerate(names, 1)]
    for split, samples in exporter.splits.items():
        detection = _by_picture(sample for sample in samples if sample.task == "detection")
        captions = [sample for sample in samples if sample.task == "caption"]
        folder = exporter.target / "annotations"
        if detection:
            images = [_coco_image(exporter, sample, n) for n, (sample, _) in enumerate(detection, 1)]
            pairs = [(n, item) for n, (_, objects) in enumerate(detection, 1) for item in objects]
            annotations = [_coco_object(key, n, item, names) for key, (n, item) in enumerate(pairs, 1)]
            document = {"images": images, "annotations": annotations, "categories": categories}
            write_json(folder / f"instances_{split}.json", document)
        if captions:
            images = [_coco_image(exporter, sample, n) for n, sample in enumerate(captions, 1)]
            texts = [(n, text) for n, sample in enumerate(captions, 1) for text in sample.captions]
            annotations = [{"id": key, "image_id": n, "caption": text} for key, (n, text) in enumerate(texts, 1)]
            write_json(folder / f"captions_{split}.json", {"images": images, "annotations": annotations})


def _coco_image(exporter: Exporter, sample: Sample, number: int) -> dict[str, Any]:
    name = exporter.picture(sample).removeprefix("images/")
    return {"id": number, "file_name": name, "width": sample.width, "height": sample.height}


def _coco_object(key: int, image_id: int, item: SceneObject, names: Sequence[str]) -> dict[str, Any]:
    x1, y1, x2, y2 = item.bbox
    box = [round(v, 3) for v in (x1, y1, x2 - x1, y2 - y1)]
    found = {"id": key, "image_id": image_id, "category_id": names.index(item.label) + 1, "bbox": box}
    return found | {"area": round(box[2] * box[3], 3), "iscrowd": int(item.crowd)}


def _write_yolo(exporter: Exporter) -> None:
    """Source: docs.ultralytics.com/datasets/detect: category, centre and sides as shares of the picture's sides."""
    names = _categories(exporter.splits)
    for split, samples in exporter.splits.items():
        for sample, objects in _by_picture(samples):
            name = Path(sample.image).name
            exporter.picture(sample, f"images/{split}/{name}")
            lines = [_yolo_line(item, sample.image_wh, names) for item in objects if not item.crowd]
            path = exporter.target / "labels" / split / f"{Path(name).stem}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(lines), encoding="utf-8")
    settings: dict[str, Any] = {split: f"images/{split}" for split, samples in exporter.splits.items() if samples}
    settings["names"] = dict(enumerate(names))
    write_whole(exporter.target / "data.yaml", yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))


def _yolo_line(item: SceneObject, image_wh: Size, names: Sequence[str]) -> str:
    (x1, y1, x2, y2), (width, height) = item.bbox, image_wh
    shares = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
    return f"{names.index(item.label)} {' '.join(f'{share:.8f}' for share in shares)}\n"


FORMS: Final[Mapping[str, Form]] = {
    "qwen": Form(
        _write_qwen,
        TASKS,
        "pictures in the size that the model sees with qwen-vl-finetune's own max_pixels 451584, boxes in their px",
        QWEN_BUDGET,
    ),
    "swift": Form(
        _write_swift,
        TASKS,
        "boxes in px of the pictures, which ms-swift (3.9.1 or later) scales itself: set QWENVL_BBOX_FORMAT=new and "
        "start it in that folder",
    ),
    "llamafactory": Form(
        _write_llamafactory,
        TASKS,
        "pictures in the size that the model sees with LLaMA-Factory's own image_max_pixels 589824, boxes in their px: "
        "dataset_dir is that folder",
        LLAMAFACTORY_BUDGET,
    ),
    "coco": Form(_write_coco, ("detection", "caption"), "boxes x, y, width, height in px of the pictures"),
    "yolo": Form(_write_yolo, ("detection",), "boxes as centre and sides, in shares of the pictures' sides"),
}
"""`--export`: name -> form."""
