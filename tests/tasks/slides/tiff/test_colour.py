"""Colours of TIFF files: read as the file says, whatever compresses them, or refused by name."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from slidesam.tasks.errors import SlideError
from slidesam.tasks.grid import Region
from slidesam.tasks.settings.sections import SlideSettings
from slidesam.tasks.slides.facts import Slide
from slidesam.tasks.slides.inspect import inspect_slide
from slidesam.tasks.slides.reader import SlideReader
from slidesam.tasks.slides.tiff.colour import Colour

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


@pytest.mark.parametrize("compression", LOSSLESS)
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("is_tiled", [True, False])
def test_ycbcr_becomes_rgb(tmp_path: Path, compression: str, planar: str, is_tiled: bool) -> None:
    ycbcr = to_ycbcr(picture())
    path = write(
        tmp_path / "a.tif", ycbcr if planar == "contig" else np.moveaxis(ycbcr, 2, 0), photometric="ycbcr",
        planarconfig=planar, compression=compression, **({} if is_tiled else {"tile": None, "rowsperstrip": 7}),
    )  # fmt: skip
    slide, pixels = read(path)
    assert slide.is_rgb
    assert slide.channel_names == ("red", "green", "blue")
    assert_near(pixels, from_ycbcr(ycbcr))


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("mode", ["YCbCr", "CMYK", "P"])
def test_colours_that_pillow_writes_are_those_that_it_reads(tmp_path: Path, mode: str, compression: str) -> None:
    image = Image.fromarray(picture()).convert(mode)
    image.save(tmp_path / "a.tif", compression=compression)
    slide, pixels = read(tmp_path / "a.tif")
    assert slide.is_rgb
    assert_near(pixels, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_ycbcr_in_jpeg_is_converted_once(tmp_path: Path, planar: str) -> None:
    ycbcr = to_ycbcr(picture())
    image = ycbcr if planar == "contig" else np.ascontiguousarray(np.moveaxis(ycbcr, 2, 0))
    options = {"planarconfig": planar, "compression": "jpeg", "compressionargs": {"level": 98}, "tile": (32, 32)}
    path = write(tmp_path / "a.tif", image, photometric="ycbcr", **options)
    assert_near(read(path)[1], picture(), 8)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_ycbcr_of_studio_range_and_other_coefficients(tmp_path: Path, dtype: str) -> None:
    # Grey from black to white: whatever the coefficients, Y is all. ITU-R BT.709, as high definition video.
    full = np.iinfo(dtype).max
    scale = 1 if dtype == "uint8" else 256
    y = np.linspace(16, 235, SIDE * SIDE).reshape(SIDE, SIDE) * scale
    ycbcr = np.dstack([y, np.full_like(y, 128 * scale), np.full_like(y, 128 * scale)]).round().astype(dtype)
    ends = [number for code in (16, 235, 128, 240, 128, 240) for number in (code * scale, 1)]
    tags = [(532, 5, 6, ends, True), (529, 5, 3, [2126, 10000, 7152, 10000, 722, 10000], True)]
    path = tmp_path / "a.tif"
    # tifffile writes a tag 532 of its own.
    write(path, ycbcr, photometric="rgb", extratags=[*tags, (530, 3, 2, (1, 1), True)])
    overwrite(path, "PhotometricInterpretation", 6)
    pixels = read(path)[1]
    grey = np.linspace(0, full, SIDE * SIDE).reshape(SIDE, SIDE)
    assert_near(pixels, np.dstack([grey] * 3), 2 if dtype == "uint8" else 257)
    # Pure red of full range: by the tag's shares, Y is 0.2126 of white.
    red = np.tile(np.asarray([0.2126 * full, (full + 1) // 2 * (1 - 0.2126 / 0.9278), full], dtype), (SIDE, SIDE, 1))
    write(path, red, photometric="rgb", extratags=[tags[1], (530, 3, 2, (1, 1), True)])
    overwrite(path, "PhotometricInterpretation", 6)
    assert_near(read(path)[1], np.broadcast_to([full, 0, 0], red.shape), 2 if dtype == "uint8" else 257)


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


@pytest.mark.parametrize("packing", [(2, 2), (2, 1), (1, 2), (4, 1), (4, 2), (4, 4)])
@pytest.mark.parametrize("compression", ["none", "lzw", "zlib"])
@pytest.mark.parametrize("tile", [32, None])
def test_colours_that_pixels_share(
    tmp_path: Path, packing: tuple[int, int], compression: str, tile: int | None
) -> None:
    # 61 x 51 px: neither tiles nor units fit, and 14 rows are no whole number of four.
    rgb = picture()[:61, :51]
    path = write_packed(tmp_path / "a.tif", to_ycbcr(rgb), packing, compression, tile)
    pixels = read(path)[1]
    assert_near(pixels, rgb, 6 * max(packing))
    if compression != "none" and (tile or packing[1] != 4):
        # By libtiff; Pillow doesn't ask it if nothing is compressed, and it loses strips of 14 rows in units of 4.
        with Image.open(path) as theirs:
            assert_near(pixels, np.asarray(theirs.convert("RGB")))


@pytest.mark.parametrize("compression", ["none", "lzw"])
def test_ycbcr_without_its_subsampling_tag(tmp_path: Path, compression: str) -> None:
    ycbcr = to_ycbcr(picture())
    path = overwrite(write(tmp_path / "a.tif", ycbcr, photometric="rgb", compression=compression), 262, 6)
    assert_near(read(path)[1], from_ycbcr(ycbcr))


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


@pytest.mark.parametrize("step", [None, (1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("code", [33003, 34712])
def test_jpeg_2000_of_ycbcr_is_converted_once(tmp_path: Path, code: int, step: tuple[int, int] | None) -> None:
    rgb = picture()
    ycbcr = to_ycbcr(rgb)
    if step is None:
        tile = imagecodecs.jpeg2k_encode(ycbcr, level=0, codecformat="j2k", mct=False, reversible=True)
    else:
        shared = np.ascontiguousarray(ycbcr[:: step[1], :: step[0]])
        planes = [ycbcr[..., 0], shared[..., 1], shared[..., 2]]
        tile = jpeg2000([np.ascontiguousarray(plane) for plane in planes], step)
    path = tmp_path / "a.tif"
    write(
        path, iter([tile]), shape=rgb.shape, dtype="uint8", photometric="rgb", compression="jpeg2000", tile=(SIDE, SIDE)
    )
    overwrite(path, "Compression", code)
    if code == 34712:  # only Aperio's method tells by itself
        overwrite(path, "PhotometricInterpretation", 6)
    slide, pixels = read(path)
    assert slide.is_rgb
    assert_near(pixels, rgb, 3 if step in (None, (1, 1)) else 8)


@pytest.mark.parametrize("photometric", [2, 6])
def test_jpeg_2000_of_rgb_stays(tmp_path: Path, photometric: int) -> None:
    options = {"codecformat": "j2k", "mct": True, "reversible": True, "level": 0}
    path = write(tmp_path / "a.tif", picture(), photometric="rgb", compression=33005, compressionargs=options)
    overwrite(path, "PhotometricInterpretation", photometric)
    assert_near(read(path)[1], picture(), 0)


def test_jpeg_of_three_channels_stays(tmp_path: Path) -> None:
    """As libtiff writes three channels that aren't colours: no header says so, and decoders guess that they are YCbCr."""
    as_ycbcr = {"colorspace": "YCBCR", "outcolorspace": "YCBCR", "subsampling": "444"}
    stream = bytes(imagecodecs.jpeg_encode(picture(), level=99, **as_ycbcr))
    assert stream[6:10] == b"JFIF"
    stream = stream[:2] + stream[20:]
    path = tmp_path / "a.tif"
    layout = {"shape": (SIDE, SIDE, 3), "dtype": "uint8", "tile": (SIDE, SIDE)}
    write(path, iter([stream]), photometric="rgb", compression="jpeg", **layout)
    overwrite(path, "PhotometricInterpretation", 1)
    slide, pixels = read(path)
    assert not slide.is_rgb
    assert_near(pixels, picture(), 3)


