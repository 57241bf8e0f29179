"""Many slides: each in a run of its own, so that one's crash costs no other, and a table of how they ended.

Where the cohort is itself a run of a deployment, each slide is a run of the deployment `slide`: it can be seen, cancelled and
retried alone, on whichever machine takes it. Elsewhere, as from the command line, slides run one after the other in this
process, on one cluster. Either way a slide is a run of `segment_slide`.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import flow
from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.logging import get_run_logger
from prefect.runtime import deployment as own_deployment
from prefect.runtime import flow_run
from prefect.utilities.urls import url_for

from slidesam.flows.cluster.cluster import open_cluster
from slidesam.flows.cluster.profile import ProfileChoice
from slidesam.flows.prefect_api.deployed import (
    RED,
    deployment,
    named_cluster,
    not_worth_it,
    put_back,
    refuse_relative,
    runs_of,
    start_slide,
)
from slidesam.flows.prefect_api.deployed import SLIDE as SLIDE_DEPLOYMENT
from slidesam.flows.progress.markdown import table, text
from slidesam.flows.progress.run_page import harmless
from slidesam.flows.slide.segment_slide import run_name
from slidesam.tasks.errors import CohortFailures, SettingsError, in_one_line
from slidesam.tasks.run.run import jobs_folder, read_json
from slidesam.tasks.run.status import read_state
from slidesam.tasks.settings.sections import Settings
from slidesam.tasks.slides.listing import Listed, list_slides

# As a form begins; Prefect makes settings of it.
_DEFAULTS: Any = {}
_LOCAL: Any = "local"
_LOOK_SECONDS = 2.0
_ERROR_LENGTH = 400
# A crashed run may be put back by an automation: only one that stays crashed for so long has ended.
_CRASHED_FOR = 90.0
# What the automation's message has in it (deployments/automations.yaml).
_BY_ITSELF = "by the automation"
ENDED = [StateType.COMPLETED, StateType.FAILED, StateType.CRASHED, StateType.CANCELLED]


@dataclass(frozen=True)
class Row:
    """How one slide of a cohort ended.

    Attributes:
        slide: Its name.
        state: In a word, as Prefect has it.
        objects: How many were found.
        blocks: How many were segmented, of how many.
        seconds: How long its run took, waiting not counted.
        error: Why it failed; empty if it didn't.
        link: Its page in the UI.
    """

    slide: str
    state: str
    objects: int | None = None
    blocks: str = ""
    seconds: float | None = None
    error: str = ""
    link: str | None = None

    @property
    def is_finished(self) -> bool:
        """Whether its result is there."""
        return self.state == "Completed"


def _run_name() -> str:
    named = flow_run.parameters["slides"]
    more = f" and {len(named) - 1} more" if len(named) > 1 else ""
    return f"cohort · {Path(named[0]).name if named else 'nothing'}{more}"


@flow(name="segment cohort", flow_run_name=_run_name, persist_result=False)
def segment_cohort(
    slides: list[str], output: Path, settings: Settings = _DEFAULTS, cluster: ProfileChoice = _LOCAL
) -> list[dict[str, Any]]:
    """Segments many slides; begun once more, it runs only those that aren't finished.

    Args:
        slides: Slide files, folders of slides, patterns such as /scans/2026-11/*.svs, or CSV manifests (columns path, name, and
            settings such as blocks.halo).
        output: Folder for the results.
        settings: What to compute, for all slides for which a manifest says nothing else.
        cluster: Where to compute it: the name of a cluster profile, or its file.

    Returns:
        How each slide ended.

    Raises:
        CohortFailures: Some slides failed; all others are finished.
        SettingsError: No slide is named.
    """
    refuse_relative(settings, output=output, **{f"slides[{n}]": named for n, named in enumerate(slides)})
    listed = list_slides(slides, settings)
    get_run_logger().info("%d slides", len(listed))
    rows = _as_runs(listed, output) if own_deployment.id else _here(listed, output, cluster)
    with harmless(get_run_logger(), "the table"):
        create_markdown_artifact(
            as_markdown(rows), key="slidesam-cohort", description=f"{_counted(rows)} of {len(rows)} slides finished"
        )
    failed = {row.slide: row.error or row.state for row in rows if not row.is_finished}
    if failed:
        raise CohortFailures(failed, len(rows))
    return [vars(row) for row in rows]


# --- in this process ---------------------------------------------------------------------------------------------------

_each: ContextVar[Callable[[Listed], None] | None] = ContextVar("slidesam_each_slide", default=None)


@contextmanager
def each_by(run: Callable[[Listed], None]) -> Iterator[None]:
    """Has cohorts inside run each slide by a function of the caller's, which may raise what the slide fails with."""
    token = _each.set(run)
    try:
        yield
    finally:
        _each.reset(token)


def _here(listed: Sequence[Listed], output: Path, cluster: Any) -> list[Row]:
    """One after the other, on one cluster."""
    from slidesam.flows.slide.segment_slide import segment_slide

    def plainly(slide: Listed) -> None:
        segment_slide(slide.path, output, slide.settings, cluster)

    each, rows = _each.get() or plainly, []
    with open_cluster(cluster, jobs_folder(output)), _progress(len(listed)) as ended:
        for slide in listed:
            started = time.monotonic()
            error: Exception | None = None if slide.error is None else SettingsError(slide.error)
            try:
                if error is None or _each.get() is not None:
                    each(slide)
            except Exception as caught:  # noqa: BLE001
                error = caught
            rows.append(_row(slide, output, error, seconds=time.monotonic() - started))
            ended(rows)
    return rows


def _row(slide: Listed, output: Path, error: Exception | None, seconds: float) -> Row:
    state = read_state(output, slide.name, slide.settings.output.label)
    link = state.get("flow_run_id") if slide.error is None else None
    return Row(
        slide.name,
        "Completed" if error is None else "Failed",
        **_result(slide, output, finished=error is None),
        seconds=seconds,
        error="" if error is None else in_one_line(error),
        link=url_for("flow-run", obj_id=UUID(link)) if link else None,
    )


# --- as runs of a deployment -------------------------------------------------------------------------------------------


def _as_runs(listed: Sequence[Listed], output: Path) -> list[Row]:
    """Each as a run of `slide`; those of an earlier go are used if they are finished, and put back if they failed."""
    own_id = str(flow_run.id)
    kept: dict[UUID, str] = {}
    with get_client(sync_client=True) as client:
        deployed, cluster = deployment(client, SLIDE_DEPLOYMENT).id, named_cluster(client, own_id)
        again = _was_retried(client.read_flow_run_states(UUID(own_id)))
        started: dict[UUID, Listed] = {}
        refused: list[Row] = []
        for slide in listed:
            try:
                if slide.error is not None:
                    raise SettingsError(slide.error)
                refuse_relative(slide.settings)
                run = start_slide(
                    client, deployed, slide, output, cluster,
                    name=run_name(slide.path, slide.settings), key=_key(own_id, slide, output, cluster),
                    tags=[cohort_tag(own_id)],
                )  # fmt: skip
            except Exception as error:  # noqa: BLE001 (a slide that can't even be started costs no other)
                refused.append(Row(slide.name, "Failed", error=in_one_line(error)))
                continue
            started[run.id] = slide
            if again and run.state is not None and run.state.type in [*RED, StateType.CANCELLED]:
                if (why := not_worth_it(run)) is None:
                    put_back(client, run, "its cohort is tried again")
                else:
                    kept[run.id] = why
    for run_id, why in kept.items():
        get_run_logger().warning("%s: not tried again, %s", started[run_id].name, why)
    with _progress(len(listed)) as ended:
        return _watched(started, output, refused, ended)


def _was_retried(states: Sequence[Any]) -> bool:
    """Whether somebody wants this cohort tried again: not if an automation only brought it back after its process died."""
    ends = [number for number, state in enumerate(states) if state.type in ENDED]
    if not ends:
        return False
    back = next((state for state in states[ends[-1] + 1 :] if state.type == StateType.SCHEDULED), None)
    by_itself = back is not None and _BY_ITSELF in (back.message or "")
    return not (states[ends[-1]].type == StateType.CRASHED and by_itself)


def _key(own_id: str, slide: Listed, output: Path, cluster: str) -> str:
    """The same for the same request of the same cohort; a manifest that was mended asks for another run."""
    asked = [str(slide.path), str(output), cluster, slide.settings.model_dump(mode="json")]
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode(errors="surrogateescape")).hexdigest()
    return f"{own_id}:{digest}"


def cohort_tag(flow_run_id: str) -> str:
    """The tag of a cohort's slides."""
    return f"cohort-{flow_run_id[:8]}"


def _watched(
    started: dict[UUID, Listed], output: Path, refused: list[Row], ended: Callable[[list[Row]], None]
) -> list[Row]:
    """Waits until all have ended."""
    rows: dict[UUID, Row] = {}
    crashed: dict[UUID, float] = {}
    ended(refused)
    while True:
        with get_client(sync_client=True) as client:
            runs = runs_of(client, started.keys() - rows.keys())
        for run_id in started.keys() - rows.keys():
            run = runs.get(run_id)
            if run is None:
                rows[run_id] = Row(started[run_id].name, "Deleted", error="its run was deleted")
            elif _has_ended(run, crashed):
                rows[run_id] = _row_of(run, started[run_id], output)
            else:
                continue
            ended([*refused, *rows.values()])
        if len(rows) == len(started):
            # Somebody may have tried a failed one again meanwhile, on its own page.
            for run_id in _begun_again(rows):
                del rows[run_id]
        if len(rows) == len(started):
            return [*refused, *(rows[run_id] for run_id in started)]
        time.sleep(_LOOK_SECONDS)


def _begun_again(rows: dict[UUID, Row]) -> list[UUID]:
    """Those that aren't finished, and don't stand any more as their row says."""
    with get_client(sync_client=True) as client:
        runs = runs_of(client, [run_id for run_id, row in rows.items() if not row.is_finished])
    return [run_id for run_id, run in runs.items() if run.state is not None and run.state.name != rows[run_id].state]


def _has_ended(run: FlowRun, crashed: dict[UUID, float]) -> bool:
    """Whether nothing more will come of a run; remembers since when it is crashed."""
    if run.state is None or run.state.type not in ENDED:
        crashed.pop(run.id, None)
        return False
    if run.state.type != StateType.CRASHED:
        return True
    return time.monotonic() - crashed.setdefault(run.id, time.monotonic()) > _CRASHED_FOR


def _row_of(run: FlowRun, slide: Listed, output: Path) -> Row:
    assert run.state is not None
    finished = run.state.type == StateType.COMPLETED
    state = read_state(output, slide.name, slide.settings.output.label)
    noted = state.get("error") if state.get("flow_run_id") == str(run.id) else None
    error = "" if finished else str(noted or run.state.message or run.state.name)
    return Row(
        slide.name,
        str(run.state.name),
        **_result(slide, output, finished=finished),
        seconds=run.total_run_time.total_seconds(),
        error=error,
        link=url_for("flow-run", obj_id=run.id),
    )


# --- what is shown -----------------------------------------------------------------------------------------------------


def _result(slide: Listed, output: Path, *, finished: bool) -> dict[str, Any]:
    """Objects and blocks of a slide, from what lies in the output folder."""
    label = slide.settings.output.label
    if not finished:
        state = read_state(output, slide.name, label)
        folder = output / ".slidesam" / slide.name / label / str(state.get("segment_folder")) / "marks"
        blocks = state.get("blocks")
        return {"blocks": f"{len(list(folder.glob('[0-9]*.json')))} of {blocks}"} if blocks else {}
    facts = read_json(output / f"{slide.name}.{label}.run.json") or {}
    left_out = len(facts.get("blocks_without_tissue", []))
    return {"objects": facts.get("objects"), "blocks": str(facts.get("blocks", 0) - left_out)}


@contextmanager
def _progress(total: int) -> Iterator[Callable[[list[Row]], None]]:
    """A bar on the cohort's page, and a line in its log per slide that ends."""
    log = get_run_logger()
    words = "{} of {} slides have ended, {} failed"
    artifact: Any = None
    with harmless(log, "progress"):
        artifact = create_progress_artifact(0.0, key="slidesam-cohort-progress", description=words.format(0, total, 0))
    said: set[tuple[str, str]] = set()

    def ended(rows: list[Row]) -> None:
        for row in rows:
            if (row.slide, row.state) not in said:
                what = f"{row.objects:,} objects" if row.objects is not None else row.error
                log.info("%s: %s%s", row.slide, row.state.lower(), f", {what}" if what else "")
                said.add((row.slide, row.state))
        if artifact is not None:
            with harmless(log, "progress"):
                failed = len(rows) - _counted(rows)
                update_progress_artifact(
                    artifact, 100.0 * len(rows) / total, description=words.format(len(rows), total, failed)
                )

    yield ended


def _counted(rows: Sequence[Row]) -> int:
    return sum(row.is_finished for row in rows)


def as_markdown(rows: Sequence[Row]) -> str:
    """The table of a cohort's slides, those that failed first.

    Args:
        rows: How each ended.
    """
    states = ", ".join(f"{number} {state.lower()}" for state, number in Counter(row.state for row in rows).items())
    cells = [
        (
            f"[{text(row.slide)}]({row.link})" if row.link else text(row.slide),
            row.state if row.is_finished else f"**{text(row.state)}**",
            "" if row.objects is None else f"{row.objects:,}",
            row.blocks,
            "" if row.seconds is None else f"{row.seconds:.1f}",
            text(in_one_line(row.error, _ERROR_LENGTH)),
        )
        for row in sorted(rows, key=lambda row: row.is_finished)
    ]
    head = ("slide", "state", "objects", "blocks", "seconds", "error")
    return f"# {len(rows)} slides: {states}\n\n{table(head, cells, 'llrrrl')}"
