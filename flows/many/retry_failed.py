"""Retries failed slides: of the latest cohort, of a named cohort, or of the last days."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Annotated
from uuid import UUID

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound
from prefect.utilities.urls import url_for
from pydantic import Field

from slidesam.flows.many.cohort import cohort_tag
from slidesam.flows.prefect_api.deployed import (
    COHORT,
    RED,
    SLIDE,
    latest,
    put_back,
    read_failed_runs,
    reason_to_skip,
    tagged,
)
from slidesam.flows.progress.markdown import table, text
from slidesam.flows.run_log import run_log
from slidesam.tasks.errors import SettingsError


@flow(name="retry failed", flow_run_name="retry failed slides", persist_result=False)
def retry_failed(
    cohort: str | None = None, days: Annotated[float, Field(gt=0, le=3650)] | None = None
) -> dict[str, str]:
    """Put failed slides back in the queue; only their missing blocks are computed.

    A slide that failed because of its file is skipped until the file changes.

    Args:
        cohort: Name or id of the cohort whose failed slides to retry; empty = the latest cohort.
        days: Retry all slides and cohorts that failed in so many last days, instead of one cohort's.

    Returns:
        What was done with each failed slide, by its run's id.

    Raises:
        SettingsError: The cohort doesn't exist, or both arguments are given.
        ServerError: A deployment isn't registered.
    """
    if cohort is not None and days is not None:
        raise SettingsError("both a cohort and a number of days are given: give only one of them")
    with get_client(sync_client=True) as client:
        if days is not None:
            cohorts, slides = read_failed_runs(client, COHORT, days), read_failed_runs(client, SLIDE, days)
        else:
            cohort_run = _find_cohort(client, cohort)
            cohorts = [cohort_run] if _is_red(cohort_run) else []
            slides = [run for run in tagged(client, cohort_tag(str(cohort_run.id))) if _is_red(run)]
        # A cohort puts its slides back itself when it starts again.
        by_cohort = {cohort_tag(str(run.id)): run for run in cohorts}
        actions = {run.id: _retry(client, run, by_cohort) for run in slides}
        for run in cohorts:
            if any(actions[slide.id] == _PUT_BACK for slide in slides if cohort_tag(str(run.id)) in slide.tags):
                put_back(client, run, "its failed slides are tried again")
    for run in slides:
        run_log().info("%s: %s", run.name, actions[run.id])
    create_markdown_artifact(_markdown(actions, slides), key="slidesam-retry-failed")
    return {str(run_id): action for run_id, action in actions.items()}


_PUT_BACK = "put back"


def _retry(client: SyncPrefectClient, run: FlowRun, cohorts: Mapping[str, FlowRun]) -> str:
    """Put a slide's run back if that can help and its cohort doesn't do it; return what was done."""
    if (reason := reason_to_skip(run)) is not None:
        return f"not tried again, {reason}"
    if not cohorts.keys() & set(run.tags) and not put_back(client, run, "tried again by retry-failed"):
        return "not put back: it runs again already, or its deployment is gone"
    return _PUT_BACK


def _is_red(run: FlowRun) -> bool:
    return run.state is not None and run.state.type in RED


def _find_cohort(client: SyncPrefectClient, name: str | None) -> FlowRun:
    """Return the named cohort's run, or the latest cohort's.

    Raises:
        SettingsError: There is none.
    """
    if name is None:
        latest_cohort = latest(client, COHORT)
        if latest_cohort is None:
            raise SettingsError("there is no cohort yet: give `days` to retry all failed slides")
        return latest_cohort
    with suppress(ValueError, ObjectNotFound):
        return client.read_flow_run(UUID(name))
    by_name = FlowRunFilter(name=FlowRunFilterName(any_=[name]))
    runs = client.read_flow_runs(flow_run_filter=by_name, sort=FlowRunSort.START_TIME_DESC, limit=1)
    if not runs:
        raise SettingsError(f"there is no cohort {name!r}: give the name or the id of its flow run")
    return runs[0]


def _markdown(actions: Mapping[UUID, str], slides: Sequence[FlowRun]) -> str:
    if not actions:
        return "# No failed slides"
    rows = [(f"[{text(run.name)}]({url_for('flow-run', obj_id=run.id)})", text(actions[run.id])) for run in slides]
    n_put_back = sum(action == _PUT_BACK for action in actions.values())
    return f"# {n_put_back} of {len(actions)} failed slides put back\n\n{table(('slide', 'what was done'), rows)}"
