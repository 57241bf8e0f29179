"""Draw how densely objects lie, for a view of so much of the slide that outlines can't be told apart."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.pages.density import RAMP, DensityMap
from slidesam.tasks.view.object_rows import ObjectSummary

_LONGEST_SIDE = 512
_LEAST_CELL = 4
# Widths of the bell by which counts are spread, in cells.
_LEAST_SPREAD, _MOST_SPREAD = 1.5, 8.0
# A few cells are denser than all others.
_HIGHEST_PERCENT = 99.5
_ALPHA = 190


class SmoothMap(NamedTuple):
    """A map of the density of objects.

    Attributes:
        picture: (y, x, 4) pixels, transparent where there are no objects.
        highest: What the brightest colour means: objects per mm², or per 1000 × 1000 pixels where their size isn't known.
    """

    picture: NDArray[np.uint8]
    highest: float


def choose_cell(shape: tuple[int, int]) -> int:
    """Choose the side of the cells in which objects are counted."""
    return max(_LEAST_CELL, -(-max(shape) // _LONGEST_SIDE))


def draw_smooth_density(
    summary: ObjectSummary,
    shape: tuple[int, int],
    mpp: tuple[float, float] | None,
    hidden: frozenset[str] = frozenset(),
) -> SmoothMap:
    """Draw the map of density.

    Args:
        summary: The objects.
        shape: Height and width of level 0.
        mpp: Height and width of a pixel in µm.
        hidden: Classes that aren't counted.

    Returns:
        A map with one pixel per cell; the last cells of rows and columns may reach past the slide.
    """
    from scipy.ndimage import gaussian_filter

    names = summary.class_names or ("",)
    shown = [density.counts for name, density in zip(names, summary.densities, strict=False) if name not in hidden]
    counts = sum(shown, np.zeros_like(summary.densities[0].counts))
    densities = DensityMap(summary.cell, counts, shape).find_densities()
    spacing = math.sqrt(shape[0] * shape[1] / max(1, int(counts.sum())))
    spread = min(max(_LEAST_SPREAD, 0.6 * spacing / summary.cell), _MOST_SPREAD)
    smooth = gaussian_filter(densities, spread, mode="nearest")
    # Far from any object the bell has a foot, and there is no density.
    smooth[smooth < 1e-3 * smooth.max(initial=0)] = 0
    dense = smooth[smooth > 0]
    highest = float(np.percentile(dense, _HIGHEST_PERCENT)) if dense.size else 0.0
    share = np.clip(smooth / highest, 0, 1) if highest else smooth
    at = np.linspace(0, 1, len(RAMP))
    picture = np.empty((*share.shape, 4), np.uint8)
    for channel, levels in enumerate(np.array(RAMP, float).T):
        picture[..., channel] = np.interp(share, at, levels)
    picture[..., 3] = _ALPHA * np.minimum(1, 4 * share)
    return SmoothMap(picture, highest / (mpp[0] * mpp[1] if mpp else 1.0) * 1e6)
