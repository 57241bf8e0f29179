"""Slides as runs of the deployment `slide`: starting them, putting failed ones back, and how they stand.

A slide's run is put back, not started anew, so that its row in the UI turns green and its history stays with it.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterName,
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterId,
    FlowRunFilterStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.responses import DeploymentResponse, OrchestrationResult, SetStateStatus
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound
from prefect.runtime import deployment as own_deployment
from prefect.states import AwaitingRetry
from prefect.utilities.urls import url_for

from slidesam.tasks.errors import ServerError, SettingsError
from slidesam.tasks.run.status import read_state, unchanged_since_refused
from slidesam.tasks.settings.methods import Cellpose, StarDist
from slidesam.tasks.settings.sections import Settings
from slidesam.tasks.slides.facts import slide_name
from slidesam.tasks.slides.listing import Listed

SLIDE, COHORT = "segment slide/slide", "segment cohort/cohort"
RED = [StateType.FAILED, StateType.CRASHED]
_PAGE = 200


def deployment(client: SyncPrefectClient, name: str) -> DeploymentResponse:
    """A deployment by `flow/deployment`.

    Raises:
        ServerError: It isn't registered.
    """
    try:
        return client.read_deployment_by_name(name)
    except ObjectNotFound as error:
        raise ServerError(
            f"the Prefect server has no deployment {name!r}",
            "register them with "
            "`prefect deploy --all --prefect-file deployments/prefect.yaml` (infra/prefect-server does)",
        ) from error


def start_slide(
    client: SyncPrefectClient,
    deployment_id: UUID,
    slide: Listed,
    output: Path,
    cluster: str,
    *,
    name: str,
    key: str,
    tags: Iterable[str],
) -> FlowRun:
    """Starts a run of one slide; with a key that was used before, that run instead, however it stands.

    Args:
        client: Of the server.
        deployment_id: The deployment `slide`.
        slide: The slide, with its settings.
        output: Folder for the results.
        cluster: Name or file of the profile to compute on.
        name: The run's name.
        key: What makes this the same request as another.
        tags: By which the UI finds it.
    """
    # Absolute: whoever runs it works elsewhere.
    parameters = {
        "slide": str(slide.path.absolute()),
        "output": str(output.absolute()),
        "settings": slide.settings.model_dump(mode="json"),
        "cluster": cluster,
    }
    return client.create_flow_run_from_deployment(
        deployment_id, parameters=parameters, name=name, idempotency_key=key, tags=sorted(tags)
    )


def named_cluster(client: SyncPrefectClient, flow_run_id: str) -> str:
    """The profile of a deployment's run as it was named, so that its slides' runs find it as it is when they begin."""
    return str(client.read_flow_run(UUID(flow_run_id)).parameters.get("cluster", "local"))


def refuse_relative(settings: Settings, **paths: str | Path) -> None:
    """Refuses paths that say nothing to whoever runs a deployment, in a folder of its own that is removed afterwards.

    Args:
        settings: May name a mask image, and weights.
        paths: By the parameter's name.

    Raises:
        SettingsError: This is a run of a deployment, and one is relative.
    """
    if not own_deployment.id:
        return
    tissue, segmenter = settings.blocks.tissue, settings.segmenter
    named = {
        **paths,
        "segmenter.checkpoint": getattr(segmenter, "checkpoint", None),
        "segmenter.model": segmenter.model if isinstance(segmenter, Cellpose | StarDist) else None,
        "blocks.tissue": None if tissue in ("auto", "off") else tissue,
    }
    for name, path in named.items():
        if path is not None and not Path(path).is_absolute():
            raise SettingsError(f"{name}: give the whole path, beginning with /, not {str(path)!r}")


def put_back(client: SyncPrefectClient, run: FlowRun, why: str) -> bool:
    """Has a run that has ended done again, by whoever takes its deployment's runs.

    Returns:
        Whether it will be: not if it is at work by now, or its deployment is gone.
    """
    now = client.read_flow_run(run.id).state
    if now is None or not now.is_final():
        return False
    result: OrchestrationResult[Any] = client.set_flow_run_state(
        run.id, AwaitingRetry(scheduled_time=datetime.now(UTC), message=why)
    )
    return result.status == SetStateStatus.ACCEPT


def not_worth_it(run: FlowRun) -> str | None:
    """Why a slide's run need not be tried again: its file is as it was when it was at fault, or the slide is another run's.

    Returns:
        The reason in words; None if it may be tried.
    """
    try:
        slide, output = Path(run.parameters["slide"]), Path(run.parameters["output"])
        settings = Settings.model_validate(run.parameters.get("settings") or {})
    except (KeyError, ValueError):
        # What is wrong with them the run itself says best.
        return None
    state = read_state(output, slide_name(slide, settings.slide.name), settings.output.label)
    if state.get("status") == "finished" or state.get("flow_run_id", str(run.id)) != str(run.id):
        return "a later run took this slide over"
    why = unchanged_since_refused(state, slide)
    return None if why is None else f"its file hasn't changed: {why}"


def runs_of(client: SyncPrefectClient, ids: Iterable[UUID]) -> dict[UUID, FlowRun]:
    """Flow runs as they stand now, by id."""
    wanted, found = list(ids), dict[UUID, FlowRun]()
    for start in range(0, len(wanted), _PAGE):
        these = FlowRunFilter(id=FlowRunFilterId(any_=wanted[start : start + _PAGE]))
        found |= {run.id: run for run in client.read_flow_runs(flow_run_filter=these, limit=_PAGE)}
    return found


def tagged(client: SyncPrefectClient, tag: str) -> list[FlowRun]:
    """All runs with a tag."""
    return _all(client, FlowRunFilter(tags=FlowRunFilterTags(all_=[tag])))


def red_runs(client: SyncPrefectClient, name: str, days: float) -> list[FlowRun]:
    """Failed and crashed runs of a deployment of the last days, newest first."""
    since = datetime.now(UTC) - timedelta(days=days)
    these = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=[deployment(client, name).id]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=RED)),
        # Not when it began: some never do.
        expected_start_time=FlowRunFilterExpectedStartTime(after_=since),
    )
    return _all(client, these)


def latest(client: SyncPrefectClient, name: str) -> FlowRun | None:
    """The run of a deployment that began last, of those that have begun."""
    flow, _, deployed = name.partition("/")
    found = client.read_flow_runs(
        flow_filter=FlowFilter(name=FlowFilterName(any_=[flow])),
        deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=[deployed])),
        flow_run_filter=FlowRunFilter(start_time=FlowRunFilterStartTime(is_null_=False)),
        sort=FlowRunSort.START_TIME_DESC,
        limit=1,
    )
    return found[0] if found else None


def _all(client: SyncPrefectClient, these: FlowRunFilter) -> list[FlowRun]:
    found: list[FlowRun] = []
    while True:
        page = client.read_flow_runs(
            flow_run_filter=these, sort=FlowRunSort.START_TIME_DESC, limit=_PAGE, offset=len(found)
        )
        found += page
        if len(page) < _PAGE:
            return found


def put_back_deployed(flow_run_id: str | None, why: str) -> tuple[str, bool] | None:
    """Puts a run back if the server knows it and a deployment made it.

    Args:
        flow_run_id: The run's id.
        why: What is shown with its state.

    Returns:
        Its page in the UI, and whether it is put back: not if the server takes it for unfinished. None if the slide is nobody's
        but one's own to do.
    """
    if flow_run_id is None:
        return None
    with get_client(sync_client=True) as client:
        try:
            run = client.read_flow_run(UUID(flow_run_id))
        except (ObjectNotFound, ValueError):
            return None
        if run.deployment_id is None:
            return None
        return url_for("flow-run", obj_id=run.id) or str(run.id), put_back(client, run, why)
