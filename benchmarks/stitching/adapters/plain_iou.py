"""The plain IoU rule, in memory: the reference that says what the rule itself gives, whoever implements it.

Labels of two neighbouring blocks (corners included) are one object where they agree at IoU >= 0.3 on the pixels that
both blocks see; all labels take part, also those only in the halo. Groups are the connected components; each block
paints its inner region. One process, one thread. Areas are counted on the whole shared region, background of the other
block included.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import zarr
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from benchmarks.stitching.case import Case, Slices

DISTRIBUTION = None
MIN_IOU = 0.3


def stitch(case: Case, out: Path) -> None:
    """Merges the blocks of a case by the plain IoU rule.

    Args:
        case: The case.
        out: Where the global labels go, a zarr array (y, x).
    """
    labels = list(case.all_labels())
    # A label's node is its id plus its block's first; local 0 is no node that anything links to.
    firsts = np.cumsum([0, *(int(block.max()) + 1 for block in labels)])
    links = [
        _matches(labels[a][_crop(case, a, shared)], labels[b][_crop(case, b, shared)]) + firsts[[a, b]]
        for a, b, shared in _neighbours(case)
    ]
    nodes = np.concatenate([np.empty((0, 2), np.int64), *links])
    graph = coo_array((np.ones(len(nodes), bool), (nodes[:, 0], nodes[:, 1])), shape=(firsts[-1], firsts[-1]))
    _paint(case, out, labels, firsts, connected_components(graph, directed=False)[1])


def _neighbours(case: Case) -> Iterator[tuple[int, int, Slices]]:
    """Each pair of neighbouring blocks once, with the pixels that both see."""
    rows, columns = case.grid_shape
    for row, column in np.ndindex(rows, columns):
        for y, x in ((0, 1), (1, -1), (1, 0), (1, 1)):
            if row + y < rows and 0 <= column + x < columns:
                a, b = row * columns + column, (row + y) * columns + column + x
                shared = tuple(
                    slice(max(i.start, j.start), min(i.stop, j.stop))
                    for i, j in zip(case.outer(a), case.outer(b), strict=True)
                )
                if all(side.start < side.stop for side in shared):
                    yield a, b, (shared[0], shared[1])


def _crop(case: Case, block_id: int, region: Slices) -> Slices:
    """A region of the slide in the coordinates of a block's labels."""
    y, x = (
        slice(side.start - outer.start, side.stop - outer.start)
        for side, outer in zip(region, case.outer(block_id), strict=True)
    )
    return y, x


def _matches(a: NDArray[np.uint32], b: NDArray[np.uint32]) -> NDArray[np.int64]:
    """(match, 2) the labels of two blocks that agree on the pixels that both see."""
    areas_a, areas_b = np.bincount(a.ravel()), np.bincount(b.ravel())
    both = (a > 0) & (b > 0)
    pairs, shared = np.unique(a[both].astype(np.int64) * len(areas_b) + b[both], return_counts=True)
    of_a, of_b = np.divmod(pairs, len(areas_b))
    agree = shared / (areas_a[of_a] + areas_b[of_b] - shared) >= MIN_IOU
    return np.stack([of_a[agree], of_b[agree]], axis=1)


def _paint(
    case: Case,
    out: Path,
    labels: list[NDArray[np.uint32]],
    firsts: NDArray[np.int64],
    groups: NDArray[np.int32],
) -> None:
    """Writes each block's inner region, the groups that show there numbered 1..N."""
    inner = [block[_crop(case, block_id, case.inner(block_id))] for block_id, block in enumerate(labels)]
    shown = [np.unique(block[block > 0]) + first for block, first in zip(inner, firsts[:-1], strict=True)]
    painted = np.unique(groups[np.concatenate(shown)])
    numbers = np.zeros(int(groups.max()) + 1, np.uint32)
    numbers[painted] = np.arange(1, len(painted) + 1)
    array = zarr.create_array(out, shape=case.shape, chunks=case.block_shape, dtype="uint32")
    for block_id, block in enumerate(inner):
        names = numbers[groups[firsts[block_id] : firsts[block_id + 1]]]
        names[0] = 0  # the background of a block is a group of its own
        array[case.inner(block_id)] = names[block]
