"""A real Prefect server and a real local cluster for the tests that need them, once per session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import slurm_fixtures

# What Prefect, Dask and their dependencies warn about among themselves; ours stay errors.
THIRD_PARTY_WARNINGS = [
    "ignore::DeprecationWarning:prefect.*",
    "ignore::DeprecationWarning:pydantic.*",
    "ignore::DeprecationWarning:websockets.*",
    "ignore::ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
]


@pytest.fixture(scope="session")
def prefect_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PREFECT_HOME of the tests: their history, apart from the user's."""
    return tmp_path_factory.mktemp("prefect-home")


@pytest.fixture(scope="session")
def prefect_server(prefect_home: Path) -> Iterator[str]:
    """URL of the API of a server that runs for the session, where the nodes of a Slurm for tests can reach it too.

    It has no password, unlike one that slidesam starts beyond loopback: a browser would have to know it.
    """
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

    from slidesam.flows.prefect_api import server

    url, process, log = server._start(prefect_home, slurm_fixtures.HOST if slurm_fixtures.is_up() else "127.0.0.1", "")
    try:
        server._wait(url, process, log)
        with temporary_settings({PREFECT_HOME: prefect_home, PREFECT_API_URL: url}):
            yield url
            server._hand_over()
    finally:
        server._stop(process)


@pytest.fixture(scope="session")
def two_workers(prefect_server: str) -> Iterator[object]:
    """A local cluster of two workers that flows with this profile share."""
    from slidesam.flows.cluster.cluster import LocalProfile, open_cluster

    with open_cluster(LocalProfile(workers=2)) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def cmu1_result(cmu1: Path, two_workers: object, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CMU-1 segmented by two workers."""
    from tests.flows.slide.test_segment_slide import CMU1_SETTINGS, segment

    output = tmp_path_factory.mktemp("cmu1")
    segment(two_workers, cmu1, output, CMU1_SETTINGS)
    return output
