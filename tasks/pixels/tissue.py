"""Find the blocks of a slide that hold tissue, so that the others needn't be segmented.

1. `find_tissue` finds the pixels of a coarse image of the slide that aren't background.
2. `blocks_with_tissue` turns that mask, or the one of `mask_image`, into block ids.

A block segmented for nothing costs time, a block left out may cost an object. So a pixel is background only where that is
certain, no object is too small to count (an isolated cell may be smaller than a pixel of the coarse image), and where no
background can be found everything is tissue.
"""

from __future__ import annotations

import math
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from slidesam.tasks.grid import BlockGrid
from slidesam.tasks.pixels.background import Appearance, Background, find_background, smallest_step, spread_below

_MARGIN = 2  # pixels of the coarse image by which tissue is grown
_NO_NUMBER = 1e30  # from here on a value says that there is none, as inf does
# Of white: how dark and how coloured glass may be, and how noisy.
_GLASS_DEPTH, _GLASS_TINT, _GLASS_NOISE = 0.4, 0.12, 0.006
_GLASS_SHARE = 0.01  # of the pixels that glass must have
# Of a dark background: how noisy it may be for its level without the bright being as many times brighter, and their share.
_EVEN, _CONTRAST, _BRIGHT_SHARE = 0.05, 5.0, 0.001


def find_tissue(overview: NDArray[Any], *, is_rgb: bool, has_gaps: bool = False) -> NDArray[np.bool_]:
    """Find where a slide isn't background.

    Glass is the brightest bright grey that many pixels have, the background of fluorescence the darkest value that many have.
    Tissue stands out from it by five times its noise, or, fainter, from its surroundings. It is grown by two pixels.

    - Where there is no such background, or too little stands out to tell it from even tissue, everything is tissue.
    - Bright field: black is where nothing was scanned, and in a slide with gaps also what is exactly white; white, and whatever
      is brighter than glass, isn't tissue either.
    - Fluorescence: pixels of value 0 aren't tissue. Saturated ones are, since cells may be. What is darker than the background
      is too, since a grey image may show dark objects.
    - One value all over is no tissue, unless in bright field glass can't have it.
    - Values that aren't numbers aren't tissue.

    Args:
        overview: (y, x, c) coarse image of any dtype; in fluorescence the channels that are segmented.
        is_rgb: Whether background is bright (glass) rather than dark.
        has_gaps: Whether parts of the slide weren't scanned, which are white in bright field, and brighter than its glass.

    Returns:
        (y, x) bool.

    Example:
        >>> slide = np.full((20, 20, 3), 240, np.uint8)
        >>> slide[10, 10] = 230, 225, 235
        >>> int(find_tissue(slide, is_rgb=True).sum())
        25
    """
    if np.issubdtype(overview.dtype, np.floating):
        with np.errstate(over="ignore"):
            overview = overview.astype(np.float32)
        overview = np.where(np.abs(overview) < _NO_NUMBER, overview, np.float32(np.nan))
    outstanding = None
    if is_rgb and has_gaps:
        gaps = (overview == _white_of_bit_depth(overview)).all(axis=2, keepdims=True)
        blackened = np.where(gaps, overview.dtype.type(0), overview)
        scanned = _find_scanned(blackened)
        outstanding = _darker_than_glass(blackened, scanned)
    if outstanding is None:
        scanned = _find_scanned(overview)
        outstanding = _darker_than_glass(overview, scanned) if is_rgb else _brighter_than_dark(overview)
    tissue = scanned if outstanding is None else outstanding & scanned
    grown: NDArray[np.uint8] = ndimage.maximum_filter(tissue.astype(np.uint8), 2 * _MARGIN + 1)
    return grown > 0


def _find_scanned(overview: NDArray[Any]) -> NDArray[np.bool_]:
    """Return (y, x) bool: the pixels that aren't 0, or no numbers, in all channels."""
    scanned: NDArray[np.bool_] = (np.isfinite(overview) & (overview != 0)).any(axis=2)
    return scanned


class TissueMask(NamedTuple):
    """Where a slide holds tissue.

    Attributes:
        pixels: (y, x) bool.
        step: Rows and columns of level 0 that a pixel takes. The last ones may reach past the slide's end, or end before it.
    """

    pixels: NDArray[np.bool_]
    step: tuple[float, float]


def blocks_with_tissue(mask: NDArray[np.bool_], grid: BlockGrid, step: tuple[float, float] | None = None) -> list[int]:
    """Find the blocks that see tissue.

    Args:
        mask: (y, x) bool at any resolution.
        grid: The blocks.
        step: Rows and columns of the grid that a pixel of the mask takes; None = the mask is stretched over the grid's shape.

    Returns:
        Ascending ids of the blocks whose outer region meets a pixel of the mask, be it by a corner.

    Example:
        >>> mask = np.zeros((10, 10), bool)
        >>> mask[2, 9] = True
        >>> blocks_with_tissue(mask, BlockGrid((1000, 1000), (250, 250), 0))
        [3, 7]
    """
    rows, columns = (_reached(mask, grid, axis, None if step is None else step[axis]) for axis in (0, 1))
    # Where between two ends of blocks tissue lies makes no difference: few cells remain to be counted, however fine the mask.
    cuts_y, cuts_x = (np.unique(np.concatenate(ends)) for ends in (rows, columns))
    cells = np.logical_or.reduceat(np.logical_or.reduceat(mask, cuts_y[:-1], axis=0), cuts_x[:-1], axis=1)
    sums = np.pad(cells.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    y0, y1 = (np.searchsorted(cuts_y, ends)[:, None] for ends in rows)
    x0, x1 = (np.searchsorted(cuts_x, ends)[None, :] for ends in columns)
    counts = sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]
    block_ids: list[int] = np.flatnonzero(counts).tolist()
    return block_ids


