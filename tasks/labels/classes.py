"""Count the votes on the classes of a block's objects."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.grid import Block
from slidesam.tasks.labels.kernels import View, count_overlaps
from slidesam.tasks.segmenters.votes import Votes


def count_votes(labels: NDArray[np.uint32], votes: Votes, block: Block) -> NDArray[np.float64]:
    """Add up the votes of each object's pixels.

    Args:
        labels: (y, x) local labels of a block's outer region, ids 1..n.
        votes: Votes of the same pixels.
        block: The block.

    Returns:
        (n, 2, classes) votes of all pixels of each object, and of those in the block's inner region.

    Example:
        >>> from slidesam.tasks.grid import BlockGrid
        >>> block = BlockGrid((1, 8), (1, 4), 2)[0]
        >>> labels = np.array([[0, 0, 1, 1, 1, 2]], np.uint32)
        >>> votes = Votes(np.array([[0, 0, 1, 1, 0, 1]], np.uint32), np.eye(2))
        >>> count_votes(labels, votes, block).tolist()
        [[[1.0, 2.0], [0.0, 2.0]], [[0.0, 1.0], [0.0, 0.0]]]
    """
    owned, nothing = block.inner.relative_to(block.outer), (0, 0, 0, 0)
    views = View(np.ascontiguousarray(labels)), View(np.ascontiguousarray(votes.rows))
    ids, rows, pixels = count_overlaps(*views, block.outer.shape, owned, nothing)
    counted = np.zeros((int(labels.max(initial=0)) + 1, 2, votes.shares.shape[1]))
    # In the order of ids and rows, so that the last bits of sums are always the same.
    np.add.at(counted, ids, pixels[:, :2, None] * votes.shares[rows][:, None])
    return counted[1:]
