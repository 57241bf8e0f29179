"""Describe how values are distributed, exactly, and draw that as a histogram with axes, median and quartiles."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.pages.html import escape_text, write_number

_BINS = 40
# Beyond so many times the upper quartile's distance from the median, values aren't drawn one by one: the rest would be a line.
_TAIL_SHARE, _TAIL_REACH = 99.0, 1.5
# Of the drawing, in its own units.
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 420, 170, 46, 34, 8
_TICKS = 5


class Distribution(NamedTuple):
    """How values are distributed.

    Attributes:
        n_values: How many values there are.
        missing: How many more are no number.
        least: The least value.
        quartiles: Lower quartile, median, upper quartile, interpolated linearly.
        greatest: The greatest value.
        edges: Of the histogram's bins, ascending.
        bins: How many values lie in each.
        beyond: How many values are greater than the last edge.
    """

    n_values: int
    missing: int
    least: float
    quartiles: tuple[float, float, float]
    greatest: float
    edges: NDArray[np.float64]
    bins: NDArray[np.int64]
    beyond: int


def describe_values(values: NDArray[Any]) -> Distribution | None:
    """Describe values, all of them.

    Args:
        values: (n,) of any numeric type; NaN and infinity are counted, and left out.

    Returns:
        Their distribution; None where no value is a number.

    Example:
        >>> found = describe_values(np.array([4.0, 1.0, 2.0, np.nan, 3.0]))
        >>> found.n_values, found.missing, found.quartiles
        (4, 1, (1.75, 2.5, 3.25))
    """
    known = np.asarray(values, np.float64)
    known = known[np.isfinite(known)]
    if not known.size:
        return None
    low, first, median, third, most, high = np.percentile(known, (0, 25, 50, 75, _TAIL_SHARE, 100)).tolist()
    # A few giants would press all others into one bar.
    end = most if high - low > _TAIL_REACH * (most - low) > 0 else high
    if end <= low:
        low, end = low - 0.5, low + 0.5
    bins, edges = np.histogram(known, bins=_BINS, range=(low, end))
    return Distribution(
        known.size,
        values.size - known.size,
        min(low, first),
        (first, median, third),
        high,
        edges,
        bins,
        int(known.size - bins.sum()),
    )


def draw_histogram(found: Distribution, name: str, unit: str) -> str:
    """Draw a histogram as a figure: its values' unit below, how many objects beside, the middle half shaded, the median a line.

    Args:
        found: The distribution.
        name: What was measured.
        unit: Of the values; empty = they have none.
    """
    low, high, top = float(found.edges[0]), float(found.edges[-1]), int(found.bins.max())
    width, height = _WIDTH - _LEFT - 8, _HEIGHT - _BOTTOM - _TOP

    def place(value: float) -> float:
        return _LEFT + width * (min(max(value, low), high) - low) / (high - low)

    step, base = width / found.bins.size, _TOP + height
    bars = "".join(
        f'<rect x="{_LEFT + step * at:.1f}" y="{base - height * count / top:.1f}" width="{step - 0.8:.1f}" '
        f'height="{height * count / top:.1f}"/>'
        for at, count in enumerate(found.bins.tolist())
        if count
    )
    first, median, third = found.quartiles
    ticks = "".join(
        f'<path d="M{place(value):.1f} {base}v4"/><text x="{place(value):.1f}" y="{base + 16}" text-anchor="middle">'
        f"{write_number(value)}</text>"
        for value in _find_ticks(low, high)
    )
    label = f"{name}{f', {unit}' if unit else ''}"
    return (
        f'<figure class="chart"><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape_text(label)}">'
        f'<rect class="band" x="{place(first):.1f}" y="{_TOP}" width="{place(third) - place(first):.1f}" height="{height}"/>'
        f'<g class="bars">{bars}</g>'
        f'<g class="axis"><path d="M{_LEFT} {_TOP}V{base}H{_LEFT + width}"/>{ticks}'
        f'<path d="M{_LEFT} {_TOP}h-4"/><text x="{_LEFT - 7}" y="{_TOP + 8}" text-anchor="end">{write_number(top)}</text>'
        f'<text x="{_LEFT + width}" y="{_HEIGHT - 3}" text-anchor="end">{escape_text(label)}</text></g>'
        f'<path class="median" d="M{place(median):.1f} {_TOP}V{base}"/></svg>'
        f"<figcaption>{_caption(found, unit)}</figcaption></figure>"
    )


def _caption(found: Distribution, unit: str) -> str:
    first, median, third = map(write_number, found.quartiles)
    words = [f"median <b>{median}</b> {escape_text(unit)}".rstrip(), f"quartiles {first} to {third}"]
    words.append(f"range {write_number(found.least)} to {write_number(found.greatest)}")
    if found.beyond:
        words.append(f"{found.beyond:,} beyond {write_number(float(found.edges[-1]))} not drawn")
    if found.missing:
        words.append(f"{found.missing:,} without a value")
    return ", ".join(words)


def _find_ticks(low: float, high: float) -> list[float]:
    """Find round numbers inside a range.

    Example:
        >>> _find_ticks(3, 98)
        [20.0, 40.0, 60.0, 80.0]
    """
    rough = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [round(at * step, 12) for at in range(math.ceil(low / step), math.floor(high / step) + 1)]
