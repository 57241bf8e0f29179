"""The certificate of one cluster, made for each run: only who has its key can talk to the cluster's scheduler and workers.

Dask believes whoever reaches it: a client's functions run as the user who started the cluster. With TLS in both directions each
connection proves that it holds the key. One pair of key and certificate serves all members, since all of them run as one user.
The key stays in memory where all members are children of this process; for jobs it lies in a file that only the user can read.

    python -m slidesam.flows.cluster.keys FILE        # what infra/interactive calls
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from slidesam.flows.cluster.secret_files import write_secret
from slidesam.tasks.errors import ClusterError
from slidesam.tasks.run.owner import Owner, has_owner_ended
from slidesam.tasks.run.service_folders import key_folder, list_key_folders

_NAME = "slidesam"
# Clocks of nodes differ, and are set: the certificate ends with its key, not with a date.
_FROM, _UNTIL = datetime(2000, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)
KEYS = "keys.pem"
_OWNER = "owner.json"


def make_keys() -> str:
    """Make a key and its self-signed certificate, in PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, _NAME)])
    unsigned = x509.CertificateBuilder(
        name, name, key.public_key(), x509.random_serial_number(), not_valid_before=_FROM, not_valid_after=_UNTIL
    )
    certificate = unsigned.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
    return (certificate + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())).decode()


def make_security(keys: str) -> Any:
    """Return what Dask's schedulers, workers and clients take as `security`.

    Args:
        keys: As `make_keys` returns them, or the path of a file that holds them.
    """
    from distributed import Security

    roles = {f"tls_{role}_{part}": keys for role in ("client", "scheduler", "worker") for part in ("cert", "key")}
    return Security(require_encryption=True, tls_ca_file=keys, **roles)


def make_key_folder(jobs: Path, name: str) -> Path:
    """Make the folder of one cluster's secrets, which nobody else can open, and remove those that killed runs left.

    Args:
        jobs: Folder of the jobs' logs, or another one that all nodes share.
        name: The cluster's name.

    Raises:
        ClusterError: It can't be made, or others could open it.
    """
    remove_dead_keys(jobs)
    folder = key_folder(jobs, name)
    try:
        jobs.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700)
        if folder.stat().st_mode & 0o077:
            folder.rmdir()
            raise ClusterError(f"the file system of {jobs} shows every file to everybody", "give another --output")
        write_secret(folder / _OWNER, Owner.this_process(name).model_dump_json())
    except OSError as error:
        raise _make_error(error) from error
    return folder


def _make_error(error: OSError) -> ClusterError:
    return ClusterError(f"the cluster's key can't be written: {error}", "make room, or give another --output")


def write_keys(folder: Path) -> str:
    """Make a cluster's key, write it into the folder of its secrets for jobs to read, and return it.

    Raises:
        ClusterError: It can't be written, or others could replace it.
    """
    keys = make_keys()
    try:
        write_secret(folder / KEYS, keys)
    except OSError as error:
        raise _make_error(error) from error
    return keys


def remove_dead_keys(jobs: Path, ended: Collection[str] = ()) -> None:
    """Remove the folders of secrets of clusters whose process has ended.

    Args:
        jobs: The folder that they lie in.
        ended: Names of clusters that are known to have ended, though on another host.
    """
    known = {key_folder(jobs, name) for name in ended}
    for folder in list_key_folders(jobs):
        if folder in known or has_owner_ended(folder / _OWNER):
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    write_secret(Path(sys.argv[1]), make_keys())
