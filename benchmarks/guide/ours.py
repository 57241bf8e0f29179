"""slidesam's own flow on local workers: the same as `slidesam segment`, but for models that are loaded before it, to be timed.

`slidesam segment` loads the model on one worker, which looks at the slide, and then on the others as they get their first
block. Here all load it at once, before the flow begins; so the segmenting stage holds no loading.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.guide.case import Case, Tiling, ours_settings
from benchmarks.guide.children import answer, ask


def run_ours(
    case: Case, tiling: Tiling, workers: int, threads: int, peaks: dict[str, float] | None = None
) -> dict[str, Any]:
    """Times slidesam in a process of its own.

    Args:
        case: What is measured.
        tiling: How blocks are cut and tiled.
        workers: Worker processes; on CUDA they share the GPU.
        threads: Of each.
        peaks: Filled with the largest peak in MiB of the processes of each role.

    Returns:
        Seconds of `start` (imports, Prefect server, workers), `load` (the model, on all workers at once), `image` (conversion),
        `prepare`, `segment` (from the end of prepare to the last block's done-mark), `stitch` (with export), `whole` (the
        process from start to end); `busy` (share of the workers' time in `segment` that blocks took), `objects`, `passes`.
    """
    output = case.folder / "ours"
    shutil.rmtree(output, ignore_errors=True)
    question = {
        "slide": case.slide, "output": output, "settings": ours_settings(case, tiling), "device": case.device,
        "workers": workers, "threads": threads, "small": case.small,
    }  # fmt: skip
    environment = {
        "PREFECT_HOME": str(case.folder / "prefect"),
        "PREFECT_LOGGING_LEVEL": "ERROR",
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    (facts,), whole = ask("benchmarks.guide.ours", question, environment, peaks=peaks)
    shutil.rmtree(output, ignore_errors=True)
    return facts | {"whole": whole, "passes": facts["blocks"] * tiling.passes}


def threads_each(case: Case, workers: int) -> int:
    """Threads of each worker, so that all together have as many as sequential micro-sam, and each at least one."""
    return max(1, case.threads // workers)


def main() -> None:
    """The child: answers with the facts of the run."""
    began = time.time()
    case = json.load(sys.stdin)
    from slidesam.flows.cluster.cluster import LocalProfile, open_cluster
    from slidesam.flows.cluster.profile import LocalGpuProfile
    from slidesam.flows.prefect_api.server import prefect_api
    from slidesam.flows.slide.segment_slide import segment_slide_in
    from slidesam.flows.slide.session import Session
    from slidesam.tasks.plan import plan_run
    from slidesam.tasks.settings.parse import make_settings

    settings = make_settings(overrides=case["settings"])
    profile: Any = (
        LocalGpuProfile(workers_per_gpu=case["workers"], threads=case["threads"])
        if case["device"] == "cuda"
        else LocalProfile(workers=case["workers"], threads=case["threads"])
    )
    slide, output = Path(case["slide"]), Path(case["output"])
    with prefect_api(), open_cluster(profile) as cluster:
        run = plan_run(slide, output, settings)
        workers = cluster.workers("gpu")
        started = time.time()
        _load_everywhere(workers, run, case["small"])
        loaded = time.time()
        facts = segment_slide_in(Session(cluster=cluster, is_cluster_shared=True), slide, output, settings)
    seconds = {"start": started - began, "load": loaded - started, **_stages(run, loaded)}
    busy = facts.task_seconds["segment"] / max(seconds["segment"] * case["workers"], 1e-9)
    answer(**seconds, busy=busy, objects=facts.objects, blocks=len(run.grid), seams=_seams(facts))


def _load_everywhere(workers: Any, run: Any, small: bool) -> None:
    """Has every worker make the run's segmenter, all at once."""
    settings, is_rgb = run.settings.segmenter.model_dump_json(), run.slide.is_rgb
    with workers.connect() as client:
        futures = [
            client.submit(
                _load,
                settings,
                is_rgb,
                run.segmenter_identity,
                small,
                workers=[worker],
                pure=False,
                key=f"load-{worker}",
            )
            for worker in client.scheduler_info(n_workers=-1)["workers"]
        ]
        client.gather(futures)


def _load(settings: str, is_rgb: bool, identity: str, small: bool) -> int:
    """On a worker: its process keeps the segmenter; returns the process's id."""
    if small:
        from tests.support.microsam_small import use_small_networks

        use_small_networks()
    from slidesam.tasks.segmenters import load_segmenter

    load_segmenter(settings, is_rgb, identity)
    return os.getpid()


def _stages(run: Any, began: float) -> dict[str, float]:
    """Wall seconds of the stages, from when their files were written."""
    from slidesam.tasks.run.files import read_json

    params = run.segment_folder.params
    known = read_json(params) or {}
    prepared = params.stat().st_mtime
    last = max(path.stat().st_mtime for path in run.segment_folder.blocks.iterdir())
    return {
        "image": prepared - known["seconds"] - began,
        "prepare": known["seconds"],
        "segment": last - prepared,
        "stitch": run.paths.provenance.stat().st_mtime - last,
    }


def _seams(facts: Any) -> dict[str, Any]:
    """What the report on seams counts, without its rows."""
    return {key: value for key, value in facts.seams.model_dump().items() if isinstance(value, int | float)}


if __name__ == "__main__":
    main()
