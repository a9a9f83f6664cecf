"""Generated sources for the tests of `prepare`, and where the real data lie."""

import io
import json
import random
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

DATA = Path(__file__).parents[2] / "shared" / "data"


def picture(seed: int, size: tuple[int, int] = (160, 120), kind: str = "PNG", **save: Any) -> bytes:
    """A small picture that differs from that of every other seed."""
    draw = random.Random(seed)
    image = Image.new("RGB", size, tuple(draw.randrange(256) for _ in range(3)))
    pen = ImageDraw.Draw(image)
    for _ in range(4):
        x, y = draw.randrange(size[0] - 20), draw.randrange(size[1] - 20)
        pen.rectangle((x, y, x + 18, y + 15), fill=tuple(draw.randrange(256) for _ in range(3)))
    buffer = io.BytesIO()
    image.save(buffer, kind, **save)
    return buffer.getvalue()


def corners(seed: int, size: tuple[int, int] = (160, 120)) -> list[float]:
    """A box (x1, y1, x2, y2) in the right lower half, so that it refutes xywh."""
    draw = random.Random(seed)
    x, y = draw.randrange(size[0] * 5 // 8, size[0] * 3 // 4), draw.randrange(size[1] * 5 // 8, size[1] * 3 // 4)
    return [float(x), float(y), float(x + draw.randrange(10, size[0] // 4)), float(y + draw.randrange(8, size[1] // 4))]


def write_records(folder: Path, rows: list[dict[str, Any]], name: str = "train.jsonl") -> Path:
    """JSONL beside its pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def good_rows(folder: Path, count: int = 10) -> list[dict[str, Any]]:
    """Sound grounding rows, each with a picture of its own on disk."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        (folder / f"{number}.png").write_bytes(picture(number))
        rows.append({"image": f"{number}.png", "expression": f"thing {number}", "bbox": corners(number)})
    return rows


def write_coco(folder: Path, count: int = 6) -> Path:
    """A COCO folder with ids that have holes, a crowd, a flat box and a picture without objects."""
    (folder / "images" / "sub").mkdir(parents=True)
    images, annotations = [], []
    for number in range(count):
        name = f"sub/{number}.jpg"
        (folder / "images" / name).write_bytes(picture(number, kind="JPEG"))
        images.append({"id": 10 * number + 7, "file_name": name, "width": 160, "height": 120})
        for part in range(0 if number == count - 1 else 2):
            box = [100.0 + part, 20.0, 30.0, 40.0 + number]
            annotation = {"id": 100 * number + part, "image_id": 10 * number + 7, "category_id": (1, 90)[part]}
            annotations.append({**annotation, "bbox": box, "iscrowd": int(number == 0 and part == 1)})
    annotations.append({"id": 9000, "image_id": 7, "category_id": 1, "bbox": [5.0, 5.0, 0.0, 10.0], "iscrowd": 0})
    document = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"}],
    }
    (folder / "instances.json").write_text(json.dumps(document))
    captions = [{"id": n, "image_id": i["id"], "caption": f"view {n} of {i['id']}"} for n in range(2) for i in images]
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": captions}))
    return folder


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
