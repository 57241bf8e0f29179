"""Another user who reaches what Dask listens on, and tries to run code or to read what goes on."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import psutil

from tests.support.other_user import run_python_as_other_user

# Every way to make a Dask server run a function, or tell what it does: without TLS, and with a key of the intruder's own.
_PROGRAM = """
from slidesam.flows.cluster.keys import make_keys, make_security
own = make_security(make_keys())
own.get_connection_args("client")

async def ask(address, connection):
    comm = await asyncio.wait_for(connect(address, timeout=3, **connection), 5)
    await comm.write({"op": "identity", "reply": True})
    return repr(await asyncio.wait_for(comm.read(), 5))

def plain_http(host, port, path):
    with socket.create_connection((host, port), timeout=5) as sock:
        sock.sendall(f"GET {path} HTTP/1.0\\r\\nHost: x\\r\\n\\r\\n".encode())
        return sock.makefile("rb").read(4000).decode("latin1")

found = {}
for text in sys.argv[1:]:
    host, _, port = text.rpartition(":")
    for name, address, connection in (
        ("tcp", f"tcp://{host}:{port}", {}),
        ("tls", f"tls://{host}:{port}", own.get_connection_args("client")),
    ):
        try:
            found[f"{name} {text}"] = asyncio.run(ask(address, connection))
        except (OSError, asyncio.TimeoutError, CommClosedError):
            pass
    for path in ("/status", "/info/main/workers.html", "/json/identity.json", "/metrics", "/sitemap.json"):
        try:
            answer = plain_http(host, int(port), path)
        except OSError:
            continue
        if answer and not answer.startswith("HTTP/1.1 403"):
            found[f"{path} {text}"] = answer
print(json.dumps(found))
"""
_IMPORTS = """
import cryptography.x509, cryptography.hazmat.primitives.serialization, cryptography.hazmat.primitives.asymmetric.ec
import distributed, distributed.comm.tcp, slidesam.flows.cluster.keys
from distributed.comm import connect
from distributed.core import CommClosedError
"""


def listening(pids: set[int]) -> set[tuple[str, int]]:
    """Addresses and ports at which processes listen."""
    return {
        (connection.laddr.ip, connection.laddr.port)
        for connection in psutil.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN and connection.pid in pids
    }


def what_an_intruder_gets(addresses: Collection[tuple[str, int]], prefix: Sequence[str] = ()) -> dict[str, str]:
    """What another user is told at addresses, by way and address.

    Args:
        addresses: Hosts and ports.
        prefix: Command that starts the intruder elsewhere, such as in a network namespace.
    """
    texts = [f"{host}:{port}" for host, port in sorted(addresses)]
    return run_python_as_other_user(_PROGRAM, *texts, imports=_IMPORTS, prefix=prefix)
