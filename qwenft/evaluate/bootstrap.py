"""Intervals: resampling whole pictures, for one score and for the difference of two.

All samples of a picture are drawn together, since answers about one picture are not independent.  The interval is
the percentile interval (Efron and Tibshirani 1993, chapter 13) and always holds the estimate itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

LEVEL: Final = 0.95
RESAMPLES: Final = 2000
_CHUNK_CELLS: Final = 1_000_000
"""Pictures x resamples drawn at once: bounds the memory at some tens of MB."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with its 95 % interval."""

    estimate: float | None
    low: float | None
    """None where it cannot be measured: under two pictures."""
    high: float | None
    num_pictures: int

    def to_json(self) -> dict[str, Any]:
        """As it stands in metrics.json."""
        return {"estimate": self.estimate, "low": self.low, "high": self.high, "pictures": self.num_pictures}


def score_interval(
    pictures: Sequence[str],
    values: Sequence[float],
    weights: Sequence[float] | None = None,
    *,
    bounded: bool = True,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Interval of `sum(values) / sum(weights)`, one value a sample; without weights that is the mean.

    pictures: which picture each sample belongs to.  Values that are all 0 or all 1 (a rate of 0 or 100 %) get the exact
    binomial bound over pictures (Clopper and Pearson 1934), since resampling would claim certainty; `bounded` False:
    the values can be over 1.
    Raises ValueError if the lengths differ.
    """
    sums = _per_picture(pictures, values, weights or [1.0] * len(values))
    estimate, num_pictures = _ratio(sums), sums.shape[1]
    if estimate is None or num_pictures < 2:
        return Interval(estimate, None, None, num_pictures)
    bound = ((1 - LEVEL) / 2) ** (1 / num_pictures)
    if bounded and weights is None and set(values) == {1.0}:
        return Interval(estimate, bound, 1.0, num_pictures)
    if bounded and weights is None and set(values) == {0.0}:
        return Interval(estimate, 0.0, 1 - bound, num_pictures)
    numerators, denominators = _resampled(sums, resamples, seed)
    return interval_of(estimate, _safe_ratio(numerators, denominators), num_pictures)


def paired_difference(
    pictures: Sequence[str],
    ours: Sequence[float],
    theirs: Sequence[float],
    *,
    our_weights: Sequence[float] | None = None,
    their_weights: Sequence[float] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Interval of how much higher we score than they do, both judged on the same drawn pictures.

    ours, theirs: one value a sample, in the same order; a score is `sum(values) / sum(weights)`, without weights the
    mean.  Two equal predictors give exactly [0, 0].  Raises ValueError if the lengths differ.
    """
    ones = [1.0] * len(ours)
    sums = _per_picture(pictures, ours, our_weights or ones, theirs, their_weights or ones)
    our_score, their_score = _ratio(sums[:2]), _ratio(sums[2:])
    num_pictures = sums.shape[1]
    if our_score is None or their_score is None:
        return Interval(None, None, None, num_pictures)
    estimate = our_score - their_score
    if num_pictures < 2:
        return Interval(estimate, None, None, num_pictures)
    if our_weights is None and their_weights is None:
        import numpy as np

        # Half the work where both share one denominator.
        difference, weight = _resampled(np.stack([sums[0] - sums[2], sums[1]]), resamples, seed)
        return interval_of(estimate, _safe_ratio(difference, weight), num_pictures)
    mine, my_weight, other, other_weight = _resampled(sums, resamples, seed)
    drawn = _safe_ratio(mine, my_weight) - _safe_ratio(other, other_weight)
    return interval_of(estimate, drawn, num_pictures)


def _per_picture(pictures: Sequence[str], *columns: Sequence[float]) -> "Floats":
    """Sum each column by picture: (columns, pictures)."""
    import numpy as np

    if any(len(column) != len(pictures) for column in columns):
        raise ValueError(f"lengths differ: {len(pictures)} pictures, columns {[len(column) for column in columns]}")
    if not pictures:
        return np.zeros((len(columns), 0))
    _, index = np.unique(np.asarray(pictures), return_inverse=True)
    return np.stack([np.bincount(index, weights=np.asarray(column, dtype=float)) for column in columns])


def _ratio(sums: "Floats") -> float | None:
    whole = float(sums[1].sum())
    return float(sums[0].sum()) / whole if whole > 0 else None


def _safe_ratio(numerators: "Floats", denominators: "Floats") -> "Floats":
    """NaN where a draw holds nothing to measure; `_interval` leaves those draws out."""
    import numpy as np

    return np.divide(numerators, denominators, out=np.full_like(numerators, np.nan), where=denominators > 0)


def _resampled(sums: "Floats", resamples: int, seed: int) -> "Floats":
    """Draw as many pictures as there are, with replacement, `resamples` times: (columns, resamples) sums."""
    import numpy as np

    generator = np.random.default_rng(seed)
    num_pictures = sums.shape[1]
    drawn = np.empty((len(sums), resamples))
    rows = max(1, _CHUNK_CELLS // num_pictures)
    for start in range(0, resamples, rows):
        stop = min(start + rows, resamples)
        picked = generator.integers(num_pictures, size=(stop - start, num_pictures), dtype=np.int32)
        for column, values in enumerate(sums):
            drawn[column, start:stop] = values[picked].sum(axis=1)
    return drawn


def interval_of(estimate: float | None, drawn: "Floats", num_pictures: int) -> Interval:
    """The percentile interval of a figure from its resampled values (NaN: nothing was measured in that draw)."""
    import numpy as np

    measured = drawn[~np.isnan(drawn)]
    if estimate is None or not measured.size:
        return Interval(estimate, None, None, num_pictures)
    low, high = (float(v) for v in np.quantile(measured, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    return Interval(estimate, min(low, estimate), max(high, estimate), num_pictures)
