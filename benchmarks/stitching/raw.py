"""The raw limit: a plain pool of two processes that reads every block's labels once and writes the same shards once.

Nothing is matched, numbered or marked as done. Arrays, codec, chunks, shards, and which levels are filled from a group's
pixels are those of slidesam, taken from it. Processes are started, have imported everything, and have read and written a block
before the clock starts.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zarr
import zarrs  # noqa: F401 (zarr finds it once it is imported)

from benchmarks.stitching.case import Case
from slidesam.tasks.grid import BlockGrid, Region
from slidesam.tasks.pixels.plan import group_blocks, group_levels, shard_region
from slidesam.tasks.pixels.pyramid import halve_labels
from slidesam.tasks.settings.sections import ImageSettings
from slidesam.tasks.store.ome_zarr import create_label

_LABEL = "labels"
_PROCESSES = 2
_START_SECONDS = 120
PIPELINES: dict[str, dict[str, Any]] = {
    "zarr": {},
    # One thread each, as slidesam has it: the processes share the cores.
    "zarrs": {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline", "threading.max_workers": 1},
}


class Job(NamedTuple):
    """What all processes are told.

    Attributes:
        case: The case.
        store: The Zarr group to write.
        pipeline: One of `PIPELINES`, for reading and writing.
        levels: How many levels to write.
    """

    case: Case
    store: Path
    pipeline: str
    levels: int


def raw_seconds(case: Case, out: Path) -> dict[str, float]:
    """Seconds of reading all blocks and writing all shards, once per way of doing so.

    Args:
        case: The case.
        out: Folder for what is written; gone in the end.

    Returns:
        By way: each of `PIPELINES` for all shards that slidesam's painting writes, then the faster one for level 0 alone.
    """
    with_levels = {pipeline: _seconds(case, out, pipeline, None) for pipeline in PIPELINES}
    faster = min(with_levels, key=lambda pipeline: with_levels[pipeline])
    named = {f"raw, {pipeline}": seconds for pipeline, seconds in with_levels.items()}
    return {**named, "raw, level 0 alone": _seconds(case, out, faster, 1)}


def _seconds(case: Case, out: Path, pipeline: str, levels: int | None) -> float:
    in_block = _create(case, out)
    job = Job(case, out, pipeline, levels or in_block)
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(_PROCESSES, timeout=_START_SECONDS)
    os.sync()  # what was written before is not to be waited for within the measurement
    with ProcessPoolExecutor(_PROCESSES, spawn, _start, (job, barrier)) as pool:
        # A process is started with each of these, and takes none before both are ready.
        for each in [pool.submit(os.getpid) for _ in range(_PROCESSES)]:
            each.result()
        started = time.perf_counter()
        written = sum(pool.map(_copy, _groups(case)))
        seconds = time.perf_counter() - started
    if written != len(case):
        raise RuntimeError(f"{written} of {len(case)} blocks were written")
    shutil.rmtree(out)
    return seconds


def _create(case: Case, store: Path) -> int:
    """Makes the empty levels of a label image.

    Returns:
        How many of them are written with whole shards of a group.
    """
    shutil.rmtree(store, ignore_errors=True)
    root = zarr.create_group(store, zarr_format=3)
    create_label(root, _LABEL, case.shape, _group_shape(case), np.dtype(np.uint32), ImageSettings())
    return group_levels(_group_shape(case), len(list(_group(store).array_keys())))


def _group_shape(case: Case) -> tuple[int, int]:
    rows, columns = group_blocks(case.block_shape)
    return rows * case.block_shape[0], columns * case.block_shape[1]


def _groups(case: Case) -> list[tuple[int, ...]]:
    """The blocks of each shard of level 0."""
    return list(BlockGrid(case.shape, case.block_shape, case.halo).batches(group_blocks(case.block_shape)))


def _group(store: Path) -> zarr.Group:
    return zarr.open_group(store / "labels" / _LABEL, mode="r+")


class _Copier:
    """One process's work.

    Args:
        job: What to do.
        store: Where to write, if not where the job says.
    """

    def __init__(self, job: Job, store: Path | None = None) -> None:
        self._case = job.case
        group = store or job.store
        with zarr.config.set(PIPELINES[job.pipeline]):
            self._blocks = job.case.blocks()
            levels: list[Any] = [_group(group)[str(level)] for level in range(job.levels)]
            # To look for chunks that are all 0 would take time. An array with another configuration is opened anew, so
            # this too has to happen here, or it is zarr's own pipeline again.
            self._levels = [level.with_config({"write_empty_chunks": True}) for level in levels]

    def copy(self, block_ids: tuple[int, ...]) -> None:
        """Reads all that the blocks of a group saw and writes what they own."""
        first, last = self._case.inner(block_ids[0]), self._case.inner(block_ids[-1])
        region = Region(first[0].start, first[1].start, last[0].stop, last[1].stop)
        labels = np.empty(region.shape, np.uint32)
        for block_id in block_ids:
            outer, inner = self._case.outer(block_id), self._case.inner(block_id)
            height, width = (side.stop - side.start for side in outer)
            seen = np.asarray(self._blocks[block_id, :height, :width])
            own = tuple(slice(i.start - o.start, i.stop - o.start) for i, o in zip(inner, outer, strict=True))
            y, x = inner[0].start - region.y0, inner[1].start - region.x0
            labels[y : y + seen[own].shape[0], x : x + seen[own].shape[1]] = seen[own]
        for number, level in enumerate(self._levels):
            level[(0, 0, 0, *shard_region(region, number).slices)] = labels
            labels = halve_labels(labels)


_copier: _Copier | None = None


def _start(job: Job, barrier: Any) -> None:
    """Gets a process ready: all that is done once is done here."""
    global _copier
    warm = job.store.with_name(f"{job.store.name}.warm-{os.getpid()}")
    try:
        _create(job.case, warm)
        _Copier(job, warm).copy((0,))
        shutil.rmtree(warm)
        _copier = _Copier(job)
    except BaseException:
        barrier.abort()  # or the others would wait
        raise
    barrier.wait()


def _copy(block_ids: tuple[int, ...]) -> int:
    assert _copier is not None
    _copier.copy(block_ids)
    return len(block_ids)
