"""COCO folders with things anywhere, and a judge of questions about them that shares no code with `prepare`."""

import json
import random
import re
from hashlib import sha256
from pathlib import Path
from typing import Any

from prepare_inputs import DATA, picture

ENGLISH = ("person", "dog", "hot dog", "red car", "blue car", "cup", "traffic light", "tree")
CHINESE = ("人", "狗", "红色的汽车", "蓝色的汽车", "杯子", "树")


def write_scenes(folder: Path, names: tuple[str, ...] = ENGLISH, count: int = 36) -> Path:
    """A COCO folder whose things stand anywhere, large and small; some are crowds, some pictures hold nothing."""
    draw = random.Random(5)
    (folder / "images").mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(count):
        (folder / "images" / f"{number}.jpg").write_bytes(picture(number, kind="JPEG"))
        images.append({"id": number, "file_name": f"{number}.jpg", "width": 160, "height": 120})
        for _ in range(number % 5):
            width, height = draw.choice((draw.randrange(8, 50), 120)), draw.choice((draw.randrange(8, 40), 100))
            box = [draw.randrange(161 - width), draw.randrange(121 - height), width, height]
            annotation = {"id": len(annotations), "image_id": number, "category_id": draw.randrange(len(names)) + 1}
            annotations.append({**annotation, "bbox": box, "iscrowd": int(draw.random() < 0.1)})
    categories = [{"id": number, "name": name} for number, name in enumerate(names, 1)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(document))
    return folder


def coco36(tmp_path: Path) -> Path:
    real = DATA / "coco36"
    return real if real.is_dir() else write_scenes(tmp_path / "generated" / "coco36")


# The judge: annotations as they are in the file, regular expressions and comparisons, nothing of qwenft.

FORMS = {
    "position": (r"(.+) in the (left|right|upper|lower) half of the picture", r"图片(左|右|上|下)半部分的(.+)"),
    "relation": (r"(.+) (to the left of|to the right of|above|below) the (.+)", r"(.+)(左边|右边|上方|下方)的(.+)"),
    "wider": (r"(.+) wider than half of the picture", r"比半张图片还宽的(.+)"),
    "tiny": (r"tiny (.+) that covers less than a fiftieth of the picture", r"不到画面五十分之一的小(.+)"),
}
Verdict = bool | None
"""Whether a box is meant; None: the annotations do not decide it."""


def decide(yes: bool, no: bool) -> Verdict:
    return True if yes else False if no else None


class Judge:
    """Says what a text means by a COCO file's annotations of a picture."""

    def __init__(self, folder: Path) -> None:
        document = json.loads((folder / "instances.json").read_text())
        names = {category["id"]: category["name"] for category in document["categories"]}
        self.images, self.boxes, self.crowds = {}, {}, {}
        for image in document["images"]:
            content = sha256((folder / "images" / image["file_name"]).read_bytes()).hexdigest()
            own = [a for a in document["annotations"] if a["image_id"] == image["id"]]
            self.images[content] = image
            self.boxes[content] = [(names[a["category_id"]], a["bbox"]) for a in own]
            self.crowds[content] = {names[a["category_id"]] for a in own if a["iscrowd"]}
        self.names = set(names.values())

    def of(self, content: str, name: str) -> list[list[float]]:
        return [box for label, box in self.boxes[content] if label == name]

    def meaning(self, content: str, text: str) -> list[tuple[list[float], Verdict]]:
        """Every box of the category that is asked for, and whether it is meant."""
        if text in self.names:
            found: list[tuple[list[float], Verdict]] = [(box, True) for box in self.of(content, text)]
            return [(box, None) for box, _ in found] if text in self.crowds[content] else found
        for form, patterns in FORMS.items():
            for chinese, pattern in enumerate(patterns):
                match = re.fullmatch(pattern, text)
                if match:
                    words = match.groups()
                    name, *more = words[::-1] if chinese else words
                    assert name in self.names, text
                    verdict = getattr(self, form)
                    return [(box, verdict(content, box, *more)) for box in self.of(content, name)]
        raise AssertionError(f"the judge cannot read {text!r}")

    def refutes(self, content: str, text: str) -> bool:
        return all(verdict is False for _, verdict in self.meaning(content, text))

    def position(self, content: str, box: list[float], side: str) -> Verdict:
        (x, y, w, h), image = box, self.images[content]
        width, height = image["width"], image["height"]
        before, behind = (x + w <= width / 2, x >= width / 2) if side in "left right 左 右" else (
            y + h <= height / 2, y >= height / 2
        )  # fmt: skip
        return decide(before, behind) if side in "left upper 左 上" else decide(behind, before)

    def relation(self, content: str, box: list[float], side: str, than: str) -> Verdict:
        others, (x, y, w, h) = self.of(content, than), box
        assert others and than in self.names
        first = side.removeprefix("to the ")[0]
        if first in "lr左右":
            before, behind = all(x + w <= X for X, _, _, _ in others), all(x >= X + W for X, _, W, _ in others)
        else:
            before, behind = all(y + h <= Y for _, Y, _, _ in others), all(y >= Y + H for _, Y, _, H in others)
        return decide(before, behind) if first in "la左上" else decide(behind, before)

    def wider(self, content: str, box: list[float]) -> Verdict:
        return bool(box[2] > self.images[content]["width"] / 2)

    def tiny(self, content: str, box: list[float]) -> Verdict:
        share = box[2] * box[3] / (self.images[content]["width"] * self.images[content]["height"])
        return decide(share < 1 / 50, share > 1 / 5)

    def form(self, text: str) -> str:
        """What is left of a text without the names of categories."""
        for name in sorted(self.names, key=len, reverse=True):
            text = text.replace(name, "X")
        return text
