"""The order of a slide's steps, whoever executes them: what runs on what, in which batches, and which errors end a stage.

    write_image          ready image, tiles of each level, the last levels with the image's metadata; one task if level 0 is one
    segment_missing_blocks  prepare, then batches of blocks that have no done-mark
    stitch_and_export    batches compared, objects numbered, batches painted, export, verified
    export_objects       each object measured and outlined, tile by tile; then a file of each format

An `Executor` runs the steps: tasks of a flow (`stages`), this process or a Dask client (`slidesam.executors`). Retries are its
business; what a failed batch means for its stage is decided here.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from prefect import Task

from slidesam.flows.progress.reporters import Reporter
from slidesam.flows.slide.batches import Batches
from slidesam.tasks import steps
from slidesam.tasks.errors import (
    BlockFailure,
    BlockFailures,
    DamagedError,
    OutputError,
    SegmenterError,
    SlideError,
    SlidesamError,
    in_one_line,
)
from slidesam.tasks.export.files import list_outline_forms, missing_formats
from slidesam.tasks.export.index import batches_to_measure, tile_batches
from slidesam.tasks.pixels.plan import TILE_BYTES
from slidesam.tasks.retry import Action, decide
from slidesam.tasks.run.marks import find_mark, list_blocks, read_params
from slidesam.tasks.run.records import Provenance
from slidesam.tasks.run.run import Run, batches
from slidesam.tasks.stitch.batches import block_batches, is_compared, is_painted
from slidesam.tasks.store import convert
from slidesam.tasks.store.verify import find_result_damage

Facts = dict[str, Any]
Batch = tuple[int, ...]
Step = Task[..., Any]
# Past so many blocks the graph in the UI can't be read, and Prefect's share of the time shows.
_SINGLE_BLOCKS, _MOST_PER_TASK = 256, 16
# Levels of so few tiles are written along with the image's end.
_FEW_PIECES = 4
# Damage to what seams are compared from hides damage to what blocks are painted from, and that of the numbering.
_MOST_REPEATS = 3
_VERBS = {"convert": "converting", "rechunk": "rechunking"}


class Executor(Protocol):
    """Runs the steps of one slide."""

    @property
    def most_workers(self) -> int | None:
        """The largest number of workers that share the steps; None if that isn't known."""

    def run_one(self, step: Step, run: Run, *arguments: Any) -> Any:
        """Run a step that is one task; return what it returns.

        Raises:
            Exception: What the step raised after its retries.
        """

    def run_many(
        self, step: Step, run: Run, jobs: Iterable[Batch], arguments: Callable[[Batch], tuple[Any, ...]]
    ) -> Generator[tuple[Batch, Facts, Exception | None], None, None]:
        """Run a step on each job, with these further arguments; yield each job with its result or error as it ends."""

    def stage(self, name: str, total: int, n_done: int) -> AbstractContextManager[Reporter]:
        """Show one stage of `total` units, `n_done` of which exist already."""

    def warn(self, message: str) -> None:
        """Show a warning."""

    def inform(self, message: str) -> None:
        """Show an informational message."""


