"""Ends what a killed run leaves behind: jobs in the queue, and flow runs that Prefect considers running.

The run's state file names them. The next run of the slide, or `slidesam clean`, ends them: jobs first, since two workers on one
block would overwrite each other's results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from uuid import UUID

from slidesam.flows.cluster import slurm
from slidesam.tasks.run.layout import list_noted_runs
from slidesam.tasks.run.lock import LockedError, locked
from slidesam.tasks.run.records import State


def end_leftovers(state: State, note: Callable[[str], None], own_id: UUID | None = None) -> None:
    """End what the last run of a result left, if it was killed.

    Args:
        state: What `state.json` says, from before this run.
        note: Called with a message on what was ended.
        own_id: The calling flow run. If it was killed and begins once more, only what is below it is ended.

    Raises:
        ClusterError: Jobs of it are there and can't be cancelled.
    """
    if state.status != "running":
        return
    cancel_orphans(state.jobs, note)
    with suppress(ValueError):
        flow_run_id = UUID(state.flow_run_id or "")
        # Here, so that `slidesam clean` needs no Prefect where nothing was left.
        from prefect.settings import PREFECT_API_URL

        from slidesam.flows.prefect_api.endings import end_children, end_flow_run

        if PREFECT_API_URL.value():
            end = end_children if flow_run_id == own_id else end_flow_run
            end(flow_run_id, "its process was killed; run the same command again to resume")


def end_all_leftovers(output: Path, note: Callable[[str], None]) -> None:
    """End what killed runs of an output folder left, and record that they were stopped.

    Jobs that a killed run shares with a running one, as slides of one command do, are left alone.

    Args:
        output: The output folder.
        note: Called with a message on what was ended.

    Raises:
        ClusterError: Jobs are there and can't be cancelled.
    """
    killed, at_work = [], set[str]()
    with ExitStack() as locks:
        for paths in list_noted_runs(output):
            state = State.read(paths.state) or State()
            if state.status != "running":
                continue
            try:
                locks.enter_context(locked(paths.lock, "slidesam clean", target=f"{paths.name} ({paths.label})"))
                killed.append(paths.state)
            except LockedError:
                at_work.update(state.jobs)
        for path in killed:
            # Once more: a run may have begun and finished before its lock was had.
            state = State.read(path) or State()
            orphans = tuple(name for name in state.jobs if name not in at_work)
            end_leftovers(state.model_copy(update={"jobs": orphans}), note)
            if state.status == "running":
                state.model_copy(update={"status": "stopped"}).write(path)


def cancel_orphans(names: Sequence[str], note: Callable[[str], None]) -> list[slurm.Job]:
    """Cancel jobs of a killed run, and wait until they are gone.

    Raises:
        ClusterError: They are there and can't be cancelled.
    """
    if not names or not slurm.has_slurm():
        return []
    jobs = slurm.cancel_jobs(names)
    if jobs:
        ids = ", ".join(job.id for job in jobs)
        note(f"cancelled {len(jobs)} job{'s' if len(jobs) > 1 else ''} that a killed run had left: {ids}")
    return jobs
