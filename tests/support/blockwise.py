"""Segmenting, comparing, resolving and painting in one process, on arrays: the pipeline's own functions without files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from slidesam.tasks.grid import BlockGrid
from slidesam.tasks.labels.kernels import View, overlay
from slidesam.tasks.labels.objects import describe_block, twins
from slidesam.tasks.segment.block import segment_outer
from slidesam.tasks.segmenters.function import PlainFunction
from slidesam.tasks.settings.sections import StitchSettings
from slidesam.tasks.stitch.match import compare_views
from slidesam.tasks.stitch.resolve import resolve
from slidesam.tasks.stitch.tables import Instances, Pairs, Resolution

Labels = np.ndarray


class Stitched(NamedTuple):
    """The result, and what it was made from."""

    labels: Labels
    resolution: Resolution
    instances: Instances
    pairs: Pairs


def segmented(image: np.ndarray, grid: BlockGrid, function: Callable[[np.ndarray], Labels]) -> list[Labels]:
    """Local labels of each block's outer region."""
    fill = np.zeros(1, image.dtype)
    return [
        segment_outer(image[block.outer.slices][..., None], block, grid, PlainFunction(function), {}, fill)
        for block in grid
    ]


def stitched(outer: Sequence[Labels], grid: BlockGrid, rules: StitchSettings | None = None, order: int = 1) -> Stitched:
    """The slide's labels from the blocks' labels; seams are looked at in order or against it."""
    rules = rules or StitchSettings()
    instances, pairs = gathered([np.ascontiguousarray(labels, np.uint32) for labels in outer], grid, rules, order)
    resolution = resolve(instances, pairs, rules)
    return Stitched(painted(outer, grid, instances, resolution, order), resolution, instances, pairs)


def gathered(
    outer: Sequence[Labels], grid: BlockGrid, rules: StitchSettings, order: int = 1
) -> tuple[Instances, Pairs]:
    """All objects and all overlaps."""
    tables = [describe_block(labels, block, grid.shape) for labels, block in zip(outer, grid, strict=True)]
    offsets = np.concatenate([[0], np.cumsum([table.area.size for table in tables])]).astype(np.int64)
    couples = [
        twins(table, rules.twin_border).astype(np.int64) + start - 1
        for table, start in zip(tables, offsets[:-1], strict=True)
    ]
    columns = {
        name: np.concatenate([getattr(table, name) for table in tables]).astype(np.int64)
        for name in ("area", "owned", "depth", "box")
    }
    instances = Instances(offsets=offsets, twins=np.concatenate(couples), halo=grid.halo, **columns)
    pairs, reach = [np.zeros((0, 7), np.int64)], [np.zeros((0, 4), np.int64)]
    for seam in list(grid.seams())[::order]:
        blocks = grid[seam.first], grid[seam.second]
        views = [View(outer[b.block_id], seam.overlap.relative_to(b.outer)[:2]) for b in blocks]
        owns = [(b.inner & seam.overlap).relative_to(seam.overlap) for b in blocks]
        found = compare_views(views[0], views[1], seam.overlap.shape, owns[0], owns[1])
        starts = offsets[list(seam[:2])] - 1
        shift = np.array([starts[0], starts[1], 0, 0, 0, 0, 0])
        pairs.append(found.pairs + shift)
        side = found.reach[:, 0]
        into = np.array(seam[:2])[1 - side]
        reach.append(np.column_stack([into, found.reach[:, 1] + starts[side], found.reach[:, 2:]]))
    rows, reaching = np.concatenate(pairs), np.concatenate(reach)
    return instances, Pairs(
        first=rows[:, 0],
        second=rows[:, 1],
        shared=rows[:, 2],
        shared_owned=rows[:, 3:5],
        area=rows[:, 5:7],
        reaching=reaching[:, 1],
        into=reaching[:, 0],
        reach=reaching[:, 2:],
    )


def painted(
    outer: Sequence[Labels], grid: BlockGrid, instances: Instances, resolution: Resolution, order: int = 1
) -> Labels:
    """Every block's inner region, its own labels and what neighbours' objects reach into it, in order or against it."""
    result = np.zeros(grid.shape, np.uint32)
    for block in list(grid)[::order]:
        for block_id in [block.block_id, *grid.neighbours(block.block_id)][::order]:
            start, stop = instances.offsets[block_id : block_id + 2]
            ids = np.concatenate([[0], resolution.relabelling[start:stop]])
            ids = np.abs(ids) if block_id == block.block_id else ids
            other = grid[block_id]
            region = block.inner & other.outer
            view = View(np.ascontiguousarray(outer[block_id], np.uint32), region.relative_to(other.outer)[:2])
            overlay(result, region[:2], view, region.shape, ids, resolution.size)
    return result
