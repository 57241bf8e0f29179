"""Workers pinned to devices: real launchers, a real scheduler, and an nvidia-smi that says what the test wants."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from slidesam.flows.cluster.device_workers import DeviceWorker, address_towards, divided
from slidesam.flows.cluster.keys import make_security
from tests.support import DATA
from tests.support.intruder import listening
from tests.support.prefect_fixtures import THIRD_PARTY_WARNINGS

LISTS = DATA / "nvidia_smi"
LAUNCHER = [sys.executable, "-m", "slidesam.flows.cluster.device_workers"]
INSTANCES = [f"MIG-{c * 8}-{c * 4}-{c * 4}-{c * 4}-{c * 12}" for c in "bcde"]
LAYOUT_VARIABLES = ("CUDA_VISIBLE_DEVICES", "SLIDESAM_DEVICE", "OMP_NUM_THREADS", "MALLOC_TRIM_THRESHOLD_")
pytestmark = [pytest.mark.filterwarnings(warning) for warning in THIRD_PARTY_WARNINGS]


def environment(folder: Path, smi: str | None = None, **variables: str) -> dict[str, str]:
    """The test's own environment without what would decide on devices and threads, and with an nvidia-smi."""
    command = folder / "nvidia-smi"
    command.write_text(f"#!/bin/sh\ncat {LISTS}/{smi}.txt\n" if smi else "#!/bin/sh\nexit 9\n")
    command.chmod(0o755)
    unwanted = ("CUDA_", "SLIDESAM_", "OMP_", "MKL_", "OPENBLAS_", "MALLOC_", "SLURM_", "DASK_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
    return {**kept, "PATH": f"{folder}:{kept['PATH']}", **variables}


def launch(arguments: list[str], variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """A launcher that is expected to end by itself."""
    return subprocess.run(
        [*LAUNCHER, *arguments], env=variables, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "smi", "variables", "words"),
    [
        (["--gpus", "2"], None, {}, "2 GPUs (or MIG instances) are expected and 0 are there (none; CUDA_VISIBLE_DEVICES is uns"),
        (["--gpus", "1"], "four_gpus", {"CUDA_VISIBLE_DEVICES": ""}, "0 are there (none; CUDA_VISIBLE_DEVICES is '')"),
        (["--gpus", "2"], "four_gpus", {"CUDA_VISIBLE_DEVICES": "3"}, "1 are there (3; CUDA_VISIBLE_DEVICES is '3')"),
        (["--gpus", "1"], "guide", {}, "1 GPUs (or MIG instances) are expected and 4 are there"),
    ],
)  # fmt: skip
def test_other_devices_than_expected_are_refused(
    arguments: list[str], smi: str | None, variables: dict[str, str], words: str, tmp_path: Path
) -> None:
    done = launch(["tcp://127.0.0.1:1", *arguments], environment(tmp_path, smi, **variables))
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{socket.gethostname()}: ")
    assert words in line
    assert f"--gres=gpu:{arguments[1]}" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--workers", "2"], "required: ADDRESS"),
        (["--death-timeout", "60", "tcp://10.0.0.5:8786"], "60 is no address"),
        (["tcp://h:1", "--workers", "0"], "1 or more"),
        (["tcp://h:1", "--gpus", "-1"], "--gpus"),
        (["tcp://h:1", "--memory-limit", "plenty"], "'plenty' is no amount of memory"),
    ],
)
def test_senseless_options_are_refused(arguments: list[str], words: str, tmp_path: Path) -> None:
    done = launch(arguments, environment(tmp_path))
    assert done.returncode == 2
    assert words in done.stderr


