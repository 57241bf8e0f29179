"""Percentiles of pixels: what is no number is left out, and an image without numbers has a range all the same."""

from __future__ import annotations

import numpy as np
import pytest

from slidesam.tasks.pixels.percentiles import nearest_percentiles, percentile_range

NO_NUMBERS = np.array([[np.nan, np.inf], [-np.inf, np.nan]], np.float32)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32"])
def test_nearest_is_a_value_of_the_image_and_the_range_lies_between_values(dtype: str) -> None:
    pixels = np.array([[0, 10], [20, 30]], dtype)
    assert nearest_percentiles(pixels, (10, 50, 99)) == [0.0, 20.0, 30.0]
    assert percentile_range(pixels, (10, 99)) == pytest.approx((3.0, 29.7))


def test_what_is_no_number_is_left_out() -> None:
    pixels = np.concatenate([NO_NUMBERS, [[1.0, 3.0]]])
    assert nearest_percentiles(pixels, (0, 100)) == [1.0, 3.0]
    assert percentile_range(pixels, (0, 100)) == (1.0, 3.0)


def test_an_image_without_numbers() -> None:
    assert nearest_percentiles(NO_NUMBERS, (1, 50, 99)) == [0.0, 0.0, 0.0]
    assert percentile_range(NO_NUMBERS, (1, 99)) == (0.0, 1.0)
