"""What fsync and checksums take of a whole run: a made slide, in this process, with the time inside both measured.

Several files are brought to the disk at once, and the writing of one may go on beside that of another. So the share of fsync is
the time during which at least one call is under way: more than a run without it would save. Checksums are counted whole.

    make durability        (or: .venv/bin/python -m benchmarks.durability --side 20000)
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
from rich.console import Console
from rich.table import Table

import slidesam
from benchmarks.big_slide import make_slide

_SETTINGS = {"segmenter": {"kind": "watershed"}}


class Stopwatch:
    """Wraps functions, and measures the time during which at least one of their calls is under way."""

    def __init__(self) -> None:
        self.seconds, self.calls = 0.0, 0
        self._lock, self._running, self._since = threading.Lock(), 0, 0.0

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that does the same, and is measured."""

        def measured(*arguments: Any) -> Any:
            with self._lock:
                self.calls += 1
                self._running += 1
                if self._running == 1:
                    self._since = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                with self._lock:
                    self._running -= 1
                    if not self._running:
                        self.seconds += time.perf_counter() - self._since

        return measured


def main() -> None:
    """Segments the slide and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=20_000)
    chosen = parser.parse_args()
    fsync, checksum = Stopwatch(), Stopwatch()
    os.fsync = fsync.wrap(os.fsync)
    for name in ("value", "extend"):
        setattr(google_crc32c, name, checksum.wrap(getattr(google_crc32c, name)))
    slide = make_slide(Path(tempfile.gettempdir()) / f"slidesam-durability-{chosen.side}.tif", chosen.side)
    with tempfile.TemporaryDirectory() as output:
        started = time.perf_counter()
        slidesam.segment(slide, output, _SETTINGS, progress=False)
        whole = time.perf_counter() - started
    table = Table(title=f"{chosen.side} × {chosen.side} RGB, watershed, one process", box=None)
    for column in ("", "calls", "s", "share"):
        table.add_column(column)
    for name, watch in (("fsync", fsync), ("checksums", checksum)):
        table.add_row(name, str(watch.calls), f"{watch.seconds:.2f}", f"{watch.seconds / whole:.2%}")
    table.add_row("whole run", "", f"{whole:.1f}", "")
    Console(highlight=False).print(table)


if __name__ == "__main__":
    main()
