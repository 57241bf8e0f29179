"""The picture of a slide: which blocks it hatches, where it outlines the tissue mask, and which details it shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from scipy import ndimage

from slidesam.tasks.grid import BlockGrid, Region
from slidesam.tasks.pixels.tissue import TissueMask
from slidesam.tasks.report import overlay
from slidesam.tasks.store.multiscales import place_samples
from tests.support.serial import segment_serially


class TestPicture:
    grid = BlockGrid((400, 600), (100, 100), 10)
    view = overlay.PictureView((0.0, 0.0), (2.0, 2.0))

    def test_only_blocks_that_were_left_out_are_hatched(self) -> None:
        kept = np.random.default_rng(0).random(self.grid.grid_shape) > 0.5
        drawn = overlay._draw_blocks_and_mask(np.full((200, 300, 3), 250, np.uint8), None, kept, self.grid, self.view)
        changed = (drawn != 250).any(axis=2)
        assert (changed == ~kept.repeat(50, 0).repeat(50, 1)).all()

    def test_a_level_that_reaches_past_the_slide_isnt_squeezed_into_it(self) -> None:
        # 1601 rows are 51 pixels of a level that is 32 times coarser; pixel 25 begins at row 800, where a block does.
        grid = BlockGrid((1601, 1601), (800, 1601), 0)
        view = overlay.PictureView((0.0, 0.0), (32.0, 32.0))
        drawn = overlay._draw_blocks_and_mask(
            np.full((51, 51, 3), 250, np.uint8), None, np.array([[True], [False], [False]]), grid, view
        )
        assert ((drawn != 250).any(axis=2) == (np.arange(51) >= 25)[:, None]).all()
        assert view.find(800, 0) == 25
        # Where a level takes single pixels, its first one begins left of the slide.
        assert overlay.PictureView(place_samples((32.0, 32.0)).corner, (32.0, 32.0)).find(0.5, 0) == 0.5

    def test_the_mask_is_outlined_inside(self) -> None:
        mask = np.zeros((40, 60), bool)
        mask[10:20, 10:30] = True
        kept = np.ones(self.grid.grid_shape, bool)
        drawn = overlay._draw_blocks_and_mask(
            np.zeros((200, 300, 3), np.uint8), TissueMask(mask, (10.0, 10.0)), kept, self.grid, self.view
        )
        outline = (drawn == overlay._TISSUE).all(axis=2)
        inside = mask.repeat(5, 0).repeat(5, 1)
        assert (outline == (inside & ~ndimage.binary_erosion(inside, np.ones((3, 3))))).all()

    def test_places_lie_where_blocks_were_segmented(self) -> None:
        labels = zarr.create_array({}, shape=(1, 1, 1, 4000, 6000), dtype=np.uint8)
        kept = np.zeros((4, 6), bool)
        kept[2, 3:5] = True
        details = overlay.choose_details(BlockGrid((4000, 6000), (1000, 1000), 10), labels, kept)
        seen = Region(2000, 3000, 3000, 5000)
        assert details
        assert all(not (detail.region & seen).is_empty for detail in details)


class TestDisplay:
    @pytest.mark.parametrize("scale", [1e-8, 0.01, 1.0, 1e6])
    def test_floats_of_any_size_are_shown_over_their_whole_range(self, scale: float) -> None:
        image = (np.linspace(0, scale, 10_000).reshape(100, 100, 1)).astype(np.float32)
        image[0, :4, 0] = np.nan, np.inf, -np.inf, -3.4e38
        shown = overlay.to_rgb(image, overlay.display_windows(image, is_rgb=False))
        assert shown[1, 0].tolist() == [0, 0, 0]
        assert shown[50, 50, 0] == pytest.approx(128, abs=3)
        assert shown[-1, -1].tolist() == [255, 255, 255]

    def test_colours_of_16_bit_are_those_of_8_bit(self) -> None:
        image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
        image[..., 1] //= 2
        deep = image.astype(np.uint16) * 257
        shown = overlay.to_rgb(deep, overlay.display_windows(deep, is_rgb=True))
        assert np.abs(shown.astype(int) - image).max() <= 2

    def test_viewers_get_a_window_that_shows_faint_floats(self, tmp_path: Path) -> None:
        image = np.random.default_rng(0).random((64, 64), np.float32) * np.float32(0.01)
        tifffile.imwrite(tmp_path / "s.tif", image, photometric="minisblack", metadata=None)
        segment_serially(tmp_path / "s.tif", tmp_path / "out", {"segmenter.kind": "watershed"})
        omero = zarr.open_group(tmp_path / "out" / "s.ome.zarr", mode="r").attrs["ome"]["omero"]
        window = omero["channels"][0]["window"]
        assert 0 <= window["start"] < window["end"] <= 0.01
