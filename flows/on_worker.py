"""What a Dask worker does as it starts, before its first task (`dask worker --preload slidesam.flows.on_worker`)."""

from __future__ import annotations

import signal

# What a task imports takes seconds: all workers do it at once, while the cluster starts.
import slidesam.tasks.steps  # noqa: F401


def dask_setup(worker: object) -> None:
    """Leaves Ctrl-C to the command line, which ends its workers itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
