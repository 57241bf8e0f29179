"""stardist: the block machinery of `predict_instances_big`: the block responsible for a bounding box owns its object.

The loop of `predict_instances_big` with the network's call replaced: `crop_context`, `filter_objects`,
`relabel_sequential`, `write`, block by block, serial. No TensorFlow is imported. Adapted: `BlockND.cover` makes blocks
of one size and shifts them to fit, so the chain is built from `Block` with the case's own outer regions; the whole
overlap of two halos is `min_overlap` and nothing of it is discarded as context; there are no polygons. An object that
is larger than the overlap where blocks meet breaks stardist's assumption, and stardist raises.
"""

from __future__ import annotations

from itertools import pairwise, product
from pathlib import Path

import numpy as np
import zarr
from stardist.big import Block, BlockND
from stardist.matching import relabel_sequential

from benchmarks.stitching.case import Case

DISTRIBUTION = "stardist"


def stitch(case: Case, out: Path) -> None:
    """Merges the blocks of a case with stardist.

    Args:
        case: The case.
        out: Where the global labels go, a zarr array (y, x).
    """
    array = zarr.create_array(out, shape=case.shape, chunks=case.block_shape, dtype="int32")
    offset = 1
    for block in _cover(case):
        labels = block.crop_context(case.labels(block.id).astype(np.int32))
        labels = block.filter_objects(labels, None)
        count = len(np.unique(labels[labels > 0]))
        block.write(array, relabel_sequential(labels, offset)[0])
        offset += count


def _cover(case: Case) -> list[BlockND]:
    """The case's blocks, in order."""
    columns = case.grid_shape[1]
    chains = (
        _chain([case.outer(row * columns)[0] for row in range(case.grid_shape[0])], case.halo),
        _chain([case.outer(column)[1] for column in range(columns)], case.halo),
    )
    return [BlockND(block_id, blocks, "YX") for block_id, blocks in enumerate(product(*chains))]


def _chain(regions: list[slice], halo: int) -> list[Block]:
    """The blocks along one axis, each linked to the next."""
    blocks: list[Block] = []
    for region in regions:
        size = region.stop - region.start
        block = Block(size, min(2 * halo, size - 1), 0, blocks[-1] if blocks else None)
        if blocks:
            blocks[-1].succ = block
        blocks.append(block)
    for block, (here, there) in zip(blocks, pairwise(regions), strict=False):
        block.stride = there.start - here.start
    blocks[0].freeze()
    if [(block.start, block.end) for block in blocks] != [(region.start, region.stop) for region in regions]:
        raise ValueError("stardist's blocks are not the case's")
    return blocks
