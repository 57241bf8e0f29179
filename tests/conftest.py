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

# Files whose tests run one after the other, in one process, where pytest runs in several: jobs of two would wait for each
# other, and what is started once (a server, a checkpoint) serves all of them. Any other file is a group of its own.
# The groups that take longest begin.
GROUPS = {
    "slurm": ("slurm", "operations_slurm", "interactive", "doctor"),
    "operations": ("operations", "prefect_server"),
    "microsam": ("microsam", "microsam_pipeline", "models"),
    "cli": ("cli",),
    "flows": ("flows", "cohort", "run_page", "ui"),
    "container": ("container",),
    "device_workers": ("device_workers",),
    "faults": ("faults",),
}
GROUP_OF = {f"test_{file}": group for group, files in GROUPS.items() for file in files}


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = list(GROUP_OF)
    items.sort(key=lambda item: order.index(item.path.stem) if item.path.stem in GROUP_OF else len(order))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object):
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = Path(nodeid.partition("::")[0]).stem
            return GROUP_OF.get(file, file)

    return ByGroup(config, log)
