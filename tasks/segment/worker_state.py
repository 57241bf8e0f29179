"""What this worker process knows about itself: whether it may be ended, whether it is leaving, and which blocks it computes.

Dask's side of a worker (`flows.cluster.on_worker`) knows when its job ends. The block loop asks before each block, and
start-marks register here, so that the side which ends the process can excuse their blocks. The two sides share nothing but the
process, so the process holds one `WorkerState`: `this_worker`. Beside the segmenter that `load_segmenter` keeps, it is the only
state of a worker process.

A process that is killed says nothing any more. So the paths of its start-marks are also in a small file of the machine
(`MARKS_FILE`), which the process that watches it (`flows.cluster.on_nanny`) reads when it has ended.
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
# Set by who watches this process: the file that lists the start-marks of the blocks that it computes.
MARKS_FILE = "SLIDESAM_MARKS_FILE"


class WorkerState:
    """State of one worker process; its threads share it.

    Attributes:
        memory_limit: Bytes that this process may use; None if nobody limits them but the machine.
    """

    def __init__(self) -> None:
        self.memory_limit: int | None = None
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
        self._list_marks()

    def unregister(self, path: Path) -> None:
        """Forget a start-mark; its file stays."""
        self._start_marks.pop(path, None)
        self._list_marks()

    def excuse_blocks(self) -> None:
        """Note in the start-marks of the blocks that this process computes that its end isn't their fault."""
        self._note_end({"state": "ended with its job"})

    def blame_memory(self, used: int) -> None:
        """Note in the start-marks of the blocks that this process computes that it ends because of its memory.

        If it computes two at once, either may be the one: both are tried again, each alone.

        Args:
            used: Bytes that it uses.
        """
        is_clear = len(self._start_marks) == 1
        state = {"state": "out of memory", "memory": used, "memory_limit": self.memory_limit}
        self._note_end(state if is_clear else {"state": "killed"})

    def _note_end(self, changes: dict[str, object]) -> None:
        for path, mark in list(self._start_marks.items()):
            with suppress(OutputError):
                mark.model_copy(update=changes).write(path, sync=False)

    def _list_marks(self) -> None:
        if MARKS_FILE in os.environ:
            # It lies on the machine's own disk, and is worth no block.
            with suppress(OSError):
                Path(os.environ[MARKS_FILE]).write_text("\0".join(map(str, list(self._start_marks))))


this_worker = WorkerState()
