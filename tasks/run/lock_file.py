"""A lock's file: how a process creates it, and how it takes the lock over from an owner that is gone.

The lock must work between hosts on NFS, Lustre or GPFS, and after kill -9. So it relies only on what all of these guarantee:
if several processes link the same name, exactly one succeeds; and a rename replaces a file at once. (`SoftFileLease` of the
package filelock exchanges two files by a rename, which NFS refuses: a dead owner's lock would stay for ever.)

A process writes its file under a private name, then links it to the lock's name. After that only the modification time
changes: a thread of the owner touches the file every `beat` seconds. A lock is abandoned if

- its process has ended, which only its own machine can tell;
- or nobody touched it for `stale` seconds, nor for two more beats while we watched. The age is measured by the file server's
  clock (we touch a file beside it), as clocks of nodes differ. We watch because all locks are old after an outage of the
  file server; their owners touch them as soon as it is back.

The file under the lock's name changes in three ways only:

1. a process links its file, where there is none;
2. a process replaces an abandoned file with token T, while it holds T's claim and after it has read T there;
3. its owner removes it, while it holds its token's claim and after it has read its token there.

T's claim is a lock itself, `.lock.json.<T>.claim`, held for milliseconds. So nothing changes between reading and replacing,
and the name is never free for a third process (as it would be if the abandoned file were renamed away first). The cases:

- A and B see that T is abandoned. A gets the claim, replaces T and drops the claim. B gets the claim later, reads A's token
  and gives up. No token is used twice, so nobody can take over T again.
- T's owner was suspended and resumes while A takes over. `Lock.check` holds T's claim while it touches and reads the file.
  Either A has replaced T, and the owner sees it; or A comes later, sees that the file was touched, and gives up.
- A dies while it holds the claim. The claim is then abandoned and taken over like any lock, by a claim on A's token.
- A holds the claim and is suspended for `stale` seconds between two system calls. B takes over the claim and replaces T; A
  resumes and replaces B. A sees that it lost the claim, and continues only after B's next beat, when B notices.
- A link, rename or removal succeeds, but the answer is lost and the repeated call fails. So we read the token afterwards.

No such lock can prevent that an owner that was suspended for long works on, after it resumes, until its next beat or
`check`. Without links the file is created under the lock's name, then written; a process that is suspended for `stale`
seconds between the two can lose the lock without seeing it before the next beat.
"""

from __future__ import annotations

import errno
import os
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from slidesam.tasks.run.owner import Owner

# Errors of link() on file systems without links (FAT, some FUSE and SMB).
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
# Other processes hold a claim for milliseconds only: after so many attempts the file system must be broken.
_ATTEMPTS = 200


@dataclass(frozen=True)
class LockPace:
    """Times of a lock, in seconds; all processes that use one lock should agree on them.

    Attributes:
        beat: Time between two touches of the file by its owner.
        stale: Time without a touch after which the lock counts as abandoned.
        poll: Time between two attempts of a process that waits for the lock.
    """

    beat: float = 5.0
    stale: float = 60.0
    poll: float = 1.0

    @property
    def watch(self) -> float:
        """Time to watch the file before taking the lock over from a process that may be alive: more than two beats."""
        return 2.5 * self.beat


PACE = LockPace()


@dataclass(frozen=True)
class LockFile:
    """A lock's file at one moment; equal to that of another moment if nothing happened between the two.

    Attributes:
        owner: Process that holds the lock; None if the file names none.
        inode: Number of the file.
        touched: Modification time in nanoseconds.
    """

    owner: Owner | None
    inode: int
    touched: int

    @property
    def token(self) -> str:
        """The owner's token, or one that identifies this very file if its writer died before writing it."""
        return self.owner.token if self.owner else f"{self.inode:x}-{self.touched:x}"


def read_lock_file(path: Path) -> LockFile | None:
    """Read a lock's file; None if there is none."""
    try:
        # NFS asks its server at an open; it may answer a stat from its cache.
        # A FIFO in its place must not wait for who writes to it.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as stream:
            status, text = os.fstat(stream.fileno()), stream.read(1 << 16)
    except FileNotFoundError:
        return None
    try:
        owner = Owner.model_validate_json(text)
    except ValidationError:
        owner = None
    return LockFile(owner, status.st_ino, status.st_mtime_ns)


@dataclass(frozen=True)
class Rival:
    """Another process that holds the lock we want.

    Attributes:
        file: Its file.
        seems_dead: Whether the file is old, but not yet watched for long enough.
    """

    file: LockFile
    seems_dead: bool


@dataclass
class _Watch:
    """Memory of a lock's file over several looks."""

    file: LockFile
    # Of the last look, on our own clock.
    read_at: float
    # Seconds for which we saw no change.
    unchanged: float = 0.0
    # Whether we ever saw it touched.
    is_alive: bool = False


