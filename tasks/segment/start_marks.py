"""Start-marks: which block a process was at work on when it ended, and how often that has happened.

A killed process leaves no error. Its block has a start-mark that says `running` and no done-mark, so that whoever gets the block
next knows that it cost a worker, tries it after all others, and gives it up after as many times as the settings allow. Counted
within one go at the slide: whoever kills a whole run and starts it again holds nothing against the block that was being
computed. Nor is it held against a block that its job was ended from outside: `excuse`.
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
from typing import Any

from slidesam.tasks.errors import BlockLostError, OutputError
from slidesam.tasks.run.files import read_json, write_json
from slidesam.tasks.run.layout import SegmentFolder

# Set in processes that may be ended for a block that takes too long: something starts another in their place.
DISPOSABLE = "SLIDESAM_WORKER"
_TIMED_OUT = 70
# Set in jobs: the file that has what their workers say.
_LOG, _LOG_LINES, _LOG_BYTES = "SLIDESAM_LOG", 5, 4096
# What Dask says of its daily round; but also how a worker ended.
_SAYS_NOTHING = re.compile(r" - INFO - (?!Worker process)")
# Set in a worker whose job ends soon: a task of several blocks leaves the rest to others.
_leaving = threading.Event()
# Start-marks of the blocks that this process is computing, and what they say.
_at_work: dict[Path, dict[str, Any]] = {}


class Attempts:
    """The start-marks of a slide's blocks.

    Args:
        folder: The segmenting stage's folder.
        go: Identifies this go at the slide; marks of another say nothing.
        allowed: How often a block may cost its worker before it is given up.
        timeout: Seconds that a block may take, or None.
    """

    def __init__(self, folder: SegmentFolder, go: str, allowed: int, timeout: float | None = None) -> None:
        self.folder, self.go, self.allowed, self.timeout = folder, go, allowed, timeout

    def lost(self, block_id: int) -> int:
        """How many workers a block has cost in this go."""
        mark = self._read(block_id)
        return int(mark.get("lost", 0)) + (mark.get("state") in ("running", "timed out"))

    @contextmanager
    def at(self, block_id: int) -> Iterator[None]:
        """Marks a block as being computed, and ends this process if that takes too long.

        Raises:
            BlockLostError: It has cost as many workers as are allowed.
        """
        before, lost = self._read(block_id), self.lost(block_id)
        timed_out = self._timed_out(before)
        if lost >= self.allowed:
            raise BlockLostError(
                block_id,
                lost=lost,
                timed_out=timed_out,
                host=str(before.get("host")),
                timeout=self.timeout,
                log_tail=last_lines(Path(before["log"])) if before.get("log") else "",
            )
        facts, path = self._facts(lost, timed_out), self._path(block_id)
        write_json(path, facts, sync=False)
        _at_work[path] = facts
        try:
            with self._watched(path, facts):
                yield
        except BaseException:
            # Whatever it was, a full disk must not hide it.
            with suppress(OutputError):
                write_json(path, {**facts, "state": "failed"}, sync=False)
            raise
        finally:
            _at_work.pop(path, None)
        path.unlink(missing_ok=True)

    @contextmanager
    def before(self, block_id: int) -> Iterator[None]:
        """Marks the first block while what it needs is made ready: a model that doesn't fit, pixels that can't be decoded.

        A process that ends meanwhile counts as one that the block cost. Time isn't counted, and errors are nobody's.
        """
        lost = self.lost(block_id)
        if lost >= self.allowed:
            yield
            return
        facts, path = self._facts(lost, self._timed_out(self._read(block_id))), self._path(block_id)
        write_json(path, facts, sync=False)
        _at_work[path] = facts
        try:
            yield
        finally:
            _at_work.pop(path, None)
            with suppress(OutputError):
                write_json(path, {**facts, "state": "ready"}, sync=False)

    @staticmethod
    def _timed_out(mark: dict[str, Any]) -> int:
        return int(mark.get("timed_out", 0)) + (mark.get("state") == "timed out")

    def _facts(self, lost: int, timed_out: int) -> dict[str, Any]:
        return {
            "state": "running",
            "go": self.go,
            "lost": lost,
            "timed_out": timed_out,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "log": os.environ.get(_LOG),
            "began": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    @contextmanager
    def _watched(self, path: Path, facts: dict[str, Any]) -> Iterator[None]:
        """Code that hangs can't be stopped from inside, so the whole process is."""
        if self.timeout is None or os.environ.get(DISPOSABLE) is None:
            yield
            return
        timer = threading.Timer(self.timeout, _give_up, (path, facts))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _path(self, block_id: int) -> Path:
        return self.folder.start_mark(block_id)

    def _read(self, block_id: int) -> dict[str, Any]:
        mark = read_json(self._path(block_id)) or {}
        return mark if mark.get("go") == self.go else {}


def leave() -> None:
    """Says that this process takes no further block."""
    _leaving.set()


def is_leaving() -> bool:
    """Whether this process takes no further block."""
    return _leaving.is_set()


def excuse() -> None:
    """Says of the blocks that this process is computing that it isn't their fault that it ends now."""
    for path, facts in list(_at_work.items()):
        with suppress(OutputError):
            write_json(path, {**facts, "state": "ended with its job"}, sync=False)


def last_lines(log: Path) -> str:
    """The last few lines of a job's log that say something, on one line; empty where there are none."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - _LOG_BYTES))
            lines = stream.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return " | ".join([line.strip() for line in lines if line.strip() and not _SAYS_NOTHING.search(line)][-_LOG_LINES:])


def _give_up(path: Path, facts: dict[str, Any]) -> None:
    """Notes where the process hangs, and ends it."""
    try:
        with SegmentFolder.trace(path).open("w") as stream:
            faulthandler.dump_traceback(stream)
        write_json(path, {**facts, "state": "timed out"}, sync=False)
        _at_work.pop(path, None)
        excuse()
    finally:
        os._exit(_TIMED_OUT)
