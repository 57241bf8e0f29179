"""One slide from file to OME-Zarr labels: the main flow.

    segment slide
    ├── plan                  which pixels, which blocks, which results exist; the run's lock
    ├── image                 child flow: convert or rechunk, tile by tile; or an overview only
    ├── segment blocks        child flow: prepare, then tasks of one or several blocks
    ├── stitch and export     child flow: match seams, number objects, paint, export
    └── objects               child flow: table and outlines of the objects

The stages are child flows because they can need different machines: segmenting may want a GPU, the others never do. A slide of
few blocks has their tasks in its own flow.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.runtime import flow_run

from slidesam.flows.cluster.cluster import open_cluster
from slidesam.flows.cluster.find_profile import ProfileChoice
from slidesam.flows.cluster.profile import Stage
from slidesam.flows.cluster.task_runner import SharedTaskRunner
from slidesam.flows.prefect_api.deployed import refuse_foreign, refuse_relative
from slidesam.flows.prefect_api.endings import add_tags
from slidesam.flows.prefect_api.leftovers import end_leftovers, remove_dead_files
from slidesam.flows.progress.run_page import RunPage, show_result
from slidesam.flows.run_log import run_log
from slidesam.flows.slide.memory_growth import segment_growing
from slidesam.flows.slide.order import repeat_if_damaged
from slidesam.flows.slide.run_status import RunStatus
from slidesam.flows.slide.session import Session
from slidesam.flows.slide.stages import image_stage, objects_stage, run_stage, stitch_stage
from slidesam.tasks.errors import SettingsError, SlideUnchangedError
from slidesam.tasks.export.files import missing_formats
from slidesam.tasks.plan import explain, plan_run
from slidesam.tasks.report.provenance import read_finished
from slidesam.tasks.run.layout import jobs_folder
from slidesam.tasks.run.lock import LockedError, locked
from slidesam.tasks.run.marks import is_segmented
from slidesam.tasks.run.records import Provenance, State
from slidesam.tasks.run.run import Run
from slidesam.tasks.run.status import find_refusal, read_state, record_finished
from slidesam.tasks.settings.sections import Settings
from slidesam.tasks.settings.types import PastedPath, clean_path
from slidesam.tasks.slides.facts import slide_name
from slidesam.tasks.slides.listing import Listed
from slidesam.tasks.store import convert
from slidesam.tasks.store.verify import heal_image, heal_labels

_WAIT_FOR_IMAGE = 7 * 86400.0
# What a form shows at first; Prefect makes settings of it.
_DEFAULTS: Any = {}
# The profile's name, which a form shows; Prefect makes the profile of it.
_LOCAL: Any = "local"


def run_name(slide: Path, settings: Settings) -> str:
    """Return the name of a slide's flow run: the slide, and what segments it."""
    segmenter = settings.segmenter
    model = _model(segmenter)
    return (
        f"{slide_name(slide, settings.slide.name)} · {segmenter.kind}{'' if model in (None, 'auto') else f' {model}'}"
    )


def _model(segmenter: object) -> str | None:
    """Return the model's name in its registry, or the name of its file."""
    model = getattr(segmenter, "model", None)
    return None if model is None else Path(model).name


def _run_name() -> str:
    parameters = flow_run.parameters
    return run_name(Path(clean_path(str(parameters["slide"]))), Settings.model_validate(parameters["settings"]))


@flow(name="segment slide", flow_run_name=_run_name, persist_result=False)
def segment_slide(
    slide: PastedPath, output: PastedPath, settings: Settings = _DEFAULTS, cluster: ProfileChoice = _LOCAL
) -> Provenance:
    """Segment one slide. Results that exist from an earlier run with the same settings are used again.

    Args:
        slide: Slide file or OME-Zarr folder, as the machines that compute see it.
        output: Folder for the results.
        settings: What to compute; all have defaults.
        cluster: Where to compute it: the name of a cluster profile, or the file of one that the site keeps.

    Returns:
        The provenance, as in `<name>.<label>.run.json`.

    Raises:
        SlidesamError: The slide, a setting or the output can't be used, blocks failed after all retries, or another run
            computes the same result.
    """
    refuse_foreign(cluster)
    with open_cluster(cluster, jobs_folder(output)) as workers:
        return _segment(slide, output, settings, Session(cluster=workers))


@flow(name="segment slide", flow_run_name=_run_name, persist_result=False, validate_parameters=False)
def segment_slide_in(session: Session, slide: Path, output: Path, settings: Settings) -> Provenance:
    """Segment one slide on workers of the caller's, as `segment_slide` does.

    Args:
        session: The workers, and who shows progress.
        slide: See `segment_slide`.
        output: See `segment_slide`.
        settings: See `segment_slide`.
    """
    return _segment(slide, output, settings, session)


def segment_listed(session: Session, slide: Listed, output: Path) -> Provenance:
    """Segment a slide of a list.

    Args:
        session: The workers, and who shows progress.
        slide: The slide, with its settings.
        output: Folder for the results.

    Raises:
        SettingsError: Its settings in the list can't be used.
        SlidesamError: See `segment_slide`.
    """
    if slide.error is not None:
        raise SettingsError(slide.error)
    return segment_slide_in(session, slide.path, output, slide.settings)


