"""Table and outlines of a made slide with very many objects: seconds, memory and bytes, beside the raw limit.

The cells are those of a Voronoi diagram that repeats itself, so that every block knows them without the others; they touch each
other, and cross all borders. Segmenting is outside the clock. Two worker processes then write the files of the objects from the
finished labels. The raw limit is what two processes take to read labels and image once, and to write as many bytes.

    make objects        (or: .venv/bin/python -m benchmarks.objects --sides 8192 16384)
"""

from __future__ import annotations

import argparse
import functools
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import zarr
from dask.distributed import Client
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.spatial import cKDTree

import slidesam
from benchmarks.big_slide import make_slide

# Seeds per period, and its side: cells of 268 px on average.
SEEDS, PERIOD = 977, 512
TARGET = "benchmarks.objects:voronoi_cells"
SUFFIXES = ("parquet", "geojson.gz")


@functools.cache
def make_period() -> NDArray[np.int64]:
    """Return, for each pixel of a period, the nearest seed's number and in which period it lies, (3, PERIOD, PERIOD)."""
    seeds = np.random.default_rng(0).random((SEEDS, 2)) * PERIOD
    shifts = np.array([(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)])
    points = (seeds[None] + shifts[:, None] * PERIOD).reshape(-1, 2)
    _, nearest = cKDTree(points).query(np.argwhere(np.ones((PERIOD, PERIOD))) + 0.5)
    shift, seed = np.divmod(nearest, SEEDS)
    return np.stack([seed, *shifts[shift].T]).reshape(3, PERIOD, PERIOD)


def voronoi_cells(image: NDArray[Any]) -> NDArray[np.int64]:
    """Label a block whose first pixel is a whole number of periods, less the halo, from the slide's first."""
    height, width = image.shape[:2]
    halo = 64
    y, x = (np.arange(length) - halo for length in (height, width))
    seed, row, column = make_period()[:, (y % PERIOD)[:, None], x % PERIOD]
    row = row + (y // PERIOD)[:, None] + 2
    column = column + x // PERIOD + 2
    return 1 + seed + SEEDS * (row * (width // PERIOD + 5) + column)


class Figures(NamedTuple):
    """What one size took.

    Attributes:
        objects: How many objects there are.
        seconds: From finished labels to both files.
        memory: Largest resident memory of a worker, MiB.
        sizes: Bytes of the files.
        limit: Seconds of the raw limit.
    """

    objects: int
    seconds: float
    memory: float
    sizes: tuple[int, ...]
    limit: float


def measure(folder: Path, side: int) -> Figures:
    """Make a slide of this side, segment it, and measure how its objects' files are written."""
    slide, output = make_slide(folder / f"slide-{side}.tif", side), folder / f"out-{side}"
    settings = {
        "segmenter.kind": "function", "segmenter.target": TARGET, "blocks.block_shape": 2048, "blocks.halo": 64,
        "blocks.tissue": "off", "run.verify": "none",
    }  # fmt: skip
    with workers() as client:
        slidesam.segment(slide, output, settings | {"output.formats": []}, client=client, progress=False)
    with workers() as client:
        start_time = time.perf_counter()
        result = slidesam.segment(slide, output, settings, client=client, progress=False)
        seconds = time.perf_counter() - start_time
        memory = max(client.run(_peak_memory).values())
    paths = [output / f"slide-{side}.cells.objects.{suffix}" for suffix in SUFFIXES]
    sizes = tuple(path.stat().st_size for path in paths)
    return Figures(
        result.run["objects"], seconds, memory, sizes, measure_limit(output / f"slide-{side}.ome.zarr", sizes)
    )


def workers() -> Client:
    """Start two workers of one thread each; the client ends them."""
    return Client(
        n_workers=2, threads_per_worker=1, security=True, dashboard_address=None, memory_limit="8GiB", silence_logs=40
    )


def _peak_memory() -> float:
    """Return the most that this process had resident, in MiB."""
    status = Path(f"/proc/{os.getpid()}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def measure_limit(store: Path, sizes: tuple[int, ...]) -> float:
    """Time two processes that read labels and image once, and write as many bytes."""
    start_time = time.perf_counter()
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(_read_half, [store] * 2, (0, 1)))
    with tempfile.NamedTemporaryFile(dir=store.parent) as file:
        file.write(os.urandom(2**20) * (sum(sizes) // 2**20))
        os.fsync(file.fileno())
    return time.perf_counter() - start_time


def _read_half(store: Path, half: int) -> None:
    labels, image = zarr.open_array(store / "labels/cells/0", mode="r"), zarr.open_array(store / "0", mode="r")
    for row in range(half * 2048, labels.shape[3], 4096):
        for array in (labels, image):
            np.asarray(array[0, :, 0, row : row + 2048])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[8192, 16384], help="of the slides, multiples of 2048")
    chosen = parser.parse_args()
    table = Table(box=None)
    for column in ("objects", "s", "raw limit s", "ratio", "us per object", "peak MiB", "table MB", "outlines MB"):
        table.add_column(column, justify="right")
    with tempfile.TemporaryDirectory() as name:
        for side in chosen.sides:
            found = measure(Path(name), side)
            table.add_row(
                f"{found.objects:,}", f"{found.seconds:.1f}", f"{found.limit:.1f}", f"{found.seconds / found.limit:.1f}",
                f"{1e6 * found.seconds / found.objects:.0f}", f"{found.memory:.0f}",
                *(f"{size / 1e6:.0f}" for size in found.sizes),
            )  # fmt: skip
    Console(highlight=False, width=120).print(table)
    Console(highlight=False).print(f"load {os.getloadavg()[0]:.1f}, {psutil.cpu_count()} cores")


if __name__ == "__main__":
    main()
