"""The loop over a task's blocks: one is computed while the next is read and, if a GPU computes, the last is finished.

1. `segment_missing`   opens pixels, start-marks, threads and the segmenter, and gives each block its turn
2. `_ReadAhead`        reads a block's pixels in a thread
3. `_BlockWork.begin`  does the device's part of a block
4. `_BlockWork._finish`  writes its result; the `Finisher` calls it

No Prefect, no Dask: the same loop runs serially, in a local cluster and in a job.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.errors import BlockFailure, BlockFailures, DamagedError
from slidesam.tasks.grid import Block, BlockGrid
from slidesam.tasks.labels.classes import count_votes
from slidesam.tasks.labels.objects import describe_block
from slidesam.tasks.labels.results import save_block
from slidesam.tasks.pixels.resample import to_level0
from slidesam.tasks.run.files import sync_folders
from slidesam.tasks.run.marks import find_mark, list_blocks, read_params, remove_stage
from slidesam.tasks.run.records import BlockMark, Params, StartMark
from slidesam.tasks.run.run import Run
from slidesam.tasks.segment.block import begin_outer, renumber
from slidesam.tasks.segment.finisher import Finisher
from slidesam.tasks.segment.prepare import load_run_segmenter
from slidesam.tasks.segment.start_marks import StartMarks
from slidesam.tasks.segment.worker_state import WorkerState, this_worker
from slidesam.tasks.segmenters.base import Segmenter
from slidesam.tasks.segmenters.votes import ClassifiedLabels, Votes, split_votes
from slidesam.tasks.settings.types import seconds_of
from slidesam.tasks.slides.reader import PixelReader
from slidesam.tasks.store.readers import open_pixels


def segment_missing(
    run: Run,
    block_ids: Sequence[int],
    attempt: str,
    worker: WorkerState = this_worker,
    *,
    can_grow: bool = False,
) -> list[int]:
    """Segment blocks that have no done-mark; one that fails doesn't stop the others.

    Args:
        run: The run.
        block_ids: Which blocks.
        attempt: Identifies this attempt at the slide, within which the workers that a block ends are counted.
        worker: The process that computes.
        can_grow: Whether larger workers can be had for blocks that run out of memory.

    Returns:
        The blocks that remain for other workers, because the job of this one ends soon.

    Raises:
        OutputError: Results can't be written.
        SlideGoneError: The slide has changed or isn't there any more.
        BlockFailures: Some blocks failed; a single one's own error is raised instead.
    """
    missing = [block_id for block_id in block_ids if find_mark(run, block_id) is None]
    if not missing:
        return []
    _forget_stitching(run)
    timeout, max_lost = run.settings.run.block_timeout, 1 + run.settings.run.retries
    start_marks = StartMarks(
        run.segment_folder,
        attempt,
        max_lost,
        None if timeout is None else seconds_of(timeout),
        worker,
        can_grow=can_grow,
    )
    # Blocks that have ended a worker come last, so that they don't stop the others. Nothing is loaded for those given up.
    lost = {block_id: start_marks.count_lost(block_id) for block_id in missing}
    missing.sort(key=lost.__getitem__)
    ends = {block_id: start_marks.find_end(block_id) for block_id in missing if lost[block_id]}
    failures: dict[int, Exception] = {block_id: end for block_id, end in ends.items() if end is not None}
    missing = [block_id for block_id in missing if block_id not in failures]
    remaining = _segment_in_turn(run, missing, start_marks, failures) if missing else []
    if failures:
        raise _combine(run, failures, is_single=len(block_ids) == 1)
    return remaining


def _segment_in_turn(
    run: Run, block_ids: Sequence[int], start_marks: StartMarks, failures: dict[int, Exception]
) -> list[int]:
    """Segment blocks one after the other; collect what fails, and return what remains for other workers."""
    remaining: list[int] = []
    with (
        closing(open_pixels(run)) as reader,
        _ReadAhead(reader, run.segmented_grid) as ahead,
        Finisher(failures) as finisher,
    ):
        with start_marks.preparing(block_ids[0]):
            # A model takes seconds to load the first time: meanwhile the first pixels are read.
            ahead.request(block_ids[:1])
            work = _BlockWork(run, load_run_segmenter(run), read_params(run))
            ahead.wait()
        # A CPU that computes has no time to spare for finishing another block.
        can_overlap = work.segmenter.device != "cpu" and start_marks.max_lost > 1
        for number, block_id in enumerate(block_ids):
            if start_marks.worker.is_leaving:
                remaining = list(block_ids[number:])
                break
            # If two blocks were computed at once, nobody could tell which one ended the worker.
            is_alone = not can_overlap or start_marks.count_lost(block_id) > 0
            if is_alone:
                finisher.wait()
            with finisher.note(block_id), ExitStack() as mark_stack:
                before = mark_stack.enter_context(start_marks.computing(block_id))
                ahead.request(block_ids[number : number + 2])
                # In one expression, so that nothing here holds pixels or labels longer than needed.
                finisher.add(block_id, work.begin(block_id, ahead.take(block_id), before), mark_stack.pop_all())
            if is_alone:
                finisher.wait()
        finisher.wait()
    return remaining


class _ReadAhead:
    """Reads blocks' pixels in a thread.

    Args:
        reader: The slide's pixels.
        grid: The blocks, in the pixels that the segmenter sees.
    """

    def __init__(self, reader: PixelReader, grid: BlockGrid) -> None:
        self._reader, self._grid = reader, grid
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="read")
        self._images: dict[int, Future[NDArray[Any]]] = {}

    def __enter__(self) -> _ReadAhead:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()

    def request(self, block_ids: Sequence[int]) -> None:
        """Begin to read blocks, except those that were requested before."""
        for block_id in block_ids:
            if block_id not in self._images:
                self._images[block_id] = self._thread.submit(self._reader.read, self._grid[block_id].outer)

    def take(self, block_id: int) -> NDArray[Any]:
        """Return a requested block's pixels, (y, x, c), and keep them no longer."""
        return self._images.pop(block_id).result()

    def wait(self) -> None:
        """Wait until all requested blocks are read; an error is raised by `take`."""
        wait(self._images.values())


