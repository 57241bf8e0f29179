"""How the doctor gets at workers that run already."""

from __future__ import annotations

import pytest

from slidesam.flows.cluster.find_profile import load_profile
from slidesam.flows.doctor.doctor import examine_there
from slidesam.tasks.settings.parse import make_settings
from tests.support.doctor import api, configured, named
from tests.support.prefect_fixtures import THIRD_PARTY_WARNINGS

pytestmark = [pytest.mark.filterwarnings(each) for each in THIRD_PARTY_WARNINGS]
WATERSHED = make_settings(overrides={"segmenter.kind": "watershed"})


def test_workers_of_a_cluster_that_runs_need_the_preload() -> None:
    from dask.distributed import LocalCluster

    with (
        api() as url,
        configured(url),
        LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address="127.0.0.1:0") as cluster,
    ):
        where = load_profile("attach", {"address": cluster.scheduler_address})
        host = "127.0.0.1" if "127.0.0.1" in cluster.scheduler_address else cluster.workers[0].ip
        found = named(examine_there(where, WATERSHED, None, []))
    assert found[f"worker on {host}: worker"].state == "failed"
    assert "2 threads and without slidesam.flows.cluster.on_worker" in found[f"worker on {host}: worker"].what
    assert "--preload slidesam.flows.cluster.on_worker --nthreads 1" in found[f"worker on {host}: worker"].cure
    assert found[f"worker on {host}: versions"].state == found[f"worker on {host}: segmenter"].state == "ok"
