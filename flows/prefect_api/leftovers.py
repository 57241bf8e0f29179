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
from slidesam.flows.cluster.job_names import select_own_jobs
from slidesam.flows.cluster.keys import remove_dead_keys
from slidesam.flows.cluster.semaphores import remove_dead_semaphores
from slidesam.tasks.errors import in_one_line
from slidesam.tasks.run.layout import jobs_folder, list_noted_runs
from slidesam.tasks.run.lock import LockedError, locked
from slidesam.tasks.run.records import State


def remove_dead_files(output: Path) -> None:
    """Remove keys and semaphores of clusters whose process has ended, as the start of a cluster does."""
    remove_dead_keys(jobs_folder(output))
    remove_dead_semaphores()


def end_leftovers(state: State, output: Path, note: Callable[[str], None], own_id: UUID | None = None) -> None:
    """End what the last run of a result left, if it was killed.

    Others may have written the state file, so it is believed only in what is provably a run's of this output folder.

    Args:
        state: What `state.json` says, from before this run.
        output: The output folder.
        note: Called with a message on what was ended.
        own_id: The calling flow run. If it was killed and begins once more, only what is below it is ended.

    Raises:
        ClusterError: Jobs of it are there and can't be cancelled.
    """
    if state.status != "running":
        return
    cancel_orphans(state.jobs, output, note)
    with suppress(ValueError):
        flow_run_id = UUID(state.flow_run_id or "")
        # Here, so that `slidesam clean` needs no Prefect where nothing was left.
        from prefect.settings import PREFECT_API_URL

        from slidesam.flows.prefect_api.endings import end_children, end_flow_run

        reason = "its process was killed; run the same command again to resume"
        if not PREFECT_API_URL.value():
            return
        if flow_run_id == own_id:
            end_children(flow_run_id, reason)
        else:
            end_flow_run(flow_run_id, output, reason)


def end_all_leftovers(output: Path, note: Callable[[str], None]) -> None:
    """End what killed runs of an output folder left, and record that they were stopped.

    Jobs that a killed run shares with a running one, as slides of one command do, are left alone. So are runs whose files
    can't be read or written, such as those of another user.

    Args:
        output: The output folder.
        note: Called with a message on what was ended.

    Raises:
        ClusterError: Jobs are there and can't be cancelled.
    """
    killed, at_work = [], set[str]()
    remove_dead_files(output)
    with ExitStack() as locks:
        for paths in list_noted_runs(output):
            target = f"{paths.name} ({paths.label})"
            try:
                state = State.read(paths.state) or State()
                if state.status != "running":
                    continue
            except OSError as error:
                note(f"{target} is left alone: {in_one_line(error)}")
                continue
            try:
                locks.enter_context(locked(paths.lock, "slidesam clean", target=target))
                killed.append(paths.state)
            except OSError as error:
                at_work.update(state.jobs)
                if not isinstance(error, LockedError):
                    note(f"{target} is left alone: {in_one_line(error)}")
        for path in killed:
            # Once more: a run may have begun and finished before its lock was had.
            state = State.read(path) or State()
            orphans = tuple(name for name in state.jobs if name not in at_work)
            end_leftovers(state.model_copy(update={"jobs": orphans}), output, note)
            if state.status == "running":
                state.model_copy(update={"status": "stopped"}).write(path)


def cancel_orphans(names: Sequence[str], output: Path, note: Callable[[str], None]) -> list[slurm.Job]:
    """Cancel jobs of a killed run, and wait until they are gone.

    Args:
        names: The jobs' names, according to the state file.
        output: The output folder; jobs of others are left alone.
        note: Called with a message on what was cancelled, and what wasn't.

    Raises:
        ClusterError: They are there and can't be cancelled.
    """
    own_names = select_own_jobs(names, jobs_folder(output))
    if foreign_names := sorted(set(names) - set(own_names)):
        note(
            f"not cancelled, since these names aren't those of jobs for {output}: {in_one_line(', '.join(foreign_names))} "
            "(`squeue --me` shows whether there are any)"
        )
    remove_dead_keys(jobs_folder(output), {name.rpartition("-")[0] for name in own_names})
    if not own_names or not slurm.has_slurm():
        return []
    jobs = slurm.cancel_jobs(own_names)
    if jobs:
        ids = ", ".join(job.id for job in jobs)
        note(f"cancelled {len(jobs)} job{'s' if len(jobs) > 1 else ''} that a killed run had left: {ids}")
    return jobs
