"""One truth (pictures, categories, boxes) written in each of the forms in which people keep annotated pictures."""

import base64
import csv
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prepare_inputs import picture

LABELS = ("cup", "pen")
SIZE = (160, 120)


@dataclass(frozen=True)
class View:
    """A picture, its split and its boxes (label, x1, y1, x2, y2: whole px, from 0, the last ones excluded)."""

    stem: str
    split: str
    content: bytes
    boxes: tuple[tuple[str, int, int, int, int], ...]
    size: tuple[int, int] = SIZE


def truth(per_split: int = 6, splits: tuple[str, ...] = ("train", "val", "test")) -> list[View]:
    """Some boxes touch the upper or left border, as real ones do; the last picture of each split holds nothing."""
    draw, views = random.Random(3), []
    for split in splits:
        for number in range(per_split):
            boxes = []
            for part in range(0 if number == per_split - 1 else 1 + number % 3):
                x1, y1 = draw.choice((0, draw.randrange(100))), draw.randrange(70)
                x2, y2 = draw.randrange(x1 + 10, 161), draw.randrange(y1 + 10, 121)
                boxes.append((LABELS[part % 2], x1, y1, x2, y2))
            content = picture(len(views), kind="JPEG")
            views.append(View(f"{split}-{number}", split, content, tuple(boxes)))
    return views


