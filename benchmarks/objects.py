"""Files of the objects of a made slide with very many objects: seconds, memory and bytes, beside the raw limit and other tools.

The cells are those of a Voronoi diagram that repeats itself, so that every block knows them without the others; they touch each
other, and cross all borders. Segmenting is outside the clock. Two worker processes then write the files of the objects from the
finished labels. The raw limit is what two processes take to read labels and image once, and to write as many bytes. Other tools
(benchmarks/object_peers.py) measure and outline a part of the same labels, on one core, in an environment of their own
(`make peers` first); one of them reads the outlines of all objects as a stream.

    make objects        (or: .venv/bin/python -m benchmarks.objects --sides 8192 16384)
"""

from __future__ import annotations

import argparse
import functools
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
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
from slidesam.executors import StepExecutor
from slidesam.flows.slide import order
from slidesam.flows.slide.order import Batch, Facts, Step
from slidesam.progress import StageReporter
from slidesam.tasks import steps
from slidesam.tasks.export.files import FORMATS as FILE_FORMATS
from slidesam.tasks.export.files import missing_formats
from slidesam.tasks.plan import plan_run
from slidesam.tasks.run.run import Run
from slidesam.tasks.settings.parse import make_settings

# Seeds per period, and its side: cells of 268 px on average.
SEEDS, PERIOD = 977, 512
TARGET = "benchmarks.objects:voronoi_cells"
# Those that count for the goal, and one that is asked for later: its outlines are traced again.
FORMATS, LATER = ("table", "outlines", "anndata"), ("geoparquet",)
PEERS = Path(__file__).resolve().parents[1] / ".venv-peers" / "bin" / "python"


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
        seconds: Wall time of each step, by its name.
        computed: Seconds that the workers had a core: without what other processes on the machine take.
        memory: Largest resident memory of a worker, MiB.
        sizes: Bytes of the files, by format.
        limit: Seconds of the raw limit.
        peers: What other tools took, as lines of text.
    """

    objects: int
    seconds: dict[str, float]
    computed: float
    memory: float
    sizes: dict[str, int]
    limit: float
    peers: list[str]


class TimedExecutor(StepExecutor):
    """Adds up the wall time of each step."""

    def __init__(self, client: Client) -> None:
        super().__init__(StageReporter(), client)
        self.seconds: dict[str, float] = {}
        self.prefix = ""

    def run_many(
        self, step: Step, run: Run, jobs: Iterable[Batch], arguments: Callable[[Batch], tuple[Any, ...]]
    ) -> Generator[tuple[Batch, Facts, Exception | None], None, None]:
        """Run a step on each job, or once; the time of a file counts by its format."""
        with self._timed(str(arguments(())[0]) if step is steps.write_objects else step.name):
            yield from super().run_many(step, run, jobs, arguments)

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start_time, name = time.perf_counter(), self.prefix + name
        yield
        self.seconds[name] = self.seconds.get(name, 0) + time.perf_counter() - start_time


def measure(folder: Path, side: int) -> Figures:
    """Make a slide of this side, segment it, and measure how its objects' files are written."""
    slide, output = make_slide(folder / f"slide-{side}.tif", side), folder / f"out-{side}"
    settings = {
        "segmenter.kind": "function", "segmenter.target": TARGET, "blocks.block_shape": 2048, "blocks.halo": 64,
        "blocks.tissue": "off", "run.verify": "none",
    }  # fmt: skip
    with workers() as client:
        result = slidesam.segment(slide, output, settings | {"output.formats": []}, client=client, progress=False)
    wanted = [settings | {"output.formats": list(formats)} for formats in (FORMATS, FORMATS + LATER)]
    run, later = (plan_run(slide, output, make_settings(overrides=each), [TARGET]) for each in wanted)
    with workers() as client:
        executor = TimedExecutor(client)
        before = sum(client.run(time.process_time).values())
        order.export_objects(run, executor)
        computed = sum(client.run(time.process_time).values()) - before
        executor.prefix = "later: "
        order.export_objects(later, executor)
        memory = max(client.run(peak_resident).values())
    assert not missing_formats(later)
    paths = {kind: run.paths.export(FILE_FORMATS[kind].ending) for kind in FORMATS + LATER}
    sizes = {kind: path.stat().st_size for kind, path in paths.items()}
    limit = measure_limit(run.store, sizes)
    peers = measure_peers(run.store, paths["outlines"]) if PEERS.exists() else ["no other tools: make peers"]
    return Figures(result.run["objects"], executor.seconds, computed, memory, sizes, limit, peers)


def measure_peers(store: Path, outlines: Path) -> list[str]:
    """Let other tools measure and outline a part of the labels, and read the outlines of all objects."""
    script = Path(__file__).with_name("object_peers.py")
    done = subprocess.run([PEERS, script, store, outlines], check=True, capture_output=True, text=True)
    return done.stdout.splitlines()


def workers() -> Client:
    """Start two workers of one thread each; the client ends them."""
    return Client(
        n_workers=2, threads_per_worker=1, security=True, dashboard_address=None, memory_limit="8GiB", silence_logs=40
    )


def peak_resident() -> float:
    """Return the most that this process had resident, in MiB."""
    status = Path(f"/proc/{os.getpid()}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def measure_limit(store: Path, sizes: dict[str, int]) -> float:
    """Time two processes that read labels and image once, and write as many bytes."""
    start_time = time.perf_counter()
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(_read_half, [store] * 2, (0, 1)))
    with tempfile.NamedTemporaryFile(dir=store.parent) as file:
        file.write(os.urandom(2**20) * (sum(sizes.values()) // 2**20))
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
    console = Console(highlight=False, width=120)
    with tempfile.TemporaryDirectory() as name:
        for side in chosen.sides:
            show(measure(Path(name), side), console)
    console.print(f"load {os.getloadavg()[0]:.1f}, {psutil.cpu_count()} cores")


def show(found: Figures, console: Console) -> None:
    """Print what one size took."""
    later = sum(seconds for name, seconds in found.seconds.items() if name.startswith("later"))
    of_goal = sum(found.seconds.values()) - later
    console.print(f"{found.objects:,} objects; at most {found.memory:.0f} MiB in a process")
    console.print(f"{of_goal:.1f} s for table, outlines and AnnData; GeoParquet later {later:.1f} s more")
    console.print(f"{found.computed:.1f} s of computing in both processes together")
    console.print(f"raw limit {found.limit:.1f} s; {1e6 * of_goal / found.objects:.0f} us per object")
    table = Table(box=None)
    for column in ("part", "s", "MB"):
        table.add_column(column, justify="right")
    for name, seconds in found.seconds.items():
        size = found.sizes.get(name.removeprefix("later: "))
        table.add_row(name, f"{seconds:.1f}", "" if size is None else f"{size / 1e6:.0f}")
    console.print(table)
    for line in found.peers:
        console.print(line)
    console.print()


if __name__ == "__main__":
    main()
