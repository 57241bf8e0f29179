"""A run's lock: a file that names its owner and beats, so that two runs never write one output at once.

    with locked(path, 'flow run "CMU-1 · watershed"', what="CMU-1 (cells) in /out") as lock:
        lock.check()    # before each stage: is it still ours?

How the file is had, and taken over, is told in `lock_file`.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from slidesam.tasks.errors import OutputError
from slidesam.tasks.run.lock_file import PACE, Contender, Pace, Seen, look


class LockedError(OutputError):
    """Somebody else is at work there, or took the lock over: wait, or end one of the two."""


class Lock:
    """A lock that is held: `locked` makes it.

    Args:
        path: Its file.
        owner: What its owner calls itself.
        what: What is locked, in words.
        pace: Its pace.

    Attributes:
        lost: Set once the lock isn't ours any more.
    """

    def __init__(self, path: Path, owner: str, what: str, pace: Pace) -> None:
        self.path, self.what, self.pace = path, what, pace
        self.lost = threading.Event()
        self._loss = ""
        self._ended = threading.Event()
        self._contender = Contender(path, owner, pace)
        self._beaten = time.monotonic()
        self._thread = threading.Thread(target=self._beat_on, name=f"lock of {what}", daemon=True)

    def check(self) -> None:
        """Makes sure that the lock is still ours; call it before each stage.

        Raises:
            LockedError: It was taken over or removed, or for long nobody could tell.
        """
        if not self.lost.is_set():
            try:
                with self._undisturbed():
                    self._beat()
            except OSError:
                # No room for the claim, or no answer. What others see of us is the lock itself.
                with suppress(OSError):
                    self._beat()
        if self.lost.is_set():
            raise LockedError(self._loss)
        if time.monotonic() - self._beaten > self.pace.stale:
            raise LockedError(
                f"{self.what}: its lock {self.path} couldn't be reached for {self.pace.stale:g} s, so another run may have "
                "taken over: check the file server, then run the same command again"
            )

    def take(self, wait: float, on_wait: Callable[[str], None] | None) -> None:
        """Gets the lock and starts to beat; `locked` calls it."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._wait_for_it(wait, on_wait)
            self._contender.close()
        except LockedError:
            raise
        except OSError as error:
            todo = "make room there" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "check the folder"
            raise OutputError(
                f"{self.what} can't be locked, as {self.path} can't be written ({os.strerror(error.errno or 0)}): "
                f"{todo}, then run the same command again"
            ) from error
        self._beaten = time.monotonic()
        self._thread.start()

    def release(self) -> None:
        """Removes the lock if it is ours; `locked` calls it."""
        if os.getpid() != self._contender.me.pid:
            # A fork of the owner isn't the owner.
            return
        self._ended.set()
        if self._thread.is_alive():
            # Not for long: its server may hang. A beat that comes late finds that the lock isn't ours any more.
            self._thread.join(self.pace.beat)
        # What can't be removed is abandoned as soon as this process ends.
        with suppress(OSError):
            if self._contender.holds(self.path):
                self._remove()
        self._contender.close()

    def _wait_for_it(self, wait: float, on_wait: Callable[[str], None] | None) -> None:
        deadline = time.monotonic() + wait
        while (rival := self._contender.try_once(self.path)) is not None:
            left = deadline - time.monotonic()
            if not rival.seems_gone and left <= 0:
                raise LockedError(_refusal(self.what, self.path, rival.seen, self.pace))
            if on_wait is not None:
                on_wait(f"{self.what} is locked by {_words(self.path, rival.seen)}: waiting for it")
                on_wait = None
            time.sleep(self.pace.poll if rival.seems_gone else min(self.pace.poll, left))

    def _beat_on(self) -> None:
        while not self.lost.is_set() and not self._ended.wait(self.pace.beat):
            # A file server that hiccups is tried again at the next beat.
            with suppress(OSError):
                self._beat()

    def _beat(self) -> None:
        """Touches the lock if it is ours; else notes that it is lost."""
        if self._contender.holds(self.path):
            os.utime(self.path)
            self._beaten = time.monotonic()
        elif not self._ended.is_set():
            self._lose(look(self.path))

    def _lose(self, seen: Seen | None) -> None:
        if seen is None:
            self._loss = (
                f"{self.what}: its lock {self.path} was removed while this run was at work: make sure that no other run "
                "writes there, then run the same command again"
            )
        else:
            self._loss = (
                f"{self.what} was taken over by {_words(self.path, seen)}, after this run had been suspended or cut off "
                f"from the file server for {self.pace.stale:g} s: let that one finish, or end it and run the same command again"
            )
        self.lost.set()

    @contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """Keeps others from taking over meanwhile; if somebody is just doing so, and doesn't finish, the lock is lost."""
        # Under a token of its own: a claim must never be of the token that it is about.
        other = Contender(self.path, self._contender.me.owner, self.pace)
        claim = other.claim_of(self.path, self._contender.me.token)
        patience = time.monotonic() + self.pace.watch
        try:
            while (rival := other.try_once(claim)) is not None:
                if time.monotonic() > patience and not rival.seems_gone:
                    self._lose(rival.seen)
                    break
                time.sleep(min(0.05, self.pace.poll))
            yield
        finally:
            with suppress(OSError):
                other.drop(claim)
            other.close()

    def _remove(self) -> None:
        try:
            with self._undisturbed():
                # Whoever is just taking over, and doesn't finish, may do so between our look and the removal.
                if not self.lost.is_set():
                    self._contender.drop(self.path)
        except OSError:
            # A full disk has no room for the claim.
            self._contender.drop(self.path)


@contextmanager
def locked(
    path: Path,
    owner: str,
    *,
    what: str,
    wait: float = 0.0,
    on_wait: Callable[[str], None] | None = None,
    pace: Pace = PACE,
) -> Iterator[Lock]:
    """Holds a lock while the code inside runs.

    A lock whose process was killed on this machine is taken over at once; of one that shows no sign of life for
    `pace.stale` seconds that is first made sure, for `pace.watch` seconds, whatever `wait` says.

    Args:
        path: The lock's file; its folder is made.
        owner: Who wants it, in words for others: 'flow run "CMU-1 · watershed"'.
        what: What is locked, in words for messages: "CMU-1 (cells) in /out".
        wait: Seconds to wait for another owner to finish.
        on_wait: Told once, in words, if there is something to wait for.
        pace: For tests.

    Raises:
        LockedError: Somebody else holds it, and did so until the end of `wait`.
        OutputError: The file can't be written.
    """
    lock = Lock(path, owner, what, pace)
    try:
        lock.take(wait, on_wait)
        yield lock
    finally:
        lock.release()


def holder(path: Path) -> str | None:
    """Who holds a lock, in words; None if nobody does, or its process is gone. Writes nothing.

    Raises:
        OutputError: The file can't be read.
    """
    try:
        seen = look(path)
    except OSError as error:
        raise OutputError(f"{path} can't be read ({os.strerror(error.errno or 0)}): mend its permissions") from error
    if seen is None or (seen.owner is not None and seen.owner.is_gone):
        return None
    return _words(path, seen)


def _words(path: Path, seen: Seen) -> str:
    return str(seen.owner) if seen.owner else f"somebody whose lock {path} says nothing"


def _refusal(what: str, path: Path, seen: Seen, pace: Pace) -> str:
    return (
        f"{what} is locked by {_words(path, seen)}: wait for it, or end it; "
        f"if that process is gone the lock is free within {pace.stale:g} s"
    )
