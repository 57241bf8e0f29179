"""Owns turning the bytes of an XML document into text, whatever encoding they are in and whatever they declare."""

from __future__ import annotations

import codecs
import re
from xml.etree import ElementTree

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8", 1),
    (codecs.BOM_UTF32_LE, "utf-32-le", 4),
    (codecs.BOM_UTF32_BE, "utf-32-be", 4),
    (codecs.BOM_UTF16_LE, "utf-16-le", 2),
    (codecs.BOM_UTF16_BE, "utf-16-be", 2),
)
_FIRST_CHARACTERS = (
    (b"<\0\0\0", "utf-32-le", 4),
    (b"\0\0\0<", "utf-32-be", 4),
    (b"<\0", "utf-16-le", 2),
    (b"\0<", "utf-16-be", 2),
)
_DECLARATION = re.compile(rb"""^<\?xml[^>]{0,200}?encoding\s*=\s*["']([A-Za-z0-9._:-]{1,40})["']""")
_BLANKS = " \t\r\n\0"


def decode_xml(content: bytes) -> str:
    """Decode XML by what its bytes are: many writers declare another encoding than they use.

    In this order: a byte order mark or the zero bytes of UTF-16 and UTF-32, as in appendix F of the XML 1.0 specification; UTF-8
    if the bytes are valid UTF-8, which text of another encoding hardly ever is; the declared encoding; Windows-1252.

    Args:
        content: The document, with or without padding of blanks and zeros.

    Example:
        >>> decode_xml('<?xml version="1.0" encoding="UTF-8"?><a unit="µm"/>'.encode("latin-1"))[-14:]
        '<a unit="µm"/>'
    """
    for start, encoding, width in _BYTE_ORDER_MARKS:
        if content.startswith(start):
            return _decode_units(content[len(start) :], encoding, width)
    for start, encoding, width in _FIRST_CHARACTERS:
        if content.startswith(start):
            return _decode_units(content, encoding, width)
    content = content.strip(_BLANKS.encode())
    declared = _DECLARATION.match(content)
    name = declared[1].decode().lower() if declared else "windows-1252"
    # What calls itself Latin-1 is often Windows-1252, which has printable characters where Latin-1 has control characters.
    names = ("utf-8", "windows-1252" if name in ("iso-8859-1", "latin-1", "latin1") else name, "windows-1252")
    for encoding in names:
        try:
            text = content.decode(encoding)
        except (LookupError, ValueError):
            continue
        if text[:1] == content[:1].decode("latin-1"):  # otherwise it declares two bytes per character, and has one
            return text
    return content.decode("latin-1")


def _decode_units(content: bytes, encoding: str, width: int) -> str:
    """Decode characters of some bytes each; the zero that ends a TIFF text is one byte."""
    return content[: len(content) // width * width].decode(encoding, "replace").strip(_BLANKS)


def parse_xml(text: str) -> ElementTree.Element:
    """Parse decoded XML; the encoding that it declares doesn't count any more.

    Raises:
        ValueError: It isn't XML.
    """
    try:
        return ElementTree.fromstring(text.encode("utf-8", "replace").decode())  # noqa: S314 (expat bounds entity expansion)
    except ElementTree.ParseError as error:
        raise ValueError(f"XML can't be parsed: {error}") from error
