"""Average precision from boxes ranked by score, with its interval over pictures.

COCO's rules at every size and at most 100 boxes a question, so that AP equals COCOeval's (tests/test_ranking.py); drawn
again for a bootstrap by weighting pictures, which COCOeval cannot do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from qwenft.core.boxes import iou
from qwenft.evaluate.bootstrap import Interval, interval_of
from qwenft.evaluate.scene import FoundBox, Scene, TrueBox, overlap, to_xyxy

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Flags = NDArray[np.bool_]

THRESHOLDS: Final = tuple(0.5 + 0.05 * number for number in range(10))
"""IoU at which a box counts as found: AP is their mean, AP50 the first."""
_MAX_BOXES: Final = 100
_NUM_RECALLS: Final = 101
RESAMPLES: Final = 200
"""Fewer than elsewhere: each draw ranks all boxes again."""
NAMES: Final = ("AP", "AP50")
_CHUNK: Final = 50


@dataclass(frozen=True, slots=True, eq=False)
class _Category:
    """All boxes of one category, the surest first.  T thresholds, B boxes, P pictures."""

    scores: "Floats"
    """(B,)"""
    picture: "NDArray[np.int64]"
    """(B,)"""
    hit: "Flags"
    """(T, B)"""
    miss: "Flags"
    """(T, B); neither hit nor miss: it falls on a crowd."""
    num_true: "Floats"
    """(P,)"""


@dataclass(frozen=True, eq=False)
class Ranked:
    """The ranked boxes of all categories."""

    categories: tuple[_Category, ...]
    num_pictures: int

    @cached_property
    def average_precision(self) -> tuple[float | None, float | None]:
        """AP and AP50; None where nothing is there to be found."""
        import numpy as np

        found = self._drawn(np.ones((self.num_pictures, 1)))
        values = [float(v) for v in found[:, 0]]
        return (None, None) if values[0] != values[0] else (values[0], values[1])  # NaN

    def intervals(self) -> dict[str, Interval]:
        """AP and AP50 with their intervals over pictures."""
        return {
            name: interval_of(estimate, drawn, self.num_pictures)
            for name, estimate, drawn in zip(NAMES, self.average_precision, self._resampled, strict=True)
        }

    def minus(self, other: "Ranked") -> dict[str, Interval]:
        """How much higher AP and AP50 are here than there, both judged on the same drawn pictures."""
        drawn = self._resampled - other._resampled
        pairs = zip(NAMES, self.average_precision, other.average_precision, drawn, strict=True)
        return {
            name: interval_of(None if a is None or b is None else a - b, values, self.num_pictures)
            for name, a, b, values in pairs
        }

    def precision_recall(self) -> list[tuple[float, float]]:
        """(recall, precision) after each box at an IoU of 0.5, all categories in one ranking."""
        import numpy as np

        scores = np.concatenate([c.scores for c in self.categories] or [np.zeros(0)])
        total = sum(float(c.num_true.sum()) for c in self.categories)
        if not scores.size or not total:
            return []
        order = np.argsort(-scores, kind="stable")
        hit = np.concatenate([c.hit[0] for c in self.categories])[order].cumsum()
        miss = np.concatenate([c.miss[0] for c in self.categories])[order].cumsum()
        counted = hit + miss > 0
        points = zip(hit[counted] / total, hit[counted] / (hit + miss)[counted], strict=True)
        return [(round(float(recall), 5), round(float(precision), 5)) for recall, precision in points]

    def scores_of(self, *, hit: bool) -> list[float]:
        """The scores of all boxes that are right, or of those that are wrong, at an IoU of 0.5."""
        return [float(score) for c in self.categories for score in c.scores[c.hit[0] if hit else c.miss[0]]]

    @cached_property
    def _resampled(self) -> "Floats":
        """(AP and AP50, draws)."""
        import numpy as np

        if self.num_pictures < 2:
            return np.full((2, 0), np.nan)
        shares = np.full(self.num_pictures, 1 / self.num_pictures)
        weights = np.random.default_rng(0).multinomial(self.num_pictures, shares, size=RESAMPLES).T
        parts = [self._drawn(weights[:, at : at + _CHUNK].astype(float)) for at in range(0, RESAMPLES, _CHUNK)]
        return np.concatenate(parts, axis=1)

    def _drawn(self, weights: "Floats") -> "Floats":
        """AP and AP50 under weights of the pictures: (P, draws) -> (2, draws); NaN where nothing is there."""
        import numpy as np

        found = np.full((len(self.categories), 2, weights.shape[1]), np.nan)
        for number, category in enumerate(self.categories):
            precision = _precision(category, weights)
            found[number] = precision.mean(axis=0), precision[0]
        known = ~np.isnan(found)
        count = known.sum(axis=0)
        mean: Floats = np.where(known, found, 0.0).sum(axis=0) / np.where(count, count, np.nan)
        return mean


def rank_scenes(scenes: Sequence[Scene], pictures: Sequence[str], num_categories: int) -> Ranked:
    """Rank the boxes of scenes.  pictures: which one each scene is of; all scenes of a picture are drawn together.

    Between equal scores the earlier scene, then the earlier box comes first.
    """
    known = {picture: number for number, picture in enumerate(dict.fromkeys(pictures))}
    rows: list[list[tuple[float, int, Sequence[str]]]] = [[] for _ in range(num_categories)]
    num_true = [[0] * len(known) for _ in range(num_categories)]
    for scene, picture in zip(scenes, pictures, strict=True):
        met = {b.category for b in scene.true} | {b.category for b in scene.found if b.category is not None}
        for category in met:
            true = [box for box in scene.true if box.category == category]
            num_true[category][known[picture]] += sum(not box.crowd for box in true)
            found = sorted((b for b in scene.found if b.category == category), key=lambda b: -b.score)[:_MAX_BOXES]
            rows[category] += [
                (box.score, known[picture], verdicts) for box, verdicts in zip(found, _judged(found, true), strict=True)
            ]
    return Ranked(tuple(_category(*pair) for pair in zip(rows, num_true, strict=True)), len(known))


def _category(rows: Sequence[tuple[float, int, Sequence[str]]], num_true: Sequence[int]) -> _Category:
    import numpy as np

    ordered = sorted(rows, key=lambda row: -row[0])
    verdicts = np.array([list(row[2]) for row in ordered], dtype="U1").reshape(len(ordered), len(THRESHOLDS)).T
    return _Category(
        np.array([row[0] for row in ordered], dtype=float),
        np.array([row[1] for row in ordered], dtype=np.int64),
        verdicts == "h",
        verdicts == "m",
        np.array(num_true, dtype=float),
    )


def _judged(found: Sequence[FoundBox], true: Sequence[TrueBox]) -> list[str]:
    """Each box at each threshold: `h` hit, `m` miss, `c` on a crowd.  Source: pycocotools, COCOeval.evaluateImg."""
    boxes = [to_xyxy(box.box_xywh) for box in found]
    things = [to_xyxy(box.box_xywh) for box in true if not box.crowd]
    crowds = [to_xyxy(box.box_xywh) for box in true if box.crowd]
    overlaps = [[iou(box, thing) for thing in things] for box in boxes]
    on_crowd = [max((_share(box, crowd) for crowd in crowds), default=0.0) for box in boxes]
    columns = []
    for threshold in THRESHOLDS:
        free, column = set(range(len(things))), ""
        for own, crowd in zip(overlaps, on_crowd, strict=True):
            best = max(((own[number], number) for number in free if own[number] >= threshold), default=None)
            if best:
                free.remove(best[1])
            column += "h" if best else "c" if crowd >= threshold else "m"
        columns.append(column)
    return ["".join(verdicts) for verdicts in zip(*columns, strict=True)]


def _share(box_xyxy: tuple[float, float, float, float], crowd_xyxy: tuple[float, float, float, float]) -> float:
    own = overlap(box_xyxy, box_xyxy)
    return overlap(box_xyxy, crowd_xyxy) / own if own else 0.0


def _precision(category: _Category, weights: "Floats") -> "Floats":
    """Mean interpolated precision: (T, draws); NaN where a draw holds nothing of the category."""
    import numpy as np

    total = category.num_true @ weights
    found = np.zeros((len(THRESHOLDS), weights.shape[1]))
    recalls, offsets = np.linspace(0, 1, _NUM_RECALLS), 2.0 * np.arange(weights.shape[1])[None]
    drawn = weights[category.picture]
    for number in range(len(THRESHOLDS) if len(drawn) else 0):
        hits = (drawn * category.hit[number][:, None]).cumsum(axis=0)
        counted = hits + (drawn * category.miss[number][:, None]).cumsum(axis=0)
        precision = np.divide(hits, counted, out=np.zeros_like(hits), where=counted > 0)
        envelope = np.vstack([np.maximum.accumulate(precision[::-1])[::-1], np.zeros((1, weights.shape[1]))])
        # One search for all draws: each draw's recalls are moved to a range of their own (the first one's stay exact).
        reached = np.searchsorted(
            (hits / np.where(total, total, 1.0) + offsets).T.ravel(), (recalls + offsets.T).ravel()
        ).reshape(-1, _NUM_RECALLS) - np.arange(len(total))[:, None] * len(hits)
        found[number] = envelope[reached.clip(0, len(hits)), np.arange(len(total))[:, None]].mean(axis=1)
    found[:, total == 0] = np.nan
    return found


def ranking_figures(by_score: Ranked, all_scores_one: Ranked) -> dict[str, Any]:
    """What the scores are worth: AP by them, AP with every score 1.0, and the difference with its interval."""
    difference = by_score.minus(all_scores_one)
    pairs = zip(NAMES, by_score.average_precision, all_scores_one.average_precision, strict=True)
    return {
        name: {"by_score": ours, "all_scores_one": theirs, "difference": difference[name].to_json()}
        for name, ours, theirs in pairs
    }
