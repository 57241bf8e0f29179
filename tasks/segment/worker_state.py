"""What this worker process knows about itself: whether it may be ended, whether it is leaving, and which blocks it computes.

Dask's side of a worker (`flows.cluster.on_worker`) knows when its job ends. The block loop asks before each block, and
start-marks register here, so that the side which ends the process can excuse their blocks. The two sides share nothing but the
process, so the process holds one `WorkerState`: `this_worker`. Beside the segmenter that `load_segmenter` keeps, it is the only
state of a worker process.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path

from slidesam.tasks.errors import OutputError
from slidesam.tasks.run.records import StartMark

# Set in processes that may be ended for a block that takes too long: something starts another in their place.
DISPOSABLE = "SLIDESAM_WORKER"


class WorkerState:
    """State of one worker process; its threads share it."""

    def __init__(self) -> None:
        self._leaving = threading.Event()
        self._start_marks: dict[Path, StartMark] = {}

    @property
    def is_disposable(self) -> bool:
        """Whether another process is started if this one ends."""
        return DISPOSABLE in os.environ

    @property
    def is_leaving(self) -> bool:
        """Whether this process takes no further block."""
        return self._leaving.is_set()

    def leave(self) -> None:
        """Take no further block: a task of several blocks leaves the rest to other workers."""
        self._leaving.set()

    def register(self, path: Path, mark: StartMark) -> None:
        """Write the start-mark of a block and remember it until `unregister`."""
        mark.write(path, sync=False)
        self._start_marks[path] = mark

    def unregister(self, path: Path) -> None:
        """Forget a start-mark; its file stays."""
        self._start_marks.pop(path, None)

    def excuse_blocks(self) -> None:
        """Note in the start-marks of the blocks that this process computes that its end isn't their fault."""
        for path, mark in list(self._start_marks.items()):
            with suppress(OutputError):
                mark.model_copy(update={"state": "ended with its job"}).write(path, sync=False)


this_worker = WorkerState()
