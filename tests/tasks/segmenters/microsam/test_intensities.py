"""Slide-wide intensity ranges where no inputs are named."""

from __future__ import annotations

import numpy as np
import pytest

from slidesam.tasks.errors import SegmenterError
from slidesam.tasks.segmenters.microsam.inputs import intensity_range, to_rgb8
from tests.support.sam_inputs import rgb_block


class TestIntensities:
    """Without torch: fast."""

    def test_rgb_keeps_its_colours(self) -> None:
        image = rgb_block()
        found = intensity_range(image, is_rgb=True)
        assert found["low"] == [0.0, 0.0, 0.0]
        assert len(set(found["high"])) == 1
        assert 200 < found["high"][0] <= 255

    @pytest.mark.parametrize(
        ("dtype", "factor"), [("uint16", 257), ("float32", 1 / 255), ("float64", 1.0), ("uint16", 16)]
    )
    def test_rgb_of_other_types_looks_as_in_8_bit(self, dtype: str, factor: float) -> None:
        image = rgb_block()
        expected = to_rgb8(image, intensity_range(image, is_rgb=True)).astype(int)
        other = (image * float(factor)).astype(dtype)
        assert np.abs(to_rgb8(other, intensity_range(other, is_rgb=True)) - expected).max() <= 1

    def test_colours_below_zero_have_room(self) -> None:
        image = rgb_block() / np.float32(127.5) - 1
        assert len(np.unique(to_rgb8(image, intensity_range(image, is_rgb=True)))) > 100

    def test_objects_of_a_sparse_channel_keep_their_shades(self) -> None:
        image = np.zeros((100, 100), np.uint16)
        image[50, 45:50] = 1000, 2000, 3000, 4000, 5000
        assert to_rgb8(image, intensity_range(image, is_rgb=False))[50, 45:50, 0].tolist() == [51, 102, 153, 204, 255]

    @pytest.mark.parametrize("value", [0, 7, 65535])
    def test_a_blank_slide_has_a_range(self, value: int) -> None:
        found = intensity_range(np.full((8, 8), value, np.uint16), is_rgb=False)
        assert found["high"][0] > found["low"][0]
        assert not to_rgb8(np.full((4, 4), value, np.uint16), found).any()

    def test_what_is_no_number_is_left_out(self) -> None:
        image = np.array([[np.nan, 1.0], [2.0, np.inf]])
        found = intensity_range(image, is_rgb=False)
        assert 1 <= found["low"][0] < found["high"][0] <= 2
        assert to_rgb8(image, found)[..., 0].tolist() == [[0, 0], [255, 255]]
        assert intensity_range(np.full((2, 2), np.nan), is_rgb=False) == {"low": [0.0], "high": [1.0]}

    def test_full_range_leaves_8_bit_as_it_is(self) -> None:
        image = np.arange(256, dtype=np.uint8).reshape(16, 16)
        assert np.array_equal(to_rgb8(image, {"low": [0.0], "high": [255.0]})[..., 1], image)

    @pytest.mark.parametrize(("n_channels", "filled"), [(1, [9, 9, 9]), (2, [9, 9, 0]), (3, [9, 9, 9]), (5, [9, 9, 9])])
    def test_channels_are_filled_up_to_three(self, n_channels: int, filled: list[int]) -> None:
        params = {"low": [0.0] * min(n_channels, 3), "high": [255.0] * min(n_channels, 3)}
        assert to_rgb8(np.full((2, 2, n_channels), 9, np.uint8), params)[0, 0].tolist() == filled

    def test_a_range_for_other_channels_is_refused(self) -> None:
        with pytest.raises(SegmenterError, match="for 1 channels, but the block has 3"):
            to_rgb8(rgb_block(), {"low": [0.0], "high": [1.0]})
