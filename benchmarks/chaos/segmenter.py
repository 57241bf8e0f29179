"""What the disturbed runs compute: blocks whose pixels hold their number, and a log of which block was computed when."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from slidesam.tasks.run.layout import list_runs, list_slide_folders
from slidesam.tasks.run.stage_folders import SegmentFolder

ROWS, COLUMNS, BLOCK = 3, 4, 64
TARGET = "benchmarks.chaos.segmenter:number_of_block"


def number_of_block(image: NDArray[Any], log: str, output: str) -> NDArray[np.int32]:
    """Label a block whose pixels hold its number; write to a log the number, and whether the block has a result already."""
    number = int(image.max())
    line = f"{number} {int(number - 1 in finished_blocks(Path(output)))}\n"
    time.sleep(0.2)
    with os.fdopen(os.open(log, os.O_APPEND | os.O_CREAT | os.O_WRONLY), "w") as stream:
        stream.write(line)
    labels: NDArray[np.int32] = (image > 0).astype(np.int32)
    return labels


def finished_blocks(output: Path) -> set[int]:
    """Return the ids of the blocks that have a result."""
    runs = [run for slide in list_slide_folders(output) for run in list_runs(slide)]
    folders = [SegmentFolder(path) for run in runs for path in run.stage_folders("segment")]
    return {block_id for folder in folders for block_id in folder.list_results()}


def make_settings(log: Path, output: Path) -> dict[str, Any]:
    """Return the settings of all runs."""
    options = {"log": str(log), "output": str(output)}
    return {
        "segmenter": {"kind": "function", "target": TARGET, "options": options},
        "blocks": {"block_shape": BLOCK, "halo": 0, "tissue": "off"},
        "run": {"retry_delay": 0.2},
    }


def write_slide(path: Path) -> Path:
    """Write a slide of twelve blocks, each of which holds its number."""
    numbers = np.arange(1, ROWS * COLUMNS + 1, dtype=np.uint8).reshape(ROWS, COLUMNS)
    tifffile.imwrite(path, np.kron(numbers, np.ones((BLOCK, BLOCK), np.uint8)), tile=(64, 64), compression="zlib")
    return path
