"""Paint the labels of a block's inner region from the block labels of itself and its neighbours. No files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from slidesam.tasks.grid import Block, Region
from slidesam.tasks.labels.kernels import overlay
from slidesam.tasks.stitch.overlaps import ReadView


class Numbers(Protocol):
    """The ids that block labels get in the slide, whether in memory or read when they are asked for."""

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(objects + 1,) pixels that each object claims, by id; of the ids that were asked for."""

    def ids(self, block_id: int) -> NDArray[np.int64]:
        """Return the id in the slide by a block's local label, 0 for background."""


class Numbering(NamedTuple):
    """The ids that block labels get in the slide, in memory.

    Attributes:
        offsets: (blocks + 1,) int64 first label of each block, as in `BlockLabels`.
        relabelling: (labels,) int64 as in `Resolution`.
        sizes: (objects + 1,) int64 pixels that each object claims, by id.
    """

    offsets: NDArray[np.int64]
    relabelling: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def ids(self, block_id: int) -> NDArray[np.int64]:
        """Return the id in the slide by a block's local label, 0 for background."""
        start, stop = self.offsets[block_id : block_id + 2]
        return np.concatenate([np.zeros(1, np.int64), self.relabelling[start:stop]])


def paint_block(
    block: Block, sources: Iterable[Block], numbering: Numbers, read_view: ReadView, dtype: DTypeLike
) -> NDArray[Any] | None:
    """Paint a block's inner region.

    Args:
        block: The block.
        sources: The segmented blocks that see the region: the block itself and its neighbours, in any order.
        numbering: The ids of their labels.
        read_view: Returns a block's labels on a region; called for blocks that paint something only.
        dtype: Of the result.

    Returns:
        (y, x) ids; None where no block paints anything.
    """
    painted: NDArray[Any] = np.zeros(block.inner.shape, dtype)
    is_empty = True
    for source in sources:
        ids = numbering.ids(source.block_id)
        # Of another block's labels only those that are painted as a whole reach this block.
        ids = np.abs(ids) if source == block else ids
        if not (ids > 0).any():
            continue
        region = block.inner & source.outer
        at = region.relative_to(block.inner)[:2]
        overlay(painted, at, read_view(source, region), region.shape, ids, numbering.sizes)
        is_empty = False
    return None if is_empty else painted


def paint_group(
    blocks: Sequence[Block], paint: Callable[[Block], NDArray[Any] | None], dtype: DTypeLike
) -> tuple[Region, NDArray[Any] | None]:
    """Paint the blocks of a group side by side.

    Args:
        blocks: Neighbouring blocks that fill a rectangle, in C order.
        paint: Returns a block's (y, x) ids; None where nothing is painted.
        dtype: Of the result.

    Returns:
        The rectangle, and its (y, x) ids; None where no block paints anything.
    """
    first, last = blocks[0].inner, blocks[-1].inner
    region = Region(first.y0, first.x0, last.y1, last.x1)
    painted: NDArray[Any] | None = None
    for block in blocks:
        labels = paint(block)
        if labels is None:
            continue
        if painted is None:
            painted = np.zeros(region.shape, dtype)
        painted[block.inner.relative_to(region).slices] = labels
    return region, painted