def _pictures(folder: Path, views: list[View]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for view in views:
        (folder / f"{view.stem}.jpg").write_bytes(view.content)


def _splits(views: list[View]) -> dict[str, list[View]]:
    found: dict[str, list[View]] = {}
    for view in views:
        found.setdefault(view.split, []).append(view)
    return found


def voc_xml(view: View, first: int = 1, **change: Any) -> str:
    objects = "".join(
        f"<object><name>{label}</name><difficult>{int(label == 'pen')}</difficult>"
        f"<part><name>lid</name><bndbox><xmin>3</xmin><ymin>3</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></part>"
        f"<bndbox><xmax>{x2}</xmax><ymin>{y1 + first}</ymin><xmin>{x1 + first}</xmin><ymax>{y2}</ymax></bndbox>"
        "</object>"
        for label, x1, y1, x2, y2 in view.boxes
    )
    width, height = change.get("size", view.size)
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation><filename>{change.get('filename', view.stem + '.jpg')}</filename>{size}{objects}</annotation>"


def write_voc(folder: Path, views: list[View], first: int = 1) -> Path:
    """As the challenge: Annotations, JPEGImages, ImageSets/Main; the lists of categories must not count twice."""
    _pictures(folder / "JPEGImages", views)
    for name in ("Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for view in views:
        (folder / "Annotations" / f"{view.stem}.xml").write_text(voc_xml(view, first))
    for split, part in _splits(views).items():
        stems = "".join(f"{view.stem}\n" for view in part)
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text(stems)
        (folder / "ImageSets" / "Main" / f"cup_{split}.txt").write_text(stems.replace("\n", "  1\n"))
    trainval = "".join(f"{view.stem}\n" for view in views if view.split != "test")
    (folder / "ImageSets" / "Main" / "trainval.txt").write_text(trainval)
    return folder


def write_roboflow_voc(folder: Path, views: list[View]) -> Path:
    """Pictures and annotations together, one folder a split; pixels from 0."""
    for split, part in _splits(views).items():
        _pictures(folder / split, part)
        for view in part:
            (folder / split / f"{view.stem}.xml").write_text(voc_xml(view, first=0))
    return folder


def yolo_lines(view: View) -> str:
    width, height = view.size
    return "".join(
        f"{LABELS.index(label)} {(x1 + x2) / 2 / width:.6f} {(y1 + y2) / 2 / height:.6f} "
        f"{(x2 - x1) / width:.6f} {(y2 - y1) / height:.6f}\n"
        for label, x1, y1, x2, y2 in view.boxes
    )


def write_yolo(folder: Path, views: list[View], names: Any = LABELS) -> Path:
    """images/<split> and labels/<split>; a picture without objects has no label file."""
    for split, part in _splits(views).items():
        _pictures(folder / "images" / split, part)
        (folder / "labels" / split).mkdir(parents=True)
        for view in part:
            if view.boxes:
                (folder / "labels" / split / f"{view.stem}.txt").write_text(yolo_lines(view))
    settings = {"path": "../somewhere/else", **{split: f"images/{split}" for split in _splits(views)}}
    settings["names"] = list(names) if isinstance(names, tuple) else names
    (folder / "data.yaml").write_text(json.dumps(settings))  # JSON is YAML
    return folder


def write_yolo_lists(folder: Path, views: list[View]) -> Path:
    """Splits as text files that list the pictures, categories as a dict, and polygons in place of boxes."""
    write_yolo(folder, views, dict(enumerate(LABELS)))
    settings: dict[str, Any] = {"names": dict(enumerate(LABELS))}
    for split, part in _splits(views).items():
        (folder / f"{split}.txt").write_text("".join(f"./images/{split}/{view.stem}.jpg\n" for view in part))
        settings[split] = f"{split}.txt"
        for view in part:
            lines = [
                f"{LABELS.index(label)} {x1 / 160:.6f} {y1 / 120:.6f} {x2 / 160:.6f} {y1 / 120:.6f} "
                f"{x2 / 160:.6f} {y2 / 120:.6f} {x1 / 160:.6f} {y2 / 120:.6f}\n"
                for label, x1, y1, x2, y2 in view.boxes
            ]
            (folder / "labels" / split / f"{view.stem}.txt").write_text("".join(lines))
    (folder / "data.yaml").write_text(json.dumps(settings))
    return folder


def write_labelme(folder: Path, views: list[View], inside: bool = True) -> Path:
    """One JSON a picture, one folder a split; rectangles drawn from any corner, the picture inside."""
    for split, part in _splits(views).items():
        (folder / split).mkdir(parents=True)
        for number, view in enumerate(part):
            shapes = [
                {"label": label, "shape_type": "rectangle", "points": [[x2, y1], [x1, y2]]}
                if number % 2
                else {"label": label, "points": [[x1, y1], [x2, y1], [x2, y2]], "shape_type": "polygon"}
                for label, x1, y1, x2, y2 in view.boxes
            ]
            document = {
                "version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": f"..\\pictures\\{view.stem}.jpg",
                "imageData": base64.b64encode(view.content).decode() if inside else None,
                "imageHeight": view.size[1], "imageWidth": view.size[0],
            }  # fmt: skip
            (folder / split / f"{view.stem}.json").write_text(json.dumps(document))
            if not inside:
                (folder / split / f"{view.stem}.jpg").write_bytes(view.content)
    return folder


def write_labelstudio(folder: Path, views: list[View]) -> Path:
    """One export a split; an uploaded picture's name has eight characters and a dash before it."""
    _pictures(folder / "images", views)
    for split, part in _splits(views).items():
        tasks = []
        for number, view in enumerate(part):
            result = [
                {
                    "type": "rectanglelabels", "original_width": view.size[0], "original_height": view.size[1],
                    "value": {
                        "x": x1 / 1.6, "y": y1 / 1.2, "width": (x2 - x1) / 1.6, "height": (y2 - y1) / 1.2,
                        "rotation": 0, "rectanglelabels": [label],
                    },
                }
                for label, x1, y1, x2, y2 in view.boxes
            ]  # fmt: skip
            cancelled = {"was_cancelled": True, "result": []}
            annotations = [cancelled, {"was_cancelled": False, "result": [*result, {"type": "choices", "value": {}}]}]
            address = f"/data/upload/1/0a1b2c3d-{view.stem}.jpg"
            tasks.append({"id": number, "annotations": annotations, "data": {"image": address, "note": "x"}})
        (folder / f"{split}.json").write_text(json.dumps(tasks))
    return folder


def write_labelstudio_min(folder: Path, views: list[View]) -> Path:
    """JSON-MIN: the regions in a list named after their tag, without their type; further keys beside them."""
    write_labelstudio(folder, views)
    for split, part in _splits(views).items():
        file, records = folder / f"{split}.json", []
        for task, view in zip(json.loads(file.read_text()), part, strict=True):
            regions = [item for item in task["annotations"][1]["result"] if item["type"] == "rectanglelabels"]
            boxes = [{**r["value"], "original_width": view.size[0], "original_height": view.size[1]} for r in regions]
            tail = {"annotator": 1, "annotation_id": 9, "created_at": "2026-01-01", "lead_time": 3.5}
            found = {"tag": boxes} if boxes else {}
            records.append({**task["data"], "id": task["id"], "quality": ["good"], **found, **tail})
        file.write_text(json.dumps(records))
    return folder


def write_csv(folder: Path, views: list[View], first: int = 1) -> Path:
    """filename, width, height, class, xmin, …: the lines of a picture need not stand together."""
    _pictures(folder / "images", views)
    for split, part in _splits(views).items():
        rows = [(view, box) for view in part for box in view.boxes]
        random.Random(1).shuffle(rows)
        with (folder / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax"])
            for view, (label, x1, y1, x2, y2) in rows:
                writer.writerow([f"{view.stem}.jpg", *view.size, label, x1 + first, y1 + first, x2, y2])
            for view in part:
                if not view.boxes:
                    writer.writerow([f"{view.stem}.jpg", *view.size, "", "", "", "", ""])
    return folder


def write_coco(folder: Path, views: list[View]) -> Path:
    for split, part in _splits(views).items():
        _pictures(folder / split, part)
        images = [
            {"id": n, "file_name": f"{v.stem}.jpg", "width": v.size[0], "height": v.size[1]} for n, v in enumerate(part)
        ]
        annotations = [
            {"image_id": n, "category_id": LABELS.index(label), "bbox": [x1, y1, x2 - x1, y2 - y1]}
            for n, view in enumerate(part)
            for label, x1, y1, x2, y2 in view.boxes
        ]
        categories = [{"id": n, "name": label} for n, label in enumerate(LABELS)]
        document = {
            "images": images,
            "annotations": [{**a, "id": n} for n, a in enumerate(annotations)],
            "categories": categories,
        }
        (folder / split / "_annotations.coco.json").write_text(json.dumps(document))
    return folder


def write_imagefolder(folder: Path, views: list[View]) -> Path:
    """metadata.jsonl beside the pictures of each split."""
    for split, part in _splits(views).items():
        _pictures(folder / split, part)
        rows = [
            {
                "file_name": f"{view.stem}.jpg",
                "objects": {
                    "bbox": [[x1, y1, x2 - x1, y2 - y1] for _, x1, y1, x2, y2 in view.boxes],
                    "categories": [label for label, *_ in view.boxes],
                },
            }
            for view in part
        ]
        (folder / split / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


FORMS: dict[str, Callable[[Path, list[View]], Path]] = {
    "voc": write_voc,
    "voc as Roboflow": write_roboflow_voc,
    "yolo": write_yolo,
    "yolo lists and polygons": write_yolo_lists,
    "labelme": write_labelme,
    "label studio": write_labelstudio,
    "label studio as JSON-MIN": write_labelstudio_min,
    "csv": write_csv,
    "coco": write_coco,
    "image folder": write_imagefolder,
}
