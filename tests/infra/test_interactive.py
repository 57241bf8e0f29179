"""infra/interactive/cluster: started, stopped, killed, on this machine and inside jobs of a real Slurm."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.flows.slide.test_segment_slide import faulty, labels_of
from tests.support import ROOT
from tests.support.intruder import listening, what_an_intruder_gets
from tests.support.prefect_fixtures import THIRD_PARTY_WARNINGS
from tests.support.serial import segment_serially
from tests.support.slides import write_numbered_slide

CLUSTER = ROOT / "infra" / "interactive" / "cluster"
pytestmark = [pytest.mark.filterwarnings(warning) for warning in THIRD_PARTY_WARNINGS]
ELSEWHERE = 'export PYTHONSAFEPATH=1 && cd / && exec "$@"'
# What each worker sees, for a scheduler's address and the file of its key.
LOOK = """
import json, os, sys
from pathlib import Path
from dask.distributed import Client
from slidesam.flows.cluster.keys import make_security
def look():
    import os
    return os.environ["SLIDESAM_DEVICE"], os.environ["CUDA_VISIBLE_DEVICES"], os.environ.get("SLURMD_NODENAME"), os.getpid()
with Client(sys.argv[1], security=make_security(Path(sys.argv[2].removeprefix("ca_file=")).read_text())) as client:
    names = {address: worker["name"] for address, worker in client.scheduler_info(n_workers=-1)["workers"].items()}
    print("seen", json.dumps({names[address]: seen for address, seen in client.run(look).items()}))
"""


class Cluster:
    """The script, with a state folder of its own and without a job around it."""

    def __init__(self, folder: Path) -> None:
        self.state, self.imported, self.current_folder = folder / "state", folder / "imported", folder / "current"
        # It is called in a folder that others have filled.
        self.current_folder.mkdir()
        for name in ("slidesam", "distributed", "dask", "cryptography", "psutil", "msgpack"):
            (self.current_folder / f"{name}.py").write_text(f"open({str(self.imported)!r}, 'w')\nraise ImportError")
        unwanted = ("SLURM", "CUDA_", "SLIDESAM_", "CLUSTER_", "DASK_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
        own = {"SLIDESAM_INTERACTIVE": self.state, "SLIDESAM_PYTHON": sys.executable, "TEMP_DIR": folder / "temp"}
        self.environment = kept | {name: str(value) for name, value in own.items()}

    def __call__(self, *arguments: str, code: int = 0, **variables: str) -> str:
        command = [str(CLUSTER), *arguments]
        environment = self.environment | variables
        done = subprocess.run(
            command,
            env=environment,
            cwd=self.current_folder,
            capture_output=True,
            text=True,
            timeout=250,
            check=False,
        )
        assert done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout if code in (0, 3) else done.stdout + done.stderr

    def processes(self) -> list[psutil.Process]:
        """All that it started and that lives: they, and nothing else, have its folder in their environment."""
        found = []
        for process in psutil.process_iter(["environ", "status"]):
            around = process.info["environ"] or {}
            ours = around.get("SLIDESAM_INTERACTIVE") == str(self.state) and process.info["status"] != "zombie"
            if ours:
                found.append(process)
        return found

    def kill(self, name: str) -> None:
        """SIGKILL its first process, and wait until that is gone: a big one takes a moment to give its memory back."""
        pid = int((self.state / f"{name}.pid").read_text().split()[0])
        os.kill(pid, signal.SIGKILL)
        self.wait_while(lambda: pid in {process.pid for process in self.processes()})

    def wait_while(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while condition():
            assert time.monotonic() < deadline, self.processes()
            time.sleep(0.1)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    script = Cluster(tmp_path)
    yield script
    for process in script.processes():
        process.kill()


def address_in(text: str) -> list[str]:
    """The scheduler's address, and the file of its key."""
    found = re.search(r"--cluster attach --scheduler (tls://\S+) --cluster-set (ca_file=\S+)", text)
    assert found, text
    return [found[1], found[2]]


def seen_at(address: list[str]) -> dict[str, list[str]]:
    """Worker → device, CUDA_VISIBLE_DEVICES, node, process."""
    done = subprocess.run(
        [sys.executable, "-c", LOOK, *address], capture_output=True, text=True, timeout=120, check=True
    )
    return seen_in(done.stdout)


def seen_in(text: str) -> dict[str, list[str]]:
    (line,) = [line for line in text.splitlines() if line.startswith("seen ")]
    return json.loads(line.removeprefix("seen "))


