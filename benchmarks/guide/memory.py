"""Peak memory of a worker that segments large blocks, on slides of two sizes, beside sequential micro-sam on the same images.

A worker's should hang on the block, micro-sam's grows with the image: three maps of 32 bits and labels of 64 for each pixel, and
more while it makes them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.guide.case import Case, tiling_of, write_image
from benchmarks.guide.ours import run_ours, threads_each
from benchmarks.guide.report import Report, Table, say
from benchmarks.guide.sequential import Job, run_sequential

_WORKER = "Dask worker"
_ROLES = {"the process asked": "flow and Dask scheduler", "all at one time": "all at one time, shared pages once"}


def measure(
    case: Case,
    picture: Callable[[int], NDArray[Any]],
    report: Report,
    *,
    block: int,
    tile: int,
    blocks: Sequence[int],
    workers: int,
    fitted: bool,
) -> None:
    """A row per slide and method: `peak` (MiB of the worker that took most, or of micro-sam's process), `roles`, seconds.

    Args:
        case: What is measured; its image is replaced.
        picture: Makes a square image of a side.
        report: Where rows are added.
        block: Side of a block in pixels.
        tile: Side of a tile in pixels.
        blocks: How many blocks long the slides are, each a block high.
        workers: Worker processes.
        fitted: See `case.tiling_of`.
    """
    tiling, threads = tiling_of(block, tile, fitted), threads_each(case, workers)
    for length in blocks:
        wanted = [name for name in ("slidesam", "micro-sam alone") if report.find(method=name, blocks=length) is None]
        if not wanted:
            continue
        here = _row_of_blocks(case, picture(block), length)
        for method in wanted:
            key = {"method": method, "blocks": length, "shape": list(here.shape)}
            if method == "slidesam":
                peaks: dict[str, float] = {}
                facts = run_ours(here, tiling, workers, threads, peaks)
                row = {"peak": peaks[_WORKER], "roles": peaks, "workers": workers, "threads": threads, **facts}
            else:
                (row,) = run_sequential(here, [Job(tile, tile // 4)])
                row |= {"workers": 1, "threads": case.threads}
            report.add(key | row)
            say(f"{method}, {length} block{'s' * (length > 1)}: {row['peak'] / 1024:.2f} GiB, {row['segment']:.0f} s")


def _row_of_blocks(case: Case, picture: NDArray[Any], length: int) -> Case:
    """The case on a slide of some blocks side by side; every other one is mirrored, so that tissue goes on."""
    image = np.concatenate([picture if number % 2 == 0 else picture[:, ::-1] for number in range(length)], axis=1)
    array, slide = write_image(case.folder / f"row-{length}", image)
    return dataclasses.replace(case, image=array, slide=slide, shape=image.shape[:2])


def tables(report: Report) -> list[Table]:
    """Peaks per slide, and of slidesam's processes by role."""
    columns = (
        "method",
        "workers × threads",
        "slide px",
        "pixels",
        "peak GiB",
        "against the smallest",
        "segmenting s",
        "objects",
    )
    first: dict[str, float] = {}
    rows: list[Sequence[Any]] = []
    ordered = sorted(report.rows, key=lambda row: (row["method"], row["blocks"]))
    for row in ordered:
        least = first.setdefault(row["method"], row["peak"])
        height, width = row["shape"]
        rows.append([
            row["method"], f"{row['workers']} × {row['threads']}", f"{width} × {height}", f"{height * width / 1e6:.1f} M",
            f"{row['peak'] / 1024:.2f}", f"{row['peak'] / least:.2f}", row["segment"], row["objects"],
        ])  # fmt: skip
    ours = [row for row in ordered if row["method"] == "slidesam"]
    roles = sorted({role for row in ours for role in row["roles"]})
    by_role = [[_ROLES.get(role, role), *(f"{row['roles'].get(role, 0):.0f}" for row in ours)] for role in roles]
    return [
        Table("peak memory of a worker, and of micro-sam alone", columns, rows),
        Table(
            "slidesam's processes on slides of so many blocks, MiB",
            ("process", *(f"slide of {row['blocks']}" for row in ours)),
            by_role,
        ),
    ]
