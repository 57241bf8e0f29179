"""What several test files need. Nothing here imports Prefect or torch, so that pure tests stay fast."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support import ROOT

pytest_plugins = [
    "tests.support.container_fixtures",
    "tests.support.microsam_fixtures",
    "tests.support.slurm_fixtures",
    "tests.support.prefect_fixtures",
    "tests.support.ui_fixtures",
]

# Where this is set (CI sets it), a skipped test is a failed one: nothing is left out unnoticed.
NO_SKIPS = bool(os.environ.get("SLIDESAM_NO_SKIPS"))

# Files whose tests run one after the other, in one process, where pytest runs in several: jobs of two would wait for each
# other, and what is started once (a server, a checkpoint) serves all of them. Any other file is a group of its own.
# The groups that take longest begin.
GROUPS = {
    "slurm": (
        "flows/cluster/test_slurm",
        "flows/many/test_operations_slurm",
        "infra/test_interactive",
        "flows/doctor/test_doctor",
    ),
    "operations": ("flows/many/test_operations", "infra/test_prefect_server"),
    "microsam": tuple(
        f"tasks/segmenters/microsam/test_{file}" for file in ("segmenter", "encoder", "library", "pipeline", "offline")
    ),
    "cli": ("flows/cli/test_app",),
    "flows": (
        "flows/slide/test_segment_slide",
        "flows/many/test_cohort",
        "flows/progress/test_run_page",
        "flows/progress/test_ui",
    ),
    "container": ("infra/test_container",),
    "device_workers": ("flows/cluster/test_device_workers",),
    "faults": ("flows/slide/test_faults",),
}
GROUP_OF = {f"tests/{file}.py": group for group, files in GROUPS.items() for file in files}


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
    order = list(GROUPS)

    def place(item: pytest.Item) -> int:
        group = GROUP_OF.get(item.nodeid.partition("::")[0])
        return len(order) if group is None else order.index(group)

    items.sort(key=place)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object):
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return GROUP_OF.get(file, file)

    return ByGroup(config, log)
