"""Tasks on a cluster in a bounded stream: as many at once as keep it busy, however many there are.

A task that waits costs a tenth of a MiB here and in the scheduler, and some 30 ms to submit (benchmarks/overhead.py). Those of a
slide of 20 000 blocks would take 2 GiB, and minutes before the first of them ends. Enough tasks wait for an adaptive
cluster to see how much there is to do.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from itertools import chain
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, TypeVar

from distributed.scheduler import KilledWorker
from prefect.futures import PrefectFuture

from slidesam.flows.prefect_api.endings import crash_task_run
from slidesam.flows.slide.session import Session
from slidesam.tasks.errors import BlockFailure, BlockFailures, BlockLostError, BlockMemoryError, ClusterError
from slidesam.tasks.retry import Action, decide

MAX_IN_FLIGHT = 256
# If the number of workers is known: so many tasks for each worker, but no fewer than these in total.
_PER_WORKER, _FEW_IN_FLIGHT = 3, 16
# Seconds between two checks of the cluster, and seconds without a worker until a message says so.
_POLL_SECONDS, _MESSAGE_SECONDS = 2.0, 60.0
# How often a task whose workers died is submitted: it may only have waited beside the task that killed them.
_MOST_SUBMISSIONS = 3
# Seconds between two checks whether the run may continue.
_CHECK_SECONDS = 5.0
T = TypeVar("T")


class _Submitted(NamedTuple):
    """A task on the cluster, and its attempt number."""

    job: Any
    attempt: int
    future: PrefectFuture[Any]


def stream_tasks(
    jobs: Iterable[T], submit: Callable[[T], PrefectFuture[Any]], session: Session, limit: int | None = None
) -> Generator[tuple[T, Any, Exception | None], None, None]:
    """Submit jobs, at most `limit` at once, and yield each as its task ends.

    If the iterator is closed, or its consumer raises, tasks that wait are cancelled: Prefect would wait for their ends.

    Args:
        jobs: What to submit.
        submit: Submits one job.
        session: The cluster, the reporter, and the check whether the run may continue.
        limit: How many tasks may be unfinished at once; None = as many as keep all possible workers busy.

    Yields:
        The job, what its task returned, and what it raised (None if nothing).

    Raises:
        ClusterError: The scheduler is gone, or the cluster gets no worker.
    """
    ended_futures: SimpleQueue[PrefectFuture[Any]] = SimpleQueue()
    submitted: dict[Any, _Submitted] = {}
    resubmissions: deque[tuple[T, int]] = deque()
    waiting, checked = iter(jobs), time.monotonic()
    limit = limit or _default_limit(session)
    try:
        while True:
            # `waiting` is asked again after its end: its owner may add jobs while others are computed.
            for job, attempt in chain(_drain(resubmissions), ((job, 1) for job in waiting)):
                future = submit(job)
                submitted[future.task_run_id] = _Submitted(job, attempt, future)
                future.add_done_callback(ended_futures.put)
                if len(submitted) >= limit:
                    break
            if not submitted:
                return
            future = _wait_for_next(ended_futures, submitted, session)
            if time.monotonic() - checked > _CHECK_SECONDS:
                session.check()
                checked = time.monotonic()
            # Once released here, the scheduler releases it, too; otherwise it would compute it again if its worker dies.
            job, attempt, _ = submitted.pop(future.task_run_id)
            result, error = _read_outcome(future)
            if error is not None:
                # Its frames hold the future, which would not be released as long as somebody keeps the error.
                error.__traceback__ = None
            if isinstance(error, KilledWorker):
                if decide(error, attempts_left=_MOST_SUBMISSIONS - attempt) is Action.RETRY:
                    resubmissions.append((job, attempt + 1))
                    continue
                error = _worker_deaths(error, attempt)
            yield job, result, error
            del future
    finally:
        for _, _, future in submitted.values():
            future.wrapped_future.cancel()  # type: ignore[attr-defined]


def run_task(submit: Callable[[], PrefectFuture[Any]], session: Session) -> Any:
    """Submit one task and return its result.

    Args:
        submit: Submits the task.
        session: See `stream_tasks`.

    Raises:
        Exception: What the task raised, or that it can't be computed.
    """
    with contextlib.closing(stream_tasks([None], lambda _: submit(), session)) as results:
        _, result, error = next(results)
    if error is not None:
        raise error
    return result


def _worker_deaths(error: KilledWorker, attempts: int) -> ClusterError:
    deaths = attempts * (error.allowed_failures + 1)
    return ClusterError(
        f"a task ended its worker {deaths} times, the last at {error.last_worker.address}; usually out of memory",
        "give jobs more memory, or take smaller blocks",
    )


def _drain(queue: deque[T]) -> Generator[T, None, None]:
    while queue:
        yield queue.popleft()


def _wait_for_next(
    ended_futures: SimpleQueue[PrefectFuture[Any]], submitted: dict[Any, _Submitted], session: Session
) -> PrefectFuture[Any]:
    """Wait for the next task that ends; show a message once if the cluster has no worker.

    Raises:
        ClusterError: No worker will come.
    """
    start, is_reported = time.monotonic(), False
    while True:
        try:
            return ended_futures.get(timeout=_POLL_SECONDS)
        except Empty:
            session.check()
            session.cluster.replace_lost()
            if (trouble := session.cluster.trouble()) is not None:
                raise ClusterError(f"nobody computes: {trouble.what}", trouble.cure) from None
            if not is_reported and time.monotonic() - start > _MESSAGE_SECONDS and not _has_workers(submitted):
                state = session.cluster.standing() or "the cluster has none, see its log"
                session.reporter.inform(f"{len(submitted)} tasks wait for a worker: {state}")
                is_reported = True


def _default_limit(session: Session) -> int:
    """Return how many tasks keep the cluster busy while others are submitted, and show it how much there is to do."""
    workers = session.cluster.most_workers
    return MAX_IN_FLIGHT if workers is None else min(MAX_IN_FLIGHT, max(_FEW_IN_FLIGHT, _PER_WORKER * workers))


def _has_workers(submitted: dict[Any, _Submitted]) -> bool:
    future = next(iter(submitted.values())).future
    return bool(future.wrapped_future.client.scheduler_info()["workers"])  # type: ignore[attr-defined]


def _read_outcome(future: PrefectFuture[Any]) -> tuple[Any, Exception | None]:
    """Return what a task returned, and what it raised; set the state of a task that died, because nobody else does."""
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
    except (BlockLostError, BlockMemoryError, BlockFailures) as error:
        # A block that ended workers has crashed, even if a worker that lives reports it.
        failures = error.failures.values() if isinstance(error, BlockFailures) else [BlockFailure.of(error)]
        if any(failure.ended_worker for failure in failures):
            crash_task_run(future.task_run_id, str(error))
        return None, error
    except Exception as error:  # noqa: BLE001 (whatever the task raised: the stage decides)
        return None, error
