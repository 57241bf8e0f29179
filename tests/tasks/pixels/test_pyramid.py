"""Coarser levels of an image."""

from __future__ import annotations

import numpy as np
import pytest

from slidesam.tasks.pixels import pyramid


@pytest.mark.parametrize("dtype", ["uint64", "int64"])
def test_halving_the_largest_integers_keeps_them(dtype: str) -> None:
    for value in (np.iinfo(dtype).max, np.iinfo(dtype).min, 2**53 + 1):
        image = np.full((3, 4, 4), value, dtype)
        np.testing.assert_array_equal(pyramid.halve(image), np.full((3, 2, 2), value, dtype))
