"""Owns that a slide is one file: whatever it names, no other file is opened, and its own bytes are read.

tifffile opens the files that OME-XML, Micro-Manager and NDTiff name, wherever they lie; their offsets mean nothing in the slide.
"""

from __future__ import annotations

import io
import os
import re
from pathlib import Path
from xml.etree import ElementTree

import tifffile

from slidesam.tasks.errors import SlideError, in_one_line
from slidesam.tasks.slides.xml_text import parse_xml

_PART = re.compile(r"(.*(?:_MMStack|NDTiffStack))(?:[_.].*)?", re.IGNORECASE)


class _Alone(io.BufferedReader):
    """A file without a number: tifffile looks for files beside a file only if it has one."""

    def fileno(self) -> int:
        raise io.UnsupportedOperation("fileno")


def open_alone(path: Path) -> io.BufferedReader:
    """Open a file for tifffile, which then opens no other.

    Raises:
        OSError: It can't be opened.
    """
    # A pipe of that name would be waited for.
    return _Alone(io.FileIO(str(path), opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)))


def forget_file_names(page: tifffile.TiffPage) -> None:
    """Take out of OME-XML in which file a plane lies, once it is known that all are in this one.

    A renamed file still has its old name there, and perhaps that of a file that exists: tifffile would look for it.
    """
    root = parse_xml(page.description)
    for data in root.iterfind("{*}Image/{*}Pixels/{*}TiffData"):
        for uuid in data.findall("{*}UUID"):
            data.remove(uuid)
    page.description = page.tags["ImageDescription"].value = ElementTree.tostring(root, encoding="unicode")


def refuse_other_files(tiff: tifffile.TiffFile, path: Path, file: str) -> None:
    """Refuse one of several files of Micro-Manager, whose other planes would be lost.

    Raises:
        SlideError: Others lie beside it.
    """
    match = _PART.fullmatch(path.name)
    if match is None or not (tiff.is_mmstack or tiff.is_ndtiff or tiff.is_micromanager):
        return
    others = sorted(
        other.name for other in path.parent.iterdir() if other.name.startswith(match[1]) and other.name != path.name
    )
    if others:
        listing = in_one_line(", ".join(others[:3])) + (", ..." if len(others) > 3 else "")
        raise SlideError(
            f"{file}: is one of several files of a stack (others: {listing}), whose planes would be lost; "
            "join them first with bfconvert, or convert them to OME-Zarr with bioformats2raw"
        )
