"""Starts slides as runs of the deployment `slide`, puts failed runs back, and reads their states.

A failed run is put back instead of starting a new one, so that its row in the UI turns green and keeps its history.
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

from slidesam.flows.cluster.known_profiles import refuse_unknown
from slidesam.flows.cluster.profile import ClusterProfile
from slidesam.flows.prefect_api.endings import writes_to
from slidesam.tasks.errors import ServerError, SettingsError
from slidesam.tasks.pixels.regions_of_interest import is_rectangle
from slidesam.tasks.run.status import find_refusal, read_state
from slidesam.tasks.settings.methods import Cellpose, StarDist
from slidesam.tasks.settings.sections import Settings
from slidesam.tasks.settings.types import clean_path
from slidesam.tasks.slides.facts import slide_name
from slidesam.tasks.slides.listing import Listed

SLIDE, COHORT = "segment slide/slide", "segment cohort/cohort"
RED = [StateType.FAILED, StateType.CRASHED]
_PAGE = 200


def deployment(client: SyncPrefectClient, name: str) -> DeploymentResponse:
    """Read a deployment by `flow/deployment`.

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
    """Start a run of one slide; for a key that was used before, return that run instead, whatever its state.

    Args:
        client: Of the server.
        deployment_id: The deployment `slide`.
        slide: The slide, with its settings.
        output: Folder for the results.
        cluster: Name or file of the profile to compute on.
        name: The run's name.
        key: Identifies the request: two with the same key start one run.
        tags: Tags for the UI.
    """
    # Absolute, because the run has another working folder.
    parameters = {
        "slide": str(slide.path.absolute()),
        "output": str(output.absolute()),
        "settings": slide.settings.model_dump(mode="json"),
        "cluster": cluster,
    }
    return client.create_flow_run_from_deployment(
        deployment_id, parameters=parameters, name=name, idempotency_key=key, tags=sorted(tags)
    )


def read_cluster_name(client: SyncPrefectClient, flow_run_id: str) -> str:
    """Return the name of the profile of a deployment's run, so that its slides' runs read the profile when they begin."""
    return str(client.read_flow_run(UUID(flow_run_id)).parameters.get("cluster", "local"))


def refuse_relative(settings: Settings, **paths: str | Path) -> None:
    """Refuse relative paths in runs of deployments: these run in a temporary folder of their own.

    Args:
        settings: May name a mask image, and weights.
        paths: By the parameter's name.

    Raises:
        SettingsError: This is a run of a deployment, and one is relative.
    """
    if not own_deployment.id:
        return
    tissue, region, segmenter = settings.blocks.tissue, settings.blocks.region, settings.segmenter
    paths_by_setting = {
        **paths,
        "segmenter.checkpoint": getattr(segmenter, "checkpoint", None),
        "segmenter.model": segmenter.model if isinstance(segmenter, Cellpose | StarDist) else None,
        "blocks.region": None if region is None or is_rectangle(region) else region,
        "blocks.tissue": None if tissue in ("auto", "off") else tissue,
    }
    for name, path in paths_by_setting.items():
        if path is not None and not Path(path).is_absolute():
            raise SettingsError(f"{name}: give the whole path, beginning with /, not {str(path)!r}")


def refuse_foreign(profile: ClusterProfile) -> None:
    """Refuse a profile that isn't the site's in runs of deployments: whoever may start one would run any command here.

    Raises:
        SettingsError: This is a run of a deployment, and the profile isn't known here.
    """
    if own_deployment.id:
        refuse_unknown(profile, "the run's parameters give")


def put_back(client: SyncPrefectClient, run: FlowRun, reason: str) -> bool:
    """Schedule a run that has ended once more, for the workers of its deployment.

    Returns:
        Whether it is scheduled: not if it is running by now, or its deployment is gone.
    """
    state = client.read_flow_run(run.id).state
    if state is None or not state.is_final():
        return False
    result: OrchestrationResult[Any] = client.set_flow_run_state(
        run.id, AwaitingRetry(scheduled_time=datetime.now(UTC), message=reason)
    )
    return result.status == SetStateStatus.ACCEPT


