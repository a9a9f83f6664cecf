"""More categories than one prompt takes: several questions are asked, one answer is given, in `predict` and `eval`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prepare_inputs import picture

from qwenft.core.answer import MOST_CATEGORIES
from qwenft.core.events import Event
from qwenft.core.predictions import Detected, Prediction, Question
from qwenft.evaluate.asking import ask
from qwenft.predict.generate import Predictor
from qwenft.predict.parts import in_parts, put_together

MANY = tuple(f"thing {number}" for number in range(2 * MOST_CATEGORIES + 1))
QUESTION = Question(Path("a.png"), "detection", categories=MANY, id="s/1")


def answer(question: Question, *objects: tuple[str, float, tuple[float, ...]], **more: Any) -> Prediction:
    found = tuple(Detected(box, label, score) for label, score, box in objects)  # type: ignore[arg-type]
    status = more.pop("status", "ok" if found else "empty")
    return Prediction(question, status, found, text=f"[{len(found)}]", prompt=f"p{len(question.categories)}", **more)


def joined(*parts: Prediction) -> Prediction:
    (one,) = put_together([QUESTION], parts)
    return one


def test_a_long_list_is_asked_in_order_in_questions_of_equal_length() -> None:
    parts = in_parts(QUESTION)
    assert [len(part.categories) for part in parts] == [53, 54, 54]
    assert tuple(name for part in parts for name in part.categories) == MANY
    assert {replace(part, categories=()) for part in parts} == {replace(QUESTION, categories=())}


@pytest.mark.parametrize(
    "question",
    [
        replace(QUESTION, categories=MANY[:MOST_CATEGORIES]),
        Question(Path("a.png"), "grounding", "the dog"),
        replace(QUESTION, ask="a prompt of the user's own"),
    ],
    ids=["as many as one takes", "grounding", "own prompt"],
)
def test_other_questions_are_asked_as_they_are(question: Question) -> None:
    assert in_parts(question) == [question]
    only = answer(question)
    assert list(put_together([question], [only])) == [only]


def test_boxes_of_all_parts_stand_in_one_order_and_what_two_parts_say_counts_once() -> None:
    one, two, three = in_parts(QUESTION)
    found = joined(
        answer(one, ("thing 1", 0.5, (10.0, 50.0, 20.0, 60.0)), ("thing 99", 0.9, (30.0, 10.0, 50.0, 30.0))),
        answer(two, ("thing 99", 0.8, (30.0, 10.0, 50.0, 30.5)), ("thing 60", 0.8, (5.0, 10.0, 20.0, 30.5))),
        answer(three),
    )
    assert [(item.label, item.score) for item in found.objects] == [
        ("thing 60", 0.8),
        ("thing 99", 0.9),
        ("thing 1", 0.5),
    ]
    assert (found.question, found.status, found.how) == (QUESTION, "ok", "")
    assert (found.text, found.prompt) == ("[2]\n[2]\n[0]", "p53\np54\np54")


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        (("empty", "empty", "empty"), "empty"),
        (("ok", "empty", "ok"), "ok"),
        (("unparsable", "unparsable", "unparsable"), "unparsable"),
        (("empty", "unparsable", "empty"), "salvaged"),
        (("ok", "salvaged", "ok"), "salvaged"),
    ],
)
def test_a_part_that_cannot_be_read_is_said_and_hides_the_others_in_no_way(statuses: Any, expected: str) -> None:
    parts = [
        answer(part, status=status, how="cut off" if status in ("salvaged", "unparsable") else "")
        for part, status in zip(in_parts(QUESTION), statuses, strict=True)
    ]
    found = joined(*parts)
    assert found.status == expected
    assert ("part 2: cut off" in found.how) == (statuses[1] in ("salvaged", "unparsable"))


def test_predict_and_eval_give_one_answer_a_question_whatever_it_takes_to_ask_it(tmp_path: Path) -> None:
    """On the embedded model: what the parts give when they are asked one by one; progress counts questions."""
    (tmp_path / "a.png").write_bytes(picture(1))
    many, short = (replace(QUESTION, image=tmp_path / "a.png", categories=c) for c in (MANY, ("star",)))
    short = replace(short, id="s/2")
    predictor, said = Predictor.load("tiny", gpus="cpu"), list[Event]()
    alone = list(predictor.answer([*in_parts(many), short]))
    found = list(predictor.answer([many, short], emit=said.append))
    assert [item.text for item in found] == ["\n".join(item.text for item in alone[:3]), alone[3].text]
    assert found == list(put_together([many, short], alone))
    assert {event["total"] for event in said if event["event"] == "progress"} == {2}
    kept = tmp_path / "answers.jsonl"
    scored = ask(predictor, [many, short], kept, batch_size=None, emit=said.append)
    assert scored == [Prediction.from_json(item.to_json()) for item in found]
    assert len(kept.read_text().splitlines()) == 2
