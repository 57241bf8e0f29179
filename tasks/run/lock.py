"""The lock of a run or of a slide's image, so that two runs never write the same output at once.

    with locked(path, 'flow run "CMU-1 · watershed"', target="CMU-1 (cells) in /out") as lock:
        lock.check()    # before each stage: do we still hold it?

`lock_file` says how the lock is created and taken over.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from slidesam.tasks.errors import OutputError
from slidesam.tasks.run.files import make_folder
from slidesam.tasks.run.lock_file import PACE, Contender, LockFile, LockPace, claim_path, read_lock_file


class LockedError(OutputError):
    """Another process holds the lock, or took it over: wait for that process, or end one of the two."""


class Lock:
    """A lock that this process holds; made by `locked`.

    Args:
        path: The lock's file.
        owner: Name of this process, for messages of others.
        target: The locked thing, in words.
        pace: The lock's times.
    """

    def __init__(self, path: Path, owner: str, target: str, pace: LockPace) -> None:
        self.path, self.target, self.pace = path, target, pace
        self._released = threading.Event()
        # How we lost the lock, in words; empty while we hold it.
        self._loss = ""
        self._contender = Contender(path, owner, pace)
        self._last_beat = time.monotonic()
        self._thread = threading.Thread(target=self._beat_until_released, name=f"lock of {target}", daemon=True)

    def check(self) -> None:
        """Make sure that we still hold the lock; call it before each stage.

        Raises:
            LockedError: It was taken over or removed, or its file couldn't be reached for `pace.stale` seconds.
        """
        if not self._loss:
            with suppress(OSError), self._claimed():
                self._beat()
        if self._loss:
            raise LockedError(self._loss)
        if time.monotonic() - self._last_beat > self.pace.stale:
            raise LockedError(
                f"{self.target}: its lock {self.path} couldn't be reached for {self.pace.stale:g} s, so another run may have "
                "taken over: check the file server, then run the same command again"
            )

    def acquire(self, wait: float, on_wait: Callable[[str], None] | None) -> None:
        """Get the lock and start to beat; called by `locked`."""
        try:
            make_folder(self.path.parent)
            self._wait_for_rivals(wait, on_wait)
            self._contender.close()
        except LockedError:
            raise
        except OSError as error:
            cure = "make room there" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "check the folder"
            raise OutputError(
                f"{self.target} can't be locked, as {self.path} can't be written ({os.strerror(error.errno or 0)}): "
                f"{cure}, then run the same command again"
            ) from error
        self._last_beat = time.monotonic()
        self._thread.start()

    def release(self) -> None:
        """Remove the lock's file if it is ours; called by `locked`."""
        if os.getpid() != self._contender.owner.pid:
            # A fork of the owner isn't the owner.
            return
        self._released.set()
        if self._thread.is_alive():
            # The file server may hang, so don't wait for long. A late beat finds that the lock is no longer ours.
            self._thread.join(self.pace.beat)
        # A file that can't be removed is abandoned as soon as this process ends.
        with suppress(OSError):
            if self._contender.holds(self.path):
                with self._claimed():
                    # If another process is taking over and doesn't finish, it may do so between our look and the removal.
                    if not self._loss:
                        self._contender.unlock(self.path)
        self._contender.close()

    def _wait_for_rivals(self, wait: float, on_wait: Callable[[str], None] | None) -> None:
        deadline = time.monotonic() + wait
        while (rival := self._contender.try_lock(self.path)) is not None:
            remaining = deadline - time.monotonic()
            owner = _describe_owner(self.path, rival.file)
            if not rival.seems_dead and remaining <= 0:
                raise LockedError(
                    f"{self.target} is locked by {owner}: wait for it, or end it; "
                    f"if that process is gone the lock is free within {self.pace.stale:g} s"
                )
            if on_wait is not None:
                on_wait(f"{self.target} is locked by {owner}: waiting for it")
                on_wait = None
            time.sleep(self.pace.poll if rival.seems_dead else min(self.pace.poll, remaining))

    def _beat_until_released(self) -> None:
        while not self._loss and not self._released.wait(self.pace.beat):
            # If the file server fails for a moment, the next beat tries again.
            with suppress(OSError):
                self._beat()

    def _beat(self) -> None:
        """Touch the file if it is ours; otherwise the lock is lost."""
        if self._contender.holds(self.path):
            os.utime(self.path)
            self._last_beat = time.monotonic()
        elif not self._released.is_set():
            self._lose(read_lock_file(self.path))

    def _lose(self, file: LockFile | None) -> None:
        if file is None:
            self._loss = (
                f"{self.target}: its lock {self.path} was removed while this run was at work: make sure that no other run "
                "writes there, then run the same command again"
            )
        else:
            self._loss = (
                f"{self.target} was taken over by {_describe_owner(self.path, file)}, after this run had been suspended or cut "
                f"off from the file server for {self.pace.stale:g} s: let that one finish, or end it and run the same command "
                "again"
            )

    @contextmanager
    def _claimed(self) -> Iterator[None]:
        """Keep others from taking over meanwhile; if another process is doing so and doesn't finish, the lock is lost."""
        # With a token of its own: a claim must never have the token that it is about.
        claimant = Contender(self.path, self._contender.owner.owner, self.pace)
        claim = claim_path(self.path, self._contender.owner.token)
        deadline = time.monotonic() + self.pace.watch
        try:
            # A full disk has no room for the claim. We continue without it: our lock is what others look at.
            with suppress(OSError):
                while (rival := claimant.try_lock(claim)) is not None:
                    if time.monotonic() > deadline and not rival.seems_dead:
                        self._lose(rival.file)
                        break
                    time.sleep(min(0.05, self.pace.poll))
            yield
        finally:
            with suppress(OSError):
                claimant.unlock(claim)
            claimant.close()


