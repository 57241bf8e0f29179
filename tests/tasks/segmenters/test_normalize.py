"""Intensities by percentiles of the whole slide."""

from __future__ import annotations

import numpy as np
import pytest

from slidesam.tasks.errors import SegmenterError
from slidesam.tasks.segmenters.normalize import normalize, slide_range


class TestNormalize:
    def test_channels_keep_to_themselves_or_go_together(self) -> None:
        sample = np.stack([np.arange(101), 10 * np.arange(101)], axis=1)[None]
        assert slide_range(sample, (1, 99)) == {"low": [1.0, 10.0], "high": [99.0, 990.0]}
        together = slide_range(sample, (0, 100), jointly=True)
        assert together == {"low": [0.0, 0.0], "high": [1000.0, 1000.0]}

    @pytest.mark.parametrize("value", [0, 7, 65535])
    def test_a_blank_slide_is_all_zero(self, value: int) -> None:
        blank = np.full((8, 8), value, np.uint16)
        assert not normalize(blank, slide_range(blank, (1, 99))).any()

    def test_what_is_no_number_is_left_out(self) -> None:
        image = np.array([[np.nan, 1.0], [2.0, np.inf]])
        found = slide_range(image, (0, 100))
        assert found == {"low": [1.0], "high": [2.0]}
        assert normalize(image, found)[..., 0].tolist() == [[0, 0], [1, 0]]
        assert slide_range(np.full((2, 2), np.nan), (0, 100)) == {"low": [0.0], "high": [1.0]}

    @pytest.mark.parametrize(
        ("dtype", "noise", "value"),
        [("uint16", 0, 20000), ("uint16", 3, 20000), ("uint8", 2, 200), ("float32", 0, 0.5), ("int32", 0, -9000)],
    )
    def test_objects_of_a_sparse_channel_are_no_brighter_than_those_of_a_dense_one(
        self, dtype: str, noise: int, value: float
    ) -> None:
        sparse = np.random.default_rng(0).integers(0, noise + 1, (100, 100)).astype(dtype)
        sparse[40:45, 40:50] = value  # half a per cent
        dense = np.arange(10_000).reshape(100, 100)
        scaled = normalize(sparse, slide_range(sparse, (1, 99)))
        assert np.abs(scaled).max() == pytest.approx(1, abs=0.05)
        assert np.abs(normalize(dense, slide_range(dense, (1, 99)))).max() == pytest.approx(1, abs=0.05)

    def test_debris_of_a_dense_channel_sets_no_range(self) -> None:
        image = np.random.default_rng(0).integers(100, 400, (100, 100)).astype(np.uint16)
        image[:5, :10] = 60000
        assert slide_range(image, (1, 99))["high"][0] < 401

    @pytest.mark.parametrize(("value", "share"), [(4000, 0.00004), (4000, 0.0002), (0, 0.0)])
    def test_hot_pixels_of_a_photon_counting_channel_set_no_range(self, value: int, share: float) -> None:
        rng = np.random.default_rng(0)
        image = rng.poisson(np.where(rng.random((1000, 1000)) < 0.2, 2, 0.05)).astype(np.uint16)
        image[rng.random(image.shape) < share] = value
        assert slide_range(image, (1, 99.8)) == {"low": [0.0], "high": [6.0]}

    @pytest.mark.parametrize("percentiles", [(1, 99), (1, 99.8), (0.1, 99.9)])
    def test_hot_and_dead_pixels_of_a_dim_channel_set_no_range(self, percentiles: tuple[float, float]) -> None:
        image = np.full((500, 500), 11, np.uint8)
        image[100:160, 100:160] = 16
        image.flat[:: 250_000 // 50] = 255  # 0.02 %
        image.flat[1 :: 250_000 // 50] = 0
        assert slide_range(image, percentiles) == {"low": [11.0], "high": [16.0]}

    def test_hot_pixels_beside_sparse_objects_set_no_range(self) -> None:
        image = np.random.default_rng(0).integers(0, 4, (500, 500)).astype(np.uint16)
        image[100:120, 100:120] = 200  # 0.16 %
        image.flat[:10] = 60000
        assert slide_range(image, (1, 99.8)) == {"low": [0.0], "high": [200.0]}

    def test_a_range_for_other_channels_is_refused(self) -> None:
        with pytest.raises(SegmenterError, match="for 1 channels, but the block has 3"):
            normalize(np.zeros((2, 2, 3)), {"low": [0.0], "high": [1.0]})
