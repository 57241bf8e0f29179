"""What several test files need. Nothing here imports Prefect or torch, so that pure tests stay fast."""

from __future__ import annotations

import os
from collections.abc import Iterator
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

# As a site allows its own segmenters: many tests name functions of `tests`.
os.environ.setdefault("SLIDESAM_ALLOW", "tests.*")

# Where this is set (CI sets it), a skipped test is a failed one: nothing is left out unnoticed.
NO_SKIPS = bool(os.environ.get("SLIDESAM_NO_SKIPS"))

# How names of files begin whose tests run one after the other, in one process, where pytest runs in several: what is started
# once (a server, workers, a checkpoint) serves all of them. Any other file is a group of its own. The longest groups begin.
GROUPS = {
    "slurm": ("flows/cluster/test_slurm",),
    "microsam": ("tasks/segmenters/microsam/",),
    "flows": ("flows/slide/", "flows/progress/"),
    "operations": ("flows/many/test_operations",),
    "jobs": ("flows/many/test_operations_slurm", "infra/test_interactive", "flows/doctor/"),
    "cli": ("flows/cli/", "flows/many/test_cohort"),
    "container": ("infra/test_container",),
    "prefect-server": ("infra/test_prefect_server",),
    "stitch": ("tasks/stitch/",),
    "device workers": ("flows/cluster/test_device_workers",),
}
GROUP_OF = {f"tests/{beginning}": group for group, beginnings in GROUPS.items() for beginning in beginnings}


@pytest.fixture(autouse=True)
def environment_is_left_as_it_was() -> Iterator[None]:
    """What a test leaves in the environment would change those that run after it, in whichever order that is."""
    before = _environment()
    yield
    after = _environment()
    changed = {name: after.get(name) for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert not changed, f"the test left the environment changed, use monkeypatch: {changed}"


# What changes how slidesam, Prefect or Python behave. Libraries set others when they are imported.
_WATCHED = ("SLIDESAM_", "PREFECT_", "MICROSAM_", "PYTHONSAFEPATH", "PYTHONPATH", "HOME", "PATH", "TMPDIR")


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(_WATCHED)}


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
        group = group_of(item.nodeid)
        return order.index(group) if group in order else len(order)

    items.sort(key=place)


def group_of(nodeid: str) -> str:
    """Name the group of a test: its file, unless GROUPS names another."""
    beginnings = [beginning for beginning in GROUP_OF if nodeid.startswith(beginning)]
    return GROUP_OF[max(beginnings, key=len)] if beginnings else nodeid.partition("::")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object):
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return ByGroup(config, log)
