"""The picture of a slide: which blocks it hatches, where it outlines the tissue mask, and which details it shows."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from slidesam.tasks.grid import BlockGrid, Region
from slidesam.tasks.report import overlay


class TestPicture:
    grid = BlockGrid((400, 600), (100, 100), 10)

    def test_only_blocks_that_were_left_out_are_hatched(self) -> None:
        kept = np.random.default_rng(0).random(self.grid.grid_shape) > 0.5
        drawn = overlay._draw_blocks_and_mask(np.full((200, 300, 3), 250, np.uint8), None, kept, self.grid)
        changed = (drawn != 250).any(axis=2)
        assert (changed == ~kept.repeat(50, 0).repeat(50, 1)).all()

    def test_the_mask_is_outlined_inside(self) -> None:
        mask = np.zeros((40, 60), bool)
        mask[10:20, 10:30] = True
        kept = np.ones(self.grid.grid_shape, bool)
        drawn = overlay._draw_blocks_and_mask(np.zeros((200, 300, 3), np.uint8), mask, kept, self.grid)
        outline = (drawn == overlay._TISSUE).all(axis=2)
        inside = mask.repeat(5, 0).repeat(5, 1)
        assert (outline == (inside & ~ndimage.binary_erosion(inside, np.ones((3, 3))))).all()

    def test_places_lie_where_blocks_were_segmented(self) -> None:
        labels = np.zeros((1, 1, 1, 4000, 6000), np.uint8)
        kept = np.zeros((4, 6), bool)
        kept[2, 3:5] = True
        details = overlay.choose_details(BlockGrid((4000, 6000), (1000, 1000), 10), labels, kept)
        seen = Region(2000, 3000, 3000, 5000)
        assert details
        assert all(not (detail.region & seen).is_empty for detail in details)