def claim_path(path: Path, token: str) -> Path:
    """Return the lock that a process must hold to replace or remove a file with this token."""
    return path.with_name(f".{path.name}.{token}.claim")


class Contender:
    """A process that wants a lock: it has a token, and remembers the files that it saw.

    Args:
        path: The lock's file.
        name: Name of the process, for messages.
        pace: The lock's times.
    """

    def __init__(self, path: Path, name: str, pace: LockPace) -> None:
        self.pace = pace
        self.owner = Owner.this_process(name)
        # Named like all half-written files, which `slidesam clean` removes after a crash.
        self._private = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
        self._watches: dict[Path, _Watch] = {}

    def try_lock(self, path: Path) -> Rival | None:
        """Try once to lock the path, by taking it over if it is abandoned.

        Returns:
            None if we hold it now; otherwise the process that does.
        """
        # After a wait the lock is ours from now on, not from when we began to wait.
        self.owner = Owner.this_process(self.owner.owner)
        self._write_private()
        return self._lock(path)

    def unlock(self, path: Path) -> None:
        """Remove the file if it is ours."""
        if self.holds(path):
            path.unlink(missing_ok=True)

    def holds(self, path: Path) -> bool:
        """Tell whether the file is ours."""
        file = read_lock_file(path)
        return file is not None and file.token == self.owner.token

    def close(self) -> None:
        """Remove the private file."""
        with suppress(OSError):
            self._private.unlink(missing_ok=True)

    def _lock(self, path: Path) -> Rival | None:
        for _ in range(_ATTEMPTS):
            if self._link(path):
                return None
            file = read_lock_file(path)
            if file is None:
                # Removed since we tried to link. Others may be faster again, so let them finish.
                time.sleep(0.005)
                continue
            if file.token == self.owner.token:
                return None
            if (rival := self._judge(path, file)) or (rival := self._take_over(path, file)):
                return rival
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    def _judge(self, path: Path, file: LockFile) -> Rival | None:
        """Return the file's owner; None if the lock is abandoned."""
        if file.owner is not None and file.owner.has_ended:
            return None
        os.utime(self._private)
        age = (self._private.stat().st_mtime_ns - file.touched) / 1e9
        is_old, watch = age >= self.pace.stale, self._watch(path, file)
        # The second is for a clock that was ahead when it stamped the file (on Lustre, nodes stamp with their own clocks).
        if (is_old and watch.unchanged >= self.pace.watch) or watch.unchanged >= self.pace.stale:
            return None
        return Rival(file, seems_dead=is_old and not watch.is_alive)

    def _watch(self, path: Path, file: LockFile) -> _Watch:
        """Remember one more look at a file."""
        read_time = time.monotonic()
        watch = self._watches.get(path)
        if watch is None or file.token != watch.file.token:
            watch = self._watches[path] = _Watch(file, read_time)
        elif file != watch.file:
            watch.unchanged, watch.is_alive = 0.0, True
        else:
            # While we were suspended or the file server was away, its owner perhaps could not touch it.
            watch.unchanged += min(read_time - watch.read_at, 2 * self.pace.poll)
        watch.file, watch.read_at = file, read_time
        return watch

    def _take_over(self, path: Path, file: LockFile) -> Rival | None:
        """Replace an abandoned file by ours, unless something happened to it; return a process that is already doing so."""
        claim = claim_path(path, file.token)
        try:
            if (rival := self._lock(claim)) is not None:
                return rival
            if read_lock_file(path) == file:
                # A call that is repeated after a lost answer finds no private file.
                with suppress(FileNotFoundError):
                    self._private.replace(path)
                self._write_private()
            if not self.holds(claim):
                # We were suspended for long. The process that took over our claim may hold the lock; it notices at its next beat.
                time.sleep(self.pace.watch)
        finally:
            self.unlock(claim)
        return None

    def _link(self, path: Path) -> bool:
        try:
            os.link(self._private, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            return _create_file(path, self._text)
        return True

    def _write_private(self) -> None:
        self._private.unlink(missing_ok=True)
        _create_file(self._private, self._text)

    @property
    def _text(self) -> bytes:
        return (self.owner.model_dump_json(indent=2) + "\n").encode()


def _create_file(path: Path, text: bytes) -> bool:
    """Create a file, whole or not at all; return False if there is one.

    It isn't synced: after a power cut it may be empty, and then counts by its age.
    """
    try:
        stream = path.open("xb")
    except FileExistsError:
        return False
    try:
        with stream:
            stream.write(text)
        # Writing may stamp the file with our clock, this does with the file server's.
        os.utime(path)
    # Ctrl-C too: half a lock would keep others out until it counts as old.
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return True
