"""Sample the pixels that are segmented, to find slide-wide parameters on.

A coarse level would be read faster, but averaging makes small objects pale, so that on a large slide thresholds and intensity
ranges would be too low.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.grid import BlockGrid, Region
from slidesam.tasks.pixels.percentiles import finite_values
from slidesam.tasks.slides.no_data import find_no_data
from slidesam.tasks.slides.reader import PixelReader

_SAMPLE_SIDE = 256
_MOST_SAMPLES = 144


def sample_slide(shape: tuple[int, int], overview: NDArray[Any], reader: PixelReader) -> NDArray[Any]:
    """Read the whole slide if it is small, else squares spread over what isn't empty, put together.

    Args:
        shape: Height and width of the slide, in the pixels that are segmented.
        overview: (y, x, c) coarse image of it, by which squares are chosen.
        reader: Reads its channels to segment, in those pixels.

    Returns:
        (y, x, c) of at most 144 squares of 256 × 256 px, in the slide's dtype; the same for the same slide.

    Raises:
        SlideError: Its pixels can't be read.
    """
    height, width = shape
    if height * width <= _MOST_SAMPLES * _SAMPLE_SIDE**2:
        return reader.read(Region(0, 0, height, width))
    squares = [reader.read(region) for region in choose_sample(shape, overview)]
    columns = int(np.sqrt(len(squares)))
    starts = range(0, len(squares) - columns + 1, columns)
    rows = [np.concatenate(squares[start : start + columns], axis=1) for start in starts]
    return np.concatenate(rows)


def choose_sample(shape: tuple[int, int], overview: NDArray[Any]) -> list[Region]:
    """Choose squares of 256 px, evenly over those of the slide whose contrast in the overview is above the mean.

    Args:
        shape: Height and width of the slide.
        overview: (y, x, c) coarse image of it.

    Returns:
        At most 144 regions inside the slide, in C order.
    """
    side_y, side_x = (min(_SAMPLE_SIDE, size) for size in shape)
    grid = BlockGrid(shape, (side_y, side_x), 0)
    contrast = _contrast(grid, overview)
    candidates = np.flatnonzero(contrast >= contrast.mean())
    squares = candidates[np.linspace(0, candidates.size - 1, min(_MOST_SAMPLES, candidates.size)).round().astype(int)]
    regions = []
    for number in squares:
        y0, x0 = grid[int(number)].inner[:2]
        y0, x0 = min(y0, shape[0] - side_y), min(x0, shape[1] - side_x)
        regions.append(Region(y0, x0, y0 + side_y, x0 + side_x))
    return regions


def _contrast(grid: BlockGrid, overview: NDArray[Any]) -> NDArray[np.float64]:
    """Return (squares,) the spread of the overview's grey values around each square: high in tissue, low on glass."""
    missing = find_no_data(overview)
    grey = overview.astype(np.float32) if missing is None else np.where(missing, np.nan, overview).astype(np.float32)
    grey = grey.mean(axis=2)
    scale_y, scale_x = grid.shape[0] / grey.shape[0], grid.shape[1] / grey.shape[1]
    spread = []
    for block in grid:
        y0, x0, y1, x1 = block.inner
        # At least two pixels a side, however coarse the overview is.
        patch = grey[int(y0 / scale_y) : int(y1 / scale_y) + 2, int(x0 / scale_x) : int(x1 / scale_x) + 2]
        numbers = patch if missing is None else finite_values(patch)
        spread.append(float(numbers.std()) if numbers.size else 0.0)
    return np.asarray(spread)
