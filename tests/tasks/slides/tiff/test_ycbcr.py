"""YCbCr, inks and JPEG in TIFF files: converted once, whatever compresses them."""

from __future__ import annotations

from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.support.tiff_colours import (
    LOSSLESS,
    SIDE,
    assert_near,
    from_ycbcr,
    jpeg2000,
    overwrite,
    picture,
    read,
    to_ycbcr,
    write,
    write_by_hand,
    write_packed,
)


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
