"""Plan how the pixels of a slide reach the blocks: read in place, converted, or rechunked; and in which tiles they are rewritten.

A *conversion tile*, here just a tile, is the rectangle of level 0 that is read, and written as whole shards, at once. Its sides
are multiples of the source's own tiles, so that none of those is decoded twice, and its pixels fit into `TILE_BYTES`, so that
memory is bounded whatever the slide.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from slidesam.tasks.grid import BlockGrid, Region
from slidesam.tasks.settings.sections import ImageSettings
from slidesam.tasks.slides.facts import Level, Slide

Pair = tuple[int, int]
# Above this, rewriting the pixels once is cheaper than reading them in place for every block.
MAX_AMPLIFICATION = 4.0
# Fetching a chunk costs as much as decoding so many bytes, however small it is (benchmarks/rechunk.py).
CHUNK_COST_BYTES = 64 * 2**10
TILE_BYTES = 128 * 2**20
SHARD_SIDE = 4096
_SMALLEST_SIDE = 256
# Side of the smallest shard that is worth a file of its own.
_SMALLEST_FILE = 256
# A pyramid ends where its level fits into this many pixels.
_SMALLEST_LEVEL = 512
# The levels, from 0 on, that a conversion tile's or a group's task writes. Each further one would cost as many files as level 0.
_TILE_LEVELS, _GROUP_LEVELS = 3, 2
# A group of blocks, which is written at once, has at most this many pixels a side, or an eighth more: 64 to 81 MiB of ids.
_GROUP_SIDE = 4096


class PyramidLevel(NamedTuple):
    """One level of the pyramid that conversion writes.

    Attributes:
        shape: Height and width.
        source_level: The source's own level of this size, or None: averaged from the level below.
    """

    shape: Pair
    source_level: int | None


class ImagePlan(NamedTuple):
    """How a slide's pixels reach its blocks.

    Attributes:
        mode: `convert` (whole pyramid, all channels), `rechunk` (level 0, the channels to segment) or `in place`.
        reason: The reason, in words.
        amplification: Bytes decoded per byte used, were the blocks read from the source.
        channels: The channels that are written, by their numbers in the source.
        shard: Height and width of a shard of level 0, all channels together.
        tile: Height and width of a conversion tile: whole shards.
        levels: Of the pyramid; one, of level 0's size, where the pixels are only rechunked.
        in_memory: How many of the levels, from 0 on, are made from a tile's pixels, as whole shards.
        tile_bytes: Bytes of a tile's pixels.
    """

    mode: Literal["convert", "rechunk", "in place"]
    reason: str
    amplification: float
    channels: tuple[int, ...]
    shard: Pair
    tile: Pair
    levels: tuple[PyramidLevel, ...]
    in_memory: int
    tile_bytes: int

    def grid(self, level: int) -> BlockGrid:
        """Return the tiles of a level: conversion tiles on level 0, and single shards above."""
        return BlockGrid(self.levels[level].shape, self.tile if level == 0 else self.shard, 0)


def plan_image(slide: Slide, image: ImageSettings, blocks: BlockGrid) -> ImagePlan:
    """Decide how the pixels reach the blocks, from metadata alone.

    Args:
        slide: The slide.
        image: Whether to convert and rechunk, and how arrays are written.
        blocks: The blocks that will read the pixels.
    """
    factor = read_amplification(slide, blocks)
    mode, reason = _mode(slide, image, factor)
    channels = slide.channels if mode == "rechunk" else tuple(range(slide.size_c))
    pixel_bytes = len(channels) * np.dtype(slide.dtype).itemsize
    shard, tile = choose_tile_shape(slide.shape, slide.levels[0].chunks[3:], pixel_bytes)
    n_levels = len(level_shapes(slide.shape)) if mode == "convert" else 1
    whole_levels = in_block_levels(shard, n_levels)
    # Which levels are the source's own decides pixels, and doesn't depend on how many levels a task writes.
    levels = pyramid_levels(slide, whole_levels) if mode == "convert" else (PyramidLevel(slide.shape, None),)
    tile_bytes = min(tile[0], slide.shape[0]) * min(tile[1], slide.shape[1]) * pixel_bytes
    in_memory = min(whole_levels, _TILE_LEVELS)
    return ImagePlan(mode, reason, factor, channels, shard, tile, levels, in_memory, tile_bytes)


def _mode(slide: Slide, image: ImageSettings, factor: float) -> tuple[Literal["convert", "rechunk", "in place"], str]:
    in_place = f"reading it in place decodes {factor:.1f} times what the blocks use"
    if image.convert == "always":
        return "convert", "image.convert is always"
    if image.convert == "auto" and slide.kind == "tiff":
        return "convert", "TIFF is converted unless image.convert is never"
    if image.rechunk == "always":
        return "rechunk", "image.rechunk is always"
    if image.rechunk == "auto" and factor > MAX_AMPLIFICATION:
        return "rechunk", in_place
    return "in place", in_place


def read_amplification(slide: Slide, blocks: BlockGrid) -> float:
    """Return the bytes decoded per byte used when all blocks are read from the source; a chunk counts as `CHUNK_COST_BYTES` more.

    Args:
        slide: The slide, with the chunks of its level 0.
        blocks: The blocks; what they use is their outer regions.
    """
    return amplification(slide.levels[0].chunks, slide.shape, slide.channels, np.dtype(slide.dtype).itemsize, blocks)


def amplification(
    chunks: tuple[int, int, int, int, int], shape: Pair, channels: Sequence[int], itemsize: int, blocks: BlockGrid
) -> float:
    """Return `read_amplification` of any chunks, (t, c, z, y, x)."""
    t, c, z, y, x = chunks
    layers = len({channel // c for channel in channels})
    rows = [_touched(blocks, axis, (y, x)[axis], shape[axis]) for axis in (0, 1)]
    n_chunks, pixels = (rows[0][i] * rows[1][i] for i in (0, 1))
    decoded = layers * (pixels * t * c * z * itemsize + n_chunks * CHUNK_COST_BYTES)
    used_bytes = rows[0][2] * rows[1][2] * len(channels) * itemsize
    return float(decoded / used_bytes)


def _touched(blocks: BlockGrid, axis: int, chunk: int, size: int) -> tuple[int, int, int]:
    """Count along one axis, over all blocks: chunks touched, pixels in them, pixels used."""
    n_chunks = decoded = n_used = 0
    for index in range(blocks.grid_shape[axis]):
        start = max(index * blocks.block_shape[axis] - blocks.halo, 0)
        stop = min((index + 1) * blocks.block_shape[axis] + blocks.halo, size)
        first, last = start // chunk, -(-stop // chunk)
        n_chunks += last - first
        decoded += min(last * chunk, size) - first * chunk
        n_used += stop - start
    return n_chunks, decoded, n_used


def choose_tile_shape(shape: Pair, source_tile: Pair, pixel_bytes: int) -> tuple[Pair, Pair]:
    """Choose height and width of the shards, and of the conversion tiles that they are written in.

    Args:
        shape: Height and width of the level.
        source_tile: Height and width of what the source decodes at once.
        pixel_bytes: Bytes of a pixel, all channels together.

    Returns:
        Sides that are a source tile's times a power of two, at most `SHARD_SIDE` where that tile is smaller. Strips across the
        slide make conversion tiles across the slide.

    Example:
        >>> choose_tile_shape((100_000, 80_000), (256, 256), 3), choose_tile_shape((100_000, 80_000), (240, 240), 3)
        (((4096, 4096), (4096, 4096)), ((3840, 3840), (3840, 3840)))
        >>> choose_tile_shape((100_000, 80_000), (8, 80_000), 3)
        ((512, 32768), (512, 98304))
    """
    if source_tile[1] > SHARD_SIDE and source_tile[1] >= shape[1]:
        return _bands(shape, source_tile[0], pixel_bytes)
    sides = [_side(size, tile_side) for size, tile_side in zip(shape, source_tile, strict=True)]
    while sides[0] * sides[1] * pixel_bytes > TILE_BYTES and max(sides) > _SMALLEST_SIDE:
        longer = sides.index(max(sides))
        sides[longer] = _rounded(-(-sides[longer] // 2), 16)
    side = (sides[0], sides[1])
    return side, side


def _bands(shape: Pair, strip: int, pixel_bytes: int) -> tuple[Pair, Pair]:
    height, width = _side(shape[0], strip), 2 ** (shape[1] - 1).bit_length()
    while height * shape[1] * pixel_bytes > TILE_BYTES and height > 16:
        height = _rounded(-(-height // 2), 16)
    shard_width = min(width, max(SHARD_SIDE, 2 ** (SHARD_SIDE**2 // height).bit_length() // 2))
    return (height, shard_width), (height, -(-shape[1] // shard_width) * shard_width)


def _side(size: int, tile: int) -> int:
    """Return a source tile's side times a power of two: at most `SHARD_SIDE`, and no larger than the level needs."""
    side = tile if tile <= SHARD_SIDE else SHARD_SIDE
    while 2 * side <= SHARD_SIDE and side < size:
        side *= 2
    # A side that has no divisor for a chunk is rounded up: for a tile as wide as the slide, as strips are, at no cost.
    return side if largest_divisor(side, 512) >= min(128, side) else _rounded(side, 256)


