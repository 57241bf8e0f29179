"""A run's lock: a file that names its owner and beats, so that two runs never write one output at once.

    with locked(path, 'flow run "CMU-1 · watershed"', what="CMU-1 (cells) in /out") as lock:
        lock.check()    # before each stage: is it still ours?

It has to hold between hosts on NFS, Lustre or GPFS, and after kill -9. So it stands on what all of them promise: of many who
link one name one wins, and a rename replaces a file at once. The file is written whole under a private name, then linked to
the lock's. Afterwards only its time of change moves: its owner's thread touches it every `beat` seconds.

Abandoned is a lock

- whose process is gone, which its own machine alone can tell: at once;
- that wasn't touched for `stale` seconds, nor during two more beats under the eyes of who wants it. The first by the file
  server's clock (that of a file just touched beside it), as clocks of nodes differ. The second because a file server that
  was away leaves all locks old, and their owners touch them as soon as it is back.

Takeover. The file at the lock's name changes in three ways only:

1. it is linked, where there is none;
2. it is replaced, an abandoned token T by another, by who holds T's claim and sees T there;
3. it is removed, by its owner, who holds its claim and sees its own token there.

T's claim is a lock itself, `.lock.json.<T>.claim`, held for the milliseconds that 2 and 3 take. So nothing changes between the
look and the replacing, and there is never a moment without a lock into which a third could slip (as there would be if the
abandoned file were renamed away first). The interleavings that this was made for:

- A and B find T abandoned. A gets the claim, replaces T and drops the claim. B gets it after that, looks again, sees A's
  token, and leaves: tokens never come back, so whoever comes late for T finds it gone.
- T's owner O was suspended and comes back while A takes over. `check` holds T's claim while it touches and looks: either A
  has replaced T and O sees that, or A comes later, sees that the file was touched since it was judged, and leaves.
- A dies with the claim. The claim is abandoned then and taken over like any lock, by a claim on A's token.
- A holds the claim and is suspended for `stale` seconds between two system calls. B takes the claim over and replaces T; A
  comes back and replaces B. A sees that its claim is gone and goes in only after B's next beat, at which B notices.
- A link, rename or removal is done but its answer is lost on the network, and the repeated one fails. What counts is never
  the answer but whose token is read afterwards.

What no lock of this kind can give: an owner that was suspended for long works on, once it is back, until its next beat or
`check`. Where the file system has no links the lock's name is created and then written; who is suspended just there for
`stale` seconds can lose the lock to a taker without seeing it before the next beat.
"""

from __future__ import annotations

import errno
import functools
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from slidesam.tasks.errors import OutputError

# What link() says on file systems that have no links (FAT, some of FUSE and SMB).
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
# Others take a place and leave it again in milliseconds: this often one looks anew before calling the file system broken.
_TRIES = 200


class LockedError(OutputError):
    """Somebody else is at work there, or took the lock over: wait, or end one of the two."""


@dataclass(frozen=True)
class Pace:
    """How fast a lock lives, in seconds; all who use one lock should agree.

    Attributes:
        beat: Between two signs of life.
        stale: Without a sign of life, after which the lock counts as abandoned.
        poll: Between two looks of one who waits.
    """

    beat: float = 5.0
    stale: float = 60.0
    poll: float = 1.0

    @property
    def watch(self) -> float:
        """How long one looks on before taking over from somebody whose process may live: two beats, and some."""
        return 2.5 * self.beat


PACE = Pace()


class Owner(BaseModel):
    """Who holds a lock: what its file says.

    Attributes:
        host: Name of the machine.
        boot: Which start of which kernel, and which process namespace, gives `pid` its meaning; empty where unknown.
        pid: The process.
        born: When the process started, in ticks since boot; None where unknown.
        owner: What it calls itself.
        started: Since when it holds the lock, UTC.
        token: Never given twice.
    """

    model_config = ConfigDict(frozen=True)

    host: str
    boot: str = ""
    pid: int = Field(ge=1)
    born: int | None = None
    owner: str
    started: str
    token: str = Field(pattern=r"^[0-9a-f]{32}$")

    @classmethod
    def me(cls, owner: str) -> Owner:
        """This process, under a new token."""
        host, boot = _machine()
        started, token = datetime.now(UTC).isoformat(timespec="seconds"), uuid.uuid4().hex
        pid = os.getpid()
        return cls(host=host, boot=boot, pid=pid, born=_born(pid), owner=owner, started=started, token=token)

    @property
    def is_gone(self) -> bool:
        """Whether the process has ended for certain. Of another machine, boot or container one can't tell."""
        if not self.boot or (self.host, self.boot) != _machine():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except (OSError, OverflowError):
            # It is another user's: there it is.
            pass
        born = _born(self.pid)
        return born is not None and self.born is not None and born != self.born

    def __str__(self) -> str:
        since = self.started[:19].replace("T", " ")
        return f"{self.owner} (host {self.host}, process {self.pid}, since {since} UTC)"


