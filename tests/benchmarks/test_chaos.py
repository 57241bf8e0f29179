"""A few of the runs of benchmarks/chaos.py, which are disturbed at random."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.chaos import DISTURBANCES, hash_result, run_once, write_slide

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> tuple[Path, str]:
    """The slide, and the hash of what the Python interface makes of it, undisturbed."""
    import slidesam

    folder = tmp_path_factory.mktemp("chaos")
    slide = write_slide(folder / "slide.tif")
    settings = {
        "segmenter": {"kind": "function", "target": "benchmarks.chaos:number_of_block", "options": {"log": str(folder / "log")}},
        "blocks": {"block_shape": 64, "halo": 0, "tissue": "off"},
    }  # fmt: skip
    slidesam.segment(slide, folder / "out", settings=settings)
    return slide, hash_result(folder / "out")


@pytest.mark.parametrize("deed", ["kill group", "disk"])
def test_a_disturbed_run_loses_nothing(deed: str, expected: tuple[Path, str]) -> None:
    if deed == "disk" and os.geteuid():
        pytest.skip("only root can mount a small disk")
    slide, result = expected
    # A seed of this disturbance alone.
    seed = next(seed for seed in range(1000) if DISTURBANCES[seed % len(DISTURBANCES)] == deed and _draws_one(seed))
    outcome = run_once(seed, slide, result, 15, with_root=not os.geteuid())
    assert outcome.is_good, outcome


def _draws_one(seed: int) -> bool:
    import random

    return random.Random(seed).randint(0, 1) == 0
