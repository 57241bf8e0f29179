"""Make coarser levels: of an image by averaging, of labels by taking every other pixel, both region by region."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from slidesam.tasks.grid import Region
from slidesam.tasks.slides.facts import Slide
from slidesam.tasks.slides.no_data import find_no_data
from slidesam.tasks.slides.reader import SlideReader

# A slide's overview, by which it is prepared and shown in pictures, has at most this many pixels a side.
OVERVIEW_SIDE = 4096
# Memory for the part of a level that is read at once to be averaged down.
_STRIP_BYTES = 64 * 2**20
_BAND_PIXELS = 2**16


def halve_labels(labels: NDArray[Any]) -> NDArray[Any]:
    """Return (y, x) labels at half the size, rounded up: every other pixel, so that no new id arises."""
    return labels[::2, ::2]


def halve(image: NDArray[Any]) -> NDArray[Any]:
    """Average an image over squares of two by two pixels; at odd ends over the pixels that exist.

    Args:
        image: (..., y, x).

    Returns:
        (..., ceil(y / 2), ceil(x / 2)) in the image's dtype; integers are rounded, halves to even: rounded up they
        would make each level a little brighter. Floats are averaged over the pixels that hold data.

    Example:
        >>> halve(np.array([[0, 2, 5], [4, 3, 7]], np.uint8))
        array([[2, 6]], dtype=uint8)
    """
    height, width = image.shape[-2:]
    halved = np.empty((*image.shape[:-2], -(-height // 2), -(-width // 2)), image.dtype)
    # Band by band, so that intermediate results stay in the processor's cache.
    rows = 2 * max(1, _BAND_PIXELS // (2 * width))
    for y in range(0, height, rows):
        halved[..., y // 2 : (y + rows) // 2, :] = _halve(image[..., y : y + rows, :])
    return halved


def _halve(image: NDArray[Any]) -> NDArray[Any]:
    """Halve an image in one go."""
    height, width = image.shape[-2:]
    if height % 2 or width % 2:
        # With the last row repeated, the average is that of the existing pixels.
        ends = [(0, 0)] * (image.ndim - 2) + [(0, height % 2), (0, width % 2)]
        image = np.pad(image, ends, mode="edge")
    if image.dtype.kind in "iu" and image.dtype.itemsize == 8:
        return _halve_long(image)
    if np.issubdtype(image.dtype, np.floating):
        return _halve_floats(image)
    sums: NDArray[Any] = image[..., ::2, :].astype(_sum_dtype(image.dtype))
    sums += image[..., 1::2, :]
    sums = sums[..., ::2] + sums[..., 1::2]
    sums += 1 + ((sums >> 2) & 1)
    sums >>= 2
    return sums


def _halve_floats(image: NDArray[Any]) -> NDArray[Any]:
    """Halve floats: one pixel without data would otherwise blot out ever more of each coarser level."""
    dtype = np.promote_types(image.dtype, np.float32)
    four = [image[..., y::2, x::2] for y in (0, 1) for x in (0, 1)]
    # Quarters are added, because the sum of large values overflows.
    quarters = [pixels.astype(dtype) * dtype.type(0.25) for pixels in four]
    with np.errstate(invalid="ignore"):
        means: NDArray[Any] = (quarters[0] + quarters[2]) + (quarters[1] + quarters[3])
    if find_no_data(means) is None:
        return means
    missing = find_no_data(np.stack(four))
    if missing is None:
        return means
    count = 4 - missing.sum(axis=0)
    known = np.where(missing, 0, np.stack(quarters)).sum(axis=0) * 4 / np.maximum(count, 1)
    return np.where((count == 0) | (count == 4), means, known).astype(dtype)


def _halve_long(image: NDArray[Any]) -> NDArray[Any]:
    """Halve integers whose sum no dtype holds: add their quarters, and the remainders apart."""
    four = [image[..., y::2, x::2] for y in (0, 1) for x in (0, 1)]
    remainder = (four[0] & 3) + (four[1] & 3) + (four[2] & 3) + (four[3] & 3)
    floor: NDArray[Any] = (four[0] >> 2) + (four[1] >> 2) + (four[2] >> 2) + (four[3] >> 2) + (remainder >> 2)
    up = ((remainder & 3) == 3) | (((remainder & 3) == 2) & ((floor & 1) == 1))
    floor += up.astype(image.dtype)
    return floor


def _sum_dtype(dtype: np.dtype[Any]) -> str:
    """Return the integers that hold the sum of four pixels."""
    return {1: "int16", 2: "int32", 4: "int64"}[dtype.itemsize]


def is_coarse(shape: tuple[int, ...]) -> bool:
    """Whether a level of this height and width can stand for the slide."""
    return max(shape) <= OVERVIEW_SIDE


def first_coarse_level(slide: Slide) -> int:
    """Return the first level that is coarse enough for an overview, else the last one."""
    return next((number for number, level in enumerate(slide.levels) if is_coarse(level.shape)), len(slide.levels) - 1)


def overview_level(slide: Slide) -> tuple[int, int]:
    """Return the level that the slide's overview is read from, and how often it has to be halved, mostly never.

    A level in which tiles are missing that level 0 has, or that takes single pixels of it, would hide tissue: a finer one is
    read instead.
    """
    level = first_coarse_level(slide)
    while level and not slide.levels[level].is_faithful:
        level -= 1
    size, halvings = max(slide.levels[level].shape), 0
    while -(-size // 2**halvings) > OVERVIEW_SIDE:
        halvings += 1
    return level, halvings


def overview_step(slide: Slide) -> tuple[float, float]:
    """Return how many rows and columns of level 0 a pixel of the slide's overview takes."""
    level, halvings = overview_level(slide)
    y, x = slide.levels[level].downsample
    return y * 2.0**halvings, x * 2.0**halvings


