"""Start-marks: which block a process was computing when it ended, and how often that has happened.

A killed process leaves no error. Its block has a start-mark in the state `running` and no done-mark. So the next worker that gets
the block knows that it ended a worker, tries it after all others, and gives it up after as many times as the settings allow.
Ended workers are counted within one attempt at the slide: if a person kills a whole run and starts it again, the block that was
being computed isn't blamed. It isn't blamed either if its job was ended from outside (`WorkerState.excuse_blocks`).
"""

from __future__ import annotations

import faulthandler
import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from slidesam.tasks.errors import BlockLostError, OutputError
from slidesam.tasks.run.layout import SegmentFolder
from slidesam.tasks.run.records import StartMark
from slidesam.tasks.segment.worker_state import WorkerState, this_worker

_EXIT_TIMED_OUT = 70
# Set in jobs: the file with the output of their workers.
_LOG, _LOG_LINES, _LOG_BYTES = "SLIDESAM_LOG", 5, 4096
# Dask's routine messages, except how a worker ended.
_ROUTINE = re.compile(r" - INFO - (?!Worker process)")


class StartMarks:
    """The start-marks of a slide's blocks.

    Args:
        folder: The segmenting stage's folder.
        attempt: Identifies this attempt at the slide; marks of another attempt don't count.
        max_lost: How often a block may end its worker before it is given up.
        timeout: Seconds that a block may take, or None.
        worker: The process that computes the blocks.
    """

    def __init__(
        self,
        folder: SegmentFolder,
        attempt: str,
        max_lost: int,
        timeout: float | None = None,
        worker: WorkerState = this_worker,
    ) -> None:
        self.folder, self.attempt, self.max_lost, self.timeout = folder, attempt, max_lost, timeout
        self.worker = worker

    def count_lost(self, block_id: int) -> int:
        """Count the workers that a block has ended in this attempt."""
        mark = self._read(block_id)
        return mark.lost + (mark.state in ("running", "timed out"))

    @contextmanager
    def computing(self, block_id: int) -> Iterator[None]:
        """Mark a block as being computed, and end this process if that takes too long.

        Raises:
            BlockLostError: The block has ended as many workers as are allowed.
        """
        previous, lost = self._read(block_id), self.count_lost(block_id)
        timed_out = _count_timed_out(previous)
        if lost >= self.max_lost:
            log_tail = last_lines(previous.log) if previous.log is not None and _is_beside_ours(previous.log) else ""
            raise BlockLostError(
                block_id,
                lost=lost,
                timed_out=timed_out,
                host=str(previous.host),
                timeout=self.timeout,
                log_tail=log_tail,
            )
        mark, path = self._make(lost, timed_out), self._path(block_id)
        self.worker.register(path, mark)
        try:
            with self._time_limit(path, mark):
                yield
        except BaseException:
            # A full disk must not hide the block's own error.
            with suppress(OutputError):
                _change_state(path, mark, "failed")
            raise
        finally:
            self.worker.unregister(path)
        path.unlink(missing_ok=True)

    @contextmanager
    def preparing(self, block_id: int) -> Iterator[None]:
        """Mark the first block while its model is loaded and its pixels are read: either may need too much memory.

        If the process ends meanwhile, the block counts as having ended it. Time isn't limited, and errors aren't the block's.
        """
        lost = self.count_lost(block_id)
        if lost >= self.max_lost:
            yield
            return
        mark, path = self._make(lost, _count_timed_out(self._read(block_id))), self._path(block_id)
        self.worker.register(path, mark)
        try:
            yield
        finally:
            self.worker.unregister(path)
            with suppress(OutputError):
                _change_state(path, mark, "ready")

    def _make(self, lost: int, timed_out: int) -> StartMark:
        log = os.environ.get(_LOG)
        return StartMark(
            state="running",
            attempt=self.attempt,
            lost=lost,
            timed_out=timed_out,
            host=socket.gethostname(),
            pid=os.getpid(),
            log=None if log is None else Path(log),
            began=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    @contextmanager
    def _time_limit(self, path: Path, mark: StartMark) -> Iterator[None]:
        """End the whole process after the time limit: code that hangs can't be stopped from inside."""
        if self.timeout is None or not self.worker.is_disposable:
            yield
            return
        timer = threading.Timer(self.timeout, self._end_process, (path, mark))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _end_process(self, path: Path, mark: StartMark) -> None:
        """Note where the process hangs, and end it."""
        try:
            trace = SegmentFolder.trace(path)
            # A link in its place must not lead elsewhere.
            trace.unlink(missing_ok=True)
            with trace.open("x") as stream:
                faulthandler.dump_traceback(stream)
            _change_state(path, mark, "timed out")
            self.worker.unregister(path)
            self.worker.excuse_blocks()
        finally:
            os._exit(_EXIT_TIMED_OUT)

    def _path(self, block_id: int) -> Path:
        return self.folder.start_mark(block_id)

    def _read(self, block_id: int) -> StartMark:
        mark = StartMark.read(self._path(block_id))
        return mark if mark is not None and mark.attempt == self.attempt else StartMark()


def _count_timed_out(mark: StartMark) -> int:
    return mark.timed_out + (mark.state == "timed out")


def _is_beside_ours(log: Path) -> bool:
    """Tell whether a log lies beside that of this process: what a mark names could be any file, and would be shown."""
    own_log = os.environ.get(_LOG)
    return own_log is not None and log.parent == Path(own_log).parent


def _change_state(path: Path, mark: StartMark, state: str) -> None:
    mark.model_copy(update={"state": state}).write(path, sync=False)


def last_lines(log: Path) -> str:
    """Read the last informative lines of a job's log, joined to one line; empty if there are none."""
    # A pipe in its place would never end.
    if not log.is_file():
        return ""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - _LOG_BYTES))
            lines = stream.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return " | ".join([line.strip() for line in lines if line.strip() and not _ROUTINE.search(line)][-_LOG_LINES:])
