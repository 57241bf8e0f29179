"""The container image: install.sh in a bare Debian, entered as a Slurm job enters it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.container_fixtures import CONTAINER, ROOT, sections

pytestmark = pytest.mark.slow
Exec = Callable[..., "subprocess.CompletedProcess[str]"]

# Everything that a process sees and the tests ask about.
_REPORT = """
import json, os, sys
print(json.dumps({
    "environment": dict(os.environ), "folder": os.getcwd(), "prefix": sys.prefix, "pid": os.getpid(),
    "is_there": {path: os.path.exists(path) for path in sys.argv[1:]},
}))
"""


@pytest.fixture(scope="module")
def container(debian_root: Path, apptainer_folder: Path) -> Exec:
    """Runs `apptainer exec [OPTION]... IMAGE COMMAND...` to its end."""

    def run(*command: str, options: tuple[str, ...] = (), **settings: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [apptainer_folder / "apptainer", "exec", *options, debian_root, *command],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            **settings,
        )

    return run


def _path() -> dict[str, str]:
    return {"PATH": os.environ["PATH"]}


def _seen(run: Exec, *paths: Path | str, **settings: object) -> dict:
    done = run("python3", "-c", _REPORT, *map(str, paths), **settings)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_commands_are_those_of_the_image(container: Exec):
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    done = container("sh", "-ec", sections(CONTAINER / "slidesam.def")["test"])
    assert (done.returncode, done.stdout.split()[-1:]) == (0, [version]), done.stderr
    for command in ("slidesam", "dask", "prefect", "python", "python3"):
        assert container("which", command).stdout == f"/opt/slidesam/bin/{command}\n"
        assert container(command, "--version").returncode == 0, command


def test_versions_are_the_locked_ones(container: Exec):
    code = "from importlib.metadata import distributions as d; print(*(f'{x.name}=={x.version}' for x in d()))"
    installed = {_same_spelling(name) for name in container("python3", "-c", code).stdout.split()}
    # A line can end in what it's for; of packages with a line each for several Pythons any will do.
    locked = {_same_spelling(line.split(" ;")[0]) for line in (ROOT / "requirements.lock").read_text().splitlines()}
    assert len(installed) > 50
    assert [name for name in installed - locked if not name.startswith("slidesam==")] == []
    assert not any(name.startswith(("torch==", "pytest==", "ruff==")) for name in installed)


def _same_spelling(requirement: str) -> str:
    return re.sub("[-_.]+", "-", requirement).lower()


def test_what_a_worker_imports_is_there(container: Exec, tmp_path: Path):
    """The image can't be written to, which numba's cache has to live with."""
    done = container("python3", "-c", "import slidesam.flows.cluster.on_worker", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    code = """
import numpy as np
from slidesam.tasks.labels import kernels
import scipy, skimage, zarr, zarrs, imagecodecs, tifffile, distributed, prefect_dask
keys = np.full(16, kernels._EMPTY, np.uint64)
print(kernels._slot(keys, np.uint64(7)) < 16)
"""
    home = {**os.environ, "HOME": str(tmp_path)}
    home.pop("NUMBA_CACHE_DIR", None)
    done = container("python3", "-c", code, env=home)
    assert done.stdout == "True\n", done.stderr
    assert list(tmp_path.rglob("*.nbi")), "numba keeps what it compiled in HOME"


def test_the_image_is_read_only_and_clean(container: Exec, debian_root: Path):
    done = container("touch", "/opt/slidesam/a-file", "/a-file")
    assert done.returncode != 0
    assert done.stderr.count("Read-only file system") == 2
    left = container(
        "sh", "-c", "ls -A /opt /var/lib/apt/lists ~root/.cache; ls /etc/pip.conf", env={"HOME": "/nowhere", **_path()}
    )
    assert left.stdout.split() == ["/opt:", "slidesam", "/var/lib/apt/lists:"]
    assert list(Path(debian_root.read_text().strip(), "tmp").iterdir()) == []
    private = container("find", "/opt/slidesam", "/usr/local/src", "!", "-perm", "-o=r", "!", "-type", "l")
    assert private.stdout == "", "jobs don't run as root"


def test_what_a_job_sees(container: Exec, debian_root: Path, tmp_path: Path):
    """HOME, current folder and environment are the caller's; other folders only if bound."""
    home, here, other = tmp_path / "home", tmp_path / "here", tmp_path / "other"
    for folder in (home, here, other):
        folder.mkdir()
        (folder / "a-file").touch()
    environment = {
        **_path(),
        "HOME": str(home),
        "CUDA_VISIBLE_DEVICES": "3",
        "PREFECT_API_URL": "http://127.0.0.1:1/api",
    }
    environment |= {"LD_LIBRARY_PATH": "/nowhere", "LANG": "xx_XX.UTF-8"}
    settings = {"env": environment, "cwd": here}

    seen = _seen(container, home / "a-file", here / "a-file", "/data", **settings)
    assert seen["prefix"] == "/opt/slidesam"
    assert seen["folder"] == str(here)
    assert seen["is_there"] == {str(home / "a-file"): True, str(here / "a-file"): True, "/data": False}
    inside = seen["environment"]
    for name in ("HOME", "CUDA_VISIBLE_DEVICES", "PREFECT_API_URL"):
        assert inside[name] == environment[name]
    assert inside["PATH"].startswith("/opt/slidesam/bin:/usr/local/sbin:")
    assert (inside["LANG"], inside["LD_LIBRARY_PATH"]) == ("C.UTF-8", "/.singularity.d/libs")
    assert "SLIDESAM_STAND_IN_NV" not in inside

    options = ("--nv", "--bind", f"{other}:/data/of/slides,{home}", f"--bind={other}:/fixed:ro", "--env", "A=b c,D=e")
    seen = _seen(container, "/data/of/slides/a-file", "/fixed/a-file", options=options, **settings)
    assert all(seen["is_there"].values())
    inside = seen["environment"]
    assert (inside["SLIDESAM_STAND_IN_NV"], inside["A"], inside["D"]) == ("1", "b c", "e")
    done = container("touch", "/data/of/slides/new", "/fixed/new-too", options=options, **settings)
    assert "'/fixed/new-too': Read-only file system" in done.stderr
    assert sorted(path.name for path in other.iterdir()) == ["a-file", "new"]
    assert str(other) not in Path("/proc/self/mounts").read_text()
    assert not Path(debian_root.read_text().strip(), "data").exists(), "the image stays as it is"


