"""A real Prefect server and a real local cluster for the tests that need them, once per session."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import slurm_fixtures

if TYPE_CHECKING:
    from prefect.context import ContextModel

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
def made_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first server of the session leaves its database as it made it, for all processes: that takes 3 s."""
    folder = tmp_path_factory.getbasetemp()
    return (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "prefect.db"


def copy_database(database: Path, target: Path) -> None:
    """Copy a server's database, whole, even while a server has it open."""
    # What is at the target's place is there whole or not at all.
    copy = target.with_name(f"{target.name}.{os.getpid()}")
    with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(copy)) as made:
        source.backup(made)
    copy.replace(target)


@pytest.fixture(scope="session")
def prefect_server(prefect_home: Path, made_database: Path) -> Iterator[str]:
    """URL of the API of a server that runs for the session, where the nodes of a Slurm for tests can reach it too.

    It has no password, unlike one that slidesam starts: a browser would have to know it.
    """
    from prefect.context import get_settings_context
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

    from slidesam.flows.prefect_api.own_server import OwnServer
    from slidesam.flows.prefect_api.server import hand_over

    host = slurm_fixtures.HOST if slurm_fixtures.is_up() else "127.0.0.1"
    with made_database.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        is_first = not made_database.exists()
        if not is_first:
            copy_database(made_database, prefect_home / "prefect.db")
            fcntl.flock(lock, fcntl.LOCK_UN)
        with OwnServer(prefect_home, host, password="") as server:
            server.wait_until_ready()
            if is_first:
                copy_database(prefect_home / "prefect.db", made_database)
                fcntl.flock(lock, fcntl.LOCK_UN)
            _settings_without_server.append(get_settings_context())
            with temporary_settings({PREFECT_HOME: prefect_home, PREFECT_API_URL: server.url}):
                yield server.url
                hand_over()


_settings_without_server: list[ContextModel] = []


@pytest.fixture(autouse=True)
def only_who_asks_sees_the_server(request: pytest.FixtureRequest) -> Iterator[None]:
    """Prefect's settings as they were before the server for tests that don't ask for it: others may have asked before."""
    if not _settings_without_server or "prefect_server" in request.fixturenames:
        yield
    else:
        with _settings_without_server[0].model_copy():
            yield


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
