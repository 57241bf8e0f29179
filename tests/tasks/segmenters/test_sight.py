"""What a segmenter looks at, as a picture: its own conversion of the pixels, without its model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from skimage.color import hed_from_rgb

from slidesam.tasks.segmenters.microsam.inputs import intensity_range, ranges, resolve, to_rgb8
from slidesam.tasks.segmenters.sight import show_input
from slidesam.tasks.settings.methods import Cellpose, Function, MicroSam, Watershed
from tests.support.sam_inputs import rgb_slide

IMAGE = np.random.default_rng(0).integers(0, 256, (32, 40, 3), np.uint8)


def test_micro_sam_is_shown_what_its_encoder_takes() -> None:
    params = intensity_range(IMAGE, is_rgb=True)
    shown = show_input(MicroSam(), IMAGE, params, is_rgb=True)
    np.testing.assert_array_equal(shown, to_rgb8(IMAGE, params))
    assert show_input(MicroSam(scaling="tile"), IMAGE, {}, is_rgb=True) is None


def test_a_stain_is_shown_in_grey() -> None:
    params = ranges(IMAGE, resolve(["hematoxylin"], {}, rgb_slide()))
    shown = show_input(MicroSam(inputs=("hematoxylin",)), IMAGE, params, is_rgb=True)
    assert shown is not None
    assert (shown == shown[..., :1]).all()


def test_watershed_is_shown_the_stain_or_the_mean() -> None:
    shown = show_input(Watershed(kind="watershed"), IMAGE, {"white": 255.0}, is_rgb=True)
    assert shown is not None
    density = -np.log((IMAGE.astype(float) + 1) / 256) @ hed_from_rgb[:, 0]
    absorbed = 1 - np.exp(-density)
    expected = (absorbed - absorbed.min()) / np.ptp(absorbed) * 255
    assert np.abs(shown[..., 0] - expected).max() <= 1.5
    bright = show_input(Watershed(kind="watershed"), IMAGE[..., :1], {"white": 255.0}, is_rgb=False)
    assert bright is not None
    assert np.abs(bright[..., 1] - IMAGE[..., 0].astype(float)).max() <= 1.5


def test_cellpose_is_shown_its_ranges() -> None:
    params: dict[str, Any] = {"low": [0.0, 0.0], "high": [100.0, 255.0]}
    shown = show_input(Cellpose(kind="cellpose"), IMAGE, params, is_rgb=False)
    assert shown is not None
    assert (shown[..., 0][IMAGE[..., 0] >= 100] == 255).all()
    assert not shown[..., 2].any()


def test_what_gets_the_pixels_as_they_are_has_no_view_of_its_own() -> None:
    assert show_input(Function(kind="function", target="a:b"), IMAGE, {}, is_rgb=True) is None


@pytest.mark.parametrize("channels", [1, 2])
def test_a_picture_has_three_channels(channels: int) -> None:
    params = {"low": [0.0] * channels, "high": [255.0] * channels}
    shown = show_input(Cellpose(kind="cellpose"), IMAGE[..., :channels], params, is_rgb=False)
    assert shown is not None
    assert shown.shape == IMAGE.shape
