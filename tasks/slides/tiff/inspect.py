"""Inspects files of the TIFF family: Aperio SVS, OME-TIFF, ImageJ, generic pyramids and what else tifffile knows.

tifffile parses the file; whether the file can be trusted is decided here.

1. `_check_header` and `_directories` refuse what is no TIFF, or whose directories run in a circle, before tifffile does.
2. `levels` finds where in the file each plane, tile and strip lies (`layout`), and refuses what is cut.
3. `metadata` gathers pixel size, channel names and what else the metadata say.
"""

from __future__ import annotations

import struct
from pathlib import Path

import tifffile

from slidesam.tasks.errors import SettingsError, SlideError, in_one_line
from slidesam.tasks.slides.ome_xml import MAX_PLANES, OmeDocument, read_ome_xml
from slidesam.tasks.slides.source import SourceFacts, errors_as_slide_errors, one_line_name
from slidesam.tasks.slides.tiff.layout import TiffLevel
from slidesam.tasks.slides.tiff.levels import read_levels
from slidesam.tasks.slides.tiff.metadata import read_facts
from slidesam.tasks.slides.tiff.quiet import quiet_tifffile
from slidesam.tasks.slides.tiff.source import TiffSpec

TIFF_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MAX_DIRECTORIES = 10**6
_OTHER_FILES = {
    b"version https://git-lfs": "is a Git LFS pointer, not the image itself; run `git lfs pull`",
    b"\x89PNG": "is a PNG image, not a slide; save it as TIFF",
    b"\xff\xd8\xff": "is a JPEG image, not a slide; save it as TIFF",
    b"\x89HDF": "is an HDF5 file, which isn't read; convert it to OME-TIFF or OME-Zarr",
    b"ZISRAWFILE": "is a Zeiss CZI file, which isn't read; convert it with bioformats2raw",
    b"PK\x03\x04": "is a ZIP archive; unpack it first",
}


def inspect_tiff(path: Path, series: int) -> tuple[SourceFacts, TiffSpec]:
    """Inspect one image of a TIFF file; no pixel is read.

    Args:
        path: The file.
        series: Number of the image in it.

    Raises:
        SlideError: The file can't be read, or declares what can't be true.
        SettingsError: It has no image of that number.
    """
    file = one_line_name(path)
    _check_header(path, file)
    with (
        quiet_tifffile(),
        errors_as_slide_errors(file, "isn't a TIFF file that can be read", "get it again or leave it out"),
        tifffile.TiffFile(path) as tiff,
    ):
        facts, levels = _inspected(tiff, path, file, series)
        return facts, TiffSpec(levels=levels)


def _check_header(path: Path, file: str) -> None:
    with path.open("rb") as stream:
        start = stream.read(32)
    if not start:
        raise SlideError(f"{file}: is empty (0 bytes); copy it again")
    if start[:4] in TIFF_MAGICS:
        return
    for magic, what in _OTHER_FILES.items():
        if start.startswith(magic):
            raise SlideError(f"{file}: {what}")
    raise SlideError(
        f"{file}: isn't a TIFF file (it starts with {start[:4]!r}); slides are read from SVS, TIFF, OME-TIFF and OME-Zarr"
    )


def _inspected(
    tiff: tifffile.TiffFile, path: Path, file: str, series_number: int
) -> tuple[SourceFacts, tuple[TiffLevel, ...]]:
    count, cut = _directories(tiff, file)
    ome = _ome(tiff, file, path.name)
    all_series = tiff.series
    if not all_series:
        raise SlideError(
            f"{file}: holds no image; it is {'cut short, copy it again' if cut else 'damaged, get it again'}"
        )
    if series_number >= len(all_series):
        last = len(all_series) - 1
        raise SettingsError(f"setting slide.series: {file} has images 0 to {last}, not {series_number}")
    series = all_series[series_number]
    levels, warnings = read_levels(series, count, file, path.stat().st_size)
    if cut:
        warnings.append(
            "the file is cut short after its last directory; smaller levels or further images may be missing"
        )
    facts = read_facts(tiff, series, levels, ome, warnings, path)
    return facts, levels


def _directories(tiff: tifffile.TiffFile, file: str) -> tuple[int, bool]:
    """Number of image file directories, and whether their chain ends outside the file.

    Raises:
        SlideError: They run in a circle, or are too many to be true.
    """
    if not tiff.pages:
        return 0, True
    layout, stream = tiff.tiff, tiff.filehandle
    size, offset = stream.size, int(tiff.pages.first.offset)
    seen: set[int] = set()
    while offset:
        if offset in seen or len(seen) > MAX_DIRECTORIES:
            raise SlideError(f"{file}: its image directories run in a circle; the file is damaged, get it again")
        seen.add(offset)
        try:
            stream.seek(offset)
            tags = struct.unpack(layout.tagnoformat, stream.read(layout.tagnosize))[0]
            stream.seek(offset + layout.tagnosize + tags * layout.tagsize)
            offset = struct.unpack(layout.offsetformat, stream.read(layout.offsetsize))[0]
        except (struct.error, OSError):
            return len(seen), True
        if offset >= size:
            return len(seen), True
    return len(seen), False


def _ome(tiff: tifffile.TiffFile, file: str, name: str) -> OmeDocument | None:
    """The OME-XML of the file, none where it has none that can be parsed.

    Raises:
        SlideError: It says that planes are in other files, or declares more of them than can be.
    """
    text = tiff.ome_metadata
    if not text:
        return None
    try:
        ome = read_ome_xml(text, name)
    except ValueError:
        return None
    if ome.other_files:
        shown = in_one_line(", ".join(ome.other_files[:3])) + (", ..." if len(ome.other_files) > 3 else "")
        raise SlideError(
            f"{file}: is one of several files of a stack (others: {shown}), whose planes would be lost; "
            "join them first with bfconvert, or convert them to OME-Zarr with bioformats2raw"
        )
    if ome.span > MAX_PLANES:
        raise SlideError(f"{file}: declares {ome.span} planes; the file is damaged, get it again")
    return ome
