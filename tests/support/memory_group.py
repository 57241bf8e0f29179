"""Control groups of a given memory, in which Linux ends what takes more."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_VERSION_1, _VERSION_2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")


@contextmanager
def memory_group(mib: int) -> Iterator[Path]:
    """Make a group of so much memory; skip the test where that isn't allowed."""
    root, name = (_VERSION_1, "memory.limit_in_bytes") if _VERSION_1.is_dir() else (_VERSION_2, "memory.max")
    group = root / f"slidesam-test-{uuid.uuid4().hex[:8]}"
    try:
        group.mkdir()
        (group / name).write_text(str(mib << 20))
    except OSError as error:
        if group.is_dir():
            group.rmdir()
        pytest.skip(f"no memory control group can be made here ({error}): needs root and a writable {root}")
    try:
        yield group
    finally:
        for pid in (group / "cgroup.procs").read_text().split():
            os.kill(int(pid), 9)
        group.rmdir()
