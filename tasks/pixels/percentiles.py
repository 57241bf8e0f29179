"""Percentiles of the pixels that are numbers; NaN and infinity never count.

Imports nothing of the package: segmenters use it too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def finite_values(pixels: NDArray[Any]) -> NDArray[Any]:
    """Return the pixels that are numbers, (n,) in the same dtype."""
    return pixels[np.isfinite(pixels)] if np.issubdtype(pixels.dtype, np.inexact) else pixels.ravel()


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
