"""Compare two blocks on the pixels that both see: which labels overlap, and by how much. Nothing is decided here."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.grid import Region
from slidesam.tasks.labels.kernels import View, count_overlaps


class SeamOverlaps(NamedTuple):
    """What two views of the same pixels have in common.

    Attributes:
        pairs: (n, 7) int32, a row per pair of labels that share a pixel: label in the first block, in the second, shared pixels,
            of those on what the first owns, on what the second owns, the labels' pixels on the overlap.
        reach: (m, 4) int32, a row per label that reaches into what the other block owns: 0 or 1 for whose label it is, the label,
            its pixels there, of those the ones where the other block sees background.
    """

    pairs: NDArray[np.int32]
    reach: NDArray[np.int32]


def compare_views(
    first: View, second: View, shape: tuple[int, int], first_owns: Region, second_owns: Region
) -> SeamOverlaps:
    """Count the pixels that labels of two blocks share.

    Args:
        first: Local labels of one block on the overlap.
        second: Local labels of the other block on the same pixels.
        shape: Height and width of the overlap in pixels.
        first_owns: Which of these pixels the first block owns, in coordinates of the overlap; may be empty.
        second_owns: The same for the second.

    Example:
        >>> a, b = np.array([[1, 1, 0, 0]], np.uint32), np.array([[5, 5, 5, 0]], np.uint32)
        >>> overlaps = compare_views(View(a), View(b), (1, 4), Region(0, 0, 1, 2), Region(0, 2, 1, 4))
        >>> overlaps.pairs.tolist(), overlaps.reach.tolist()
        ([[1, 5, 2, 2, 0, 2, 3]], [[1, 5, 2, 0]])
    """
    id_one, id_two, counts = count_overlaps(first, second, shape, first_owns, second_owns)
    area_one, area_two = _sums(id_one, counts[:, 0]), _sums(id_two, counts[:, 0])
    pair = (id_one > 0) & (id_two > 0)
    pairs = np.column_stack([id_one[pair], id_two[pair], counts[pair], area_one[id_one[pair]], area_two[id_two[pair]]])
    reach = [_reach(0, id_one, id_two, counts[:, 2]), _reach(1, id_two, id_one, counts[:, 1])]
    return SeamOverlaps(pairs.astype(np.int32), np.concatenate(reach).astype(np.int32))


def _sums(labels: NDArray[np.int64], pixels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return pixels by label."""
    return np.bincount(labels, pixels, minlength=1).astype(np.int64)


def _reach(
    side: int, labels: NDArray[np.int64], other_labels: NDArray[np.int64], pixels: NDArray[np.int64]
) -> NDArray[np.int64]:
    inside, free = _sums(labels, pixels), _sums(labels, np.where(other_labels == 0, pixels, 0))
    reaching = np.flatnonzero(inside[1:]) + 1
    return np.column_stack([np.full(reaching.size, side), reaching, inside[reaching], free[reaching]])
