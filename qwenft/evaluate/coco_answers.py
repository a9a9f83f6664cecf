"""COCO results of any tool as answers to a prepared data set: what each of its ids means, picture by picture."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qwenft.core.errors import DataError
from qwenft.core.events import Emit, ignore, note, warning
from qwenft.core.files import read_json, read_records
from qwenft.core.predictions import Detected, Prediction, Question
from qwenft.core.samples import Sample
from qwenft.evaluate.coco_files import by_id, check_parts, xywh
from qwenft.evaluate.match import picture_of
from qwenft.evaluate.scene import label_key, to_xyxy


def is_coco_results(path: Path) -> bool:
    """Whether a file holds COCO results rather than lines of `predict`: told by its first entry."""
    first = next(iter(read_records(path)), None)
    return first is not None and "image_id" in first.value and "objects" not in first.value


def coco_answers(
    results: Path, samples: Sequence[Sample], references: Path | None, emit: Emit = ignore
) -> list[Prediction]:
    """An answer to each sample that asks for boxes, in their order; one without boxes says "none".

    results: a list of image_id, category_id, bbox (x, y, width, height in px) and score.  references: the COCO file
    that these ids are of; unset: `<results>.images.json` beside it, as `predict --coco` writes it.  Pictures are told
    by content, or by a name that is the hash of it, categories by name.  A box goes to each question of its picture
    that asked for its category, else, as a label nobody asked for, to the picture's first detection.  Boxes of pictures
    that are not among the samples are counted, said and left out.
    Raises DataError naming what does not fit: the file, the entry, or the pictures that the file does not know.
    """
    named = references or results.absolute().with_name(f"{results.stem}.images.json")
    if not named.is_file():
        raise DataError(
            f"{results} holds COCO results, but there is no {named.name}, which would say what its ids mean",
            hint="--references with the instances.json that the pictures were taken from",
        )
    document, entries = read_json(named), read_json(results)
    check_parts(document, named, ("images", "categories"))
    asked = [sample for sample in samples if sample.task != "caption"]
    pictures = _pictures(by_id(document["images"], named), named, {sample.picture for sample in asked})
    missing = [sample.picture for sample in asked if sample.picture not in pictures.values()]
    if missing:
        raise DataError(
            f"{named} does not know {len(set(missing))} pictures of this split, the first {missing[0]}: they are told "
            "by content, and looked for beside that file",
            hint="--references with a file that lies where its pictures are",
        )
    categories = {key: str(item.get("name", key)) for key, item in by_id(document["categories"], named).items()}
    boxes = _boxes(entries, results, by_id(document["images"], named), categories)
    return _answers(asked, boxes, pictures, emit)


def _pictures(images: Mapping[Any, Mapping[str, Any]], named: Path, wanted: set[str]) -> dict[Any, str]:
    """Image id -> picture, for those that are wanted."""
    root, tail = named.parent.parent, named.stem.rsplit("_", 1)[-1]
    folders = (named.parent / "images", named.parent, root / "images", root, root / tail, root / "images" / tail)
    found = {}
    for key, image in images.items():
        name = str(image.get("file_name", ""))
        hashes = (picture_of(folder / name) for folder in dict.fromkeys(folders))
        picture = next((known for known in hashes if known), "")
        if picture in wanted:
            found[key] = picture
    return found


def _boxes(
    entries: Any, results: Path, images: Mapping[Any, Any], categories: Mapping[Any, str]
) -> list[tuple[Any, Detected]]:
    boxes = []
    for number, item in enumerate(entries, 1):
        try:
            key, category, score = item["image_id"], item["category_id"], _score_of(item.get("score"))
            box = to_xyxy(xywh(item["bbox"]))
            known = key in images and category in categories
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{results}, entry {number}: not a box ({error!r})") from error
        if not known:
            what = f"category_id {category!r}" if key in images else f"image_id {key!r}"
            raise DataError(
                f"{results}, entry {number}: nothing says what {what} is", hint="--references instances.json"
            )
        boxes.append((key, Detected(box, categories[category], score)))
    return boxes


def _score_of(value: Any) -> float | None:
    score = None if value is None else float(value)
    if score is not None and not math.isfinite(score):
        raise ValueError(f"a score must be finite, not {value}")
    return score


def _answers(
    asked: Sequence[Sample],
    boxes: Iterable[tuple[Any, Detected]],
    pictures: Mapping[Any, str],
    emit: Emit,
) -> list[Prediction]:
    objects: list[list[Detected]] = [[] for _ in asked]
    of_picture: dict[str, list[int]] = {}
    for number, sample in enumerate(asked):
        of_picture.setdefault(sample.picture, []).append(number)
    left_out: Counter[str] = Counter()
    for key, box in boxes:
        numbers = of_picture.get(pictures.get(key, ""), [])
        meant = [number for number in numbers if _asks_for(asked[number], box.label)]
        meant = meant or [number for number in numbers if asked[number].task == "detection"][:1]
        left_out["of other pictures" if not numbers else "that no question asks for"] += not meant
        for number in meant:
            objects[number].append(box)
    for why, count in left_out.items():
        if count:
            emit((note if why == "of other pictures" else warning)(f"{count:,} boxes {why} are left out"))
    return [
        Prediction(Question.of(sample, Path()), "ok" if found else "empty", tuple(found), "", "")
        for sample, found in zip(asked, objects, strict=True)
    ]


def _asks_for(sample: Sample, label: str) -> bool:
    return label_key(label) in {label_key(name) for name in (*sample.categories, sample.query or "")}