def test_inks_of_16_bits_and_in_jpeg(tmp_path: Path) -> None:
    cmyk = np.asarray(Image.fromarray(picture()).convert("CMYK"))
    wide = write(tmp_path / "wide.tif", cmyk.astype(np.uint16) * 257, photometric="separated")
    assert_near(read(wide)[1], picture() * 257.0, 2 * 257)
    Image.fromarray(cmyk, "CMYK").save(tmp_path / "jpeg.tif", compression="jpeg", quality=95)
    slide, pixels = read(tmp_path / "jpeg.tif")
    with Image.open(tmp_path / "jpeg.tif") as theirs:
        assert_near(pixels, np.asarray(theirs.convert("RGB")), 2)
    assert any("CMYK" in warning for warning in slide.warnings)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_what_is_transparent_is_background(tmp_path: Path, dtype: str, kind: str, planar: str) -> None:
    full = 1.0 if dtype == "float32" else np.iinfo(dtype).max
    rgb = picture() / 255 * full
    alpha = np.full((SIDE, SIDE), full)
    alpha[:, 40:], alpha[50:] = 0, full / 3
    share = (alpha / full)[..., None]
    stored = np.where(share > 0, rgb, 0) if kind == "unassalpha" else rgb * share
    rgba = np.dstack([stored, alpha]).astype(dtype)
    if planar == "separate":
        rgba = np.moveaxis(rgba, 2, 0)
    path = write(
        tmp_path / "a.tif", rgba, photometric="rgb", planarconfig=planar, extrasamples=[kind], compression="zlib"
    )
    slide, pixels = read(path)
    assert slide.is_rgb
    assert slide.size_c == 3
    assert slide.channels == (0, 1, 2)
    assert_near(pixels, rgb * share + full * (1 - share), full / 120)
    assert (pixels[:50, 40:] == full).all()
    assert any("alpha is applied" in warning for warning in slide.warnings)


