"""The outlines of the objects as one GeoJSON file, as QuPath imports it."""

from __future__ import annotations

from typing import IO

from slidesam.tasks.export.describe import compress
from slidesam.tasks.export.rows import read_outlines
from slidesam.tasks.run.run import Run

# What is copied at once.
_COPY_BYTES = 2**22


def write_outlines(run: Run, file: IO[bytes]) -> None:
    """Join the outlines, each task's a member of the gzip file, as a FeatureCollection.

    Raises:
        DamagedError: What was described is damaged or gone.
    """
    file.write(compress(b'{"type":"FeatureCollection","features":[\n'))
    comma = b""
    for described in read_outlines(run, "features"):
        length = described.shape("outlines")[0]
        if length:
            file.write(comma)
        for start in range(0, length, _COPY_BYTES):
            file.write(described.read("outlines", start, min(start + _COPY_BYTES, length)).tobytes())
        comma = compress(b",\n") if length else comma
    file.write(compress(b"\n]}\n"))
