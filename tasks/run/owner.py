"""Who holds a lock: a process, by which its own machine can tell whether it has ended."""

from __future__ import annotations

import functools
import os
import socket
import uuid
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


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
