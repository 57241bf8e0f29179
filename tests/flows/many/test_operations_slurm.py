"""The deployment `slide` on a real Slurm: nodes report to a server with a password, and a cancelled run frees the queue."""

from __future__ import annotations

import urllib.error
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.support import ROOT
from tests.support.prefect_fixtures import THIRD_PARTY_WARNINGS
from tests.support.prefect_server_fixtures import HAS_POSTGRES, PATIENCE, Server, blocks_done, server_folder, settings
from tests.support.slides import write_numbered_slide
from tests.support.slurm_fixtures import HOST, profile, queue, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.slurm,
    pytest.mark.skipif(not HAS_POSTGRES, reason="PostgreSQL isn't here: infra/prefect-server/prefect-server install"),
    *(pytest.mark.filterwarnings(warning) for warning in THIRD_PARTY_WARNINGS),
]


@pytest.fixture(scope="module")
def server(slurm_up: None) -> Iterator[Server]:
    with server_folder() as folder:
        server = Server(folder, host=HOST)
        try:
            server.start(PYTHONPATH=str(ROOT))
            yield server
            assert server("stop").returncode == 0
        finally:
            server.kill()


def test_jobs_report_to_a_server_with_a_password_and_a_cancelled_run_frees_the_queue(
    empty_queue, server: Server, tmp_path: Path
) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        server.api("flow_runs/filter", {}, password="")
    server.profiles.mkdir()
    cluster = server.profiles / "cluster.yaml"
    cluster.write_text(yaml.safe_dump(profile("slurm-cpu", cpu__maximum_jobs=2).model_dump(mode="json")))

    slide, log = write_numbered_slide(tmp_path / "reported.tif"), tmp_path / "reported.log"
    run = server.begin("slide", slide=str(slide), settings=settings(log), cluster=str(cluster))
    assert server.ended(run)["state"]["type"] == "COMPLETED"
    (blocks,) = [child for child in server.runs(parent_flow_run_id={"any_": [run]}) if "segment" in child["name"]]
    tasks = server.api("task_runs/filter", {"task_runs": {"flow_run_id": {"any_": [blocks["id"]]}}})
    states = Counter(task["state"]["name"] for task in tasks if task["name"].startswith("block "))
    assert states == {"Completed": 9}
    assert until(lambda: queue() == [], 90)

    slide, log = write_numbered_slide(tmp_path / "cancelled.tif", 6, 6), tmp_path / "cancelled.log"
    run = server.begin("slide", slide=str(slide), settings=settings(log, seconds=0.5), cluster=str(cluster))
    until(lambda: blocks_done(log) >= 4, PATIENCE)
    server.api(f"flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})
    assert server.ended(run)["state"]["type"] == "CANCELLED"
    assert until(lambda: queue() == [], 90)
    assert blocks_done(log) < 36
    children = server.runs(parent_flow_run_id={"any_": [run]})
    assert not {child["state"]["type"] for child in children} & {"RUNNING", "PENDING"}
