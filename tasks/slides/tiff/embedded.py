"""Owns the headers inside tiles that are images of their own: JPEG, JPEG 2000, JPEG XR, JPEG XL, WebP, PNG and LERC.

Decoders of such tiles make as many pixels as the tile's own header says, whatever the file says: some kilobytes can become
gigabytes. So the header is read first. One that isn't understood counts as none: the decoder says best what is wrong with it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator

import imagecodecs

# Frame headers of JPEG (ITU-T T.81, table B.1) and JPEG-LS (T.87), without DHT, JPG and DAC; markers without a length.
_FRAMES = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})
_WMPHOTO = b"WMPHOTO\0"
_LERC1, _LERC2 = b"CntZImage ", b"Lerc2 "
_ZSTD = b"\x28\xb5\x2f\xfd"
_LERC = 34887
# Samples of a pixel that don't count: alpha, and a fourth colour.
_FREE_SAMPLES = 4
# Tiles that are larger than they should be, as some writers fill up the last ones; and small ones, whatever they say.
_LARGER, _SMALL = 4, 2**16
_SAMPLE_BYTES = 8


def check_embedded_size(compression: int, data: bytes, height: int, width: int) -> None:
    """Refuse a tile whose own header says that it is far larger than the file does.

    Args:
        compression: TIFF's number of the method.
        data: The tile, with the header that it may lack.
        height: Of a tile, in pixels.
        width: Of a tile, in pixels.

    Raises:
        ValueError: Decoding it would need more memory than planned.
    """
    read = _READERS.get(compression)
    if read is None:
        return
    if compression == _LERC:
        data = _unpack_lerc(data, height, width)
    for rows, columns, samples in read(data):
        if rows * columns * max(1, samples / _FREE_SAMPLES) > _LARGER * max(height * width, _SMALL):
            layers = f" in {samples} layers" if samples > _FREE_SAMPLES else ""
            raise ValueError(f"a tile of {height} × {width} pixels says that it has {rows} × {columns}{layers}")


def find_frame_header(data: bytes) -> int | None:
    """Find the byte at which the frame header (SOF) of a JPEG begins (ITU-T T.81, section B.2.2).

    Bytes between two markers are passed over, as decoders do it (libjpeg, `next_marker`).
    """
    position = 2
    while True:
        position = data.find(b"\xff", position)
        if position < 0 or position + 9 > len(data):
            return None
        marker = data[position + 1]
        if marker in _FRAMES:
            return position
        if marker in (0x00, 0xFF):
            # Stray bytes, or a marker's filling.
            position += 1 if marker else 2
        elif marker in _ALONE:
            position += 2
        else:
            position += 2 + max(2, int.from_bytes(data[position + 2 : position + 4]))


def _read_jpeg(data: bytes) -> Iterator[tuple[int, int, int]]:
    position = find_frame_header(data)
    if position is not None:
        yield *struct.unpack_from(">HH", data, position + 5), 1


def _read_jpeg2000(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Read the size of each codestream (ITU-T T.800, section A.5.1), which may lie in a box."""
    for position in _find_all(data, b"\xff\x4f\xff\x51"):
        if position + 42 <= len(data):
            columns, rows = struct.unpack_from(">II", data, position + 8)
            yield rows, columns, int.from_bytes(data[position + 40 : position + 42])


def _read_jpegxr(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Read the size of each codestream (ITU-T T.832, section 8.3)."""
    for position in _find_all(data, _WMPHOTO):
        if position + 20 <= len(data):
            is_short = data[position + 10] & 0x80
            columns, rows = struct.unpack_from(">HH" if is_short else ">II", data, position + 12)
            yield rows + 1, columns + 1, 1


def _read_png(data: bytes) -> Iterator[tuple[int, int, int]]:
    if data[:4] == b"\x89PNG" and len(data) >= 24:
        columns, rows = struct.unpack_from(">II", data, 16)
        yield rows, columns, 1


def _read_webp(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Read the size of each image and of the canvas (RFC 9649, section 2)."""
    for position in _find_all(data, b"VP8X"):
        yield (
            1 + int.from_bytes(data[position + 15 : position + 18], "little"),
            1 + int.from_bytes(data[position + 12 : position + 15], "little"),
            1,
        )
    for position in _find_all(data, b"VP8L"):
        bits = int.from_bytes(data[position + 9 : position + 13], "little")
        yield 1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF), 1
    for position in _find_all(data, b"\x9d\x01\x2a"):
        columns, rows = (int.from_bytes(data[at : at + 2], "little") for at in (position + 3, position + 5))
        yield rows & 0x3FFF, columns & 0x3FFF, 1


