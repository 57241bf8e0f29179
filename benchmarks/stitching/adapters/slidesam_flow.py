"""slidesam's stitching as it really runs: the Prefect flow on a Dask cluster of two workers, with a Prefect server.

`seconds` is the flow's wall time to the finished level 0, its export left out. `prefect_s` is what of it isn't the tasks' own
work on two workers: Prefect's and Dask's.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.stitching.adapters import slidesam
from benchmarks.stitching.case import Case
from slidesam.tasks import steps
from slidesam.tasks.run.run import Run

if TYPE_CHECKING:
    from slidesam.flows.cluster.cluster import Cluster

DISTRIBUTION = "slidesam"


def stitch(case: Case, out: Path) -> dict[str, Any]:
    """Stitches a case; `slidesam.stitch` without Prefect and Dask."""
    from slidesam.flows.cluster.cluster import LocalProfile, open_cluster
    from slidesam.flows.prefect_api.server import prefect_api

    folder = out.with_name(f"{out.name}.flow")
    shutil.rmtree(folder, ignore_errors=True)
    run = _ready(case, folder / "run")
    with prefect_api(), open_cluster(LocalProfile(workers=slidesam.PROCESSES)) as workers:
        for number in range(2):
            # The first flow of a process imports, compiles and connects.
            small = Case(folder / f"warm-{number}", (1024, 1024), (64, 64), 16)
            small.save()
            slidesam.write_blocks(small)
            _flow(_ready(small, folder / f"warm-run-{number}"), workers)
        report = _flow(run, workers)
    slidesam.copy(run, case, out)
    shutil.rmtree(folder)
    return report


def _ready(case: Case, folder: Path) -> Run:
    """A run all of whose blocks are segmented."""
    run = slidesam.run_of(case, folder)
    slidesam.write_results(run, case, range(len(case)))
    steps.ready_image.fn(run)
    return run


def _flow(run: Run, cluster: Cluster) -> dict[str, Any]:
    """Runs the flow and tells its seconds apart."""

    from slidesam.flows.slide.session import Session
    from slidesam.flows.slide.stages import stitch_stage

    started = time.perf_counter()
    facts = stitch_stage.with_options(task_runner=cluster.workers().task_runner())(run, Session(cluster=cluster), {})
    wall = time.perf_counter() - started
    spent = facts.task_seconds
    wall -= spent["export"]
    own = (spent["match"] + spent["paint"]) / slidesam.PROCESSES + spent["resolve"]
    return {
        "seconds": round(wall, 3),
        "match_s": round(spent["match"] / slidesam.PROCESSES, 3),
        "resolve_s": round(spent["resolve"], 3),
        "paint_s": round(spent["paint"] / slidesam.PROCESSES, 3),
        "prefect_s": round(wall - own, 3),
    }