def write_image(run: Run, executor: Executor) -> float:
    """Convert or rechunk the slide, or write its overview only.

    Args:
        run: The run.
        executor: Runs the steps.

    Returns:
        Seconds of the stage's tasks.

    Raises:
        SlidesamError: A tile can't be read or written; all others that could be are done.
    """
    plan = run.image_plan
    # Some seconds of work per task.
    size = max(1, TILE_BYTES // plan.tile_bytes)
    if plan.mode != "in place" and len(plan.grid(0)) <= size:
        with executor.stage(_VERBS[plan.mode], len(plan.grid(0)), 0) as progress:
            seconds = float(executor.run_one(steps.write_small_image, run)["seconds"])
            progress.advance(len(plan.grid(0)))
        return seconds
    seconds = float(executor.run_one(steps.ready_image, run)["seconds"])
    if plan.mode == "in place":
        return seconds
    levels = convert.tiled_levels(run)
    parallel = [level for level in levels if level == 0 or len(plan.grid(level)) > _FEW_PIECES]
    for level in parallel:
        todo = convert.missing_tiles(run, level)
        name = _VERBS[plan.mode] if level == 0 else f"{_VERBS[plan.mode]}, level {level}"
        jobs = list(batches(todo, size))
        seconds += _run_batches(executor, name, steps.write_tiles, run, jobs, len(plan.grid(level)), level)
    small_levels = [level for level in levels if level not in parallel]
    return seconds + float(executor.run_one(steps.finish_image, run, small_levels)["seconds"])


def segment_missing_blocks(
    run: Run, executor: Executor, block_ids: Sequence[int] | None = None, *, can_grow: bool = False
) -> dict[str, float]:
    """Segment the blocks that have no done-mark.

    Args:
        run: The run.
        executor: Runs the steps.
        block_ids: Which blocks, in which order; by default all that hold tissue and see a region of interest.
        can_grow: Whether larger workers can be had for blocks that run out of memory: they fail at once here.

    Returns:
        Seconds of the stage's tasks, by name.

    Raises:
        BlockFailures: Some blocks failed after their retries; all others are done, unless very many failed in a row.
        OutputError: Results can't be written.
        SlideGoneError: The slide has changed or isn't there any more.
    """
    executor.run_one(steps.prepare_slide, run)
    wanted = list_blocks(run)
    target_blocks = wanted if block_ids is None else block_ids
    if len(wanted) < len(run.grid):
        seen = "hold tissue" if run.region_identity is None else "see a region of interest, and tissue"
        executor.inform(f"{run.name}: {len(wanted)} of {len(run.grid)} blocks {seen}")
    todo = [block_id for block_id in target_blocks if find_mark(run, block_id) is None]
    if damaged := sorted(run.segment_folder.list_results().intersection(todo)):
        executor.inform(f"{run.name}: results of blocks are damaged and are made again: {', '.join(map(str, damaged))}")
    attempt = uuid.uuid4().hex
    jobs = _block_batches(run, todo, executor.most_workers)
    failures: dict[int, BlockFailure] = {}
    tried = in_a_row = 0
    with (
        executor.stage("segmenting blocks", len(target_blocks), len(target_blocks) - len(todo)) as progress,
        contextlib.closing(
            executor.run_many(steps.segment_blocks, run, jobs, lambda ids: (ids, attempt, can_grow))
        ) as results,
    ):
        for ids, facts, error in results:
            if error is not None and (decide(error) is Action.STOP or isinstance(error, DamagedError)):
                raise error
            failed = {} if error is None else _failed_blocks(run, ids, error)
            # A worker whose job ends leaves what it hasn't begun.
            untouched = facts["left"] if error is None else _untouched_blocks(run, ids, error)
            jobs.put_back(untouched)
            progress.advance(len(ids) - len(untouched))
            tried += len(ids) - len(untouched)
            if error is None:
                jobs.learn(len(ids) - len(untouched), facts["seconds"])
                in_a_row = 0
                continue
            failures |= failed
            in_a_row = in_a_row + len(failed) if len(failed) == len(ids) else 0
            if decide(error, failures=in_a_row) is Action.STOP:
                break
    if failures:
        raise BlockFailures(run.name, failures, len(wanted), untried=len(todo) - tried)
    return sum_seconds(run, target_blocks)


def sum_seconds(run: Run, block_ids: Sequence[int]) -> dict[str, float]:
    """Sum the seconds that blocks took, by whichever attempt; beside them what preparing took."""
    spent = sum(mark.seconds for block_id in block_ids if (mark := find_mark(run, block_id)) is not None)
    return {"prepare": read_params(run).seconds, "segment": spent}


def stitch_and_export(run: Run, executor: Executor, seconds: dict[str, float]) -> Provenance:
    """Match at seams, number the objects, write the label pyramid, then all that people look at.

    Args:
        run: A run whose blocks are all segmented.
        executor: Runs the steps.
        seconds: Of the stages before, for the provenance.

    Returns:
        The provenance.
    """
    all_batches = block_batches(run)
    if len(all_batches) == 1:
        return _stitch_small(run, executor, seconds)
    seconds = dict(seconds)
    todo = [batch for batch in all_batches if not is_compared(run, batch)]
    seconds["match"] = _run_batches(executor, "matching seams", steps.match_blocks, run, todo, len(run.grid))
    resolved = executor.run_one(steps.resolve_objects, run)
    seconds["resolve"] = resolved["seconds"]
    for warning in resolved["warnings"]:
        executor.warn(f"{run.name}: {warning}")
    todo = [batch for batch in all_batches if not is_painted(run, batch)]
    seconds["paint"] = _run_batches(executor, "painting labels", steps.paint_blocks, run, todo, len(run.grid))
    provenance: Provenance = executor.run_one(steps.export_slide, run, resolved["objects"], seconds)
    if run.settings.run.verify != "none":
        executor.run_one(steps.verify_result, run)
    for warning in provenance.warnings:
        executor.warn(f"{run.name}: {warning}")
    return provenance


def export_objects(run: Run, executor: Executor) -> None:
    """Write the files of a finished run's objects that it asks for and that aren't there.

    What can't be written is warned of: it costs neither the labels nor the other formats.
    """
    for n_left in reversed(range(_MOST_REPEATS)):
        try:
            _describe_objects(run, executor)
            return
        except DamagedError as error:
            # What was damaged is gone, and is made again, unless it is the labels that must be.
            if not n_left or find_result_damage(run):
                _warn_of_formats(run, executor, missing_formats(run), error)
                return
            executor.inform(f"{run.name}: {error.what}: what it held is computed again")
        except (OutputError, SlideError, SegmenterError) as error:
            _warn_of_formats(run, executor, missing_formats(run), error)
            return


def _describe_objects(run: Run, executor: Executor) -> None:
    formats, tiles = missing_formats(run), tile_batches(run)
    if formats and len(tiles) == 1:
        with executor.stage("describing objects", 1, 0) as progress:
            failed = executor.run_one(steps.write_small_objects, run, formats)["failed"]
            progress.advance(1)
        for kind, error in failed:
            _warn_of_formats(run, executor, [kind], error)
    elif formats:
        if todo := batches_to_measure(run):
            _run_batches(executor, "finding objects", steps.measure_objects_of_blocks, run, todo, len(run.grid))
        executor.run_one(steps.index_objects, run)
        forms = list_outline_forms(formats)
        _run_batches(executor, "describing objects", steps.describe_objects, run, tiles, sum(map(len, tiles)), forms)
        for kind in formats:
            try:
                executor.run_one(steps.write_objects, run, kind)
            except (OutputError, SlideError, SegmenterError) as error:
                if isinstance(error, DamagedError):
                    raise
                _warn_of_formats(run, executor, [kind], error)


def _warn_of_formats(run: Run, executor: Executor, formats: Sequence[str], error: SlidesamError) -> None:
    executor.warn(
        f"{run.name}: the labels are finished, but {' and '.join(formats)} of its objects can't be written: "
        f"{in_one_line(error)}; the same command writes them"
    )


def repeat_if_damaged(compute: Callable[[], Provenance], inform: Callable[[str], None]) -> Provenance:
    """Compute a result, and once more what damaged files of intermediate results cost.

    Args:
        compute: Segments the blocks that have no result, then stitches and exports.
        inform: Shows a message.

    Raises:
        DamagedError: Files are damaged time and again.
        SlidesamError: See `segment_missing_blocks`.
    """
    for _ in range(_MOST_REPEATS):
        try:
            return compute()
        except DamagedError as error:
            inform(f"{error.what}: what it held is computed again")
    return compute()


def _stitch_small(run: Run, executor: Executor, seconds: dict[str, float]) -> Provenance:
    """Do what `stitch_and_export` does in one task, where no two tasks could share the work."""
    with executor.stage("painting labels", len(run.grid), 0) as progress:
        warnings, provenance = executor.run_one(steps.stitch_small_slide, run, seconds)
        progress.advance(len(run.grid))
    for warning in [*warnings, *provenance.warnings]:
        executor.warn(f"{run.name}: {warning}")
    facts: Provenance = provenance
    return facts


def _block_batches(run: Run, todo: Sequence[int], most_workers: int | None) -> Batches:
    """Choose the blocks of each task: one, unless there are very many."""
    blocks_per_task = run.settings.blocks.blocks_per_task
    if blocks_per_task != "auto":
        return Batches(todo, blocks_per_task, blocks_per_task)
    size = max(1, min(-(-len(todo) // _SINGLE_BLOCKS), _MOST_PER_TASK))
    return Batches(todo, size, _MOST_PER_TASK if size > 1 else 1, most_workers)


def _untouched_blocks(run: Run, ids: Sequence[int], error: Exception) -> list[int]:
    """Return the blocks of a task with failures that neither failed nor are done."""
    if not isinstance(error, BlockFailures):
        return []
    return [block_id for block_id in ids if block_id not in error.failures and find_mark(run, block_id) is None]


def _failed_blocks(run: Run, ids: Sequence[int], error: Exception) -> dict[int, BlockFailure]:
    """Return the blocks of a task that failed, and why."""
    if isinstance(error, BlockFailures):
        return error.failures
    return {block_id: BlockFailure.of(error) for block_id in ids if find_mark(run, block_id) is None}


def _run_batches(
    executor: Executor, name: str, step: Step, run: Run, jobs: Sequence[Batch], total: int, *arguments: Any
) -> float:
    """Run a step over batches of blocks or tiles, one task per batch; return the sum of the tasks' seconds.

    All that can be done is done before the first error is raised, except where no other could fare better.
    """
    seconds, errors = 0.0, []
    results = executor.run_many(step, run, jobs, lambda job: (*arguments, job))
    with executor.stage(name, total, total - sum(map(len, jobs))) as progress, contextlib.closing(results):
        for job, facts, error in results:
            progress.advance(len(job))
            if error is None:
                seconds += facts["seconds"]
                continue
            errors.append(error)
            if decide(error, failures=len(errors)) is Action.STOP:
                raise error
    if errors:
        raise errors[0]
    return seconds
