"""The watershed segmenter: what it finds, and that blocks find the same as the whole image."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from scipy import ndimage
from skimage import data

from slidesam.tasks.errors import SegmenterError
from slidesam.tasks.segmenters.watershed import WatershedSegmenter
from slidesam.tasks.settings.methods import Watershed
from tests.support.same import assert_same_segmentation, score
from tests.support.serial import segment_serially

NO_MPP = SimpleNamespace(mpp=None)


def segment(image, **options):
    segmenter = WatershedSegmenter(Watershed(kind="watershed", **options), is_rgb=image.ndim == 3)
    return segmenter.segment(image, segmenter.prepare(image, NO_MPP))


def discs(centres, radius, shape=(120, 160)):
    y, x = np.indices(shape)
    truth = np.zeros(shape, np.int32)
    for number, (cy, cx) in enumerate(centres, 1):
        truth[(y - cy) ** 2 + (x - cx) ** 2 <= radius**2] = number
    return truth


@pytest.mark.parametrize(
    ("signal", "dtype"), [("bright", np.uint8), ("dark", np.uint8), ("bright", np.uint16), ("bright", np.float32)]
)
def test_separate_and_touching_discs_are_found(signal, dtype) -> None:
    truth = discs([(30, 30), (30, 47), (80, 60), (60, 120)], 10)
    level = (truth > 0).astype(dtype) * 150 + 20
    image = level if signal == "bright" else level.max() - level + 20
    found = segment(np.asarray(image, dtype), signal=signal, diameter=20)
    assert found.max() == 4
    assert score(found, truth, 0.85) == 1.0


def test_diameter_is_in_micrometres_where_the_pixel_size_is_known() -> None:
    segmenter = WatershedSegmenter(Watershed(kind="watershed", diameter=8), is_rgb=False)
    image = np.arange(100, dtype=np.uint8).reshape(10, 10)
    assert segmenter.prepare(image, SimpleNamespace(mpp=(0.5, 0.5)))["diameter"] == 16


@pytest.mark.parametrize("value", [0, 255])
def test_a_blank_slide_has_no_objects(value) -> None:
    assert segment(np.full((64, 64), value, np.uint8)).max() == 0
    assert segment(np.full((64, 64, 3), value, np.uint8)).max() == 0


def test_hematoxylin_needs_three_channels() -> None:
    with pytest.raises(SegmenterError, match=r"segmenter\.signal"):
        segment(np.zeros((32, 32), np.uint8), signal="hematoxylin")


def test_histology_nuclei_are_found() -> None:
    found = segment(data.immunohistochemistry(), diameter=14)
    areas = ndimage.sum_labels(np.ones_like(found), found, np.arange(1, found.max() + 1))
    assert 200 < found.max() < 1200
    assert 40 < np.median(areas) < 300


def rgb_slide(path, image):
    tifffile.imwrite(path, image, photometric="rgb", tile=(256, 256))
    return path


def test_blocks_find_what_the_whole_image_holds(tmp_path) -> None:
    slide = rgb_slide(tmp_path / "ihc.tif", data.immunohistochemistry())
    overrides = {"segmenter.kind": "watershed", "segmenter.diameter": 14, "blocks.halo": 64}
    whole = segment_serially(slide, tmp_path / "whole", overrides | {"blocks.block_shape": 512})
    blocks = segment_serially(slide, tmp_path / "blocks", overrides | {"blocks.block_shape": 128})
    assert whole.max() > 200
    assert_same_segmentation(blocks, whole)


@pytest.mark.slow
def test_blocks_of_the_mosaic_find_what_the_whole_holds(shared_data, tmp_path) -> None:
    folder = shared_data / "mosaic_he"
    slide = folder / "dsb_he_mosaic_2560x3200.tif"
    truth = tifffile.imread(folder / "dsb_he_mosaic_labels.tif")
    overrides = {"segmenter.kind": "watershed", "segmenter.diameter": 18, "blocks.halo": 64}
    whole = segment_serially(slide, tmp_path / "whole", overrides | {"blocks.block_shape": 4096})
    assert score(whole, truth) > 0.54
    for block in (256, 1024):
        blocks = segment_serially(slide, tmp_path / str(block), overrides | {"blocks.block_shape": block})
        assert score(blocks, truth) > 0.54
        assert score(blocks, whole, 0.9) > 0.999
