"""Worker processes on one device, without Prefect and Dask: each loads slidesam's segmenter and takes blocks as it can.

What they do with a block is what a run does (`tasks.segment.segment_outer`): read the outer region from a Zarr, segment the
window, write the labels to another.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from benchmarks.guide.case import KEPT
from benchmarks.guide.children import peak_mib
from benchmarks.guide.stopwatch import Stopwatch, synchronize
from slidesam.tasks.grid import BlockGrid
from slidesam.tasks.segment.block import segment_outer
from slidesam.tasks.segmenters import load_segmenter, segmenter_identity
from slidesam.tasks.settings.parse import make_settings

_CHUNK = 512
_START_SECONDS = 600


@dataclass(frozen=True)
class Work:
    """What workers are told.

    Attributes:
        image: Zarr of (y, x, c) pixels.
        labels: Zarr of (block, y, x) labels of the outer regions, as large as the largest.
        settings: Of slidesam, by dotted name.
        params: Slide-wide parameters of the segmenter.
        fill: (c,) background.
        block: Side of a block in pixels.
        halo: Its context per side in pixels.
        small: See `case.Case`.
    """

    image: Path
    labels: Path
    settings: dict[str, Any]
    params: dict[str, Any]
    fill: tuple[float, ...]
    block: int
    halo: int
    small: bool

    def grid(self) -> BlockGrid:
        """The blocks."""
        height, width = zarr.open_array(self.image, mode="r").shape[:2]
        return BlockGrid((height, width), (self.block, self.block), self.halo)


def write_pixels(path: Path, image: np.ndarray) -> None:
    """A Zarr of an image, chunked as slidesam's own."""
    pixels = image[..., None] if image.ndim == 2 else image
    zarr.create_array(path, data=pixels, chunks=(_CHUNK, _CHUNK, pixels.shape[2]), overwrite=True)


def make_labels(work: Work, blocks: int) -> None:
    """An empty Zarr for labels."""
    shape = (blocks, *work.grid().outer_shape)
    zarr.create_array(work.labels, shape=shape, dtype="uint32", chunks=(1, _CHUNK, _CHUNK), overwrite=True)


def run_workers(work: Work, workers: int, threads: int, blocks: Sequence[int]) -> dict[str, Any]:
    """Times some workers on some blocks, after each has loaded its model and warmed up on the first of them.

    Returns:
        `load` (seconds until all were ready), `wall` (seconds from then to the last block), `seconds` by stage and `tiles`
        (encoder passes), both summed over blocks; `digests` by block; of the worker that took most `peak` (MiB) and
        `device_peak` (MiB that torch allocated on the GPU, 0 on the CPU); `device`.
    """
    make_labels(work, max(blocks) + 1)
    context = get_context("spawn")
    barrier = context.Barrier(workers)
    environment = {**KEPT, **{f"{name}_NUM_THREADS": str(threads) for name in ("OMP", "MKL", "OPENBLAS")}}
    with (
        _environment(environment),
        ProcessPoolExecutor(workers, context, initializer=_start, initargs=(work, barrier, blocks[0])) as pool,
    ):
        started = time.perf_counter()
        # A task waits for all others, so that each worker has one.
        list(pool.map(_ready, range(workers)))
        loaded = time.perf_counter()
        found = list(pool.map(_segment, blocks))
        wall = time.perf_counter() - loaded
    seconds = {name: sum(each["seconds"].get(name, 0.0) for each in found) for name in found[0]["seconds"]}
    return {
        "load": loaded - started, "wall": wall, "seconds": seconds,
        "tiles": sum(each["tiles"] for each in found), "objects": sum(each["objects"] for each in found),
        "digests": {block: each["digest"] for block, each in zip(blocks, found, strict=True)},
        "peak": max(each["peak"] for each in found), "device_peak": max(each["device_peak"] for each in found),
        "device": found[0]["device"],
    }  # fmt: skip


def device_busy(work: Work, threads: int, block: int) -> float | None:
    """Share of a block's time in which the GPU computed, by torch's profiler; None without one."""
    make_labels(work, block + 1)
    context = get_context("spawn")
    with (
        _environment({**KEPT, "OMP_NUM_THREADS": str(threads)}),
        ProcessPoolExecutor(1, context, initializer=_start, initargs=(work, context.Barrier(1), block)) as pool,
    ):
        return pool.submit(_busy, block).result()


# ------------------------------------------------------------------------------------------------------------ in a worker

_here: dict[str, Any] = {}


def _start(work: Work, barrier: Any, first: int) -> None:
    """Loads the segmenter and segments a block, which makes all that is made once."""
    if work.small:
        from tests.support.microsam_small import use_small_networks

        use_small_networks()
    settings = make_settings(overrides=work.settings).segmenter
    segmenter = load_segmenter(settings.model_dump_json(), True, segmenter_identity(settings, True))
    _here.update(work=work, grid=work.grid(), segmenter=segmenter, barrier=barrier, watch=Stopwatch())
    _here.update(image=zarr.open_array(work.image, mode="r"), labels=zarr.open_array(work.labels, mode="r+"))
    _segment(first)


def _ready(number: int) -> int:
    """Waits until all workers are; returns the process's id."""
    _here["barrier"].wait(_START_SECONDS)
    return os.getpid()


def _segment(block_id: int) -> dict[str, Any]:
    """Reads, segments and writes a block."""
    import torch

    work, grid, watch = _here["work"], _here["grid"], _here["watch"]
    block = grid[block_id]
    started = time.perf_counter()
    image = np.asarray(_here["image"][block.outer.slices])
    read = time.perf_counter()
    with watch.watching():
        labels = segment_outer(image, block, grid, _here["segmenter"], work.params, np.asarray(work.fill, image.dtype))
        synchronize()
    segmented = time.perf_counter()
    _here["labels"][block_id, : labels.shape[0], : labels.shape[1]] = labels
    written = time.perf_counter()
    seconds, calls = watch.take()
    rest = segmented - read - sum(seconds.values())
    on_gpu = torch.cuda.is_initialized()
    return {
        "seconds": {"read": read - started, "rest": rest, **seconds, "write": written - segmented},
        "tiles": calls.get("encoder", 0), "objects": int(labels.max()),
        "digest": hashlib.sha256(np.ascontiguousarray(labels)).hexdigest(),
        "peak": peak_mib(), "device_peak": torch.cuda.max_memory_allocated() / 2**20 if on_gpu else 0.0,
        "device": str(getattr(_here["segmenter"], "device", "cpu")),
    }  # fmt: skip


def _busy(block_id: int) -> float | None:
    """See `device_busy`."""
    import torch
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    if not torch.cuda.is_initialized():
        return None
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        started = time.perf_counter()
        _segment(block_id)
        wall = time.perf_counter() - started
    events = [event for event in profiler.key_averages() if event.device_type == DeviceType.CUDA]
    return sum(event.self_device_time_total for event in events) / 1e6 / wall


@contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    """Variables that processes find as they start: later would be too late for OpenMP and malloc."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
