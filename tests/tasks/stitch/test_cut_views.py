"""Two objects that touch stay two wherever seams lie, whatever blocks make of what their window cuts."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from slidesam.tasks.grid import Block, BlockGrid
from slidesam.tasks.segment.block import renumber
from slidesam.tasks.stitch.arrays import stitch_arrays

Labels = np.ndarray
# Makes labels of the right ones in a window, and of where the window's edge is.
Segmenter = Callable[[Labels, Labels], Labels]


class Pair(NamedTuple):
    """Two discs that touch along a straight border.

    Attributes:
        radii: In pixels.
        gap: Distance of their centres, as a share of the sum of their radii; the smaller, the longer their border.
        angle: Of the line through their centres, in degrees.
    """

    radii: tuple[float, float]
    gap: float
    angle: float

    def draw(self) -> Labels:
        """Return (y, x) labels 1 and 2, no larger than the pair."""
        reach = self.gap * sum(self.radii)
        size = int(2 * (max(self.radii) + reach)) + 4
        y, x = np.mgrid[:size, :size] - size / 2
        along = np.cos(np.radians(self.angle)), np.sin(np.radians(self.angle))
        distance = [
            np.hypot(y - side * along[0] * reach / 2, x - side * along[1] * reach / 2) - radius
            for side, radius in zip((-1, 1), self.radii, strict=True)
        ]
        labels = np.where(distance[0] <= distance[1], 1, 2) * (np.minimum(*distance) < 0)
        return labels[ndimage.find_objects((labels > 0).astype(np.uint8))[0]]


def cut_by(labels: Labels, edge: Labels) -> Labels:
    """Return where objects are that the window's edge cuts."""
    return np.isin(labels, np.setdiff1d(labels[edge], 0))


def keep_apart(labels: Labels, edge: Labels) -> Labels:
    """Tell objects apart, also where the window cuts one."""
    return labels


def fuse(labels: Labels, edge: Labels) -> Labels:
    """Fuse objects that touch where the window cuts one of them."""
    return np.minimum(labels, 1) if cut_by(labels, edge).any() else labels


def fuse_and_leave_the_edge_empty(labels: Labels, edge: Labels) -> Labels:
    return np.where(edge, 0, fuse(labels, edge))


def drop(labels: Labels, edge: Labels) -> Labels:
    """Leave out what the window cuts."""
    return np.where(cut_by(labels, edge), 0, labels)


def crumble(labels: Labels, edge: Labels) -> Labels:
    """Split what the window cuts."""
    rows = np.arange(len(labels))[:, None]
    return labels + 2 * (cut_by(labels, edge) & (rows // 5 % 2 == 0))


SEGMENTERS = [keep_apart, fuse, fuse_and_leave_the_edge_empty, drop, crumble]


def view(image: Labels, grid: BlockGrid, segmenter: Segmenter) -> list[Labels]:
    """Return what each block makes of the right labels."""
    return [segmenter(image[block.outer.slices], _edge(block, grid)) for block in grid]


def _edge(block: Block, grid: BlockGrid) -> Labels:
    """Return where a block's window ends, though the slide goes on."""
    edge = np.zeros(block.outer.shape, bool)
    edge[0] |= block.outer.y0 > 0
    edge[-1] |= block.outer.y1 < grid.shape[0]
    edge[:, 0] |= block.outer.x0 > 0
    edge[:, -1] |= block.outer.x1 < grid.shape[1]
    return edge


def check(pair: Labels, at: tuple[int, int], grid: BlockGrid, segmenter: Segmenter) -> None:
    image = np.zeros(grid.shape, np.uint32)
    image[at[0] : at[0] + pair.shape[0], at[1] : at[1] + pair.shape[1]] = pair
    stitched = stitch_arrays(view(image, grid, segmenter), grid)
    np.testing.assert_array_equal(renumber(stitched), renumber(image), f"pair of {pair.shape} px at {at}")


@pytest.mark.parametrize("segmenter", SEGMENTERS)
@pytest.mark.parametrize(("gap", "angle"), [(0.3, 45), (0.45, 35), (0.6, 50), (0.98, 0)])
def test_at_every_offset_to_a_seam_and_to_a_corner(gap: float, angle: float, segmenter: Segmenter) -> None:
    pair = Pair((6.0, 6.5), gap, angle).draw()
    halo, block = max(pair.shape), 48
    grid = BlockGrid((100, 100), (block, block), halo)
    for offset in range(block + halo + 2):
        check(pair, (2, offset), grid, segmenter)
        check(pair, (offset, offset), grid, segmenter)


def stitch(image: Labels, grid: BlockGrid, **seen: Labels) -> Labels:
    """Stitch blocks that see the image, but those named b0, b1, ... see what is given."""
    outer = [image[block.outer.slices] for block in grid]
    for name, labels in seen.items():
        outer[int(name[1:])] = labels[grid[int(name[1:])].outer.slices]
    return stitch_arrays(outer, grid)


def test_a_cut_label_that_is_visible_joins_nothing_and_gives_no_outline() -> None:
    # The left block sees two bars, one on the other, whole; the right one, from column 20 on, one object, of which it owns some.
    grid, bars = BlockGrid((40, 80), (40, 40), 20), np.zeros((40, 80), np.uint32)
    bars[5:15, 20:50], bars[15:25, 0:45] = 1, 2
    np.testing.assert_array_equal(stitch(bars, grid, b1=np.minimum(bars, 1)), bars)


def test_a_cut_label_hides_no_object_that_its_owner_missed() -> None:
    # Of two objects, one over the other, the block above misses the first, and the one beside it sees both whole. The block
    # below sees both as one, and cut.
    grid, both = BlockGrid((80, 80), (40, 40), 20), np.zeros((80, 80), np.uint32)
    both[15:36, 24:38], both[36:50, 24:38] = 1, 2
    seen = {"b0": both * (both == 2), "b2": np.minimum(both, 1), "b3": np.minimum(both, 1)}
    np.testing.assert_array_equal(stitch(both, grid, **seen) > 0, both > 0)
    assert stitch(both, grid, **seen).max() == 2


def test_cut_labels_are_one_object_where_no_block_sees_it_whole() -> None:
    bar = np.zeros((40, 200), np.uint32)
    bar[10:20, 10:190] = 1
    np.testing.assert_array_equal(stitch(bar, BlockGrid(bar.shape, (40, 40), 20)), bar)


# Half of them alike: the border of two discs of one size is the longest for how thick they are.
radii = st.floats(3, 25).flatmap(lambda radius: st.tuples(st.just(radius), st.just(radius) | st.floats(3, 25)))


@given(
    st.integers(8, 32).map(lambda sixteens: 16 * sixteens),
    st.builds(Pair, radii, st.floats(0.3, 1), st.floats(0, 180)),
    st.tuples(st.floats(0, 1), st.floats(0, 1)),
    st.integers(0, 20),
    st.sampled_from(SEGMENTERS),
)
@settings(max_examples=60, deadline=None)
def test_in_blocks_of_any_size(block: int, pair: Pair, where: tuple[float, float], wider: int, segmenter) -> None:
    drawn = pair.draw()
    halo = max(drawn.shape) + wider
    grid = BlockGrid((2 * block, 2 * block), (block, block), halo)
    # Anywhere in the region that both windows or only one of them shows, or that an edge cuts.
    lowest, reach = max(0, block - halo - max(drawn.shape)), 2 * halo + max(drawn.shape)
    at = [min(lowest + round(share * reach), 2 * block - max(drawn.shape)) for share in where]
    check(drawn, (at[0], at[1]), grid, segmenter)
