"""What a block's result costs on disk: writing with and without waiting for the disk, reading, and finding out that it is done.

    .venv/bin/python -m benchmarks.block_files [--blocks 500] [--folder /scratch]

Blocks are those of the stitching benchmark's confluent slide: 1024 px with a halo of 64 px, some 2000 objects each.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import google_crc32c
import numpy as np

from benchmarks.stitching.big import true_labels
from slidesam.tasks.grid import BlockGrid
from slidesam.tasks.labels.objects import describe_block
from slidesam.tasks.labels.results import BlockResults, save_block
from slidesam.tasks.run.marks import find_mark
from slidesam.tasks.run.records import BlockMark
from slidesam.tasks.run.stage_folders import SegmentFolder
from slidesam.tasks.segment.block import renumber


def measure(folder: Path, n_blocks: int) -> dict[str, float]:
    """Write and read the results of blocks; return milliseconds per block."""
    grid = BlockGrid((3 * 1024, 3 * 1024), (1024, 1024), 64)
    # Block k of the slide is written under many numbers: what counts is the disk.
    block = grid[4]
    labels = renumber(true_labels(block.outer.slices, grid.shape[0]))
    table = describe_block(labels, block, grid.shape)
    run: Any = SimpleNamespace(grid=grid, segment_folder=SegmentFolder(folder / "segment-a"))
    numbers = range(n_blocks)

    def write(number: int) -> None:
        save_block(
            run, block._replace(block_id=number), labels, table, BlockMark(block_id=number, count=table.area.size)
        )

    def read_core(number: int) -> None:
        BlockResults(run).view(block._replace(block_id=number), block.inner)

    def read_strips(number: int) -> None:
        BlockResults(run).view(block._replace(block_id=number), block.outer._replace(y1=block.outer.y0 + 128))

    results = {}
    with mock.patch.object(os, "fsync"):
        results["write, without fsync"] = time_each(write, numbers)
    with mock.patch.object(google_crc32c, "value", return_value=0), mock.patch.object(os, "fsync"):
        results["write, without fsync and checksums"] = time_each(write, numbers)
    results["write"] = time_each(write, numbers)
    results["read the core"] = time_each(read_core, numbers)
    results["read the strips"] = time_each(read_strips, numbers)
    results["read the table"] = time_each(lambda number: BlockResults(run).table(number), numbers)
    results["find the mark"] = time_each(lambda number: find_mark(run, number), numbers)
    results["size in KiB"] = run.segment_folder.block(0).stat().st_size / 1024
    return results


def time_each(function: Callable[[int], object], numbers: range) -> float:
    """Return the median milliseconds of a call."""
    times = []
    for number in numbers:
        started = time.perf_counter()
        function(number)
        times.append(time.perf_counter() - started)
    return float(np.median(times)) * 1e3


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=500, help="how many (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where to write (default: the folder for temporary files)")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        for name, value in measure(folder, arguments.blocks).items():
            print(f"{name:<36}{value:8.2f}" + ("" if "KiB" in name else " ms"))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
