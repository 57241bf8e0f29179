"""One of the runs of benchmarks/chaos: a command is killed while it computes blocks, and the rest must end by itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import slidesam
from benchmarks.chaos.run import Usual, hash_result, run_once
from benchmarks.chaos.scene import Scene
from benchmarks.chaos.segmenter import make_settings, number_of_block, write_slide


@pytest.fixture
def usual(made_database: Path, tmp_path: Path) -> Usual:
    """What an undisturbed run gives, without its command: computed in this process."""
    slide, output = write_slide(tmp_path / "slide.tif"), tmp_path / "out"
    slidesam.segment(slide, output, make_settings(tmp_path / "log", output), progress=False)
    return Usual(slide, hash_result(output), 60.0, made_database.parent)


def test_a_finished_block_that_is_computed_again_is_seen(tmp_path: Path) -> None:
    output, log = tmp_path / "out", tmp_path / "log"
    result = output / ".slidesam" / "slide" / "cells" / "segment-0123456789ab" / "blocks" / "6.arrays"
    result.parent.mkdir(parents=True)
    for _ in range(2):
        number_of_block(np.full((4, 4), 7, np.uint8), str(log), str(output))
        result.touch()
    assert log.read_text() == "7 0\n7 1\n"


@pytest.mark.slow
def test_a_command_that_is_killed_loses_and_leaves_nothing(usual: Usual) -> None:
    outcome = run_once(Scene, 1, usual, ["kill flow"], n_blocks=4)
    assert outcome.is_good, outcome
