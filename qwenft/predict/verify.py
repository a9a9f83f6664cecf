"""The model asked back about each box: the probability of yes against no becomes the box's score."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from PIL import Image, ImageDraw

from qwenft.core.boxes import Box
from qwenft.core.errors import DeviceError
from qwenft.core.predictions import Detected, Prediction, Question
from qwenft.prepare.pictures import open_upright

if TYPE_CHECKING:
    from qwenft.model.inputs import Encoded
    from qwenft.predict.generate import Predictor

PROMPT: Final = "Is {label} inside the red box? Answer Yes or No."
"""Asked about a picture with the box drawn in red, as DetPO does it, where that raises Qwen2.5-VL-7B from 9.1 to 11.9
mAP on Roboflow20-VL and 72B from 15.7 to 16.5: https://arxiv.org/abs/2603.23455, and the README of ggare-cmu/DetPO."""
RED: Final = (255, 0, 0)
BOXES_AT_ONCE: Final = 16
_YES: Final = ("Yes", "yes", " Yes", " yes")
_NO: Final = ("No", "no", " No", " no")


def rescored(predictor: "Predictor", answers: Iterable[Prediction]) -> Iterator[Prediction]:
    """The same answers, in their order, each box's score replaced by P(yes) / (P(yes) + P(no)), in [0, 1].

    One more pass of the model over the picture for each box.  The model that answered is asked, its adapter included.
    """
    held: list[Prediction] = []
    for answer in answers:
        held.append(answer)
        if sum(len(item.objects) for item in held) >= BOXES_AT_ONCE:
            yield from _rescore(predictor, held)
            held = []
    yield from _rescore(predictor, held)


def _rescore(predictor: "Predictor", answers: Sequence[Prediction]) -> Iterator[Prediction]:
    scores = iter(_scores(predictor, [(answer.question, item) for answer in answers for item in answer.objects]))
    for answer in answers:
        objects = tuple(replace(item, score=next(scores)) for item in answer.objects)
        yield answer if answer.status == "error" else replace(answer, objects=objects, score_by="yes-no")


def _scores(predictor: "Predictor", boxes: Sequence[tuple[Question, Detected]]) -> list[float]:
    """A score for each box; out of memory halves how many are asked about at once."""
    import torch

    scores: list[float] = []
    at_once = BOXES_AT_ONCE
    while len(scores) < len(boxes):
        try:
            scores += _yes(predictor, [_asked(predictor, *box) for box in boxes[len(scores) : len(scores) + at_once]])
        except torch.cuda.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            if at_once == 1:
                raise DeviceError(
                    f"one box does not fit in the GPU's memory: {error}", hint="--score tokens"
                ) from error
            at_once //= 2
    return scores


def _asked(predictor: "Predictor", question: Question, item: Detected) -> "Encoded":
    picture = predictor.encoder.picture(with_red_box(open_upright(question.image), item.box_xyxy))
    name = question.query or item.label or "the object"
    return predictor.encoder.asked(picture, PROMPT.replace("{label}", name))


def with_red_box(upright: Image.Image, box_xyxy: Box) -> Image.Image:
    """A copy of an RGB picture with a box (image px) drawn in red, 1/150 of the longer side wide, at least 2 px."""
    picture = upright.copy()
    width = max(2, round(max(upright.size) / 150))
    x1, y1, x2, y2 = box_xyxy
    ImageDraw.Draw(picture).rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=RED, width=width)
    return picture


def _yes(predictor: "Predictor", asked: Sequence["Encoded"]) -> list[float]:
    """P(yes) / (P(yes) + P(no)) of the first token of each answer."""
    import torch

    from qwenft.model.inputs import collate

    model, tokenizer = predictor.model, predictor.encoder.processor.tokenizer
    batch = collate(asked, tokenizer.pad_token_id, model.config.image_token_id, left=True)
    del batch["labels"]
    yes, no = (
        sorted({tokenizer(word, add_special_tokens=False).input_ids[0] for word in words}) for words in (_YES, _NO)
    )
    with torch.inference_mode():
        logits_BV = model(**{name: tensor.to(model.device) for name, tensor in batch.items()}, logits_to_keep=1).logits
        p_BV = logits_BV[:, -1].float().softmax(-1)
        p_yes_B, p_no_B = p_BV[:, yes].sum(-1), p_BV[:, no].sum(-1)
        scores: list[float] = (p_yes_B / (p_yes_B + p_no_B).clamp_min(1e-12)).tolist()
    return scores
