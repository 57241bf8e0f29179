"""What Prefect, Dask and Slurm cost: blocks whose segmenter only sleeps, in jobs on a real Slurm, beside their sleep at best.

The clock of a case runs from the end of `prepare` to the last block's done-mark, when all workers are there; how long it took
until they were is a figure of its own. Through Prefect with a real server, which the nodes reach over their network.

    make slurm-overhead     (or: .venv/bin/python -m benchmarks.slurm_overhead --set scheduler.host=10.177.0.1 --set ...)
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich.console import Console
from rich.table import Table

from benchmarks.overhead import make, seconds_of

if TYPE_CHECKING:
    from slidesam.flows.cluster.cluster import Cluster

# Rows and columns of blocks, seconds each, the most that may be taken of the ideal.
CASES = ((20, 20, 1.0, 1.15), (40, 50, 0.2, 1.3))
_PATIENCE = 300.0


def all_there(cluster: Cluster, workers: int) -> None:
    """Waits until so many workers have come."""
    with cluster.workers().connect() as client:
        client.wait_for_workers(workers, timeout=_PATIENCE)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=8, help="jobs of one worker each")
    parser.add_argument("--cluster", default="slurm-cpu")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="a key of the profile")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "slidesam-benchmark")
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("PREFECT_HOME", str(chosen.folder / "prefect"))
    from slidesam.flows.cluster.cluster import api_host, open_cluster
    from slidesam.flows.cluster.find_profile import load_profile
    from slidesam.flows.prefect_api.server import prefect_api
    from slidesam.tasks.run.layout import jobs_folder

    changes: dict[str, Any] = {key: yaml.safe_load(value) for key, value in (each.split("=", 1) for each in chosen.set)}
    number = {"cpu.minimum_jobs": chosen.workers, "cpu.maximum_jobs": chosen.workers}
    profile = load_profile(chosen.cluster, number | changes)
    table = Table(title=f"{chosen.workers} Slurm jobs of one worker, {os.cpu_count()} cores")
    for column in ("blocks", "s each", "ideal s", "taken s", "ratio", "at most", "with prepare s"):
        table.add_column(column, justify="right")
    with prefect_api(api_host(profile)), open_cluster(profile, jobs_folder(chosen.folder / "out")) as cluster:
        started = time.perf_counter()
        all_there(cluster, chosen.workers)
        startup = time.perf_counter() - started
        for rows, columns, seconds, most in CASES:
            slide = make(chosen.folder / f"blocks-{rows}-{columns}.tif", rows, columns)
            taken, whole = seconds_of(slide, chosen.folder / "out", seconds, cluster, "auto")
            ideal = rows * columns * seconds / chosen.workers
            table.add_row(
                str(rows * columns), f"{seconds:g}", f"{ideal:.1f}", f"{taken:.1f}", f"{taken / ideal:.2f}", f"{most:g}",
                f"{whole:.1f}",
            )  # fmt: skip
    console = Console()
    console.print(table)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    console.print(
        f"start-up: {startup:.1f} s until all {chosen.workers} workers were there; the flow's peak: {peak:.0f} MiB"
    )


if __name__ == "__main__":
    main()
