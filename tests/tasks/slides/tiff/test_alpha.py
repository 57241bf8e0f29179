"""Samples beside colours in TIFF files: alpha, masks, and channels of their own."""

from __future__ import annotations

from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from slidesam.tasks.errors import SlideError
from slidesam.tasks.grid import Region
from slidesam.tasks.settings.sections import SlideSettings
from slidesam.tasks.slides.inspect import inspect_slide
from slidesam.tasks.slides.reader import SlideReader
from slidesam.tasks.slides.tiff.colour import Colour
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