def read_overview(slide: Slide, channels: tuple[int, ...]) -> NDArray[Any]:
    """Read a coarse image of the slide, at most `OVERVIEW_SIDE` pixels a side; each chunk of the source is decoded once.

    Args:
        slide: The slide.
        channels: Numbers of the channels.

    Returns:
        (y, x, c) in the slide's dtype: a level of the source, halved until it fits.

    Raises:
        SlideError: Its pixels can't be read.
    """
    number, halvings = overview_level(slide)
    level = slide.levels[number]
    part = _choose_part(level.shape, level.chunks[3:], len(channels) * np.dtype(slide.dtype).itemsize)
    height, width = (-(-size // 2**halvings) for size in level.shape)
    overview = np.empty((len(channels), height, width), slide.dtype)
    with SlideReader(slide) as reader:
        _halve_in_parts(lambda part: reader.read_planes(part, number, channels), level.shape, part, halvings, overview)
    return np.ascontiguousarray(overview.transpose(1, 2, 0))


def _choose_part(shape: tuple[int, int], chunk: tuple[int, int], pixel_bytes: int) -> tuple[int, int]:
    """Choose height and width of what is read at once: whole chunks, as many as fit into `_STRIP_BYTES`, at least one."""
    sides = [min(chunk[0], shape[0]), min(chunk[1], shape[1])]
    while growing := [axis for axis in (0, 1) if sides[axis] < shape[axis]]:
        shorter = min(growing, key=lambda axis: sides[axis])
        if 2 * sides[0] * sides[1] * pixel_bytes > _STRIP_BYTES:
            break
        sides[shorter] *= 2
    return sides[0], sides[1]


def _halve_in_parts(
    read: Callable[[Region], NDArray[Any]],
    shape: tuple[int, int],
    part: tuple[int, int],
    halvings: int,
    out: NDArray[Any],
) -> None:
    """Halve a level some times, reading each part of it once.

    Where parts end between the pixels to make, their last rows and columns wait for the next part.

    Args:
        read: Reads (c, y, x) pixels of a region.
        shape: Height and width of the level.
        part: Height and width of a part.
        halvings: How often.
        out: (c, y, x) pixels to fill.
    """
    step = 2**halvings

    def last_whole(stop: int, size: int) -> int:
        return size if stop == size else stop // step * step

    above = np.empty((out.shape[0], 0, shape[1]), out.dtype)
    for y0 in range(0, shape[0], part[0]):
        y1 = min(y0 + part[0], shape[0])
        top, bottom = y0 - above.shape[1], last_whole(y1, shape[0])
        below = np.empty((out.shape[0], y1 - bottom, shape[1]), out.dtype)
        left = np.empty((out.shape[0], bottom - top, 0), out.dtype)
        for x0 in range(0, shape[1], part[1]):
            x1 = min(x0 + part[1], shape[1])
            pixels = np.concatenate([above[..., x0:x1], read(Region(y0, x0, y1, x1))], axis=1)
            below[..., x0:x1] = pixels[:, bottom - top :]
            pixels = np.concatenate([left, pixels[:, : bottom - top]], axis=2)
            start, stop = x0 - left.shape[2], last_whole(x1, shape[1])
            left = pixels[..., stop - start :].copy()
            pixels = pixels[..., : stop - start]
            if pixels.size:
                for _ in range(halvings):
                    pixels = halve(pixels)
                out[:, top // step : -(-bottom // step), start // step : -(-stop // step)] = pixels
        above = below


def shard_regions(array: zarr.Array[Any]) -> Iterator[Region]:
    """Yield the regions of a TCZYX array's plane that its shards (in Zarr v2, its chunks) cover, clipped to it."""
    height, width = array.shape[3:]
    step_y, step_x = (array.shards or array.chunks)[3:]
    for y in range(0, height, step_y):
        for x in range(0, width, step_x):
            yield Region(y, x, min(y + step_y, height), min(x + step_x, width))


def region_below(region: Region, shape: tuple[int, ...]) -> Region:
    """Return the pixels of the next finer level, of the given shape, that a region is made from."""
    return Region(2 * region.y0, 2 * region.x0, min(2 * region.y1, shape[0]), min(2 * region.x1, shape[1]))


def halve_region(read: Callable[[Region], NDArray[Any]], finer: zarr.Array[Any], region: Region) -> NDArray[Any]:
    """Make one region of an image's level from the level below, quarter by quarter so that memory stays bounded.

    Args:
        read: Reads (c, y, x) pixels of a region of the level below.
        finer: TCZYX array of the level below.
        region: Pixels of the coarser level.

    Returns:
        (c, y, x) pixels of the region.
    """
    out = np.empty((finer.shape[1], *region.shape), finer.dtype)
    half_y, half_x = (max(1, -(-side // 2)) for side in region.shape)
    for y in range(region.y0, region.y1, half_y):
        for x in range(region.x0, region.x1, half_x):
            quarter = Region(y, x, y + half_y, x + half_x) & region
            below = region_below(quarter, finer.shape[3:])
            out[(slice(None), *quarter.relative_to(region).slices)] = halve(read(below))
    return out


def halve_labels_region(read: Callable[[Region], NDArray[Any]], finer: zarr.Array[Any], region: Region) -> NDArray[Any]:
    """Make one region of a label image's level from the level below, some rows at a time so that memory stays bounded.

    Args:
        read: Reads (y, x) labels of a region of the level below.
        finer: TCZYX array of the level below.
        region: Pixels of the coarser level.

    Returns:
        (y, x) labels of the region.
    """
    labels = np.zeros(region.shape, finer.dtype)
    # A row of chunks of the level below.
    step = max(1, finer.chunks[3] // 2)
    for y in range(region.y0, region.y1, step):
        rows = Region(y, region.x0, y + step, region.x1) & region
        below = region_below(rows, finer.shape[3:])
        labels[rows.relative_to(region).slices] = halve_labels(read(below))
    return labels
