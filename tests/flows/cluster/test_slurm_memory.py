"""On a real Slurm: blocks that run out of memory get larger jobs, and nothing else does."""

from __future__ import annotations

import re
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from slidesam.tasks.errors import BlockFailures
from slidesam.tasks.run.status import read_state
from tests.flows.cluster.test_slurm import counts, lines, run_on
from tests.flows.slide.test_segment_slide import faulty
from tests.support.prefect_fixtures import THIRD_PARTY_WARNINGS
from tests.support.slides import write_numbered_slide
from tests.support.slurm_fixtures import profile, queue, until

pytestmark = [pytest.mark.slow, pytest.mark.slurm, *(pytest.mark.filterwarnings(each) for each in THIRD_PARTY_WARNINGS)]


def test_a_block_that_is_killed_for_memory_as_the_kernel_does_is_tried_again_in_a_larger_job_that_only_it_gets(
    slurm, tmp_path: Path
) -> None:
    log, slide, seen = tmp_path / "log", write_numbered_slide(tmp_path / "hungry.tif", 4, 4), {}
    settings = faulty(log, hungry=6, mib=650, deed="kill") | {
        "segmenter.target": "tests.support.faults:hungry_pieces", "run.retries": 0,
    }  # fmt: skip
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            seen.update({job[0]: (job[1], memory_of(job[0])) for job in queue() if job[0] not in seen})
            time.sleep(0.3)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        where = profile(
            "slurm-cpu", cpu__maximum_jobs=2, cpu__memory=1, cpu__memory_steps=[1.1, 3], memory_per_cpu=True
        )
        assert run_on(where, slide, tmp_path / "out", settings).objects == 16
    finally:
        stop.set()
        thread.join()
    # Twice it was near the limit of its job; nothing else was done twice.
    begun = Counter(line for line in lines(log) if line.endswith("begun"))
    assert begun == {f"{k} begun": 3 if k == 6 else 1 for k in range(1, 17)}
    sizes = Counter((name.rpartition("-")[2], memory) for name, memory in seen.values())
    assert {pool: memory for pool, memory in sizes if pool != "cpu"} == {"step1": "1127M", "step2": "3G"}
    assert {memory for pool, memory in sizes if pool == "cpu"} == {"1G"}
    state = read_state(tmp_path / "out", "hungry", "cells")
    (first, second) = state.warnings[-2:]
    assert re.search(r"block 5 ran out of memory at 0\.9\d* GiB of 1 GiB on node., which ended its worker", first)
    assert first.endswith("Tried again: jobs of 1.1 GiB")
    assert second.endswith("Tried again: jobs of 3 GiB")
    assert until(lambda: queue() == [], 90)


def memory_of(job: str) -> str:
    """What a job asked for, per core."""
    text = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, check=False).stdout
    match = re.search(r"MinMemoryCPU=(\S+)", text)
    return match[1] if match else ""


def test_where_no_larger_job_can_be_had_the_block_fails_with_the_queues_words_and_the_others_stay(
    slurm, tmp_path: Path
) -> None:
    log, slide = tmp_path / "log", write_numbered_slide(tmp_path / "toolarge.tif")
    settings = faulty(log, hungry=5, mib=650, deed="kill") | {"segmenter.target": "tests.support.faults:hungry_pieces"}
    where = profile("slurm-cpu", cpu__maximum_jobs=2, cpu__memory=1, cpu__memory_steps=[4000])
    with pytest.raises(
        BlockFailures,
        match=r"block 4 ran out of memory at .*; jobs of 4000 GiB can't be had: nobody computes: the queue refuses",
    ) as caught:
        run_on(where, slide, tmp_path / "out", settings)
    assert caught.value.block_ids == (4,)
    assert len(counts(log)) == 8
