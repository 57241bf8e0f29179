"""Runs `prefect` with a process worker that keeps to the limits of its queues: `worker.py worker start --pool … --type process`.

A queue's limit counts runs that are pending or running. On PostgreSQL the server's answer to a worker leaves out runs that
are being written (`FOR UPDATE SKIP LOCKED`), and offers others in their place. So a worker that asks while it still reports its
last runs as pending gets more runs than the limit (observed: five of four on a busy machine, and all of them where writing takes
longer than the time between two requests). This worker asks only when all the runs that it took have begun.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from prefect.cli import app
from prefect.workers.process import ProcessWorker

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

with warnings.catch_warnings():
    # That it takes the place of Prefect's own under the same type, which is the pool's.
    warnings.simplefilter("ignore", UserWarning)

    class PatientWorker(ProcessWorker):
        """Asks for runs only while none of its runs waits for its process."""

        async def get_and_submit_flow_runs(self) -> list[FlowRun]:
            """Take what the server offers, or nothing while earlier runs are still being submitted."""
            return [] if self._submitting_flow_run_ids else await super().get_and_submit_flow_runs()


if __name__ == "__main__":
    app()
