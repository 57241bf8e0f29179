"""Scale intensities by percentiles of the whole slide, for methods that would otherwise take them from each image.

If two blocks see the same cell and one of them holds more background, the cell would be darker by that block's own percentiles.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.errors import SegmenterError
from slidesam.tasks.pixels.percentiles import contrast_range


def slide_range(
    sample: NDArray[Any], percentiles: tuple[float, float], *, jointly: bool = False
) -> dict[str, list[float]]:
    """Find the intensities that become 0 and 1 on the whole slide.

    Args:
        sample: (y, x[, c]) pixels of the slide, any numeric dtype; NaN and infinity are left out.
        percentiles: Lower and upper, 0 to 100.
        jointly: Use one range for all channels, so that colours don't change.

    Returns:
        {"low": [...], "high": [...]}, one number per channel; high > low on a blank slide too. On a slide that is nearly all
        background the range reaches to what isn't.

    Example:
        >>> slide_range(np.array([[0, 10], [20, 40]]), (0.0, 100.0))
        {'low': [0.0], 'high': [40.0]}
    """
    planes = _planes(sample)
    channels = [planes] * planes.shape[2] if jointly else list(np.moveaxis(planes, -1, 0))
    ends = [contrast_range(channel, percentiles) for channel in (channels[:1] if jointly else channels)]
    ends = ends * len(channels) if jointly else ends
    return {"low": [low for low, _ in ends], "high": [high for _, high in ends]}


def normalize(image: NDArray[Any], params: Mapping[str, Any]) -> NDArray[np.float32]:
    """Scale pixels by a fixed range without clipping: networks see brighter pixels too, as in their training.

    Args:
        image: (y, x[, c]) any numeric dtype.
        params: "low" and "high" as `slide_range` returns them.

    Returns:
        (y, x, c) float32: low becomes 0, high 1, NaN and infinity 0.

    Raises:
        SegmenterError: The range is for another number of channels.

    Example:
        >>> normalize(np.array([[0, 10, 30]]), {"low": [0.0], "high": [20.0]})[..., 0].tolist()
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


def _planes(image: NDArray[Any]) -> NDArray[Any]:
    return image[..., None] if image.ndim == 2 else image
