"""Pixels without data are background: in samples, ranges and averages, and for segmenters."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tifffile
from scipy import ndimage

from slidesam.tasks.grid import Region
from slidesam.tasks.pixels.percentiles import finite_values
from slidesam.tasks.pixels.pyramid import halve
from slidesam.tasks.pixels.resample import ScaledReader
from slidesam.tasks.pixels.sample import choose_sample
from slidesam.tasks.slides.inspect import inspect_slide
from slidesam.tasks.slides.no_data import drop_no_data, fill_no_data, find_no_data
from slidesam.tasks.slides.reader import SlideReader
from tests.support.same import assert_same_segmentation, score
from tests.support.serial import segment_serially

NO_DATA = [np.nan, np.inf, -np.inf, -3.4028235e38, 1e38]
WATERSHED = {"segmenter.kind": "watershed", "segmenter.diameter": 14, "blocks.block_shape": 128, "blocks.halo": 32}


def nuclei(dtype: str = "float32", shape: tuple[int, int] = (220, 300)) -> tuple[np.ndarray, np.ndarray]:
    """An image of discs on an even background, and their labels."""
    rows, columns = np.indices(shape)
    truth = np.zeros(shape, np.int32)
    for number, (y, x) in enumerate(np.ndindex(5, 7), 1):
        truth[(rows - 24 - 42 * y) ** 2 + (columns - 24 - 42 * x) ** 2 <= 49] = number
    noise = np.random.default_rng(0).normal(0, 0.02, shape)
    return (np.where(truth > 0, 5.0, 0.5) + noise).astype(dtype), truth


class Pixels:
    """An array as a reader."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def read(self, region: Region) -> np.ndarray:
        return self.array[region.slices]

    def close(self) -> None:
        pass


class Strict:
    """A segmenter of a user's that trusts its pixels."""

    def prepare(self, sample: np.ndarray, slide: object) -> dict[str, float]:
        return {"threshold": float((sample.min() + sample.max()) / 2)}

    def segment(self, image: np.ndarray, params: dict[str, float]) -> np.ndarray:
        assert np.abs(image).max() < 10
        return ndimage.label(image > params["threshold"])[0]


class TestFunctions:
    @pytest.mark.parametrize("value", NO_DATA)
    def test_are_found_dropped_and_filled(self, value: float) -> None:
        image = np.ones((4, 6, 2), np.float32)
        image[0], image[1, 2, 1] = value, value
        fill = np.array([7, 8])
        assert find_no_data(image).sum() == 13
        assert finite_values(image).size == 48 - 13
        filled = fill_no_data(image, fill)
        assert filled.dtype == image.dtype
        assert filled[0, 0].tolist() == [7, 8]
        assert filled[1, 2].tolist() == [1, 8]
        dropped = drop_no_data(image, fill)
        assert dropped.shape == (3, 6, 2)
        assert dropped.sum() == 36 + 7

    @pytest.mark.parametrize("dtype", ["uint8", "int64", "bool", "float16"])
    def test_numbers_of_any_type_stay(self, dtype: str) -> None:
        image = np.array([[[0], [1]], [[60000], [65504]]]).astype(dtype)
        assert find_no_data(image) is None
        assert fill_no_data(image, np.array([0])) is image
        assert drop_no_data(image, np.array([0])) is image

    def test_a_sample_without_data_is_background(self) -> None:
        sample = drop_no_data(np.full((3, 4, 1), np.nan, np.float32), np.array([2.0]))
        assert sample.shape == (3, 4, 1)
        assert (sample == 2).all()

    def test_a_sample_with_few_pixels_of_data(self) -> None:
        sample = np.full((3, 4, 1), np.nan)
        sample[1, 1:3] = 5
        assert drop_no_data(sample, np.array([2.0])).tolist() == [[[5], [5]]]


class TestAverages:
    @pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
    def test_near_the_largest_number_nothing_overflows(self, dtype: str) -> None:
        top = np.finfo(dtype).max
        assert (halve(np.full((2, 4), top, dtype)) == top).all()
        scaled = ScaledReader(
            Pixels(np.full((4, 4, 1), 1e29 if dtype != "float16" else top, dtype)), (4, 4), (2.0, 2.0)
        )
        assert np.isfinite(scaled.read(Region(0, 0, 2, 2))).all()

    @pytest.mark.parametrize("value", NO_DATA)
    def test_are_made_of_the_pixels_with_data(self, value: float) -> None:
        image = np.array([[1, 3, value, value], [5, value, value, value]], np.float32)
        halved = halve(image)
        assert halved[0, 0] == 3
        assert find_no_data(halved).tolist() == [[False, True]]
        scaled = ScaledReader(Pixels(image[..., None]), (2, 4), (2.0, 2.0)).read(Region(0, 0, 1, 2))
        assert scaled[0, 0, 0] == 3
        assert find_no_data(scaled)[..., 0].tolist() == [[False, True]]

    def test_of_pixels_with_data_do_not_depend_on_others(self) -> None:
        image = np.random.default_rng(2).random((8, 64)).astype(np.float32)
        expected, image[0, 0] = halve(image), np.nan
        np.testing.assert_array_equal(halve(image)[:, 1:], expected[:, 1:])

    def test_one_infinite_pixel_does_not_choose_the_sample(self) -> None:
        overview = np.random.default_rng(3).random((64, 64, 1)).astype(np.float32)
        expected = choose_sample((4096, 4096), overview)
        overview[0, 0] = np.inf
        assert len(set(expected) & set(choose_sample((4096, 4096), overview))) > 0.9 * len(expected)


