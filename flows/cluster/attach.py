"""Uses a Dask cluster that somebody else started."""

from __future__ import annotations

import ssl
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from slidesam.flows.cluster.links import read_page
from slidesam.flows.cluster.local_workers import Workers
from slidesam.flows.cluster.profile import AttachProfile
from slidesam.tasks.errors import ClusterError, in_one_line

_KEYS = "--cluster-set ca_file=FILE, for one of infra/interactive/cluster the keys.pem that its status names"


def attach(profile: AttachProfile) -> Workers:
    """Check a cluster that somebody else started.

    Raises:
        ClusterError: Its scheduler doesn't answer, or its keys are missing or can't be read.
    """
    security = read_security(profile)
    workers = Workers(profile.address, security, None, lambda: None)
    try:
        with workers.connect() as client:
            port = client.scheduler_info(n_workers=0)["services"].get("dashboard")
    except (OSError, ValueError) as error:
        is_safe = profile.address.startswith("tls://")
        refusal = " that accepts these keys" if is_safe else ""
        hint = "the keys: each start makes others" if is_safe else "the address: one with TLS begins with tls://"
        raise ClusterError(
            f"no Dask scheduler{refusal} answers at {profile.address}",
            "start it (`infra/interactive/cluster start` in an allocation, or `dask scheduler`), or correct " + hint,
        ) from error
    return replace(workers, dashboard=_find_page(profile, port) if port else None)


def read_security(profile: AttachProfile) -> Any:
    """Read the keys of a cluster: those of the profile, or those of Dask's own configuration.

    Raises:
        ClusterError: The cluster needs keys, and there are none, or they can't be read.
    """
    from distributed import Security

    if not profile.address.startswith("tls://"):
        return None
    options: dict[str, Any] = {}
    if profile.ca_file is not None:
        ca, certificate, key = (
            _absolute(path) for path in _files(profile.ca_file, profile.cert_file, profile.key_file)
        )
        options = {"tls_ca_file": ca, "tls_client_cert": certificate, "tls_client_key": key}
    security = Security(require_encryption=True, **options)
    try:
        context = security.get_connection_args("client")["ssl_context"]
    except (OSError, ssl.SSLError) as error:
        files = ", ".join(dict.fromkeys(options.values())) or "the files of Dask's configuration (distributed.comm.tls)"
        raise ClusterError(
            f"the keys of {profile.address} can't be read from {files}: {in_one_line(error)}", _KEYS
        ) from error
    if context is None:
        raise ClusterError(f"{profile.address} can only be reached with the cluster's keys", f"give {_KEYS}")
    return security


def _find_page(profile: AttachProfile, port: int) -> str:
    """Return the address of the cluster's dashboard."""
    if profile.ca_file is not None:
        # infra/interactive/cluster writes it there: its dashboard is on loopback. Another user's file counts for nothing.
        with suppress(OSError):
            page = read_page(profile.ca_file.expanduser().with_name("dashboard.link"))
            if page is not None:
                return page
    return f"http://{urlsplit(profile.address).hostname}:{port}/status"


def _files(ca: Path, certificate: Path | None, key: Path | None) -> tuple[Path, Path, Path]:
    return ca, certificate or ca, key or certificate or ca


def _absolute(path: Path) -> str:
    return str(path.expanduser().absolute())