def reason_to_skip(run: FlowRun) -> str | None:
    """Return why a slide's run need not be tried again: its faulty file is unchanged, or a later run has taken the slide over.

    Returns:
        The reason; None if it may be tried.
    """
    try:
        slide, output = (Path(clean_path(run.parameters[name])) for name in ("slide", "output"))
        settings = Settings.model_validate(run.parameters.get("settings") or {})
    except (KeyError, ValueError):
        # The run itself reports best what is wrong with them.
        return None
    state = read_state(output, slide_name(slide, settings.slide.name), settings.output.label)
    if state.status == "finished" or state.flow_run_id not in (None, str(run.id)):
        return "a later run took this slide over"
    refusal = find_refusal(state, slide)
    return None if refusal is None else f"its file hasn't changed: {refusal}"


def read_runs(client: SyncPrefectClient, ids: Iterable[UUID]) -> dict[UUID, FlowRun]:
    """Read flow runs by id, as they are now."""
    id_list, runs = list(ids), dict[UUID, FlowRun]()
    for start in range(0, len(id_list), _PAGE):
        run_filter = FlowRunFilter(id=FlowRunFilterId(any_=id_list[start : start + _PAGE]))
        runs |= {run.id: run for run in client.read_flow_runs(flow_run_filter=run_filter, limit=_PAGE)}
    return runs


def tagged(client: SyncPrefectClient, tag: str) -> list[FlowRun]:
    """Read all runs with a tag."""
    return _read_all_pages(client, FlowRunFilter(tags=FlowRunFilterTags(all_=[tag])))


def read_failed_runs(client: SyncPrefectClient, name: str, days: float) -> list[FlowRun]:
    """Read the failed and crashed runs of a deployment of the last days, newest first."""
    since = datetime.now(UTC) - timedelta(days=days)
    run_filter = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=[deployment(client, name).id]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=RED)),
    )
    # By when it failed: that may be long after it was planned or began, and some never begin.
    runs = _read_all_pages(client, run_filter)
    return [run for run in runs if run.state is not None and run.state.timestamp >= since]


def latest(client: SyncPrefectClient, name: str) -> FlowRun | None:
    """Read the run of a deployment that began last."""
    flow, _, deployed = name.partition("/")
    runs = client.read_flow_runs(
        flow_filter=FlowFilter(name=FlowFilterName(any_=[flow])),
        deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=[deployed])),
        flow_run_filter=FlowRunFilter(start_time=FlowRunFilterStartTime(is_null_=False)),
        sort=FlowRunSort.START_TIME_DESC,
        limit=1,
    )
    return runs[0] if runs else None


def _read_all_pages(client: SyncPrefectClient, run_filter: FlowRunFilter) -> list[FlowRun]:
    runs: list[FlowRun] = []
    while True:
        page = client.read_flow_runs(
            flow_run_filter=run_filter, sort=FlowRunSort.START_TIME_DESC, limit=_PAGE, offset=len(runs)
        )
        runs += page
        if len(page) < _PAGE:
            return runs


def put_back_deployed(flow_run_id: str | None, output: Path, reason: str) -> tuple[str, bool] | None:
    """Put a run back if the server knows it and a deployment made it.

    Args:
        flow_run_id: The run's id, according to the state file.
        output: The output folder; a run that writes to another isn't put back.
        reason: What is shown with its state.

    Returns:
        Its page in the UI, and whether it is put back: not if the server considers it unfinished. None if no deployment can run
        it again, so that the caller must.
    """
    if flow_run_id is None:
        return None
    with get_client(sync_client=True) as client:
        try:
            run = client.read_flow_run(UUID(flow_run_id))
        except (ObjectNotFound, ValueError):
            return None
        if run.deployment_id is None or not writes_to(run, output):
            return None
        return url_for("flow-run", obj_id=run.id) or str(run.id), put_back(client, run, reason)
