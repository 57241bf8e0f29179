"""Work for a cluster in a bounded stream: so many tasks at once as keep it busy, however many there are.

A task that waits costs a tenth of a MiB here and in the scheduler, and some 30 ms to submit (benchmarks/overhead.py). Those of a
slide of 20 000 blocks would be 2 GiB, and minutes before the first of them is asked about. Enough wait for an adaptive
cluster to see how much there is to do.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextvars import ContextVar
from itertools import chain
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, TypeVar

from distributed.scheduler import KilledWorker
from prefect.futures import PrefectFuture

from slidesam.flows.cluster.cluster import opened
from slidesam.flows.prefect_api.endings import crash_task_run
from slidesam.flows.progress.reporters import current
from slidesam.tasks.errors import BlockFailure, BlockFailures, BlockLostError, ClusterError
from slidesam.tasks.retry import Action, decide

MAX_IN_FLIGHT = 256
# Where the number of workers is known: so many for each, but no fewer than these.
_PER_WORKER, _FEW_IN_FLIGHT = 3, 16
# How often one looks whether the cluster is in trouble, and how long nobody computes before that is said.
_LOOK_SECONDS, _SAY_SECONDS = 2.0, 60.0
# How often a task whose workers died is handed in again: it may only have waited beside the one that killed them.
_MOST_TRIES = 3
# How often one asks whether the run may go on.
_CHECK_SECONDS = 5.0
T = TypeVar("T")
_check: ContextVar[Callable[[], None] | None] = ContextVar("slidesam_check", default=None)


@contextlib.contextmanager
def checking(check: Callable[[], None]) -> Generator[None, None, None]:
    """Has all waiting inside look now and then whether the run may go on: a lock that was lost stops it.

    Args:
        check: Raises if it may not.
    """
    token = _check.set(check)
    try:
        yield
    finally:
        _check.reset(token)


class _Running(NamedTuple):
    """A task on the cluster, for the how manieth time."""

    job: Any
    tries: int
    future: PrefectFuture[Any]


def in_flight(
    jobs: Iterable[T], submit: Callable[[T], PrefectFuture[Any]], limit: int | None = None
) -> Generator[tuple[T, Any, Exception | None], None, None]:
    """Submits jobs, at most `limit` at once, and hands out each as it ends.

    Closing the iterator, or an error in its consumer, takes what still waits off the cluster: Prefect would see it through.

    Args:
        jobs: What to submit.
        submit: Submits one of them.
        limit: How many may be unfinished at once; None = as many as keep all workers busy that there may be.

    Yields:
        The job, what its task returned, and what it raised (None if nothing).

    Raises:
        ClusterError: The scheduler is gone, or no worker can be had.
    """
    ended: SimpleQueue[PrefectFuture[Any]] = SimpleQueue()
    running: dict[Any, _Running] = {}
    again: deque[tuple[T, int]] = deque()
    waiting, checked = iter(jobs), time.monotonic()
    limit = limit or _enough()
    try:
        while True:
            for job, tries in chain(_drained(again), ((job, 1) for job in waiting)):
                future = submit(job)
                running[future.task_run_id] = _Running(job, tries, future)
                future.add_done_callback(ended.put)
                if len(running) >= limit:
                    break
            if not running:
                return
            future = _next(ended, running)
            if (check := _check.get()) is not None and time.monotonic() - checked > _CHECK_SECONDS:
                check()
                checked = time.monotonic()
            # Forgotten here, it is forgotten by the scheduler, which else would compute it again if its worker dies.
            job, tries, _ = running.pop(future.task_run_id)
            result, error = _outcome(future)
            if isinstance(error, KilledWorker):
                if decide(error, attempts_left=_MOST_TRIES - tries) is Action.RETRY:
                    again.append((job, tries + 1))
                    continue
                error = _given_up(error, tries)
            yield job, result, error
            del future
    finally:
        for _, _, future in running.values():
            future.wrapped_future.cancel()  # type: ignore[attr-defined]


def alone(submit: Callable[[], PrefectFuture[Any]]) -> Any:
    """Submits one task and waits for what it returns.

    Raises:
        Exception: What it raised, or that it can't be computed.
    """
    with contextlib.closing(in_flight([None], lambda _: submit())) as ended:
        _, result, error = next(ended)
    if error is not None:
        raise error
    return result


def _given_up(error: KilledWorker, tries: int) -> ClusterError:
    """What is said of a task that ended its workers again and again."""
    deaths = tries * (error.allowed_failures + 1)
    return ClusterError(
        f"a task ended its worker {deaths} times, the last at {error.last_worker.address}; usually out of memory",
        "give jobs more memory, or take smaller blocks",
    )


def _drained(queue: deque[T]) -> Generator[T, None, None]:
    while queue:
        yield queue.popleft()


def _next(ended: SimpleQueue[PrefectFuture[Any]], running: dict[Any, _Running]) -> PrefectFuture[Any]:
    """The next task that ends. Says so, once, where there is nobody to compute any.

    Raises:
        ClusterError: Nobody will come.
    """
    since, said = time.monotonic(), False
    while True:
        try:
            return ended.get(timeout=_LOOK_SECONDS)
        except Empty:
            cluster = opened()
            if (check := _check.get()) is not None:
                check()
            if cluster is not None and (trouble := cluster.trouble()) is not None:
                raise ClusterError(f"nobody computes: {trouble.what}", trouble.cure) from None
            if not said and time.monotonic() - since > _SAY_SECONDS and not _has_workers(running):
                standing = cluster.standing() if cluster is not None else ""
                current().note(
                    f"{len(running)} tasks wait for a worker: {standing or 'the cluster has none, see its log'}"
                )
                said = True


def _enough() -> int:
    """Tasks that keep the cluster busy while others are submitted, and show it how much there is to do."""
    cluster = opened()
    workers = None if cluster is None else cluster.most_workers
    return MAX_IN_FLIGHT if workers is None else min(MAX_IN_FLIGHT, max(_FEW_IN_FLIGHT, _PER_WORKER * workers))


def _has_workers(running: dict[Any, _Running]) -> bool:
    future = next(iter(running.values())).future
    return bool(future.wrapped_future.client.scheduler_info()["workers"])  # type: ignore[attr-defined]


def _outcome(future: PrefectFuture[Any]) -> tuple[Any, Exception | None]:
    """What a finished task returned, and what it raised; a task that died has its state set, for nobody else does."""
    try:
        return future.result(), None
    except (asyncio.CancelledError, concurrent.futures.CancelledError) as error:
        raise ClusterError(
            "the Dask scheduler is gone, and with it the tasks that waited: what is finished is kept, "
            "run the same command again"
        ) from error
    except KilledWorker as error:
        crash_task_run(future.task_run_id, f"its workers died, the last at {error.last_worker.address}")
        return None, error
    except (BlockLostError, BlockFailures) as error:
        # What cost workers has crashed, even if it is told by a worker that lives.
        failures = [BlockFailure.of(error)] if isinstance(error, BlockLostError) else error.failures.values()
        if any(failure.ended_worker for failure in failures):
            crash_task_run(future.task_run_id, str(error))
        return None, error
    except Exception as error:  # noqa: BLE001
        return None, error
