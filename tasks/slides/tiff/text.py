"""Owns the texts in a TIFF file's tags, decoded by what their bytes are."""

from __future__ import annotations

import re

import tifffile

from slidesam.tasks.slides.xml_text import decode_xml

_IMAGE_DESCRIPTION = 270
_END_OF_PIXELS = re.compile(r"</((?:\w+:)?)Pixels\s*>")
_XML_STARTS = ("<", "\0<", "\ufeff", "ï»¿", "ÿþ", "þÿ")


def read_text(page: tifffile.TiffPage, code: int) -> str:
    """Read the text of a tag from its bytes; empty if there is no such tag."""
    tag = page.tags.get(code)
    if tag is None:
        return ""
    stream = page.parent.filehandle
    with stream.lock:
        stream.seek(tag.valueoffset)
        return decode_xml(stream.read(tag.valuebytecount))


def correct_description(page: tifffile.TiffPage) -> None:
    """Decode XML in a page's description again, by its bytes, before tifffile looks for formats in it.

    tifffile decodes descriptions as UTF-8 or Windows-1252, and leaves others as bytes.
    """
    tag = page.tags.get(_IMAGE_DESCRIPTION)
    if tag is None or not isinstance(tag.value, str | bytes):  # a damaged file may hold numbers there
        return
    start = tag.value[:8]
    start = start.decode("latin-1") if isinstance(start, bytes) else str(start)
    if start.startswith(_XML_STARTS):
        page.description = tag.value = _name_planes(read_text(page, _IMAGE_DESCRIPTION))


def _name_planes(text: str) -> str:
    """Add the element TiffData to OME-XML that has none: by the schema, all planes are then in the file, in order."""
    ends = list(_END_OF_PIXELS.finditer(text))
    if len(ends) != 1 or re.search("TiffData|BinData|BinaryOnly|MetadataOnly", text):
        return text
    return f"{text[: ends[0].start()]}<{ends[0][1]}TiffData/>{text[ends[0].start() :]}"