def _segment(slide: Path, output: Path, settings: Settings, session: Session) -> Provenance:
    status = RunStatus(slide, output, settings, session.cluster.profile)
    with status.recorded(), RunPage(session.reporter, status.name, status.label) as page:
        refuse_relative(settings, slide=slide, output=output)
        # By its tags the UI finds all runs of a slide or of a model.
        add_tags(flow_run.id, [status.name, _model(settings.segmenter) or settings.segmenter.kind])
        if flow_run.run_count > 1:
            _refuse_unchanged(read_state(output, status.name, status.label), slide)
        run = status.run = plan_run(slide, output, settings, session.allowed)
        facts = read_finished(run)
        if facts is None or missing_formats(run):
            for warning in run.slide.warnings:
                run_log().warning("%s: %s", run.name, warning)
            facts = _compute(run, session.model_copy(update={"reporter": page}), status, facts)
        else:
            page.inform(f"{run.name}: finished before with these settings, nothing to do")
            _remove_remains(run)
            record_finished(run, facts)
        show_result(run, facts, status.notes)
        return facts


def _remove_remains(run: Run) -> None:
    """Remove what is left of a run that was killed when its work was done: nothing that would replace it is started here."""
    remove_dead_files(run.output)
    if run.paths.lock.exists():
        # The lock of a killed process is taken over, and then given back.
        with suppress(LockedError), locked(run.paths.lock, _owner(), target=_target(run)):
            pass


def _owner() -> str:
    return f'flow run "{flow_run.name}"'


def _target(run: Run) -> str:
    return f"{run.name} ({run.label}) in {run.output}"


def _refuse_unchanged(state: State, slide: Path) -> None:
    """Refuse a second attempt at a slide whose file was at fault and hasn't changed.

    Raises:
        SlideUnchangedError: It is such a slide.
    """
    reason = find_refusal(state, slide)
    if reason is not None:
        raise SlideUnchangedError(reason)


def _compute(run: Run, session: Session, status: RunStatus, finished: Provenance | None) -> Provenance:
    """Compute what a run lacks under its lock, after everything that a killed run of this result left is ended."""
    inform, owner = session.reporter.inform, _owner()
    with locked(run.paths.lock, owner, target=_target(run), on_wait=inform) as lock:
        # Before the state is written: if this fails, the next run has to find the state of the killed one.
        if (state := State.read(run.paths.state)) is not None:
            end_leftovers(state, run.output, inform, status.flow_run_id)
        status.start(run)
        for line in explain(run) if finished is None else ["its labels are finished, files of its objects are missing"]:
            inform(f"{run.name}: {line}")
        try:
            status.update(jobs=session.cluster.job_names)
            provenance = _run_stages(run, session.model_copy(update={"check": lock.check}), status, owner, finished)
        finally:
            if not session.is_cluster_shared:
                session.cluster.close()
        lock.check()
        status.finish(provenance)
    return provenance


def _run_stages(run: Run, session: Session, status: RunStatus, owner: str, finished: Provenance | None) -> Provenance:
    """Run the stages that aren't finished, one after the other, each on the workers that it needs."""
    cluster, seconds = session.cluster, dict[str, float]()

    def on(stage: Stage, step: int = 0) -> SharedTaskRunner:
        earlier_pools = set(cluster.dashboards)
        runner = cluster.workers(stage, step).task_runner()
        for pool, page in cluster.dashboards.items():
            if pool not in earlier_pools:
                status.update(dashboards=cluster.dashboards)
                inform(f"{run.name}: Dask dashboard at {page}: `slidesam status {run.output}` shows the link")
        return runner

    inform = session.reporter.inform

    def compute() -> Provenance:
        was_finished = read_finished(run) is not None
        target = f"the image of {run.name} in {run.output}"
        with locked(run.paths.image.lock, owner, target=target, wait=_WAIT_FOR_IMAGE, on_wait=inform):
            for line in heal_image(run):
                inform(f"{run.name}: {line}")
            # Checked under the lock: a run of another label may write the image, or `clean` may remove it.
            if not convert.is_ready(run):
                seconds["image"] = run_stage(image_stage, on("cpu"), run, session)
        session.check()
        for line in heal_labels(run):
            inform(f"{run.name}: {line}")
        if not was_finished and (finished := read_finished(run)) is not None:
            # Only the image, or metadata, was damaged.
            return finished
        # If all blocks are segmented, no GPU is needed to find that out.
        try:
            segmenting: Stage = "cpu" if is_segmented(run) else "gpu"
            block_seconds = segment_growing(run, session, partial(on, segmenting), status.note)
        finally:
            cluster.end_pool("gpu")
        session.check()
        provenance: Provenance = run_stage(stitch_stage, on("cpu"), run, session, seconds | block_seconds)
        return provenance

    provenance = finished or repeat_if_damaged(compute, inform)
    session.check()
    if missing_formats(run):
        run_stage(objects_stage, on("cpu"), run, session)
    return provenance
