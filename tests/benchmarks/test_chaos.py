"""Two of the runs of benchmarks/chaos.py, which are disturbed at random."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.chaos import run_once, run_undisturbed, write_slide


@pytest.mark.slow
def test_a_run_whose_server_or_worker_is_killed_loses_nothing(tmp_path: Path) -> None:
    slide, with_root = write_slide(tmp_path / "slide.tif"), os.geteuid() == 0
    expected, seconds = run_undisturbed(slide, with_root=with_root)
    with ThreadPoolExecutor() as pool:
        outcomes = list(pool.map(lambda seed: run_once(seed, slide, expected, seconds, with_root=with_root), (1, 2)))
    assert all(outcome.is_good for outcome in outcomes), outcomes
