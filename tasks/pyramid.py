"""Coarser levels: of an image by averaging, of labels by taking every other pixel, both region by region."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from slidesam.tasks.grid import Region
from slidesam.tasks.slide import Slide, SlideReader

# The output store's image starts at the first level that fits into this many pixels a side.
OVERVIEW_SIDE = 4096
# What a strip of a level that has to be averaged down may hold in memory.
_STRIP_BYTES = 64 * 2**20


def halve_labels(labels: NDArray[Any]) -> NDArray[Any]:
    """(y, x) labels at half the size, rounded up: every other pixel, so that no id arises or mixes."""
    return labels[::2, ::2]


def average(image: NDArray[Any], factor: int) -> NDArray[Any]:
    """An image averaged over squares of `factor` pixels; at the far edges over what there is of them.

    Args:
        image: (y, x, c).
        factor: Side of the squares, at least 1.

    Returns:
        (ceil(y / factor), ceil(x / factor), c) in the image's dtype, rounded to nearest for integers.

    Example:
        >>> average(np.array([[[0], [2], [5]], [[4], [2], [7]]], np.uint8), 2)[..., 0]
        array([[2, 6]], dtype=uint8)
    """
    if factor == 1:
        return image
    starts = [np.arange(0, size, factor) for size in image.shape[:2]]
    sums = np.add.reduceat(np.add.reduceat(image.astype(np.float32), starts[0], axis=0), starts[1], axis=1)
    heights, widths = (np.diff(np.append(start, size)) for start, size in zip(starts, image.shape[:2], strict=True))
    means = sums / (heights[:, None, None] * widths[None, :, None])
    if np.issubdtype(image.dtype, np.integer):
        means = np.rint(means)
    averaged: NDArray[Any] = means.astype(image.dtype)
    return averaged


def overview_level(slide: Slide) -> tuple[int, int]:
    """Which level the output store's image starts from, and the factor by which it has to be averaged down, mostly 1."""
    for number, level in enumerate(slide.levels):
        if max(level.shape) <= OVERVIEW_SIDE:
            return number, 1
    last = len(slide.levels) - 1
    return last, -(-max(slide.levels[last].shape) // OVERVIEW_SIDE)


def read_overview(slide: Slide, channels: tuple[int, ...]) -> NDArray[Any]:
    """A coarse image of the slide, at most `OVERVIEW_SIDE` pixels a side, read strip by strip.

    Args:
        slide: The slide.
        channels: Which channels.

    Returns:
        (y, x, c) in the slide's dtype.

    Raises:
        SlideError: Its pixels can't be read.
    """
    level, factor = overview_level(slide)
    height, width = slide.levels[level].shape
    row_bytes = width * len(channels) * np.dtype(slide.dtype).itemsize
    rows = max(1, _STRIP_BYTES // (row_bytes * factor)) * factor
    with SlideReader(slide) as reader:
        strips = [
            average(reader.read(Region(y, 0, min(y + rows, height), width), level, channels), factor)
            for y in range(0, height, rows)
        ]
    return np.concatenate(strips)


def shard_regions(array: zarr.Array[Any]) -> Iterator[Region]:
    """The regions of a TCZYX array's plane that its shards (in Zarr v2, its chunks) cover, clipped to it."""
    height, width = array.shape[3:]
    step_y, step_x = (array.shards or array.chunks)[3:]
    for y in range(0, height, step_y):
        for x in range(0, width, step_x):
            yield Region(y, x, min(y + step_y, height), min(x + step_x, width))


def halve_level(finer: zarr.Array[Any], coarser: zarr.Array[Any]) -> None:
    """Fills a label level from the one below, shard by shard."""
    for region in shard_regions(coarser):
        below = Region(
            2 * region.y0, 2 * region.x0, min(2 * region.y1, finer.shape[3]), min(2 * region.x1, finer.shape[4])
        )
        coarser[(0, 0, 0, *region.slices)] = halve_labels(np.asarray(finer[(0, 0, 0, *below.slices)]))
