"""The file of a block: whatever region of its labels is asked for is what was written, and damage to it is found."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slidesam.tasks.errors import DamagedError
from slidesam.tasks.grid import BlockGrid, Region
from slidesam.tasks.labels.objects import describe_block
from slidesam.tasks.labels.results import BlockResults, save_block
from slidesam.tasks.run.marks import find_mark
from slidesam.tasks.run.records import BlockMark
from slidesam.tasks.run.stage_folders import SegmentFolder


def make_run(folder: Path, grid: BlockGrid) -> SimpleNamespace:
    """What a block's file needs of a run."""
    return SimpleNamespace(grid=grid, segment_folder=SegmentFolder(folder / "segment-a"))


def write_all(run: SimpleNamespace, seed: int = 0) -> dict[int, np.ndarray]:
    """Labels of all blocks, written."""
    labels = {}
    for block in run.grid:
        rng = np.random.default_rng([seed, block.block_id])
        labels[block.block_id] = rng.integers(0, 5, block.outer.shape, np.uint32)
        table = describe_block(labels[block.block_id], block, run.grid.shape)
        mark = BlockMark(block_id=block.block_id, count=table.area.size)
        save_block(run, block, labels[block.block_id], table, mark)
    return labels


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_region_reads_as_it_was_written(data: st.DataObject, tmp_path: Path) -> None:
    size = st.integers(1, 60)
    grid = BlockGrid(
        data.draw(st.tuples(size, size)), data.draw(st.tuples(*[st.integers(6, 30)] * 2)), data.draw(st.integers(0, 8))
    )
    run = make_run(tmp_path, grid)
    labels = write_all(run)
    results = BlockResults(run)
    for block in grid:
        outer = block.outer
        y0, x0 = data.draw(st.integers(outer.y0, outer.y1 - 1)), data.draw(st.integers(outer.x0, outer.x1 - 1))
        part = Region(y0, x0, data.draw(st.integers(y0 + 1, outer.y1)), data.draw(st.integers(x0 + 1, outer.x1)))
        seams = [seam.overlap for seam in grid.seams() if block.block_id in seam[:2] and not seam.overlap.is_empty]
        for region in (outer, block.inner, part, *seams):
            expected = labels[block.block_id][region.relative_to(outer).slices]
            np.testing.assert_array_equal(results.read(block, region), expected)
            view = results.view(block, region)
            y, x = view.at
            assert view.labels.flags.c_contiguous
            np.testing.assert_array_equal(view.labels[y : y + region.shape[0], x : x + region.shape[1]], expected)


def test_a_block_without_objects_is_a_mark_alone(tmp_path: Path) -> None:
    run = make_run(tmp_path, BlockGrid((64, 64), (32, 32), 8))
    block, nothing = run.grid[0], np.zeros((40, 40), np.uint32)
    save_block(run, block, nothing, describe_block(nothing, block, run.grid.shape), BlockMark(block_id=0, count=0))
    results = BlockResults(run)
    assert (find_mark(run, 0), results.count(0), results.table(0).area.size) == (BlockMark(block_id=0, count=0), 0, 0)
    assert not results.read(block, block.outer).any()
    assert run.segment_folder.block(0).stat().st_size < 300


@given(data=st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_damage_to_a_blocks_file_is_found_and_the_block_counts_as_not_done(
    data: st.DataObject, tmp_path: Path
) -> None:
    run = make_run(tmp_path, BlockGrid((64, 96), (32, 32), 8))
    write_all(run)
    path = run.segment_folder.block(4)
    content = bytearray(path.read_bytes())
    match data.draw(st.sampled_from(["flip", "cut", "swap"])):
        case "flip":
            content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        case "cut":
            del content[data.draw(st.integers(0, len(content) - 1)) :]
        case _:
            content[:] = run.segment_folder.block(data.draw(st.sampled_from([0, 1, 2, 3, 5]))).read_bytes()
    path.write_bytes(content)
    results, block = BlockResults(run), run.grid[4]
    with pytest.raises(DamagedError, match=r"blocks/4\.arrays is damaged and was removed: run the same command again"):
        results.table(4), results.read(block, block.outer)
    assert find_mark(run, 4) is None
    assert 4 not in run.segment_folder.list_results()
