"""slidesam's stitching, without Prefect and Dask: the functions of its tasks in a plain pool of two processes.

The clock runs from the last segmented block to the finished level 0. The blocks' results, as segmenting writes them, are made
before; `table_s` says what that took.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from benchmarks.stitching.case import Case
from slidesam.tasks.labels.objects import describe_block
from slidesam.tasks.labels.results import save_block
from slidesam.tasks.plan import plan_run
from slidesam.tasks.run.records import BlockMark, Params
from slidesam.tasks.run.run import Run
from slidesam.tasks.settings.parse import make_settings
from slidesam.tasks.settings.sections import ImageSettings
from slidesam.tasks.stitch.batches import Batch, block_batches, compare_batch, paint_batch, resolve_run
from slidesam.tasks.stitch.label_image import create_label_image
from slidesam.tasks.store.arrays import ArrayPlan, write_array_metadata
from slidesam.tasks.store.multiscales import place_samples
from slidesam.tasks.store.ome_zarr import create_store, write_image_metadata

DISTRIBUTION = "slidesam"
PROCESSES = 2
_SETTINGS = {
    "segmenter.kind": "function",
    "segmenter.target": "benchmarks.stitching.adapters.slidesam:nothing",
    "image.convert": "never",
    "blocks.tissue": "off",
}


def nothing(image: Any) -> Any:
    """The segmenter that is never called: a case comes with its labels."""
    return np.zeros(image.shape[:2], np.uint32)


def stitch(case: Case, out: Path) -> dict[str, Any]:
    """Stitches a case.

    Args:
        case: The case.
        out: Where a (y, x) array of the labels goes.

    Returns:
        Seconds by stage, and peak memory by kind of process in MiB.
    """
    folder = out.with_name(f"{out.name}.run")
    shutil.rmtree(folder, ignore_errors=True)
    run = run_of(case, folder)
    # As workers run: what a process has freed it keeps.
    os.environ |= dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), str(2**35))
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(PROCESSES, mp_context=spawn) as pool:
        _warm_up(pool, folder)
        started = time.perf_counter()
        _spread(pool, write_results, run, case, chunk=4)
        report = {"table_s": round(time.perf_counter() - started, 3)}
        started = time.perf_counter()
        report |= _timed(pool, run)
        report["seconds"] = round(time.perf_counter() - started, 3)
        report["peaks"] = {
            "itself, with the numbering": _peak_mib(0),
            "worker": max(pool.map(_peak_mib, range(8 * PROCESSES))),
        }
    copy(run, case, out)
    shutil.rmtree(folder)
    return report


def run_of(case: Case, folder: Path) -> Run:
    """A run of a case, to whose blocks `write_results` gives results."""
    slide = folder / "case.ome.zarr"
    group = create_store(slide, ImageSettings(), folder)
    # Without a single chunk: nobody looks at its pixels.
    plan = ArrayPlan("0", (1, 1, 1, *case.shape), np.dtype("uint8"), (1024, 1024))
    write_array_metadata(slide, [plan], ImageSettings())
    write_image_metadata(group, "case", [place_samples((1.0, 1.0))], None, None)
    os.environ["SLIDESAM_ALLOW"] = _SETTINGS["segmenter.target"]
    overrides = _SETTINGS | {"blocks.block_shape": case.block_shape, "blocks.halo": case.halo}
    run = plan_run(slide, folder / "out", make_settings(overrides=overrides))
    Params(blocks=None).write(run.segment_folder.params)
    create_store(run.store, ImageSettings(), slide)
    return run


def write_results(run: Run, case: Case, block_ids: Iterable[int]) -> None:
    """Writes what segmenting writes of these blocks."""
    for block_id in block_ids:
        labels = case.labels(block_id)
        table = describe_block(labels, run.grid[block_id], run.grid.shape)
        mark = BlockMark(block_id=block_id, count=int(table.area.size))
        save_block(run, run.grid[block_id], labels, table, mark)


def _timed(pool: ProcessPoolExecutor, run: Run) -> dict[str, float]:
    """The three stages, each spread over the processes."""
    seconds = {}
    started = time.perf_counter()
    list(pool.map(compare_batch, *_each(run)))
    seconds["match_s"] = time.perf_counter() - started
    started = time.perf_counter()
    resolved = resolve_run(run)
    create_label_image(run, resolved.objects)
    seconds["resolve_s"] = time.perf_counter() - started
    started = time.perf_counter()
    list(pool.map(paint_batch, *_each(run)))
    seconds["paint_s"] = time.perf_counter() - started
    return {stage: round(value, 3) for stage, value in seconds.items()}


def _each(run: Run) -> tuple[list[Run], list[Batch]]:
    batches = block_batches(run)
    return [run] * len(batches), batches


def _spread(pool: ProcessPoolExecutor, function: Callable[..., None], run: Run, case: Case, chunk: int) -> None:
    ids = range(len(case))
    parts = [ids[start : start + chunk] for start in range(0, len(ids), chunk)]
    list(pool.map(function, [run] * len(parts), [case] * len(parts), parts))


def _warm_up(pool: ProcessPoolExecutor, folder: Path) -> None:
    """Has every process import and compile what it will need, on a slide of four blocks."""
    for number in range(PROCESSES):
        small = Case(folder / f"warm-{number}", (128, 128), (64, 64), 16)
        small.save()
        write_blocks(small)
        run = run_of(small, folder / f"warm-run-{number}")
        write_results(run, small, range(len(small)))
        # Both at once, so that neither process gets both.
        list(pool.map(compare_batch, *(column * PROCESSES for column in _each(run))))
        create_label_image(run, resolve_run(run).objects)
        list(pool.map(paint_batch, *(column * PROCESSES for column in _each(run))))


def write_blocks(case: Case) -> None:
    """Labels of a few squares, over every seam."""
    blocks = case.create_blocks()
    y, x = np.ogrid[: case.shape[0], : case.shape[1]]
    whole = (y // 24 * 8 + x // 24 + 1).astype(np.uint32)
    for block_id in range(len(case)):
        seen = np.unique(whole[case.outer(block_id)], return_inverse=True)[1].reshape(whole[case.outer(block_id)].shape)
        blocks[block_id, : seen.shape[0], : seen.shape[1]] = seen + 1


def _peak_mib(_: int) -> float:
    """Peak resident memory of the process that this runs in."""
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return round(int(found[1]) / 1024, 1)


def copy(run: Run, case: Case, out: Path) -> None:
    """The labels as an array of two dimensions, a row of blocks at a time."""
    level = zarr.open_array(run.paths.label_image / "0", mode="r")
    array = zarr.create_array(out, shape=case.shape, chunks=(1024, 1024), dtype=level.dtype, overwrite=True)
    for y in range(0, case.shape[0], 1024):
        array[y : y + 1024] = level[0, 0, 0, y : y + 1024]