def _read_lerc(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Read the size of the first band; further bands follow it (https://github.com/Esri/lerc, Lerc2.h, CntZImage.cpp)."""
    if data.startswith(_LERC1) and len(data) >= 26:
        yield *struct.unpack_from("<ii", data, 18), data.count(_LERC1)
    if data.startswith(_LERC2) and len(data) >= 26:
        version = struct.unpack_from("<i", data, 6)[0]
        rows, columns, depth = struct.unpack_from("<iii", data, 14 if version >= 3 else 10)
        yield rows, columns, data.count(_LERC2) * (depth if version >= 4 else 1)


def _unpack_lerc(data: bytes, height: int, width: int) -> bytes:
    """Undo the compression that may lie around LERC (TIFF's LercParameters); the decoder finds it by the first bytes, too."""
    limit = _LARGER * max(height * width, _SMALL) * _FREE_SAMPLES * _SAMPLE_BYTES
    try:
        if data.startswith(_ZSTD):
            return bytes(imagecodecs.zstd_decode(data, out=limit))
        if data.startswith((_LERC1, _LERC2)):
            return data
        unpacked = zlib.decompressobj().decompress(data, limit + 1)
    except imagecodecs.ZstdError as error:
        if "too small" not in str(error):
            return data
    except zlib.error:
        return data
    else:
        if len(unpacked) <= limit:
            return unpacked
    raise ValueError(f"a tile of {height} × {width} pixels needs more than {limit} bytes")


def _read_jpegxl(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Read the size and number of layers of a codestream (ISO/IEC 18181-1, annex D), which may lie in a box."""
    position = 0 if data[:2] == b"\xff\x0a" else data.find(b"\xff\x0a", 12)
    if position < 0:
        return
    bits = _Bits(data[position + 2 : position + 64])
    try:
        rows, columns = _read_jpegxl_size(bits)
        samples, is_animated = _read_jpegxl_layers(bits)
    except IndexError:
        return
    # The number of frames isn't stated: a tile has one.
    yield rows, columns, 2**20 if is_animated else samples


class _Bits:
    """Reads numbers from bits, the lowest first."""

    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data, "little"), 8 * len(data)

    def take(self, count: int) -> int:
        """Take a number of so many bits.

        Raises:
            IndexError: There are no more.
        """
        if count > self._left:
            raise IndexError(count)
        number = self._value & ((1 << count) - 1)
        self._value >>= count
        self._left -= count
        return number

    def choose(self, *choices: tuple[int, int]) -> int:
        """Take a number whose two first bits choose how it is stored: what is added, and in how many bits."""
        addend, count = choices[self.take(2)]
        return addend + self.take(count)


_SIZES = ((1, 9), (1, 13), (1, 18), (1, 30))
_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))


def _read_jpegxl_size(bits: _Bits) -> tuple[int, int]:
    is_small = bits.take(1)
    rows = 8 * (1 + bits.take(5)) if is_small else bits.choose(*_SIZES)
    ratio = bits.take(3)
    if ratio:
        over, under = _RATIOS[ratio - 1]
        return rows, rows * over // under
    return rows, 8 * (1 + bits.take(5)) if is_small else bits.choose(*_SIZES)


def _read_jpegxl_layers(bits: _Bits) -> tuple[int, bool]:
    """Read the number of samples of a pixel, and whether there are more frames, or a preview, than an image has."""
    if bits.take(1):  # all by default
        return 3, False
    if bits.take(1):  # there are further fields
        bits.take(3)
        if bits.take(1):
            _read_jpegxl_size(bits)
        if bits.take(1) or bits.take(1):
            return 3, True
    if bits.take(1):  # floats
        bits.choose((32, 0), (16, 0), (24, 0), (1, 6))
        bits.take(4)
    else:
        bits.choose((8, 0), (10, 0), (12, 0), (1, 6))
    bits.take(1)
    return 3 + bits.choose((0, 0), (1, 0), (2, 4), (1, 12)), False


def _find_all(data: bytes, magic: bytes) -> Iterator[int]:
    position = data.find(magic)
    while position >= 0:
        yield position
        position = data.find(magic, position + 1)


_READERS: dict[int, Callable[[bytes], Iterator[tuple[int, int, int]]]] = {
    **dict.fromkeys((6, 7, 33007, 34892), _read_jpeg),
    **dict.fromkeys((33003, 33004, 33005, 34712), _read_jpeg2000),
    **dict.fromkeys((22610, 34934), _read_jpegxr),
    34933: _read_png,
    **dict.fromkeys((34927, 50001), _read_webp),
    **dict.fromkeys((50002, 52546), _read_jpegxl),
    _LERC: _read_lerc,
}
