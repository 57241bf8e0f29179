"""The stream of tasks, without Prefect and Dask: how many at once, what is submitted again, and what ends it."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from types import SimpleNamespace
from uuid import uuid4

import pytest
from distributed.scheduler import KilledWorker

from slidesam.flows.cluster.cluster import Cluster
from slidesam.flows.cluster.profile import LocalProfile
from slidesam.flows.slide import in_flight
from slidesam.flows.slide.batches import Batches
from slidesam.flows.slide.in_flight import stream_tasks
from slidesam.flows.slide.session import Session
from slidesam.tasks.errors import ClusterError

SESSION = Session(cluster=Cluster(LocalProfile(workers=1)))


class EndedFuture:
    """A task that has ended."""

    def __init__(self, result: object = None) -> None:
        self.task_run_id, self._result, self.wrapped_future = uuid4(), result, SimpleNamespace(cancel=lambda: None)

    def add_done_callback(self, call) -> None:
        call(self)

    def result(self) -> object:
        if isinstance(self._result, Exception):
            raise self._result
        return self._result


def test_blocks_that_are_put_back_after_the_last_batch_are_submitted_too() -> None:
    batches, results = Batches(range(6), 2, 2), []
    for ids, _, error in stream_tasks(batches, lambda ids: EndedFuture(), SESSION):
        assert error is None
        if results == [(0, 1), (2, 3)]:
            batches.put_back([7, 8, 9])
        results.append(ids)
    assert results == [(0, 1), (2, 3), (4, 5), (7, 8), (9,)]


def test_no_more_than_the_limit_wait() -> None:
    submitted: list[int] = []
    outcomes = stream_tasks(range(9), lambda job: submitted.append(job) or EndedFuture(), SESSION, limit=3)
    for ended, _ in enumerate(outcomes, start=1):
        assert len(submitted) <= ended + 2
    assert submitted == list(range(9))


def test_a_task_whose_workers_die_is_submitted_three_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_flight, "crash_task_run", lambda *_: None)
    attempts: Counter[str] = Counter()

    def submit(job: str) -> EndedFuture:
        attempts[job] += 1
        return EndedFuture(KilledWorker("task", SimpleNamespace(address="a"), 3) if job == "bad" else job)

    outcomes = {job: error for job, _, error in stream_tasks(["good", "bad"], submit, SESSION)}
    assert attempts == {"good": 1, "bad": 3}
    assert outcomes["good"] is None
    with pytest.raises(
        ClusterError, match="ended its worker 12 times, the last at a; usually out of memory: give jobs"
    ):
        raise outcomes["bad"]


def test_a_task_that_failed_is_released_while_its_error_is_kept() -> None:
    """Otherwise its scheduler would compute it again as soon as the worker leaves on which it failed."""
    futures: list[weakref.ref[EndedFuture]] = []

    def submit(job: int) -> EndedFuture:
        future = EndedFuture(ValueError("no"))
        futures.append(weakref.ref(future))
        return future

    gc.disable()
    try:
        kept = [error for _, _, error in stream_tasks(range(2), submit, SESSION)]
        assert [future() for future in futures] == [None, None]
    finally:
        gc.enable()
    assert [str(error) for error in kept] == ["no", "no"]
