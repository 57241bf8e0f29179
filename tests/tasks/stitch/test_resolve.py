"""Stitching against oracles: the whole image's labelling is what blocks must add up to, and what holds for any labels."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from slidesam.tasks.grid import BlockGrid
from slidesam.tasks.settings.sections import StitchSettings
from tests.support.blockwise import Stitched, segmented, stitched, stitched_backwards
from tests.support.same import assert_same_segmentation


def examples(number: int) -> settings:
    """Try that many examples, or SLIDESAM_EXAMPLES times as many for a longer search."""
    return settings(max_examples=number * int(os.environ.get("SLIDESAM_EXAMPLES", "1")), deadline=None)


def components(image):
    """Segment locally: 8-connected components."""
    return ndimage.label(image, structure=np.ones((3, 3)))[0]


def blockwise(image, grid: BlockGrid, function, rules: StitchSettings | None = None) -> Stitched:
    return stitched(segmented(image, grid, function), grid, rules)


def widest(labels) -> int:
    """Return the extent of the widest object in pixels."""
    return max((max(s.stop - s.start for s in box) for box in ndimage.find_objects(labels) if box), default=0)


def assert_numbered(result: Stitched) -> None:
    assert set(np.unique(result.labels)) - {0} == set(range(1, result.resolution.objects + 1))


shapes = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40)
blocks = st.tuples(st.integers(3, 25), st.integers(3, 25))
masks = shapes.flatmap(lambda shape: hnp.arrays(bool, shape, elements=st.booleans(), fill=st.just(False)))


@given(masks, blocks, st.integers(0, 5))
@examples(300)
def test_blockwise_equals_whole_image_where_the_halo_is_as_wide_as_the_objects(mask, block_shape, extra) -> None:
    whole = components(mask)
    grid = BlockGrid(mask.shape, block_shape, widest(whole) + extra)
    result = blockwise(mask, grid, components)
    assert_same_segmentation(result.labels, whole)
    assert result.resolution.objects == whole.max()
    assert_numbered(result)


@given(shapes.flatmap(lambda shape: hnp.arrays(np.uint8, shape, elements=st.integers(0, 6))), blocks, st.integers(0, 5))
@examples(200)
def test_any_label_image_comes_back_even_with_objects_in_several_fragments(labels, block_shape, extra) -> None:
    grid = BlockGrid(labels.shape, block_shape, widest(labels) + extra)
    assert_same_segmentation(blockwise(labels, grid, lambda image: image).labels, labels)


@st.composite
def disagreeing_blocks(draw):
    """A grid, and for each block any labels at all of what it sees: rectangles, of which later ones lie on earlier ones."""
    grid = BlockGrid((draw(st.integers(8, 40)), draw(st.integers(8, 40))), draw(blocks), draw(st.integers(0, 8)))
    world = [
        (draw(st.integers(0, 40)), draw(st.integers(0, 40)), draw(st.integers(1, 14)), draw(st.integers(1, 14)))
        for _ in range(draw(st.integers(0, 10)))
    ]
    outer = []
    for block in grid:
        labels = np.zeros(grid.shape, np.uint32)
        for number, (y, x, height, width) in enumerate(world):
            # What a block gets wrong: shifted, grown, shrunk, missed.
            if draw(st.integers(0, 9)) == 0:
                continue
            dy, dx, dh, dw = (draw(st.sampled_from((0, 0, 0, -2, -1, 1, 2))) for _ in range(4))
            labels[max(y + dy, 0) : y + dy + height + dh, max(x + dx, 0) : x + dx + width + dw] = number + 1
        ids, seen = np.unique(labels[block.outer.slices], return_inverse=True)
        seen = seen.reshape(labels[block.outer.slices].shape) + (ids[0] != 0)
        outer.append(np.ascontiguousarray(seen, np.uint32))
    return grid, outer


rules = st.builds(
    StitchSettings,
    min_iou=st.sampled_from((0.1, 0.3, 0.7)),
    twin_border=st.sampled_from((0.5, 3.0)),
    min_cover=st.sampled_from((0.3, 0.7)),
    max_conflict=st.sampled_from((0.0, 0.5, 1.0)),
    rescue=st.sampled_from((None, 0.0, 0.1)),
)


@given(disagreeing_blocks(), rules)
@examples(300)
def test_whatever_blocks_say(case, rule) -> None:
    grid, outer = case
    result = stitched(outer, grid, rule)
    assert_numbered(result)
    again = stitched_backwards(outer, grid, rule)
    np.testing.assert_array_equal(again.labels, result.labels)
    assert_chains_of_matches(result, rule)
    assert_nothing_undisputed_is_lost(result, outer, grid)


def assert_chains_of_matches(result: Stitched, rule: StitchSettings) -> None:
    """Labels painted as one object are joined by a chain of labels each of which shares pixels with the next, at an IoU of no
    less than what half of a split pair needs; or they are a split pair."""
    pairs, labels = result.pairs, result.block_labels
    enough = pairs.iou >= rule.min_iou * 2 / 3 - 1e-9
    one = np.concatenate([pairs.first[enough], labels.split_pairs[:, 0]])
    two = np.concatenate([pairs.second[enough], labels.split_pairs[:, 1]])
    graph = coo_array((np.ones(one.size), (one, two)), shape=(len(labels),) * 2)
    chain = connected_components(graph, directed=False)[1]
    ids = np.abs(result.resolution.relabelling)
    for number in range(1, result.resolution.objects + 1):
        assert np.unique(chain[ids == number]).size == 1


def assert_nothing_undisputed_is_lost(result: Stitched, outer, grid: BlockGrid) -> None:
    """Where all blocks that see a pixel call it foreground of labels that agree wholly, it is painted."""
    pairs, block_labels = result.pairs, result.block_labels
    disputed = np.zeros(len(block_labels), bool)
    for side in (0, 1):
        # Not the same pixels on the overlap: the two views differ.
        at = pairs.shared != pairs.area[:, side]
        disputed[pairs.first[at]] = disputed[pairs.second[at]] = True
    disputed[pairs.reaching[pairs.reach[:, 1] > 0]] = True
    for one, two in ((pairs.first, pairs.second), (pairs.second, pairs.first)):
        chained = disputed[one]
        disputed[two[chained]] = True
    component = result.resolution.decisions.component
    disputed |= np.isin(component, component[disputed])
    for block, labels in zip(grid, outer, strict=True):
        start = block_labels.offsets[block.block_id]
        inner = labels[block.inner.relative_to(block.outer).slices]
        clean = np.concatenate([[False], ~disputed[start : start + labels.max(initial=0)]])[inner]
        # Another block may see background there without any label of its own to dispute with.
        for other in grid.neighbours(block.block_id):
            region = block.inner & grid[other].outer
            seen = outer[other][region.relative_to(grid[other].outer).slices]
            clean[region.relative_to(block.inner).slices] &= seen > 0
        assert (result.labels[block.inner.slices][clean] > 0).all()


def test_an_object_across_four_blocks_is_one() -> None:
    mask = np.zeros((40, 40), bool)
    mask[15:26, 14:27] = True
    result = blockwise(mask, BlockGrid(mask.shape, (20, 20), 13), components)
    assert result.resolution.objects == 1
    assert_same_segmentation(result.labels, components(mask))


def test_an_object_wider_than_the_halo_is_still_one() -> None:
    mask = np.zeros((30, 200), bool)
    mask[10:20, 3:197] = True
    result = blockwise(mask, BlockGrid(mask.shape, (16, 16), 4), components)
    assert_same_segmentation(result.labels, components(mask))


def test_touching_objects_stay_two_where_their_border_is_a_seam() -> None:
    labels = np.zeros((20, 40), np.uint8)
    labels[5:15, 10:20], labels[5:15, 20:30] = 1, 2
    result = blockwise(labels, BlockGrid(labels.shape, (20, 20), 10), lambda image: image)
    assert_same_segmentation(result.labels, labels)


def test_holes_and_what_lies_in_them_stay() -> None:
    y, x = np.mgrid[:120, :120]
    radius = np.hypot(y - 60, x - 60)
    labels = ((radius > 30) & (radius < 45)) * 1 + (radius < 12) * 2
    grid = BlockGrid(labels.shape, (32, 32), 8)
    result = blockwise(labels.astype(np.uint8), grid, lambda image: image)
    assert_same_segmentation(result.labels, labels)


def test_blocks_that_meet_at_a_corner_only_share_an_object() -> None:
    # Two squares that touch by their corners, in blocks that do too: 8-connected, so one object.
    mask = np.zeros((20, 20), bool)
    mask[6:10, 6:10] = mask[10:14, 10:14] = True
    assert blockwise(mask, BlockGrid(mask.shape, (10, 10), 8), components).resolution.objects == 1


class TwoBlocks:
    """Two blocks of 40 px side by side with a halo of 20 px: the left one sees columns 0..60, the right one 20..80."""

    def __init__(self) -> None:
        self.grid = BlockGrid((40, 80), (40, 40), 20)
        self.left, self.right = np.zeros((40, 60), np.uint32), np.zeros((40, 60), np.uint32)

    def see(self, left: int, right: int, rows: slice, columns: slice) -> TwoBlocks:
        """Let each block see a rectangle of the slide under a label, 0 = not at all."""
        if left:
            self.left[rows, columns] = left
        if right:
            self.right[rows, columns.start - 20 : columns.stop - 20] = right
        return self

    def stitched(self, **rule) -> Stitched:
        return stitched([self.left, self.right], self.grid, StitchSettings(**rule))


def test_an_outline_comes_from_one_block_and_has_no_step_at_the_seam() -> None:
    # The left block, in which it lies deeper, sees it two rows taller than the right one does.
    case = TwoBlocks().see(0, 1, slice(12, 28), slice(25, 45)).see(1, 0, slice(10, 28), slice(25, 45))
    result = case.stitched().labels
    expected = np.zeros((40, 80), int)
    expected[10:28, 25:45] = 1
    np.testing.assert_array_equal(result, expected)


def test_two_halves_are_one_where_the_other_block_sees_one() -> None:
    # Left in two halves, both wholly its own; right as one, halo-only.
    case = TwoBlocks()
    y, x = np.mgrid[:40, :60]
    disc = np.hypot(y - 17.5, x - 30) < 8
    case.left[disc] = 1 + (y[disc] > 17)
    case.right[:, :40][disc[:, 20:]] = 3
    result = case.stitched()
    assert result.resolution.objects == 1
    np.testing.assert_array_equal(result.labels[:, :60] == 1, disc)


def test_two_that_touch_by_a_neck_stay_two_where_the_other_block_fuses_them_in_its_halo() -> None:
    y, x = np.mgrid[:40, :60]
    case = TwoBlocks()
    one, two = np.hypot(y - 12, x - 30) < 7, np.hypot(y - 25, x - 30) < 7
    case.left[one], case.left[two & ~one] = 1, 2
    case.right[:, :40][(one | two)[:, 20:]] = 1
    result = case.stitched()
    assert result.resolution.objects == 2
    assert result.resolution.decisions.ambiguous.sum() == 1
    np.testing.assert_array_equal(result.labels[:, :60] > 0, one | two)


@pytest.mark.parametrize(("rescue", "objects"), [(0.1, 1), (None, 0)])
def test_what_its_owner_missed_is_kept_if_a_neighbour_sees_it_whole(rescue: float | None, objects: int) -> None:
    result = TwoBlocks().see(0, 1, slice(10, 20), slice(28, 38)).stitched(rescue=rescue)
    assert result.resolution.objects == objects
    assert result.resolution.decisions.recovered.sum() == objects


def test_what_its_owner_missed_is_left_out_if_the_neighbour_sees_it_cut() -> None:
    assert TwoBlocks().see(0, 1, slice(10, 20), slice(20, 38)).stitched().resolution.objects == 0


@pytest.mark.parametrize("halo", [20, 21, 30, 40, 55])
def test_what_two_blocks_see_that_are_no_neighbours_is_one_object(halo: int) -> None:
    # The middle block misses the object, and both others see it whole.
    grid = BlockGrid((40, 120), (40, 40), halo)
    image = np.zeros(grid.shape, np.uint8)
    image[10:20, 57:63] = 1
    outer = [image[block.outer.slices] * (block.block_id != 1) for block in grid]
    result = stitched(outer, grid)
    assert_numbered(result)
    assert result.resolution.objects == (1 if halo > 25 else 0)
    assert not result.labels.any() or (result.labels == image).all()


def test_a_pixel_that_two_objects_claim_goes_to_the_smaller() -> None:
    # Each block sees its own object reach two columns over the seam, and not the other's.
    case = TwoBlocks().see(1, 0, slice(10, 20), slice(30, 42)).see(0, 1, slice(10, 20), slice(38, 60))
    result = case.stitched().labels
    assert result[15, 37:43].tolist() == [1, 1, 1, 1, 1, 2]


def test_what_others_cover_is_suppressed() -> None:
    # The right block sees a part of the left one's object as an object of its own, too small to match, nearer to its edge.
    case = TwoBlocks().see(1, 0, slice(5, 35), slice(10, 44)).see(0, 1, slice(10, 16), slice(34, 43))
    result = case.stitched()
    assert result.resolution.objects == 1
    assert result.resolution.decisions.suppressed.sum() == 1
    assert (result.labels[5:35, 10:44] == 1).all()


@pytest.mark.parametrize(("min_iou", "objects"), [(0.3, 1), (0.6, 2)])
def test_matches_are_judged_on_the_overlap(min_iou: float, objects: int) -> None:
    # Of the pixels that both blocks see, half are in common.
    case = TwoBlocks().see(1, 0, slice(10, 20), slice(2, 44)).see(0, 1, slice(10, 20), slice(28, 60))
    assert case.stitched(min_iou=min_iou, max_conflict=1.0).resolution.objects == objects
