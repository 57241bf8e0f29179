"""What pages and channels mean: what the file says, else what they look like, and always said where it isn't certain."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from numpy.typing import NDArray

from slidesam.tasks.errors import SettingsError, SlideAwayError
from slidesam.tasks.grid import Region
from slidesam.tasks.settings.sections import SlideSettings
from slidesam.tasks.slides.facts import Slide
from slidesam.tasks.slides.inspect import inspect_slide
from slidesam.tasks.slides.reader import SlideReader
from slidesam.tasks.slides.zarr.source import ZarrSource

RGB = ("red", "green", "blue")
SHAPE = (120, 150)
MARKERS = ("CD3", "CD8", "DAPI", "CD20")


def bright_field() -> NDArray[np.uint8]:
    """(c, y, x): glass, tissue, and dark nuclei."""
    image = np.full((3, *SHAPE), 243, np.uint8)
    image[:, 20:100, 20:130] = np.array([228, 178, 205], np.uint8)[:, None, None]
    image[:, 40:60, 40:80] = np.array([92, 62, 140], np.uint8)[:, None, None]
    return image


def fluorescence() -> NDArray[np.uint8]:
    image = np.random.default_rng(0).integers(5, 15, (3, *SHAPE), np.uint8)
    for channel in range(3):
        image[channel, 40:90, 30:120] = 200
    return image


def read_all(slide: Slide) -> NDArray[Any]:
    with SlideReader(slide) as reader:
        return reader.fetch(0, range(slide.size_t), range(slide.size_c), range(slide.size_z), Region(0, 0, *SHAPE))


# --- Three channels of 8 bit.


def signed(colour: str) -> int:
    """OME's number of a colour: 32 bits with a sign."""
    return int(np.uint32(int(f"{colour}FF", 16)).view(np.int32))


def write_ome_tiff(path: Path, image: NDArray[Any], names: tuple[str, ...], colours: tuple[str, ...]) -> Path:
    """Three channels of one sample each, as bioformats2raw and raw2ometiff write an RGB slide without --rgb."""

    def describe(channel: int) -> str:
        name = f' Name="{names[channel]}"' if names else ""
        colour = f' Color="{signed(colours[channel])}"' if colours else ""
        return f'<Channel ID="Channel:0:{channel}" SamplesPerPixel="1"{name}{colour}/>'

    xml = (
        '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="i">'
        f'<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="{image.dtype}" SizeX="{SHAPE[1]}" SizeY="{SHAPE[0]}" SizeC="3" '
        f'SizeZ="1" SizeT="1">{"".join(map(describe, range(3)))}<TiffData IFD="0" PlaneCount="3"/></Pixels></Image></OME>'
    )
    with tifffile.TiffWriter(path) as writer:
        for plane in image:
            writer.write(plane, description=xml, metadata=None, tile=(64, 64), contiguous=False)
    return path


