"""A lock's file, and how one gets it, or takes it over from an owner that is gone.

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
import os
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from slidesam.tasks.run.owner import Owner

# What link() says on file systems that have no links (FAT, some of FUSE and SMB).
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
# Others take a place and leave it again in milliseconds: this often one looks anew before calling the file system broken.
_TRIES = 200


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


@dataclass(frozen=True)
class Seen:
    """A lock file at one look; equal to another if nothing happened between the two."""

    owner: Owner | None
    inode: int
    touched: int

    @property
    def token(self) -> str:
        """Its owner's; of a file that names none, what tells this very file from others."""
        # Such a file was being written, without links, when its writer ended.
        return self.owner.token if self.owner else f"{self.inode:x}-{self.touched:x}"


def look(place: Path) -> Seen | None:
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
    return Seen(owner, facts.st_ino, facts.st_mtime_ns)


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
class Rival:
    """Who has what we want."""

    seen: Seen
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

    seen: Seen
    looked: float
    unmoved: float = 0.0
    lives: bool = False


class Contender:
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

    def try_once(self, place: Path) -> Rival | None:
        """Tries to get a place, taking it over if it is abandoned; None: it is ours."""
        self._renew()
        return self._get(place)

    def drop(self, place: Path) -> None:
        """Gives a place back, if it is ours."""
        if self.holds(place):
            place.unlink(missing_ok=True)

    def holds(self, place: Path) -> bool:
        """Whether a place is ours."""
        seen = look(place)
        return seen is not None and seen.token == self.me.token

    def claim_of(self, place: Path, token: str) -> Path:
        """The place that one has to hold to replace or remove a token."""
        return place.with_name(f".{place.name}.{token}.claim")

    def close(self) -> None:
        """Removes what nobody else sees."""
        with suppress(OSError):
            self._private.unlink(missing_ok=True)

    def _get(self, place: Path) -> Rival | None:
        for _ in range(_TRIES):
            if self._link(place):
                return None
            seen = look(place)
            if seen is None:
                # Given back between the two. Others may be quicker again, so let them finish.
                time.sleep(0.005)
                continue
            if seen.token == self.me.token:
                return None
            if (rival := self._judge(place, seen)) or (rival := self._take_over(place, seen)):
                return rival
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    def _judge(self, place: Path, seen: Seen) -> Rival | None:
        """None for an abandoned lock."""
        if seen.owner is not None and seen.owner.is_gone:
            return None
        os.utime(self._private)
        age = (self._private.stat().st_mtime_ns - seen.touched) / 1e9
        watched = self._watch(place, seen)
        # The second is for a clock that was ahead when it stamped the file (on Lustre the nodes' own clocks do).
        if (age >= self.pace.stale and watched.unmoved >= self.pace.watch) or watched.unmoved >= self.pace.stale:
            return None
        return Rival(seen, seems_gone=age >= self.pace.stale and not watched.lives)

    def _watch(self, place: Path, seen: Seen) -> _Watched:
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

    def _take_over(self, place: Path, seen: Seen) -> Rival | None:
        """Replaces an abandoned token by ours, unless something has happened to it; a rival is somebody else doing so."""
        claim = self.claim_of(place, seen.token)
        try:
            if (rival := self._get(claim)) is not None:
                return rival
            if look(place) == seen:
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
