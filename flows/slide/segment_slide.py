"""One slide from file to OME-Zarr labels: the main flow and its stages.

    segment slide
    ├── plan                  which pixels, which blocks, what is there already; the run's lock
    ├── image                 child flow: convert or rechunk, tile by tile; or an overview only
    ├── segment blocks        child flow: prepare, then tasks of one or several blocks
    └── stitch and export     child flow: match seams, number objects, paint, export

The stages are child flows because they can need different machines: segmenting may want a GPU, the others never do.
"""

from __future__ import annotations

import contextlib
import re
import signal
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.exceptions import TerminationSignal
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect_dask.task_runners import DaskTaskRunner

from slidesam.flows.cluster.cluster import Cluster, open_cluster, ssh_line
from slidesam.flows.cluster.find_profile import ProfileChoice
from slidesam.flows.cluster.profile import Stage
from slidesam.flows.prefect_api.deployed import refuse_relative
from slidesam.flows.prefect_api.endings import add_tags, end_children
from slidesam.flows.prefect_api.leftovers import end_leftovers
from slidesam.flows.progress.reporters import current, showing, watching
from slidesam.flows.progress.run_page import RunPage, show_failure, show_result
from slidesam.flows.slide.in_flight import checking
from slidesam.flows.slide.stages import segment_blocks, stitch_and_export, write_image
from slidesam.tasks.errors import (
    SlideAwayError,
    SlideError,
    SlideGoneError,
    SlidesamError,
    in_one_line,
)
from slidesam.tasks.plan import explain, plan_run
from slidesam.tasks.report.provenance import finished_facts
from slidesam.tasks.run.files import read_json
from slidesam.tasks.run.layout import RunPaths, jobs_folder
from slidesam.tasks.run.lock import holder, locked
from slidesam.tasks.run.marks import is_segmented
from slidesam.tasks.run.run import Run
from slidesam.tasks.run.status import file_facts, note_finished, read_state, unchanged_since_refused, write_state
from slidesam.tasks.settings.sections import Settings
from slidesam.tasks.slides.facts import slide_name
from slidesam.tasks.store import convert

Facts = dict[str, Any]
_WAIT_FOR_IMAGE = 7 * 86400.0
# As a form begins; Prefect makes settings of it.
_DEFAULTS: Any = {}
# By name, as a form shows it; Prefect makes the profile of it.
_LOCAL: Any = "local"


def run_name(slide: Path, settings: Settings) -> str:
    """Name of a slide's flow run: the slide, and what segments it."""
    segmenter = settings.segmenter
    model = _model(segmenter)
    return (
        f"{slide_name(slide, settings.slide.name)} · {segmenter.kind}{'' if model in (None, 'auto') else f' {model}'}"
    )


def _model(segmenter: object) -> str | None:
    """A registry's name, or the name of one's own file."""
    model = getattr(segmenter, "model", None)
    return None if model is None else Path(model).name


def _run_name() -> str:
    parameters = flow_run.parameters
    return run_name(Path(parameters["slide"]), Settings.model_validate(parameters["settings"]))


@flow(name="segment slide", flow_run_name=_run_name, persist_result=False)
def segment_slide(slide: Path, output: Path, settings: Settings = _DEFAULTS, cluster: ProfileChoice = _LOCAL) -> Facts:
    """Segments one slide; what is there from an earlier call under the same settings is used, not done again.

    Args:
        slide: Slide file or OME-Zarr folder, as the machines that compute see it.
        output: Folder for the results.
        settings: What to compute; all have defaults.
        cluster: Where to compute it: the name of a cluster profile, or its file.

    Returns:
        The provenance, as in `<name>.<label>.run.json`.

    Raises:
        SlidesamError: The slide, a setting or the output is of no use, blocks failed after all retries, or another run is at
            work on the same result.
    """
    going = _Going(slide, output, settings, cluster)
    try:
        with RunPage(watching(), going.name, going.label) as page, showing(page):
            return going.facts()
    except BaseException as error:
        going.has_ended(error)
        _raise_ending(error)
        raise


