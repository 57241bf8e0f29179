"""A real Prefect server and a real local cluster for the tests that need them, once per session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

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
    """URL of the API of a server that runs for the session."""
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

    from slidesam.flows.server import prefect_api

    with (
        temporary_settings({PREFECT_HOME: prefect_home, PREFECT_API_URL: None}),
        prefect_api() as url,
    ):
        yield url


@pytest.fixture(scope="session")
def two_workers(prefect_server: str) -> Iterator[object]:
    """A local cluster of two workers that flows with this profile share."""
    from slidesam.flows.cluster import LocalProfile, open_cluster

    with open_cluster(LocalProfile(workers=2)) as cluster:
        yield cluster