def write_ome_zarr(
    path: Path, image: NDArray[Any], names: tuple[str, ...], colours: tuple[str, ...], **omero: Any
) -> Path:
    group = zarr.create_group(path, zarr_format=3)
    group.create_array("0", data=image, chunks=(1, 64, 64))
    channels = [({"label": names[i]} if names else {}) | ({"color": colours[i]} if colours else {}) for i in range(3)]
    axes = [{"name": "c", "type": "channel"}, {"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
    multiscales = [{"axes": axes, "datasets": [{"path": "0"}]}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": multiscales, "omero": {"channels": channels, **omero}}
    return path


COLOURS, OTHERS, GREY = ("FF0000", "00FF00", "0000FF"), ("0000FF", "00FF00", "FF0000"), ("808080",) * 3
NUMBERED = ("Channel 0", "Channel 1", "Channel 2")
# image, names, colours, whether it is red, green and blue, what is said
KINDS = [
    ("bright", (), COLOURS, True, "bright all over"),
    ("bright", (), (), True, "bright all over"),
    ("bright", NUMBERED, GREY, True, "bright all over"),
    ("bright", ("Red", "Green", "Blue"), (), True, ""),
    ("bright", ("r", "g", "b"), COLOURS, True, ""),
    ("bright", ("DAPI", "FITC", "Cy5"), COLOURS, False, ""),
    ("bright", (), OTHERS, False, ""),
    ("dark", (), COLOURS, False, "mostly dark"),
    ("dark", (), (), False, "mostly dark"),
    ("dark", NUMBERED, COLOURS, False, "mostly dark"),
    ("dark", ("red", "green", "blue"), (), True, ""),
    ("dark", ("DAPI", "FITC", "Cy5"), COLOURS, False, ""),
    ("deep", (), COLOURS, False, ""),
    ("deep", ("Red", "Green", "Blue"), (), True, "these are their names"),
    ("nothing", (), COLOURS, True, "these are their colours"),
    ("nothing", (), (), False, "nothing says otherwise"),
]


@pytest.mark.parametrize("write", [write_ome_tiff, write_ome_zarr])
@pytest.mark.parametrize(("kind", "names", "colours", "is_rgb", "said"), KINDS)
def test_three_channels_are_colours_by_what_the_file_says_or_by_what_they_look_like(
    tmp_path: Path, write: Any, kind: str, names: tuple[str, ...], colours: tuple[str, ...], is_rgb: bool, said: str
) -> None:
    # Of the first chunk only: one that is 0 all over isn't stored, so it isn't there, and reads as white in bright field.
    image = {
        "bright": bright_field(), "dark": fluorescence(), "deep": fluorescence().astype("uint16") * 100,
        "nothing": np.pad(np.ones((3, 5, 5), np.uint8), ((0, 0), (0, SHAPE[0] - 5), (0, SHAPE[1] - 5))),
    }[kind]  # fmt: skip
    path = write(tmp_path / ("a.ome.tif" if write is write_ome_tiff else "a.zarr"), image, names, colours)
    slide = inspect_slide(path)
    assert slide.is_rgb == is_rgb
    assert (slide.channel_names == RGB) == (is_rgb or names == RGB)
    assert slide.channels == ((0, 1, 2) if is_rgb else (0,))
    notes = [warning for warning in slide.warnings if "slide.rgb" in warning]
    assert len(notes) == bool(said)
    assert said in "".join(notes)
    np.testing.assert_array_equal(read_all(slide)[0, :, 0][..., :64, :64], image[..., :64, :64])
    chosen = inspect_slide(path, SlideSettings(rgb=not is_rgb))
    assert chosen.is_rgb == (not is_rgb)
    assert not any("slide.rgb" in warning for warning in chosen.warnings)
    again = Slide.model_validate_json(chosen.model_dump_json())
    np.testing.assert_array_equal(read_all(again)[0, :, 0][..., :64, :64], image[..., :64, :64])


def test_the_rendering_model_decides(tmp_path: Path) -> None:
    path = write_ome_zarr(tmp_path / "a.zarr", bright_field(), (), COLOURS, rdefs={"model": "greyscale"})
    assert not inspect_slide(path).is_rgb


def test_what_wasnt_scanned_doesnt_count(tmp_path: Path) -> None:
    image = bright_field()
    image[:, :, 40:] = 0
    assert inspect_slide(write_ome_tiff(tmp_path / "a.ome.tif", image, (), COLOURS)).is_rgb


def write_pyramid(path: Path, damaged: tuple[int, ...]) -> Path:
    """Three unnamed channels on three levels; pixels of some can't be decoded."""
    group = zarr.create_group(path, zarr_format=3)
    for level in range(3):
        group.create_array(str(level), data=bright_field()[:, :: 2**level, :: 2**level], chunks=(3, 128, 256))
        if level in damaged:
            next(file for file in (path / str(level) / "c").rglob("*") if file.is_file()).write_bytes(b"damaged")
    axes = [{"name": "c", "type": "channel"}, {"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
    datasets = [
        {"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": [1, 2**level, 2**level]}]}
        for level in range(3)
    ]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    return path


@pytest.mark.parametrize(
    ("damaged", "is_rgb", "said"),
    [((), True, "bright all over;"), ((2,), True, "bright all over (level 2 can't"), ((0, 1, 2), False, "level 2, 1, 0 can't")],
)  # fmt: skip
def test_a_damaged_coarse_level_doesnt_cost_the_slide(
    tmp_path: Path, damaged: tuple[int, ...], is_rgb: bool, said: str
) -> None:
    slide = inspect_slide(write_pyramid(tmp_path / "a.zarr", damaged))
    assert slide.is_rgb == is_rgb
    assert any(said in warning for warning in slide.warnings)


def test_pixels_that_cant_be_read_now_decide_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "the server doesn't answer")

    path = write_pyramid(tmp_path / "a.zarr", ())
    monkeypatch.setattr(ZarrSource, "fetch", fail)
    with pytest.raises(SlideAwayError):
        inspect_slide(path)


def test_fewer_than_three_channels_arent_colours(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", bright_field()[0])
    with pytest.raises(SettingsError, match=r"slide.rgb: a.tif has 1 channels"):
        inspect_slide(tmp_path / "a.tif", SlideSettings(rgb=True))


# --- Pages of one size.


def write_pages(path: Path, names: tuple[str, ...], tag: str = "PageName", samples: int = 1) -> NDArray[Any]:
    pages = np.random.default_rng(0).integers(0, 999, (4, *SHAPE), np.uint16)
    pages = np.stack([pages] * samples, axis=-1) if samples > 1 else pages
    with tifffile.TiffWriter(path) as writer:
        for name, page in zip(names or [""] * 4, pages, strict=True):
            extra = [(285, 2, 0, name, True)] if tag == "PageName" and name else []
            description = name if tag == "ImageDescription" else None
            photometric = "rgb" if samples > 1 else "minisblack"
            writer.write(
                page, metadata=None, tile=(64, 64), contiguous=False, extratags=extra, description=description,
                photometric=photometric,
            )  # fmt: skip
    return pages


@pytest.mark.parametrize("tag", ["PageName", "ImageDescription"])
def test_pages_with_names_are_channels(tmp_path: Path, tag: str) -> None:
    pages = write_pages(tmp_path / "a.tif", MARKERS, tag)
    slide = inspect_slide(tmp_path / "a.tif")
    assert (slide.size_c, slide.size_z, slide.channel_names, slide.channels) == (4, 1, MARKERS, (2,))
    assert any("are taken as channels; setting slide.pages: z" in warning for warning in slide.warnings)
    np.testing.assert_array_equal(read_all(slide)[0, :, 0], pages)
    chosen = inspect_slide(tmp_path / "a.tif", SlideSettings(pages="z"))
    assert (chosen.size_c, chosen.size_z, chosen.channel_names) == (1, 4, ("channel 0",))
    np.testing.assert_array_equal(read_all(chosen)[0, 0], pages)
    again = Slide.model_validate_json(chosen.model_dump_json())
    np.testing.assert_array_equal(read_all(again)[0, 0], pages)


@pytest.mark.parametrize(
    "names",
    [(), ("1", "2", "3", "4"), ("z=0.5 um", "z=1.0 um", "z=1.5 um", "z=2.0 um"), ("Page 1/4", "Page 2/4", "Page 3/4", "Page 4/4"),
     ("DAPI", "DAPI", "DAPI", "DAPI"), ("DAPI", "CD3", "CD8", ""),
     *(tuple(form.format(number) for number in range(4)) for form in (
         "slide7_z{:02}.tif", "Focal plane {}", "Z-Plane {}", "z_offset=-{}.5", "Depth {}0um", "time {}", "stack {}", "T={}",
         "2024-05-01 10:{}5:00", "scan 3_{:03}", "a-{}.tif", "DAPI z{}", "DAPI, t 2, focus {}.5 um",
     )), ("z=0.5 um", "z=0.7 um", "z=2 um", "z=-3 um")],
)  # fmt: skip
def test_pages_without_names_are_focal_planes_and_it_is_said(tmp_path: Path, names: tuple[str, ...]) -> None:
    pages = write_pages(tmp_path / "a.tif", names)
    slide = inspect_slide(tmp_path / "a.tif")
    assert (slide.size_c, slide.size_z) == (1, 4)
    assert any("taken as focal planes; setting slide.pages: channels" in warning for warning in slide.warnings)
    chosen = inspect_slide(tmp_path / "a.tif", SlideSettings(pages="channels", channels=3))
    assert (chosen.size_c, chosen.size_z, chosen.channels) == (4, 1, (3,))
    assert not any("slide.pages" in warning for warning in chosen.warnings)
    np.testing.assert_array_equal(read_all(chosen)[0, :, 0], pages)
    again = Slide.model_validate_json(chosen.model_dump_json())
    np.testing.assert_array_equal(read_all(again)[0, :, 0], pages)


@pytest.mark.parametrize(
    "names",
    [("Cy3", "Cy5", "Cy7", "DAPI"), ("CD3", "CD4", "CD5", "CD6"), ("CD1", "CD2", "CD3", "CD4"), ("C1", "C2", "C3", "C4"),
     ("Opal 520", "Opal 570", "Opal 620", "Opal 670"), ("channel 0", "channel 1", "channel 2", "channel 3"),
     ("cycle 01", "cycle 02", "cycle 03", "cycle 04"), ("Alexa 488", "Alexa 555", "Alexa 594", "Alexa 647"),
     ("s_c0.tif", "s_c1.tif", "s_c2.tif", "s_c3.tif")],
)  # fmt: skip
def test_markers_with_numbers_are_channels(tmp_path: Path, names: tuple[str, ...]) -> None:
    write_pages(tmp_path / "a.tif", names)
    assert inspect_slide(tmp_path / "a.tif").channel_names == names


def test_whoever_asks_for_a_focal_plane_gets_it_though_pages_have_names(tmp_path: Path) -> None:
    pages = write_pages(tmp_path / "a.tif", MARKERS)
    slide = inspect_slide(tmp_path / "a.tif", SlideSettings(z=3))
    assert (slide.size_c, slide.size_z, slide.z) == (1, 4, 3)
    np.testing.assert_array_equal(read_all(slide)[0, 0], pages)


def test_pages_of_an_array_in_one_piece(tmp_path: Path) -> None:
    pages = np.random.default_rng(0).integers(0, 999, (4, *SHAPE), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", pages, photometric="minisblack")
    assert inspect_slide(tmp_path / "a.tif").size_z == 4
    chosen = inspect_slide(tmp_path / "a.tif", SlideSettings(pages="channels"))
    assert chosen.size_c == 4
    np.testing.assert_array_equal(read_all(chosen)[0, :, 0], pages)


def test_colour_pages_are_focal_planes(tmp_path: Path) -> None:
    write_pages(tmp_path / "a.tif", ("a", "b", "c", "d"), samples=3)
    slide = inspect_slide(tmp_path / "a.tif")
    assert (slide.is_rgb, slide.size_c, slide.size_z) == (True, 3, 4)


@pytest.mark.parametrize("pages", ["auto", "channels", "z"])
def test_what_the_file_says_isnt_overruled(tmp_path: Path, pages: Any) -> None:
    image = np.random.default_rng(0).integers(0, 999, (4, *SHAPE), np.uint16)
    for name, options, expected in (
        ("a.ome.tif", {"ome": True, "metadata": {"axes": "CYX"}}, (4, 1)),
        ("b.ome.tif", {"ome": True, "metadata": {"axes": "ZYX"}}, (1, 4)),
        ("c.tif", {"imagej": True, "metadata": {"axes": "CYX"}}, (4, 1)),
        ("d.tif", {"photometric": "rgb"}, None),
    ):
        tifffile.imwrite(tmp_path / name, image if expected else np.moveaxis(image[:3], 0, 2), **options)
        slide = inspect_slide(tmp_path / name, SlideSettings(pages=pages))
        assert (slide.size_c, slide.size_z) == (expected or (3, 1))
        assert not any("slide.pages" in warning for warning in slide.warnings)