def test_help_names_every_option(cluster: Cluster) -> None:
    text = cluster("--help")
    options = re.findall(r"^ +(--[a-z-]+)\)", CLUSTER.read_text(), re.MULTILINE)
    assert len(options) == 10
    assert all(f"  {option} " in text for option in options)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["start", "--workers", "many"], "--workers takes a number, not 'many'"),
        (["start", "--wrokers", "2"], "--wrokers isn't known"),
        (["start", "--gpus"], "--gpus needs a value"),
        (["start", "--container", "a.sif"], "neither apptainer nor singularity is here"),
    ],
)
def test_senseless_options_are_refused(cluster: Cluster, arguments: list[str], words: str) -> None:
    if "a.sif" in arguments and (shutil.which("apptainer") or shutil.which("singularity")):
        pytest.skip("apptainer is here")
    assert words in cluster(*arguments, code=1)
    assert cluster.processes() == []


def test_where_nothing_runs_there_is_nothing_to_stop(cluster: Cluster) -> None:
    assert cluster("stop") == "nothing runs\n"
    assert cluster("status", code=3) == "nothing runs\n"
    assert not cluster.state.exists()


def test_a_job_whose_nodes_are_elsewhere_is_refused(cluster: Cluster) -> None:
    assert "this shell isn't on a node of job 7" in cluster("start", code=1, SLURM_JOB_ID="7")
    two = {"SLURM_JOB_ID": "7", "SLURMD_NODENAME": "node1", "SLURM_JOB_NUM_NODES": "2"}
    assert "can't reach 127.0.0.1" in cluster("start", "--host", "127.0.0.1", code=1, **two)


def test_devices_that_are_not_there_start_nothing_and_leave_the_log(cluster: Cluster) -> None:
    text = cluster("start", "--host", "127.0.0.1", "--port", "0", "--gpus", "2", code=1, CUDA_VISIBLE_DEVICES="5")
    assert "the workers ended while starting" in text
    assert "2 GPUs (or MIG instances) are expected and 1 are there (5; CUDA_VISIBLE_DEVICES is '5')" in text
    assert cluster.processes() == []
    assert "are expected" in (cluster.state / "workers.log").read_text()
    assert not cluster.imported.exists()
    cluster("stop")
    assert not cluster.state.exists()


@pytest.fixture
def fake_apptainer(cluster: Cluster, tmp_path: Path) -> Path:
    """A container command that runs what it is told on this machine, and notes how it was called."""
    log, command = tmp_path / "calls", tmp_path / "apptainer"
    command.write_text(f'#!/bin/bash\necho "$*" >>{log}\nuntil [[ $1 == *.sif ]]; do shift; done\nshift\nexec "$@"\n')
    (tmp_path / "python3").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    for path in (command, tmp_path / "python3"):
        path.chmod(0o755)
    cluster.environment["PATH"] = f"{tmp_path}:{cluster.environment['PATH']}"
    return log


@pytest.mark.slow
def test_in_a_container(cluster: Cluster, fake_apptainer: Path, tmp_path: Path) -> None:
    options = ["--container", "a.sif", "--bind", "/data,/out", "--gpus", "1", "--host", "127.0.0.1", "--port", "0"]
    text = cluster("start", *options, CUDA_VISIBLE_DEVICES="GPU-7")
    assert [seen[:2] for seen in seen_at(address_in(text)).values()] == [["GPU-7", "GPU-7"]]
    keys, scheduler, workers = fake_apptainer.read_text().splitlines()
    binds = (
        f"--bind {cluster.state} --bind {tmp_path}/temp --bind /data,/out a.sif sh -c {ELSEWHERE} slidesam python3 -m "
    )
    assert keys == f"exec {binds}slidesam.flows.cluster.keys {cluster.state}/keys.pem"
    assert scheduler.startswith(f"exec {binds}distributed.cli.dask_scheduler")
    assert workers.startswith(f"exec --nv {binds}slidesam.flows.cluster.device_workers")
    assert cluster("stop").endswith("no process is left\n")
    assert cluster.processes() == []


@pytest.mark.slow
def test_started_twice_killed_started_again_and_stopped_twice(cluster: Cluster) -> None:
    options = ["--workers", "2", "--gpus", "0", "--host", "127.0.0.1", "--port", "0"]
    text = cluster("start", *options)
    address = address_in(text)
    found = seen_at(address)
    assert [seen[:2] for seen in found.values()] == [["cpu", ""], ["cpu", ""]]
    # Libraries such as Numba read settings from the current folder.
    assert {process.cwd() for process in cluster.processes()} == {"/"}
    assert not cluster.imported.exists()
    nobody_else_gets_in(cluster)
    before = {process.pid for process in cluster.processes()}
    again = cluster("start", *options)
    assert again.startswith("runs already")
    assert address_in(again) == address
    assert {process.pid for process in cluster.processes()} == before
    assert "with 2 workers" in cluster("status")

    cluster.kill("scheduler")
    # Dask's workers try for a while to reach it, on a busy machine for less than a start takes: what counts is that nobody takes
    # the rest for a cluster.
    assert "not whole: only processes of the workers are left" in cluster("status", code=1)
    text = cluster("start", *options)
    assert not before & {process.pid for process in cluster.processes()}
    assert len(seen_at(address_in(text))) == 2

    cluster.kill("workers")
    cluster.wait_while(lambda: len(cluster.processes()) > 1)
    assert "only processes of the scheduler are left" in cluster("status", code=1)
    assert cluster("stop").endswith("no process is left\n")
    assert cluster.processes() == []
    assert not cluster.state.exists()
    assert cluster("stop") == "nothing runs\n"


