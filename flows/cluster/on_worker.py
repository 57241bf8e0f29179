"""Prepares a Dask worker before its first task, and ends it well (`dask worker --preload slidesam.flows.cluster.on_worker`).

Some time before its job's end a worker takes no further block, finishes its current one, and leaves. Dask's own lifetime would
give that block to another worker at once, while it is still being computed here (https://github.com/dask/distributed/issues/3141).
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from slidesam.flows.cluster.jobs import LEAVE_AT, STAGGER
from slidesam.flows.cluster.links import close_http
from slidesam.tasks.segment.devices import check_given

_DIE_FIRST = "500"
_ALMOST_FULL = 0.9
_log = logging.getLogger("distributed.worker")
HEARTBEAT_FAILED = "Failed to communicate with scheduler during heartbeat."


def dask_setup(worker: Any) -> None:
    """Set up this worker process: its signals, what it imports, and when it leaves.

    Raises:
        DeviceError: The worker would compute on another device than the one that it was given: it doesn't start.
    """
    close_http(worker)
    check_given()
    # What a task imports takes seconds: all workers do it at once, while the cluster starts. Here, because `dask worker` and
    # its nanny import this module too. Nothing of it is garbage: looking for some would take a sixth of the time.
    gc.disable()
    import slidesam.tasks.steps  # noqa: F401
    from slidesam.tasks.labels import kernels
    from slidesam.tasks.segment.worker_state import DISPOSABLE, this_worker

    gc.enable()

    kernels.load()
    _log.addFilter(drop_traceback_of_heartbeat)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ[DISPOSABLE] = "1"
    this_worker.memory_limit = worker.memory_manager.memory_limit or None
    # If memory runs out, Linux shall end a worker, which is replaced, and not the flow.
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_DIE_FIRST)
    ending = _Ending(worker)
    signal.signal(signal.SIGTERM, ending.on_term)
    if LEAVE_AT in os.environ:
        stagger = float(os.environ.get(STAGGER, "0"))
        seconds = float(os.environ[LEAVE_AT]) - time.time() + random.uniform(-stagger, stagger)  # noqa: S311
        worker.loop.call_later(max(0.0, seconds), ending.begin)


def drop_traceback_of_heartbeat(record: logging.LogRecord) -> bool:
    """Shorten what Dask logs of a scheduler that is gone, as after Ctrl-C, to its sentence."""
    if record.msg == HEARTBEAT_FAILED:
        record.exc_info = None
    return True


class _Ending:
    """Ends a worker process before its run ends.

    Args:
        worker: The worker.
    """

    def __init__(self, worker: Any) -> None:
        self.worker, self.is_leaving = worker, False
        self.task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Take no further block, and leave when the current one is done."""
        from slidesam.tasks.segment.worker_state import this_worker

        self.is_leaving = True
        this_worker.leave()
        self.task = asyncio.ensure_future(self._leave())

    async def _leave(self) -> None:
        from distributed.core import Status

        _log.info("takes no further block: its job ends soon")
        # Dask's memory monitor would unpause it at once, as there is room.
        self.worker.memory_manager.memory_pause_fraction = False
        self.worker.status = Status.paused
        while self.worker.state.executing_count:
            await asyncio.sleep(0.2)
        await self.worker.close_gracefully(reason="its job ends soon")

    def on_term(self, number: int, frame: FrameType | None) -> None:
        """End at once. The block isn't blamed, unless the lifetime was over or the memory almost full."""
        from slidesam.tasks.segment.memory import used_memory
        from slidesam.tasks.segment.worker_state import this_worker

        limit, used = this_worker.memory_limit, used_memory()
        if limit is not None and used > _ALMOST_FULL * limit:
            this_worker.blame_memory(used)
        elif not self.is_leaving:
            this_worker.excuse_blocks()
        os._exit(128 + number)
