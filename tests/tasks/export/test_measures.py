"""The columns of the object table beside scikit-image's and numpy's, and the same columns from whichever window."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from skimage.measure import regionprops_table

from benchmarks.stitching.scenes import SCENES
from slidesam.tasks.export.measures import list_columns, measure_objects
from tests.support import ROOT

SHAPE = (
    "centroid", "bbox", "area", "perimeter", "axis_major_length", "axis_minor_length", "eccentricity", "orientation",
    "solidity",
)  # fmt: skip
INTENSITY = ("intensity_mean", "intensity_std", "intensity_min", "intensity_max", "intensity_median")
# What isn't named here is equal. scikit-image finds the axes from differences of eigenvalues: where one is 0, or where both are
# equal, 1e-16 of them is left, of which the column has the root.
TOLERANCES = {
    "perimeter": (1e-12, 0.0), "axis_major_length": (1e-12, 0.0), "axis_minor_length": (1e-9, 1e-5),
    "eccentricity": (1e-9, 1e-6), "intensity_mean": (1e-13, 0.0), "intensity_std": (1e-9, 1e-9),
}  # fmt: skip
CHANNELS = ("red", "green", "blue")


def assert_like_skimage(labels: np.ndarray, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Compare all columns, and return them."""
    names = [f"channel {number}" for number in range(pixels.shape[2])]
    count = int(labels.max()) + 1  # the last id is absent
    table = measure_objects(labels, pixels, count, names)
    present = np.flatnonzero(table["area"])
    np.testing.assert_array_equal(present, np.unique(labels[labels > 0]) - 1)
    # Sums of float32 are float32 in scikit-image.
    wide = pixels.astype(np.float64)
    for column, expected in regionprops_table(labels, wide, properties=[*SHAPE, *INTENSITY]).items():
        name, _, number = column.rpartition("-")
        ours = table[f"{name}-{names[int(number)]}" if name in INTENSITY else column][present]
        if column == "orientation":
            is_round = table["axis_major_length"][present] - table["axis_minor_length"][present] < 1e-6
            turn = np.abs(ours - expected)[~is_round]
            assert np.minimum(turn, np.pi - turn).max(initial=0) < 1e-7
            assert (np.abs(ours) <= np.pi / 2).all()
        else:
            rtol, atol = TOLERANCES.get(name if name in INTENSITY else column, (0.0, 0.0))
            np.testing.assert_allclose(ours, expected, rtol, atol, err_msg=column)
    return table


