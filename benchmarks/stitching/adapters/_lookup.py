"""Finds the block that a peer is asking about, for peers whose segmentation function is given pixels and nothing else.

Such a peer is given an image in which each pixel holds the id of the block that owns it. Whatever part of that image
the peer cuts out, its place follows from its first row and column: the id at the corner, and how far that block reaches
into the part.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from benchmarks.stitching.case import Case


def labels_of(case: Case, ids: NDArray[np.integer]) -> NDArray[np.uint32]:
    """A block's labels, given the ids of its outer region's owners.

    Args:
        case: The case.
        ids: (y, x) the part of the image of block ids that the peer cut out.

    Returns:
        (y, x) that block's labels.

    Raises:
        ValueError: The peer cut out something that is no block's outer region: its result would not be comparable.
    """
    if case.halo >= min(case.block_shape):
        raise ValueError("blocks cannot be told apart where the halo is as wide as a block")
    columns = case.grid_shape[1]
    row = _index(ids[:, 0] // columns, case.shape[0], case.block_shape[0], case.halo)
    column = _index(ids[0] % columns, case.shape[1], case.block_shape[1], case.halo)
    labels = case.labels(row * columns + column)
    if labels.shape != ids.shape:
        raise ValueError(f"the peer asked for {ids.shape} pixels at block {row}, {column}, which sees {labels.shape}")
    return labels


def _index(owners: NDArray[np.integer], size: int, side: int, halo: int) -> int:
    """Index of the block, along one axis, whose outer region has these owners."""
    first = int(owners[0])
    start = min((first + 1) * side, size) - int(np.count_nonzero(owners == first))
    index, rest = divmod(start + halo if start else 0, side)
    if rest:
        raise ValueError(f"the peer asked for pixels from {start} on, where no block's outer region begins")
    return index