def nobody_else_gets_in(cluster: Cluster) -> None:
    """All processes listen on loopback and tell another user nothing, and nobody else can read the key."""
    addresses = listening({process.pid for process in cluster.processes()})
    # The scheduler, and two workers with a nanny each.
    assert {host for host, _ in addresses} == {"127.0.0.1"}
    assert len(addresses) == 5
    assert [path.stat().st_mode & 0o777 for path in (cluster.state, cluster.state / "keys.pem")] == [0o700, 0o600]
    if os.geteuid() == 0:
        assert what_an_intruder_gets(addresses) == {}


def slurm_partitions() -> set[str]:
    """Partitions of a Slurm that answers."""
    if shutil.which("sinfo") is None:
        return set()
    done = subprocess.run(["sinfo", "-h", "-o", "%R"], capture_output=True, text=True, timeout=30, check=False)
    return set(done.stdout.split()) if done.returncode == 0 else set()


def in_job(cluster: Cluster, resources: list[str], start: str, then: str = "") -> str:
    """What starting, looking, some more lines and stopping prints inside a job, with the processes that are left in it."""
    script = f"""
        set -e
        out=$({CLUSTER} start {start} 2>&1) || {{ echo "$out"; exit 1; }}
        echo "$out"
        attach=$(sed -n 's/.*--scheduler //p' <<<"$out")
        "$SLIDESAM_PYTHON" -c "$LOOK" "${{attach%% *}}" "${{attach##* }}"
        {then}
        {CLUSTER} stop
    """
    step = ["srun", "--nodes=1", "--ntasks=1", "--cpus-per-task=4", "bash", "-c", script]
    done = subprocess.run(
        ["salloc", "--quiet", "--immediate=60", "--time=5", "--cpus-per-task=4", *resources, *step],
        env=cluster.environment | {"LOOK": LOOK, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(
    "gpu" not in slurm_partitions(), reason="no Slurm with a partition gpu: infra/dev-slurm/slurm start"
)
def test_in_a_job_with_two_gpus_each_worker_sees_one(shared_slurm, cluster: Cluster) -> None:
    text = in_job(cluster, ["--partition=gpu", "--gres=gpu:2", "--ntasks=1"], "--gpus 2")
    assert sorted(seen[:2] for seen in seen_in(text).values()) == [["0", "0"], ["1", "1"]]
    assert "stopped: no process is left" in text
    assert cluster.processes() == []


@pytest.mark.slow
@pytest.mark.skipif(
    "cpu" not in slurm_partitions(), reason="no Slurm with a partition cpu: infra/dev-slurm/slurm start"
)
def test_in_a_job_of_two_nodes_each_has_workers_which_segment_a_slide(
    shared_slurm, cluster: Cluster, tmp_path: Path
) -> None:
    log, slide = tmp_path / "log", write_numbered_slide(tmp_path / "attached.tif", 4, 5)
    settings = [part for key, value in faulty(log, seconds=0.3).items() for part in ("--set", f"{key}={value}")]
    segment = shlex.join([
        str(Path(sys.executable).with_name("slidesam")), "segment", str(slide), "-o", str(tmp_path / "out"), *settings,
        "--cluster", "attach", "--scheduler",
    ])  # fmt: skip
    # A run that has a server of its own needs it where workers of the other node can reach it.
    then = f"env -u PREFECT_API_URL PREFECT_HOME={tmp_path}/prefect {segment} $attach"
    text = in_job(cluster, ["--partition=cpu", "--nodes=2", "--ntasks-per-node=1"], "--gpus 0 --name many", then)
    assert "attached: 20 cells in 20 blocks" in text
    np.testing.assert_array_equal(
        labels_of(tmp_path / "out", "attached"),
        segment_serially(slide, tmp_path / "serial", faulty(tmp_path / "other")),
    )
    found = seen_in(text)
    assert sorted(found) == ["many-node1", "many-node2"]
    assert sorted(seen[2] for seen in found.values()) == ["node1", "node2"]
    assert "stopped: no process is left" in text
    assert cluster.processes() == []
