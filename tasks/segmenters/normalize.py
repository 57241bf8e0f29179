"""Intensities by percentiles of the whole slide, for methods that would take them from each image.

Of two blocks that see the same cell one may hold more background: by its own percentiles the cell would be darker in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.errors import SegmenterError
from slidesam.tasks.pixels.percentiles import percentile_range


def slide_range(
    sample: NDArray[Any], percentiles: tuple[float, float], *, jointly: bool = False
) -> dict[str, list[float]]:
    """The intensities that become 0 and 1 on the whole slide.

    Args:
        sample: (y, x[, c]) pixels of the slide, any numeric dtype; NaN and infinity are left out.
        percentiles: Lower and upper, 0 to 100.
        jointly: One range for all channels, so that colours stay as they are.

    Returns:
        {"low": [...], "high": [...]}, one number per channel; high > low on a blank slide too.

    Example:
        >>> slide_range(np.array([[0, 10], [20, 40]]), (0.0, 100.0))
        {'low': [0.0], 'high': [40.0]}
    """
    planes = _planes(sample)
    channels = [planes] * planes.shape[2] if jointly else list(np.moveaxis(planes, -1, 0))
    ends = [_ends(channel, percentiles) for channel in (channels[:1] if jointly else channels)]
    ends = ends * len(channels) if jointly else ends
    return {"low": [low for low, _ in ends], "high": [high for _, high in ends]}


def normalized(image: NDArray[Any], params: Mapping[str, Any]) -> NDArray[np.float32]:
    """Pixels by a fixed range, not cut off at its ends: networks see what is brighter, as in their training.

    Args:
        image: (y, x[, c]) any numeric dtype.
        params: "low" and "high" as `slide_range` returns them.

    Returns:
        (y, x, c) float32: low is 0, high is 1, what is no number 0.

    Raises:
        SegmenterError: The range is for another number of channels.

    Example:
        >>> normalized(np.array([[0, 10, 30]]), {"low": [0.0], "high": [20.0]})[..., 0].tolist()
        [[0.0, 0.5, 1.5]]
    """
    planes = _planes(image)
    low, high = (np.asarray(params.get(end, ()), np.float64) for end in ("low", "high"))
    if not low.shape == high.shape == planes.shape[2:]:
        raise SegmenterError(
            f"the slide's intensity range is for {low.size} channels, but the block has {planes.shape[2]}"
        )
    scaled = ((planes.astype(np.float64) - low) / (high - low)).astype(np.float32)
    return np.nan_to_num(scaled, copy=False, posinf=0, neginf=0)


def _ends(pixels: NDArray[Any], percentiles: tuple[float, float]) -> tuple[float, float]:
    low, high = percentile_range(pixels, percentiles)
    return low, high if high > low else low + 1.0


def _planes(image: NDArray[Any]) -> NDArray[Any]:
    return image[..., None] if image.ndim == 2 else image
