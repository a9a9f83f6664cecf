"""Detection and caption figures against reference implementations, on real data where it is there."""

import contextlib
import io
import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from qwenft.core.errors import DataError
from qwenft.core.predictions import Detected, Prediction, Question
from qwenft.core.samples import Sample, SceneObject
from qwenft.evaluate.captions import score_captions, tokenize
from qwenft.evaluate.coco_files import score_coco_files
from qwenft.evaluate.detection import COCO_NAMES, score_detection

DATA = Path(__file__).parents[2] / "shared" / "data"

# pycocotools on det_reference, coco-caption on caption_reference: recomputed when the data was collected.
PUBLISHED_AP = {
    **{"AP": 0.503647, "AP50": 0.696973, "AP75": 0.571667, "APs": 0.593252, "APm": 0.557991, "APl": 0.489363},
    **{"AR1": 0.386813, "AR10": 0.593680, "AR100": 0.595353, "ARs": 0.654764, "ARm": 0.603130, "ARl": 0.553744},
}
PUBLISHED_CAPTIONS = {"Bleu_4": 0.198265, "ROUGE_L": 0.407980, "CIDEr": 0.627722}


def made_up_coco(seed: int, num_images: int = 15) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Results with misses, phantoms, twins and tied scores; a truth with crowds, id holes and small boxes."""
    rng = random.Random(seed)
    categories = [{"id": id_, "name": name} for id_, name in ((1, "dog"), (3, "cup"), (90, "kite"))]
    images = [{"id": 7 * number, "width": 300, "height": 300} for number in range(1, num_images + 1)]
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image in images:
        for _ in range(rng.randint(0, 7)):
            w, h = rng.uniform(8, 150), rng.uniform(8, 150)
            box = [rng.uniform(0, 150), rng.uniform(0, 150), w, h]
            category = rng.choice((1, 3))
            crowd = int(rng.random() < 0.15)
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image["id"], "category_id": category, "bbox": box}
                | {"area": w * h * rng.uniform(0.4, 1.0), "iscrowd": crowd}
            )
            for _ in range(rng.choice((0, 1, 1, 2, 3))):
                moved = [v + rng.gauss(0, 6) for v in box[:2]] + [max(1.0, v + rng.gauss(0, 6)) for v in box[2:]]
                named = category if rng.random() < 0.9 else 90
                results.append({"image_id": image["id"], "category_id": named, "bbox": moved})
        results.append({"image_id": image["id"], "category_id": 1, "bbox": [200.0, 200.0, 40.0, 40.0]})
    for result in results:
        result["score"] = round(rng.random(), 1)
    return results, {"info": {}, "images": images, "categories": categories, "annotations": annotations}


def by_pycocotools(results: list[dict[str, Any]], truth: dict[str, Any]) -> tuple[dict[str, float | None], Any]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        reference.dataset = json.loads(json.dumps(truth))
        reference.createIndex()
        evaluation = COCOeval(reference, reference.loadRes(json.loads(json.dumps(results))), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    stats = [None if value < 0 else float(value) for value in evaluation.stats]
    return dict(zip(COCO_NAMES, stats, strict=True)), evaluation


def written(folder: Path, results: Any, truth: Any) -> tuple[Path, Path]:
    paths = folder / "results.json", folder / "instances.json"
    for path, value in zip(paths, (results, truth), strict=True):
        path.write_text(json.dumps(value), encoding="utf-8")
    return paths


def test_coco_figures_are_the_published_ones(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    if DATA.is_dir():
        results = DATA / "det_reference" / "cocoapi_results.json"
        references, expected = DATA / "det_reference" / "gts" / "sampled_gts_bbox_area.json", PUBLISHED_AP
    else:
        made_up = made_up_coco(0)
        (results, references), expected = written(tmp_path, *made_up), by_pycocotools(*made_up)[0]
    scores = score_coco_files(results, references)
    assert {name: scores[name] for name in COCO_NAMES} == pytest.approx(expected, abs=1e-6)
    assert scores["scores"] is True
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("seed", range(4))
def test_figures_and_matches_equal_those_of_pycocotools(seed: int, tmp_path: Path) -> None:
    results, truth = made_up_coco(seed)
    scores = score_coco_files(*written(tmp_path, results, truth))
    expected, evaluation = by_pycocotools(results, truth)
    assert {name: scores[name] for name in COCO_NAMES} == pytest.approx(expected, abs=1e-9)
    assert scores["categories"]["kite"]["AP50"] is None  # never annotated: nothing to measure
    precision = evaluation.eval["precision"][0, :, 0, 0, -1]
    assert scores["categories"]["dog"]["AP50"] == pytest.approx(precision.mean(), abs=1e-9)

    everywhere = [e for e in evaluation.evalImgs if e and e["aRng"] == [0, 1e10]]
    counted = [(e["dtMatches"][0] > 0, ~e["dtIgnore"][0].astype(bool)) for e in everywhere]
    assert scores["F1@0.5"] == pytest.approx(
        2
        * sum(int((hit & counts).sum()) for hit, counts in counted)
        / (scores["true_boxes"] + sum(int(counts.sum()) for _, counts in counted))
    )


def test_an_annotation_of_id_zero_is_matched_as_any_other(tmp_path: Path) -> None:
    """pycocotools marks "not matched" with 0, so that a hit on annotation 0 counts as a miss there."""
    truth = {
        "images": [{"id": 1, "width": 9, "height": 9}],
        "categories": [{"id": 1, "name": "dog"}],
        "annotations": [{"id": 0, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9]}],
    }
    results = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "score": 0.5}]
    scores = score_coco_files(*written(tmp_path, results, truth))
    assert (scores["AP"], scores["F1@0.5"]) == (pytest.approx(1.0), 1.0)


def test_a_results_file_without_scores_says_so_and_an_unknown_category_is_a_false_positive(tmp_path: Path) -> None:
    results, truth = made_up_coco(1)
    plain = score_coco_files(*written(tmp_path, results, truth))
    del results[0]["score"]
    results.append({"image_id": 7, "category_id": 12345, "bbox": [0, 0, 9, 9], "score": 0.9})
    scores = score_coco_files(*written(tmp_path, results, truth))
    assert scores["scores"] is False
    assert scores["unknown_labels"] == {"n": 1, "labels": {"12345": 1}}
    assert scores["predicted_boxes"] == plain["predicted_boxes"] + 1
    assert scores["F1@0.5"] < plain["F1@0.5"]


def test_no_results_at_all_score_zero_and_no_truth_is_not_measured(tmp_path: Path) -> None:
    _, truth = made_up_coco(2)
    nothing_found = score_coco_files(*written(tmp_path, [], truth))
    assert (nothing_found["AP"], nothing_found["recall@0.5"]) == (0.0, 0.0)
    assert (nothing_found["precision@0.5"], nothing_found["scores"]) == (None, None)
    nothing_there = score_coco_files(*written(tmp_path, [], {**truth, "annotations": []}))
    assert {nothing_there[name] for name in (*COCO_NAMES, "F1@0.5")} == {None}
    rates = {"n": 15, "rejection_rate": None, "false_alarm_rate": 0.0}
    assert nothing_there["negatives"].items() >= rates.items()


BOX = {"image_id": 7, "category_id": 1, "bbox": [0, 0, 9, 9], "score": 1}


@pytest.mark.parametrize(
    ("results", "truth", "message"),
    [
        pytest.param({"boxes": []}, made_up_coco(0)[1], "one list of objects", id="results are an object"),
        pytest.param([BOX], [], "no COCO instances file", id="references are a list"),
        pytest.param([BOX], {"images": []}, "needs the lists", id="references without categories"),
        pytest.param([BOX, {**BOX, "image_id": 8}], made_up_coco(0)[1], "entry 2.*image_id 8", id="another picture"),
        pytest.param([{**BOX, "bbox": [1, 2, 3]}], made_up_coco(0)[1], "entry 1: not a box", id="three numbers"),
        pytest.param([{**BOX, "bbox": [1, 2, 3, float("nan")]}], made_up_coco(0)[1], "four finite", id="not a number"),
        pytest.param([{"image_id": 7}], made_up_coco(0)[1], "category_id", id="a result without a category"),
        pytest.param(["x"], made_up_coco(0)[1], "entry 1: not a box", id="a result that is text"),
    ],
)
def test_files_that_do_not_fit_are_named(results: Any, truth: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        score_coco_files(*written(tmp_path, results, truth))


def detection_sample(id: str, *objects: SceneObject, categories: tuple[str, ...] = ("Dog", "cup")) -> Sample:
    return Sample(id, "detection", f"images/aa/{id}.jpg", 300, 300, objects=objects, categories=categories)


def detected(sample: Sample, *objects: Detected, status: str = "ok") -> Prediction:
    return Prediction(Question.of(sample, Path()), status, objects, "", "")  # type: ignore[arg-type]


ONE = (0.0, 0.0, 40.0, 40.0)
TWO = (100.0, 100.0, 180.0, 180.0)


def test_the_truth_itself_scores_one_whatever_the_case_of_its_labels() -> None:
    sample = detection_sample("a", SceneObject(ONE, "dog"), SceneObject(TWO, "cup "))
    scores = score_detection([sample], [detected(sample, Detected(ONE, " DOG", None), Detected(TWO, "Cup", None))])
    assert (scores["AP"], scores["AP50"], scores["F1@0.5"]) == (pytest.approx(1), pytest.approx(1), 1.0)
    assert scores["scores"] is False
    assert [*scores["categories"]] == ["cup", "Dog"]
    assert scores["unknown_labels"]["n"] == 0


def test_labels_that_nobody_asked_for_are_counted_and_cost_precision() -> None:
    sample = detection_sample("a", SceneObject(ONE, "dog"))
    scores = score_detection([sample], [detected(sample, Detected(ONE, "dog", 0.9), Detected(TWO, "wolf", 0.8))])
    assert scores["unknown_labels"] == {"n": 1, "labels": {"wolf": 1}}
    assert (scores["AP"], scores["precision@0.5"]) == (pytest.approx(1.0), 0.5)


def test_boxes_of_an_unreadable_answer_do_not_count() -> None:
    sample = detection_sample("a", SceneObject(ONE, "dog"))
    scores = score_detection([sample], [detected(sample, Detected(ONE, "dog", 0.9), status="unparsable")])
    assert (scores["AP"], scores["F1@0.5"], scores["predicted_boxes"]) == (0.0, 0.0, 0)


def test_what_falls_on_a_crowd_is_neither_right_nor_wrong() -> None:
    sample = detection_sample("a", SceneObject(ONE, "dog"), SceneObject(TWO, "dog", crowd=True))
    inside = (110.0, 110.0, 130.0, 130.0)
    found = [Detected(ONE, "dog", 0.9), Detected(inside, "dog", 0.8), Detected(inside, "dog", 0.7)]
    scores = score_detection([sample], [detected(sample, *found)])
    assert (scores["AP"], scores["F1@0.5"]) == (pytest.approx(1.0), 1.0)
    assert (scores["true_boxes"], scores["predicted_boxes"]) == (1, 1)


def test_pictures_without_anything_have_figures_of_their_own() -> None:
    samples = [detection_sample(id) for id in "abcd"]
    answers = [
        detected(samples[0], status="empty"),
        detected(samples[1], Detected(ONE, "dog", None)),
        detected(samples[2], status="unparsable"),
        detected(samples[3], Detected(ONE, "wolf", None)),
    ]
    negatives = score_detection(samples, answers)["negatives"]
    assert negatives.items() >= {"n": 4, "rejection_rate": 0.25, "false_alarm_rate": 0.5}.items()


def test_the_order_of_the_samples_does_not_decide_between_equal_scores() -> None:
    rng = random.Random(5)
    samples = [detection_sample(str(n), SceneObject(ONE, "dog")) for n in range(12)]
    answers = [detected(s, Detected(rng.choice((ONE, TWO)), "dog", None)) for s in samples]
    first = score_detection(samples, answers)
    for _ in range(3):
        order = rng.sample(range(12), 12)
        assert score_detection([samples[n] for n in order], [answers[n] for n in order]) == first


def test_caption_figures_are_the_published_ones(capfd: pytest.CaptureFixture[str]) -> None:
    path = DATA / "caption_reference" / "coco_fakecap_val2017_subset.json"
    if path.is_file():
        data = json.loads(path.read_text(encoding="utf-8"))
        scores = score_captions(data["references_ptb"], data["candidates_ptb"])
        assert {name: scores[name] for name in PUBLISHED_CAPTIONS} == pytest.approx(PUBLISHED_CAPTIONS, abs=1e-6)
        # Raw text through our tokenizer: what the PTB tokenizer made of these captions.
        assert score_captions(data["references"], data["candidates"]) == scores
    else:
        references = {"a": ["A red dog on the grass."], "b": ["Two cups stand near a window."]}
        scores = score_captions(references, {"a": "a red dog on the grass", "b": "two cups stand near a window"})
        best = {"Bleu_4": 1.0, "ROUGE_L": 1.0, "CIDEr": 10.0}
        assert {name: scores[name] for name in best} == pytest.approx(best, abs=1e-6)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        pytest.param('A dog, "isn\'t" it?', "a dog is n't it", id="punctuation and a contraction"),
        pytest.param("The dog’s T-shirt costs 3.50", "the dog 's t-shirt costs 3.50", id="possessive, hyphen, number"),
        pytest.param("it is n't the dog 's", "it is n't the dog 's", id="already tokenized"),
        pytest.param("一只红色的狗。", "一 只 红 色 的 狗", id="chinese signs are words"),
        pytest.param("... -- !", "", id="no word"),
    ],
)
def test_captions_are_cut_into_words(text: str, tokens: str) -> None:
    assert tokenize(text) == tokens.split()


def test_an_empty_caption_scores_nothing_and_a_caption_without_references_is_counted() -> None:
    scores = score_captions({"a": ["a dog"], "b": ["a cup"], "c": [], "d": ["..."]}, dict.fromkeys("abcd", ""))
    assert (scores["scored"], scores["without_references"]) == (2, 2)
    assert scores["Bleu_1"] == pytest.approx(0.0, abs=1e-6)
    assert (scores["ROUGE_L"], scores["CIDEr"]) == (0.0, 0.0)


def test_cider_of_one_caption_is_not_measured() -> None:
    """All its words are in all of the references, so that CIDEr would be 0 for a perfect caption."""
    scores = score_captions({"a": ["a red dog on grass"]}, {"a": "a red dog on grass"})
    assert (scores["CIDEr"], scores["ROUGE_L"]) == (None, pytest.approx(1.0))


def test_without_the_extra_the_figures_are_none_and_the_reason_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pycocoevalcap", "pycocoevalcap.bleu", "pycocoevalcap.bleu.bleu"):
        monkeypatch.setitem(sys.modules, name, None)
    scores = score_captions({"a": ["a dog"]}, {"a": "a dog"})
    assert scores["Bleu_4"] is scores["CIDEr"] is None
    assert "--extra captions" in scores["note"]
