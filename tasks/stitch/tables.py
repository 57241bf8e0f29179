"""The tables that stitching works on: the labels of all blocks, the pairs of them that overlap, and what is decided about them.

Every table is an array over block labels or over pairs of them: a few hundred bytes per object, no pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
# A label this close to the edge of what its block sees may be cut; segmenters often leave the last pixel empty.
_MIN_DEPTH = 2


@dataclass(frozen=True)
class BlockLabels:
    """The labels of all blocks, numbered through: label i of block k has the number `offsets[k] + i - 1`.

    Attributes:
        offsets: (blocks + 1,) number of each block's first label.
        area: (n,) pixels.
        owned: (n,) pixels in the block's inner region.
        depth: (n,) pixels to the nearest edge of what the block sees.
        box: (n, 4) y0, x0, y1, x1 on the slide.
        split_pairs: (k, 2) two labels of one block that look like one object cut in two.
        halo: In pixels.
        min_depth: Pixels that a label keeps clear of that edge if nothing cuts it; `scale_min_depth` computes it.
    """

    offsets: Ints
    area: NDArray[np.integer[Any]]
    owned: NDArray[np.integer[Any]]
    depth: NDArray[np.integer[Any]]
    box: NDArray[np.integer[Any]]
    split_pairs: Ints
    halo: int
    min_depth: int

    def __len__(self) -> int:
        return int(self.offsets[-1])

    @property
    def visible(self) -> Flags:
        """(n,) whether a label has pixels in its block's inner region; a label that hasn't is *halo-only*."""
        return np.asarray(self.owned > 0)

    @property
    def uncut(self) -> Flags:
        """(n,) whether a label keeps clear of the edge of what its block sees."""
        return np.asarray(self.depth >= self.min_depth)

    def blocks_of(self, labels: Ints) -> Ints:
        """Return the block of each of these labels."""
        return np.searchsorted(self.offsets, labels, side="right") - 1


@dataclass(frozen=True)
class LabelPairs:
    """Labels of two blocks that share pixels, and labels that reach into what another block owns.

    Attributes:
        first: (n,) labels.
        second: (n,) labels of another block.
        shared: (n,) pixels that both have.
        shared_owned: (n, 2) of those, on what the first's block owns, and the second's.
        area: (n, 2) pixels of both on the overlap of their blocks.
        reaching: (m,) labels.
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

    @property
    def sides(self) -> tuple[tuple[Ints, Ints], tuple[Ints, Ints]]:
        """The pairs as (one, other), from the first label's side, then from the second's."""
        return (self.first, self.second), (self.second, self.first)


class Decisions(NamedTuple):
    """What was decided about labels and pairs; the seam report is made from it.

    Attributes:
        component: (labels,) number of the object that a label belongs to, before objects are numbered.
        matched: (pairs,) whether the two labels are judged one object.
        whole: (labels,) the label gives its object's outline.
        fragment: (labels,) the label is painted where its block owns it, as no block sees the object whole.
        recovered: (labels,) halo-only, and kept because the block that owns the pixels missed the object.
        suppressed: (labels,) its object isn't painted, as others cover it.
        ambiguous: (labels,) halo-only, and matching several labels that their block tells apart.
    """

    component: Ints
    matched: Flags
    whole: Flags
    fragment: Flags
    recovered: Flags
    suppressed: Flags
    ambiguous: Flags


class Resolution(NamedTuple):
    """The slide's objects.

    Attributes:
        relabelling: (labels,) int64 id in the slide: positive where the whole label is painted, wherever it lies; negative
            where only the pixels of it that its block owns are painted; 0 where nothing is.
        size: (objects + 1,) int64 pixels that each object claims, by id.
        objects: N, the largest id.
        decisions: What led there.
    """

    relabelling: Ints
    size: Ints
    objects: int
    decisions: Decisions


def scale_min_depth(factor: tuple[float, float] = (1.0, 1.0)) -> int:
    """Return how far a label that nothing cuts keeps from the edge of what its block sees, in pixels of level 0.

    Args:
        factor: Pixels of level 0 per pixel that the segmenter saw, along y and x.
    """
    return max(_MIN_DEPTH, math.ceil(_MIN_DEPTH * max(factor)))


def number_components(count: int, node_one: Ints, node_two: Ints) -> Ints:
    """Return (count,) the number of each node's connected component; edges lead from `node_one` to `node_two`."""
    graph = coo_array((np.ones(node_one.size, bool), (node_one, node_two)), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def count_components(component: Ints) -> int:
    """Return the number of components."""
    return int(component.max(initial=-1)) + 1


def run_starts(ordered: Ints) -> Flags:
    """Return (n,) whether a run of equal numbers begins here."""
    return np.concatenate([[True], ordered[1:] != ordered[:-1]]) if ordered.size else np.zeros(0, bool)


def first_labels(component: Ints, active: Flags) -> Ints:
    """Return (components,) the first active label of each, 0 where there is none."""
    labels = np.flatnonzero(active)[::-1]
    first = np.zeros(count_components(component), np.int64)
    # Of repeated indices the last one written stays.
    first[component[labels]] = labels
    return first
