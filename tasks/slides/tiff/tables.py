"""Owns finding the tables of a directory in the file, so that large tables needn't travel between processes.

tifffile corrects some tables and computes others. Such a table isn't in the file and therefore travels.
"""

from __future__ import annotations

import struct
from contextlib import suppress

import numpy as np
import tifffile
from numpy.typing import NDArray

from slidesam.tasks.slides.tiff.layout import Page, PageSpec, Table

MAX_CARRIED_NUMBERS = 32  # larger tables are read from the file when they are needed
_OFFSETS, _SIZES = (324, 273), (325, 279)  # tags of tiles, of strips
_DTYPES = {3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}  # by the tag's type


def make_page_spec(page: Page, tiff_page: tifffile.TiffPage | tifffile.TiffFrame) -> PageSpec:
    """Describe a directory for processes that read from it.

    Args:
        page: The tables that reading uses.
        tiff_page: tifffile's page or frame of the same directory, whose file is open.
    """
    in_file = _locate_tables(tiff_page) if len(page.offsets) > MAX_CARRIED_NUMBERS else {}
    offsets, sizes = (
        _make_table(numbers, [in_file[code] for code in codes if code in in_file], tiff_page)
        for numbers, codes in ((page.offsets, _OFFSETS), (page.sizes, _SIZES))
    )
    return PageSpec(offsets, sizes, page.jpeg_tables)


def _make_table(
    numbers: NDArray[np.int64], tables: list[Table], tiff_page: tifffile.TiffPage | tifffile.TiffFrame
) -> Table:
    """Return the file's table that begins with these numbers, or a table of the numbers themselves if there is none."""
    stream = tiff_page.parent.filehandle

    def read(offset: int, size: int) -> bytes:
        stream.seek(offset)
        return bytes(stream.read(size))

    for table in tables:
        clipped = table._replace(length=len(numbers))
        with suppress(OSError, ValueError, OverflowError):
            if table.length >= len(numbers) and np.array_equal(clipped.load(read), numbers):
                return clipped
    return Table(np.ascontiguousarray(numbers).tobytes())


def _locate_tables(tiff_page: tifffile.TiffPage | tifffile.TiffFrame) -> dict[int, Table]:
    """Locate the tables of a directory by their tags; none if it isn't laid out as TIFF says."""
    layout, stream = tiff_page.parent.tiff, tiff_page.parent.filehandle
    entry = struct.Struct(layout.byteorder + ("HHQ" if layout.tagsize == 20 else "HHI"))
    tables = {}
    try:
        stream.seek(tiff_page.offset)
        count = struct.unpack(layout.tagnoformat, stream.read(layout.tagnosize))[0]
        content = stream.read(count * layout.tagsize)
        for start in range(0, len(content), layout.tagsize):
            code, kind, length = entry.unpack_from(content, start)
            if code in _OFFSETS + _SIZES and kind in _DTYPES:
                offset = struct.unpack_from(layout.offsetformat, content, start + entry.size)[0]
                tables[code] = Table(None, offset, layout.byteorder + _DTYPES[kind], length)
    except (struct.error, OSError, TypeError, ValueError):
        return {}
    return tables
