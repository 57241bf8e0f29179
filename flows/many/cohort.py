"""Segments many slides: each in a flow run of its own, so that the crash of one doesn't stop the others.

If the cohort is itself a run of a deployment, each slide is a run of the deployment `slide`: people can see, cancel and retry
it alone, and any worker can take it. Otherwise, as from the command line, slides run one after the other in this process, on
one cluster.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence, Set
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from prefect import Flow, flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.runtime import deployment as own_deployment
from prefect.runtime import flow_run

from slidesam.flows.cluster.cluster import open_cluster
from slidesam.flows.cluster.find_profile import ProfileChoice
from slidesam.flows.many.cohort_page import Row, as_markdown, cohort_progress, count_finished, row_here, row_of_run
from slidesam.flows.prefect_api.deployed import (
    RED,
    deployment,
    put_back,
    read_cluster_name,
    read_runs,
    reason_to_skip,
    refuse_foreign,
    refuse_relative,
    start_slide,
)
from slidesam.flows.prefect_api.deployed import SLIDE as SLIDE_DEPLOYMENT
from slidesam.flows.progress.run_page import harmless
from slidesam.flows.run_log import run_log
from slidesam.flows.slide.segment_slide import run_name, segment_listed
from slidesam.flows.slide.session import Session
from slidesam.tasks.errors import CohortFailures, SettingsError, in_one_line
from slidesam.tasks.pages.contact_sheet import write_contact_sheet
from slidesam.tasks.run.layout import jobs_folder
from slidesam.tasks.settings.sections import Settings
from slidesam.tasks.settings.types import PastedPath
from slidesam.tasks.slides.listing import Listed, list_slides

# What a form shows at first; Prefect makes settings and a profile of it.
_DEFAULTS: Any = {}
_LOCAL: Any = "local"
_POLL_SECONDS = 2.0
# An automation may restart a crashed run: it has ended only if it stays crashed for so long.
_CRASHED_FOR = 90.0
# The message of the automation that restarts crashed runs (deployments/automations.yaml).
AUTOMATION_MESSAGE = 'crashed; started again by the automation "crashed runs go on"'
ENDED = [StateType.COMPLETED, StateType.FAILED, StateType.CRASHED, StateType.CANCELLED]


def _run_name() -> str:
    slides = flow_run.parameters["slides"]
    suffix = f" and {len(slides) - 1} more" if len(slides) > 1 else ""
    return f"cohort · {Path(slides[0]).name if slides else 'nothing'}{suffix}"


@flow(name="segment cohort", flow_run_name=_run_name, persist_result=False)
def segment_cohort(
    slides: list[str], output: PastedPath, settings: Settings = _DEFAULTS, cluster: ProfileChoice = _LOCAL
) -> list[dict[str, Any]]:
    """Segment many slides. Started again, it runs only those that aren't finished.

    Args:
        slides: Slide files, folders of slides, patterns such as /scans/2026-11/*.svs, or CSV manifests (columns path, name, and
            settings such as blocks.halo).
        output: Folder for the results.
        settings: What to compute; a manifest can change settings for single slides.
        cluster: Where to compute it: the name of a cluster profile, or the file of one that the site keeps.

    Returns:
        How each slide ended.

    Raises:
        CohortFailures: Some slides failed; all others are finished.
        SettingsError: No slide is named.
    """
    refuse_foreign(cluster)
    refuse_relative(settings, output=output, **{f"slides[{number}]": slide for number, slide in enumerate(slides)})
    listed_slides = _list(slides, settings)
    if own_deployment.id:
        return _conclude(_run_as_deployed(listed_slides, output), output)
    with open_cluster(cluster, jobs_folder(output)) as workers:
        session = Session(cluster=workers, is_cluster_shared=True)
        rows = _run_here(listed_slides, output, lambda slide: segment_listed(session, slide, output))
        return _conclude(rows, output)


def make_cohort_flow(run_slide: Callable[[Listed], object]) -> Flow[..., list[dict[str, Any]]]:
    """Return the flow `segment cohort` for a caller that runs each slide itself, in this process.

    Args:
        run_slide: Runs a slide; raises an error if the slide fails.
    """

    # `run_slide` isn't a parameter of the flow, because Prefect stores parameters.
    @flow(name="segment cohort", flow_run_name=_run_name, persist_result=False, validate_parameters=False)
    def segment_cohort(slides: list[str], output: Path, settings: Settings) -> list[dict[str, Any]]:
        return _conclude(_run_here(_list(slides, settings), output, run_slide), output)

    return segment_cohort


def _list(slides: list[str], settings: Settings) -> list[Listed]:
    listed_slides = list_slides(slides, settings)
    run_log().info("%d slides", len(listed_slides))
    return listed_slides


def _conclude(rows: list[Row], output: Path) -> list[dict[str, Any]]:
    """Show the table of a cohort's slides, and write the page that shows all slides of the folder.

    Raises:
        CohortFailures: Some slides failed.
    """
    with harmless(run_log(), "the contact sheet"):
        run_log().info("all slides of the folder, side by side: %s", write_contact_sheet(output))
    with harmless(run_log(), "the table"):
        create_markdown_artifact(
            as_markdown(rows),
            key="slidesam-cohort",
            description=f"{count_finished(rows)} of {len(rows)} slides finished",
        )
    failures = {row.slide: row.error or row.state for row in rows if not row.is_finished}
    if failures:
        raise CohortFailures(failures, len(rows))
    return [vars(row) for row in rows]


# --- in this process ---------------------------------------------------------------------------------------------------


def _run_here(slides: Sequence[Listed], output: Path, run_slide: Callable[[Listed], object]) -> list[Row]:
    """Run slides one after the other; an error of one doesn't stop the others."""
    rows: list[Row] = []
    with cohort_progress(len(slides)) as report:
        for slide in slides:
            start, error = time.monotonic(), None
            try:
                run_slide(slide)
            except Exception as slide_error:  # noqa: BLE001 (one bad slide doesn't stop the others; its row has the error)
                error = slide_error
            rows.append(row_here(slide, output, error, seconds=time.monotonic() - start))
            report(rows)
    return rows


# --- as runs of a deployment -------------------------------------------------------------------------------------------


def _run_as_deployed(slides: Sequence[Listed], output: Path) -> list[Row]:
    """Start each slide as a run of `slide`, and wait for all.

    If the cohort ran before, its finished slides are used again, and its failed slides are put back in the queue.
    """
    own_id = str(flow_run.id)
    skipped: dict[UUID, str] = {}
    with get_client(sync_client=True) as client:
        deployed, cluster = deployment(client, SLIDE_DEPLOYMENT).id, read_cluster_name(client, own_id)
        is_retry = _is_retry(client.read_flow_run_states(UUID(own_id)))
        slides_by_run: dict[UUID, Listed] = {}
        refused: list[Row] = []
        for slide in slides:
            try:
                if slide.error is not None:
                    raise SettingsError(slide.error)
                refuse_relative(slide.settings)
                run = start_slide(
                    client, deployed, slide, output, cluster,
                    name=run_name(slide.path, slide.settings), key=_key(own_id, slide, output, cluster),
                    tags=[cohort_tag(own_id)],
                )  # fmt: skip
            except Exception as error:  # noqa: BLE001 (a slide that can't be started doesn't stop the others)
                refused.append(Row(slide.name, "Failed", error=in_one_line(error)))
                continue
            slides_by_run[run.id] = slide
            if is_retry and run.state is not None and run.state.type in [*RED, StateType.CANCELLED]:
                if (reason := reason_to_skip(run)) is None:
                    put_back(client, run, "its cohort is tried again")
                else:
                    skipped[run.id] = reason
    for run_id, reason in skipped.items():
        run_log().warning("%s: not tried again, %s", slides_by_run[run_id].name, reason)
    with cohort_progress(len(slides)) as report:
        return _wait_for_all(slides_by_run, output, refused, report)


def _is_retry(states: Sequence[Any]) -> bool:
    """Tell whether a person retries this cohort; False if an automation restarted it after its process had died."""
    ends = [number for number, state in enumerate(states) if state.type in ENDED]
    if not ends:
        return False
    restart = next((state for state in states[ends[-1] + 1 :] if state.type == StateType.SCHEDULED), None)
    is_automatic = restart is not None and restart.message == AUTOMATION_MESSAGE
    return not (states[ends[-1]].type == StateType.CRASHED and is_automatic)


def _key(own_id: str, slide: Listed, output: Path, cluster: str) -> str:
    """Return a key that is equal for equal requests of one cohort; a corrected manifest is another request."""
    request = [str(slide.path), str(output), cluster, slide.settings.model_dump(mode="json")]
    text = json.dumps(request, sort_keys=True, default=str)
    return f"{own_id}:{hashlib.sha256(text.encode(errors='surrogateescape')).hexdigest()}"


def cohort_tag(flow_run_id: str) -> str:
    """Return the tag of a cohort's slides: the whole id, because those of runs that were scheduled together begin alike."""
    return f"cohort-{flow_run_id}"


def _wait_for_all(
    slides_by_run: dict[UUID, Listed], output: Path, refused: list[Row], report: Callable[[list[Row]], None]
) -> list[Row]:
    """Wait until all runs have ended."""
    rows: dict[UUID, Row] = {}
    crashed: dict[UUID, float] = {}
    report(refused)
    while True:
        runs = _read_when_possible(slides_by_run.keys() - rows.keys())
        for run_id in slides_by_run.keys() - rows.keys():
            run = runs.get(run_id)
            if run is None:
                rows[run_id] = Row(slides_by_run[run_id].name, "Deleted", error="its run was deleted")
            elif _has_ended(run, crashed):
                rows[run_id] = row_of_run(run, slides_by_run[run_id], output)
            else:
                continue
            report([*refused, *rows.values()])
        if len(rows) == len(slides_by_run):
            # Meanwhile somebody may have retried a failed run on its own page.
            for run_id in _find_restarted(rows):
                del rows[run_id]
        if len(rows) == len(slides_by_run):
            return [*refused, *(rows[run_id] for run_id in slides_by_run)]
        time.sleep(_POLL_SECONDS)


def _read_when_possible(run_ids: Set[UUID]) -> dict[UUID, FlowRun]:
    """Read runs, once the server answers: it may be restarted while slides run, and they go on meanwhile."""
    is_said = False
    while True:
        try:
            with get_client(sync_client=True) as client:
                return read_runs(client, run_ids)
        except (httpx.HTTPError, RuntimeError) as error:
            # Prefect's client raises a RuntimeError where it can't begin.
            reason = error if isinstance(error, httpx.HTTPError) else error.__cause__
            is_refusal = isinstance(reason, httpx.HTTPStatusError) and reason.response.status_code < 500
            if is_refusal or not isinstance(reason, httpx.HTTPError):
                raise
            if not is_said:
                run_log().warning(
                    "the Prefect server doesn't answer (%s): asked again until it does", in_one_line(error)
                )
            is_said = True
        time.sleep(_POLL_SECONDS)


def _find_restarted(rows: dict[UUID, Row]) -> list[UUID]:
    """Return the unfinished runs whose state isn't the one in their row any more."""
    runs = _read_when_possible({run_id for run_id, row in rows.items() if not row.is_finished})
    return [run_id for run_id, run in runs.items() if run.state is not None and run.state.name != rows[run_id].state]


def _has_ended(run: FlowRun, crashed: dict[UUID, float]) -> bool:
    """Tell whether a run will do nothing more; note in `crashed` when it was first seen to be crashed."""
    if run.state is None or run.state.type not in ENDED:
        crashed.pop(run.id, None)
        return False
    if run.state.type != StateType.CRASHED:
        return True
    return time.monotonic() - crashed.setdefault(run.id, time.monotonic()) > _CRASHED_FOR
