"""Percentiles of the pixels that hold data; NaN, infinity and absurdly large values never count.

Imports nothing of the package but `no_data`: segmenters use it too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.slides.no_data import find_no_data

# Integers that differ by less may show no image, only noise, but also few photons.
_LEAST_STEPS = 8
# Of the pixels beyond a percentile: how many may be hot or dead.
_ODD_SHARE = 0.25
_ROUNDING = 1e-6


def finite_values(pixels: NDArray[Any]) -> NDArray[Any]:
    """Return the pixels that hold data, (n,) in the same dtype."""
    missing = find_no_data(pixels)
    return pixels.ravel() if missing is None else pixels[~missing]


def nearest_percentiles(pixels: NDArray[Any], percents: Sequence[float]) -> list[float]:
    """Compute percentiles that are values of the image, so that they fit into its dtype; zeros where no pixel is a number.

    Example:
        >>> nearest_percentiles(np.array([0.0, 10.0, 20.0, np.nan]), (0, 60))
        [0.0, 10.0]
    """
    numbers = finite_values(pixels)
    if not numbers.size:
        return [0.0] * len(percents)
    return [float(value) for value in np.percentile(numbers, percents, method="nearest")]


def percentile_range(pixels: NDArray[Any], percents: tuple[float, float]) -> tuple[float, float]:
    """Compute a lower and an upper percentile, interpolated between values; 0 and 1 where no pixel is a number.

    Example:
        >>> percentile_range(np.array([0.0, 10.0, 20.0, np.nan]), (0, 75))
        (0.0, 15.0)
    """
    numbers = finite_values(pixels)
    low, high = np.percentile(numbers, percents) if numbers.size else (0.0, 1.0)
    return float(low), float(high)


def contrast_range(pixels: NDArray[Any], percents: tuple[float, float]) -> tuple[float, float]:
    """Compute the range of values between which an image shows something: two percentiles, for most images.

    If nearly all pixels are background, both percentiles are its value or its noise, and objects would lie thousands of ranges
    away. Then the ends move out:

    - If both are one value, to the percentiles of the values beyond it.
    - If they are few integers apart, to what lies far away, unless so few pixels do that they may be hot or dead: where a
      detector counts photons, few integers are the image.

    Args:
        pixels: Any shape and dtype.
        percents: Lower and upper, 0 to 100.

    Returns:
        Low and high; high > low also where all pixels are alike or none holds data.

    Example:
        >>> sparse = np.zeros(1000, np.uint16)
        >>> sparse[:4] = 20000
        >>> percentile_range(sparse, (1, 99)), contrast_range(sparse, (1, 99))
        ((0.0, 0.0), (0.0, 20000.0))
    """
    numbers = finite_values(pixels)
    low, high = percentile_range(numbers, percents)
    if high - low <= _ROUNDING * max(abs(low), abs(high)):
        below, above = numbers[numbers < low], numbers[numbers > high]
        low = float(np.percentile(below, percents[0])) if below.size else low
        high = float(np.percentile(above, percents[1])) if above.size else high
    elif np.issubdtype(numbers.dtype, np.integer) and high - low < _LEAST_STEPS:
        far_low, far_high = percentile_range(
            numbers, (_ODD_SHARE * percents[0], 100 - _ODD_SHARE * (100 - percents[1]))
        )
        low = far_low if low - far_low >= _LEAST_STEPS else low
        high = far_high if far_high - high >= _LEAST_STEPS else high
    return low, high if high > low else low + 1.0


def common_window(windows: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    """Replace the windows of red, green and blue by one from 0, or below, to the highest: one each would shift colours.

    Example:
        >>> common_window([(10, 200), (20, 250), (5, 100)])
        [(0.0, 250.0), (0.0, 250.0), (0.0, 250.0)]
    """
    low, high = min(0.0, *(start for start, _ in windows)), max(end for _, end in windows)
    return [(float(low), float(high))] * len(windows)
