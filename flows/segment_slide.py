"""One slide from file to OME-Zarr labels: the main flow and its stages.

    segment slide
    ├── plan                  which pixels, which blocks, what is there already; the run's lock
    ├── image                 child flow: convert or rechunk, piece by piece; or an overview only
    ├── segment blocks        child flow: prepare, then tasks of one or several blocks
    └── stitch and export     child flow: match seams, number objects, paint, export

The stages are child flows because they can need different machines: segmenting may want a GPU, the others never do.
"""

from __future__ import annotations

import contextlib
import re
import signal
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from prefect import Task, flow
from prefect.client.schemas.objects import State, TaskRun
from prefect.exceptions import TerminationSignal
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect_dask.task_runners import DaskTaskRunner

from slidesam.flows.cluster import Cluster, open_cluster, opened, ssh_line
from slidesam.flows.endings import add_tags, end_children
from slidesam.flows.in_flight import Batches, alone, checking, in_flight
from slidesam.flows.leftovers import end_leftovers
from slidesam.flows.profile import ProfileChoice, Stage
from slidesam.flows.progress import current, showing, stage, watching
from slidesam.flows.run_page import RunPage, show_failure, show_result
from slidesam.tasks import convert, steps, stitch
from slidesam.tasks.config import RunSettings, Settings
from slidesam.tasks.errors import (
    HOPELESS,
    BlockFailures,
    OutputError,
    SlideError,
    SlideGoneError,
    SlidesamError,
    in_one_line,
)
from slidesam.tasks.image_plan import PIECE_BYTES
from slidesam.tasks.lock import holder, locked
from slidesam.tasks.plan import explain, finished_facts, pieced_levels, plan_run
from slidesam.tasks.slide import slide_name
from slidesam.tasks.states import file_facts, note_finished, read_state, unchanged_since_refused, write_state
from slidesam.tasks.work import Run, batches, block_facts, is_segmented, jobs_folder, read_json, work_folder

Facts = dict[str, Any]
# Past so many blocks the graph in the UI can't be read, and Prefect's share of the time shows.
_SINGLE_BLOCKS, _MOST_PER_TASK = 256, 16
# So many failures without a success between them aren't the blocks' fault.
_HOPELESS_ROW = 24
# Levels of so few pieces are written along with the image's end.
_FEW_PIECES = 4
_WAIT_FOR_IMAGE = 7 * 86400.0
# As a form begins; Prefect makes settings of it.
_DEFAULTS: Any = {}
# By name, as a form shows it; Prefect makes the profile of it.
_LOCAL: Any = "local"


def run_name(slide: Path, settings: Settings) -> str:
    """Name of a slide's flow run: the slide, and what segments it."""
    segmenter = settings.segmenter
    model = getattr(segmenter, "model", "auto")
    return f"{slide_name(slide, settings.slide.name)} · {segmenter.kind}{'' if model == 'auto' else f' {model}'}"


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
    log = get_run_logger()
    name, own_id = slide_name(slide, settings.slide.name), uuid.UUID(flow_run.id)
    noted = partial(
        write_state,
        output,
        name,
        settings.output.label,
        slide_path=str(slide),
        flow_run_id=str(own_id),
        # So that `slidesam retry` knows what was asked for.
        settings=settings.model_dump(mode="json"),
        cluster=cluster.model_dump(mode="json"),
    )
    is_ours, run = False, None
    try:
        with RunPage(watching(), name, settings.output.label) as page, showing(page):
            _tag(name, settings)
            if flow_run.run_count > 1:
                _refuse_unchanged(read_state(output, name, settings.output.label), slide)
            run = plan_run(slide, output, settings)
            if (facts := finished_facts(run)) is not None:
                current().note(f"{run.name}: finished before with these settings, nothing to do")
                note_finished(run, facts)
                show_result(run, facts)
                return facts
            for warning in run.slide.warnings:
                log.warning("%s: %s", run.name, warning)
            noted = partial(noted, blocks=len(run.grid), segment_folder=run.segment_folder.name)
            owner = f'flow run "{flow_run.name}"'
            what = f"{run.name} ({run.label}) in {run.output}"
            with locked(run.work / "lock.json", owner, what=what, on_wait=current().note) as lock:
                # Before this run is noted: where it can't be done, the next has to know what there was.
                if (left := read_json(run.work / "state.json")) is not None:
                    end_leftovers(left, current().note, own_id)
                is_ours = True
                noted("running")
                for line in explain(run):
                    current().note(f"{run.name}: {line}")
                with open_cluster(cluster, jobs_folder(output)) as workers, checking(lock.check):
                    noted = partial(noted, jobs=workers.job_names)
                    noted("running")
                    facts = _stages(run, workers, owner, lock.check, noted)
                lock.check()
                noted("finished", objects=facts["objects"])
            show_result(run, facts)
            return facts
    except BaseException as error:
        # Where another run is at work, or one that was killed left jobs, what is noted is that one's.
        if is_ours or not _is_running(output, slide, settings):
            _note_end(noted, error, slide)
        if _AN_ENDING.search(str(error)) is None:
            show_failure(run, slide, error, output=output, name=name, label=settings.output.label)
        end_children(own_id, f'flow run "{flow_run.name}" ended: {in_one_line(error)}')
        _raise_ending(error)
        raise


