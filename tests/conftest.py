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


# What shares something costly, or the one Slurm, runs in one process; the longest first, so that none is left alone with them.
_GROUPS = {
    "slurm": ("test_slurm", "test_doctor", "test_interactive"),
    "microsam": ("test_microsam", "test_microsam_pipeline"),
    "flows": ("test_flows", "test_faults"),
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Says which tests go to one process where several run (`pytest -n 3 --dist loadgroup`)."""
    order = [*_GROUPS, ""]
    group_of = {file: group for group, files in _GROUPS.items() for file in files}

    def group(item: pytest.Item) -> str:
        return group_of.get(item.path.stem, item.path.stem)

    items.sort(key=lambda item: order.index(group(item)) if group(item) in _GROUPS else len(order))
    for item in items:
        item.add_marker(pytest.mark.xdist_group(group(item)))
