"""What a profile starts, without starting it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from slidesam.flows.cluster.cluster import Cluster, open_cluster, ssh_line
from slidesam.flows.cluster.find_profile import load_profile, make_profile
from tests.support.slurm_fixtures import until


def test_one_kind_of_job_serves_all_stages_and_two_are_kept_apart() -> None:
    one, two = Cluster(load_profile("slurm-cpu")), Cluster(load_profile("slurm-gpu"))
    assert [one.pool("cpu"), one.pool("gpu"), two.pool("gpu")] == ["cpu", "cpu", "gpu"]
    # Those of larger jobs too: `slidesam clean` has to find all that a killed run may have left.
    assert one.job_names == [f"{one.name}-cpu", f"{one.name}-cpu-step1", f"{one.name}-cpu-step2"]
    assert two.job_names == [f"{two.name}-{pool}" for pool in ("cpu", "gpu", "gpu-step1", "gpu-step2")]
    assert one.name != two.name
    assert Cluster(load_profile("local")).job_names == []


def test_without_slurm_a_slurm_run_says_so(monkeypatch) -> None:
    from slidesam.tasks.errors import ClusterError

    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ClusterError, match=r"Slurm's commands aren't here on .*login or compute node"):
        _ = Cluster(load_profile("slurm-cpu")).address


def test_the_ssh_line_names_host_and_port() -> None:
    assert ssh_line("http://10.0.0.5:8787/status").startswith("ssh -N -L 8787:10.0.0.5:8787 ")


def test_a_pool_that_starts_again_has_a_dashboard_again(tmp_path: Path) -> None:
    two_pools = {"kind": "pbs", "gpu": {"gpus": 1}, "dashboard": True, "scheduler": {"host": "127.0.0.1"}}
    with open_cluster(make_profile(two_pools), tmp_path) as cluster:
        first = cluster.workers("gpu").dashboard
        assert find_link(tmp_path, first)
        cluster.end_pool("gpu")
        # `slidesam status` would show a page that is gone.
        assert not list(tmp_path.rglob("*.link"))
        second = cluster.workers("gpu").dashboard
        assert find_link(tmp_path, second).startswith(f"{second}?token=")


def find_link(logs: Path, page: str | None) -> str:
    (file,) = logs.rglob("gpu.link")
    assert page is not None
    return file.read_text().strip() if page in file.read_text() else ""


@pytest.mark.slow
def test_a_cluster_that_was_open_leaves_dasks_defaults() -> None:
    """Where Dask's distributed part is first imported with the cluster: its defaults must not go with our settings."""
    code = (
        "import dask, sys; from slidesam.flows.cluster.cluster import LocalProfile, open_cluster\n"
        "assert 'distributed' not in sys.modules\n"
        "with open_cluster(LocalProfile(workers=1)) as cluster: cluster.address\n"
        "print(dask.config.get('distributed.comm.require-encryption', 'gone'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "None"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_workers_whose_nanny_has_given_up_are_replaced() -> None:
    from slidesam.flows.cluster.cluster import LocalProfile, open_cluster

    async def close_nanny(dask_worker) -> None:
        async with dask_worker.rpc(dask_worker.nanny) as nanny:
            await nanny.close_gracefully(reason="a test")
        await dask_worker.close(nanny=True)

    with open_cluster(LocalProfile(workers=1)) as cluster, cluster.workers().connect() as client:
        (before,) = client.scheduler_info()["workers"]
        client.run(close_nanny, wait=False, on_error="ignore")
        until(lambda: before not in client.run_on_scheduler(workers_of), 60)
        assert client.run_on_scheduler(workers_of) == []
        until(lambda: cluster.replace_lost() or client.run_on_scheduler(workers_of), 60)


def workers_of(dask_scheduler) -> list[str]:
    return list(dask_scheduler.workers)
