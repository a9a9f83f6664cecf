"""What is absent and what is there: rejections and false alarms by kind of negative, and what is still found; pure.

A model that never answers a box rejects everything, and one that always does finds everything: rejection (of what is
absent) and discrimination (what is there is still found) mean something side by side only.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from qwenft.core.samples import Sample
from qwenft.evaluate.bootstrap import RESAMPLES, Interval, paired_difference, score_interval

SOURCE: Final = "source"
"""The kind of a negative that the data set itself holds; the others are those of docs/negatives.md."""
_KIND_RESAMPLES: Final = 1000


def share(part: float, whole: float) -> float | None:
    """The part of a whole, None where there is no whole."""
    return part / whole if whole else None


def kind_of(sample: Sample) -> str:
    """Which kind of negative a sample is: what `prepare --negatives` made it, or SOURCE; empty: something is there."""
    return "" if sample.objects else sample.negative or SOURCE


def of_kind(kind: str) -> str:
    """What the rejection rate of one kind of negative is called beside the figures of all.

    >>> of_kind("absent_category")
    'rejection_rate: absent_category'
    """
    return f"rejection_rate: {kind}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one answer says about whether anything is there."""

    picture: str
    kind: str
    """As of `kind_of`."""
    rejected: bool | None
    """The model said that there is none; None: that cannot be known."""
    alarmed: bool
    """A box was answered.  An answer that could not be read is neither rejected nor alarmed."""
    found: bool
    """A box has an IoU of 0.5 or more with something that is there."""


Rate = Callable[[Verdict], bool | None]
_RATES: Final[Mapping[str, Rate]] = {
    "rejection_rate": lambda verdict: verdict.rejected,
    "false_alarm_rate": lambda verdict: verdict.alarmed,
}


def negative_figures(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Rates of the negatives among the answers, all of them and by kind, each with its interval over pictures.

    Returns {"n", "rejection_rate", "false_alarm_rate", "intervals": …, "kinds": {kind: the same and "pictures"}}; the
    most frequent kind first.
    """
    kinds = Counter(verdict.kind for verdict in verdicts if verdict.kind)
    order = sorted(kinds, key=lambda kind: (-kinds[kind], kind))
    return {
        **_figures([verdict for verdict in verdicts if verdict.kind], RESAMPLES),
        "kinds": {kind: _kind_figures([v for v in verdicts if v.kind == kind]) for kind in order},
    }


def _kind_figures(negatives: Sequence[Verdict]) -> dict[str, Any]:
    return {"pictures": len({verdict.picture for verdict in negatives}), **_figures(negatives, _KIND_RESAMPLES)}


def _figures(negatives: Sequence[Verdict], resamples: int) -> dict[str, Any]:
    intervals = {name: _interval(negatives, rate, resamples) for name, rate in _RATES.items()}
    return {
        "n": len(negatives),
        **{name: interval.estimate for name, interval in intervals.items()},
        "intervals": {name: interval.to_json() for name, interval in intervals.items()},
    }


def discrimination(verdicts: Sequence[Verdict]) -> Interval:
    """The share of questions about things that are there of which something was found."""
    return _interval([verdict for verdict in verdicts if not verdict.kind], lambda verdict: verdict.found, RESAMPLES)


def _interval(verdicts: Sequence[Verdict], rate: Rate, resamples: int) -> Interval:
    """Nothing is measured where an answer cannot be known."""
    values, pictures = [rate(verdict) for verdict in verdicts], [verdict.picture for verdict in verdicts]
    if None in values:
        return Interval(None, None, None, len(set(pictures)))
    return score_interval(pictures, [float(value or 0) for value in values], resamples=resamples)


def rejection_differences(ours: Sequence[Verdict], theirs: Sequence[Verdict]) -> dict[str, Interval]:
    """How much higher our rates are, paired: both rates of all negatives, the rejection of each kind, discrimination.

    Both in the order of the same samples.
    """
    groups: dict[str, tuple[Callable[[Verdict], bool], Rate]] = {
        **{name: (lambda verdict: bool(verdict.kind), rate) for name, rate in _RATES.items()},
        "discrimination": (lambda verdict: not verdict.kind, lambda verdict: verdict.found),
    }
    for kind in dict.fromkeys(verdict.kind for verdict in ours if verdict.kind):
        groups[of_kind(kind)] = (partial(_is_of, kind), _RATES["rejection_rate"])
    found = {}
    for name, (belongs, rate) in groups.items():
        mine, other = ([verdict for verdict in side if belongs(verdict)] for side in (ours, theirs))
        values = [[float(rate(verdict) or 0) for verdict in side] for side in (mine, other)]
        found[name] = paired_difference([verdict.picture for verdict in mine], *values)
    return found


def _is_of(kind: str, verdict: Verdict) -> bool:
    return verdict.kind == kind
