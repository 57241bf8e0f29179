"""A sample of the pixels that are segmented: what slide-wide parameters are found on.

Not a coarse level, although that is one read: averaging pales small objects, so that on a large slide thresholds and intensity
ranges would come out too low.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.grid import BlockGrid, Region
from slidesam.tasks.slides.reader import PixelReader

_PLACE_SIDE = 256
_PLACES = 144


def sample_slide(shape: tuple[int, int], overview: NDArray[Any], reader: PixelReader) -> NDArray[Any]:
    """The whole slide if it is small, else places spread over what isn't empty, put together.

    Args:
        shape: Height and width of the slide, in the pixels that are segmented.
        overview: (y, x, c) coarse image of it, by which places are chosen.
        reader: Reads its channels to segment, in those pixels.

    Returns:
        (y, x, c) of at most 144 places of 256 × 256 px, in the slide's dtype; the same for the same slide.

    Raises:
        SlideError: Its pixels can't be read.
    """
    height, width = shape
    if height * width <= _PLACES * _PLACE_SIDE**2:
        return reader.read(Region(0, 0, height, width))
    places = [reader.read(region) for region in choose_places(shape, overview)]
    columns = int(np.sqrt(len(places)))
    rows = [np.concatenate(places[at : at + columns], axis=1) for at in range(0, len(places) - columns + 1, columns)]
    return np.concatenate(rows)


def choose_places(shape: tuple[int, int], overview: NDArray[Any]) -> list[Region]:
    """Places of 256 px, evenly over those of the slide whose contrast in the overview is above the mean.

    Args:
        shape: Height and width of the slide.
        overview: (y, x, c) coarse image of it.

    Returns:
        At most 144 regions inside the slide, in C order.
    """
    side_y, side_x = (min(_PLACE_SIDE, size) for size in shape)
    grid = BlockGrid(shape, (side_y, side_x), 0)
    contrast = _contrast(grid, overview)
    wanted = np.flatnonzero(contrast >= contrast.mean())
    chosen = wanted[np.linspace(0, wanted.size - 1, min(_PLACES, wanted.size)).round().astype(int)]
    regions = []
    for place in chosen:
        y0, x0 = grid[int(place)].inner[:2]
        y0, x0 = min(y0, shape[0] - side_y), min(x0, shape[1] - side_x)
        regions.append(Region(y0, x0, y0 + side_y, x0 + side_x))
    return regions


def _contrast(grid: BlockGrid, overview: NDArray[Any]) -> NDArray[np.float64]:
    """Spread of the overview's grey values around each place, (places,): high in tissue, low on glass."""
    grey = np.nan_to_num(overview.astype(np.float32)).mean(axis=2)
    scale_y, scale_x = grid.shape[0] / grey.shape[0], grid.shape[1] / grey.shape[1]
    spread = []
    for block in grid:
        y0, x0, y1, x1 = block.inner
        # At least two pixels a side, however coarse the overview is.
        part = grey[int(y0 / scale_y) : int(y1 / scale_y) + 2, int(x0 / scale_x) : int(x1 / scale_x) + 2]
        spread.append(float(part.std()) if part.size else 0.0)
    return np.asarray(spread)
