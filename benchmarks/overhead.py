"""What Prefect and Dask cost: blocks whose segmenter only sleeps, against the time that their sleep takes at best.

Start-up (server, workers, imports) isn't counted: the clock runs from the end of `prepare` to the last block's done-mark.
And what a task costs that waits: memory of the flow's process, which holds Dask's scheduler too, and seconds to submit it.

    make overhead        (or: .venv/bin/python -m benchmarks.overhead --workers 8)
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import tifffile
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from slidesam.tasks.plan import plan_run
from slidesam.tasks.settings.parse import make_settings

if TYPE_CHECKING:
    from slidesam.flows.cluster.cluster import Cluster

BLOCK = 64
# Blocks a side, seconds per block, the most that may be taken of the ideal.
CASES = ((16, 2.0, 1.15), (64, 0.1, 1.3))


def sleep(image: NDArray[Any], seconds: float) -> NDArray[np.int32]:
    """A segmenter that takes its time and finds one object."""
    time.sleep(seconds)
    labels = np.zeros(image.shape[:2], np.int32)
    labels[20:40, 20:40] = 1
    return labels


def make(path: Path, rows: int, columns: int) -> Path:
    """A grey slide of rows × columns blocks."""
    if not path.exists():
        image = np.full((rows * BLOCK, columns * BLOCK), 200, np.uint8)
        tifffile.imwrite(path, image, tile=(512, 512), compression="zlib")
    return path


def seconds_of(slide: Path, output: Path, seconds: float, cluster: Cluster, per_task: int | str) -> tuple[float, float]:
    """Wall time of the segmenting stage after `prepare`, and of the whole child flow."""
    from slidesam.flows.slide.session import Session
    from slidesam.flows.slide.stages import image_stage, segment_stage

    shutil.rmtree(output, ignore_errors=True)
    settings = {
        "segmenter.kind": "function", "segmenter.target": "benchmarks.overhead:sleep",
        "segmenter.options": {"seconds": seconds}, "blocks.block_shape": BLOCK, "blocks.halo": 0, "blocks.tissue": "off",
        "blocks.blocks_per_task": per_task, "image.convert": "never", "image.rechunk": "never",
    }  # fmt: skip
    run = plan_run(slide, output, make_settings(overrides=settings))
    runner = cluster.workers().task_runner()
    session = Session(cluster=cluster)
    image_stage.with_options(task_runner=runner)(run, session)
    started = time.time()
    segment_stage.with_options(task_runner=runner)(run, session)
    whole = time.time() - started
    prepared = run.segment_folder.params.stat().st_mtime
    marks = [path.stat().st_mtime for path in run.segment_folder.blocks.iterdir()]
    return max(marks) - prepared, whole


def waiting(slide: Path, output: Path, cluster: Cluster, tasks: int) -> tuple[float, float]:
    """KiB and ms that each of so many tasks of one block takes that wait for a worker."""
    from prefect import flow

    from slidesam.tasks import steps

    settings = {"segmenter.kind": "function", "segmenter.target": "benchmarks.overhead:sleep",
                "segmenter.options": {"seconds": 1}, "blocks.block_shape": BLOCK, "blocks.halo": 0}  # fmt: skip
    run = plan_run(slide, output, make_settings(overrides=settings))

    @flow(name="waiting", persist_result=False)
    def wait_in_line() -> tuple[float, float]:
        process = psutil.Process()
        before, started = process.memory_info().rss, time.perf_counter()
        futures = [steps.segment_blocks.submit(run, (number,), "go") for number in range(tasks)]
        seconds = time.perf_counter() - started
        time.sleep(2)
        kib = (process.memory_info().rss - before) / 1024 / tasks
        for future in futures:
            future.wrapped_future.cancel()
        return kib, seconds / tasks * 1000

    with cluster.workers().connect() as client:
        workers = len(client.scheduler_info()["workers"])
        busy = client.map(time.sleep, [tasks * 0.05 + 10 + number / 100 for number in range(2 * workers)], pure=False)
        runner = cluster.workers().task_runner()
        found = wait_in_line.with_options(task_runner=runner)()
        client.cancel(busy)
    return found


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument(
        "--waiting", type=int, default=1000, help="how many tasks wait for what is said below the table"
    )
    parser.add_argument("--only-waiting", action="store_true", help="leave out the table")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "slidesam-benchmark")
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("PREFECT_HOME", str(chosen.folder / "prefect"))
    from slidesam.flows.cluster.cluster import LocalProfile, open_cluster
    from slidesam.flows.prefect_api.server import prefect_api

    table = Table(title=f"{chosen.workers} workers, {os.cpu_count()} cores")
    for column in (
        "blocks",
        "s each",
        "per task",
        "ideal s",
        "taken s",
        "ratio",
        "at most",
        "with prepare s",
        "flow's peak MiB",
    ):
        table.add_column(column, justify="right")
    cases: list[tuple[int, float, float | None, int | str]] = [(*case, "auto") for case in CASES]
    if chosen.only_waiting:
        cases = []
    with prefect_api(), open_cluster(LocalProfile(workers=chosen.workers)) as cluster:
        for side, seconds, most, per_task in cases:
            slide = make(chosen.folder / f"blocks-{side}.tif", side, side)
            taken, whole = seconds_of(slide, chosen.folder / "out", seconds, cluster, per_task)
            ideal = side**2 * seconds / chosen.workers
            ratio = f"{taken / ideal:.2f}" if ideal else f"{taken / side**2 * 1000:.1f} ms each"
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            table.add_row(
                str(side**2), f"{seconds:g}", str(per_task), f"{ideal:.1f}", f"{taken:.1f}", ratio, str(most or ""),
                f"{whole:.1f}", f"{peak:.0f}",
            )  # fmt: skip
        slide = make(chosen.folder / "blocks-64.tif", 64, 64)
        kib, ms = waiting(slide, chosen.folder / "out", cluster, chosen.waiting)
    Console().print(table)
    Console().print(
        f"a task that waits: {kib:.0f} KiB in the flow's process, {ms:.1f} ms to submit ({chosen.waiting} tasks)"
    )


if __name__ == "__main__":
    main()
