"""COCO results files of any tool against an instances file."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from qwenft.core.boxes import Box
from qwenft.core.errors import DataError
from qwenft.core.files import read_json
from qwenft.evaluate.detection import detection_figures, have_scores
from qwenft.evaluate.scene import FoundBox, Scene, TrueBox

_AnyBox = TypeVar("_AnyBox", TrueBox, FoundBox)


def score_coco_files(results: Path, references: Path) -> dict[str, Any]:
    """Score a COCO results file (a list of image_id, category_id, bbox x y w h, score) against an instances file.

    Equal to pycocotools' figures, but for an annotation of id 0, which that library takes for "not matched".
    A missing score counts as 1.0.  Raises DataError naming the file and the entry that does not fit.
    """
    truth, answers = read_json(references), read_json(results)
    check_parts(truth, references, ("images", "annotations", "categories"))
    if not isinstance(answers, list):
        raise DataError(
            f"{results} is no COCO results file: it must be one list of objects",
            hint="for predictions of qwenft: qwenft eval --predictions FILE --data …",
        )
    known = by_id(truth["categories"], references)
    categories = {id_: number for number, id_ in enumerate(known)}
    images = list(by_id(truth["images"], references))
    true = _read_boxes(truth["annotations"], references, images, lambda item: _true_box(item, categories))
    found = _read_boxes(answers, results, images, lambda item: _found_box(item, categories))
    unknown = Counter(str(item["category_id"]) for item in answers if item["category_id"] not in categories)
    scenes = [Scene(tuple(true[image]), tuple(found[image])) for image in images]
    scores = have_scores(item.get("score") for item in answers)
    return detection_figures(scenes, [str(image) for image in images], _shown_names(known), scores, unknown)


def check_parts(document: Any, path: Path, parts: Sequence[str]) -> None:
    """Raises DataError where a COCO file lacks one of these lists."""
    if not isinstance(document, dict) or not all(isinstance(document.get(part), list) for part in parts):
        raise DataError(
            f"{path} is no COCO instances file: it needs the lists {', '.join(parts)}",
            hint="give the file that the pictures were annotated in, e.g. instances_val2017.json",
        )


def by_id(items: list[Any], path: Path) -> dict[Any, dict[str, Any]]:
    """Images or categories by id.  Sorted, as COCOeval goes through them: their order decides between equal scores."""
    try:
        return {item["id"]: item for item in sorted(items, key=lambda item: item["id"])}
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: an image or a category without a usable id ({error!r})") from error


def _shown_names(categories: Mapping[Any, Mapping[str, Any]]) -> list[str]:
    """The categories' names, with the id behind a name that stands twice."""
    names = [str(item.get("name", id_)) for id_, item in categories.items()]
    return [f"{name} ({id_})" if names.count(name) > 1 else name for name, id_ in zip(names, categories, strict=True)]


def _read_boxes(
    items: list[Any], path: Path, images: list[Any], read: Callable[[Mapping[str, Any]], _AnyBox]
) -> dict[Any, list[_AnyBox]]:
    boxes: dict[Any, list[_AnyBox]] = {image: [] for image in images}
    for number, item in enumerate(items, 1):
        try:
            box, image = read(item), item["image_id"]
            is_known = image in boxes
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}, entry {number}: not a box ({error!r})") from error
        if not is_known:
            raise DataError(
                f"{path}, entry {number}: image_id {image!r} is none of the {len(images)} images",
                hint="are results and references of the same pictures?",
            )
        boxes[image].append(box)
    return boxes


def _true_box(item: Mapping[str, Any], categories: Mapping[Any, int]) -> TrueBox:
    box = xywh(item["bbox"])
    own_area = item.get("area")
    return TrueBox(
        categories[item["category_id"]],
        box,
        box[2] * box[3] if own_area is None else float(own_area),
        bool(item.get("iscrowd", 0)),
    )


def _found_box(item: Mapping[str, Any], categories: Mapping[Any, int]) -> FoundBox:
    category, box, score = categories.get(item["category_id"]), xywh(item["bbox"]), item.get("score")
    return FoundBox(category, box, 1.0 if score is None else float(score))


def xywh(numbers: Any) -> Box:
    """Four numbers as a box.  Raises ValueError or TypeError for what is none."""
    x, y, w, h = (float(n) for n in numbers)
    if not math.isfinite(x + y + w + h):
        raise ValueError(f"a box needs four finite numbers, got {numbers}")
    return (x, y, w, h)