@pytest.mark.parametrize("n_masks", [1, 2])
@pytest.mark.parametrize("is_rgb", [True, False])
def test_what_a_transparency_mask_hides_is_background(tmp_path: Path, n_masks: int, is_rgb: bool) -> None:
    """As GDAL writes it: a mask beside the image, of one bit, and one beside each smaller level."""
    image = picture() if is_rgb else picture()[..., 0]
    mask = np.ones((SIDE, SIDE), bool)
    mask[:, 40:] = False
    path, options = (
        tmp_path / "a.tif",
        {"photometric": "rgb" if is_rgb else "minisblack", "tile": (16, 16), "metadata": None},
    )
    with tifffile.TiffWriter(path) as writer:
        writer.write(image, **options)
        writer.write(mask, subfiletype=4, **options | {"photometric": "mask"}, compression="zlib")
        writer.write(image[::2, ::2], subfiletype=1, **options)
        if n_masks == 2:
            writer.write(mask[::2, ::2], subfiletype=5, **options | {"photometric": "mask"}, compression="zlib")
    for level in range(n_masks):
        slide, pixels = read(path, level)
        shown, expected = mask[:: level + 1, :: level + 1], image[:: level + 1, :: level + 1].reshape(*pixels.shape)
        np.testing.assert_array_equal(pixels, np.where(shown[..., None], expected, 255 if is_rgb else 0))
    assert len(slide.levels) == n_masks
    is_said = any("level 1 and later ones have no mask and aren't used" in warning for warning in slide.warnings)
    assert is_said == (n_masks == 1)
    assert slide.has_gaps
    assert (slide.is_rgb, slide.size_c) == (is_rgb, 3 if is_rgb else 1)
    assert any("transparency mask is applied" in warning for warning in slide.warnings)
    assert not any("further large images" in warning for warning in slide.warnings)


