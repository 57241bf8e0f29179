"""What several test files need. Nothing here imports Prefect or torch, so that pure tests stay fast."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytest_plugins = [
    "tests.container_fixtures",
    "tests.microsam_fixtures",
    "tests.slurm_fixtures",
    "tests.prefect_fixtures",
    "tests.ui_fixtures",
]

# Where this is set (CI sets it), a skipped test is a failed one: nothing is left out unnoticed.
NO_SKIPS = bool(os.environ.get("SLIDESAM_NO_SKIPS"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real slides beside the checkout."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here: real slides are kept beside the checkout")
    return folder


@pytest.fixture(scope="session")
def cmu1(shared_data: Path) -> Path:
    """A real Aperio SVS, 2967 × 2220 px, 0.499 µm."""
    return shared_data / "svs_cmu1_small" / "CMU-1-Small-Region.svs"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if NO_SKIPS and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped where no test may be: {report.longrepr}"
    return report
