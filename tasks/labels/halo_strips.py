"""Halo strips: a block's labels along the edges that it shares, nearly all that its neighbours read of it. No files.

A strip is as wide as the overlap of two blocks, so twice the halo: all seams are compared, and all neighbours painted, from
strips. What they don't show of a block is its core.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.grid import Block, BlockGrid, Region


class Strip(NamedTuple):
    """A block's labels along one edge, or of its core.

    Attributes:
        region: Where on the slide they lie.
        labels: (y, x) uint32 local labels of the block.
    """

    region: Region
    labels: NDArray[np.uint32]


def cut_strips(grid: BlockGrid, block: Block, labels: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Return the pixels of a block's halo strips, one strip after the other, from its (y, x) labels of the outer region."""
    strips = [labels[region.relative_to(block.outer).slices].ravel() for region in place_strips(grid, block)]
    return np.concatenate([np.zeros(0, np.uint32), *strips])


def join_strips(grid: BlockGrid, block: Block, pixels: NDArray[np.uint32]) -> list[Strip]:
    """Return the strips that were cut."""
    regions = place_strips(grid, block)
    ends = np.cumsum([region.shape[0] * region.shape[1] for region in regions], dtype=np.int64)
    columns = np.split(pixels, ends[:-1]) if regions else []
    return [Strip(region, column.reshape(region.shape)) for region, column in zip(regions, columns, strict=True)]


def place_strips(grid: BlockGrid, block: Block) -> list[Region]:
    """Return where on the slide a block's strips lie: along each edge of its outer region inside the slide.

    There are none where strips would take more room than the block has.
    """
    outer, width = block.outer, 2 * grid.halo
    if 2 * width > min(outer.shape):
        return []
    strips = (
        (outer.y0 > 0, outer._replace(y1=outer.y0 + width)),
        (outer.y1 < grid.shape[0], outer._replace(y0=outer.y1 - width)),
        (outer.x0 > 0, outer._replace(x1=outer.x0 + width)),
        (outer.x1 < grid.shape[1], outer._replace(x0=outer.x1 - width)),
    )
    return [strip for is_inside, strip in strips if is_inside and width]


def place_core(grid: BlockGrid, block: Block) -> Region:
    """Return the region of a block's labels that is kept beside its strips: with them it covers the outer region.

    Without strips it is the outer region. Else it is the inner one, and what lies beyond it where there is no strip.
    """
    outer, inner = block.outer, block.inner
    if not place_strips(grid, block):
        return outer
    return Region(
        inner.y0 if outer.y0 > 0 else outer.y0,
        inner.x0 if outer.x0 > 0 else outer.x0,
        inner.y1 if outer.y1 < grid.shape[0] else outer.y1,
        inner.x1 if outer.x1 < grid.shape[1] else outer.x1,
    )
