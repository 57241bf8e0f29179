"""Stitching against an oracle: the whole image's labelling is what the blocks must add up to."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from slidesam.tasks.grid import BlockGrid
from slidesam.tasks.segment import segment_outer
from slidesam.tasks.segmenters.function import PlainFunction
from slidesam.tasks.stitch import match_seam, paint, resolve, visible_ids
from tests.same import assert_same_segmentation


def components(image):
    """A segmenter that decides locally: 8-connected pieces."""
    return ndimage.label(image, structure=np.ones((3, 3)))[0]


def blockwise(image, grid: BlockGrid, function, min_iou: float = 0.3):
    """The pipeline's own functions in one process: segment, match, resolve, paint."""
    fill = np.zeros(1, image.dtype)
    outer = [
        segment_outer(image[block.outer.slices][..., None], block, grid, PlainFunction(function), {}, fill)
        for block in grid
    ]

    def view(block_id, region):
        return outer[block_id][region.relative_to(grid[block_id].outer).slices]

    matches = [
        (seam.first, seam.second, match_seam(view(seam.first, seam.overlap), view(seam.second, seam.overlap), min_iou))
        for seam in grid.seams()
    ]
    counts = [int(labels.max(initial=0)) for labels in outer]
    visible = [visible_ids(view(block.block_id, block.inner), counts[block.block_id]) for block in grid]
    offsets, relabelling, objects = resolve(counts, visible, matches)
    result = np.zeros(grid.shape, np.uint32)
    for block in grid:
        own = relabelling[offsets[block.block_id] : offsets[block.block_id + 1]]
        result[block.inner.slices] = paint(view(block.block_id, block.inner), own, np.dtype(np.uint32))
    return result, objects


def widest(labels) -> int:
    """Extent of the widest object in pixels."""
    return max((max(s.stop - s.start for s in box) for box in ndimage.find_objects(labels) if box), default=0)


shapes = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40)
blocks = st.tuples(st.integers(3, 25), st.integers(3, 25))
masks = shapes.flatmap(lambda shape: hnp.arrays(bool, shape, elements=st.booleans(), fill=st.just(False)))


@given(masks, blocks, st.integers(0, 5))
@settings(max_examples=300, deadline=None)
def test_blockwise_equals_whole_image_where_the_halo_is_as_wide_as_the_objects(mask, block_shape, extra) -> None:
    whole = components(mask)
    grid = BlockGrid(mask.shape, block_shape, widest(whole) + extra)
    found, objects = blockwise(mask, grid, components)
    assert_same_segmentation(found, whole)
    assert objects == whole.max()
    assert set(np.unique(found)) - {0} == set(range(1, objects + 1))


@given(shapes.flatmap(lambda shape: hnp.arrays(np.uint8, shape, elements=st.integers(0, 6))), blocks, st.integers(0, 5))
@settings(max_examples=200, deadline=None)
def test_any_label_image_comes_back_even_with_objects_in_several_pieces(labels, block_shape, extra) -> None:
    grid = BlockGrid(labels.shape, block_shape, widest(labels) + extra)
    found, _ = blockwise(labels, grid, lambda image: image)
    assert_same_segmentation(found, labels)


def test_an_object_across_four_blocks_is_one() -> None:
    mask = np.zeros((40, 40), bool)
    mask[15:26, 14:27] = True
    found, objects = blockwise(mask, BlockGrid(mask.shape, (20, 20), 13), components)
    assert objects == 1
    assert_same_segmentation(found, components(mask))


def test_an_object_wider_than_the_halo_is_still_one() -> None:
    mask = np.zeros((30, 200), bool)
    mask[10:20, 3:197] = True
    assert blockwise(mask, BlockGrid(mask.shape, (16, 16), 4), components)[1] == 1


def test_touching_objects_stay_two_where_their_seam_is_a_seam_of_blocks() -> None:
    labels = np.zeros((20, 40), np.uint8)
    labels[5:15, 10:20], labels[5:15, 20:30] = 1, 2
    found, objects = blockwise(labels, BlockGrid(labels.shape, (20, 20), 10), lambda image: image)
    assert objects == 2
    assert_same_segmentation(found, labels)


def test_an_id_that_no_block_paints_gets_no_number() -> None:
    # The second block alone sees an object, in its halo: nobody owns those pixels' label.
    visible = [np.zeros(0, bool), np.array([False, True])]
    offsets, relabelling, objects = resolve([0, 2], visible, [])
    assert (objects, relabelling.tolist(), offsets.tolist()) == (1, [0, 1], [0, 0, 2])


@pytest.mark.parametrize(("min_iou", "expected"), [(0.3, [(1, 1), (2, 1)]), (0.6, [(1, 1)])])
def test_matches_are_judged_on_the_overlap(min_iou, expected) -> None:
    first, second = np.array([[1, 1, 1, 2, 2]], np.uint32), np.array([[1, 1, 1, 1, 1]], np.uint32)
    found = match_seam(first, second, min_iou)
    assert list(zip(found.first.tolist(), found.second.tolist(), strict=True)) == expected


def test_numbers_do_not_depend_on_the_order_of_matches() -> None:
    one, two = (np.array([ids], np.uint32) for ids in ([1, 2, 3], [2]))
    pairs = [(0, 1, match_seam(one, one, 0.5)), (1, 2, match_seam(two, two, 0.5))]
    visible = [np.ones(count, bool) for count in (3, 4, 2)]
    found = resolve([3, 4, 2], visible, pairs)
    assert found[1].tolist() == [1, 2, 3, 1, 2, 3, 4, 5, 2]
    assert resolve([3, 4, 2], visible, pairs[::-1])[1].tolist() == found[1].tolist()


def test_blocks_that_meet_at_a_corner_only_share_an_object() -> None:
    # Two squares that touch by their corners, in blocks that do too: 8-connected, so one object.
    mask = np.zeros((20, 20), bool)
    mask[6:10, 6:10] = mask[10:14, 10:14] = True
    assert blockwise(mask, BlockGrid(mask.shape, (10, 10), 8), components)[1] == 1


def test_a_label_that_its_block_does_not_own_joins_nothing() -> None:
    # The first block's label 1 lies wholly in its halo and covers both objects of the second block.
    visible = [np.array([False]), np.array([True, True])]
    matches = match_seam(np.array([[1, 1, 1, 1]], np.uint32), np.array([[1, 1, 2, 2]], np.uint32), 0.3)
    assert resolve([1, 2], visible, [(0, 1, matches)])[1].tolist() == [0, 1, 2]
