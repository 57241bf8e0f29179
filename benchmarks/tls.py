"""What TLS between Dask's members costs: the same work on a cluster without and on one with it, in turns.

Both clusters run side by side in this process, and each pair of measurements goes to one and then to the other, so that a machine
that is busy with other things slows both. The medians of the pairs' ratios are shown. CPU seconds are those of this process
(scheduler and client) and of the cluster's worker processes: they depend less on what else runs than wall seconds do.

    make tls            (or: .venv/bin/python -m benchmarks.tls --pairs 40)
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

MIB = 2**20
WAYS = ("tcp", "tls")


@dataclass
class Cost:
    """What a piece of work took.

    Attributes:
        wall: Seconds.
        cpu: Seconds of all processes that took part.
    """

    wall: float
    cpu: float


@dataclass
class Members:
    """A cluster of two workers, its client, and its processes."""

    client: Any
    workers: tuple[str, str]
    processes: tuple[psutil.Process, ...]

    def cpu(self) -> float:
        """Return the CPU seconds of this process and of the workers so far."""
        return sum(sum(process.cpu_times()[:2]) for process in self.processes)

    def measure(self, work: Callable[[], object]) -> Cost:
        """Return what a piece of work takes."""
        wall, cpu = time.perf_counter(), self.cpu()
        work()
        return Cost(time.perf_counter() - wall, self.cpu() - cpu)


def open_members(way: str, stack: ExitStack) -> Members:
    """Start two workers as slidesam does, and wait until they have computed something."""
    from dask.distributed import Client, LocalCluster

    from slidesam.flows.cluster.keys import make_keys, make_security
    from slidesam.flows.cluster.links import LOOPBACK, dashboard_options

    security = make_security(make_keys()) if way == "tls" else None
    cluster = stack.enter_context(
        LocalCluster(
            n_workers=2, threads_per_worker=1, host=LOOPBACK, dashboard_address=f"{LOOPBACK}:0", memory_limit=0,
            scheduler_kwargs=dashboard_options(None), protocol=f"{way}://", security=security,
            preload="slidesam.flows.cluster.on_worker", preload_nanny="slidesam.flows.cluster.on_nanny",
        )
    )  # fmt: skip
    client = stack.enter_context(Client(cluster, set_as_default=False))
    pids = client.run(os.getpid)
    first, second = pids
    return Members(client, (first, second), (psutil.Process(), *(psutil.Process(pid) for pid in pids.values())))


def start(way: str) -> Cost:
    """Return what start and end of a cluster take; CPU seconds include those of the worker processes that have ended."""
    wall, before = time.perf_counter(), os.times()
    with ExitStack() as stack:
        open_members(way, stack)
        seconds = time.perf_counter() - wall
    return Cost(seconds, sum(os.times()[:4]) - sum(before[:4]))


def run_tasks(members: Members, tasks: int) -> None:
    """Run tasks that compute nothing, one after the other through the scheduler."""
    members.client.gather(members.client.map(abs, range(tasks), pure=False))


def send(members: Members, mebibytes: int) -> Cost:
    """Return what it takes to bring an array from one worker to the other."""
    first, second = members.workers
    data = members.client.submit(
        np.random.default_rng(0).integers, 256, size=mebibytes * MIB, dtype=np.uint8, workers=[first], pure=False
    )
    while not data.done():
        time.sleep(0.01)
    return members.measure(lambda: members.client.submit(len, data, workers=[second], pure=False).result())


def add_rows(table: Table, what: str, unit: float, pairs: list[tuple[Cost, Cost]]) -> None:
    """Add the medians of wall and CPU time, and of the pairs' ratios, to the table."""
    for kind in ("wall", "cpu"):
        values = np.array([[getattr(cost, kind) for cost in pair] for pair in pairs]) * unit
        low, ratio, high = np.percentile(values[:, 1] / values[:, 0], [25, 50, 75])
        tcp, tls = np.median(values, axis=0)
        quartiles = f"{low:.2f} to {high:.2f}"
        table.add_row(what, kind.replace("cpu", "CPU"), f"{tcp:.3g}", f"{tls:.3g}", f"{ratio:.2f}", quartiles)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--starts", type=int, default=5, help="pairs of starts")
    parser.add_argument("--pairs", type=int, default=20, help="pairs of the rest")
    parser.add_argument("--tasks", type=int, default=500, help="tasks of each measurement")
    parser.add_argument("--mebibytes", type=int, default=64, help="size of the array that is sent")
    chosen = parser.parse_args()
    table = Table(title=f"two workers of this machine, medians of alternating pairs, {os.cpu_count()} cores")
    for column in ("", "time", *WAYS, "tls / tcp", "quartiles"):
        table.add_column(column, justify="right")
    # Not the first, which imports Dask.
    start("tls")
    starts = [(start("tcp"), start("tls")) for _ in range(chosen.starts)]
    add_rows(table, "start of a cluster, s", 1, starts)
    with ExitStack() as stack:
        tcp, tls = (open_members(way, stack) for way in WAYS)
        for members in (tcp, tls):
            run_tasks(members, chosen.tasks)
        tasks = [
            (tcp.measure(lambda: run_tasks(tcp, chosen.tasks)), tls.measure(lambda: run_tasks(tls, chosen.tasks)))
            for _ in range(chosen.pairs)
        ]
        add_rows(table, "an empty task, ms", 1000 / chosen.tasks, tasks)
        sent = [(send(tcp, chosen.mebibytes), send(tls, chosen.mebibytes)) for _ in range(chosen.pairs)]
        add_rows(table, "a MiB between workers, ms", 1000 / chosen.mebibytes, sent)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
