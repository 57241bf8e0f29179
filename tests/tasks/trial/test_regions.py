"""Where settings are tried: a dense, a sparse and a mixed place, of a slide whose places are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from slidesam.tasks.errors import SettingsError
from slidesam.tasks.grid import Region
from slidesam.tasks.pixels.tissue import TissueMask, find_tissue
from slidesam.tasks.settings.parse import make_settings
from slidesam.tasks.slides.facts import Slide
from slidesam.tasks.slides.inspect import inspect_slide
from slidesam.tasks.trial.regions import choose_trial_regions, place_given_regions

# In squares of 64 px: row, column, and the share of pixels that nuclei cover.
PLACES = {"dense": (1, 1, 0.6), "sparse": (2, 3, 0.02), "mixed": (4, 1, None)}


def make_bright_slide(path: Path) -> tuple[Slide, np.ndarray]:
    """Pink tissue with 20 % of violet pixels in rows 1 to 4, columns 1 to 5; glass around it; and three places that differ."""
    rng = np.random.default_rng(1)
    pixels = np.full((6 * 64, 7 * 64, 3), 243, np.uint8)
    shares = np.full(pixels.shape[:2], np.nan)
    shares[64:320, 64:384] = 0.2
    for row, column, share in PLACES.values():
        square = shares[row * 64 : (row + 1) * 64, column * 64 : (column + 1) * 64]
        square[...] = 0 if share is None else share
        square[:, :32] = 1 if share is None else share
    is_tissue = ~np.isnan(shares)
    pixels[is_tissue] = (232, 150, 190)
    pixels[is_tissue & (rng.random(shares.shape) < shares)] = (90, 60, 140)
    tifffile.imwrite(path, pixels, photometric="rgb", tile=(64, 64))
    return inspect_slide(path, make_settings().slide), pixels


def test_a_dense_a_sparse_and_a_mixed_place_are_chosen(tmp_path: Path) -> None:
    slide, pixels = make_bright_slide(tmp_path / "s.tif")
    tissue = TissueMask(find_tissue(pixels, is_rgb=True), (1, 1))
    regions = choose_trial_regions(slide, pixels, tissue, 64)
    assert [name for name, _ in regions] == list(PLACES)
    for name, region in regions:
        row, column, _ = PLACES[name]
        expected = Region(row * 64, column * 64, row * 64 + 64, column * 64 + 64)
        # Within half a side.
        assert abs(region.y0 - expected.y0) <= 32, name
        assert abs(region.x0 - expected.x0) <= 32, name


def test_no_region_overlaps_another_or_leaves_the_slide(tmp_path: Path) -> None:
    slide, pixels = make_bright_slide(tmp_path / "s.tif")
    regions = [region for _, region in choose_trial_regions(slide, pixels, None, 100)]
    assert len(regions) == 3
    assert all(region.shape == (100, 100) for region in regions)
    assert all(region & Region(0, 0, *slide.shape) == region for region in regions)
    assert all((a & b).is_empty for a in regions for b in regions if a is not b)
    # On a small slide the squares are smaller.
    assert [region.shape for _, region in choose_trial_regions(slide, pixels, None, 1000)] == [(128, 128)] * 3


def test_fluorescence_without_tissue_elsewhere_is_judged_by_its_light(tmp_path: Path) -> None:
    pixels = np.full((256, 256), 100, np.uint16)
    pixels[16:20, 16:20] = 3000
    pixels[128:192, 128:192:2] = 3000
    tifffile.imwrite(tmp_path / "f.tif", pixels)
    slide = inspect_slide(tmp_path / "f.tif", make_settings().slide)
    tissue = TissueMask(find_tissue(pixels[..., None], is_rgb=False), (1, 1))
    regions = dict(choose_trial_regions(slide, pixels[..., None], tissue, 64))
    assert regions["dense"] == Region(128, 128, 192, 192)


def test_given_corners_are_shifted_onto_the_slide_and_others_are_refused(tmp_path: Path) -> None:
    slide, _ = make_bright_slide(tmp_path / "s.tif")
    assert place_given_regions(slide, [(380, 10)], 64) == [("given", Region(320, 10, 384, 74))]
    with pytest.raises(SettingsError, match=r"--region 384,0 isn't on s, which has 384 rows and 448 columns: give row"):
        place_given_regions(slide, [(384, 0)], 64)
