"""How a process that used zarr ends."""

from __future__ import annotations

import subprocess
import sys

# zarr's thread is at work, for longer than zarr waits, as the process ends.
BUSY = """
import time
{ours}
from zarr.core import sync
async def nothing(): pass
sync.sync(nothing())
sync.loop[0].call_soon_threadsafe(time.sleep, 1.0)
"""


def ended(ours: str) -> str:
    code = BUSY.format(ours=ours)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=180, check=True).stderr


def test_nothing_is_said_where_zarrs_thread_takes_its_time() -> None:
    assert "Cannot close a running event loop" in ended("")
    assert ended("import slidesam.tasks.store.ome_zarr") == ""
