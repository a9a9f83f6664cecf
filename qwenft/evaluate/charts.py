"""Charts of the report: numbers in, inline SVG out, coloured by the page's own style; pure.

Every chart is a string of SVG without script, address or style of its own: classes name the colours (`report.css`), so
that one chart serves the light and the dark page and the printed one.  Texts are escaped here.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final

Points = Sequence[tuple[float, float]]

WIDTH: Final = 360
HEIGHT: Final = 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 42, 12, 8, 30
_STRIP_WIDTH: Final = 150
_STRIP_HEIGHT: Final = 16


@dataclass(frozen=True, slots=True)
class Series:
    """One line or one row of bars."""

    name: str
    colour: str
    """A class of report.css: `ours`, `base`, `hit`, `miss`, `plain`."""
    points: Points = ()
    """Of a line: (x, y) pairs."""
    values: Sequence[float] = ()
    """Of a histogram: what is counted."""


@dataclass(frozen=True, slots=True)
class _Frame:
    """The plotting area: data coordinates to px of the drawing."""

    x0: float
    x1: float
    y0: float
    y1: float

    def x(self, value: float) -> float:
        return round(_LEFT + (value - self.x0) / ((self.x1 - self.x0) or 1) * (WIDTH - _LEFT - _RIGHT), 1)

    def y(self, value: float) -> float:
        return round(HEIGHT - _BOTTOM - (value - self.y0) / ((self.y1 - self.y0) or 1) * (HEIGHT - _TOP - _BOTTOM), 1)


def line_chart(
    series: Sequence[Series],
    *,
    x_name: str,
    y_name: str,
    unit_y: bool = False,
    unit_x: bool = False,
    dots: bool = False,
    mark_x: float | None = None,
) -> str:
    """Lines over a common x axis.  unit_x, unit_y: the axis is [0, 1].  mark_x: a place on it that is marked, if it is
    there.  Empty where no series has a point.
    """
    points = [point for item in series for point in item.points]
    if not points:
        return ""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    frame = _Frame(
        0.0 if unit_x else min(xs),
        1.0 if unit_x else max(xs),
        0.0 if unit_y else min(0.0, *ys),
        1.0 if unit_y else max(ys) * 1.05 or 1.0,
    )
    parts = [_axes(frame, x_name, y_name)]
    if mark_x is not None and frame.x0 <= mark_x <= frame.x1:
        line = f"M{frame.x(mark_x)},{_TOP}V{HEIGHT - _BOTTOM}"
        parts.append(f'<path class="mark" d="{line}"><title>{mark_x:.4f}</title></path>')
    for item in series:
        pairs = thinned(item.points)
        path = " ".join(f"{frame.x(x)},{frame.y(y)}" for x, y in pairs)
        parts.append(f'<polyline class="line {item.colour}" points="{path}"/>')
        if dots:
            parts += [
                f'<circle class="dot {item.colour}" cx="{frame.x(x)}" cy="{frame.y(y)}" r="3">'
                f"<title>{escape(item.name)}: {_tick(x)}, {y:.3f}</title></circle>"
                for x, y in pairs
            ]
    return _svg("".join(parts), f"{y_name} over {x_name}: {', '.join(item.name for item in series)}")


def thinned(points: Points, most: int = 400) -> list[tuple[float, float]]:
    """At most about `most` points, evenly chosen; the last one stays."""
    step = max(1, math.ceil(len(points) / most))
    return [*points[:-1:step], *points[-1:]]


def histogram(series: Sequence[Series], *, x_name: str, y_name: str, bins: int = 20, stacked: bool = False) -> str:
    """How often each of `bins` equal parts of [0, 1] occurs; several series beside each other or stacked."""
    counts = [_counted(item.values, bins) for item in series]
    if not any(sum(row) for row in counts):
        return ""
    tops = [sum(column) if stacked else max(column) for column in zip(*counts, strict=True)]
    frame = _Frame(0.0, 1.0, 0.0, float(max(tops)))
    parts = [_axes(frame, x_name, y_name)]
    part = 1 / bins
    for number in range(bins):
        below = 0
        for place, (item, row) in enumerate(zip(series, counts, strict=True)):
            share = part if stacked else part / len(series)
            left = frame.x(number * part + (0 if stacked else place * share)) + 0.5
            width = max(1.0, round(frame.x(share) - frame.x(0) - 1, 1))
            top, bottom = frame.y(below + row[number]), frame.y(below)
            below += row[number] if stacked else 0
            if row[number]:
                parts.append(
                    f'<rect class="bar {item.colour}" x="{left}" y="{top}" width="{width}" '
                    f'height="{round(bottom - top, 1)}"><title>{escape(item.name)}, {number * part:.2f} to '
                    f"{(number + 1) * part:.2f}: {row[number]:,}</title></rect>"
                )
    return _svg("".join(parts), f"{y_name} by {x_name}: {', '.join(item.name for item in series)}")


def strip(rows: Iterable[tuple[str, float | None, Mapping[str, Any] | None]]) -> str:
    """A small [0, 1] scale for a table cell: a dot for each figure with its interval as a line, one below the other.

    rows: colour class, figure, interval (`low`, `high`) or None.  Empty where nothing was measured or one is over 1.
    """
    found = [(colour, value, interval) for colour, value, interval in rows if value is not None]
    if not found or max(value for _, value, _ in found) > 1:
        return ""
    height = _STRIP_HEIGHT * len(found) / 2 + 6
    parts = [f'<path class="grid" d="{" ".join(f"M{_at(v)},1V{height - 1:g}" for v in (0, 0.25, 0.5, 0.75, 1))}"/>']
    for number, (colour, value, interval) in enumerate(found):
        y = 7 + number * _STRIP_HEIGHT / 2
        if interval and interval["low"] is not None:
            left, right = _at(interval["low"]), _at(interval["high"])
            parts.append(f'<line class="line {colour}" x1="{left}" x2="{right}" y1="{y}" y2="{y}"/>')
        parts.append(f'<circle class="dot {colour}" cx="{_at(value)}" cy="{y}" r="3"/>')
    return (
        f'<svg class="strip" viewBox="0 0 {_STRIP_WIDTH} {height:g}" width="{_STRIP_WIDTH}" height="{height:g}" '
        f'aria-hidden="true">{"".join(parts)}</svg>'
    )


def _at(value: float) -> float:
    return round(4 + min(1.0, max(0.0, value)) * (_STRIP_WIDTH - 8), 1)


def _counted(values: Sequence[float], bins: int) -> list[int]:
    counts = [0] * bins
    for value in values:
        counts[min(bins - 1, max(0, int(value * bins)))] += 1
    return counts


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers between two ends, `most` or fewer.

    >>> ticks(0, 1), ticks(0, 37)
    ([0.0, 0.25, 0.5, 0.75, 1.0], [0.0, 10.0, 20.0, 30.0])
    """
    span = high - low
    if not span > 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if span / (m * power) <= most - 1 + 1e-9 or m == 10)
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 10) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _tick(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) >= 10 else f"{value:g}"


def _axes(frame: _Frame, x_name: str, y_name: str) -> str:
    parts = []
    for value in ticks(frame.y0, frame.y1):
        y = frame.y(value)
        parts.append(f'<path class="grid" d="M{_LEFT},{y}H{WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{y + 3.5}" text-anchor="end">{_tick(value)}</text>')
    for value in ticks(frame.x0, frame.x1):
        parts.append(f'<text x="{frame.x(value)}" y="{HEIGHT - 16}" text-anchor="middle">{_tick(value)}</text>')
    parts.append(f'<path class="axis" d="M{_LEFT},{HEIGHT - _BOTTOM}H{WIDTH - _RIGHT}"/>')
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(f'<text class="name" x="{middle}" y="{HEIGHT - 3}" text-anchor="middle">{escape(x_name)}</text>')
    y = (HEIGHT - _BOTTOM + _TOP) / 2
    parts.append(
        f'<text class="name" transform="translate(10 {y}) rotate(-90)" text-anchor="middle">{escape(y_name)}</text>'
    )
    return "".join(parts)


def _svg(body: str, label: str) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">'
        f"<title>{escape(label)}</title>{body}</svg>"
    )
