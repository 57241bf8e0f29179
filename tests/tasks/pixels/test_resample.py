"""Segmenting at another pixel size: the same pixels whatever the region, labels on level 0's grid, objects where they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.draw import ellipse

from slidesam.tasks.errors import SettingsError
from slidesam.tasks.grid import Region
from slidesam.tasks.pixels.resample import Scale, ScaledReader, best_level, make_grids, make_scale, to_level0
from slidesam.tasks.plan import explain, plan_run
from slidesam.tasks.settings.parse import make_settings
from tests.support.same import assert_same_segmentation
from tests.support.serial import segment_serially

FUNCTION = {
    "segmenter.kind": "function",
    "segmenter.target": "tests.tasks.pixels.test_resample:bright_objects",
    "blocks.tissue": "off",
}


def bright_objects(image: np.ndarray) -> np.ndarray:
    """Decides locally."""
    return ndimage.label(image > 100)[0]


class Pixels:
    """An array as a reader."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def read(self, region: Region) -> np.ndarray:
        return self.array[region.slices]

    def close(self) -> None:
        pass


def read_scaled(array: np.ndarray, factor: tuple[float, float], region: Region) -> np.ndarray:
    return ScaledReader(Pixels(array), array.shape[:2], factor).read(region)


FACTORS = st.sampled_from([0.5, 0.75, 1.0, 1.5, 2.0, 213 / 128, 3.25, 4.0])


@settings(max_examples=60, deadline=None)
@given(FACTORS, FACTORS, st.integers(0, 10_000), st.booleans(), st.data())
def test_a_pixel_is_the_same_in_each_region(y, x, seed, is_float, data) -> None:
    rng = np.random.default_rng(seed)
    array = rng.integers(0, 60_000, (61, 83, 2)).astype(np.float32 if is_float else np.uint16)
    height, width = int(np.ceil(61 / y)), int(np.ceil(83 / x))
    whole = read_scaled(array, (y, x), Region(0, 0, height, width))
    y0 = data.draw(st.integers(0, height - 1))
    x0 = data.draw(st.integers(0, width - 1))
    region = Region(y0, x0, data.draw(st.integers(y0 + 1, height)), data.draw(st.integers(x0 + 1, width)))
    np.testing.assert_array_equal(read_scaled(array, (y, x), region), whole[region.slices])
    assert whole.dtype == array.dtype
    assert array.min() <= whole.min()
    assert whole.max() <= array.max()


