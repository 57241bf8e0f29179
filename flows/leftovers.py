"""What a run that was killed leaves behind: jobs in the queue, and flow runs that Prefect takes for running.

Its state file says which. Whoever takes the run up, or cleans the output folder, ends them: jobs first, for two workers on one
block would write over each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any
from uuid import UUID

from slidesam.flows import slurm


def end_leftovers(state: Mapping[str, Any], note: Callable[[str], None]) -> None:
    """Ends what the last run of a result left, if it was killed.

    Args:
        state: What `state.json` says, from before this run.
        note: Is told what was ended.

    Raises:
        ClusterError: Jobs of it are there and can't be cancelled.
    """
    if state.get("status") != "running":
        return
    cancel_orphans(state.get("jobs") or [], note)
    with suppress(ValueError, TypeError):
        flow_run_id = UUID(state.get("flow_run_id"))
        # Here, so that `slidesam clean` needs no Prefect where nothing was left.
        from slidesam.flows.endings import end_flow_run

        end_flow_run(flow_run_id, "its process was killed; the same command goes on from where it was")


def cancel_orphans(names: list[str], note: Callable[[str], None]) -> list[slurm.Job]:
    """Cancels jobs of a run that was killed, and waits until they are gone.

    Raises:
        ClusterError: They are there and can't be cancelled.
    """
    if not names or not slurm.has_slurm():
        return []
    jobs = slurm.cancel_jobs(names)
    if jobs:
        ids = ", ".join(job.id for job in jobs)
        note(f"cancelled {len(jobs)} jobs that a killed run had left: {ids}")
    return jobs
