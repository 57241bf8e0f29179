"""One slide from file to OME-Zarr labels: the main flow and its two stages.

    segment slide
    ├── plan                  which blocks, which fingerprints, what is there already
    ├── segment blocks        child flow: prepare, then one task per block
    └── stitch and export     child flow: match seams, number objects, paint, export

The stages are child flows because they can need different machines: segmenting may want a GPU, stitching never does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from prefect import Task, flow
from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import PrefectFuture, as_completed
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect_dask.task_runners import DaskTaskRunner

from slidesam.flows.cluster import LocalProfile, open_cluster
from slidesam.flows.progress import stage
from slidesam.tasks import steps
from slidesam.tasks.config import RunSettings, Settings
from slidesam.tasks.errors import BlockFailures, SegmenterError, SettingsError, SlidesamError, in_one_line
from slidesam.tasks.plan import finished_facts, note_finished, plan_run, write_state
from slidesam.tasks.slide import slide_name
from slidesam.tasks.work import Run, batches, block_facts

Facts = dict[str, Any]
# Stitching takes milliseconds per block: a task takes several, so that Prefect's tenth of a second per task stays small.
_STITCH_TASKS, _STITCH_BLOCKS = 64, 4
_DEFAULTS, _LOCAL = Settings(), LocalProfile()


def _run_name() -> str:
    parameters = flow_run.parameters
    return f"{slide_name(Path(parameters['slide']))} · {parameters['settings'].segmenter.kind}"


@flow(name="segment slide", flow_run_name=_run_name, persist_result=False)
def segment_slide(slide: Path, output: Path, settings: Settings = _DEFAULTS, cluster: LocalProfile = _LOCAL) -> Facts:
    """Segments one slide; what is there from an earlier call under the same settings is used, not done again.

    Args:
        slide: Slide file or OME-Zarr folder.
        output: Folder for the results.
        settings: What to compute.
        cluster: Where to compute it.

    Returns:
        The provenance, as in `<name>.<label>.run.json`.

    Raises:
        SlidesamError: The slide, a setting or the output is of no use, or blocks failed after all retries.
    """
    log = get_run_logger()
    noted = partial(write_state, output, slide_name(slide), settings.output.label, slide_path=str(slide))
    try:
        run = plan_run(slide, output, settings)
        if (facts := finished_facts(run)) is not None:
            log.info("%s: finished before with these settings, nothing to do", run.name)
            note_finished(run, facts)
            return facts
        for warning in run.slide.warnings:
            log.warning("%s: %s", run.name, warning)
        noted = partial(noted, blocks=len(run.grid), segment_folder=run.segment_folder.name)
        noted("running")
        with open_cluster(cluster) as workers:
            on_workers: Any = DaskTaskRunner(address=workers.address)
            log.info("%s: %d blocks; Dask dashboard at %s", run.name, len(run.grid), workers.dashboard)
            seconds = segment_blocks.with_options(task_runner=on_workers)(run)
            facts = stitch_and_export.with_options(task_runner=on_workers)(run, seconds)
        noted("finished", objects=facts["objects"])
        return facts
    except BaseException as error:
        _note_end(noted, error)
        raise


@flow(
    name="segment blocks", flow_run_name="segment blocks of {run.name}", persist_result=False, validate_parameters=False
)
def segment_blocks(run: Run, block_ids: Sequence[int] | None = None) -> dict[str, float]:
    """Segments the blocks that have no done-mark, each as a task with retries.

    Args:
        run: The run.
        block_ids: Which blocks, in which order; all by default.

    Returns:
        Seconds of the stage's tasks, by name.

    Raises:
        BlockFailures: Some blocks failed after their retries; all others are done.
    """
    prepared = with_retries(steps.prepare_slide, run.settings.run).submit(run).result()
    wanted = range(len(run.grid)) if block_ids is None else block_ids
    todo = [block_id for block_id in wanted if block_facts(run, block_id) is None]
    segment = with_retries(steps.segment_block, run.settings.run)
    futures: dict[PrefectFuture[Any], int] = {}
    failures: dict[int, str] = {}
    with stage("segmenting blocks", len(run.grid), len(run.grid) - len(todo)) as progress, cancelled_on_error(futures):
        for block in todo:
            futures[segment.with_options(task_run_name=block_name(run, block)).submit(run, block)] = block
        for future in as_completed(list(futures)):
            error = failure_of(future)
            if error is not None:
                failures[futures[future]] = in_one_line(error)
            progress.advance()
    if failures:
        raise BlockFailures(run.name, failures, len(run.grid))
    spent = sum((block_facts(run, block_id) or {}).get("seconds", 0.0) for block_id in wanted)
    return {"prepare": prepared["seconds"], "segment": spent}


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
    blocks = range(len(run.grid))
    size = max(_STITCH_BLOCKS, -(-len(blocks) // _STITCH_TASKS))
    seconds = dict(seconds)
    seconds["match"] = _in_batches("matching seams", steps.match_blocks, run, blocks, size)
    objects = with_retries(steps.resolve_objects, run.settings.run).submit(run).result()["objects"]
    seconds["paint"] = _in_batches("painting labels", steps.paint_blocks, run, blocks, size)
    facts: Facts = with_retries(steps.export_slide, run.settings.run).submit(run, objects, seconds).result()
    get_run_logger().info("%s: %d objects, in %s", run.name, objects, run.store)
    return facts


def _in_batches(name: str, step: Task[..., Facts], run: Run, blocks: Sequence[int], size: int) -> float:
    """Runs a stitching step over all blocks, several per task; its tasks' seconds added up."""
    step = with_retries(step, run.settings.run)
    futures: dict[PrefectFuture[Facts], int] = {}
    seconds = 0.0
    with stage(name, len(blocks)) as progress, cancelled_on_error(futures):
        for batch in batches(blocks, size):
            futures[step.submit(run, batch)] = len(batch)
        for future in as_completed(list(futures)):
            seconds += future.result()["seconds"]
            progress.advance(futures[future])
    return seconds


@contextlib.contextmanager
def cancelled_on_error(futures: Mapping[PrefectFuture[Any], int]) -> Iterator[None]:
    """Takes the tasks that still wait off the cluster when the code inside is stopped: Prefect would see them through."""
    try:
        yield
    except BaseException:
        for future in futures:
            future.wrapped_future.cancel()  # type: ignore[attr-defined]
        raise


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
    return not isinstance(error, SettingsError | SegmenterError)


def failure_of(future: PrefectFuture[Any]) -> Exception | None:
    """What a finished task raised, or None; whatever it raised, the other blocks go on."""
    try:
        future.result()
    except Exception as error:  # noqa: BLE001
        return error
    return None


def block_name(run: Run, block_id: int) -> str:
    """A block's task in the UI: its id, and its place in the grid."""
    row, column = run.grid[block_id].block_index
    return f"block {block_id} (row {row}, column {column})"


def _note_end(noted: Callable[..., None], error: BaseException) -> None:
    """Leaves a word for `slidesam status`; where even that can't be written the error itself says enough."""
    # Raised inside a library's callback, Ctrl-C comes back as an error of that library.
    stopped = not isinstance(error, Exception) or str(error).endswith("KeyboardInterrupt: ")
    with contextlib.suppress(SlidesamError, OSError):
        noted("stopped") if stopped else noted("failed", error=in_one_line(error))
