"""Who executes a slide's steps: this process, or the workers of a Dask client. Prefect's engine is not involved.

Both go through `Executor.run_many`: a bounded number of tasks at once, `run.retries` further attempts at each that fails, and
`slidesam.flows.slide.order` decides what a failure means for its stage.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import heapq
import logging
import random
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, Protocol

from slidesam.flows.progress.reporters import Reporter
from slidesam.flows.slide.order import Batch, Facts, Step
from slidesam.tasks import steps
from slidesam.tasks.errors import ClusterError
from slidesam.tasks.retry import Action, decide
from slidesam.tasks.run.run import Run
from slidesam.tasks.settings.sections import RunSettings

# Tasks per thread of a cluster: enough to keep all busy, few enough to be submitted and forgotten soon.
_PER_WORKER, _FEWEST_IN_FLIGHT, _MOST_IN_FLIGHT = 3, 16, 256
# Seconds between two looks whether the run's lock is still ours, and until a cluster without workers is mentioned.
_CHECK_SECONDS, _LOOK_SECONDS, _MENTION_SECONDS = 5.0, 2.0, 60.0
_log = logging.getLogger("slidesam")
# zarr's settings belong to the process: two steps in threads of one would see each other's.
_one_step = threading.Lock()


def execute_step(name: str, run: Run, arguments: tuple[Any, ...]) -> Any:
    """Execute a step in the process that calls, one at a time.

    Args:
        name: Name of the step's function in `slidesam.tasks.steps`.
        run: The run.
        arguments: Further arguments of the step.
    """
    step: Step = getattr(steps, name)
    with _one_step:
        return step.fn(run, *arguments)


class _Attempt(NamedTuple):
    """A batch, and for which time it is tried, counted from 1."""

    batch: Batch
    number: int


class _Pool(Protocol):
    """Where tasks are computed."""

    limit: int
    """How many may be unfinished at once."""

    def submit(self, attempt: _Attempt, name: str, run: Run, arguments: tuple[Any, ...]) -> None:
        """Begin a task."""

    def finish_one(self, timeout: float | None) -> tuple[_Attempt, Facts, Exception | None] | None:
        """Wait for a task to end; None if none ends within `timeout` seconds."""

    def close(self) -> None:
        """Drop what is unfinished."""

    def __len__(self) -> int: ...


class _ThisProcess:
    """Computes one task at a time, here."""

    limit = 1

    def __init__(self) -> None:
        self._task: tuple[_Attempt, str, Run, tuple[Any, ...]] | None = None

    def __len__(self) -> int:
        return int(self._task is not None)

    def submit(self, attempt: _Attempt, name: str, run: Run, arguments: tuple[Any, ...]) -> None:
        self._task = attempt, name, run, arguments

    def finish_one(self, timeout: float | None) -> tuple[_Attempt, Facts, Exception | None] | None:
        assert self._task is not None
        (attempt, name, run, arguments), self._task = self._task, None
        try:
            return attempt, execute_step(name, run, arguments), None
        except Exception as error:  # noqa: BLE001 (the stage decides)
            return attempt, {}, error

    def close(self) -> None:
        self._task = None


class _DaskWorkers:
    """Computes tasks on the workers of a Dask cluster.

    Args:
        client: A `distributed.Client`.
        note: Is told where nobody computes.
    """

    def __init__(self, client: Any, note: Callable[[str], None]) -> None:
        self._client, self._note = client, note
        self._ended: SimpleQueue[Any] = SimpleQueue()
        self._running: dict[str, tuple[_Attempt, Any]] = {}
        workers = max(1, sum(client.nthreads().values()))
        self.limit = min(_MOST_IN_FLIGHT, max(_FEWEST_IN_FLIGHT, _PER_WORKER * workers))

    def __len__(self) -> int:
        return len(self._running)

    def submit(self, attempt: _Attempt, name: str, run: Run, arguments: tuple[Any, ...]) -> None:
        future = self._client.submit(execute_step, name, run, arguments, pure=False)
        self._running[future.key] = attempt, future
        future.add_done_callback(self._ended.put)

    def finish_one(self, timeout: float | None) -> tuple[_Attempt, Facts, Exception | None] | None:
        future = self._wait(timeout)
        if future is None:
            return None
        # Forgotten here, it is forgotten by the scheduler, which else would compute it again if its worker dies.
        attempt, _ = self._running.pop(future.key)
        from distributed import KilledWorker

        try:
            return attempt, future.result(), None
        except (asyncio.CancelledError, concurrent.futures.CancelledError) as error:
            raise ClusterError(
                "the Dask scheduler is gone, or its client was closed: what is finished is kept, call segment again"
            ) from error
        except KilledWorker as error:
            message = f"a task ended its workers, the last at {error.last_worker.address}; usually out of memory: "
            return attempt, {}, ClusterError(f"{message}give workers more of it, or take smaller blocks")
        except Exception as error:  # noqa: BLE001 (the stage decides)
            return attempt, {}, error

    def _wait(self, timeout: float | None) -> Any:
        began, is_told = time.monotonic(), False
        while True:
            waited = time.monotonic() - began
            with suppress(Empty):
                return self._ended.get(timeout=min(_LOOK_SECONDS, max(0.0, (timeout or 1e9) - waited)))
            if timeout is not None and waited >= timeout:
                return None
            if waited > _MENTION_SECONDS and not is_told and not self._client.nthreads():
                self._note(f"{len(self)} tasks wait for a worker: the Dask cluster has none")
                is_told = True

    def close(self) -> None:
        if self._running:
            self._client.cancel([future for _, future in self._running.values()])


class StepExecutor:
    """Executes the steps of one slide.

    Args:
        reporter: Shows progress.
        client: A `distributed.Client` whose workers compute; None = this process does.
        check: Called now and then; raises where the run must not continue.
    """

    def __init__(self, reporter: Reporter, client: Any = None, check: Callable[[], None] = lambda: None) -> None:
        self._reporter, self._client, self._check = reporter, client, check
        self._checked = time.monotonic()

    @property
    def most_workers(self) -> int | None:
        """The largest number of workers that share the steps; None if that isn't known."""
        return 1 if self._client is None else None

    def inform(self, message: str) -> None:
        """Show an informational message."""
        self._reporter.inform(message)

    def warn(self, message: str) -> None:
        """Log a warning."""
        _log.warning("%s", message)

    @contextmanager
    def stage(self, name: str, total: int, n_done: int) -> Iterator[Reporter]:
        """Show one stage."""
        self._reporter.begin(name, total, n_done)
        try:
            yield self._reporter
        finally:
            self._reporter.end()

    def run_one(self, step: Step, run: Run, *arguments: Any) -> Any:
        """Execute a step that is one task.

        Raises:
            Exception: What the step raised after its retries.
        """
        ((_, facts, error),) = self.run_many(step, run, [()], lambda _: arguments)
        if error is not None:
            raise error
        return facts

    def run_many(
        self, step: Step, run: Run, jobs: Iterable[Batch], arguments: Callable[[Batch], tuple[Any, ...]]
    ) -> Generator[tuple[Batch, Facts, Exception | None], None, None]:
        """Execute a step on each job; yield each job with its result or its last error as it ends.

        Args:
            step: The step.
            run: The run.
            jobs: What to execute it on; may grow while the iterator waits.
            arguments: The step's further arguments for a job.

        Raises:
            ClusterError: The Dask scheduler is gone.
        """
        pool: _Pool = _ThisProcess() if self._client is None else _DaskWorkers(self._client, self.inform)
        new, retries = iter(jobs), _Retries(run.settings.run)
        try:
            while True:
                while len(pool) < pool.limit and (attempt := retries.pop_due() or _first_attempt(new)) is not None:
                    pool.submit(attempt, step.fn.__name__, run, arguments(attempt.batch))
                self._check_now_and_then()
                if not len(pool):
                    if retries.seconds is None:
                        return
                    time.sleep(min(retries.seconds, _CHECK_SECONDS))
                elif (outcome := pool.finish_one(retries.seconds)) is not None:
                    attempt, facts, error = outcome
                    if error is None or not retries.add(attempt, error):
                        yield attempt.batch, facts, error
        finally:
            pool.close()

    def _check_now_and_then(self) -> None:
        if time.monotonic() - self._checked > _CHECK_SECONDS:
            self._check()
            self._checked = time.monotonic()


