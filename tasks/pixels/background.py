"""Model the background of a slide: its colour, and what it looks like in one channel of a coarse image."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from slidesam.tasks.pixels.percentiles import nearest_percentiles

_SIGMAS = 5.0
_HALF_NORMAL = 0.6745  # median of a half normal distribution, in sigmas
_SAMPLE = 2**20  # pixels by which a distribution is judged
_SURROUNDINGS = 33  # side of the square over which a pixel's surroundings are averaged
_PEAK_SHARE = 0.02  # of the pixels: what is rarer is no background


def background_of(overview: NDArray[Any], *, is_bright: bool) -> NDArray[Any]:
    """Estimate the background colour of a slide, which its edge blocks are padded with and which stands where there are no data.

    Args:
        overview: (y, x, c) coarse image.
        is_bright: Whether background is bright (glass) rather than dark.

    Returns:
        (c,) in the overview's dtype: per channel the 99th percentile where it is bright, else the 1st.
    """
    percents = (99,) if is_bright else (1,)
    levels = [nearest_percentiles(overview[..., channel], percents)[0] for channel in range(overview.shape[2])]
    return np.asarray(levels, overview.dtype)


class Appearance(NamedTuple):
    """How background looks in a kind of image, as differences of pixel values and shares of pixels.

    Attributes:
        step: The smallest difference that means anything.
        least: Tissue stands out by more than this, however even the background is.
        most: What stands out by this is tissue, however uneven the background is.
        faint: As `least`, averaged over two by two pixels and compared with the surroundings.
        end: Up to here from 0 (from white in bright field) a value may be what the scanner filled in.
        filled: Share of the pixels up to which those at the end may be filled in by the scanner and not background.
        even: A background apart from what was filled in has a sigma of at most this.
        below: Share of the pixels that may lie further below the background than tissue lies above it.
        both_ways: Whether pixels below the background are tissue too.
    """

    step: float
    least: float
    most: float
    faint: float
    end: float
    filled: float
    even: float
    below: float
    both_ways: bool


@dataclass(frozen=True)
class Background:
    """A background in one channel, or what may be one.

    Attributes:
        signal: (y, x) the channel, in which background is low.
        level: The background's value.
        reach: Pixels that stand out from the level by more than this are tissue.
        near: (y, x) bool: the pixels that don't.
    """

    signal: NDArray[np.float32]
    level: float
    reach: float
    near: NDArray[np.bool_]

    @cached_property
    def mean_step(self) -> float:
        """Mean difference between near pixels that are neighbours."""
        are_near = self.near[:, 1:] & self.near[:, :-1]
        return float(np.abs(np.diff(self.signal, axis=1))[are_near].mean()) if are_near.any() else 0.0

    @cached_property
    def rest(self) -> NDArray[np.float32]:
        """(y, x) near pixels less the mean of those around them; 0 elsewhere."""
        weights = ndimage.uniform_filter(self.near.astype(np.float32), _SURROUNDINGS)
        means = ndimage.uniform_filter(np.where(self.near, self.signal, np.float32(0)), _SURROUNDINGS)
        means /= np.maximum(weights, np.float32(1e-6))
        return np.where(self.near, self.signal - means, np.float32(0))

    def find_outstanding(self, appearance: Appearance) -> NDArray[np.bool_]:
        """Return (y, x) bool: the pixels that are tissue if this is background."""
        away = self.signal - self.level
        if appearance.both_ways:
            away = np.where(self.signal == 0, np.float32(0), np.abs(away))
        tissue: NDArray[np.bool_] = away > self.reach
        if math.isfinite(appearance.faint):
            # An isolated cell may be split between four pixels.
            faint = ndimage.uniform_filter(self.rest, 2)
            limit = max(_SIGMAS * spread_below(faint[self.near]), appearance.faint)
            tissue |= (np.abs(faint) if appearance.both_ways else faint) > limit
        return tissue


def find_background(
    signal: NDArray[np.float32],
    candidates: NDArray[np.bool_],
    appearance: Appearance,
    is_background: Callable[[Background], bool],
) -> Background | None:
    """Find the background of one channel.

    Args:
        signal: (y, x), low in the background.
        candidates: (y, x) bool: the pixels in which it is searched.
        appearance: How background looks.
        is_background: Decides whether a candidate is the background.
    """
    stride = _stride(signal.size)
    values = signal[::stride, ::stride][candidates[::stride, ::stride]]
    inside = values[np.abs(values) > appearance.end]
    if 0 < inside.size < values.size:
        # Pixels that the scanner filled in may be most of all, and no background.
        level, reach, is_apart = _level(inside, appearance)
        is_apart &= inside.size >= (1 - appearance.filled) * values.size
        ground = Background(signal, level, reach, (signal <= level + reach) & (np.abs(signal) > appearance.end))
        if is_apart and is_background(ground):
            return ground
    if not values.size:
        return None
    level, reach, _ = _level(values, appearance)
    ground = Background(signal, level, reach, signal <= level + reach)
    is_lowest = np.mean(values < level - reach) <= appearance.below
    return ground if is_lowest and is_background(ground) else None


def _level(values: NDArray[np.float32], appearance: Appearance) -> tuple[float, float, bool]:
    """Return level and reach of a possible background, and whether it is apart from what the scanner filled in."""
    level, sigma = _lowest_peak(values, appearance.step)
    reach = min(max(_SIGMAS * sigma, appearance.least), appearance.most)
    is_most = np.mean(np.abs(values - level) <= reach) >= 0.5 and np.mean(values < level - reach) <= appearance.below
    return level, reach, bool(level > 8 * sigma and sigma <= appearance.even and is_most)


def _lowest_peak(values: NDArray[np.float32], step: float) -> tuple[float, float]:
    """Return the lowest value around which many lie, and the standard deviation of those below it.

    A histogram would need bins that suit both a narrow background and a wide range; so this asks instead how close together
    two percent of the pixels lie.

    Args:
        values: (n,), at least one.
        step: The width over which equal values are spread.
    """
    ends, shares = _distribution(values, step)
    starts = np.linspace(0, 1 - _PEAK_SHARE, 1000)
    widths = np.interp(starts + _PEAK_SHARE, shares, ends) - np.interp(starts, shares, ends)
    # The first peak ends where values lie twice as far apart; gaps that stretched contrast makes end none.
    risen = np.flatnonzero(widths > 2 * np.minimum.accumulate(widths) + 2 * step)
    widths = widths[: risen[0] if risen.size else None]
    # The middle of the values that lie about as close: where exactly they are closest is up to chance.
    peak = int(widths.argmin())
    wide = np.flatnonzero(widths > 1.25 * widths[peak])
    first = max(wide[wide < peak], default=-1) + 1
    last = min(wide[wide > peak], default=widths.size) - 1
    level = float(np.interp((starts[first] + starts[last] + _PEAK_SHARE) / 2, shares, ends))
    below = float(np.interp(level, ends, shares))
    return level, (level - float(np.interp(below / 2, shares, ends))) / _HALF_NORMAL


def _distribution(values: NDArray[np.float32], step: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return ascending values and the share of pixels below each.

    Equal values are spread over the step around them; over up to two steps where stretched contrast leaves values out.
    """
    levels, counts = np.unique(values.astype(np.float64), return_counts=True)
    margins = np.minimum(np.diff(levels), 2 * step) / 2
    ends = np.column_stack([levels - np.append(step / 2, margins), levels + np.append(margins, step / 2)])
    shares = np.cumsum(counts) / values.size
    return ends.ravel(), np.column_stack([np.append(0, shares[:-1]), shares]).ravel()


def spread_below(rest: NDArray[np.float32]) -> float:
    """Estimate the standard deviation from the values below zero, which faint tissue doesn't widen."""
    low = rest[rest < 0]
    low = low[:: max(1, low.size // _SAMPLE)]
    return float(np.median(-low)) / _HALF_NORMAL if low.size else 0.0


def smallest_step(overview: NDArray[Any]) -> float:
    """Return the smallest difference of values that means anything: of integers 1, more where values are left out."""
    stride = _stride(overview.shape[0] * overview.shape[1])
    values = overview[::stride, ::stride]
    values = values[np.isfinite(values)].astype(np.float64)
    levels = np.unique(values)
    if not levels.size:
        return 1.0
    # Gaps between few values mean nothing.
    gap = float(np.diff(levels).min()) if levels.size >= 32 else 0.0
    if np.issubdtype(overview.dtype, np.integer):
        return max(gap, 1.0)
    low, high = (float(end) for end in np.quantile(values, (0.001, 0.999)))
    return max(gap, (high - low) / 2**16, 1e-6 * abs(high), 1e-30)


def _stride(pixels: int) -> int:
    """Return the step along y and x that leaves about `_SAMPLE` of so many pixels."""
    return max(1, math.isqrt(pixels // _SAMPLE))