def _tag(name: str, settings: Settings) -> None:
    """Tags this run with its slide and its model, by which the UI finds all runs of either."""
    segmenter = settings.segmenter
    add_tags(flow_run.id, [name, getattr(segmenter, "model", segmenter.kind)])


def _refuse_unchanged(state: dict[str, Any], slide: Path) -> None:
    """Doesn't try a slide again whose file was at fault and is as it was.

    Raises:
        SlideError: It is.
    """
    why = unchanged_since_refused(state, slide)
    if why is not None:
        again = "; not tried again, since the file hasn't changed"
        raise SlideError(f"{why.removesuffix(again)}{again}")


def _stages(run: Run, workers: Cluster, owner: str, check: Callable[[], None], noted: Callable[..., None]) -> Facts:
    """The three stages, one after the other, each on the workers that it needs."""
    seconds: dict[str, float] = {}

    def on(stage: Stage) -> Any:
        shown = set(workers.dashboards)
        runner = DaskTaskRunner(address=workers.workers(stage).address)
        for part, page in workers.dashboards.items():
            if part not in shown:
                noted("running", dashboards=workers.dashboards)
                current().note(f"{run.name}: Dask dashboard at {page} (from elsewhere: {ssh_line(page)})")
        return runner

    what = f"the image of {run.name} in {run.output}"
    with locked(run.slide_work / "lock.json", owner, what=what, wait=_WAIT_FOR_IMAGE, on_wait=current().note):
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


