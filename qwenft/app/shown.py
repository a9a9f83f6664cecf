"""What is seen of an answer above a threshold: its boxes drawn and in rows, the raw text, and files to take away."""

import html
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from qwenft.core.errors import QwenftError
from qwenft.core.predictions import Detected, Prediction
from qwenft.predict.draw import COLOURS, draw_boxes, save_picture
from qwenft.predict.outputs import coco_of
from qwenft.prepare.pictures import open_upright

SHARP_PIXELS: Final = 2_000_000
"""Up to this size drawings are PNG; above it JPEG, which is written ten times as fast."""
_TEMPLATE_SIGNS: Final = {ord(sign): f"&#{ord(sign)};" for sign in "${}`\\"}
"""What gradio's templates would obey in a text."""


@dataclass(frozen=True, slots=True)
class Shown:
    """One answer as the page shows it."""

    picture: Path
    """The upload with the boxes drawn, at its own size."""
    words: str
    """HTML: what the answer says, and its boxes in rows."""
    text: str
    """The raw answer."""
    coco: Path | None
    """The boxes as a COCO file; None for a caption."""


def escaped(text: str) -> str:
    """A stranger's text as HTML that shows it and does nothing else.

    >>> escaped("<b>${1}")
    '&lt;b&gt;&#36;&#123;1&#125;'
    """
    return html.escape(_whole(text)).translate(_TEMPLATE_SIGNS)


def _whole(text: str) -> str:
    """A text without half of a character, which no answer of a server can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def problem(error: QwenftError) -> str:
    """An error for the page, as HTML."""
    hint = f" ({error.hint})" if error.hint else ""
    return f'<p class="problem" role="alert">Not answered: {escaped(f"{error}{hint}")}</p>'


def show(answer: Prediction, threshold: float, folder: Path, who: str) -> Shown:
    """Draw an answer and write its files into a new folder under `folder`.

    who: goes into the files' names.  Raises DataError where the picture is gone.
    """
    kept = answer.above(threshold)
    place = Path(tempfile.mkdtemp(dir=folder))
    stem = f"{Path(answer.question.shown_image).stem[:100]}-{who}"
    upright = open_upright(answer.question.image)
    picture = place / f"{stem}.{'png' if upright.width * upright.height <= SHARP_PIXELS else 'jpg'}"
    save_picture(draw_boxes(upright, kept.objects), picture)
    coco = None
    if answer.question.task != "caption":
        coco = place / f"{stem}.coco.json"
        coco.write_text(json.dumps(coco_file(kept), ensure_ascii=False), encoding="utf-8", errors="replace")
    return Shown(picture, _words(answer, kept), _whole(answer.text), coco)


def coco_file(answer: Prediction) -> dict[str, Any]:
    """An answer as one COCO file: its picture, its categories, and a box an annotation, with its score."""
    results, named = coco_of([answer])
    annotations = [
        {"id": number, **result, "area": round(result["bbox"][2] * result["bbox"][3], 2), "iscrowd": 0}
        for number, result in enumerate(results, 1)
    ]
    return {**named, "annotations": annotations}


def _words(answer: Prediction, kept: Prediction) -> str:
    said = f'<p class="said" role="status">{escaped(_said(answer, kept))}</p>'
    if not kept.objects:
        return said
    head = "".join(f"<th>{name}</th>" for name in ("", "label", "score", "x1", "y1", "x2", "y2"))
    rows = "".join(f"<tr>{_cells(number, item)}</tr>" for number, item in enumerate(kept.objects))
    return f'{said}<div class="rows"><table><tr>{head}</tr>{rows}</table></div>'


def _said(answer: Prediction, kept: Prediction) -> str:
    """The answer in a sentence."""
    if answer.question.task == "caption":
        return answer.text or "An empty answer."
    if answer.status == "empty":
        return "It says that there is none."
    if answer.status == "unparsable":
        return f"No box can be read in this answer{f' ({answer.how})' if answer.how else ''}."
    count, hidden = len(kept.objects), len(answer.objects) - len(kept.objects)
    repaired = f" The answer was repaired: {answer.how}." if answer.status == "salvaged" else ""
    return f"{count} box{'' if count == 1 else 'es'}{f', {hidden} hidden' if hidden else ''}.{repaired}"


def _cells(number: int, item: Detected) -> str:
    """A box's row: its colour in the drawing, its label, score and corners."""
    colour = f'<td><i style="background:{COLOURS[number % len(COLOURS)]}"></i></td>'
    score = "" if item.score is None else f"{item.score:.2f}"
    corners = "".join(f"<td>{corner:.0f}</td>" for corner in item.box_xyxy)
    return f"{colour}<td>{escaped(item.label)}</td><td>{score}</td>{corners}"
