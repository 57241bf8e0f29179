"""The tables that stitching works on: the labels of all blocks, the pairs of them that overlap, and what becomes of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
# An object this close to the edge of what its block sees may go on beyond it; segmenters often leave the last pixel empty.
EDGE = 2


@dataclass(frozen=True)
class Instances:
    """All labels of all blocks.

    Attributes:
        offsets: (blocks + 1,) first instance of each block.
        area: (n,) pixels.
        owned: (n,) pixels in the block's inner region.
        depth: (n,) pixels to the nearest edge of what the block sees.
        box: (n, 4) y0, x0, y1, x1 on the slide.
        twins: (k, 2) instances of one block that look like one object cut in two.
        halo: In pixels.
    """

    offsets: Ints
    area: NDArray[np.integer[Any]]
    owned: NDArray[np.integer[Any]]
    depth: NDArray[np.integer[Any]]
    box: NDArray[np.integer[Any]]
    twins: Ints
    halo: int

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def blocks_of(self, instances: Ints) -> Ints:
        """Which block each of these instances is of."""
        return np.searchsorted(self.offsets, instances, side="right") - 1


@dataclass(frozen=True)
class Pairs:
    """Instances of two blocks that share pixels, and labels that reach into what another block owns.

    Attributes:
        first: (n,) instances.
        second: (n,) instances of another block.
        shared: (n,) pixels that both have.
        shared_owned: (n, 2) of those, on what the first's block owns, and the second's.
        area: (n, 2) pixels of both on the overlap of their blocks.
        reaching: (m,) instances.
        into: (m,) the block that they reach into.
        reach: (m, 2) their pixels in that block's inner region, and of those the ones where it sees background.
    """

    first: Ints
    second: Ints
    shared: Ints
    shared_owned: Ints
    area: Ints
    reaching: Ints
    into: Ints
    reach: Ints

    @property
    def iou(self) -> NDArray[np.float64]:
        """(n,) intersection over union on the overlap."""
        return np.asarray(self.shared / (self.area.sum(1) - self.shared), np.float64)


class Resolution(NamedTuple):
    """The slide's objects.

    Attributes:
        relabelling: (instances,) int64 id in the slide: positive where the whole label is painted, wherever it lies; negative
            where only the part of it that its block owns is painted; 0 where nothing is.
        size: (objects + 1,) int64 pixels that each object claims, by id.
        objects: N, the largest id.
        facts: What the seam report is made from.
    """

    relabelling: Ints
    size: Ints
    objects: int
    facts: Facts


@dataclass
class Facts:
    """What was found on the way, per instance or per pair.

    Attributes:
        group: (n,) number of the object that an instance belongs to, before numbering.
        matched: (pairs,) whether the two are judged one object.
        whole: (n,) the instance gives its object's outline.
        piece: (n,) the instance is painted where its block owns it, as no block sees the object whole.
        rescued: (n,) seen in the halo alone, and kept, because its owner missed it.
        dropped: (n,) its object gave way to others that cover it.
        contested: (n,) seen in the halo alone, and overlapping several labels that their block tells apart.
    """

    group: Ints
    matched: Flags
    whole: Flags
    piece: Flags
    rescued: Flags
    dropped: Flags
    contested: Flags = field(default_factory=lambda: np.zeros(0, bool))


def components(count: int, one: Ints, two: Ints) -> Ints:
    """(count,) number of the connected component of each node."""
    graph = coo_array((np.ones(one.size, bool), (one, two)), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def firsts(ordered: Ints) -> Flags:
    """Where a run of equal numbers begins."""
    return np.concatenate([[True], ordered[1:] != ordered[:-1]]) if ordered.size else np.zeros(0, bool)


def first_labels(groups: Ints, active: Flags, total: int) -> Ints:
    """(total,) the first active instance of each group, 0 where there is none."""
    instances = np.flatnonzero(active)[::-1]
    first = np.zeros(total, np.int64)
    # Of repeated indices the last one written stays.
    first[groups[instances]] = instances
    return first
