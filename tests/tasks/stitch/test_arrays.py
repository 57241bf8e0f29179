"""Block labels from elsewhere, stitched in memory."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from slidesam.tasks.errors import SegmenterError, SettingsError
from slidesam.tasks.grid import BlockGrid
from slidesam.tasks.settings.sections import StitchSettings
from slidesam.tasks.stitch.arrays import stitch_arrays
from tests.support.same import assert_same_segmentation

GRID = BlockGrid((70, 90), (30, 40), 12)


def blobs() -> np.ndarray:
    image = np.random.default_rng(5).normal(size=GRID.shape)
    return ndimage.gaussian_filter(image, 2) > 0.15


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64", "uint64"])
def test_blocks_that_agree_add_up_to_the_whole_whatever_their_ids(dtype: str) -> None:
    whole, count = ndimage.label(blobs())
    names = np.random.default_rng(1).permutation(np.arange(1, 200))[: count + 1].astype(dtype)
    names[0] = 0
    blocks = [names[whole[block.outer.slices]] for block in GRID]
    stitched = stitch_arrays(blocks, GRID)
    assert stitched.dtype == np.uint32
    assert stitched.max() == count
    assert_same_segmentation(stitched, whole)


def test_rules_are_those_of_the_settings() -> None:
    """Two views of one object that share half of it are one object or two by `min_iou`."""
    grid = BlockGrid((10, 40), (10, 20), 10)
    left, right = np.zeros((10, 30), np.uint8), np.zeros((10, 30), np.uint8)
    left[2:8, 14:24], right[2:8, 7:14] = 1, 1
    counts = [
        stitch_arrays([left, right], grid, StitchSettings(min_iou=share, max_conflict=1.0)).max()
        for share in (0.2, 0.9)
    ]
    assert counts == [1, 2]


def test_what_is_not_a_label_image_of_its_block_is_refused() -> None:
    blocks = [np.zeros(block.outer.shape, np.uint8) for block in GRID]
    with pytest.raises(SettingsError, match="8 label arrays for a grid of 9 blocks"):
        stitch_arrays(blocks[:-1], GRID)
    with pytest.raises(SegmenterError, match=r"block 4: .*shape"):
        stitch_arrays([*blocks[:4], blocks[4][1:], *blocks[5:]], GRID)
    with pytest.raises(SegmenterError, match=r"block 0: .*float"):
        stitch_arrays([blocks[0] * 1.0, *blocks[1:]], GRID)