def test_signals_and_exit_codes_reach(debian_root: Path, apptainer_folder: Path):
    handler = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))"
    code = f"import signal, sys, time; {handler}; print('up', flush=True); time.sleep(60)"
    for command, end in (
        (["python3", "-c", code], 7),
        (["sh", "-c", "echo up; exec sleep 60"], -signal.SIGTERM),
    ):
        with subprocess.Popen(
            [apptainer_folder / "apptainer", "exec", debian_root, *command], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout.readline() == "up\n"
            process.terminate()
            assert process.wait(90) == end


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "IMAGE"], "understands only"),
        (["exec", "--fakeroot", "IMAGE", "true"], "does not know --fakeroot"),
        (["exec", "IMAGE"], "an image and a command are missing"),
        (["exec", "/nowhere.sif", "true"], "/nowhere.sif holds no Debian root"),
        (["exec", "--bind", "/nowhere:/data", "IMAGE", "true"], "/nowhere"),
    ],
)
def test_the_stand_in_says_what_is_wrong(debian_root: Path, apptainer_folder: Path, arguments: list[str], message: str):
    command = [str(debian_root) if argument == "IMAGE" else argument for argument in arguments]
    done = subprocess.run([apptainer_folder / "apptainer", *command], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert message in done.stderr


def test_an_unknown_extra_is_refused(debian_root: Path):
    """Before anything is downloaded for it: a typing error would else make an image without micro-sam."""
    script = (CONTAINER / "install.sh").read_text()
    check = script.partition("<<'PYTHON'\n")[2].partition("\nPYTHON\n")[0]
    done = subprocess.run(
        ["python3", "-", ROOT / "pyproject.toml", "micro-sam", "microsam"],
        input=check,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr.strip()) == (
        1,
        "EXTRAS: slidesam has no microsam; it has micro-sam, cellpose, stardist, anndata, dashboard",
    )


def test_a_jobs_workers_start_in_the_image(debian_root: Path, apptainer_folder: Path, tmp_path: Path):
    """The script that a queue would be given, run without one: what it says of the container is what happens."""
    from dask.distributed import Client, LocalCluster

    from slidesam.flows.cluster.find_profile import load_profile
    from slidesam.flows.cluster.jobs import job_script
    from slidesam.flows.cluster.keys import KEYS, make_key_folder, make_keys, make_security
    from slidesam.flows.cluster.secret_files import write_secret

    way = {
        "container": str(debian_root), "container_command": str(apptainer_folder / "apptainer"),
        "container_binds": [str(tmp_path)], "gpu.gpus": 1, "gpu.cores": 1, "gpu.memory": 2,
    }  # fmt: skip
    script = job_script(load_profile("slurm-gpu", way), "gpu", logs=tmp_path / "of jobs")
    keys = make_keys()
    write_secret(make_key_folder(tmp_path / "of jobs", "slidesam") / KEYS, keys)
    safe = {"security": make_security(keys), "protocol": "tls://", "host": "127.0.0.1"}
    with LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0", **safe) as cluster:
        text = script.replace("tls://SCHEDULER:PORT", cluster.scheduler_address)
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "3", "HOME": str(tmp_path), "SLURM_JOB_ID": "17"}
        with subprocess.Popen(["bash", "-c", text], env=environment, cwd=tmp_path) as job, Client(cluster) as client:
            client.wait_for_workers(1, timeout=100)
            inside = next(iter(client.run(lambda: dict(os.environ)).values()))
            prefix = next(iter(client.run(lambda: __import__("sys").prefix).values()))
            client.shutdown()
            assert job.wait(120) is not None
    assert prefix == "/opt/slidesam"
    assert inside["SLIDESAM_STAND_IN_NV"] == "1"
    assert (inside["CUDA_VISIBLE_DEVICES"], inside["SLIDESAM_DEVICE"]) == ("3", "3")
    assert inside["SLIDESAM_LOG"] == f"{tmp_path / 'of jobs'}/slidesam-17.log"