@flow(name="image", flow_run_name="image of {run.name}", persist_result=False, validate_parameters=False)
def write_image(run: Run) -> float:
    """Converts or rechunks the slide, or writes its overview only.

    Args:
        run: The run.

    Returns:
        Seconds of the stage's tasks.

    Raises:
        SlidesamError: A piece can't be read or written; all others that could be are done.
    """
    plan = run.image_plan
    seconds = float(_one(steps.ready_image, run)["seconds"])
    if plan.mode == "in place":
        return seconds
    levels = pieced_levels(run)
    parallel = [level for level in levels if level == 0 or len(plan.grid(level)) > _FEW_PIECES]
    for level in parallel:
        todo = convert.pieces_to_do(run, level)
        # Some seconds of work per task.
        size = max(1, PIECE_BYTES // plan.piece_bytes)
        verb = {"convert": "converting", "rechunk": "rechunking"}[plan.mode]
        step = steps.write_pieces.with_options(name=f"{plan.mode} pieces")
        name = verb if level == 0 else f"{verb}, level {level}"
        seconds += _in_jobs(name, step, run, list(batches(todo, size)), len(plan.grid(level)), level)
    rest = [level for level in levels if level not in parallel]
    return seconds + float(_one(steps.finish_image, run, rest)["seconds"])


@flow(
    name="segment blocks", flow_run_name="segment blocks of {run.name}", persist_result=False, validate_parameters=False
)
def segment_blocks(run: Run, block_ids: Sequence[int] | None = None) -> dict[str, float]:
    """Segments the blocks that have no done-mark, in tasks with retries.

    Args:
        run: The run.
        block_ids: Which blocks, in which order; by default all that hold tissue.

    Returns:
        Seconds of the stage's tasks, by name.

    Raises:
        BlockFailures: Some blocks failed after their retries; all others are done, unless very many failed in a row.
        OutputError: Results can't be written.
        SlideGoneError: The slide has changed or isn't there any more.
    """
    known = _one(steps.prepare_slide, run)
    kept = known["blocks"] if known["blocks"] is not None else range(len(run.grid))
    wanted = kept if block_ids is None else block_ids
    if len(kept) < len(run.grid):
        current().note(f"{run.name}: {len(kept)} of {len(run.grid)} blocks hold tissue")
    todo = [block_id for block_id in wanted if block_facts(run, block_id) is None]
    segment, go = with_retries(steps.segment_blocks, run.settings.run), uuid.uuid4().hex
    jobs = _batches(run, todo)
    failures: dict[int, str] = {}
    tried = in_a_row = 0
    with stage("segmenting blocks", len(wanted), len(wanted) - len(todo)) as progress:
        named = lambda ids: segment.with_options(task_run_name=blocks_name(run, ids)).submit(run, ids, go)  # noqa: E731
        with contextlib.closing(in_flight(jobs, named)) as ended:
            for ids, facts, error in ended:
                if isinstance(error, OutputError | SlideGoneError):
                    raise error
                failed = {} if error is None else _failed_blocks(run, ids, error)
                # A worker whose job ends leaves what it hasn't begun.
                left = facts["left"] if error is None else _untouched(run, ids, error)
                jobs.put_back(left)
                progress.advance(len(ids) - len(left))
                tried += len(ids) - len(left)
                if error is None:
                    jobs.learn(len(ids) - len(left), facts["seconds"])
                    in_a_row = 0
                    continue
                failures |= failed
                in_a_row = in_a_row + len(failed) if len(failed) == len(ids) else 0
                if in_a_row >= _HOPELESS_ROW:
                    break
    if failures:
        raise BlockFailures(run.name, failures, len(kept), untried=len(todo) - tried)
    spent = sum((block_facts(run, block_id) or {}).get("seconds", 0.0) for block_id in wanted)
    return {"prepare": known["seconds"], "segment": spent}


def _batches(run: Run, todo: Sequence[int]) -> Batches:
    """The blocks of each task: one, unless there are very many."""
    wanted = run.settings.blocks.blocks_per_task
    if wanted != "auto":
        return Batches(todo, wanted, wanted)
    size = max(1, min(-(-len(todo) // _SINGLE_BLOCKS), _MOST_PER_TASK))
    cluster = opened()
    return Batches(todo, size, _MOST_PER_TASK if size > 1 else 1, cluster.most_workers if cluster is not None else None)


def _untouched(run: Run, ids: Sequence[int], error: Exception) -> list[int]:
    """Blocks of a task with failures that neither failed nor are done."""
    if not isinstance(error, BlockFailures):
        return []
    return [block_id for block_id in ids if block_id not in error.failures and block_facts(run, block_id) is None]


def _failed_blocks(run: Run, ids: Sequence[int], error: Exception) -> dict[int, str]:
    """Which blocks of a task failed, and why."""
    if isinstance(error, BlockFailures):
        return error.failures
    return {block_id: in_one_line(error) for block_id in ids if block_facts(run, block_id) is None}


@flow(
    name="stitch and export",
    flow_run_name="stitch and export {run.name}",
    persist_result=False,
    validate_parameters=False,
)
def stitch_and_export(run: Run, seconds: dict[str, float]) -> Facts:
    """Matches at seams, one numbering, the label pyramid, then all that people look at.

    Args:
        run: A run whose blocks are all segmented.
        seconds: Of the stages before, for the provenance.

    Returns:
        The provenance.
    """
    groups = stitch.groups(run)
    seconds = dict(seconds)
    todo = [group for group in groups if not stitch.is_compared(run, group)]
    seconds["match"] = _in_jobs("matching seams", steps.match_blocks, run, todo, len(run.grid))
    resolved = _one(steps.resolve_objects, run)
    seconds["resolve"] = resolved["seconds"]
    for warning in resolved["warnings"]:
        get_run_logger().warning("%s: %s", run.name, warning)
        current().note(f"{run.name}: {warning}")
    todo = [group for group in groups if not stitch.is_painted(run, group)]
    seconds["paint"] = _in_jobs("painting labels", steps.paint_blocks, run, todo, len(run.grid))
    objects = resolved["objects"]
    facts: Facts = _one(steps.export_slide, run, objects, seconds)
    get_run_logger().info("%s: %d objects, in %s", run.name, objects, run.store)
    return facts


def _one(step: Task[..., Facts], run: Run, *arguments: Any) -> Facts:
    """Runs a step that is one task."""
    step = with_retries(step, run.settings.run)
    facts: Facts = alone(lambda: step.submit(run, *arguments))
    return facts


def _in_jobs(
    name: str, step: Task[..., Facts], run: Run, jobs: Sequence[tuple[int, ...]], total: int, *arguments: Any
) -> float:
    """Runs a step over groups of blocks or pieces, a task each; its tasks' seconds added up.

    All that can be done is done before the first error is raised, except where no other could fare better.
    """
    step = with_retries(step, run.settings.run)
    seconds, failed = 0.0, []
    with stage(name, total, total - sum(map(len, jobs))) as progress:
        submit = lambda job: step.submit(run, *arguments, job)  # noqa: E731
        with contextlib.closing(in_flight(jobs, submit)) as ended:
            for job, facts, error in ended:
                progress.advance(len(job))
                if error is None:
                    seconds += facts["seconds"]
                    continue
                failed.append(error)
                if isinstance(error, OutputError | SlideGoneError) or len(failed) >= _HOPELESS_ROW:
                    raise error
    if failed:
        raise failed[0]
    return seconds


def with_retries(step: Task[..., Facts], settings: RunSettings) -> Task[..., Facts]:
    """The task with the settings' retries."""
    return step.with_options(
        retries=settings.retries,
        retry_delay_seconds=settings.retry_delay,
        retry_jitter_factor=settings.retry_jitter,
        retry_condition_fn=worth_a_retry,
    )


def worth_a_retry(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Whether trying again can help: not where the settings or the segmenter itself are wrong."""
    error = state.result(raise_on_failure=False)
    return not (isinstance(error, HOPELESS) or (isinstance(error, BlockFailures) and error.hopeless))


def blocks_name(run: Run, block_ids: Sequence[int]) -> str:
    """A task's name in the UI: the block and its place in the grid, or the first and last of several."""
    row, column = run.grid[block_ids[0]].block_index
    if len(block_ids) == 1:
        return f"block {block_ids[0]} (row {row}, column {column})"
    return f"blocks {block_ids[0]} to {block_ids[-1]} ({len(block_ids)}, from row {row}, column {column})"


def _is_running(output: Path, slide: Path, settings: Settings) -> bool:
    """Whether a run of this result is noted as running."""
    work = work_folder(output, slide_name(slide, settings.slide.name), settings.output.label)
    with contextlib.suppress(OSError):
        return (read_json(work / "state.json") or {}).get("status") == "running" or holder(
            work / "lock.json"
        ) is not None
    return False


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


def _note_end(noted: Callable[..., None], error: BaseException, slide: Path) -> None:
    """Leaves a word for `slidesam status`; where even that can't be written the error itself says enough."""
    stopped = not isinstance(error, Exception) or _AN_ENDING.search(str(error)) is not None
    at_fault = isinstance(error, SlideError) and not isinstance(error, SlideGoneError)
    with contextlib.suppress(SlidesamError, OSError):
        if stopped:
            noted("stopped")
        else:
            noted("failed", error=in_one_line(error), file=file_facts(slide) if at_fault else None)
