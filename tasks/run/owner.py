"""The process that holds a lock, and whether it has ended. Only its own machine can tell."""

from __future__ import annotations

import functools
import os
import socket
import uuid
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class Owner(BaseModel):
    """A process that holds a lock, as written in the lock's file.

    Attributes:
        host: Name of the machine.
        boot: Boot of the machine and process namespace in which `pid` has its meaning; empty if unknown.
        pid: Process id.
        born: Start of the process, in clock ticks since boot; None if unknown.
        owner: Name of the process, for messages.
        started: When it got the lock, UTC.
        token: Random; never used for a second lock.
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
    def this_process(cls, name: str) -> Owner:
        """Describe this process, with a new token."""
        host, boot = _this_machine()
        start_time, token = datetime.now(UTC).isoformat(timespec="seconds"), uuid.uuid4().hex
        pid = os.getpid()
        return cls(host=host, boot=boot, pid=pid, born=_read_start(pid), owner=name, started=start_time, token=token)

    @property
    def has_ended(self) -> bool:
        """Whether the process has certainly ended; False if it runs on another machine, boot or container."""
        if not self.boot or (self.host, self.boot) != _this_machine():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except (OSError, OverflowError):
            # The process exists, but belongs to another user.
            pass
        born = _read_start(self.pid)
        return born is not None and self.born is not None and born != self.born

    def __str__(self) -> str:
        since = self.started[:19].replace("T", " ")
        return f"{self.owner} (host {self.host}, process {self.pid}, since {since} UTC)"


def has_owner_ended(path: Path) -> bool:
    """Tell whether the process that a file describes has ended; False if that can't be known here."""
    try:
        return Owner.model_validate_json(path.read_bytes()).has_ended
    except (OSError, ValueError):
        # Another user's, or its process is just writing it.
        return False


@functools.cache
def _this_machine() -> tuple[str, str]:
    """Return the host, and the boot and process namespace: containers share a boot, and may share the host's name."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = Path("/proc/self/ns/pid").readlink()
        # The /proc of another namespace numbers processes differently from os.kill.
        is_own_proc = str(Path("/proc/self").readlink()) == str(os.getpid())
    except OSError:
        is_own_proc = False
    return socket.gethostname(), f"{boot} {namespace}" if is_own_proc else ""


def _read_start(pid: int) -> int | None:
    """Return when a process started; 0 for a zombie, which has ended; None if unknown."""
    try:
        # The process name before it stands in brackets and may contain any character.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return 0 if fields[0] in "ZX" else int(fields[19])
    except (OSError, ValueError, IndexError):
        return None
