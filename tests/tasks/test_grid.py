"""Block geometry: every pixel is owned once, neighbours share what both read."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slidesam.tasks.errors import SettingsError
from slidesam.tasks.grid import BlockGrid

sizes = st.integers(1, 60)
grids = st.builds(BlockGrid, st.tuples(sizes, sizes), st.tuples(sizes, sizes), st.integers(0, 20))


@settings(deadline=None)
@given(grids)
def test_inner_regions_own_each_pixel_once(grid: BlockGrid) -> None:
    owners = np.zeros(grid.shape, int)
    for block in grid:
        owners[block.inner.slices] += 1
    assert (owners == 1).all()


@settings(deadline=None)
@given(grids)
def test_outer_regions_are_inner_ones_grown_by_the_halo_within_the_slide(grid: BlockGrid) -> None:
    for block in grid:
        assert block.outer.y0 == max(0, block.inner.y0 - grid.halo)
        assert block.outer.x1 == min(grid.shape[1], block.inner.x1 + grid.halo)


@settings(deadline=None)
@given(grids)
def test_all_input_tiles_have_one_shape_and_hold_the_outer_region(grid: BlockGrid) -> None:
    for block in grid:
        tile = grid.input_tile(block)
        assert tile.shape == grid.outer_shape
        assert tile & block.outer == block.outer


@settings(deadline=None)
@given(grids)
def test_seams_are_the_pairs_that_read_the_same_pixels_each_once(grid: BlockGrid) -> None:
    near = {
        (a.block_id, b.block_id)
        for a in grid
        for b in grid
        if a.block_id < b.block_id
        and all(
            abs(a.block_index[axis] - b.block_index[axis]) <= max(1, -(-2 * grid.halo // grid.block_shape[axis]))
            for axis in (0, 1)
        )
    }
    seams = list(grid.seams())
    assert {(seam.first, seam.second) for seam in seams} == near
    assert len(seams) == len(near)
    for block in grid:
        met = {pair for pair in near if block.block_id in pair}
        seen = [other for other in grid if not (other.inner & block.outer).is_empty and other != block]
        assert {tuple(sorted((block.block_id, other.block_id))) for other in seen} <= met
    same_pixels = {(a.block_id, b.block_id) for a in grid for b in grid if not (a.outer & b.outer).is_empty}
    assert {pair for pair in same_pixels if pair[0] < pair[1]} <= near
    assert grid.halo == 0 or near <= same_pixels
    assert all(seam.overlap == grid[seam.first].outer & grid[seam.second].outer for seam in seams)


@settings(deadline=None)
@given(grids)
def test_ids_are_in_c_order(grid: BlockGrid) -> None:
    for block in grid:
        assert np.ravel_multi_index(block.block_index, grid.grid_shape) == block.block_id


@pytest.mark.parametrize(("shape", "block", "halo"), [((0, 5), (2, 2), 0), ((5, 5), (0, 2), 0), ((5, 5), (2, 2), -1)])
def test_impossible_grids_are_refused(shape, block, halo) -> None:
    with pytest.raises(SettingsError):
        BlockGrid(shape, block, halo)


def test_geometry_imports_neither_torch_nor_prefect_nor_dask() -> None:
    code = "import sys, slidesam.tasks.grid as _; print({'torch', 'prefect', 'dask', 'zarr', 'skimage'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
