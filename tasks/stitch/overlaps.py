"""Tables of block labels and their overlaps: made for a batch of blocks, then joined for the whole slide. No files.

1. `compare_blocks`  what the blocks of a batch share with their neighbours
2. `join_batches`    the tables of the whole slide, in which labels are numbered through
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.grid import Block, BlockGrid, Region
from slidesam.tasks.labels.kernels import View
from slidesam.tasks.labels.objects import ObjectTable, find_split_pairs
from slidesam.tasks.stitch.compare import compare_views
from slidesam.tasks.stitch.tables import BlockLabels, LabelPairs, scale_min_depth

# Returns a block's labels on a region of the slide that the block sees.
ReadView = Callable[[Block, Region], View]


class BatchOverlaps(NamedTuple):
    """The labels of a batch of blocks, and what they share with neighbours; on disk these are the arrays of one file.

    Attributes:
        blocks: (b,) int64 ids of the batch's segmented blocks.
        counts: (b,) int64 how many labels each of them has.
        area: (n,) int32 of all their labels, block after block; this and the next three are columns of `ObjectTable`.
        owned: (n,) int32.
        depth: (n,) int32.
        box: (n, 4) int32.
        twins: (k, 3) int64 a block, and two labels of it that look like one object cut in two.
        pairs: (p, 9) int32 first block, second block, then the columns of `SeamOverlaps.pairs`.
        reach: (r, 5) int32 a block, its label, the block that it reaches into, then pixels as in `SeamOverlaps.reach`.
    """

    blocks: NDArray[np.int64]
    counts: NDArray[np.int64]
    area: NDArray[np.int32]
    owned: NDArray[np.int32]
    depth: NDArray[np.int32]
    box: NDArray[np.int32]
    twins: NDArray[np.int64]
    pairs: NDArray[np.int32]
    reach: NDArray[np.int32]


def compare_blocks(
    grid: BlockGrid,
    batch: Sequence[int],
    tables: Mapping[int, ObjectTable],
    counts: Mapping[int, int],
    read_view: ReadView,
    twin_border: float,
) -> BatchOverlaps:
    """Compare blocks with their neighbours, at the seams in which a block of the batch comes first.

    Args:
        grid: All blocks of the slide.
        batch: Ids of the blocks.
        tables: Block id → its objects, for the segmented blocks of the batch.
        counts: Block id → how many labels it has, for the segmented blocks of the batch and around it. A block that isn't in
            here was left out.
        read_view: Returns a block's labels on a region; called for blocks that have labels only.
        twin_border: The setting `stitch.twin_border`.
    """
    pairs, reach = [np.zeros((0, 9), np.int32)], [np.zeros((0, 5), np.int32)]
    for seam in (seam for block_id in batch for seam in grid.seams(block_id)):
        if seam.first not in counts and seam.second not in counts:
            continue
        blocks = grid[seam.first], grid[seam.second]
        view_one, view_two = (
            read_view(block, seam.overlap)
            if counts.get(block.block_id)
            else View(np.zeros(seam.overlap.shape, np.uint32))
            for block in blocks
        )
        first_owns, second_owns = ((block.inner & seam.overlap).relative_to(seam.overlap) for block in blocks)
        overlaps = compare_views(view_one, view_two, seam.overlap.shape, first_owns, second_owns)
        ids = np.array(seam[:2], np.int32)
        pairs.append(np.column_stack([np.broadcast_to(ids, (len(overlaps.pairs), 2)), overlaps.pairs]))
        side = overlaps.reach[:, 0]
        reach.append(np.column_stack([ids[side], overlaps.reach[:, 1], ids[1 - side], overlaps.reach[:, 2:]]))
    split_pairs = [_with_block(block_id, find_split_pairs(table, twin_border)) for block_id, table in tables.items()]
    return BatchOverlaps(
        blocks=np.array(list(tables), np.int64),
        counts=np.array([table.area.size for table in tables.values()], np.int64),
        area=_joined([table.area for table in tables.values()]),
        owned=_joined([table.owned for table in tables.values()]),
        depth=_joined([table.depth for table in tables.values()]),
        box=_joined([table.box for table in tables.values()], 4),
        twins=np.concatenate([np.zeros((0, 3), np.int64), *split_pairs]),
        pairs=np.concatenate(pairs),
        reach=np.concatenate(reach),
    )


def _joined(columns: Iterable[NDArray[Any]], *shape: int) -> NDArray[np.int32]:
    return np.concatenate([np.zeros((0, *shape), np.int32), *(column.astype(np.int32) for column in columns)])


def _with_block(block_id: int, rows: NDArray[np.uint32]) -> NDArray[np.int64]:
    return np.column_stack([np.full(len(rows), block_id), rows]).astype(np.int64)


def join_batches(
    grid: BlockGrid, batches: Sequence[BatchOverlaps], factor: tuple[float, float] = (1.0, 1.0)
) -> tuple[BlockLabels, LabelPairs]:
    """Join the tables of all batches, at least one, into those of the slide.

    Args:
        grid: All blocks of the slide.
        batches: Their tables.
        factor: Pixels of the grid per pixel that the segmenter saw, along y and x.
    """
    joined = BatchOverlaps(*(np.concatenate(columns) for columns in zip(*batches, strict=True)))
    per_block = np.zeros(len(grid), np.int64)
    per_block[joined.blocks] = joined.counts
    offsets = np.concatenate([[0], np.cumsum(per_block)])
    # Batches aren't in block order.
    rows = _rows_in_block_order(joined.blocks, joined.counts, offsets)
    labels = BlockLabels(
        offsets=offsets,
        area=_placed(joined.area, rows),
        owned=_placed(joined.owned, rows),
        depth=_placed(joined.depth, rows),
        box=_placed(joined.box, rows),
        split_pairs=offsets[joined.twins[:, :1]] + joined.twins[:, 1:] - 1,
        halo=grid.halo,
        min_depth=scale_min_depth(factor),
    )
    pairs, reach = joined.pairs.astype(np.int64), joined.reach.astype(np.int64)
    return labels, LabelPairs(
        first=offsets[pairs[:, 0]] + pairs[:, 2] - 1,
        second=offsets[pairs[:, 1]] + pairs[:, 3] - 1,
        shared=pairs[:, 4],
        shared_owned=pairs[:, 5:7],
        area=pairs[:, 7:9],
        reaching=offsets[reach[:, 0]] + reach[:, 1] - 1,
        into=reach[:, 2],
        reach=reach[:, 3:5],
    )


def _rows_in_block_order(
    blocks: NDArray[np.int64], counts: NDArray[np.int64], offsets: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the row, in block order, of each label of columns that hold these blocks one after the other."""
    n_before = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return np.repeat(offsets[blocks] - n_before, counts) + np.arange(int(counts.sum()))


def _placed(column: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[Any]:
    out = np.empty_like(column)
    out[rows] = column
    return out
