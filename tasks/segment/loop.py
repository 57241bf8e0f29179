"""The loop over a task's blocks: one is computed while the next is read and, where a GPU computes, the last is finished.

No Prefect, no Dask: the same loop runs serially, in a local cluster and in a job.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, closing
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.errors import BlockFailure, BlockFailures
from slidesam.tasks.labels.halo_strips import save_strips
from slidesam.tasks.labels.objects import describe_block
from slidesam.tasks.labels.results import BlockResults, save_table
from slidesam.tasks.pixels.resample import to_level0
from slidesam.tasks.run.files import output_errors
from slidesam.tasks.run.marks import Marks, find_mark, list_blocks, read_params, remove_stage
from slidesam.tasks.run.records import BlockMark, Params
from slidesam.tasks.run.run import Run
from slidesam.tasks.segment.block import begin_outer, renumbered
from slidesam.tasks.segment.finisher import Finisher
from slidesam.tasks.segment.prepare import load_run_segmenter
from slidesam.tasks.segment.start_marks import Attempts, is_leaving
from slidesam.tasks.segmenters import Segmenter
from slidesam.tasks.settings.types import seconds_of
from slidesam.tasks.store.readers import open_pixels


def segment_missing(run: Run, block_ids: Sequence[int], go: str) -> list[int]:
    """Segments blocks that have no done-mark; one that fails doesn't cost the others.

    Args:
        run: The run.
        block_ids: Which blocks.
        go: Identifies this go at the slide, within which workers that a block costs are counted.

    Returns:
        The blocks that are left for others, because this worker's job ends soon.

    Raises:
        OutputError: Results can't be written.
        SlideGoneError: The slide has changed or isn't there any more.
        BlockFailures: Some blocks failed; a single one's own error is raised instead.
    """
    todo = [block_id for block_id in block_ids if find_mark(run, block_id) is None]
    failures: dict[int, Exception] = {}
    left: list[int] = []
    if todo:
        _forget_stitching(run)
        timeout, retries = run.settings.run.block_timeout, run.settings.run.retries
        attempts = Attempts(run.segment_folder, go, 1 + retries, None if timeout is None else seconds_of(timeout))
        # Those that have cost a worker come last, so that they don't cost the others too.
        todo.sort(key=attempts.lost)
        with closing(open_pixels(run)) as reader, ThreadPoolExecutor(1) as ahead, Finisher(failures) as finisher:
            with attempts.before(todo[0]):
                # A model takes seconds to load the first time: meanwhile the first pixels are read.
                images = {todo[0]: ahead.submit(reader.read, run.segmented_grid[todo[0]].outer)}
                segmenter, known, results = load_run_segmenter(run), read_params(run), BlockResults.of(run)
                wait(images.values())
            # Where the CPU computes, it has no time to spare.
            is_beside = getattr(segmenter, "device", "cpu") != "cpu" and attempts.allowed > 1

            def read(number: int) -> NDArray[Any]:
                """A block's pixels; while it is segmented, those of the next are read."""
                for block_id in todo[number + 1 : number + 2]:
                    images[block_id] = ahead.submit(reader.read, run.segmented_grid[block_id].outer)
                return images.pop(todo[number]).result()

            for number, block_id in enumerate(todo):
                if is_leaving():
                    left = todo[number:]
                    break
                # Of two blocks at once nobody could tell which one ended the worker.
                alone = not is_beside or attempts.lost(block_id) > 0
                if alone:
                    finisher.wait()
                with finisher.note(block_id), ExitStack() as marked:
                    marked.enter_context(attempts.at(block_id))
                    # In one expression, so that nothing here holds pixels or labels longer than it takes.
                    begin = partial(_begin_block, run, block_id, segmenter, known, results)
                    finisher.add(block_id, begin(read(number)), marked.pop_all())
                if alone:
                    finisher.wait()
            finisher.wait()
    if failures:
        raise _failure(run, failures, alone=len(block_ids) == 1)
    return left


def _begin_block(
    run: Run, block_id: int, segmenter: Segmenter, known: Params, results: BlockResults, image: NDArray[Any]
) -> Callable[[], None]:
    """What one block wants of the device; the function that is returned writes its labels, then its done-mark."""
    started = time.perf_counter()
    seen = run.segmented_grid[block_id]
    fill = np.asarray(known.fill, image.dtype)
    labels = begin_outer(image, seen, run.segmented_grid, segmenter, known.params, fill)
    mark = BlockMark(
        block_id=block_id,
        count=0,
        seconds=time.perf_counter() - started,
        # Part of what makes results equal, so the provenance has them.
        device=str(getattr(segmenter, "device", "cpu")),
        threads=os.environ.get("OMP_NUM_THREADS"),
        **getattr(segmenter, "computing", {}),
    )
    return lambda: _finish_block(run, mark, labels, results)


def _finish_block(run: Run, mark: BlockMark, labelled: Callable[[], NDArray[np.uint32]], results: BlockResults) -> None:
    """Writes one block's labels, then its done-mark, to which the number of objects and the time that this took are added."""
    started, block_id = time.perf_counter(), int(mark.block_id)
    block = run.grid[block_id]
    labels = labelled()
    if not run.scale.is_one:
        labels = renumbered(to_level0(labels, run.segmented_grid[block_id].outer, block.outer, run.scale))
    marks = Marks(run.segment_folder)
    # An old mark must not vouch for a mixture of old and new.
    marks.remove(block_id)
    with output_errors(run.segment_folder.path):
        results.write(block, labels)
    table = describe_block(labels, block, run.grid.shape)
    if table.area.size:
        save_table(run, block_id, table)
        save_strips(run, block, labels)
    seconds = mark.seconds + time.perf_counter() - started
    marks.put(mark.model_copy(update={"count": table.area.size, "seconds": round(seconds, 3)}))


def _forget_stitching(run: Run) -> None:
    """Removes what was made of blocks of which some are segmented anew: on another device their labels may be others."""
    for folder in run.paths.stage_folders("stitch", "paint"):
        remove_stage(folder, ignore_errors=True)


def _failure(run: Run, failures: dict[int, Exception], *, alone: bool) -> Exception:
    """What a task raises for blocks that failed."""
    if alone:
        return next(iter(failures.values()))
    return BlockFailures(
        run.name,
        {block_id: BlockFailure.of(error) for block_id, error in failures.items()},
        len(list_blocks(run)),
    )
