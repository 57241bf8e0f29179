"""Stitch block labels that are arrays in memory: the same rule as for a run's blocks, without files, a run or workers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.errors import SegmenterError, SettingsError
from slidesam.tasks.grid import Block, BlockGrid, Region
from slidesam.tasks.labels.kernels import View
from slidesam.tasks.labels.objects import describe_block
from slidesam.tasks.segment.block import check_labels, renumber
from slidesam.tasks.settings.sections import StitchSettings
from slidesam.tasks.stitch.overlaps import ReadView, compare_blocks, join_batches
from slidesam.tasks.stitch.paint import Numbering, paint_block
from slidesam.tasks.stitch.resolve import resolve_labels
from slidesam.tasks.stitch.tables import BlockLabels, LabelPairs

Labels = NDArray[np.uint32]


def stitch_arrays(blocks: Sequence[NDArray[Any]], grid: BlockGrid, rules: StitchSettings | None = None) -> Labels:
    """Join the labels of overlapping blocks into one label image.

    Args:
        blocks: One (y, x) array of any integer dtype per block of the grid, in its order: the labels of the block's outer
            region, 0 = background. Each block has its own ids.
        grid: How the image is cut into blocks.
        rules: The settings `stitch`, or None for their defaults.

    Returns:
        (y, x) uint32 of the grid's shape, ids 1..N, 0 = background.

    Raises:
        SettingsError: There isn't one array per block.
        SegmenterError: An array isn't a label image of its block's outer region.

    Example:
        >>> grid = BlockGrid((4, 8), (4, 4), 2)
        >>> image = np.zeros((4, 8), np.uint8)
        >>> image[1:3, 3:6] = 9
        >>> stitch_arrays([image[block.outer.slices] for block in grid], grid)[1]
        array([0, 0, 0, 1, 1, 1, 0, 0], dtype=uint32)
    """
    if len(blocks) != len(grid):
        raise SettingsError(
            f"{len(blocks)} label arrays for a grid of {len(grid)} blocks: give one per block, in order"
        )
    local = [_local_labels(labels, block) for labels, block in zip(blocks, grid, strict=True)]
    rules = rules or StitchSettings()
    labels, pairs = compare_arrays(local, grid, rules)
    resolution = resolve_labels(labels, pairs, rules)
    return paint_arrays(local, grid, Numbering(labels.offsets, resolution.relabelling, resolution.size))


def _local_labels(labels: NDArray[Any], block: Block) -> Labels:
    try:
        return renumber(check_labels(labels, block.outer.shape))
    except SegmenterError as error:
        raise SegmenterError(f"block {block.block_id}: {error}") from error


def compare_arrays(local: Sequence[Labels], grid: BlockGrid, rules: StitchSettings) -> tuple[BlockLabels, LabelPairs]:
    """Make the tables of all block labels and their overlaps.

    Args:
        local: Per block (y, x) labels of its outer region, ids 1..n, C-contiguous.
        grid: The blocks.
        rules: The settings `stitch`.
    """
    tables = {
        block.block_id: describe_block(labels, block, grid.shape) for labels, block in zip(local, grid, strict=True)
    }
    counts = {block_id: table.area.size for block_id, table in tables.items()}
    batch = compare_blocks(grid, range(len(grid)), tables, counts, array_views(local), rules.twin_border)
    return join_batches(grid, [batch])


def paint_arrays(local: Sequence[Labels], grid: BlockGrid, numbering: Numbering) -> Labels:
    """Paint the label image of the whole grid, (y, x) uint32, from the blocks' local labels."""
    labels = np.zeros(grid.shape, np.uint32)
    for block in grid:
        sources = [grid[block_id] for block_id in (block.block_id, *grid.neighbours(block.block_id))]
        painted = paint_block(block, sources, numbering, array_views(local), labels.dtype)
        if painted is not None:
            labels[block.inner.slices] = painted
    return labels


def array_views(local: Sequence[Labels]) -> ReadView:
    """Return the function that reads a block's labels on a region, from arrays as `compare_arrays` takes them."""

    def read_view(block: Block, region: Region) -> View:
        return View(local[block.block_id], region.relative_to(block.outer)[:2])

    return read_view
