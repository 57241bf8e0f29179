"""Work for a cluster in a bounded stream: so many tasks at once as keep it busy, however many there are.

A task that waits costs a tenth of a MiB here and in the scheduler, and some 30 ms to submit (benchmarks/overhead.py). Those of a
slide of 20 000 blocks would be 2 GiB, and minutes before the first of them is asked about. Enough wait for an adaptive
cluster to see how much there is to do.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Generator, Iterable
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from prefect.futures import PrefectFuture

from slidesam.flows.progress import current
from slidesam.tasks.errors import ClusterError

MAX_IN_FLIGHT = 256
_LOOK_SECONDS = 60.0
T = TypeVar("T")


def in_flight(
    jobs: Iterable[T], submit: Callable[[T], PrefectFuture[Any]], limit: int = MAX_IN_FLIGHT
) -> Generator[tuple[T, Any, Exception | None], None, None]:
    """Submits jobs, at most `limit` at once, and hands out each as it ends.

    Closing the iterator, or an error in its consumer, takes what still waits off the cluster: Prefect would see it through.

    Args:
        jobs: What to submit.
        submit: Submits one of them.
        limit: How many may be unfinished at once.

    Yields:
        The job, what its task returned, and what it raised (None if nothing).

    Raises:
        ClusterError: The scheduler is gone.
    """
    ended: SimpleQueue[PrefectFuture[Any]] = SimpleQueue()
    running: dict[Any, tuple[T, PrefectFuture[Any]]] = {}
    waiting = iter(jobs)
    try:
        while True:
            for job in waiting:
                future = submit(job)
                running[future.task_run_id] = (job, future)
                future.add_done_callback(ended.put)
                if len(running) >= limit:
                    break
            if not running:
                return
            future = _next(ended, running)
            # Forgotten here, it is forgotten by the scheduler, which else would compute it again if its worker dies.
            job, _ = running.pop(future.task_run_id)
            yield job, *_outcome(future)
            del future
    finally:
        for _, future in running.values():
            future.wrapped_future.cancel()  # type: ignore[attr-defined]


def _next(
    ended: SimpleQueue[PrefectFuture[Any]], running: dict[Any, tuple[T, PrefectFuture[Any]]]
) -> PrefectFuture[Any]:
    """The next task that ends. Says so, once, where there is nobody to compute any."""
    said = False
    while True:
        try:
            return ended.get(timeout=_LOOK_SECONDS)
        except Empty:
            _, any_future = next(iter(running.values()))
            workers = any_future.wrapped_future.client.scheduler_info()["workers"]  # type: ignore[attr-defined]
            if not workers and not said:
                current().note(f"{len(running)} tasks wait, and the cluster has no worker: see its log")
                said = True


def _outcome(future: PrefectFuture[Any]) -> tuple[Any, Exception | None]:
    """What a finished task returned, and what it raised."""
    try:
        return future.result(), None
    except (asyncio.CancelledError, concurrent.futures.CancelledError) as error:
        raise ClusterError(
            "the Dask scheduler is gone, and with it the tasks that waited: what is finished is kept, "
            "run the same command again"
        ) from error
    except Exception as error:  # noqa: BLE001
        return None, error
