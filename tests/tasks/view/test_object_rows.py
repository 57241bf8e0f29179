"""Rows of the table of objects, found without reading all of it, and the map of all objects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from slidesam.tasks.view.density_map import draw_smooth_density
from slidesam.tasks.view.object_rows import find_row, summarise_objects

N = 1000
IDS = np.arange(1, 2 * N, 2)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Objects with odd numbers, in groups of 64 rows; an eighth of the slide holds all of class b."""
    random = np.random.default_rng(0)
    is_b = np.arange(N) % 4 == 0
    y, x = random.uniform(0, 499, N), np.where(is_b, random.uniform(0, 125, N), random.uniform(0, 999, N))
    columns = {
        "label": IDS, "centroid-0": y, "centroid-1": x, "area": np.full(N, 78.5),
        **{f"bbox-{axis}": np.arange(N) + axis for axis in range(4)},
        "circularity": np.where(np.arange(N) == 3, np.nan, 0.9), "class": np.where(is_b, "b", "a"),
    }  # fmt: skip
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=64)
    return path


def test_each_object_is_found_and_no_other(table: Path) -> None:
    for place in (0, 3, 63, 64, 500, N - 1):
        row = find_row(table, int(IDS[place]))
        assert row is not None
        assert row.box == (place, place + 1, place + 2, place + 3)
        assert row.cells[0][:2] == ("label", IDS[place])
        assert dict(cell[:2] for cell in row.cells)["circularity"] == (None if place == 3 else 0.9)
    for number in (0, 2, 128, 2 * N, 2**40):
        assert find_row(table, number) is None


def test_objects_are_counted_by_class_and_cell(table: Path) -> None:
    summary = summarise_objects(table, (500, 1000), 10)
    names = {name: one.counts for name, one in zip(summary.class_names, summary.densities, strict=True)}
    assert {name: counts.sum() for name, counts in names.items()} == {"a": 750, "b": 250}
    assert names["a"].shape == (50, 100)
    assert names["b"][:, 13:].sum() == 0
    frame = pq.read_table(table).to_pandas()
    # Centroids are counted from the centre of the first pixel.
    y, x = frame["centroid-0"] + 0.5, frame["centroid-1"] + 0.5
    expected, *_ = np.histogram2d(y, x, bins=(50, 100), range=((0, 500), (0, 1000)))
    np.testing.assert_array_equal(sum(names.values()), expected)
    np.testing.assert_array_equal(summary.ids, IDS)
    assert [summary.class_names[number] for number in summary.class_numbers[:4]] == ["b", "a", "a", "a"]
    assert summary.diameter == pytest.approx(10, rel=1e-3)


def test_density_is_that_of_the_classes_that_are_shown(table: Path) -> None:
    summary = summarise_objects(table, (500, 1000), 10)
    both = draw_smooth_density(summary, (500, 1000), (0.5, 0.5))
    only_b = draw_smooth_density(summary, (500, 1000), (0.5, 0.5), frozenset({"a"}))
    assert (only_b.picture[:, 40:, 3] == 0).all()
    assert (both.picture[:, :, 3] > 0).all()
    # 250 objects on 500 × 125 pixels of half a micrometre.
    assert 250 / (250 * 62.5 / 1e6) < only_b.highest < 3 * 250 / (250 * 62.5 / 1e6)
    assert draw_smooth_density(summary, (500, 1000), None, frozenset({"a"})).highest == pytest.approx(
        only_b.highest / 4
    )
    assert draw_smooth_density(summary, (500, 1000), None, frozenset({"a", "b"})).highest == 0


def test_a_table_without_objects_has_no_density(tmp_path: Path) -> None:
    names = ("label", "centroid-0", "centroid-1", "area", "bbox-0", "bbox-1", "bbox-2", "bbox-3")
    path = tmp_path / "empty.parquet"
    pq.write_table(pa.table({name: pa.array([], pa.float64()) for name in names}), path)
    summary = summarise_objects(path, (100, 100), 10)
    assert draw_smooth_density(summary, (100, 100), None).highest == 0
    assert find_row(path, 1) is None
