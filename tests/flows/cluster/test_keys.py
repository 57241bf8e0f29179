"""The key of a cluster: who can read it, where it is never, and that none is left behind."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509

from slidesam.flows.cluster import cluster as cluster_module
from slidesam.flows.cluster.cluster import open_cluster
from slidesam.flows.cluster.device_workers import launch_workers
from slidesam.flows.cluster.find_profile import make_profile
from slidesam.flows.cluster.keys import KEYS, make_key_folder, make_keys, make_security, remove_dead_keys
from slidesam.flows.cluster.secret_files import write_secret
from slidesam.flows.prefect_api.leftovers import cancel_orphans, end_all_leftovers
from slidesam.tasks.errors import ClusterError
from slidesam.tasks.run.layout import jobs_folder
from slidesam.tasks.run.service_folders import key_folder
from tests.support.other_user import OTHER, as_other_user, needs_root

MAKE_AND_DIE = """
import os, sys; from pathlib import Path
from slidesam.flows.cluster.keys import KEYS, make_key_folder
from slidesam.flows.cluster.secret_files import write_secret
write_secret(make_key_folder(Path(sys.argv[1]), sys.argv[2]) / KEYS, "key")
os.kill(os.getpid(), 9)
"""


def make_and_die(jobs: Path, name: str) -> Path:
    """The folder of a cluster whose process was killed."""
    done = subprocess.run([sys.executable, "-c", MAKE_AND_DIE, str(jobs), name], check=False, timeout=60)
    assert done.returncode == -9
    return key_folder(jobs, name)


def test_each_cluster_has_another_key_which_clocks_do_not_end() -> None:
    keys = make_keys()
    assert keys != make_keys()
    found = make_security(keys).get_connection_args("client")
    assert found["require_encryption"]
    assert found["ssl_context"].verify_mode is ssl.CERT_REQUIRED
    certificate = x509.load_pem_x509_certificate(keys.encode())
    assert (certificate.not_valid_before_utc.year, certificate.not_valid_after_utc.year) == (2000, 2200)


def test_what_is_printed_of_it_holds_no_key() -> None:
    assert "PRIVATE" not in repr(make_security(make_keys()))


@pytest.mark.parametrize("umask", [0, 0o22])
def test_only_its_owner_reads_it(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        folder = make_key_folder(tmp_path / "jobs", "slidesam-1")
        write_secret(folder / KEYS, "key")
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in (folder, folder / KEYS)] == [0o700, 0o600]
    with pytest.raises(FileExistsError):
        write_secret(folder / KEYS, "of somebody else")


@needs_root
def test_another_user_neither_reads_nor_lists_it(tmp_path: Path) -> None:
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_mode & 0o5 != 0o5 and parent.is_relative_to("/tmp"):
            parent.chmod(0o755)
    folder = make_key_folder(tmp_path / "jobs", "slidesam-1")
    write_secret(folder / KEYS, "key")
    with as_other_user():
        for look in (lambda: (folder / KEYS).read_text(), lambda: list(folder.iterdir())):
            with pytest.raises(PermissionError):
                look()


def test_the_next_run_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    mine, killed = make_key_folder(tmp_path, "slidesam-1"), make_and_die(tmp_path, "slidesam-2")
    assert killed.exists()
    make_key_folder(tmp_path, "slidesam-3")
    assert mine.exists()
    assert not killed.exists()


def test_cleaning_removes_what_a_killed_run_left(tmp_path: Path) -> None:
    killed = make_and_die(jobs_folder(tmp_path), "slidesam-2")
    end_all_leftovers(tmp_path, print)
    assert not killed.exists()


def test_what_a_run_on_another_host_left_goes_with_its_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from slidesam.flows.cluster.job_names import make_cluster_name

    monkeypatch.setenv("PATH", str(tmp_path))  # no Slurm
    jobs = jobs_folder(tmp_path)
    name = make_cluster_name(jobs)
    folder = make_and_die(jobs, name)
    owner = folder / "owner.json"
    owner.write_text(owner.read_text().replace('"host":"', '"host":"not-'))
    remove_dead_keys(jobs)
    assert folder.exists()
    cancel_orphans([f"{name}-cpu"], tmp_path, print)
    assert not folder.exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "jobs").write_text("a file")
    with pytest.raises(ClusterError, match=r"key can't be written: .*jobs"):
        make_key_folder(tmp_path / "jobs", "slidesam-1")


def swap(folder: Path) -> Path:
    """Put a folder of another user in a folder's place, with a key that this user knows: a group may write beside it."""
    folder.rename(folder.with_name("hidden"))
    folder.mkdir()
    (folder / KEYS).write_text(make_keys())
    for path in (folder / KEYS, folder):
        os.chown(path, OTHER, OTHER)
    return folder


@needs_root
def test_workers_take_no_key_that_another_user_put_there(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = swap(make_key_folder(tmp_path, "slidesam-1"))
    command = ["tls://127.0.0.1:1", "--gpus", "0", "--workers", "2", "--death-timeout", "1"]
    for key in (folder / KEYS, folder / "of mine"):
        if not key.exists():
            # Of one's own, where the other user may exchange it.
            (tmp_path / "pem").write_text(make_keys())
            (tmp_path / "pem").rename(key)
        assert launch_workers([*command, "--keys", str(key)]) == 1
        assert "another user can write there" in capfd.readouterr().err


@needs_root
def test_no_key_is_written_where_another_user_put_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "make_key_folder", lambda *arguments: swap(make_key_folder(*arguments)))
    jobs = make_profile({"kind": "pbs", "scheduler": {"host": "127.0.0.1"}})
    with open_cluster(jobs, tmp_path / "jobs") as cluster, pytest.raises(ClusterError, match="another user can write"):
        cluster.workers()


@needs_root
def test_a_scheduler_of_jobs_keeps_its_key_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    jobs = make_profile({"kind": "pbs", "scheduler": {"host": "127.0.0.1"}})
    with open_cluster(jobs, tmp_path / "jobs") as cluster:
        workers = cluster.workers()
        (file,) = (tmp_path / "jobs").glob("*.keys/keys.pem")
        keys = file.read_text()
        assert {workers.security.tls_ca_file, workers.security.tls_scheduler_key} == {keys}
        swap(file.parent)
        with workers.connect() as client:
            assert client.run_on_scheduler(os.getuid) == os.getuid()
        hidden = tmp_path / "jobs" / "hidden" / KEYS
        # dask-jobqueue would write it into the current folder.
        assert {path for path in tmp_path.rglob("*") if path.is_file() and "PRIVATE" in path.read_text()} == {
            hidden,
            file,
        }


def test_a_pool_that_starts_again_has_another_link(tmp_path: Path) -> None:
    pools = {"kind": "pbs", "scheduler": {"host": "127.0.0.1"}, "dashboard": True, "cpu": {}, "gpu": {}}
    with open_cluster(make_profile(pools), tmp_path / "jobs") as cluster:
        tokens = set()
        for _ in range(2):
            assert cluster.workers("gpu").dashboard is not None
            (link,) = (tmp_path / "jobs").glob("*.keys/gpu.link")
            tokens.add(link.read_text().partition("?")[2])
            cluster.end_pool("gpu")
        assert len(tokens) == 2
