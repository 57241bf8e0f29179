"""Settings of infra/prefect-server: the file, the environment over it, defaults under both."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import PIPE

import pytest

from tests.support import ROOT

FILE = """
# a comment
; another
SLIDESAM_SERVER_PORT=4300
  SLIDESAM_INBOX_CRON = never
SLIDESAM_INBOX_CRON="0 3 * * *"
SLIDESAM_CLUSTER='slurm-gpu'
SLIDESAM_CLUSTER=local
SLIDESAM_NOTIFY=https://example.org/?a=b#c $HOME
PREFECT_WORKER_QUERY_SECONDS=1
"""


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "infra" / "prefect-server"))
    import site_settings

    return site_settings


def test_a_file_is_read_as_text_and_the_first_of_two_counts(module, tmp_path: Path) -> None:
    file = tmp_path / "server.env"
    file.write_text(FILE.replace("  SLIDESAM_INBOX_CRON = never\n", "").replace('* *"', '* *"  \t'))
    assert module.read_config(file) == {
        "SLIDESAM_SERVER_PORT": "4300",
        "SLIDESAM_INBOX_CRON": "0 3 * * *",
        "SLIDESAM_CLUSTER": "slurm-gpu",
        "SLIDESAM_NOTIFY": "https://example.org/?a=b#c $HOME",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
    }
    file.write_text(FILE)
    with pytest.raises(module.ServerProblem, match=r"server\.env, line 5 is no NAME=VALUE"):
        module.read_config(file)
    with pytest.raises(module.ServerProblem, match=r"can't be read: .*server\.env\.example"):
        module.read_config(tmp_path / "nothing.env")


def test_the_environment_goes_before_the_file_and_empty_means_default(module, tmp_path: Path) -> None:
    (tmp_path / "server.env").write_text("SLIDESAM_SERVER_PORT=1\nSLIDESAM_DATABASE_PORT=2\nSLIDESAM_CLUSTER=a\n")
    environment = {
        "SLIDESAM_SERVER_CONFIG": str(tmp_path / "server.env"),
        "SLIDESAM_SERVER_DATA": str(tmp_path / "x" / ".."),
    }
    site = module.Site(environment | {"SLIDESAM_SERVER_PORT": "0042", "SLIDESAM_CLUSTER": ""})
    assert (site.port, site.database_port, site.values["SLIDESAM_CLUSTER"]) == (42, 2, "local")
    assert (site.data, site.web) == (tmp_path, "http://127.0.0.1:42")
    assert site.values["SLIDESAM_OUTPUT"] == f"{tmp_path}/x/../results"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("SLIDESAM_SERVER_PORT", "70000", "must be a number from 1 to 65535, not '70000'"),
        ("SLIDESAM_SLIDES_AT_ONCE", "0", "must be a number from 1"),
        ("SLIDESAM_INBOX", "inbox", "must be a whole path, beginning with /"),
        ("SLIDESAM_SERVER_DATA", "/a folder", "must be a plain absolute path"),
    ],
)
def test_a_wrong_setting_is_refused(module, name: str, value: str, words: str) -> None:
    with pytest.raises(module.ServerProblem, match=words) as caught:
        module.Site({name: value})
    assert name in str(caught.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_another_users_folder_is_refused(module, tmp_path: Path) -> None:
    os.chown(tmp_path, 1, 1)
    with pytest.raises(module.ServerProblem, match=r"belongs to .*: do this as that user"):
        module.Site({"SLIDESAM_SERVER_DATA": str(tmp_path)})


def test_passwords_are_made_once_and_are_their_owners(module, tmp_path: Path) -> None:
    site = module.Site(
        {"SLIDESAM_SERVER_DATA": str(tmp_path), "PREFECT_API_KEY": "x", "PREFECT_WORKER_QUERY_SECONDS": "1"}
    )
    word = site.secret("server.password")
    assert len(word) > 20
    assert site.auth_string == f"slidesam:{word}"
    assert (tmp_path / "server.password").stat().st_mode & 0o777 == 0o600
    told = site.prefect_environment()
    assert told["PREFECT_WORKER_QUERY_SECONDS"] == "1"
    assert "PREFECT_API_KEY" not in told


MAKE_SECRET = """
import secrets, sys, time
sys.path.insert(0, sys.argv[1])
from site_settings import Site
make = secrets.token_urlsafe
secrets.token_urlsafe = lambda number: time.sleep(0.3) or make(number)
print("ready", flush=True)
sys.stdin.readline()
print(Site({"SLIDESAM_SERVER_DATA": sys.argv[2]}).secret("database.password"))
"""


@pytest.mark.parametrize("before", [None, ""])
def test_units_that_start_together_have_one_password(before: str | None, tmp_path: Path) -> None:
    """An empty file is what a full disk left behind."""
    if before is not None:
        (tmp_path / "database.password").write_text(before)
    command = [sys.executable, "-c", MAKE_SECRET, str(ROOT / "infra" / "prefect-server"), str(tmp_path)]
    makers = [subprocess.Popen(command, stdin=PIPE, stdout=PIPE, text=True) for _ in range(3)]
    for maker in makers:
        assert maker.stdout.readline() == "ready\n"
    for maker in makers:
        maker.stdin.write("go\n")
        maker.stdin.flush()
    words = {maker.communicate()[0].strip() for maker in makers}
    assert words == {(tmp_path / "database.password").read_text().strip()}
    assert len(words.pop()) > 20


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small file system")
def test_a_full_disk_leaves_no_empty_password(module, tmp_path: Path) -> None:
    with small_disk(tmp_path) as full:
        site = module.Site({"SLIDESAM_SERVER_DATA": str(tmp_path)})
        for _ in range(2):
            with pytest.raises(
                module.ServerProblem, match=r"database\.password can't be made \(No space left.*make room"
            ):
                site.secret("database.password")
            assert not list(tmp_path.glob("database.password*"))
        full.unlink()
        assert len(site.secret("database.password")) > 20


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Mount a full file system on a folder; yield the file that fills it."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "slidesam-test", folder], check=True)
    try:
        filling = folder / "filling"
        with suppress(OSError), filling.open("wb", buffering=0) as stream:
            while True:
                stream.write(b"x" * 4096)
        yield filling
    finally:
        subprocess.run(["umount", folder], check=True)


def test_others_cannot_look_into_the_folders(module, tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "log").mkdir(parents=True)
    (data / "log").chmod(0o755)
    module.Site({"SLIDESAM_SERVER_DATA": str(data)}).make_folders()
    assert {path.name: path.stat().st_mode & 0o777 for path in data.iterdir()} == dict.fromkeys(
        ["log", "prefect", "tmp"], 0o700
    )
