"""On 22 photos with one to three questions each, predict says what a plain transformers script says, to the token."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageOps
from published_model import make_published_model
from transformers import AutoModelForImageTextToText, AutoProcessor

from qwenft.core.predictions import Question
from qwenft.model.fetch import TINY_FOLDER
from qwenft.predict.generate import Predictor

PHOTOS = Path(__file__).parents[2] / "shared" / "data" / "coco36" / "images"
NUM_PHOTOS = 22
NEW_TOKENS = 32
THINGS = ("the dog", "a person in red", "the left chair", "x", "the second largest thing that is near the window")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """COCO photos where they lie beside the project, else drawn ones of many sizes."""
    if PHOTOS.is_dir():
        return sorted(PHOTOS.glob("*.jpg"))[:NUM_PHOTOS]
    folder, draw = tmp_path_factory.mktemp("photos"), random.Random(0)
    for number in range(NUM_PHOTOS):
        small = Image.effect_noise((draw.randrange(20, 65), draw.randrange(20, 65)), 90).convert("RGB")
        small.resize((small.width * 10, small.height * 10), Image.Resampling.BICUBIC).save(folder / f"{number:02}.jpg")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module", params=["embedded", "published-processor"])
def model_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "embedded":
        return TINY_FOLDER
    return make_published_model(tmp_path_factory.mktemp("published") / "model")


def louder(model: Any, folder: Path) -> Any:
    """Weights of a random model that make its answers differ; the embedded one was trained and stays."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if folder != TINY_FOLDER and parameter.ndim > 1 and "embed" not in name:
                parameter.mul_(8)
    return model.eval()


def plain_script(folder: Path, asked: list[tuple[Path, str]]) -> list[list[int]]:
    """Each question alone, as the model card has it; greedy, without the released settings' repetition penalty."""
    model = louder(AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32), folder)
    processor = AutoProcessor.from_pretrained(folder)
    answers = []
    for path, prompt in asked:
        image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        inputs = processor(text=[text], images=[image], return_tensors="pt")
        made = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, repetition_penalty=1.0)
        tokens = made[0, inputs.input_ids.shape[1] :].tolist()
        ends = model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        answers.append([token for token in tokens if token not in ends])
    return answers


def test_22_photos_are_answered_as_by_a_plain_script_to_the_token(
    model_folder: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(1)
    questions = [
        Question(path, "grounding", thing) for path in photos for thing in draw.sample(THINGS, draw.randrange(1, 4))
    ]
    predictor = Predictor.load(str(model_folder), gpus="cpu")
    louder(predictor.model, model_folder)
    tokens: dict[Question, list[int]] = {}
    right = Predictor._of

    def kept(self: Predictor, question: Question, asked: Any, answer: Any) -> Any:
        tokens[question] = answer.tokens
        return right(self, question, asked, answer)

    monkeypatch.setattr(Predictor, "_of", kept)
    said: list[Any] = []
    found = list(predictor.answer(questions, max_new_tokens=NEW_TOKENS, emit=said.append))
    assert predictor.fast
    assert not [event for event in said if event["event"] == "warning"]
    theirs = plain_script(model_folder, [(one.question.image, one.prompt) for one in found])
    assert [tokens[question] for question in questions] == theirs
    assert len(photos) == NUM_PHOTOS
    assert len({one.text for one in found}) > NUM_PHOTOS
