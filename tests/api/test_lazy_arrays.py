"""Lazy arrays index as NumPy's do, and read only what is asked for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import basic_indices

from slidesam.lazy_arrays import LazyArray
from slidesam.tasks.grid import Region


def lazy(array: np.ndarray, regions: list[Region] | None = None) -> LazyArray:
    def read(region: Region) -> np.ndarray:
        if regions is not None:
            regions.append(region)
        return array[region.slices]

    return LazyArray(array.shape, array.dtype, read)


@given(st.data())
def test_it_indexes_as_numpy_does(data: st.DataObject) -> None:
    shape = data.draw(st.sampled_from([(5, 7), (1, 4), (6, 5, 3)]))
    array = np.arange(np.prod(shape)).reshape(shape)
    index = data.draw(basic_indices(shape, allow_newaxis=False))
    np.testing.assert_array_equal(lazy(array)[index], array[index])


def test_it_reads_what_the_index_spans_and_no_more() -> None:
    regions: list[Region] = []
    array = np.arange(100).reshape(10, 10)
    np.testing.assert_array_equal(lazy(array, regions)[2:7:2, -1], [29, 49, 69])
    assert regions == [Region(2, 9, 7, 10)]
    assert lazy(array, regions)[5:5].shape == (0, 10)
    assert len(regions) == 1


def test_it_becomes_an_array() -> None:
    array = np.arange(12, dtype=np.uint8).reshape(3, 4)
    np.testing.assert_array_equal(np.asarray(lazy(array)), array)
    assert np.asarray(lazy(array), np.float32).dtype == np.float32
    assert (len(lazy(array)), lazy(array).ndim, lazy(array).dtype) == (3, 2, np.uint8)


@pytest.mark.parametrize("index", [10, (0, 0, 0), ([0, 1], 0), True, None, (..., ...), "y"])
def test_other_indices_are_refused(index: object) -> None:
    with pytest.raises(IndexError):
        lazy(np.zeros((4, 4)))[index]  # type: ignore[index]
