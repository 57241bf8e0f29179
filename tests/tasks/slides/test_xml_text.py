"""XML is decoded by what its bytes are."""

from __future__ import annotations

import pytest

from slidesam.tasks.slides.xml_text import decode_xml, parse_xml

BODY = '<a unit="µm" name="Kanal Ä"/>'


@pytest.mark.parametrize("declared", [None, "UTF-8", "UTF-16", "ISO-8859-1", "windows-1252", "klingon", "hex"])
@pytest.mark.parametrize(
    "written",
    ["utf-8", "utf-8-sig", "latin-1", "cp1252", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"],
)
@pytest.mark.parametrize("padding", [b"", b"\0", b"\0\0\0", b"\r\n"])
def test_the_text_decides_and_not_the_declaration(declared: str | None, written: str, padding: bytes) -> None:
    if padding == b"\r\n" and written.startswith(("utf-16", "utf-32")):
        padding = b""  # two bytes aren't blanks there
    text = ("" if declared is None else f'<?xml version="1.0" encoding="{declared}"?>') + BODY
    decoded = decode_xml(text.encode(written) + padding)
    assert decoded == text
    assert parse_xml(decoded).attrib == {"unit": "µm", "name": "Kanal Ä"}


def test_declared_encodings_of_one_byte_count_where_the_bytes_are_no_utf8() -> None:
    for encoding, word in (("windows-1251", "мкм"), ("shift_jis", "核"), ("koi8-r", "ядро"), ("cp1252", "€")):
        declared = "ISO-8859-1" if encoding == "cp1252" else encoding
        text = f'<?xml version="1.0" encoding="{declared}"?><a name="{word}"/>'
        assert parse_xml(decode_xml(text.encode(encoding))).get("name") == word


@pytest.mark.parametrize(
    "content", [b"", b"\0", b"\xff", b"\xff\xfe", b"\x81\x8d\x90", b"<a", b"\0<", b"\xed\xa0\x80<a/>"]
)
def test_what_is_no_xml_is_refused_and_nothing_else(content: bytes) -> None:
    with pytest.raises(ValueError, match="parsed"):
        parse_xml(decode_xml(content))