class TestSlides:
    @pytest.mark.parametrize("value", NO_DATA)
    @pytest.mark.parametrize("signal", ["bright", "dark"])
    def test_objects_are_found_and_nothing_where_there_are_no_data(
        self, value: float, signal: str, tmp_path: Path
    ) -> None:
        image, truth = nuclei()
        image = image if signal == "bright" else 6 - image
        image[:, 200:], truth[:, 200:] = value, 0
        image[3, 3] = value
        tifffile.imwrite(tmp_path / "s.tif", image, photometric="minisblack", metadata=None)
        found = segment_serially(tmp_path / "s.tif", tmp_path / "out", WATERSHED | {"segmenter.signal": signal})
        assert found.max() == len(np.unique(truth)) - 1
        assert score(found, truth, 0.8) == 1.0
        assert not found[:, 204:].any()

    @pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
    @pytest.mark.parametrize("value", [-9999.0, 0.1, 0.0, 7.0])
    def test_what_a_file_states_as_no_data_is_none(self, value: float, dtype: str, tmp_path: Path) -> None:
        image, truth = nuclei(dtype)
        image[:, 200:], truth[:, 200:] = value, 0
        write = partial(tifffile.imwrite, photometric="minisblack", metadata=None, tile=(64, 64), compression="zlib")
        write(tmp_path / "s.tif", image, extratags=[(42113, 2, 0, str(value), True)])
        slide = inspect_slide(tmp_path / "s.tif")
        with SlideReader(slide) as reader:
            pixels = reader.read(Region(0, 0, *slide.shape))[..., 0]
        assert np.isnan(pixels[:, 200:]).all()
        np.testing.assert_array_equal(pixels[:, :200], image[:, :200])
        found = segment_serially(tmp_path / "s.tif", tmp_path / "out", WATERSHED)
        assert found.max() == len(np.unique(truth)) - 1
        assert score(found, truth, 0.8) == 1.0

    @pytest.mark.parametrize("text", ["none", "nan", "inf", "-3.4028234663852886e+38", "1e400", ""])
    def test_other_statements_change_no_number(self, text: str, tmp_path: Path) -> None:
        image = nuclei()[0]
        image[0, :3] = 0, np.nan, -3.4028234663852886e38
        tifffile.imwrite(tmp_path / "s.tif", image, photometric="minisblack", metadata=None,
                         extratags=[(42113, 2, 0, text, True)])  # fmt: skip
        slide = inspect_slide(tmp_path / "s.tif")
        with SlideReader(slide) as reader:
            np.testing.assert_array_equal(reader.read(Region(0, 0, *slide.shape))[..., 0], image)

    def test_segmenters_of_yours_see_numbers_only(self, tmp_path: Path) -> None:
        image, truth = nuclei()
        image[:, 200:], image[5, :5], truth[:, 200:] = np.nan, NO_DATA, 0
        tifffile.imwrite(tmp_path / "s.tif", image, photometric="minisblack", metadata=None)
        own = {"segmenter.kind": "function", "segmenter.target": "tests.tasks.slides.test_no_data:Strict"}
        found = segment_serially(tmp_path / "s.tif", tmp_path / "out", own | {"blocks.block_shape": 128})
        assert found.max() == len(np.unique(truth)) - 1

    def test_half_precision(self, tmp_path: Path) -> None:
        image, truth = nuclei("float16")
        image[:40], truth[:40] = np.nan, 0
        tifffile.imwrite(tmp_path / "s.tif", image, photometric="minisblack", metadata=None)
        found = segment_serially(tmp_path / "s.tif", tmp_path / "out", WATERSHED)
        assert found.max() == len(np.unique(truth)) - 1

    @pytest.mark.parametrize("value", NO_DATA)
    @pytest.mark.parametrize("options", [{}, {"blocks.tissue": "off"}, {"segmenter.signal": "dark"}])
    def test_a_slide_without_any_data_has_no_objects(self, value: float, options: dict, tmp_path: Path) -> None:
        tifffile.imwrite(tmp_path / "s.tif", np.full((100, 140), value, np.float32), photometric="minisblack")
        assert segment_serially(tmp_path / "s.tif", tmp_path / "out", WATERSHED | options).max() == 0

    def test_scattered_gaps_do_not_hide_tissue_in_the_overview(self, tmp_path: Path) -> None:
        image, truth = nuclei()
        image[::8, ::8] = np.nan
        tifffile.imwrite(tmp_path / "s.tif", np.tile(image, (20, 1)), photometric="minisblack", tile=(256, 256))
        found = segment_serially(tmp_path / "s.tif", tmp_path / "out", WATERSHED | {"blocks.block_shape": 512})
        assert found.max() == pytest.approx(20 * truth.max(), abs=2)

    def test_stained_tissue_in_floats_is_segmented_like_8_bit(self, tmp_path: Path) -> None:
        _, truth = nuclei()
        image = np.where(truth[..., None] > 0, (92, 62, 140), (228, 178, 205)).astype(np.uint8)
        image[:, 250:] = 243
        floats = image.astype(np.float32)
        floats[:, 280:] = np.nan
        for name, pixels in (("8bit", image), ("float", floats), ("unit", floats / 255)):
            tifffile.imwrite(tmp_path / f"{name}.tif", pixels, photometric="rgb", metadata=None)
        labels = {
            name: segment_serially(tmp_path / f"{name}.tif", tmp_path / "out", WATERSHED)
            for name in ("8bit", "float", "unit")
        }
        assert labels["8bit"].max() == len(np.unique(truth[:, :250])) - 1
        assert_same_segmentation(labels["float"], labels["8bit"])
        assert_same_segmentation(labels["unit"], labels["8bit"])
