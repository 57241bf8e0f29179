"""When a queue that refuses jobs is given up, and for how long; with real jobs in test_slurm."""

from __future__ import annotations

from types import SimpleNamespace

from slidesam.flows.cluster.keeper import JobKeeper


def make_keeper(**tasks: str) -> JobKeeper:
    """A keeper that asks for nothing, whose scheduler has these tasks by state."""
    keeper = JobKeeper.__new__(JobKeeper)
    keeper.cluster = SimpleNamespace(
        scheduler=SimpleNamespace(tasks={key: SimpleNamespace(state=state) for key, state in tasks.items()})
    )
    # As Dask's base class leaves one that was ended.
    keeper.state, keeper._trouble, keeper._troubled = "stopped", None, ()
    keeper._stillborn, keeper._refusals = 3, 4
    return keeper


def test_trouble_lasts_as_long_as_the_tasks_that_it_stops() -> None:
    keeper = make_keeper(first="no-worker", second="memory")
    keeper._give_up("the queue refuses jobs: no such partition", "show the script")
    assert keeper.trouble is not None
    assert keeper.trouble.what == "the queue refuses jobs: no such partition"
    # The slide failed; the next one of the same command begins.
    keeper.cluster.scheduler.tasks = {"third": SimpleNamespace(state="no-worker")}
    assert keeper.trouble is None
    assert (keeper._stillborn, keeper._refusals) == (0, 0)


def test_trouble_without_a_task_waits_for_somebody_who_is_told() -> None:
    keeper = make_keeper()
    keeper._give_up("3 jobs in a row ended", "try it")
    assert keeper.trouble is not None
