"""Segment, compare, resolve and paint on arrays, keeping what the labels were made from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from slidesam.tasks.grid import BlockGrid
from slidesam.tasks.segment.block import segment_outer
from slidesam.tasks.segmenters.function import PlainFunction
from slidesam.tasks.settings.sections import StitchSettings
from slidesam.tasks.stitch.arrays import array_views, compare_arrays, paint_arrays
from slidesam.tasks.stitch.paint import Numbering, paint_block
from slidesam.tasks.stitch.resolve import resolve_labels
from slidesam.tasks.stitch.tables import BlockLabels, LabelPairs, Resolution

Labels = np.ndarray


class Stitched(NamedTuple):
    """The result, and what it was made from."""

    labels: Labels
    resolution: Resolution
    block_labels: BlockLabels
    pairs: LabelPairs


def segmented(image: np.ndarray, grid: BlockGrid, function: Callable[[np.ndarray], Labels]) -> list[Labels]:
    """Segment each block's outer region into local labels."""
    fill = np.zeros(1, image.dtype)
    return [
        segment_outer(image[block.outer.slices][..., None], block, grid, PlainFunction(function), {}, fill)
        for block in grid
    ]


def stitched(outer: Sequence[Labels], grid: BlockGrid, rules: StitchSettings | None = None) -> Stitched:
    """Stitch the blocks' labels into the slide's."""
    rules = rules or StitchSettings()
    local = [np.ascontiguousarray(labels, np.uint32) for labels in outer]
    block_labels, pairs = compare_arrays(local, grid, rules)
    resolution = resolve_labels(block_labels, pairs, rules)
    return Stitched(paint_arrays(local, grid, numbering(block_labels, resolution)), resolution, block_labels, pairs)


def stitched_backwards(outer: Sequence[Labels], grid: BlockGrid, rules: StitchSettings) -> Stitched:
    """Stitch as `stitched` does, but with all pairs, blocks and neighbours in the opposite order."""
    local = [np.ascontiguousarray(labels, np.uint32) for labels in outer]
    block_labels, pairs = compare_arrays(local, grid, rules)
    pairs = LabelPairs(**{name: column[::-1] for name, column in vars(pairs).items()})
    resolution = resolve_labels(block_labels, pairs, rules)
    labels = np.zeros(grid.shape, np.uint32)
    for block in list(grid)[::-1]:
        sources = [grid[block_id] for block_id in (block.block_id, *grid.neighbours(block.block_id))][::-1]
        painted = paint_block(block, sources, numbering(block_labels, resolution), array_views(local), labels.dtype)
        if painted is not None:
            labels[block.inner.slices] = painted
    return Stitched(labels, resolution, block_labels, pairs)


def numbering(block_labels: BlockLabels, resolution: Resolution) -> Numbering:
    """Combine what painting needs."""
    return Numbering(block_labels.offsets, resolution.relabelling, resolution.size)
