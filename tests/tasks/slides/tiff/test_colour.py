"""Colours of TIFF files: palettes, stacks and levels, and what is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from slidesam.tasks.errors import SlideError
from slidesam.tasks.grid import Region
from slidesam.tasks.slides.inspect import inspect_slide
from slidesam.tasks.slides.reader import SlideReader
from tests.support.tiff_colours import (
    SIDE,
    assert_near,
    colour_map,
    overwrite,
    picture,
    read,
    to_ycbcr,
    write,
    write_by_hand,
)


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
