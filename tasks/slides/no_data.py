"""Find the pixels of float images that hold no data, and replace them by background.

No data are NaN, infinity, and values so large that no detector measures them: writers mark what wasn't scanned by the lowest or
highest number of the type (-3.4e38) or by 1e38. One such value in a mean, a standard deviation or a filter spoils it.

Imports nothing of the package: segmenters use it too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_LIMIT = 1e30


def find_no_data(pixels: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Find the pixels that hold no data.

    Args:
        pixels: Any shape and dtype.

    Returns:
        True where there is no data, in the pixels' shape; None where all hold data, as those of integers do.

    Example:
        >>> find_no_data(np.array([1.0, np.nan, -3.4e38])).tolist()
        [False, True, True]
    """
    if not np.issubdtype(pixels.dtype, np.floating):
        return None
    with np.errstate(over="ignore"):
        limit = np.asarray(_LIMIT).astype(pixels.dtype)  # of float16 infinity
    missing = ~(np.abs(pixels) < limit)
    return missing if missing.any() else None


def fill_no_data(pixels: NDArray[Any], fill: NDArray[Any]) -> NDArray[Any]:
    """Replace the pixels that hold no data.

    Args:
        pixels: (y, x, c), any dtype.
        fill: (c,) the background.

    Returns:
        The same in the pixels' dtype; the pixels themselves if all hold data.
    """
    missing = find_no_data(pixels)
    return pixels if missing is None else np.where(missing, fill.astype(pixels.dtype), pixels)


def drop_no_data(sample: NDArray[Any], fill: NDArray[Any]) -> NDArray[Any]:
    """Leave out the pixels of a sample that hold no data in any channel, and fill the other gaps.

    Args:
        sample: (y, x, c), any dtype; its pixels count, not where they lie.
        fill: (c,) the background.

    Returns:
        (y, x, c) of the same width, with less than a row of pixels lost; the sample itself if all hold data. Where
        nothing else is left, the whole sample is background.
    """
    missing = find_no_data(sample)
    if missing is None:
        return sample
    filled, has_data = fill_no_data(sample, fill), ~missing.all(axis=2)
    width = min(sample.shape[1], int(np.count_nonzero(has_data)))
    if not width:
        return filled
    pixels = filled[has_data]
    return pixels[: len(pixels) // width * width].reshape(-1, width, sample.shape[2])


def describe_no_data(sample: NDArray[Any]) -> tuple[str, ...]:
    """Word what a person should know of a sample's pixels without data; NaN beside numbers needs no words.

    Args:
        sample: Pixels of the slide, any shape and dtype.

    Returns:
        Sentences, mostly none.
    """
    missing = find_no_data(sample)
    if missing is None:
        return ()
    if missing.all():
        return (f"none of its pixels holds data: they are NaN, infinite or beyond {_LIMIT:g}, so nothing can be found",)
    share = np.count_nonzero(np.isfinite(sample) & missing) / sample.size
    if not share:
        return ()
    return (
        f"{100 * share:.2g} % of the sampled values are beyond {_LIMIT:g}: they are taken for no data, as background",
    )