class _Going:
    """One go at a slide: what is known of it so far, and what `slidesam status` and the UI are told.

    Args:
        slide: See `segment_slide`.
        output: See `segment_slide`.
        settings: See `segment_slide`.
        cluster: See `segment_slide`.
    """

    def __init__(self, slide: Path, output: Path, settings: Settings, cluster: ProfileChoice) -> None:
        self.slide, self.output, self.settings, self.cluster = slide, output, settings, cluster
        self.name, self.label = slide_name(slide, settings.slide.name), settings.output.label
        self.own_id = uuid.UUID(flow_run.id)
        self.run: Run | None = None
        self.is_ours = False
        # So that `slidesam retry` knows what was asked for, from whichever folder.
        self._known: Facts = {
            "slide_path": str(slide.absolute()),
            "flow_run_id": str(self.own_id),
            "settings": settings.model_dump(mode="json"),
            "cluster": cluster.model_dump(mode="json"),
        }

    def noted(self, status: str, **facts: Any) -> None:
        """Notes how it stands, with all that is known."""
        write_state(self.output, self.name, self.label, status, **self._known, **facts)

    def knows(self, **facts: Any) -> None:
        """Adds to what is known, and notes that it is running."""
        self._known |= facts
        self.noted("running")

    def facts(self) -> Facts:
        """Runs the slide, or finds that it is finished."""
        refuse_relative(self.settings, slide=self.slide, output=self.output)
        _tag(self.name, self.settings)
        if flow_run.run_count > 1:
            _refuse_unchanged(read_state(self.output, self.name, self.label), self.slide)
        run = self.run = plan_run(self.slide, self.output, self.settings)
        if (facts := finished_facts(run)) is not None:
            current().note(f"{run.name}: finished before with these settings, nothing to do")
            note_finished(run, facts)
        else:
            for warning in run.slide.warnings:
                get_run_logger().warning("%s: %s", run.name, warning)
            facts = self._computed(run)
        show_result(run, facts)
        return facts

    def _computed(self, run: Run) -> Facts:
        owner = f'flow run "{flow_run.name}"'
        what = f"{run.name} ({run.label}) in {run.output}"
        with locked(run.paths.lock, owner, target=what, on_wait=current().note) as lock:
            # Before this run is noted: where it can't be done, the next has to know what there was.
            if (left := read_json(run.paths.state)) is not None:
                end_leftovers(left, current().note, self.own_id)
            self.is_ours = True
            self.knows(blocks=len(run.grid), segment_folder=run.segment_folder.path.name)
            for line in explain(run):
                current().note(f"{run.name}: {line}")
            with open_cluster(self.cluster, jobs_folder(self.output)) as workers, checking(lock.check):
                self.knows(jobs=workers.job_names)
                facts = _stages(run, workers, owner, lock.check, self.knows)
            lock.check()
            self.noted("finished", objects=facts["objects"])
        return facts

    def has_ended(self, error: BaseException) -> None:
        """Tells all who look that it has ended, and how."""
        # Where another run is at work, or one that was killed left jobs, what is noted is that one's.
        if self.is_ours or not self._is_anothers():
            self._note_end(error)
        if _AN_ENDING.search(str(error)) is None:
            show_failure(self.run, self.slide, error, output=self.output, name=self.name, label=self.label)
        # Where another process of this very run is at work, they are that one's.
        if self.is_ours or not self._is_held():
            end_children(self.own_id, f'flow run "{flow_run.name}" ended: {in_one_line(error)}')

    def _is_anothers(self) -> bool:
        """Whether a run of this result is noted as running."""
        with contextlib.suppress(OSError):
            return read_state(self.output, self.name, self.label).get("status") == "running" or self._is_held()
        return False

    def _is_held(self) -> bool:
        """Whether a process is at work on this result."""
        with contextlib.suppress(OSError):
            return holder(RunPaths(self.output, self.name, self.label).lock) is not None
        return False

    def _note_end(self, error: BaseException) -> None:
        """Leaves a word for `slidesam status`; where even that can't be written the error itself says enough."""
        stopped = not isinstance(error, Exception) or _AN_ENDING.search(str(error)) is not None
        at_fault = isinstance(error, SlideError) and not isinstance(error, SlideGoneError | SlideAwayError)
        with contextlib.suppress(SlidesamError, OSError):
            if stopped:
                self.noted("stopped")
            else:
                self.noted("failed", error=in_one_line(error), file=file_facts(self.slide) if at_fault else None)


def _tag(name: str, settings: Settings) -> None:
    """Tags this run with its slide and its model, by which the UI finds all runs of either."""
    segmenter = settings.segmenter
    add_tags(flow_run.id, [name, _model(segmenter) or segmenter.kind])


def _refuse_unchanged(state: dict[str, Any], slide: Path) -> None:
    """Doesn't try a slide again whose file was at fault and is as it was.

    Raises:
        SlideError: It is.
    """
    why = unchanged_since_refused(state, slide)
    if why is not None:
        again = "; not tried again, since the file hasn't changed"
        raise SlideError(f"{why.removesuffix(again)}{again}")


def _stages(run: Run, workers: Cluster, owner: str, check: Callable[[], None], knows: Callable[..., None]) -> Facts:
    """The three stages, one after the other, each on the workers that it needs."""
    seconds: dict[str, float] = {}

    def on(stage: Stage) -> Any:
        shown = set(workers.dashboards)
        runner = DaskTaskRunner(address=workers.workers(stage).address)
        for part, page in workers.dashboards.items():
            if part not in shown:
                knows(dashboards=workers.dashboards)
                current().note(f"{run.name}: Dask dashboard at {page} (from elsewhere: {ssh_line(page)})")
        return runner

    what = f"the image of {run.name} in {run.output}"
    with locked(run.paths.image.lock, owner, target=what, wait=_WAIT_FOR_IMAGE, on_wait=current().note):
        # Asked here, and not before: another label's run may be at it, or `clean` may just remove it.
        if not convert.is_ready(run):
            seconds["image"] = write_image.with_options(task_runner=on("cpu"))(run)
    check()
    # Nobody needs a GPU to see that there is nothing left to segment.
    try:
        seconds |= segment_blocks.with_options(task_runner=on("cpu" if is_segmented(run) else "gpu"))(run)
    finally:
        workers.give_back("gpu")
    check()
    return stitch_and_export.with_options(task_runner=on("cpu"))(run, seconds)


# How a signal that was raised inside a library's callback ends that library's error: Ctrl-C, or SIGTERM as Prefect has it.
_AN_ENDING = re.compile(r"\b(KeyboardInterrupt|TerminationSignal)(: )?$")


def _raise_ending(error: BaseException) -> None:
    """Makes a signal of a library's error that is one, so that the run is shown as stopped, not as failed.

    Raises:
        KeyboardInterrupt: It was Ctrl-C.
        TerminationSignal: It was SIGTERM.
    """
    found = _AN_ENDING.search(str(error)) if isinstance(error, Exception) else None
    if found is not None:
        raise (KeyboardInterrupt if found[1] == "KeyboardInterrupt" else TerminationSignal(signal.SIGTERM)) from error
