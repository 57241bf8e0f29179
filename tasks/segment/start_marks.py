"""Start-marks: which block a process was computing when it ended, and how often that has happened.

A killed process leaves no error. Its block has a start-mark in the state `running` and no done-mark. So the next worker that gets
the block knows that it ended a worker, tries it after all others, and gives it up after as many times as the settings allow.
Who watches the process (`flows.cluster.on_nanny`) notes in the mark what ended it, if memory did. If larger workers can be had,
such a block isn't tried again on one of this size.
Ended workers are counted within one attempt at the slide: if a person kills a whole run and starts it again, the block that was
being computed isn't blamed. It isn't blamed either if its job was ended from outside (`WorkerState.excuse_blocks`).
"""

from __future__ import annotations

import faulthandler
import os
import re
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from slidesam.tasks.errors import BlockLostError, BlockMemoryError, DeviceMemoryError, OutputError
from slidesam.tasks.run.records import StartMark
from slidesam.tasks.run.stage_folders import SegmentFolder
from slidesam.tasks.segment.memory import is_device_memory_error, is_memory_error, used_memory
from slidesam.tasks.segment.worker_state import MARKS_FILE, WorkerState, this_worker

_EXIT_TIMED_OUT = 70
# Set in jobs: the file with the output of their workers.
_LOG, _LOG_LINES, _LOG_BYTES = "SLIDESAM_LOG", 5, 4096
# Slurm sets it: the number of the job.
_JOB = "SLURM_JOB_ID"
# States of a mark whose block ended its process. Of a `running` one nobody has noted yet what ended it.
_OUT_OF_MEMORY = "out of memory"
_LOST = ("running", "timed out", "killed", _OUT_OF_MEMORY)
# A block may be here before who watched its last worker has noted what ended that: so many seconds are waited for it.
_VERDICT_SECONDS, _VERDICT_POLL = 2.0, 0.05
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
        can_grow: Whether larger workers can be had for a block that ran out of memory: it isn't tried again here.
    """

    def __init__(
        self,
        folder: SegmentFolder,
        attempt: str,
        max_lost: int,
        timeout: float | None = None,
        worker: WorkerState = this_worker,
        *,
        can_grow: bool = False,
    ) -> None:
        self.folder, self.attempt, self.max_lost, self.timeout = folder, attempt, max_lost, timeout
        self.worker, self.can_grow = worker, can_grow

    def count_lost(self, block_id: int) -> int:
        """Count the workers that a block has ended in this attempt."""
        return _count_lost(self._read(block_id))

    def find_end(self, block_id: int) -> BlockLostError | BlockMemoryError | None:
        """Return why a block isn't tried once more; None if it is tried."""
        return self._find_end(block_id, self._read_judged(block_id))

    def _find_end(self, block_id: int, mark: StartMark) -> BlockLostError | BlockMemoryError | None:
        lost, needs_memory = _count_lost(mark), mark.state == _OUT_OF_MEMORY
        if lost < self.max_lost and not (needs_memory and self.can_grow):
            return None
        log_tail = last_lines(mark.log) if mark.log is not None and _is_beside_ours(mark.log) else ""
        host = str(mark.host)
        if needs_memory:
            return BlockMemoryError(
                block_id, host=host, used=mark.memory, limit=mark.memory_limit, ended_worker=True, log_tail=log_tail
            )
        return BlockLostError(
            block_id,
            lost=lost,
            timed_out=_count_timed_out(mark),
            host=host,
            timeout=self.timeout,
            job=mark.job,
            log_tail=log_tail,
        )

    @contextmanager
    def computing(self, block_id: int) -> Iterator[StartMark]:
        """Mark a block as being computed, and end this process if that takes too long; give the mark.

        Raises:
            BlockLostError: The block has ended as many workers as are allowed.
            BlockMemoryError: The machine's memory doesn't suffice for it, now or when its last worker was ended.
            DeviceMemoryError: The GPU's memory doesn't suffice for it.
        """
        previous = self._read_judged(block_id)
        if (end := self._find_end(block_id, previous)) is not None:
            raise end
        mark, path = self._make(previous), self._path(block_id)
        self.worker.register(path, mark)
        try:
            with self._time_limit(path, mark):
                yield mark
        except BaseException as error:
            # A full disk must not hide the block's own error.
            with suppress(OutputError):
                _change_state(path, mark, "failed")
            if is_device_memory_error(error):
                raise DeviceMemoryError(block_id, str(error)) from error
            if is_memory_error(error):
                raise self._memory_error(block_id) from error
            raise
        finally:
            self.worker.unregister(path)
        path.unlink(missing_ok=True)

    @contextmanager
    def preparing(self, block_id: int) -> Iterator[None]:
        """Mark the first block while its model is loaded and its pixels are read: either may need too much memory.

        If the process ends meanwhile, the block counts as having ended it. Time isn't limited, and errors aren't the block's.
        """
        previous = self._read_judged(block_id)
        if _count_lost(previous) >= self.max_lost:
            yield
            return
        mark, path = self._make(previous), self._path(block_id)
        self.worker.register(path, mark)
        try:
            yield
        finally:
            self.worker.unregister(path)
            with suppress(OutputError):
                _change_state(path, mark, "ready")

    def _make(self, previous: StartMark) -> StartMark:
        log = os.environ.get(_LOG)
        return StartMark(
            state="running",
            attempt=self.attempt,
            lost=_count_lost(previous),
            timed_out=_count_timed_out(previous),
            failed=previous.failed + (previous.state == "failed"),
            host=socket.gethostname(),
            pid=os.getpid(),
            log=None if log is None else Path(log),
            job=os.environ.get(_JOB),
            watched=MARKS_FILE in os.environ,
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

    def _memory_error(self, block_id: int) -> BlockMemoryError:
        """Make the error of a block for which an allocation failed; this process lives on."""
        return BlockMemoryError(
            block_id,
            host=socket.gethostname(),
            used=used_memory(),
            limit=self.worker.memory_limit,
            ended_worker=False,
            is_hopeless=self.can_grow,
        )

    def _path(self, block_id: int) -> Path:
        return self.folder.start_mark(block_id)

    def _read(self, block_id: int) -> StartMark:
        mark = StartMark.read(self._path(block_id))
        return mark if mark is not None and mark.attempt == self.attempt else StartMark()

    def _read_judged(self, block_id: int) -> StartMark:
        """Read a start-mark of a process that ended, once what ended it is noted."""
        deadline = time.monotonic() + _VERDICT_SECONDS
        while True:
            mark = self._read(block_id)
            if not (mark.watched and mark.state == "running") or time.monotonic() > deadline:
                return mark
            time.sleep(_VERDICT_POLL)


def judge_marks(paths: Sequence[Path], pid: int, memory: int | None, memory_limit: int | None) -> None:
    """Note in the start-marks of a process that has ended what ended it.

    If it computed two blocks at once, memory is held against neither: each is tried again alone.

    Args:
        paths: The start-marks.
        pid: Its number on this machine. Marks of other processes, and those that say how they ended, are left alone.
        memory: Bytes that it used, if it was ended for them; None if something else ended it.
        memory_limit: Bytes that it was allowed; None = as many as there are.
    """
    changes: dict[str, object] = {"state": "killed"}
    if memory is not None and len(paths) == 1:
        changes = {"state": _OUT_OF_MEMORY, "memory": memory, "memory_limit": memory_limit}
    for path in paths:
        # What can't be written is judged by the next worker alone.
        with suppress(OutputError):
            mark = StartMark.read(path)
            if mark is not None and (mark.state, mark.pid, mark.host) == ("running", pid, socket.gethostname()):
                mark.model_copy(update=changes).write(path, sync=False)


def _count_lost(mark: StartMark) -> int:
    return mark.lost + (mark.state in _LOST)


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