def test_keys_that_are_gone_are_named(tmp_path: Path) -> None:
    done = launch(["tls://127.0.0.1:1", "--gpus", "0", "--keys", str(tmp_path / "keys.pem")], environment(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith("the cluster's keys can't be read: ")
    assert str(tmp_path / "keys.pem") in done.stderr


@pytest.mark.parametrize(
    ("scheduler", "address"),
    [("tls://127.0.0.1:8786", "127.0.0.1"), ("tcp://localhost:1", "127.0.0.1")],
)
def test_workers_listen_at_the_address_towards_the_scheduler(scheduler: str, address: str) -> None:
    assert address_towards(scheduler) == address


def test_help_answers_without_importing_what_takes_time(tmp_path: Path) -> None:
    assert "dask worker" in launch(["--help"], environment(tmp_path)).stdout
    code = "import sys, slidesam.flows.cluster.device_workers; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"dask", "distributed", "prefect", "torch", "numpy"}.isdisjoint(done.stdout.split())


@pytest.mark.parametrize(
    ("memory", "workers", "each"),
    [
        ("16.00GiB", 1, "16GiB"),
        ("16.00GiB", 4, "4GiB"),
        ("1.50 TiB", 2, "0.75TiB"),
        ("68719476736", 2, "34359738368"),
        ("0", 3, "0"),
        ("auto", 3, "auto"),
        ("0.5", 2, "0.25"),
        ("1", 2, "0.5"),
        ("1.0", 4, "0.25"),
    ],
)
def test_memory_is_divided(memory: str, workers: int, each: str) -> None:
    assert divided(memory, workers) == each


@pytest.mark.parametrize("memory", ["16.00GiB", "3TB", "100 kB"])
def test_dask_reads_what_is_divided(memory: str) -> None:
    from dask.utils import parse_bytes

    assert abs(parse_bytes(divided(memory, 3)) * 3 - parse_bytes(memory)) <= 3


def test_what_the_environment_says_of_threads_and_memory_holds() -> None:
    worker = DeviceWorker("a", "GPU-1", 4, "0")
    around = {"OMP_NUM_THREADS": "7", "MALLOC_TRIM_THRESHOLD_": "1", "CUDA_VISIBLE_DEVICES": "0,1"}
    assert worker.environment(around) == {
        "OMP_NUM_THREADS": "7",
        "MKL_NUM_THREADS": "4",
        "OPENBLAS_NUM_THREADS": "4",
        "MALLOC_MMAP_THRESHOLD_": str(2**35),
        "MALLOC_TRIM_THRESHOLD_": "1",
        "MALLOC_ARENA_MAX": "1",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": "GPU-1",
        "SLIDESAM_DEVICE": "GPU-1",
        "PYTHONSAFEPATH": "1",
    }


def test_options_of_dask_are_handed_on_and_those_of_slidesam_win() -> None:
    command = DeviceWorker("a-1", "0", 1, "4GiB").command("tcp://h:1", ["--death-timeout", "60", "--no-nanny"])
    assert command[3:7] == ["tcp://h:1", "--death-timeout", "60", "--no-nanny"]
    assert command.index("--nanny") > command.index("--no-nanny")
    preloads = "--preload slidesam.flows.cluster.on_worker --preload-nanny slidesam.flows.cluster.on_nanny"
    assert " ".join(command).endswith(preloads)


@pytest.fixture(scope="module")
def scheduler(keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a real scheduler."""
    folder = tmp_path_factory.mktemp("scheduler")
    options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--dashboard-address", "127.0.0.1:0"]
    options += [word for part in ("ca-file", "cert", "key") for word in (f"--tls-{part}", str(keys))]
    file = folder / "scheduler.json"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "distributed.cli.dask_scheduler", *options, "--scheduler-file", str(file)],
            stdout=log,
            stderr=log,
        )
    wait_until(lambda: file.exists() and file.read_text().endswith("}"), 120)
    yield json.loads(file.read_text())["address"]
    process.terminate()
    process.wait(120)


@pytest.fixture
def client(scheduler: str, keys: Path) -> Iterator[Any]:
    from dask.distributed import Client

    with Client(scheduler, security=make_security(str(keys)), set_as_default=False) as connected:
        yield connected


@pytest.fixture
def started(scheduler: str, keys: Path, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts launchers, and leaves none of their processes behind, whatever the test comes to."""
    launchers: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str, smi: str | None = None, **variables: str) -> subprocess.Popen[bytes]:
        with (tmp_path / f"log{len(launchers)}").open("wb") as log:
            launchers.append(
                subprocess.Popen(
                    [*LAUNCHER, scheduler, "--keys", str(keys), *arguments, "--local-directory", str(tmp_path)],
                    env=environment(tmp_path, smi, **variables),
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )
        return launchers[-1]

    yield start
    left = [process for launcher in launchers for process in session(launcher.pid)]
    for process in left:
        process.kill()
    for launcher in launchers:
        launcher.wait(120)


def session(leader: int) -> list[psutil.Process]:
    """Living processes of a session."""
    found = []
    for process in psutil.process_iter(["status"]):
        try:
            if os.getsid(process.pid) == leader and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process)
        except ProcessLookupError:
            pass
    return found


def wait_until(holds: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.05)


def seen_by(client: Any, workers: int) -> dict[str, dict[str, str | None]]:
    """Worker → what its process finds in its environment."""
    wait_until(lambda: len(client.scheduler_info(n_workers=-1)["workers"]) == workers, 120)
    names = {address: worker["name"] for address, worker in client.scheduler_info(n_workers=-1)["workers"].items()}

    def look(variables):
        import os

        return {name: os.environ.get(name) for name in variables}

    found = client.run(look, LAYOUT_VARIABLES)
    return {names[address]: found[address] for address in sorted(found, key=names.__getitem__)}


def end(launcher: subprocess.Popen[bytes], client: Any) -> int:
    """Ends workers as Slurm does, and returns the exit code, when no process and no worker is left."""
    launcher.terminate()
    code = launcher.wait(120)
    # multiprocessing's resource tracker ends a moment after the worker that it tracked for.
    wait_until(lambda: session(launcher.pid) == [], 120)
    wait_until(lambda: not client.scheduler_info(n_workers=-1)["workers"], 120)
    return code


def devices(found: dict[str, dict[str, str | None]]) -> list[str | None]:
    assert [seen["CUDA_VISIBLE_DEVICES"] for seen in found.values()] == [
        "" if seen["SLIDESAM_DEVICE"] == "cpu" else seen["SLIDESAM_DEVICE"] for seen in found.values()
    ]
    return [seen["SLIDESAM_DEVICE"] for seen in found.values()]


@pytest.mark.slow
def test_one_worker_takes_the_launchers_place(started, client) -> None:
    launcher = started("--name", "alone", "--gpus", "0", "--nthreads", "8", smi="four_gpus", SLURM_CPUS_PER_TASK="1")
    found = seen_by(client, 1)
    assert list(found) == ["alone"]
    assert devices(found) == ["cpu"]
    assert found["alone"]["OMP_NUM_THREADS"] == "1"
    assert found["alone"]["MALLOC_TRIM_THRESHOLD_"] == str(2**35)
    (worker,) = client.scheduler_info(n_workers=-1)["workers"].values()
    assert worker["nthreads"] == 1
    command = psutil.Process(launcher.pid).cmdline()
    assert "distributed.cli.dask_worker" in command
    assert not any("KEY" in word or "keys.pem" in word for word in command)
    # The worker and its nanny, and no port for HTTP.
    listening_at = listening({process.pid for process in session(launcher.pid)})
    assert [host for host, _ in listening_at] == ["127.0.0.1"] * 2
    assert end(launcher, client) == 0


@pytest.mark.slow
def test_three_workers_share_a_gpu(started, client) -> None:
    launcher = started("--name", "shared", "--workers", "3", "--gpus", "1", CUDA_VISIBLE_DEVICES="1", smi="four_gpus")
    found = seen_by(client, 3)
    assert list(found) == ["shared-0", "shared-1", "shared-2"]
    assert devices(found) == ["1", "1", "1"]
    assert end(launcher, client) == 0


@pytest.mark.slow
def test_two_gpus_have_a_worker_each_and_end_with_a_killed_launcher(started, client) -> None:
    launcher = started("--gpus", "2", CUDA_VISIBLE_DEVICES="3,0")
    found = seen_by(client, 2)
    assert devices(found) == ["3", "0"]
    assert list(found) == [f"{socket.gethostname()}-{launcher.pid}-{i}" for i in (0, 1)]
    launcher.kill()
    launcher.wait()
    wait_until(lambda: session(launcher.pid) == [], 120)
    wait_until(lambda: not client.scheduler_info(n_workers=-1)["workers"], 120)


@pytest.mark.slow
def test_instances_have_a_worker_each_by_their_uuids(started, client) -> None:
    launcher = started("--memory-limit", "4.00GiB", "--workers", "2", "--gpus", "4", smi="guide")
    assert devices(seen_by(client, 2)) == INSTANCES[:2]
    limits = {worker["memory_limit"] for worker in client.scheduler_info(n_workers=-1)["workers"].values()}
    assert limits == {2 * 2**30}
    assert end(launcher, client) == 0


@pytest.mark.slow
def test_the_worst_exit_code_is_the_launchers(started, client) -> None:
    launcher = started("--workers", "2")
    found = seen_by(client, 2)
    assert devices(found) == ["cpu", "cpu"]
    first, second = psutil.Process(launcher.pid).children()
    first.send_signal(signal.SIGKILL)
    second.terminate()
    assert launcher.wait(120) == 128 + signal.SIGKILL
    wait_until(lambda: session(launcher.pid) == [], 120)
