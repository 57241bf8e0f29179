"""The table of a block's objects, made beside its labels; matches are judged from it.

Labels are at their worst near the edge of what a block sees, so the table has each object's distance from that edge.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.grid import Block, Region
from slidesam.tasks.labels.kernels import describe_labels

# Depth of an object that no edge can cut: its block sees as far as the slide goes.
DEEP = 2**30


class ObjectTable(NamedTuple):
    """The objects 1..n of one block.

    Attributes:
        area: (n,) uint32 pixels.
        owned: (n,) uint32 pixels in the block's inner region; 0 = the object is halo-only.
        box: (n, 4) int32 y0, x0, y1, x1 on the slide, half open.
        depth: (n,) int32 pixels between the object's box and the nearest edge of what the block sees; edges of the slide
            don't count. 0 = the object touches that edge and may continue beyond it.
        perimeter: (n,) uint32 sides of pixels that it shares with other labels or background.
        contacts: (m, 3) uint32 pairs of ids that touch, and how many sides of pixels they share.
    """

    area: NDArray[np.uint32]
    owned: NDArray[np.uint32]
    box: NDArray[np.int32]
    depth: NDArray[np.int32]
    perimeter: NDArray[np.uint32]
    contacts: NDArray[np.uint32]

    @classmethod
    def empty(cls) -> ObjectTable:
        """Return the table of a block without objects."""
        return cls.unpacked(np.zeros(1, np.int32))

    def packed(self) -> NDArray[np.int32]:
        """Return all columns in one array of one dimension, for a file that is read at once."""
        objects = np.column_stack([self.area, self.owned, self.depth, self.perimeter, self.box])
        return np.concatenate([[self.area.size], objects.ravel(), self.contacts.ravel()]).astype(np.int32)

    @classmethod
    def unpacked(cls, values: NDArray[np.int32]) -> ObjectTable:
        """Return the table that was packed."""
        count = int(values[0])
        objects, contacts = values[1 : 1 + 8 * count].reshape(count, 8), values[1 + 8 * count :].reshape(-1, 3)
        area, owned, perimeter = (objects[:, column].astype(np.uint32) for column in (0, 1, 3))
        return cls(area, owned, objects[:, 4:], objects[:, 2], perimeter, contacts.astype(np.uint32))


def describe_block(labels: NDArray[np.uint32], block: Block, shape: tuple[int, int]) -> ObjectTable:
    """Make the table of a block's objects.

    Args:
        labels: (y, x) local labels of the outer region, ids 1..n.
        block: The block.
        shape: Height and width of the slide in pixels.
    """
    count = int(labels.max(initial=0))
    sizes, boxes, perimeter, contacts = describe_labels(labels, count, block.inner.relative_to(block.outer))
    origin = np.array([block.outer.y0, block.outer.x0] * 2)
    return ObjectTable(
        sizes[:, 0].astype(np.uint32),
        sizes[:, 1].astype(np.uint32),
        (boxes + origin).astype(np.int32),
        _depths(boxes, block.outer, shape),
        perimeter.astype(np.uint32),
        contacts.astype(np.uint32),
    )


def _depths(boxes: NDArray[np.int64], outer: Region, shape: tuple[int, int]) -> NDArray[np.int32]:
    """Return how far boxes, in coordinates of the outer region, are from its edges inside the slide."""
    height, width = outer.shape
    sides = (
        (outer.y0 > 0, boxes[:, 0]),
        (outer.x0 > 0, boxes[:, 1]),
        (outer.y1 < shape[0], height - boxes[:, 2]),
        (outer.x1 < shape[1], width - boxes[:, 3]),
    )
    depth = np.full(len(boxes), DEEP, np.int64)
    for is_inside, distance in sides:
        if is_inside:
            np.minimum(depth, distance, out=depth)
    return depth.astype(np.int32)


def find_split_pairs(table: ObjectTable, ratio: float) -> NDArray[np.uint32]:
    """Find pairs of labels that look like one object cut in two: their common border is long for how thick both are.

    Thickness is twice the area over the perimeter: half the diameter of a disc, nearly the width of a fibre. The border between
    the halves of a disc is 3.8 times as long, that between two discs grown together at 0.8 of their diameter 2 times.

    Args:
        table: A block's objects.
        ratio: Border over thickness, for both, from which on two labels are a split pair.

    Returns:
        (k, 2) uint32 ids, the lower first.

    Example:
        >>> from slidesam.tasks.grid import BlockGrid
        >>> halves = np.zeros((12, 12), np.uint32)
        >>> halves[2:10, 2:6], halves[2:10, 6:10] = 1, 2
        >>> find_split_pairs(describe_block(halves, BlockGrid((12, 12), (12, 12), 0)[0], (12, 12)), 2.5)
        array([[1, 2]], dtype=uint32)
    """
    pairs, border = table.contacts[:, :2], table.contacts[:, 2].astype(np.float64)
    thickness = 2 * table.area / np.maximum(table.perimeter, 1)
    long = np.minimum(*(border / thickness[pairs[:, side].astype(np.int64) - 1] for side in (0, 1))) >= ratio
    return np.asarray(pairs[long], np.uint32)
