"""Map how densely objects lie: counts in square cells, by the objects' centroids, and a picture to lay over the slide."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Cells along the slide's longer side, at most: each is some millimetres on a screen.
_MOST_CELLS = 96
# A cell that hardly holds an object says nothing: so many µm wide at least, or pixels where their size isn't known.
_LEAST_UM, _LEAST_PX = 50.0, 64.0
_STEPS = (1, 2, 5)
# From few objects to many: dark to bright (anchors of matplotlib's plasma), not opaque, so that the slide is seen through.
RAMP = ((13, 8, 135), (126, 3, 168), (204, 71, 120), (248, 149, 64), (240, 249, 33))
_OPACITY = 120


class DensityMap(NamedTuple):
    """Counts of objects in square cells.

    Attributes:
        side: Height and width of a cell in pixels of level 0.
        counts: (rows, columns) objects whose centroid lies in each.
        shape: Height and width of level 0.
    """

    side: int
    counts: NDArray[np.int64]
    shape: tuple[int, int]

    @classmethod
    def empty(cls, shape: tuple[int, int], side: int) -> DensityMap:
        """Make a map without objects."""
        rows, columns = (-(-size // side) for size in shape)
        return cls(side, np.zeros((rows, columns), np.int64), shape)

    def add(self, y: NDArray[Any], x: NDArray[Any]) -> None:
        """Count objects by their centroids, (n,) rows and columns of level 0."""
        rows, columns = (
            # A centroid is counted from the centre of the first pixel.
            ((at + 0.5) // self.side).astype(np.int64).clip(0, size - 1)
            for at, size in zip((y, x), self.counts.shape, strict=True)
        )
        self.counts[...] += np.bincount(rows * self.counts.shape[1] + columns, minlength=self.counts.size).reshape(
            self.counts.shape
        )

    def find_densities(self) -> NDArray[np.float64]:
        """Return (rows, columns) objects per pixel of level 0; cells at the slide's end count what they have of it."""
        heights, widths = (
            np.minimum(self.side, size - self.side * np.arange(cells))
            for size, cells in zip(self.shape, self.counts.shape, strict=True)
        )
        densities: NDArray[np.float64] = self.counts / np.multiply.outer(heights, widths)
        return densities


def choose_side(shape: tuple[int, int], pixel: float | None) -> int:
    """Choose how wide a cell is: a round number of µm, or of pixels where their size isn't known.

    Args:
        shape: Height and width of level 0.
        pixel: Its pixel size in µm, if known.

    Returns:
        The side in pixels.

    Example:
        >>> choose_side((20000, 30000), 0.25), choose_side((500, 700), None)
        (400, 100)
    """
    size = pixel or 1.0
    least = max(max(shape) * size / _MOST_CELLS, _LEAST_PX if pixel is None else _LEAST_UM)
    power = 10.0 ** math.floor(math.log10(least))
    side = next(step * power for step in (*_STEPS, 10) if step * power >= least)
    return max(1, round(side / size))


def draw_density(found: DensityMap) -> Image.Image:
    """Draw a map, a pixel per cell: transparent where no object is, else from dark to bright up to the densest cell."""
    densities = found.find_densities()
    top = densities.max(initial=0)
    anchors = np.linspace(0, 1, len(RAMP))
    share = densities / top if top else densities
    rgba = np.zeros((*densities.shape, 4), np.uint8)
    for channel, values in enumerate(zip(*RAMP, strict=True)):
        rgba[..., channel] = np.interp(share, anchors, values)
    rgba[..., 3] = np.where(found.counts > 0, _OPACITY, 0)
    return Image.fromarray(rgba)


def style_ramp() -> str:
    """Return the colours of the ramp as a CSS gradient, for a legend."""
    return f"linear-gradient(90deg,{','.join(f'rgb{colour}' for colour in RAMP)})".replace(" ", "")