@pytest.mark.parametrize("factor", [1, 2, 3, 5])
def test_whole_factors_are_means(factor: int) -> None:
    array = np.random.default_rng(0).integers(0, 256, (30, 60, 3)).astype(np.uint8)
    found = read_scaled(array, (factor, factor), Region(0, 0, 30 // factor, 60 // factor))
    means = array.reshape(30 // factor, factor, 60 // factor, factor, 3).mean((1, 3))
    assert np.abs(found - means).max() <= 0.5


@pytest.mark.parametrize("factor", [0.4, 0.5, 1.3, 2.0, 2.6])
def test_a_slope_stays_a_slope(factor: float) -> None:
    """Nothing is shifted: the value at a new pixel's centre is that of the place."""
    slope = np.tile(np.arange(200, dtype=np.float32)[None, :, None], (50, 1, 1))
    found = read_scaled(slope, (factor, factor), Region(0, 0, 4, int(200 / factor)))[0, :, 0]
    centres = (np.arange(found.size) + 0.5) * factor - 0.5
    inside = (centres > 1) & (centres < 198)
    np.testing.assert_allclose(found[inside], centres[inside], atol=0.26)
    np.testing.assert_allclose(np.mean(found[inside] - centres[inside]), 0, atol=0.02)


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(1, 900), st.integers(1, 900)),
    st.sampled_from([0.1, 0.13, 0.25, 0.5, 0.7, 1.0, 2.0]),
    st.sampled_from([16, 64, 128]),
    st.integers(0, 40),
)
def test_blocks_are_the_same_on_both_grids(shape, mpp, side, halo) -> None:
    scale = make_scale((mpp, mpp), 0.5, (side, side))
    level0, seen = make_grids(shape, scale, halo)
    assert level0.grid_shape == seen.grid_shape
    for here, there in zip(level0, seen, strict=True):
        labels = np.arange(there.outer.shape[0] * there.outer.shape[1]).reshape(there.outer.shape)
        back = to_level0(labels, there.outer, here.outer, scale)
        assert back.shape == here.outer.shape
        # The inner regions are each other's: the corner's pixel comes from the corner's.
        inner = to_level0(labels, there.outer, here.inner, scale)
        corner = there.inner.relative_to(there.outer)
        assert (
            inner[0, 0]
            == labels[
                corner.y0 + (scale.segmented[0] // scale.level0[0]) // 2,
                corner.x0 + (scale.segmented[1] // scale.level0[1]) // 2,
            ]
        )


def test_the_pixel_size_is_nearly_the_wanted_one() -> None:
    for mpp in np.linspace(0.1, 1.2, 40):
        scale = make_scale((mpp, mpp), 0.5, (2048, 2048))
        # Blocks are multiples of 16 px on both grids.
        assert abs(scale.mpp((mpp, mpp))[0] / 0.5 - 1) <= max(0.005, 8 / scale.level0[0])
    assert make_scale((0.25, 0.25), 0.5, (2048, 2048)) == Scale((4096, 4096), (2048, 2048))
    assert make_scale((0.499, 0.499), 0.5, (2048, 2048)).is_one


@pytest.mark.parametrize(
    ("mpp", "target"), [(0.25, 0.25), (0.1 + 0.2, 0.3), (0.2499, 0.25), (0.252, 0.252 * (1 - 1e-9))]
)
def test_a_slide_that_has_the_wanted_pixel_size_is_segmented_as_it_is(mpp: float, target: float) -> None:
    resampled = [side for side in range(16, 8193, 16) if not make_scale((mpp, mpp), target, (side, side)).is_one]
    assert resampled == []


@pytest.mark.parametrize("mpp", [(0.25, 0.5), (0.5, 0.25), (0.25, 0.26), (0.1, 0.4)])
@pytest.mark.parametrize("halo", [0, 1, 17, 64])
def test_the_halo_is_as_wide_as_wanted_along_both_axes(mpp: tuple[float, float], halo: int) -> None:
    scale = make_scale(mpp, 0.5, (128, 128))
    level0, segmented = make_grids((2000, 3000), scale, halo)
    for axis in (0, 1):
        assert level0.halo >= np.floor(halo * scale.factor[axis])
        # What a block owns and needs on level 0 lies within what its segmenter sees.
        assert segmented.halo * scale.factor[axis] >= level0.halo
    equal = make_scale((0.2, 0.2), 0.5, (128, 128))
    assert make_grids((2000, 3000), equal, halo)[1].halo == halo


def test_what_cannot_be_had_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"pixel size isn't known: state it in slide\.mpp"):
        make_scale(None, 0.5, (512, 512))
    with pytest.raises(SettingsError, match=r"change blocks\.block_shape"):
        make_scale((0.01, 0.01), 0.5, (2048, 2048))


def test_the_level_is_the_coarsest_that_loses_nothing() -> None:
    steps = [(1.0, 1.0), (2.0, 2.0), (4.0, 4.0), (16.0, 16.0)]
    for target, level in ((0.2, 0), (0.25, 0), (0.5, 1), (0.9, 1), (1.0, 2), (3.0, 2)):
        assert best_level(steps, make_scale((0.25, 0.25), target, (512, 512))) == level


@pytest.fixture(scope="module")
def discs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A slide at 0.25 µm, and the truth on its grid."""
    rng = np.random.default_rng(4)
    truth = np.zeros((1003, 1390), np.uint32)
    for number, (y, x) in enumerate(((y, x) for y in range(30, 980, 50) for x in range(30, 1370, 50)), 1):
        centre = (y + rng.integers(-4, 5), x + rng.integers(-4, 5))
        truth[ellipse(*centre, *rng.uniform(9, 16, 2), shape=truth.shape)] = number
    path = tmp_path_factory.mktemp("discs") / "discs.tif"
    image = np.where(truth > 0, 200, 20).astype(np.uint8)
    tifffile.imwrite(
        path, image, tile=(256, 256), photometric="minisblack", resolution=(40_000, 40_000), resolutionunit="CENTIMETER"
    )
    return path, truth


@pytest.mark.parametrize(
    ("target", "convert"), [(0.5, "auto"), (0.5, "never"), (0.4, "auto"), (1.0, "auto"), (0.125, "never")]
)
def test_objects_lie_where_they_are(discs, target: float, convert: str, tmp_path: Path) -> None:
    """A slide at 0.25 µm, segmented at another size: labels on its grid, aligned within a pixel of what was segmented."""
    path, truth = discs
    overrides = FUNCTION | {
        "slide.target_mpp": target,
        "blocks.block_shape": 128,
        "blocks.halo": 32,
        "image.convert": convert,
    }
    found = segment_serially(path, tmp_path, overrides)
    assert found.shape == truth.shape
    ids = np.arange(1, truth.max() + 1)
    assert int(found.max()) == ids.size
    # Each object meets one, and neither leaves the other by more than a pixel.
    reach = max(1, int(np.ceil(target / 0.25)))
    grown = ndimage.grey_dilation(truth, size=2 * reach + 1)
    assert (grown[found > 0] > 0).all()
    shrunk = ndimage.grey_erosion(truth, size=2 * reach + 1)
    assert (found[shrunk > 0] > 0).all()
    centres = np.array(ndimage.center_of_mass(truth > 0, truth, ids))
    met = found[tuple(np.rint(centres).astype(int).T)]
    assert len(set(met)) == ids.size
    theirs = np.array(ndimage.center_of_mass(found > 0, found, met))
    assert np.abs(theirs - centres).max() < reach / 2
    assert np.abs((theirs - centres).mean(0)).max() < 0.1


def test_blocks_at_another_size_equal_the_whole(discs, tmp_path: Path) -> None:
    path, _ = discs
    many = FUNCTION | {"slide.target_mpp": 0.5, "blocks.block_shape": 128, "blocks.halo": 32}
    one = many | {"blocks.block_shape": 1024}
    found, whole = segment_serially(path, tmp_path / "many", many), segment_serially(path, tmp_path / "one", one)
    assert_same_segmentation(found, whole)
    # Nothing but halves, then wholes again.
    image = tifffile.imread(path)[:1002, :1390]
    halves = bright_objects(np.rint(image.reshape(501, 2, 695, 2).mean((1, 3))))
    assert_same_segmentation(found[:1002], halves.repeat(2, 0).repeat(2, 1))


def test_a_coarser_level_is_read_where_it_will_do(discs, tmp_path: Path) -> None:
    path, _ = discs
    made = make_settings(overrides=FUNCTION | {"slide.target_mpp": 1.0, "blocks.block_shape": 128})
    run = plan_run(path, tmp_path, made)
    assert run.segmented_level == 2
    assert run.segmented_slide.mpp == (1.0, 1.0)
    assert "segment: at 1 × 1 µm, read from level 2" in explain(run)
    in_place = plan_run(
        path, tmp_path, make_settings({"image": {"convert": "never"}}, FUNCTION | {"slide.target_mpp": 1})
    )
    # The file has no other.
    assert in_place.segmented_level == 0


def test_another_size_is_another_run(discs, tmp_path: Path) -> None:
    path, _ = discs
    runs = [
        plan_run(path, tmp_path, make_settings(overrides=FUNCTION | more)) for more in ({}, {"slide.target_mpp": 0.5})
    ]
    assert runs[0].fingerprints["segment"] != runs[1].fingerprints["segment"]
    assert runs[0].fingerprints["image"] == runs[1].fingerprints["image"]


def test_the_label_image_is_whole_shards_of_level_0(discs, tmp_path: Path) -> None:
    path, _ = discs
    segment_serially(path, tmp_path, FUNCTION | {"slide.target_mpp": 0.4, "blocks.block_shape": 128, "blocks.halo": 32})
    labels = zarr.open_array(tmp_path / "discs.ome.zarr" / "labels" / "cells" / "0", mode="r")
    # 0.4 of 0.25 µm: 128 px are 204.8, and 208 of 16 px steps come nearest. A shard holds 19 × 19 such blocks.
    assert labels.shards[3:] == (19 * 208, 19 * 208)
    assert labels.shape[3:] == (1003, 1390)
