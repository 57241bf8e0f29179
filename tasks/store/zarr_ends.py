"""Lets zarr's thread end before its event loop is closed.

At a process's end zarr gives its thread 0.2 s, which a busy machine may not, and then closes the loop under it: a traceback
where somebody only pressed Ctrl-C.
"""

from __future__ import annotations

import atexit

from zarr.core import sync

_PATIENCE = 10.0


def end_loop() -> None:
    """Stops zarr's event loop and waits for its thread; zarr closes the loop afterwards."""
    loop, thread = sync.loop[0], sync.iothread[0]
    if loop is None or thread is None or not thread.is_alive():
        return
    loop.call_soon_threadsafe(loop.stop)
    thread.join(_PATIENCE)


# What is registered last is called first: zarr registered its own as it was imported above.
atexit.register(end_loop)
