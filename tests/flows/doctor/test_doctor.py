"""`slidesam doctor`: each thing that can be wrong is named with what to do about it, and no job is left. On a real Slurm too."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from slidesam.flows.cluster.find_profile import load_profile
from slidesam.flows.doctor.doctor import doctor, examine_here, examine_there
from slidesam.flows.doctor.finding import Finding
from slidesam.tasks.settings.parse import make_settings
from tests.support import ROOT
from tests.support.doctor import api, configured, local, named
from tests.support.prefect_fixtures import THIRD_PARTY_WARNINGS
from tests.support.slurm_fixtures import HOST, profile, queue, until

pytestmark = [pytest.mark.filterwarnings(each) for each in THIRD_PARTY_WARNINGS]
WATERSHED = make_settings(overrides={"segmenter.kind": "watershed"})
MICROSAM = make_settings()


def no_jobs() -> bool:
    return not [job for job in queue() if job[1].startswith("slidesam-doctor")]


def test_without_slurm_nothing_is_tried_there(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    where = load_profile("slurm-gpu", {"container": "/nowhere/slidesam.sif", "scheduler.host": "192.0.2.200"})
    findings = examine_here(where, WATERSHED, None)
    found = named(findings)
    assert found["slurm"].state == "failed"
    assert "sbatch, scancel, squeue, sinfo: not found on" in found["slurm"].what
    assert "login node" in found["slurm"].cure
    assert found["container"].state == found["scheduler"].state == "failed"
    assert "infra/container" in found["container"].cure
    assert found["scheduler"].what == "192.0.2.200 is no address of this machine"
    assert "scheduler.interface" in found["scheduler"].cure
    assert found["output folder"].state == "skipped"
    there = examine_there(where, WATERSHED, None, findings)
    assert [(each.name, each.state) for each in there] == [("cpu: job", "skipped"), ("gpu: job", "skipped")]


def test_a_prefect_api_must_answer_let_us_in_and_not_be_loopback_for_jobs(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    jobs = load_profile("slurm-cpu", {"scheduler.host": "0.0.0.0"})

    def seen(where=None) -> Finding:
        return named(examine_here(where or local(), WATERSHED, None))["Prefect API"]

    with api() as url, configured(url):
        assert seen().what == f"{url} answers, Prefect 3.8.8"
        refused = seen(jobs)
        assert refused.state == "failed"
        assert refused.what == f"jobs on other nodes can't reach the Prefect API at {url}"
        assert "--host 0.0.0.0" in refused.cure
    with configured(url):
        assert seen().state == "failed"
        assert "doesn't answer" in seen().what
        assert "prefect server start" in seen().cure
    with api(password="me:secret") as url:
        with configured(url, "me:secret"):
            assert seen().state == "ok"
        with configured(url, "me:wrong"):
            assert seen().what == f"{url} doesn't let us in (HTTP 401 Unauthorized)"
            assert "PREFECT_API_AUTH_STRING" in seen().cure
    with configured(None):
        assert "a server of its own on 127.0.0.1" in seen().what


def test_output_weights_and_functions_that_cannot_be_had(monkeypatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = named(examine_here(local(), WATERSHED, tmp_path / "file" / "out"))["output folder"]
    assert found.state == "failed"
    assert "can't be written to here (Not a directory)" in found.what
    assert "--output" in found.cure
    assert named(examine_here(local(), WATERSHED, tmp_path / "new"))["output folder"].state in ("ok", "warning")
    assert not (tmp_path / "new").exists()
    monkeypatch.setenv("MICROSAM_CACHEDIR", str(tmp_path))
    found = named(examine_here(local(), MICROSAM, None))["segmenter"]
    assert found.state == "failed"
    assert "slidesam models fetch" in found.cure or "pip install" in found.cure
    unknown = make_settings(overrides={"segmenter.kind": "function", "segmenter.target": "not_there.at_all:f"})
    found = named(examine_here(local(), unknown, None, ("not_there.at_all",)))["segmenter"]
    assert found.state == "failed"
    assert "PYTHONPATH" in found.cure
    found = named(examine_here(local(), unknown, None))["segmenter"]
    assert found.state == "failed"
    assert "--allow not_there.at_all:f" in found.cure


app = typer.Typer()


@app.command()
def command(name: str, output: Path, settings: str, timeout: float, changes: str = "{}") -> None:
    """The doctor as a process of its own, with the profiles of the tests."""
    raise typer.Exit(
        doctor(profile(name, **json.loads(changes)), make_settings(overrides=json.loads(settings)), output, timeout)
    )


def shown_cures(text: str) -> dict[str, str]:
    """What is shown as the cure of each check that failed."""
    found: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        if line[:1] in "✓!–✗" and line[1:2] == " ":
            name = line[2:].split("  ")[0]
            found |= {name: ""} if line.startswith("✗") else {}
        elif line.startswith("  ") and name in found and ("→" in line or found[name]):
            found[name] += f" {line.strip()}"
    return found


def process(*arguments: object, **environment: str) -> list[str]:
    """How to start it: with environment variables, by `env`."""
    given = {"PYTHONPATH": str(ROOT), "COLUMNS": "200", **environment}
    return [
        "env", *(f"{key}={value}" for key, value in given.items()), sys.executable, "-m", "tests.flows.doctor.test_doctor",
        *map(str, arguments),
    ]  # fmt: skip


@pytest.mark.slow
def test_workers_on_this_machine(tmp_path: Path) -> None:
    with api() as url, configured(url):
        here = examine_here(local(), WATERSHED, tmp_path / "out")
        there = examine_there(local(), WATERSHED, tmp_path / "out", here)
    # The dashboard isn't asked for.
    assert {name for name, each in named([*here, *there]).items() if each.state not in {"ok", "warning"}} == {
        "dashboard"
    }
    assert {"cpu: output folder", "cpu: segmenter", "cpu: Prefect API"} <= set(named(there))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.slurm
def test_a_healthy_cluster_with_a_server_of_its_own(
    shared_slurm, prefect_home: Path, tmp_path: Path, monkeypatch
) -> None:
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

    monkeypatch.setenv("COLUMNS", "200")
    with temporary_settings({PREFECT_HOME: prefect_home}, restore_defaults={PREFECT_API_URL}):
        arguments = ["slurm-gpu", str(tmp_path / "out"), '{"segmenter.kind": "watershed"}', "120"]
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    # A long path can take a line alone.
    lines = [(*line.split(maxsplit=1), "")[:2] for line in result.stdout.splitlines() if line]
    assert result.exit_code == 0, result.stdout
    assert not [line for line in lines if line[0] == "✗"]
    passed = "\n".join(words for sign, words in lines if sign == "✓")
    for part in ("cpu", "gpu"):
        for name in (
            "partition",
            "job script",
            "worker",
            "versions",
            "Prefect API",
            "output folder",
            "temporary files",
        ):
            assert f"{part}: {name}" in passed
    assert "Prefect server" in passed
    assert "gpu: segmenter" in passed
    # These GPUs have no nvidia-smi.
    assert "! gpu: device" in result.stdout
    assert "→ see that the node has its driver and nvidia-smi" in result.stdout
    assert no_jobs()
    assert not list((tmp_path / "out").rglob("*.log"))
    assert not list((tmp_path / "out").rglob("doctor-*"))


@pytest.mark.slow
@pytest.mark.slurm
def test_all_that_nodes_lack_is_named_with_its_cure(shared_slurm, tmp_path: Path) -> None:
    output = tmp_path / "private"
    output.mkdir()
    (tmp_path / "weights").mkdir()
    # The nodes see the empty folder below the mount, as where a name is on each machine's own disk.
    hide = [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        f'mount -t tmpfs none {output} && exec "$@"',
        "-",
    ]
    if subprocess.run([*hide, "true"], check=False, capture_output=True).returncode:
        pytest.skip("mount namespaces can't be had here")
    # It answers here, and the firewall keeps the nodes from it.
    with api(let_in=[HOST], host=HOST) as url:
        arguments = process(
            "slurm-cpu", output, "{}", 90, PREFECT_API_URL=url, MICROSAM_CACHEDIR=str(tmp_path / "weights")
        )
        done = subprocess.run([*hide, *arguments], capture_output=True, text=True, timeout=150, check=False, cwd=ROOT)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    cures = shown_cures(done.stdout)
    assert set(cures) == {"segmenter", "cpu: job log", "cpu: Prefect API", "cpu: output folder", "cpu: segmenter"}
    assert "slidesam models fetch" in cures["segmenter"] or "pip install" in cures["segmenter"]
    assert cures["cpu: segmenter"] == cures["segmenter"]
    assert "--output" in cures["cpu: job log"]
    assert "firewall" in cures["cpu: Prefect API"]
    assert "file system that this machine and the nodes share" in cures["cpu: output folder"]
    assert "✓ Prefect API" in done.stdout
    assert f"can't reach {url}" in done.stdout
    assert "which has no such folder" in done.stdout
    assert no_jobs()


@pytest.mark.slow
@pytest.mark.slurm
def test_jobs_that_wait_or_end_too_early_say_why(shared_slurm, tmp_path: Path) -> None:
    where = profile(
        "slurm-gpu", cpu__directives=["--begin=now+1hour"], gpu__prologue=["echo module: command not found", "exit 1"]
    )
    with api(host=HOST) as url, configured(url):
        here = examine_here(where, WATERSHED, tmp_path)
        found = named(examine_there(where, WATERSHED, tmp_path, here, timeout=12))
    assert set(found) == {"cpu: worker", "gpu: worker"}
    assert "no worker within 12 s: job" in found["cpu: worker"].what
    assert "is pending (BeginTime)" in found["cpu: worker"].what
    assert "--timeout" in found["cpu: worker"].cure
    assert "its log ends with: module: command not found" in found["gpu: worker"].what
    assert "prologue" in found["gpu: worker"].cure
    assert no_jobs()


@pytest.mark.slow
@pytest.mark.slurm
def test_what_slurm_refuses_is_not_submitted(shared_slurm, tmp_path: Path) -> None:
    where = profile("slurm-gpu", cpu__memory=500, gpu__partition="nope")
    with api(host=HOST) as url, configured(url):
        here = examine_here(where, WATERSHED, tmp_path)
        there = named(examine_there(where, WATERSHED, tmp_path, here))
    assert "Slurm refuses it: allocation failure" in named(here)["cpu: job script"].what
    assert "correct cpu in the profile" in named(here)["cpu: job script"].cure
    assert "there are: cpu, gpu" in named(here)["gpu: partition"].what
    assert {name: each.state for name, each in there.items()} == {"cpu: job": "skipped", "gpu: job": "skipped"}


@pytest.mark.slow
@pytest.mark.slurm
def test_ctrl_c_leaves_no_job(shared_slurm, tmp_path: Path) -> None:
    with api(host=HOST) as url:
        changes = json.dumps({"cpu__prologue": ["sleep 100"]})
        arguments = process(
            "slurm-cpu", tmp_path, '{"segmenter.kind": "watershed"}', 90, "--changes", changes, PREFECT_API_URL=url
        )
        running = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        until(lambda: not no_jobs())
        os.kill(running.pid, signal.SIGINT)
        _, said = running.communicate(timeout=180)
    assert running.returncode == 130, said
    assert "stopped; no job is left" in said
    assert no_jobs()


if __name__ == "__main__":
    app()