@contextmanager
def locked(
    path: Path,
    owner: str,
    *,
    target: str,
    wait: float = 0.0,
    on_wait: Callable[[str], None] | None = None,
    pace: LockPace = PACE,
) -> Iterator[Lock]:
    """Hold a lock while the code inside runs.

    The lock of a process that was killed on this machine is taken over at once. A lock without a sign of life for
    `pace.stale` seconds is first watched for `pace.watch` seconds, even if `wait` is shorter.

    Args:
        path: The lock's file; its folder is created.
        owner: Name of this process, for messages of others: 'flow run "CMU-1 · watershed"'.
        target: The locked thing, in words for messages: "CMU-1 (cells) in /out".
        wait: Seconds to wait for another owner to finish.
        on_wait: Called once, with a message, if another process holds the lock.
        pace: The lock's times; others than the default are for tests.

    Raises:
        LockedError: Another process holds it, and did so until the end of `wait`.
        OutputError: The file can't be written.
    """
    lock = Lock(path, owner, target, pace)
    try:
        lock.acquire(wait, on_wait)
        yield lock
    finally:
        lock.release()


def holder(path: Path, pace: LockPace = PACE) -> str | None:
    """Describe the process that holds a lock; None if there is none, or it is gone. See `holders`.

    Raises:
        OutputError: The file can't be read.
    """
    return holders([path], pace).get(path)


def holders(paths: Iterable[Path], pace: LockPace = PACE) -> dict[Path, str]:
    """Describe the processes that hold locks; write nothing.

    A lock that nobody touched for `pace.stale` seconds is watched for `pace.watch` seconds, all such locks at once: after an
    outage of the file server all locks are old. If nobody touches it then, its process is gone, on whatever host.

    Args:
        paths: Files of locks.
        pace: The locks' times; others than the default are for tests.

    Returns:
        The process, by the lock's file, of those that are held.

    Raises:
        OutputError: A file can't be read.
    """
    files = {path: file for path in paths if (file := _read_held(path)) is not None}
    # By our clock: if it is wrong, we watch locks that are in use, and see that they are.
    silent = {path: file for path, file in files.items() if time.time() - file.touched / 1e9 >= pace.stale}
    deadline = time.monotonic() + pace.watch
    while silent and time.monotonic() < deadline:
        time.sleep(pace.poll)
        silent = {path: file for path, file in silent.items() if _read_held(path) == file}
    for path in silent:
        del files[path]
    return {path: _describe_owner(path, file) for path, file in files.items()}


def _read_held(path: Path) -> LockFile | None:
    """Read a lock's file; None if there is none, or its process has ended.

    Raises:
        OutputError: The file can't be read.
    """
    try:
        file = read_lock_file(path)
    except OSError as error:
        raise OutputError(f"{path} can't be read ({os.strerror(error.errno or 0)}): fix its permissions") from error
    return None if file is None or (file.owner is not None and file.owner.has_ended) else file


def _describe_owner(path: Path, file: LockFile) -> str:
    return str(file.owner) if file.owner else f"an unknown process ({path} doesn't name it)"
