"""What a Dask worker does as it starts, before its first task (`dask worker --preload slidesam.flows.on_worker`)."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

# What a task imports takes seconds: all workers do it at once, while the cluster starts.
import slidesam.tasks.steps  # noqa: F401
from slidesam.tasks.attempts import DISPOSABLE

_DIE_FIRST = "500"


def dask_setup(worker: object) -> None:
    """Leaves Ctrl-C to the command line, which ends its workers itself; says that this process may be ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ[DISPOSABLE] = "1"
    # If memory runs out Linux shall end a worker, which is replaced, and not the flow.
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_DIE_FIRST)