def random_pixels(shape: tuple[int, ...], dtype: Any = np.uint8, channels: int = 3, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind in "fb":
        return rng.normal(100, 30, (*shape, channels)).astype(dtype)
    return rng.integers(0, min(np.iinfo(dtype).max, 2**31), (*shape, channels), endpoint=True).astype(dtype)


@st.composite
def drawn_labels(draw: st.DrawFn) -> np.ndarray:
    """Noise, so that objects have many parts and holes, or boxes and lines over each other, also at the edge."""
    shape = draw(arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=14))
    if draw(st.booleans()):
        return draw(arrays.arrays(np.uint32, shape, elements=st.integers(0, 3)))
    labels = np.zeros(shape, np.uint32)
    for label in range(1, draw(st.integers(1, 5)) + 1):
        y, x = draw(st.integers(0, shape[0] - 1)), draw(st.integers(0, shape[1] - 1))
        height, width = draw(st.integers(1, 9)), draw(st.sampled_from((1, 2, 7)))
        if draw(st.booleans()):
            labels[y : y + height, x : x + width] = label
        else:  # a slanted line
            steps = np.arange(min(height, shape[0] - y))
            labels[y + steps, np.minimum(x + steps * (width - 1) // 3, shape[1] - 1)] = label
    return labels


class TestAgainstScikitImage:
    # The first example waits until the loops are compiled.
    @settings(deadline=None, max_examples=60)
    @given(drawn_labels())
    def test_all_columns_of_small_images(self, labels: np.ndarray) -> None:
        if labels.any():
            assert_like_skimage(labels, random_pixels(labels.shape, channels=1))

    @pytest.mark.parametrize("scene", SCENES)
    def test_all_columns_of_touching_nested_long_and_large_objects(self, scene: str) -> None:
        labels = SCENES[scene](300, np.random.default_rng(1))
        assert_like_skimage(labels, random_pixels(labels.shape, np.uint16, channels=1))

    @pytest.mark.parametrize(
        ("image", "labels"),
        [
            ("mosaic_he/dsb_he_mosaic_2560x3200.tif", "mosaic_he/dsb_he_mosaic_labels.tif"),
            ("stardist_images/img2d.tif", "stardist_images/mask2d.tif"),
        ],
    )
    def test_all_columns_of_real_nuclei(self, shared_data: Path, image: str, labels: str) -> None:
        pixels, truth = (tifffile.imread(shared_data / name)[:1100, :1100] for name in (image, labels))
        table = assert_like_skimage(truth.astype(np.uint32), pixels.reshape(*truth.shape, -1))
        assert np.count_nonzero(table["area"]) > 100

    def test_lines_and_discs_have_no_noise(self) -> None:
        labels = np.zeros((20, 20), np.uint32)
        np.fill_diagonal(labels[:7, :7], 1)
        labels[10, 3:9] = 2
        labels[12:16, 12:16] = 3
        labels[0, 19] = 4
        table = measure_objects(labels, random_pixels(labels.shape), 4, CHANNELS)
        np.testing.assert_array_equal(table["axis_minor_length"][[0, 1, 3]], 0)
        np.testing.assert_array_equal(table["eccentricity"], [1, 1, 0, 0])
        np.testing.assert_array_equal(table["orientation"], np.pi * np.array([0.25, 0.5, -0.25, -0.25]))
        np.testing.assert_array_equal(table["solidity"], 1)
        np.testing.assert_allclose(table["circularity"], 4 * np.pi * np.array([7 / 50, 6 / 16, 16 / 144, np.nan]))


class TestIntensities:
    @pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", ">u2", "i4", "f2", "f4", "f8", ">f4", "?"])
    def test_statistics_are_numpys(self, dtype: str) -> None:
        labels = SCENES["confluent"](80, np.random.default_rng(2))
        pixels = random_pixels(labels.shape, dtype, channels=2)
        if pixels.dtype.kind == "f":
            rng = np.random.default_rng(3)
            pixels[rng.random(pixels.shape) < 0.2] = np.nan
            pixels[rng.random(pixels.shape) < 0.1] = np.inf
            pixels[labels == 3, 1] = np.nan
        table = measure_objects(labels, pixels, int(labels.max()), ("a", "b"))
        for label in range(1, int(labels.max()) + 1):
            for channel, name in enumerate("ab"):
                values = pixels[labels == label, channel].astype(np.float64)
                values = values[np.isfinite(values)]
                found = [table[f"{statistic}-{name}"][label - 1] for statistic in INTENSITY]
                if values.size == 0:
                    assert np.isnan(found).all()
                    continue
                np.testing.assert_allclose(found[:2], [values.mean(), values.std()], 1e-12, 1e-12)
                assert found[2:] == [values.min(), values.max(), np.median(values)]

    @pytest.mark.parametrize(("dtype", "base"), [(np.uint8, 254), (np.uint16, 65534), (np.float32, 2.0**23)])
    def test_a_small_spread_of_large_values_is_kept(self, dtype: type, base: float) -> None:
        pixels = np.full((600, 700, 1), base, dtype)
        pixels[::2] += 1
        labels = np.ones((600, 700), np.uint32)
        assert measure_objects(labels, pixels, 1, ["a"])["intensity_std-a"].tolist() == [0.5]
        assert measure_objects(labels, pixels, 1, ["a"])["intensity_median-a"].tolist() == [base + 0.5]

    def test_channels_may_come_in_arrays_of_several_types(self) -> None:
        labels = SCENES["confluent"](64, np.random.default_rng(6))
        colours, stain = random_pixels(labels.shape), random_pixels(labels.shape, np.float32, channels=1)
        count, names = int(labels.max()), (*CHANNELS, "stain")
        table = measure_objects(labels, [colours, stain], count, names)
        together = measure_objects(labels, np.concatenate([colours, stain], axis=2), count, names)
        for name, column in together.items():
            np.testing.assert_allclose(table[name], column, 1e-12, err_msg=name)


class TestWindows:
    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
    def test_an_object_has_the_same_bits_in_every_window(self, dtype: type) -> None:
        labels = SCENES["nested"](300, np.random.default_rng(4))
        pixels = random_pixels(labels.shape, dtype)
        whole = measure_objects(labels, pixels, int(labels.max()), CHANNELS, origin=(70_001, 90_007))
        compared = 0
        for y, x, height, width in ((0, 0, 250, 270), (37, 91, 230, 209), (101, 3, 199, 297)):
            window = slice(y, y + height), slice(x, x + width)
            inside = (whole["bbox-0"] - 70_001 >= y) & (whole["bbox-2"] - 70_001 <= y + height)
            inside &= (whole["bbox-1"] - 90_007 >= x) & (whole["bbox-3"] - 90_007 <= x + width)
            wanted = np.flatnonzero(inside)
            # What belongs to other tasks is 0, and ids are the window's own.
            ids = np.zeros(len(inside) + 1, np.uint32)
            ids[wanted + 1] = np.arange(len(wanted), 0, -1)
            cut = measure_objects(
                ids[labels[window]], pixels[window], len(wanted), CHANNELS, origin=(70_001 + y, 90_007 + x)
            )
            for name, column in cut.items():
                assert column[::-1].tobytes() == whole[name][wanted].tobytes(), name
            compared += len(wanted)
        assert compared > 30

    def test_memory_layout_does_not_matter(self) -> None:
        labels = SCENES["confluent"](64, np.random.default_rng(5))
        pixels = random_pixels(labels.shape)
        turned = np.asfortranarray(labels), np.moveaxis(np.ascontiguousarray(np.moveaxis(pixels, -1, 0)), 0, -1)
        first, second = (measure_objects(*both, int(labels.max()), CHANNELS) for both in ((labels, pixels), turned))
        assert all(first[name].tobytes() == second[name].tobytes() for name in first)


class TestTable:
    def test_columns_are_those_listed(self) -> None:
        table = measure_objects(np.ones((2, 2), np.uint32), random_pixels((2, 2)), 1, CHANNELS)
        assert list(table) == list(list_columns(CHANNELS))
        assert {name for name, column in table.items() if column.dtype == np.int64} == {
            "area", "bbox-0", "bbox-1", "bbox-2", "bbox-3",
        }  # fmt: skip

    def test_of_absent_ids_nothing_is_known(self) -> None:
        table = measure_objects(np.zeros((3, 4), np.uint32), random_pixels((3, 4)), 2, CHANNELS, origin=(5, 5))
        assert all(
            np.isnan(column).all() if column.dtype.kind == "f" else not column.any() for column in table.values()
        )
        empty = measure_objects(np.zeros((0, 4), np.uint32), random_pixels((0, 4)), 0, CHANNELS)
        assert all(len(column) == 0 for column in empty.values())

    @pytest.mark.parametrize(
        ("labels", "channels", "message"),
        [
            ([[1, 3]], CHANNELS, "1 to 2 are expected, and 3"),
            ([[1, 2]], ("a", "a", "b"), "fit"),
            ([[1], [2]], CHANNELS, "fit"),
        ],
    )
    def test_what_does_not_fit_is_refused(
        self, labels: list[list[int]], channels: tuple[str, ...], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            measure_objects(np.array(labels, np.uint32), random_pixels((1, 2)), 2, channels)

    def test_the_documented_columns_are_those_listed(self) -> None:
        rows = [f"| `{name}` | {meaning} |" for name, meaning in list_columns(["<channel>"]).items()]
        assert "\n".join(rows) in (ROOT / "docs" / "results.md").read_text()