def _rounded(side: int, step: int) -> int:
    return -(-side // step) * step


def largest_divisor(number: int, at_most: int) -> int:
    """Return the largest divisor of a number that is at most so large."""
    return next(divisor for divisor in range(min(at_most, number), 0, -1) if number % divisor == 0)


def level_shapes(shape: Pair) -> list[Pair]:
    """Return the shapes of a pyramid whose levels halve, rounded up, down to one that is read at once.

    Example:
        >>> level_shapes((2967, 2220))
        [(2967, 2220), (1484, 1110), (742, 555), (371, 278)]
    """
    shapes = [shape]
    while max(shapes[-1]) > _SMALLEST_LEVEL:
        shapes.append(halved(shapes[-1]))
    return shapes


def halved(shape: Pair) -> Pair:
    """Return half the size, rounded up."""
    return -(-shape[0] // 2), -(-shape[1] // 2)


def pyramid_levels(slide: Slide, in_memory: int) -> tuple[PyramidLevel, ...]:
    """Plan levels that halve; of those that aren't made in memory, the source's own is used where it has one of that size."""
    levels = [PyramidLevel(slide.shape, None)]
    while max(levels[-1].shape) > _SMALLEST_LEVEL:
        shape, number = halved(levels[-1].shape), len(levels)
        source_level = _own_level(slide.levels, shape, 2**number) if number >= in_memory else None
        levels.append(PyramidLevel(shape if source_level is None else slide.levels[source_level].shape, source_level))
    return tuple(levels)


def _own_level(levels: Sequence[Level], shape: Pair, factor: int) -> int | None:
    """Return the source's level of this size; many writers round down where we round up."""
    for number, level in enumerate(levels[1:], 1):
        if not level.is_faithful:
            continue
        sizes = zip(level.shape, shape, levels[0].shape, strict=True)
        if all(size in (halved_size, full // factor) for size, halved_size, full in sizes):
            return number
    return None


def in_block_levels(shard: Pair, n_levels: int) -> int:
    """Count the levels, from 0 on, that a block or tile fills with whole shards: its side halves evenly and stays worth a file.

    Example:
        >>> in_block_levels((2048, 2048), 8), in_block_levels((512, 512), 4)
        (4, 2)
    """
    levels = 1
    while levels < n_levels and all(side % 2**levels == 0 and side >> levels >= _SMALLEST_FILE for side in shard):
        levels += 1
    return levels


def group_blocks(block_shape: Pair) -> Pair:
    """Return how many blocks, along y and x, are written at once to a label image: the blocks of one shard of level 0.

    Example:
        >>> group_blocks((1024, 2048)), group_blocks((2304, 2304)), group_blocks((8192, 512))
        ((4, 2), (2, 2), (1, 8))
    """
    rows, columns = (_count_in_group(side) for side in block_shape)
    return rows, columns


def _count_in_group(side: int) -> int:
    # Two of micro-sam's usual blocks rather than one: a fourth of the files.
    return 2 if _GROUP_SIDE < 2 * side <= _GROUP_SIDE * 9 // 8 else max(1, _GROUP_SIDE // side)


def group_levels(group: Pair, n_levels: int) -> int:
    """Count the levels of a label image, from 0 on, that the task of a group of blocks of this height and width writes."""
    return min(in_block_levels(group, n_levels), _GROUP_LEVELS)


def shard_region(region: Region, level: int) -> Region:
    """Return a region of level 0, whole shards, on a level that halves `level` times."""
    y0, x0, y1, x1 = region
    for _ in range(level):
        y0, x0, y1, x1 = y0 // 2, x0 // 2, -(-y1 // 2), -(-x1 // 2)
    return Region(y0, x0, y1, x1)