@dataclass(frozen=True)
class _BlockWork:
    """What is done with each block of a run.

    Attributes:
        run: The run.
        segmenter: Its segmenter, on this worker's device.
        shared: What all blocks share, from `prepare_run`.
    """

    run: Run
    segmenter: Segmenter
    shared: Params

    def begin(self, block_id: int, image: NDArray[Any], before: StartMark) -> Callable[[], None]:
        """Do the device's part of a block, and return what is left to do; `before` says how often it was tried."""
        start_time = time.perf_counter()
        grid = self.run.segmented_grid
        fill = np.asarray(self.shared.fill, image.dtype)
        labels = begin_outer(image, grid[block_id], grid, self.segmenter, self.shared.params, fill)
        arithmetic = self.segmenter.arithmetic
        mark = BlockMark(
            block_id=block_id,
            count=0,
            seconds=time.perf_counter() - start_time,
            # These may change the last bits of a result, so the provenance has them.
            device=self.segmenter.device,
            threads=os.environ.get("OMP_NUM_THREADS"),
            **({} if arithmetic is None else asdict(arithmetic)),
            **{name: count for name in ("failed", "lost") if (count := getattr(before, name))},
        )
        return lambda: self._finish(self.run.grid[block_id], labels, mark)

    def _finish(
        self, block: Block, deferred: Callable[[], NDArray[np.uint32] | ClassifiedLabels], mark: BlockMark
    ) -> None:
        """Write a block's result, whose mark gets the number of objects and the time."""
        start_time, run = time.perf_counter(), self.run
        given, votes = split_votes(deferred())
        labels = np.asarray(given, np.uint32)
        if not run.scale.is_one:
            seen = run.segmented_grid[block.block_id].outer
            labels = renumber(to_level0(labels, seen, block.outer, run.scale))
            votes = votes and Votes(to_level0(votes.rows, seen, block.outer, run.scale), votes.shares)
        table = describe_block(labels, block, run.grid.shape)
        counted = None if votes is None else count_votes(labels, votes, block)
        seconds = round(mark.seconds + time.perf_counter() - start_time, 3)
        mark = mark.model_copy(update={"count": table.area.size, "seconds": seconds})
        save_block(run, block, labels, table, mark, counted)


def _forget_stitching(run: Run) -> None:
    """Remove what was made of blocks before some are segmented again: on another device their labels may differ."""
    for folder in run.paths.stage_folders("stitch", "paint"):
        remove_stage(folder)
    # Also where another task has just done so.
    sync_folders([run.paths.work])


def _combine(run: Run, failures: dict[int, Exception], *, is_single: bool) -> Exception:
    """Make the error of a task some of whose blocks failed; damage to the pixels that they read concerns no block alone."""
    damages = [error for error in failures.values() if isinstance(error, DamagedError)]
    if damages:
        return damages[0]
    if is_single:
        return next(iter(failures.values()))
    return BlockFailures(
        run.name,
        {block_id: BlockFailure.of(error) for block_id, error in failures.items()},
        len(list_blocks(run)),
    )