@functools.cache
def _machine() -> tuple[str, str]:
    """Host, and what gives process ids their meaning: containers share a boot, and may share the host's name."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = Path("/proc/self/ns/pid").readlink()
        # A /proc that numbers processes otherwise than the kernel does for us tells nothing.
        known = str(Path("/proc/self").readlink()) == str(os.getpid())
    except OSError:
        known = False
    return socket.gethostname(), f"{boot} {namespace}" if known else ""


def _born(pid: int) -> int | None:
    """When a process started; 0 for one that has ended and waits for its parent to notice; None where unknown."""
    try:
        # The name before it stands in brackets and may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return 0 if fields[0] in "ZX" else int(fields[19])
    except (OSError, ValueError, IndexError):
        return None


@dataclass(frozen=True)
class _Seen:
    """A lock file at one look; equal to another if nothing happened between the two."""

    owner: Owner | None
    inode: int
    touched: int

    @property
    def token(self) -> str:
        # A file without a token was being written, without links, when its writer ended: it counts as this very file.
        return self.owner.token if self.owner else f"{self.inode:x}-{self.touched:x}"


def _look(place: Path) -> _Seen | None:
    """What a lock file says; None where there is none."""
    try:
        # NFS asks its server at an open; a stat may be answered from memory.
        with place.open("rb") as stream:
            facts, text = os.fstat(stream.fileno()), stream.read(1 << 16)
    except FileNotFoundError:
        return None
    try:
        owner = Owner.model_validate_json(text)
    except ValidationError:
        owner = None
    return _Seen(owner, facts.st_ino, facts.st_mtime_ns)


def _write(place: Path, text: bytes) -> bool:
    """Makes a file that isn't there, or nothing; False where there is one.

    Without fsync: after a power cut the file may be empty, which counts as a lock of nobody's that grows old.
    """
    try:
        stream = place.open("xb")
    except FileExistsError:
        return False
    try:
        with stream:
            stream.write(text)
        # Writing may leave our clock's time, this leaves the file server's.
        os.utime(place)
    except BaseException:
        place.unlink(missing_ok=True)
        raise
    return True


@dataclass(frozen=True)
class _Rival:
    """Who has what we want."""

    seen: _Seen
    seems_gone: bool


@dataclass
class _Watched:
    """What we remember of a lock file.

    Attributes:
        seen: What it was at the last look.
        looked: When that was.
        unmoved: For how many seconds nothing has happened to it.
        lives: Whether we ever saw it touched.
    """

    seen: _Seen
    looked: float
    unmoved: float = 0.0
    lives: bool = False


class _Contender:
    """One who wants a lock: a token of its own, and a memory of what it saw.

    Args:
        path: The lock's file.
        owner: What to call itself.
        pace: The lock's pace.
    """

    def __init__(self, path: Path, owner: str, pace: Pace) -> None:
        self.path, self.pace = path, pace
        self.me = Owner.me(owner)
        self._private = self._new_private()
        self._watched: dict[Path, _Watched] = {}

    def try_once(self, place: Path) -> _Rival | None:
        """Tries to get a place, taking it over if it is abandoned; None: it is ours."""
        self._renew()
        return self._get(place)

    def drop(self, place: Path) -> None:
        """Gives a place back, if it is ours."""
        if self.holds(place):
            place.unlink(missing_ok=True)

    def holds(self, place: Path) -> bool:
        """Whether a place is ours."""
        seen = _look(place)
        return seen is not None and seen.token == self.me.token

    def claim_of(self, place: Path, token: str) -> Path:
        """The place that one has to hold to replace or remove a token."""
        return place.with_name(f".{place.name}.{token}.claim")

    def close(self) -> None:
        """Removes what nobody else sees."""
        with suppress(OSError):
            self._private.unlink(missing_ok=True)

    def _get(self, place: Path) -> _Rival | None:
        for _ in range(_TRIES):
            if self._link(place):
                return None
            seen = _look(place)
            if seen is None:
                # Given back between the two. Others may be quicker again, so let them finish.
                time.sleep(0.005)
                continue
            if seen.token == self.me.token:
                return None
            if (rival := self._judge(place, seen)) or (rival := self._take_over(place, seen)):
                return rival
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    def _judge(self, place: Path, seen: _Seen) -> _Rival | None:
        """None for an abandoned lock."""
        if seen.owner is not None and seen.owner.is_gone:
            return None
        os.utime(self._private)
        age = (self._private.stat().st_mtime_ns - seen.touched) / 1e9
        watched = self._watch(place, seen)
        # The second is for a clock that was ahead when it stamped the file (on Lustre the nodes' own clocks do).
        if (age >= self.pace.stale and watched.unmoved >= self.pace.watch) or watched.unmoved >= self.pace.stale:
            return None
        return _Rival(seen, seems_gone=age >= self.pace.stale and not watched.lives)

    def _watch(self, place: Path, seen: _Seen) -> _Watched:
        """Notes one more look at a lock file."""
        now = time.monotonic()
        watched = self._watched.setdefault(place, _Watched(seen, now))
        if seen.token != watched.seen.token:
            watched = self._watched[place] = _Watched(seen, now)
        elif seen != watched.seen:
            watched.unmoved, watched.lives = 0.0, True
        else:
            # While we were suspended ourselves, or the file server was away, its owner may have had no chance to touch it.
            watched.unmoved += min(now - watched.looked, 2 * self.pace.poll)
        watched.seen, watched.looked = seen, now
        return watched

    def _take_over(self, place: Path, seen: _Seen) -> _Rival | None:
        """Replaces an abandoned token by ours, unless something has happened to it; a rival is somebody else doing so."""
        claim = self.claim_of(place, seen.token)
        try:
            if (rival := self._get(claim)) is not None:
                return rival
            if _look(place) == seen:
                self._replace(place)
            if not self.holds(claim):
                # We were suspended for long: who took the claim from us may have gone in, and notices at the next beat.
                time.sleep(self.pace.watch)
        finally:
            self.drop(claim)
        return None

    def _link(self, place: Path) -> bool:
        try:
            os.link(self._private, place)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            return _write(place, self._text)
        return True

    def _replace(self, place: Path) -> None:
        spare = self._new_private()
        try:
            _write(spare, self._text)
            # Repeated after a lost answer it says that there is no `spare`.
            with suppress(FileNotFoundError):
                spare.replace(place)
        finally:
            spare.unlink(missing_ok=True)

    def _renew(self) -> None:
        """Writes the private file anew: who has waited holds the lock since now."""
        self.me = self.me.model_copy(update={"started": datetime.now(UTC).isoformat(timespec="seconds")})
        self._private.unlink(missing_ok=True)
        _write(self._private, self._text)

    def _new_private(self) -> Path:
        # Named like all half-written files, which `slidesam clean` removes where a crash left them.
        return self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex}.partial")

    @property
    def _text(self) -> bytes:
        return (self.me.model_dump_json(indent=2) + "\n").encode()


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
        self._contender = _Contender(path, owner, pace)
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
            self._lose(_look(self.path))

    def _lose(self, seen: _Seen | None) -> None:
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
        other = _Contender(self.path, self._contender.me.owner, self.pace)
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
        seen = _look(path)
    except OSError as error:
        raise OutputError(f"{path} can't be read ({os.strerror(error.errno or 0)}): mend its permissions") from error
    if seen is None or (seen.owner is not None and seen.owner.is_gone):
        return None
    return _words(path, seen)


def _words(path: Path, seen: _Seen) -> str:
    return str(seen.owner) if seen.owner else f"somebody whose lock {path} says nothing"


def _refusal(what: str, path: Path, seen: _Seen, pace: Pace) -> str:
    return (
        f"{what} is locked by {_words(path, seen)}: wait for it, or end it; "
        f"if that process is gone the lock is free within {pace.stale:g} s"
    )
