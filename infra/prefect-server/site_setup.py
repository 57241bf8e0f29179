"""Sets up what `prefect deploy` doesn't: `site_setup.py pool SLIDES_AT_ONCE` before it, `site_setup.py no-inbox` after it.

Slides wait in a separate queue with a limit. Cohorts, the inbox and retries run in `default` without a limit: a cohort waits for
its slides, and would block them if it counted among them.
"""

from __future__ import annotations

import sys

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.workers.process import ProcessWorker

POOL, QUEUE = "slidesam", "slides"


def make_pool(client: SyncPrefectClient, slides_at_once: int) -> None:
    """Make the pool and its queue with this limit, or set the limit."""
    try:
        client.read_work_pool(POOL)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=template))
    try:
        queue = client.create_work_queue(QUEUE, work_pool_name=POOL, concurrency_limit=slides_at_once)
    except ObjectAlreadyExists:
        queue = client.read_work_queue_by_name(QUEUE, work_pool_name=POOL)
    if queue.concurrency_limit != slides_at_once:
        client.update_work_queue(queue.id, concurrency_limit=slides_at_once)


def no_inbox(client: SyncPrefectClient) -> None:
    """Switch the inbox's schedule off, which `prefect deploy` has just switched on: no folder is set."""
    named = DeploymentFilter(name=DeploymentFilterName(any_=["inbox"]))
    for deployment in client.read_deployments(deployment_filter=named):
        for schedule in deployment.schedules:
            client.update_deployment_schedule(deployment.id, schedule.id, active=False)


if __name__ == "__main__":
    with get_client(sync_client=True) as server:
        if sys.argv[1] == "pool":
            make_pool(server, int(sys.argv[2]))
        else:
            no_inbox(server)
