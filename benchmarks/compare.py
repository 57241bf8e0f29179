"""What comparing two label images takes: seconds and memory, beside reading both once.

The cells are those of `benchmarks.objects`, the truth is the same moved by a pixel, as a TIFF in tiles; then the outlines of the
result as GeoJSON. Segmenting is outside the clock. The limit reads both label images with as many threads, tile by
tile. Ratios are of CPU seconds, which other programs on the machine change least.

    make compare        (or: .venv/bin/python -m benchmarks.compare --side 20480)
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import tifffile
from rich.console import Console
from rich.table import Table

import slidesam
from benchmarks.big_slide import make_slide
from benchmarks.objects import TARGET, peak_resident, workers
from slidesam.tasks.compare.counts import list_tiles
from slidesam.tasks.compare.label_sources import LabelSource, open_run_labels, open_truth


def write_shifted(result: slidesam.Result, path: Path) -> Path:
    """Write the result's labels, moved by a pixel, as a TIFF of tiles."""
    labels = np.roll(result.labels[:, :], (1, 1), axis=(0, 1))
    tifffile.imwrite(path, labels, tile=(512, 512), compression="zlib", photometric="minisblack")
    return path


def read_once(sources: Sequence[LabelSource], tile: tuple[int, int]) -> float:
    """Measure the CPU seconds of reading label images once, in threads."""
    start_time = time.process_time()
    with ThreadPoolExecutor(min(4, len(os.sched_getaffinity(0)))) as threads:
        for source in sources:
            list(threads.map(lambda region, read=source.read: read(region).size, list_tiles(source.shape, tile)))
    return time.process_time() - start_time


def measure(store: Path, truth: Path, output: Path | None) -> None:
    """Compare in this process, and print objects, seconds, CPU seconds, F1 and the peak of memory in MiB."""
    start_time, start_cpu = time.perf_counter(), time.process_time()
    found = slidesam.compare(store, truth, output=output)
    seconds, cpu_seconds = time.perf_counter() - start_time, time.process_time() - start_cpu
    print(found.objects, seconds, cpu_seconds, found.f1, peak_resident())


def measure_apart(store: Path, truth: Path, output: Path | None) -> list[float]:
    """Do the same in a process of its own, whose memory is nobody else's."""
    call = [sys.executable, "-W", "ignore", "-m", "benchmarks.compare", "--measure", store, truth, output or ""]
    return [float(value) for value in subprocess.check_output(call, text=True).split()]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--side", type=int, default=20480, help="of the slide, a multiple of 2048 (default: %(default)s)"
    )
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.measure:
        store, truth, output = chosen.measure
        measure(Path(store), Path(truth), Path(output) if output else None)
        return
    table = Table(box=None)
    for column in (
        "truth",
        "objects",
        "s",
        "CPU s",
        "with files CPU s",
        "reading both CPU s",
        "ratio",
        "F1",
        "peak MiB",
    ):
        table.add_column(column, justify="left" if column == "truth" else "right")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        slide = make_slide(folder / "slide.tif", chosen.side)
        settings = {
            "segmenter.kind": "function", "segmenter.target": TARGET, "blocks.block_shape": 2048, "blocks.halo": 64,
            "blocks.tissue": "off", "run.verify": "none", "output.formats": ["outlines"],
        }  # fmt: skip
        with workers() as client:
            result = slidesam.segment(slide, folder / "out", settings, client=client, progress=False)
        labels, tile = open_run_labels(result.as_run())
        outlines = folder / "out" / "slide.cells.objects.geojson.gz"
        for words, path in (("label image", write_shifted(result, folder / "truth.tif")), ("outlines", outlines)):
            truth = open_truth(path, result.slide.shape)
            limit = read_once([labels, truth], tile)
            objects, seconds, cpu_seconds, f1, memory = measure_apart(result.store, path, None)
            with_files = measure_apart(result.store, path, folder / "compared")[2]
            table.add_row(
                words, f"{objects:,.0f}", f"{seconds:.1f}", f"{cpu_seconds:.1f}", f"{with_files:.1f}", f"{limit:.1f}",
                f"{cpu_seconds / limit:.1f}", f"{f1:.3f}", f"{memory:.0f}",
            )  # fmt: skip
    Console(highlight=False, width=120).print(f"a slide of {chosen.side} px", table)
    Console(highlight=False).print(f"load {os.getloadavg()[0]:.1f}, {psutil.cpu_count()} cores")


if __name__ == "__main__":
    main()