def _reached(
    mask: NDArray[np.bool_], grid: BlockGrid, axis: int, step: float | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first and last + 1 row (or column) of the mask that each row of blocks sees, partly seen ones included."""
    size, block, pixels = grid.shape[axis], grid.block_shape[axis], mask.shape[axis]
    starts = np.arange(grid.grid_shape[axis], dtype=np.int64) * block
    first, stop = np.maximum(starts - grid.halo, 0), np.minimum(starts + block + grid.halo, size)
    if step is None:
        return first * pixels // size, -(-stop * pixels // size)
    # A block past the mask's end sees its last pixel.
    first = np.minimum(np.floor(first / step).astype(np.int64), pixels - 1)
    return first, np.clip(np.ceil(stop / step).astype(np.int64), first + 1, pixels)


def _darker_than_glass(overview: NDArray[Any], scanned: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
    """Return (y, x) bool: the pixels that are darker than glass in any colour; None where there is no glass."""
    white = _white_of_bit_depth(overview)
    appearance = Appearance(
        step=smallest_step(overview),
        least=0.02 * white,
        most=0.06 * white,
        faint=0.004 * white,
        end=0.01 * white,
        filled=1.0,
        even=0.006 * white,
        # Sharpening makes some of the glass beside tissue brighter.
        below=0.05,
        both_ways=False,
    )
    colours = [overview[..., channel] for channel in range(overview.shape[2])]
    darkest, brightest = reduce(np.minimum, colours), reduce(np.maximum, colours)
    greyish = (darkest >= (1 - _GLASS_DEPTH) * white) & (brightest - darkest <= _GLASS_TINT * white)
    min_pixels = max(1.0, _GLASS_SHARE * np.count_nonzero(scanned))

    def is_common(ground: Background) -> bool:
        return int(np.count_nonzero(ground.near & greyish)) >= min_pixels

    def is_glass(ground: Background) -> bool:
        # Pale tissue is restless beside it.
        return is_common(ground) and spread_below(ground.rest) <= _GLASS_NOISE * white

    grey = reduce(np.add, (colour.astype(np.float32) for colour in colours)) / np.float32(len(colours))
    ground = find_background(white - grey, greyish, appearance, is_glass)
    if ground is None:
        return None
    tissue = ground.find_outstanding(appearance)
    for colour in colours:
        ground = find_background(white - colour.astype(np.float32), greyish, appearance, is_common)
        if ground is None:
            return None
        # JPEG makes steps of a few grey levels in colours, but hardly in their mean: faint tissue was searched there.
        tissue |= ground.find_outstanding(appearance._replace(faint=math.inf))
    # JPEG's black isn't always 0.
    return tissue & (brightest > appearance.end)


def _brighter_than_dark(overview: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Return (y, x) bool: the pixels that aren't background in some channel; None where a channel has no dark background."""
    step = smallest_step(overview)
    appearance = Appearance(
        step=step,
        least=step,
        most=math.inf,
        faint=0.4 * step,
        end=0.0,
        # Where zeros are more than that, what isn't zero may all be objects.
        filled=0.5,
        even=math.inf,
        below=0.005,
        both_ways=True,
    )
    tissue = np.zeros(overview.shape[:2], bool)
    for channel in range(overview.shape[2]):
        signal = overview[..., channel].astype(np.float32)
        finite = np.isfinite(signal)
        if not finite.any():
            continue
        ground = find_background(signal, finite, appearance, _is_dark)
        if ground is None:
            return None
        tissue |= ground.find_outstanding(appearance)
    return tissue


def _is_dark(ground: Background) -> bool:
    """Whether a possible background of fluorescence isn't even tissue: dense tissue seen coarsely looks much like noise."""
    is_even = spread_below(ground.rest) <= _EVEN * abs(ground.level)
    bright = max(ground.level + 2 * ground.reach, -math.inf if is_even else _CONTRAST * ground.level)
    if np.count_nonzero(ground.signal > bright) >= _BRIGHT_SHARE * ground.signal.size:
        return True
    # An empty channel: neighbours are no more alike than any two.
    return is_even and ground.mean_step >= float(np.abs(ground.rest[ground.near]).mean())


def _white_of_bit_depth(overview: NDArray[Any]) -> float:
    """Return the value of white: the largest of as many bits as are used, 1 for floats up to it."""
    top = float(np.max(overview, initial=0, where=np.isfinite(overview)))
    if top <= 1 and np.issubdtype(overview.dtype, np.floating):
        return 1.0
    return next((1.0 * white for white in (255, 1023, 4095, 16383, 65535) if top <= white), top)
