"""The process of a Prefect server that a command starts for itself: `python -m slidesam.flows.prefect_api.serve SOCKET`.

It listens on a socket that it inherits, by its number, so that the address stays the command's own: between the end of a server
and the start of the next nobody else can listen there, and requests wait instead of being refused.
"""

from __future__ import annotations

import os
import socket
import sys


def serve(descriptor: int) -> None:
    """Run a Prefect server on an inherited socket until a signal ends it.

    Args:
        descriptor: The listening socket.
    """
    # The database holds what runs log, and secrets of blocks.
    os.umask(0o077)
    import uvicorn
    from prefect.server.api.server import create_app
    from prefect.settings import PREFECT_SERVER_API_KEEPALIVE_TIMEOUT

    config = uvicorn.Config(
        create_app(final=True),
        timeout_keep_alive=PREFECT_SERVER_API_KEEPALIVE_TIMEOUT.value(),
        # Those who are connected don't end by themselves.
        timeout_graceful_shutdown=5,
        log_level="warning",
    )
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=descriptor)])


if __name__ == "__main__":
    serve(int(sys.argv[1]))
