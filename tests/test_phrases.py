"""The phrase in an instruction, and phrases that only look like one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenft.core.phrases import MAX_CHARACTERS, phrase_of

PHRASES = [
    ("the dog", "the dog"),
    ("find the dog", "the dog"),
    ("Find me the dog.", "the dog"),
    ("please locate the man in red", "the man in red"),
    ("Could you please find the second cup from the left?", "the second cup from the left"),
    ("Locate the dog in this image and output the bbox coordinates in JSON format.", "the dog"),
    ("Locate the dog in the picture", "the dog"),
    ("find the man in the photo frame", "the man in the photo frame"),
    ("find the dog, output its bbox coordinates using JSON format", "the dog"),
    ("Where is the red cup?", "the red cup"),
    ("where are the two cats in this photo", "the two cats"),
    ("show me the dog", "the dog"),
    ("show me where the dog is", "the dog"),
    ("Find out where the dog is.", "the dog"),
    ("point to the dog", "the dog"),
    ("box the red car", "the red car"),
    ("spot a cyclist", "a cyclist"),
    ("Draw a bounding box around the cat", "the cat"),
    ("Give me the bounding box of the cat.", "the cat"),
    ("What are the coordinates of the cat?", "the cat"),
    ("detect all cars", "all cars"),
    ("定位穿红衣服的人", "穿红衣服的人"),
    ("请帮我找到图中的狗。", "狗"),
    ("在图中找出左边的杯子", "左边的杯子"),
    ("框出图片里的红色汽车，并以JSON格式输出坐标", "红色汽车"),
    ("把图中的狗框出来", "狗"),
    ("图中的狗在哪里？", "狗"),
    ("检测一下行人", "行人"),
]
NOUNS = [
    "box of cereal",
    "box",
    "boxes on the shelf",
    "spot on the wall",
    "spotted dog",
    "ground beef",
    "ground floor",
    "show horse",
    "show jumper",
    "point guard",
    "point to point race",
    "find",
    "locate",
    "detective in a coat",
    "where the road bends",
    "mark on the wall",
    "highlight of the show",
    "finding nemo poster",
    "检测仪",
    "定位器",
    "找到的钱包",
    "图书馆",
    "画家",
    "the dog in this image",
    "output socket",
    "position of the hands",
    "location pin",
]


@pytest.mark.parametrize(("text", "phrase"), PHRASES, ids=[row[0] for row in PHRASES])
def test_an_instruction_is_stripped_to_the_phrase_it_names(text: str, phrase: str) -> None:
    assert phrase_of(text) == phrase


@pytest.mark.parametrize("phrase", NOUNS)
def test_a_phrase_that_begins_like_an_instruction_stays_as_it_is(phrase: str) -> None:
    assert phrase_of(phrase) == phrase


@given(st.text())
def test_a_phrase_is_never_lost(text: str) -> None:
    assert bool(phrase_of(text)) == bool(text.strip())


def test_a_long_text_is_not_shortened() -> None:
    text = "find the dog " + "a" * MAX_CHARACTERS
    assert phrase_of(text) == text
    assert phrase_of("find " + "output " * 250) != ""
