"""Owns the log filter that keeps tifffile's messages off the terminal while a thread inspects or reads a slide."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _QuietLog(logging.Filter):
    """Drop messages of threads that are inside `quiet_tifffile`; other users of tifffile aren't affected."""

    def __init__(self) -> None:
        super().__init__()
        self.local = threading.local()

    def filter(self, record: logging.LogRecord) -> bool:
        return not getattr(self.local, "is_quiet", False)


_QUIET = _QuietLog()
logging.getLogger("tifffile").addFilter(_QUIET)


@contextmanager
def quiet_tifffile() -> Iterator[None]:
    """Drop this thread's messages of tifffile while the context is open."""
    was_quiet = getattr(_QUIET.local, "is_quiet", False)
    _QUIET.local.is_quiet = True
    try:
        yield
    finally:
        _QUIET.local.is_quiet = was_quiet
