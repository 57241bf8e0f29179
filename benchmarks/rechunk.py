"""Sources that are costly to read block by block: read amplification, and seconds with and without rewriting the pixels first.

Strips across the whole slide, a chunk per channel, chunks of 64 px: the image stage, then all blocks read in this process, with
`image.rechunk` never and always; `auto` says what would be chosen. The pixels have to be equal.

    make rechunk        (or: .venv/bin/python -m benchmarks.rechunk --side 8192)
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import zarr
from rich.console import Console
from rich.table import Table

from benchmarks.big_slide import make_channels_zarr, make_strips
from slidesam.tasks.pixels.plan import amplification
from slidesam.tasks.plan import plan_run
from slidesam.tasks.settings.parse import make_settings
from slidesam.tasks.store.readers import open_pixels
from tests.support.serial import write_image_serially


def read_all(slide: Path, output: Path, rechunk: str, block: int) -> tuple[float, float, float, str, int]:
    """Amplification of reading, seconds of the image stage, of reading all blocks, what was done, and a checksum."""
    shutil.rmtree(output, ignore_errors=True)
    overrides = {
        "segmenter.kind": "watershed", "image.convert": "never", "image.rechunk": rechunk, "slide.channels": "auto",
        "blocks.block_shape": block,
    }  # fmt: skip
    run = plan_run(slide, output, make_settings(overrides=overrides))
    started = time.perf_counter()
    write_image_serially(run)
    prepared = time.perf_counter()
    pixels, total = open_pixels(run), 0
    for each in run.grid:
        total += int(pixels.read(each.outer).sum(dtype=np.int64))
    pixels.close()
    read = time.perf_counter()
    factor = run.image_plan.amplification
    if run.image_plan.mode == "rechunk":
        array = zarr.open_array(run.image_folder.pixels / "0", mode="r")
        chunks = (1, 1, 1, array.chunks[3], array.chunks[4])
        channels = range(len(run.slide.channels))
        factor = amplification(chunks, run.slide.shape, tuple(channels), array.dtype.itemsize, run.grid)
    return factor, prepared - started, read - prepared, run.image_plan.mode, total


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=8192)
    parser.add_argument("--block", type=int, default=1024)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "slidesam-benchmark")
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    side, folder = chosen.side, chosen.folder
    slides = {
        "strips of 8 rows, deflate": make_strips(folder / f"strips-{side}.tif", side, 2 * side),
        "a chunk of 512 px per channel": make_channels_zarr(folder / f"channels-{side}.ome.zarr", side),
        "a chunk of 64 px per channel": make_channels_zarr(folder / f"tiny-{side}.ome.zarr", side, chunk=64),
    }
    table = Table(title=f"{side} px, blocks of {chosen.block} px, one process: the overview is made in either way")
    for column in ("source", "auto", "amplification", "rechunked", "image s", "blocks s", "in place s", "rechunked s"):
        table.add_column(column, justify="left" if column in ("source", "auto") else "right")
    for name, slide in slides.items():
        never, always, auto = (
            read_all(slide, folder / "out", how, chosen.block) for how in ("never", "always", "auto")
        )
        if len({never[4], always[4]}) > 1:
            raise SystemExit(f"{name}: the pixels differ")
        table.add_row(
            name, auto[3], f"{never[0]:.1f}", f"{always[0]:.1f}", f"{always[1]:.1f}", f"{never[2]:.1f} → {always[2]:.1f}",
            f"{never[1] + never[2]:.1f}", f"{always[1] + always[2]:.1f}",
        )  # fmt: skip
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
