"""Small TIFF files of many colour spaces, and reading them whole, in pieces and channel by channel."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from slidesam.tasks.grid import Region
from slidesam.tasks.slides.facts import Slide
from slidesam.tasks.slides.inspect import inspect_slide
from slidesam.tasks.slides.reader import SlideReader

SIDE = 64
LOSSLESS = ["none", "lzw", "zlib", "zstd", "packbits", "lzma"]


def picture() -> NDArray[np.uint8]:
    """Smooth (y, x, 3) colours of all kinds, so that no chroma is lost where pixels share it."""
    y, x = np.mgrid[:SIDE, :SIDE]
    return np.dstack([60 + 3 * y, 230 - 2 * x, 40 + y + 2 * x]).astype(np.uint8)


def to_ycbcr(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(rgb).convert("YCbCr"))


def from_ycbcr(ycbcr: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(ycbcr, "YCbCr").convert("RGB"))


def write(path: Path, image: NDArray[Any], **options: Any) -> Path:
    tifffile.imwrite(path, image, **({"metadata": None, "tile": (32, 48)} | options))
    return path


def overwrite(path: Path, tag: str | int, value: object, page: int = 0) -> Path:
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tiff.pages[page].tags[tag].overwrite(value)
    return path


def read(path: Path, level: int = 0) -> tuple[Slide, NDArray[Any]]:
    """Read all channels, (y, x, c); the same pixels must come in pieces and channel by channel."""
    slide = inspect_slide(path)
    whole = Region(0, 0, *slide.levels[level].shape)
    piece = Region(whole.y1 // 3, whole.x1 // 5, whole.y1 // 3 * 2, whole.x1 - 1)
    with SlideReader(slide) as reader:
        pixels = reader.read(whole, level, range(slide.size_c))
        np.testing.assert_array_equal(reader.read(piece, level, range(slide.size_c)), pixels[piece.slices])
        for channel in range(slide.size_c):
            np.testing.assert_array_equal(reader.read(whole, level, [channel])[..., 0], pixels[..., channel])
    assert pixels.dtype == slide.dtype
    return slide, pixels


def assert_near(pixels: NDArray[Any], expected: NDArray[Any], tolerance: float = 2) -> None:
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(float) - expected).max() <= tolerance


def pack(ycbcr: NDArray[np.uint8], columns: int, rows: int) -> bytes:
    """Pack (y, x, 3) as TIFF 6.0 section 21 says, unit by unit, the mean of each unit's colours once."""
    height, width, _ = ycbcr.shape
    padded = np.pad(ycbcr, ((0, -height % rows), (0, -width % columns), (0, 0)), "edge")
    data = bytearray()
    for y in range(0, height, rows):
        for x in range(0, width, columns):
            unit = padded[y : y + rows, x : x + columns]
            data += unit[..., 0].tobytes() + unit[..., 1:].mean((0, 1)).round().astype(np.uint8).tobytes()
    return bytes(data)


def write_packed(
    path: Path, ycbcr: NDArray[np.uint8], packing: tuple[int, int], compression: str, tile: int | None
) -> Path:
    """Write an image in which pixels share colours, in tiles or in strips of 14 rows."""
    height, width, _ = ycbcr.shape
    if tile:
        padded = np.pad(ycbcr, ((0, -height % tile), (0, -width % tile), (0, 0)), "edge")
        parts = [padded[y : y + tile, x : x + tile] for y in range(0, height, tile) for x in range(0, width, tile)]
    else:
        parts = [ycbcr[y : y + 14] for y in range(0, height, 14)]
    encode = {"none": bytes, "lzw": imagecodecs.lzw_encode, "zlib": imagecodecs.zlib_encode}[compression]
    segments = [bytes(encode(pack(part, *packing))) for part in parts]
    code = {"none": 1, "lzw": 5, "zlib": 8}[compression]
    layout = {322: tile, 323: tile} if tile else {278: 14}
    tags = {256: width, 257: height, 258: (8, 8, 8), 259: code, 262: 6, 277: 3, 284: 1, 530: packing, **layout}
    return write_by_hand(path, segments, tags)


def write_by_hand(path: Path, segments: list[bytes], tags: dict[int, Any]) -> Path:
    """Write a TIFF file of tags that are short integers, and of these tiles or strips."""
    offsets, counts = (324, 325) if 322 in tags else (273, 279)
    data, starts = bytearray(b"II*\0\0\0\0\0"), []
    for segment in segments:
        starts.append(len(data))
        data += segment + b"\0" * (len(segment) % 2)
    tags = tags | {offsets: tuple(starts), counts: tuple(map(len, segments))}
    entries = b""
    for tag in sorted(tags):
        values = tags[tag] if isinstance(tags[tag], tuple) else (tags[tag],)
        kind = "I" if tag in (offsets, counts) else "H"
        packed = struct.pack(f"<{len(values)}{kind}", *values)
        if len(packed) > 4:
            place = struct.pack("<I", len(data))
            data += packed + b"\0" * (len(packed) % 2)
            packed = place
        entries += struct.pack("<HHI", tag, 4 if kind == "I" else 3, len(values)) + packed.ljust(4, b"\0")
    data[4:8] = struct.pack("<I", len(data))
    path.write_bytes(bytes(data) + struct.pack("<H", len(tags)) + entries + b"\0\0\0\0")
    return path


def jpeg2000(planes: list[NDArray[np.uint8]], step: tuple[int, int]) -> bytes:
    """Join three codestreams to one of three components, of which the last two have fewer pixels."""
    parts = []
    for plane in planes:
        stream = imagecodecs.jpeg2k_encode(plane, level=0, codecformat="j2k", mct=False, reversible=True, resolutions=1)
        at, segments = 2, {}
        while stream[at : at + 2] != b"\xff\x93":
            size = 2 + int.from_bytes(stream[at + 2 : at + 4])
            segments[stream[at : at + 2]] = stream[at : at + size]
            at += size
        parts.append((segments, stream[at + 2 : -2]))
    first = parts[0][0]
    size = first[b"\xff\x51"][4:38] + b"\0\3" + b"\7\1\1" + 2 * bytes([7, *step])
    data = b"".join(packets for _, packets in parts)
    start = b"\xff\x90" + struct.pack(">HHIBB", 10, 0, 14 + len(data), 0, 1)
    head = b"\xff\x4f\xff\x51" + struct.pack(">H", 2 + len(size)) + size + first[b"\xff\x52"] + first[b"\xff\x5c"]
    return head + start + b"\xff\x93" + data + b"\xff\xd9"


def colour_map(bits: int, seed: int = 0) -> NDArray[np.uint16]:
    return np.random.default_rng(seed).integers(0, 2**16, (3, 2**bits), dtype=np.uint16)
