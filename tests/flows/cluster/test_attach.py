"""A Dask cluster that somebody else started: with its keys, with others, with none, and one without TLS."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from slidesam.flows.cluster import local_workers
from slidesam.flows.cluster.attach import attach
from slidesam.flows.cluster.find_profile import make_profile
from slidesam.flows.cluster.keys import make_keys, make_security
from slidesam.flows.cluster.secret_files import write_secret
from slidesam.tasks.errors import ClusterError, SettingsError
from tests.support.prefect_fixtures import THIRD_PARTY_WARNINGS

pytestmark = [pytest.mark.filterwarnings(warning) for warning in THIRD_PARTY_WARNINGS]


@pytest.fixture(scope="module")
def safe(keys: Path) -> Iterator[str]:
    """Address of a cluster with TLS, without workers."""
    from dask.distributed import LocalCluster

    options = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", "scheduler_kwargs": {"dashboard": False}}
    with LocalCluster(n_workers=0, protocol="tls://", security=make_security(str(keys)), **options) as cluster:
        yield cluster.scheduler_address


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_workers, "_PATIENCE", "1s")


def profile(address: str, **files: Path) -> dict:
    return make_profile({"kind": "attach", "address": address, **{name: str(path) for name, path in files.items()}})


def test_its_keys_let_a_client_in(safe: str, keys: Path) -> None:
    for files in ({"ca_file": keys}, {"ca_file": keys, "cert_file": keys, "key_file": keys}):
        with attach(profile(safe, **files)).connect() as client:
            assert client.run_on_scheduler(lambda: 1) == 1


def test_a_dashboard_s_address_is_the_one_beside_the_keys(keys: Path, tmp_path: Path) -> None:
    """infra/interactive/cluster serves it on loopback, wherever its scheduler listens."""
    from dask.distributed import LocalCluster

    beside = tmp_path / "keys.pem"
    write_secret(beside, keys.read_text())
    options = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(n_workers=0, protocol="tls://", security=make_security(str(keys)), **options) as cluster:
        attached = profile(cluster.scheduler_address, ca_file=beside)
        # The cluster itself is told of it a moment later.
        own = f"http://127.0.0.1:{cluster.scheduler.services['dashboard'].port}/status"
        assert attach(attached).dashboard == own
        write_secret(tmp_path / "dashboard.link", "http://127.0.0.1:8787/status?token=secret\n")
        assert attach(attached).dashboard == "http://127.0.0.1:8787/status"
        tmp_path.chmod(0o777)
        assert attach(attached).dashboard == own


def test_keys_of_dask_s_own_configuration_serve_too(safe: str, keys: Path) -> None:
    import dask

    names = ("ca-file", "client.cert", "client.key")
    with dask.config.set({f"distributed.comm.tls.{name}": str(keys) for name in names}):
        assert attach(profile(safe)).address == safe


def test_without_keys_the_error_says_how_to_give_them(safe: str) -> None:
    with pytest.raises(ClusterError, match=r"only be reached with the cluster's keys.*--cluster-set ca_file=FILE"):
        attach(profile(safe))


def test_other_keys_are_not_accepted(safe: str, tmp_path: Path, impatient: None) -> None:
    write_secret(tmp_path / "other.pem", make_keys())
    with pytest.raises(ClusterError, match=r"accepts these keys answers at .*correct the keys"):
        attach(profile(safe, ca_file=tmp_path / "other.pem"))


def test_a_plain_address_of_a_cluster_with_tls_gets_a_hint(safe: str, impatient: None) -> None:
    with pytest.raises(ClusterError, match="one with TLS begins with tls://"):
        attach(profile(safe.replace("tls://", "tcp://")))


@pytest.mark.parametrize("text", [None, "", "no PEM"])
def test_files_that_hold_no_keys_are_named(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "keys.pem"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ClusterError, match=r"the keys of tls://127\.0\.0\.1:1 can't be read from .*keys\.pem"):
        attach(profile("tls://127.0.0.1:1", ca_file=path))


@pytest.mark.parametrize(
    ("address", "names", "words"),
    [
        ("tcp://h:1", ["ca_file"], r"belong to an address tls://\.\.\., not to tcp://h:1"),
        ("tls://h:1", ["key_file"], "need ca_file too"),
    ],
)
def test_keys_that_fit_no_cluster_are_refused(address: str, names: list[str], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        profile(address, **dict.fromkeys(names, Path("a.pem")))