@pytest.mark.parametrize("colours", ["ycbcr", "rgba", "cmyk", "palette"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_tiles_that_are_missing_are_white_whatever_the_colours(tmp_path: Path, colours: str, planar: str) -> None:
    image, options = {
        "ycbcr": (to_ycbcr(picture()), {"photometric": "ycbcr"}),
        "rgba": (
            np.dstack([picture(), np.full((SIDE, SIDE), 255, np.uint8)]),
            {"photometric": "rgb", "extrasamples": [2]},
        ),
        "cmyk": (np.asarray(Image.fromarray(picture()).convert("CMYK")), {"photometric": "separated"}),
        "palette": (picture()[..., 0], {"photometric": "palette", "colormap": colour_map(8)}),
    }[colours]
    if image.ndim == 3:
        options["planarconfig"] = planar
        image = np.ascontiguousarray(np.moveaxis(image, 2, 0)) if planar == "separate" else image
    path = write(tmp_path / "a.tif", image, tile=(32, 32), compression="zlib", **options)
    whole = read(path)[1]
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        counts = list(tiff.pages[0].databytecounts)
        counts[1::4] = [0] * len(counts[1::4])
        tiff.pages[0].tags["TileByteCounts"].overwrite(tuple(counts))
    slide, pixels = read(path)
    whole[:32, 32:] = 255
    np.testing.assert_array_equal(pixels, whole)
    assert any("aren't there" in warning for warning in slide.warnings)


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_grey_with_alpha_lies_over_zero(tmp_path: Path, photometric: str) -> None:
    grey = picture()[..., 0].astype(np.uint16) * 100
    alpha = np.full_like(grey, 65535)
    alpha[:, 40:] = 0
    options = {"photometric": photometric, "planarconfig": "contig", "extrasamples": ["unassalpha"]}
    slide, pixels = read(write(tmp_path / "a.tif", np.dstack([grey, alpha]), **options))
    assert (slide.size_c, slide.is_rgb) == (1, False)
    np.testing.assert_array_equal(pixels[..., 0], np.where(alpha > 0, grey, 0))


@pytest.mark.parametrize("kinds", [["unspecified"], ["unspecified", "unassalpha"], ["assocalpha", "unspecified"]])
def test_other_samples_are_channels_of_their_own(tmp_path: Path, kinds: list[str]) -> None:
    other = np.arange(SIDE * SIDE).reshape(SIDE, SIDE).astype(np.uint8)
    opaque = np.full_like(other, 255)
    samples = [other if kind == "unspecified" else opaque for kind in kinds]
    path = write(tmp_path / "a.tif", np.dstack([picture(), *samples]), photometric="rgb", extrasamples=kinds)
    slide, pixels = read(path)
    assert slide.channel_names == ("red", "green", "blue", "extra 1")
    assert slide.is_rgb
    assert slide.channels == (0, 1, 2)
    np.testing.assert_array_equal(pixels, np.dstack([picture(), other]))
    assert any("channels of their own" in warning for warning in slide.warnings)


def test_many_grey_samples_are_channels_even_if_one_is_called_alpha(tmp_path: Path) -> None:
    """As libvips writes several channels."""
    options = {"photometric": "minisblack", "planarconfig": "contig", "extrasamples": ["unassalpha", "unspecified"]}
    slide, pixels = read(write(tmp_path / "a.tif", picture(), **options))
    assert not slide.is_rgb
    assert any("calls alpha" in warning for warning in slide.warnings)
    np.testing.assert_array_equal(pixels, picture())


def colour_map(bits: int, seed: int = 0) -> NDArray[np.uint16]:
    return np.random.default_rng(seed).integers(0, 2**16, (3, 2**bits), dtype=np.uint16)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("compression", ["none", "zlib"])
def test_palettes_are_applied(tmp_path: Path, bits: int, compression: str) -> None:
    indices = (np.arange(SIDE * SIDE).reshape(SIDE, SIDE) % 2**bits).astype("uint16" if bits == 16 else "uint8")
    colours = colour_map(bits)
    if bits < 8:
        packed = imagecodecs.packints_encode(indices, bits)
        data = bytes(packed) if compression == "none" else bytes(imagecodecs.zlib_encode(packed))
        tags = {256: SIDE, 257: SIDE, 258: bits, 259: 1 if compression == "none" else 8, 262: 3, 277: 1, 278: SIDE}
        path = write_by_hand(tmp_path / "a.tif", [data], tags | {320: tuple(colours.ravel().tolist())})
    else:
        path = write(tmp_path / "a.tif", indices, photometric="palette", colormap=colours, compression=compression)
    slide, pixels = read(path)
    assert slide.is_rgb
    assert slide.dtype == "uint8"
    np.testing.assert_array_equal(pixels, (colours >> 8).T[indices])
    if bits == 8:
        with Image.open(path) as theirs:
            np.testing.assert_array_equal(pixels, np.asarray(theirs.convert("RGB")))


def test_palettes_of_8_bit_colours(tmp_path: Path) -> None:
    indices, colours = picture()[..., 0], colour_map(8) >> 8
    pixels = read(write(tmp_path / "a.tif", indices, photometric="palette", colormap=colours))[1]
    np.testing.assert_array_equal(pixels, colours.T[indices])


@pytest.mark.parametrize("kind", ["green ramp", "grey ramp", "imagej"])
def test_palettes_that_only_show_numbers(tmp_path: Path, kind: str) -> None:
    numbers, ramp = picture()[..., 0], np.arange(256, dtype=np.uint16) * 257
    colours = {"green ramp": np.stack([0 * ramp, ramp, 0 * ramp]), "grey ramp": np.stack([ramp] * 3)}.get(
        kind, colour_map(8)
    )
    path = tmp_path / "a.tif"
    if kind == "imagej":
        write(path, numbers, imagej=True, tile=None, metadata={}, colormap=colours.astype(np.uint16))
        with tifffile.TiffFile(path) as tiff:
            assert tiff.is_imagej
            assert tiff.pages[0].photometric == 3
    else:
        write(path, numbers, photometric="palette", colormap=colours)
    slide, pixels = read(path)
    assert not slide.is_rgb
    assert slide.display[0].colour == {"green ramp": "00FF00", "grey ramp": "FFFFFF"}.get(kind)
    np.testing.assert_array_equal(pixels[..., 0], numbers)


def test_palettes_of_several_channels_are_not_applied(tmp_path: Path) -> None:
    numbers = np.stack([picture()[..., 0], picture()[..., 1]])
    options = {"photometric": "palette", "colormap": colour_map(8), "metadata": {"axes": "CYX"}}
    slide, pixels = read(write(tmp_path / "a.ome.tif", numbers, ome=True, **options))
    assert not slide.is_rgb
    assert any("palettes aren't applied" in warning for warning in slide.warnings)
    np.testing.assert_array_equal(pixels, picture()[..., :2])


def test_stacks_and_groups_of_colours_are_converted(tmp_path: Path) -> None:
    """Two channels of YCbCr, three focal planes of red, green, blue and alpha."""
    channels = np.stack([to_ycbcr(picture()), to_ycbcr(picture()[::-1])])
    path = write(tmp_path / "c.ome.tif", channels, ome=True, photometric="ycbcr", metadata={"axes": "CYXS"})
    slide, pixels = read(path)
    assert (slide.size_c, slide.is_rgb) == (6, False)
    assert_near(pixels, np.dstack([picture(), picture()[::-1]]), 3)
    alpha = np.full((SIDE, SIDE), 255, np.uint8)
    alpha[:9] = 0
    planes = np.stack([np.dstack([picture()[:, ::step], alpha]) for step in (1, -1)])
    options = {"photometric": "rgb", "extrasamples": ["unassalpha"], "metadata": {"axes": "ZYXS"}}
    slide = inspect_slide(write(tmp_path / "z.ome.tif", planes, ome=True, **options))
    with SlideReader(slide) as reader:
        pixels = reader.fetch(0, range(1), range(3), range(2), Region(0, 0, SIDE, SIDE))
    expected = np.where(alpha[..., None] > 0, planes[..., :3], 255)
    np.testing.assert_array_equal(pixels[0].transpose(1, 2, 3, 0), expected)


def test_white_is_zero_is_read_as_stored_with_a_note(tmp_path: Path) -> None:
    slide, pixels = read(write(tmp_path / "a.tif", picture()[..., 0], photometric="miniswhite"))
    np.testing.assert_array_equal(pixels[..., 0], picture()[..., 0])
    assert any("0 is white" in warning for warning in slide.warnings)


@pytest.mark.parametrize(
    ("photometric", "samples", "name"),
    [(4, 1, "transparency mask"), (8, 3, "CIELab"), (9, 3, "ICCLab"), (10, 3, "ITULab"), (32803, 1, "CFA"),
     (32844, 1, "LogL"), (32845, 3, "LogLuv"), (34892, 3, "LinearRaw"), (51177, 1, "depth map"), (777, 3, "777")],
)  # fmt: skip
def test_other_colour_spaces_are_refused_by_name(tmp_path: Path, photometric: int, samples: int, name: str) -> None:
    image = picture()[..., :samples].squeeze()
    path = write(tmp_path / "a.tif", image, photometric="rgb" if samples == 3 else "minisblack")
    with pytest.raises(SlideError, match=rf"a\.tif: .*{name}.*export it as RGB"):
        inspect_slide(overwrite(path, "PhotometricInterpretation", photometric))


@pytest.mark.parametrize(
    ("photometric", "samples", "options", "message"),
    [
        (2, 1, {}, "RGB and has 1 sample per"),
        (6, 1, {}, "YCbCr and has 1 sample per"),
        (5, 3, {}, "CMYK and has 3 samples per"),
        (3, 1, {}, "no ColorMap"),
        (6, 3, {"compression": "png"}, "YCbCr, and its PNG"),
        (6, 3, {"compression": "webp"}, "YCbCr, and its WebP"),
        (6, 3, {"compression": "jpegxl"}, "YCbCr, and its JPEG XL"),
        (6, 3, {"dtype": "float32"}, "YCbCr of type float32"),
        (6, 3, {"extratags": [(529, 5, 3, [1, 1, 0, 1, 0, 1], True), (530, 3, 2, (1, 1), True)]}, "YCbCrCoefficients"),
        (6, 3, {"extratags": [(532, 5, 6, [0, 1] * 6, True), (530, 3, 2, (1, 1), True)]}, "ReferenceBlackWhite"),
        (6, 3, {"extratags": [(530, 3, 2, (2, 2), True)], "predictor": 2, "compression": "lzw"}, "predictor"),
        (6, 3, {"extratags": [(530, 3, 2, (3, 1), True)]}, "3 × 1 pixels"),
        (5, 4, {"extratags": [(332, 3, 1, 2, True)]}, "InkSet 2"),
        (5, 4, {"extratags": [(336, 3, 2, (16, 235), True)]}, "from 16 to 235"),
    ],
)  # fmt: skip
def test_contradictions_are_refused_by_what_contradicts_what(
    tmp_path: Path, photometric: int, samples: int, options: dict[str, Any], message: str
) -> None:
    image = np.dstack([picture(), picture()])[..., :samples].squeeze().astype(options.pop("dtype", "uint8"))
    name = {1: "minisblack", 3: "rgb", 4: "separated"}[samples]
    path = write(tmp_path / "a.tif", image, photometric=name, **options)
    with pytest.raises(SlideError, match=f"a.tif: .*{message}.*export it"):
        inspect_slide(overwrite(path, "PhotometricInterpretation", photometric))


@pytest.mark.parametrize("extra", [{}, {338: 0}])
def test_palettes_have_one_index(tmp_path: Path, extra: dict[int, Any]) -> None:
    tags = {
        256: SIDE,
        257: SIDE,
        258: (8, 8, 8),
        259: 1,
        262: 3,
        277: 3,
        278: SIDE,
        320: tuple(colour_map(8).ravel().tolist()),
    }
    with pytest.raises(SlideError, match=r"palette colours of 8 bits, 3 per pixel, .* contradict each other"):
        inspect_slide(write_by_hand(tmp_path / "a.tif", [picture().tobytes()], tags | extra))


def test_palettes_with_alpha(tmp_path: Path) -> None:
    indices, colours = picture()[..., 0], colour_map(8)
    alpha = np.where(np.arange(SIDE) < 40, 255, 0).astype(np.uint8)[None].repeat(SIDE, 0)
    tags = {
        256: SIDE,
        257: SIDE,
        258: (8, 8),
        259: 1,
        262: 3,
        277: 2,
        278: SIDE,
        320: tuple(colours.ravel().tolist()),
        338: 2,
    }
    path = write_by_hand(tmp_path / "a.tif", [np.dstack([indices, alpha]).tobytes()], tags)
    np.testing.assert_array_equal(read(path)[1], np.where(alpha[..., None] > 0, (colours >> 8).T[indices], 255))


def test_jpeg_of_ycbcr_with_alpha(tmp_path: Path) -> None:
    """libjpeg leaves four components alone."""
    alpha = np.full((SIDE, SIDE), 255, np.uint8)
    alpha[:, 32:] = 0
    image = np.dstack([to_ycbcr(picture()), alpha])
    stream = bytes(imagecodecs.jpeg_encode(image, level=99, colorspace="CMYK", outcolorspace="CMYK"))
    tags = {256: SIDE, 257: SIDE, 258: (8,) * 4, 259: 7, 262: 6, 277: 4, 322: SIDE, 323: SIDE, 338: 2, 530: (1, 1)}
    pixels = read(write_by_hand(tmp_path / "a.tif", [stream], tags))[1]
    assert_near(pixels, np.where(alpha[..., None] > 0, picture(), 255), 8)


def test_more_extra_samples_than_there_are_samples_beside_colours(tmp_path: Path) -> None:
    tags = {256: SIDE, 257: SIDE, 258: (8, 8, 8), 259: 1, 262: 2, 277: 3, 278: SIDE, 338: 2}
    path = write_by_hand(tmp_path / "a.tif", [picture().tobytes()], tags)
    with pytest.raises(SlideError, match="RGB and 1 extra samples and has 3 samples per pixel, which contradict"):
        inspect_slide(path)


@pytest.mark.parametrize("samples", [1, 3])
def test_a_file_that_does_not_say_what_its_pixels_are(tmp_path: Path, samples: int) -> None:
    image = picture()[..., :samples]
    tags = {256: SIDE, 257: SIDE, 258: (8,) * samples, 259: 1, 277: samples, 278: SIDE}
    slide, pixels = read(write_by_hand(tmp_path / "a.tif", [image.tobytes()], tags))
    assert slide.is_rgb == (samples == 3)
    assert not any("inverted" in warning for warning in slide.warnings)
    np.testing.assert_array_equal(pixels, image)


def test_samples_of_different_bits_are_refused(tmp_path: Path) -> None:
    tags = {256: SIDE, 257: SIDE, 258: (5, 6, 5), 259: 1, 262: 2, 277: 3, 278: SIDE}
    with pytest.raises(SlideError, match=r"\(5, 6, 5\) bits"):
        inspect_slide(write_by_hand(tmp_path / "a.tif", [bytes(2 * SIDE * SIDE)], tags))


@pytest.mark.parametrize(
    ("tags", "message"), [({259: 65000}, "method 65000"), ({317: 77, 259: 8}, "not a known PREDICTOR")]
)
def test_what_tifffile_can_not_decode_is_refused_before_anything_is_read(
    tmp_path: Path, tags: dict[int, Any], message: str
) -> None:
    path = tmp_path / "a.tif"
    write_by_hand(
        path, [bytes(2 * SIDE * SIDE)], {256: SIDE, 257: SIDE, 258: 8, 259: 1, 262: 1, 277: 1, 278: SIDE} | tags
    )
    with pytest.raises(SlideError, match=message):
        inspect_slide(path)


@pytest.mark.parametrize("photometric", ["rgb", "minisblack"])
@pytest.mark.parametrize("has_jfif", [True, False])
def test_jpeg_of_separate_planes(tmp_path: Path, photometric: str, has_jfif: bool) -> None:
    tiles = [bytes(imagecodecs.jpeg_encode(np.ascontiguousarray(picture()[..., at]), level=99)) for at in range(3)]
    if not has_jfif:
        tiles = [tile[:2] + tile[20:] for tile in tiles]
    tags = {
        256: SIDE,
        257: SIDE,
        258: (8, 8, 8),
        259: 7,
        262: 2 if photometric == "rgb" else 1,
        277: 3,
        284: 2,
        322: SIDE,
        323: SIDE,
    }
    slide, pixels = read(write_by_hand(tmp_path / "a.tif", tiles, tags))
    assert slide.is_rgb == (photometric == "rgb")
    assert_near(pixels, picture(), 3)


def test_a_last_strip_that_is_filled_up(tmp_path: Path) -> None:
    image = picture()[:61, :, 0]
    padded = np.vstack([image, image[:9]])
    strips = [bytes(imagecodecs.zlib_encode(padded[y : y + 14].tobytes())) for y in range(0, 61, 14)]
    tags = {256: SIDE, 257: 61, 258: 8, 259: 8, 262: 1, 277: 1, 278: 14}
    np.testing.assert_array_equal(read(write_by_hand(tmp_path / "a.tif", strips, tags))[1][..., 0], image)


def test_a_level_of_another_kind_is_left_out(tmp_path: Path) -> None:
    grey = picture()[..., 0].astype(np.uint16) * 200
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(grey, subifds=2, tile=(16, 16), metadata={"axes": "YX"})
        writer.write((grey[::2, ::2] >> 8).astype(np.uint8), subfiletype=1, tile=(16, 16), metadata=None)
        writer.write(grey[::4, ::4], subfiletype=1, tile=(16, 16), metadata=None)
    slide, _ = read(path)
    assert [level.shape for level in slide.levels] == [(64, 64), (16, 16)]
    np.testing.assert_array_equal(read(path, 1)[1][..., 0], grey[::4, ::4])
    assert any("level 1 holds another kind of pixels" in warning for warning in slide.warnings)


def test_a_level_of_unread_colours_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(picture(), subifds=1, photometric="rgb", tile=(16, 16), metadata=None)
        writer.write(picture()[::2, ::2], subfiletype=1, photometric="rgb", tile=(16, 16), metadata=None)
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tiff.pages[0].pages[0].tags["PhotometricInterpretation"].overwrite(8)
    slide, _ = read(path)
    assert len(slide.levels) == 1
    assert any("level 1 holds another kind of pixels" in warning for warning in slide.warnings)


def test_levels_of_other_methods_convert_alike(tmp_path: Path) -> None:
    """Level 0 is YCbCr, the next one RGB in JPEG 2000, the last one YCbCr in JPEG."""
    rgb = np.kron(picture(), np.ones((4, 4, 1), np.uint8))
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(to_ycbcr(rgb), subifds=2, photometric="ycbcr", compression="lzw", tile=(64, 64), metadata=None)
        writer.write(
            rgb[::2, ::2], subfiletype=1, photometric="rgb", compression="jpeg2000", tile=(64, 64), metadata=None
        )
        small = {"compression": "jpeg", "compressionargs": {"level": 95}, "tile": (64, 64), "metadata": None}
        writer.write(to_ycbcr(rgb[::4, ::4]), subfiletype=1, photometric="ycbcr", **small)
    for level in range(3):
        assert_near(read(path, level)[1], rgb[:: 2**level, :: 2**level], 12)


@pytest.mark.parametrize("photometric", [1, 2])
def test_each_tile_says_whether_it_holds_ycbcr(tmp_path: Path, photometric: int) -> None:
    """A JFIF header means YCbCr: of each tile of its own, also where the first one isn't in the file."""
    tile = np.full((SIDE, SIDE, 3), (200, 60, 120), np.uint8)
    jfif = bytes(imagecodecs.jpeg_encode(tile, level=99, subsampling="444"))
    bare = bytes(imagecodecs.jpeg_encode(tile, level=99, colorspace="YCBCR", outcolorspace="YCBCR", subsampling="444"))
    bare = bare[:2] + bare[20:]
    assert jfif[6:10] == b"JFIF"
    sizes = {256: 2 * SIDE, 257: 2 * SIDE, 322: SIDE, 323: SIDE}
    tags = sizes | {258: (8, 8, 8), 259: 7, 262: photometric, 277: 3}
    path = write_by_hand(tmp_path / "a.tif", [jfif, jfif, bare, jfif], tags)
    overwrite(path, "TileByteCounts", (0, len(jfif), len(bare), len(jfif)))
    pixels = read(path)[1]
    assert_near(pixels[:SIDE, SIDE:], tile, 3)
    assert_near(pixels[SIDE:, :SIDE], tile, 3)
    assert_near(pixels[SIDE:, SIDE:], tile, 3)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32", "float32"])
@pytest.mark.parametrize("is_premultiplied", [True, False])
@pytest.mark.parametrize("background", [0, "full"])
def test_a_pixel_under_alpha_is_the_same_alone_and_among_others(
    dtype: str, is_premultiplied: bool, background: int | str
) -> None:
    full = 1.0 if dtype == "float32" else float(np.iinfo(dtype).max // 16 if dtype == "uint16" else np.iinfo(dtype).max)
    colour = Colour(
        samples=4, colours=3, is_rgb=True, full=full, dtype=dtype, alpha=3, is_premultiplied=is_premultiplied,
        background=full if background == "full" else 0.0,
    )  # fmt: skip
    shares = np.repeat([0.0, 0.25, 0.5, 1.0, 1.5 if dtype in ("uint16", "float32") else 1.0], 6)
    greys = np.tile([0.0, 0.1, 0.5, 0.8, 1.0, 1.5 if dtype in ("uint16", "float32") else 1.0], 5)
    samples = (np.stack([greys, greys, greys, shares], axis=-1) * full).astype(dtype)[None]
    whole = colour.convert(samples)
    for at in range(30):
        np.testing.assert_array_equal(colour.convert(samples[:, at : at + 1]), whole[:, at : at + 1])
    assert (whole[0, shares == 0] == colour.background).all()
    np.testing.assert_array_equal(whole[0, shares >= 1], samples[0, shares >= 1, :3])


def test_colours_of_32_bits_reach_white() -> None:
    full = 2**32 - 1
    colour = Colour(samples=4, colours=3, is_rgb=True, full=full, dtype="uint32", space="cmyk")
    assert colour.convert(np.zeros((1, 1, 4), np.uint32)).tolist() == [[[full] * 3]]


@pytest.mark.parametrize("is_rgb", [True, False])
def test_alpha_lies_over_the_background_that_the_settings_mean(tmp_path: Path, is_rgb: bool) -> None:
    rgba = np.dstack([picture(), np.full((SIDE, SIDE), 255, np.uint8)])
    rgba[:, 40:, 3] = 0
    path = write(tmp_path / "a.tif", rgba, photometric="rgb", extrasamples=["unassalpha"])
    slide = inspect_slide(path, SlideSettings(rgb=is_rgb))
    with SlideReader(slide) as reader:
        pixels = reader.read(Region(0, 0, SIDE, SIDE), 0, range(3))
    np.testing.assert_array_equal(pixels[:, :40], rgba[:, :40, :3])
    assert (pixels[:, 40:] == (255 if is_rgb else 0)).all()
    assert slide.has_gaps


def test_a_damaged_mask_is_left_out_with_a_remark(tmp_path: Path) -> None:
    options = {"tile": (16, 16), "metadata": None}
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(picture(), photometric="rgb", **options)
        writer.write(np.ones((SIDE, SIDE), bool), subfiletype=4, photometric="mask", compression="zlib", **options)
    overwrite(tmp_path / "a.tif", "TileOffsets", (2**31,) * 16, page=1)
    slide, pixels = read(tmp_path / "a.tif")
    np.testing.assert_array_equal(pixels, picture())
    assert any("its transparency mask can't be read (" in warning for warning in slide.warnings)


@pytest.mark.parametrize(("code", "photometric"), [(529, 6), (532, 6), (336, 5)])
def test_a_tag_of_one_number_instead_of_several_is_refused(tmp_path: Path, code: int, photometric: int) -> None:
    samples = 4 if photometric == 5 else 3
    tags = {256: SIDE, 257: SIDE, 258: (8,) * samples, 259: 1, 262: photometric, 277: samples, 322: SIDE, 323: SIDE}
    path = write_by_hand(tmp_path / "a.tif", [bytes(SIDE * SIDE * samples)], tags | {530: (1, 1), code: 7})
    with pytest.raises(SlideError, match=r"(YCbCrCoefficients|ReferenceBlackWhite|DotRange).*export it as RGB"):
        inspect_slide(path)


def test_a_description_that_is_a_number_is_skipped(tmp_path: Path) -> None:
    tags = {256: SIDE, 257: SIDE, 258: (8, 8, 8), 259: 1, 262: 2, 270: 7, 277: 3, 322: SIDE, 323: SIDE}
    path = write_by_hand(tmp_path / "a.tif", [picture().tobytes()], tags)
    np.testing.assert_array_equal(read(path)[1], picture())
