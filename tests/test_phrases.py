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
    ("Find all the dogs in the image", "all the dogs"),
    ("Can you find the dog for me?", "the dog"),
    ("Can you see the dog?", "the dog"),
    ("I'm looking for the red cup", "the red cup"),
    ("I want to find the red cup", "the red cup"),
    ("identify the man in red", "the man in red"),
    ("Identify all defects", "all defects"),
    ("select the blue button", "the blue button"),
    ("bounding box of the dog", "the dog"),
    ("the bbox for the dog", "the dog"),
    ("Output the bounding box of the person on the left in JSON", "the person on the left"),
    ("Provide the bounding box coordinates of the dog", "the dog"),
    ("Outline the bounding boxes of the dogs", "the dogs"),
    ("Draw boxes around all cats", "all cats"),
    ("Put a red box around the cat", "the cat"),
    ("locate: the dog", "the dog"),
    ('Find "the dog"', "the dog"),
    ("find 'the dog'", "the dog"),
    ("Find the object described as: a red cup", "a red cup"),
    ("Please provide the bounding box coordinate of the region this sentence describes: the man", "the man"),
    ("Where in the image is the dog?", "the dog"),
    ("Detect cars and return their bounding boxes.", "cars"),
    ("请在图片中找出所有的人", "所有的人"),
    ("找一下红色的车", "红色的车"),
    ("帮我找一只猫", "一只猫"),
    ("请检测图中的缺陷，以JSON格式输出", "缺陷"),
    ("检测出图像中的选项框", "选项框"),
    ("标注出缺封位置在哪里", "缺封位置"),
    ("请框选图中所有的充电口,以JSON格式输出2D边界框坐标.", "所有的充电口"),
    ("识别图中的车牌", "车牌"),
    ("请标记出穿红衣服的人", "穿红衣服的人"),
    ("定位：红色按钮", "红色按钮"),
    ("定位“红色按钮”的位置", "红色按钮"),
    ("给出狗的坐标", "狗"),
    ("请给出图中狗的边界框坐标", "狗"),
    ("狗在什么地方？", "狗"),
    ("请问狗在哪里？", "狗"),
    ("帮我把红色的杯子标出来", "红色的杯子"),
    ("寻找图中的猫", "猫"),
    ("找到图像中的<ref>羊</ref>", "羊"),
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
    "identify parade",
    "select button",
    "selected text",
    "box around the cat",
    "the man looking for his keys",
    "a picture of the dog in the picture",
    '"STOP"',
    "the sign that says 'find me'",
    "识别码",
    "找零的人",
    "搜索的警察",
    "框",
    "坐标轴",
    "狗的位置牌",
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
