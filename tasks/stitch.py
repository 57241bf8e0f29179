"""From local labels to one numbering of the slide.

1. `match_seam`     for two blocks, on the pixels that both read: which local ids are one object, by their overlap's IoU;
2. `resolve`        union-find over all matches, then ids 1..N in order of first appearance by block;
3. `paint`          one block's inner region through its relabelling.

Only the pairs and the relabelling (bytes per object) are ever in one process, never the slide's labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


class Matches(NamedTuple):
    """Pairs of local ids judged one object.

    Attributes:
        first: (n,) int64 ids in the first block.
        second: (n,) int64 ids in the second block.
        iou: (n,) float64 evidence, in (0, 1].
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    iou: NDArray[np.float64]


def match_seam(first: NDArray[np.uint32], second: NDArray[np.uint32], min_iou: float) -> Matches:
    """Which labels of two blocks are one object, judged on the overlap.

    Args:
        first: (y, x) local labels of one block on the overlap.
        second: (y, x) local labels of the other block on the same pixels.
        min_iou: Intersection over union, on the overlap alone, from which on two labels match.

    Returns:
        The matches, ordered by their ids.

    Example:
        >>> a = np.array([[1, 1, 0], [0, 2, 2]], np.uint32)
        >>> b = np.array([[5, 5, 0], [0, 0, 7]], np.uint32)
        >>> match_seam(a, b, 0.6).first, match_seam(a, b, 0.3).second
        (array([1]), array([5, 7]))
    """
    if first.shape != second.shape:
        raise ValueError(f"two views of one overlap differ in shape: {first.shape} and {second.shape}")
    a, b = first.ravel().astype(np.int64), second.ravel().astype(np.int64)
    area_a, area_b = np.bincount(a), np.bincount(b)
    both = (a > 0) & (b > 0)
    pairs, intersection = np.unique(a[both] * area_b.size + b[both], return_counts=True)
    ids_a, ids_b = np.divmod(pairs, area_b.size)
    iou = intersection / (area_a[ids_a] + area_b[ids_b] - intersection)
    keep = iou >= min_iou
    return Matches(ids_a[keep], ids_b[keep], iou[keep])


def resolve(
    counts: Sequence[int], visible: Sequence[NDArray[np.bool_]], matches: Iterable[tuple[int, int, Matches]]
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """One relabelling for the slide.

    Args:
        counts: Number of local ids of each block, so that block k's ids are 1..counts[k].
        visible: Per block, (counts[k],) whether a local id has pixels in the block's inner region. One that has none is
            never painted, and joins nothing: near the end of what a block sees its labels are at their worst, and would
            join objects that their owner tells apart.
        matches: (first block, second block, their matches).

    Returns:
        Offsets of shape (blocks + 1,), int64, and the relabelling, int64: the id in the slide of block k's local id i is
        `relabelling[offsets[k] + i - 1]`, 0 where nothing of that object is painted. And N, the number of objects:
        ids are 1..N by first appearance in block order, which depends on labels and matches alone.
    """
    offsets = np.concatenate([[0], np.cumsum(np.asarray(counts, np.int64))]).astype(np.int64)
    total = int(offsets[-1])
    if total == 0:
        return offsets, np.zeros(0, np.int64), 0
    painted = np.concatenate(list(visible))
    edges = [(offsets[one] + found.first - 1, offsets[two] + found.second - 1) for one, two, found in matches]
    rows = np.concatenate([np.zeros(0, np.int64), *(edge[0] for edge in edges)])
    columns = np.concatenate([np.zeros(0, np.int64), *(edge[1] for edge in edges)])
    owned = painted[rows] & painted[columns]
    rows, columns = rows[owned], columns[owned]
    graph = coo_array((np.ones(rows.size, bool), (rows, columns)), shape=(total, total))
    groups: NDArray[np.int64] = connected_components(graph, directed=False)[1].astype(np.int64)
    return offsets, *_numbered(groups, painted)


def _numbered(groups: NDArray[np.int64], painted: NDArray[np.bool_]) -> tuple[NDArray[np.int64], int]:
    """Numbers groups 1..N by their first painted member; groups that nobody paints become 0."""
    found, first_at = np.unique(groups[painted], return_index=True)
    ids = np.zeros(int(groups.max()) + 1, np.int64)
    ids[found[np.argsort(first_at)]] = np.arange(1, found.size + 1)
    return ids[groups], int(found.size)


def visible_ids(inner: NDArray[np.uint32], count: int) -> NDArray[np.bool_]:
    """(count,) whether each of the local ids 1..count has a pixel in the inner region's labels, (y, x)."""
    present = np.zeros(count + 1, bool)
    present[inner.ravel()] = True
    return present[1:]


def paint(inner: NDArray[np.uint32], relabelling: NDArray[np.int64], dtype: np.dtype[Any]) -> NDArray[Any]:
    """A block's inner region in the slide's numbering.

    Args:
        inner: (y, x) local labels of the inner region.
        relabelling: (count,) this block's slice of the relabelling.
        dtype: Unsigned integers that hold the largest id.

    Returns:
        (y, x) of `dtype`.
    """
    lookup = np.concatenate([np.zeros(1, dtype), relabelling.astype(dtype)])
    painted: NDArray[Any] = lookup[inner]
    return painted
