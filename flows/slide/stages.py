"""The stages of a slide as child flows, each on workers of its own: image, segmenting, stitching and export."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Sequence
from typing import Any

from prefect import Task, flow
from prefect.client.schemas.objects import State, TaskRun
from prefect.logging import get_run_logger

from slidesam.flows.cluster.cluster import opened
from slidesam.flows.progress.reporters import current, stage
from slidesam.flows.slide.batches import Batches
from slidesam.flows.slide.in_flight import alone, in_flight
from slidesam.tasks import steps
from slidesam.tasks.errors import BlockFailure, BlockFailures
from slidesam.tasks.pixels.plan import PIECE_BYTES
from slidesam.tasks.plan import pieced_levels
from slidesam.tasks.retry import Action, decide
from slidesam.tasks.run.marks import block_facts
from slidesam.tasks.run.run import Run, batches
from slidesam.tasks.settings.sections import RunSettings
from slidesam.tasks.stitch import groups as stitch
from slidesam.tasks.store import convert

Facts = dict[str, Any]
# Past so many blocks the graph in the UI can't be read, and Prefect's share of the time shows.
_SINGLE_BLOCKS, _MOST_PER_TASK = 256, 16
# Levels of so few pieces are written along with the image's end.
_FEW_PIECES = 4


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
    failures: dict[int, BlockFailure] = {}
    tried = in_a_row = 0
    with stage("segmenting blocks", len(wanted), len(wanted) - len(todo)) as progress:
        named = lambda ids: segment.with_options(task_run_name=blocks_name(run, ids)).submit(run, ids, go)  # noqa: E731
        with contextlib.closing(in_flight(jobs, named)) as ended:
            for ids, facts, error in ended:
                if error is not None and decide(error) is Action.STOP:
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
                if decide(error, failures=in_a_row) is Action.STOP:
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


def _failed_blocks(run: Run, ids: Sequence[int], error: Exception) -> dict[int, BlockFailure]:
    """Which blocks of a task failed, and why."""
    if isinstance(error, BlockFailures):
        return error.failures
    return {block_id: BlockFailure.of(error) for block_id in ids if block_facts(run, block_id) is None}


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
                if decide(error, failures=len(failed)) is Action.STOP:
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
    return isinstance(error, Exception) and decide(error, attempts_left=1) is Action.RETRY


def blocks_name(run: Run, block_ids: Sequence[int]) -> str:
    """A task's name in the UI: the block and its place in the grid, or the first and last of several."""
    row, column = run.grid[block_ids[0]].block_index
    if len(block_ids) == 1:
        return f"block {block_ids[0]} (row {row}, column {column})"
    return f"blocks {block_ids[0]} to {block_ids[-1]} ({len(block_ids)}, from row {row}, column {column})"
