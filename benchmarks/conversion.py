"""Conversion beside what this machine can do at best, measured in the same run.

A made pyramidal TIFF, tiles of 256 px compressed by JPEG, is converted by the image stage of a real run, on a cluster that is up,
and by as many plain processes that do nothing but decode and write the same shards (benchmarks/raw_limit.py). In turns, the cache
warm. The whole stage is a flow: it has Prefect's start, a last task, and the second that Prefect may take to end a flow. Then the
files that were written, and those of 100 000 × 100 000 pixels by the plan.

    make conversion        (or: .venv/bin/python -m benchmarks.conversion --side 20000 --processes 2 --rounds 3)
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import zarr
from rich.console import Console
from rich.table import Table

from benchmarks.big_slide import make_slide
from benchmarks.raw_limit import raw_convert
from slidesam.tasks.pixels.plan import plan_image
from slidesam.tasks.plan import plan_run
from slidesam.tasks.run.run import Run
from slidesam.tasks.settings.parse import make_settings
from slidesam.tasks.slides.facts import Level

if TYPE_CHECKING:
    from slidesam.flows.cluster.cluster import Cluster


def converted(slide: Path, output: Path, cluster: Cluster) -> tuple[float, float, Run]:
    """Seconds of the pieces, of the whole image stage, and the run."""
    from slidesam.flows.slide.session import Session
    from slidesam.flows.slide.stages import image_stage

    shutil.rmtree(output, ignore_errors=True)
    run = plan_run(slide, output, make_settings(overrides={"segmenter.kind": "watershed"}))
    runner = cluster.workers().task_runner()
    started = time.perf_counter()
    image_stage.with_options(task_runner=runner)(run, Session(cluster=cluster))
    whole = time.perf_counter() - started
    begun = run.image_folder.arrays_mark.stat().st_mtime
    # The marks are gone once the image is finished.
    ended = max(path.stat().st_mtime for path in (run.store / "0" / "c").rglob("*") if path.is_file())
    return ended - begun, whole, run


def planned_files(run: Run, side: int) -> int:
    """Files of the image of a slide like this one of another size, by the plan: shards and metadata."""
    level = Level(shape=(side, side), downsample=(1, 1), chunks=run.slide.levels[0].chunks)
    slide = run.slide.model_copy(update={"levels": (level,)})
    plan = plan_image(slide, run.settings.image, run.grid)
    shards = sum(len(plan.grid(0 if number < plan.in_memory else number)) for number in range(len(plan.levels)))
    return shards + len(plan.levels) + 1


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=20_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "slidesam-benchmark")
    chosen = parser.parse_args()
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("PREFECT_HOME", str(chosen.folder / "prefect"))
    from slidesam.flows.cluster.cluster import LocalProfile, open_cluster
    from slidesam.flows.prefect_api.server import prefect_api

    console = Console()
    slide = make_slide(chosen.folder / f"slide-{chosen.side}.tif", chosen.side)
    pieces, stages, raw = [], [], []
    with prefect_api(), open_cluster(LocalProfile(workers=chosen.processes)) as cluster:
        _ = cluster.address  # starts the workers
        for number in range(chosen.rounds + 1):
            spent, whole, run = converted(slide, chosen.folder / "ours", cluster)
            limit = raw_convert(
                slide, chosen.folder / "raw", chosen.processes, run.image_plan.shard[0], run.settings.image.chunk_shape,
                run.image_plan.in_memory,
            )  # fmt: skip
            if number:  # the first warms the cache
                pieces.append(spent)
                stages.append(whole)
                raw.append(limit)
    same = all(
        np.array_equal(zarr.open_array(run.store / "0", mode="r")[0, :, 0, y : y + 999, :2999],
                       zarr.open_array(chosen.folder / "raw" / "0", mode="r")[0, :, 0, y : y + 999, :2999])
        for y in range(0, chosen.side - 999, 3701)
    )  # fmt: skip
    pixels = chosen.side**2 * 3 / 2**20
    table = Table(title=f"{chosen.side} × {chosen.side} RGB, {chosen.processes} processes, median of {chosen.rounds}")
    for column in ("", "s", "MiB/s", "of the limit"):
        table.add_column(column, justify="left" if not column else "right")
    for name, values in (("plain processes", raw), ("slidesam, pieces", pieces), ("slidesam, whole stage", stages)):
        seconds = statistics.median(values)
        ratio = statistics.median(raw) / seconds
        table.add_row(name, f"{seconds:.1f}", f"{pixels / seconds:.0f}", f"{ratio:.2f}")
    console.print(table)
    files = sum(path.is_file() for path in run.store.rglob("*"))
    console.print(f"the same pixels at level 0: {'yes' if same else 'NO'}; pieces: {[f'{s:.1f}' for s in pieces]}")
    console.print(f"files written: {files}; of 100 000 × 100 000 it would be {planned_files(run, 100_000)}")


if __name__ == "__main__":
    main()