def _first_attempt(jobs: Iterator[Batch]) -> _Attempt | None:
    batch = next(jobs, None)
    return None if batch is None else _Attempt(batch, 1)


class _Retries:
    """Attempts that failed and wait for their next one.

    Args:
        settings: How often, and after how long.
    """

    def __init__(self, settings: RunSettings) -> None:
        self._settings = settings
        self._waiting: list[tuple[float, _Attempt]] = []

    @property
    def seconds(self) -> float | None:
        """Seconds until the next attempt is due; None if none waits."""
        return max(0.0, self._waiting[0][0] - time.monotonic()) if self._waiting else None

    def add(self, attempt: _Attempt, error: Exception) -> bool:
        """Plan another attempt; False if none is allowed, or it couldn't help."""
        if decide(error, attempts_left=self._settings.retries + 1 - attempt.number) is not Action.RETRY:
            return False
        delay = self._settings.retry_delay * (1 + random.uniform(0, self._settings.retry_jitter))  # noqa: S311
        heapq.heappush(self._waiting, (time.monotonic() + delay, attempt._replace(number=attempt.number + 1)))
        return True

    def pop_due(self) -> _Attempt | None:
        """Take the next attempt if it is due."""
        return heapq.heappop(self._waiting)[1] if self.seconds == 0 else None
