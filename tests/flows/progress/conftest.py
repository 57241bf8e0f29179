"""A run for the tests of pages."""

from __future__ import annotations

from pathlib import Path

import pytest

from slidesam.tasks.plan import plan_run
from slidesam.tasks.run.run import Run
from slidesam.tasks.settings.parse import make_settings
from tests.flows.slide.test_segment_slide import faulty
from tests.support.slides import write_numbered_slide


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run of nine blocks of 64 px, of which nothing is computed."""
    slide = write_numbered_slide(tmp_path / "my|slide_1.tif")
    return plan_run(slide, tmp_path / "out", make_settings(overrides=faulty(tmp_path / "log")))
