"""docs/founding-question.md: both failures and the mend, by the programs that stand in it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

import qwenft

PAGE = Path(__file__).parents[1] / "docs" / "founding-question.md"
TINY = Path(qwenft.__file__).parent / "demo" / "assets" / "tiny"
REAL = Path(__file__).parents[2] / "shared" / "data" / "qwen25vl-processor"
PROCESSORS = [TINY, REAL] if REAL.is_dir() else [TINY]
QWEN_BUDGET = {"shortest_edge": 3136, "longest_edge": 12845056}
SMALL_BUDGET = {"shortest_edge": 3136, "longest_edge": 200704}
FIXED = {"resized_height": 280, "resized_width": 280}
SIZES = [(640, 480), (640, 450)]


def programs(processor: Any) -> dict[str, Any]:
    """Run the page's code blocks; returns their functions by name."""
    import torch
    from PIL import Image
    from qwen_vl_utils import process_vision_info

    found: dict[str, Any] = {
        "processor": processor,
        "process_vision_info": process_vision_info,
        "torch": torch,
        "Image": Image,
        "json": json,
    }
    for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        exec(compile(block, str(PAGE), "exec"), found)
    return found


@pytest.fixture(scope="module", params=PROCESSORS, ids=lambda path: path.name)
def notebook(request: pytest.FixtureRequest) -> dict[str, Any]:
    from transformers import AutoProcessor

    return programs(AutoProcessor.from_pretrained(str(request.param), size=QWEN_BUDGET))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    from PIL import Image

    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / f"{number}.png" for number in range(len(SIZES))]
    for path, size in zip(paths, SIZES, strict=True):
        image = Image.new("RGB", size, "black")
        image.paste("red", (100, 100, 300, 200))
        image.save(path)
    return [str(path) for path in paths]


@pytest.fixture
def table(pictures: list[str]) -> Any:
    from datasets import Dataset

    answer = '[{"bbox_2d": [100, 100, 300, 200], "label": "the red box"}]'
    return Dataset.from_dict(
        {"image": pictures, "question": ["the red box"] * len(pictures), "answer": [answer] * len(pictures)}
    )


def build(notebook: dict[str, Any], table: Any, size: dict[str, int], batch_size: int) -> Any:
    return table.map(
        notebook["to_features"],
        batched=True,
        batch_size=batch_size,
        fn_kwargs={"size": size},
        remove_columns=table.column_names,
        load_from_cache_file=False,
    )


def test_with_the_fixed_size_the_notebook_runs(notebook: dict[str, Any], table: Any) -> None:
    from transformers import DataCollatorForSeq2Seq

    built = build(notebook, table, FIXED, batch_size=2)
    assert [len(rows) for rows in built["pixel_values"]] == [400, 400]
    batch = DataCollatorForSeq2Seq(notebook["processor"].tokenizer)([built[0], built[1]])
    assert batch["pixel_values"].shape == (2, 400, 1176)


def test_without_it_the_map_fails_as_the_question_says(notebook: dict[str, Any], table: Any) -> None:
    with pytest.raises(ValueError, match=r"expected sequence of length 1564 at dim 1 \(got 1472\)"):
        build(notebook, table, {}, batch_size=2)


def test_one_row_at_a_time_only_moves_the_failure_into_the_collator(notebook: dict[str, Any], table: Any) -> None:
    from transformers import DataCollatorForSeq2Seq

    built = build(notebook, table, {}, batch_size=1)
    assert [len(rows) for rows in built["pixel_values"]] == [1564, 1472]
    collator = DataCollatorForSeq2Seq(notebook["processor"].tokenizer)
    assert collator([built[0]])["pixel_values"].shape == (1, 1564, 1176)
    with pytest.raises(ValueError, match=r"Unable to create tensor.*`pixel_values` in this case"):
        collator([built[0], built[1]])


def test_turning_the_resize_off_in_the_processor_is_no_way_out(notebook: dict[str, Any]) -> None:
    from PIL import Image

    image_processor = notebook["processor"].image_processor
    with pytest.raises(RuntimeError, match=r"shape '\[.*\]' is invalid for input of size"):
        image_processor(images=[Image.new("RGB", (300, 200))], do_resize=False, return_tensors="pt")
    whole = image_processor(images=[Image.new("RGB", (308, 196))], do_resize=False, return_tensors="pt")
    assert whole["image_grid_thw"].tolist() == [[1, 14, 22]]


def rows_of(pictures: list[str]) -> list[dict[str, Any]]:
    boxes = [[100, 100, 300, 200], [100, 100, 300, 200]]
    questions = ["the red box", "the large red box on the left"]  # unlike lengths, so that something is padded
    return [
        {"image": image, "question": question, "bbox": box, "label": "the red box"}
        for image, question, box in zip(pictures, questions, boxes, strict=True)
    ]


def test_the_mend_concatenates_patches_and_stacks_grids(notebook: dict[str, Any], pictures: list[str]) -> None:
    batch = notebook["collate"](rows_of(pictures))
    assert batch["image_grid_thw"].tolist() == [[1, 34, 46], [1, 32, 46]]
    assert batch["pixel_values"].shape == (1564 + 1472, 1176)
    assert len(batch["input_ids"]) == len(batch["attention_mask"]) == len(batch["labels"]) == 2
    tokenizer = notebook["processor"].tokenizer
    learned = [tokenizer.decode(labels[labels != -100]) for labels in batch["labels"]]
    assert [re.sub(r"\s", "", text) for text in learned] == [
        f'[{{"bbox_2d":[101,{top},302,{bottom}],"label":"theredbox"}}]<|im_end|>'
        for top, bottom in [(99, 198), (100, 199)]
    ]  # 644 / 640 across; 476 / 480 and 448 / 450 down


def test_a_batch_of_two_sizes_has_the_loss_of_its_two_pictures(pictures: list[str]) -> None:
    import torch
    from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

    collate = programs(AutoProcessor.from_pretrained(str(TINY), size=SMALL_BUDGET))["collate"]
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(str(TINY), dtype=torch.float32)
    rows = rows_of(pictures)
    together = collate(rows)
    loss = model(**together).loss
    loss.backward()
    assert together["image_grid_thw"][0].tolist() != together["image_grid_thw"][1].tolist()
    assert together["attention_mask"].min() == 0  # something was padded
    assert all(parameter.grad is not None for parameter in model.model.visual.parameters())
    alone = [collate([row]) for row in rows]
    tokens = [int((batch["labels"] != -100).sum()) for batch in alone]
    with torch.no_grad():
        losses = [float(model(**batch).loss) for batch in alone]
    expected = sum(value * count for value, count in zip(losses, tokens, strict=True)) / sum(tokens)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-4)


def test_the_numbers_of_the_page_are_true() -> None:
    from qwenft.core.boxes import num_image_tokens, smart_resize

    text = PAGE.read_text(encoding="utf-8")
    for image_wh, patches in zip(SIZES, (1564, 1472), strict=True):
        width, height = smart_resize(image_wh, *QWEN_BUDGET.values())
        grid = f"{width // 14} x {height // 14}"
        assert f"{image_wh[0]} x {image_wh[1]}, without | {width} x {height} | {grid} | {patches} |" in text
    assert num_image_tokens((644, 476)) == 391
    assert "100 tokens see what 391 saw" in text
    assert f"= {1564 * 1176 * 4 / 1e6:.1f} MB" in text
    assert "by 2.29 across and by 1.71 down" in text
    assert (round(640 / 280, 2), round(480 / 280, 2)) == (2.29, 1.71)
    assert "at most 256 tokens" in text
    assert 200704 == 256 * 28 * 28
