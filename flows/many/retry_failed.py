"""Failed slides once more: of the latest cohort, of a named one, or all that are red."""

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
from prefect.logging import get_run_logger
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
from slidesam.tasks.errors import SettingsError


@flow(name="retry failed", flow_run_name="retry failed slides", persist_result=False)
def retry_failed(
    cohort: str | None = None, days: Annotated[float, Field(gt=0, le=3650)] | None = None
) -> dict[str, str]:
    """Puts failed slides back, to be tried again; of these, only what is missing is computed.

    A slide that failed because of its file is left until the file changes.

    Args:
        cohort: Name or id of the cohort whose failed slides to try again; none = the latest.
        days: Instead of one cohort's: all slides and cohorts that failed in so many last days.

    Returns:
        What was done with each failed slide, by the id of its run.

    Raises:
        SettingsError: There is no such cohort, or both are given.
        ServerError: A deployment isn't registered.
    """
    if cohort is not None and days is not None:
        raise SettingsError("a cohort and a number of days are given: give one of them")
    with get_client(sync_client=True) as client:
        if days is not None:
            cohorts, slides = read_failed_runs(client, COHORT, days), read_failed_runs(client, SLIDE, days)
        else:
            chosen = _cohort(client, cohort)
            cohorts = [chosen] if _is_red(chosen) else []
            slides = [run for run in tagged(client, cohort_tag(str(chosen.id))) if _is_red(run)]
        # A cohort puts its slides back itself as it begins once more.
        by_cohort = {cohort_tag(str(run.id)): run for run in cohorts}
        done = {run.id: _again(client, run, by_cohort) for run in slides}
        for run in cohorts:
            if any(done[slide.id] == _BACK for slide in slides if cohort_tag(str(run.id)) in slide.tags):
                put_back(client, run, "its failed slides are tried again")
    for run in slides:
        get_run_logger().info("%s: %s", run.name, done[run.id])
    create_markdown_artifact(_markdown(done, slides), key="slidesam-retry-failed")
    return {str(run_id): what for run_id, what in done.items()}


_BACK = "put back"


def _again(client: SyncPrefectClient, run: FlowRun, cohorts: Mapping[str, FlowRun]) -> str:
    """Puts a slide's run back where that can help and no cohort does it, and says what is done."""
    if (why := reason_to_skip(run)) is not None:
        return f"not tried again, {why}"
    if not cohorts.keys() & set(run.tags) and not put_back(client, run, "tried again by retry-failed"):
        return "not put back: it is at work again, or its deployment is gone"
    return _BACK


def _is_red(run: FlowRun) -> bool:
    return run.state is not None and run.state.type in RED


def _cohort(client: SyncPrefectClient, named: str | None) -> FlowRun:
    """The cohort that is meant.

    Raises:
        SettingsError: There is none.
    """
    if named is None:
        found = latest(client, COHORT)
        if found is None:
            raise SettingsError("there is no cohort yet; give `days` to try all failed slides again")
        return found
    with suppress(ValueError, ObjectNotFound):
        return client.read_flow_run(UUID(named))
    these = FlowRunFilter(name=FlowRunFilterName(any_=[named]))
    runs = client.read_flow_runs(flow_run_filter=these, sort=FlowRunSort.START_TIME_DESC, limit=1)
    if not runs:
        raise SettingsError(f"there is no cohort {named!r}: give the name or the id of its flow run")
    return runs[0]


def _markdown(done: Mapping[UUID, str], slides: Sequence[FlowRun]) -> str:
    if not done:
        return "# No failed slides"
    rows = [(f"[{text(run.name)}]({url_for('flow-run', obj_id=run.id)})", text(done[run.id])) for run in slides]
    back = sum(what == _BACK for what in done.values())
    return f"# {back} of {len(done)} failed slides put back\n\n{table(('slide', 'what was done'), rows)}"
