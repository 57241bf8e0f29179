"""Settings of infra/prefect-server: the file, the environment over it, defaults under both."""

from __future__ import annotations

import os
from pathlib import Path

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
