"""Inspecting slides: what files say of themselves, and what makes a slide this one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr

from slidesam.tasks.grid import Region
from slidesam.tasks.settings.sections import SlideSettings
from slidesam.tasks.slides.inspect import inspect_slide
from slidesam.tasks.slides.reader import SlideReader
from tests.support.made_slides import Made, make_all, over_white, pixels, tczyx, write_tiff, write_zarr

RGB, COLOURS = ("red", "green", "blue"), ("FF0000", "00FF00", "0000FF")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    return dict(make_all(tmp_path_factory.mktemp("slides")))


# file, kind, images in it, (t, c, z), dtype, levels, mpp, names of the channels (or how many nameless ones)
REAL_FILES = """
svs_cmu1_small/CMU-1-Small-Region.svs        | Aperio SVS              | 4 | 1 3 1  | uint8  | 2967x2220                | 0.499  | red,green,blue
tiff_pyramid_generic/small.svs               | Aperio SVS              | 2 | 1 3 1  | uint8  | 16x16                    | 0.499  | red,green,blue
tiff_pyramid_generic/rgba_geotiff.tiff       | TIFF                    | 1 | 1 3 1  | uint8  | 600x600 300x300          | -      | red,green,blue
tiff_pyramid_generic/rgb_geotiff.tiff        | TIFF                    | 1 | 1 3 1  | uint16 | 256x256                  | -      | red,green,blue
tiff_pyramid_generic/test_orient6.tif        | TIFF                    | 1 | 1 1 1  | uint8  | 180x120 90x60 45x30      | -      | 1
he_instanseg/HE_example.tif                  | OME-TIFF                | 1 | 1 3 1  | uint8  | 1484x1380                | 0.5001 | red,green,blue
ometiff_pyramid/2048x2048_ome6_tiled.ome.tif | OME-TIFF                | 1 | 1 3 1  | uint16 | 2048x2048 1024x1024      | -      | 3
ometiff_pyramid/xy_12bit__plant.ome.tiff     | OME-TIFF                | 1 | 1 1 1  | uint16 | 512x512 256x256          | 2.4859 | CH2
ometiff_nd/4D-series.ome.tif                 | OME-TIFF                | 1 | 7 1 5  | int8   | 167x439                  | -      | 1
ometiff_nd/multi-channel-z-series.ome.tif    | OME-TIFF                | 1 | 1 3 5  | int8   | 167x439                  | -      | 3
fluo_instanseg/Fluorescence_example.tif      | ImageJ TIFF             | 1 | 1 2 1  | uint8  | 450x450                  | -      | 2
stardist_images/img3d.tif                    | TIFF                    | 1 | 1 1 31 | uint16 | 61x57                    | -      | 1
ngff_fiji_5d/5d_dataset_v4.ome.zarr          | OME-Zarr 0.4            | 1 | 4 3 16 | uint8  | 64x64 32x32              | -      | lynEGFP,NLStdTomato,lynEGFP
ngff_fiji_5d/5d_dataset_v5.ome.zarr          | OME-Zarr 0.5            | 1 | 4 3 16 | uint8  | 64x64 32x32              | -      | lynEGFP,NLStdTomato,lynEGFP
ngff_tubhiswt/tubhiswt4D_sub.zarr            | OME-Zarr 0.4            | 1 | 3 1 2  | uint8  | 512x512 256x256 128x128  | 1.0    | channel_0
zarr_bf2raw/bf2raw.zarr                      | bioformats2raw Zarr 0.4 | 2 | 1 1 1  | uint8  | 8x8                      | -      | Channel 0
zarr_bf2raw/bf2raw.zarr/1                    | bioformats2raw Zarr 0.4 | 1 | 1 1 1  | uint8  | 8x8                      | -      | Channel 0
zarr_bf2raw/hcs.zarr/A/1/0                   | OME-Zarr 0.4            | 1 | 1 3 1  | uint8  | 64x64                    | 1.0    | Name,Channel 1,Channel 2
zarr_bf2raw_old/bioformats-zarr              | bioformats2raw Zarr 0.1 | 1 | 1 3 1  | int8   | 167x439 83x219           | -      | 3
"""  # noqa: E501 (a table)


@pytest.mark.parametrize("row", REAL_FILES.strip().splitlines(), ids=lambda row: row.split(" ")[0])
def test_real_files(shared_data: Path, row: str) -> None:
    path, kind, n_series, tcz, dtype, shapes, mpp, names = (cell.strip() for cell in row.split("|"))
    slide = inspect_slide(shared_data / path)
    assert (slide.format, slide.n_series, slide.dtype) == (kind, int(n_series), dtype)
    assert f"{slide.size_t} {slide.size_c} {slide.size_z}" == tcz
    assert " ".join(f"{level.shape[0]}x{level.shape[1]}" for level in slide.levels) == shapes
    assert slide.mpp == (None if mpp == "-" else pytest.approx((float(mpp), float(mpp)), rel=1e-4))
    assert ",".join(slide.channel_names) == (
        ",".join(f"channel {i}" for i in range(int(names))) if names.isdigit() else names
    )
    assert slide.channels == ((0, 1, 2) if slide.is_rgb else (0,))
    assert any("pixel size isn't known" in warning for warning in slide.warnings) == (mpp == "-")
    assert any("orientation" in warning for warning in slide.warnings) == ("orient" in path)
    if slide.path.is_file():
        with SlideReader(slide) as reader, tifffile.TiffFile(slide.path) as tiff:
            for level, series in enumerate(tiff.series[0].levels):
                expected = tczyx(series.asarray(), series.axes.replace("Q", "Z"))
                t, _, z, y, x = expected.shape
                if "rgba" in path:
                    expected = over_white(expected)
                pixels_read = reader.fetch(level, range(t), range(slide.size_c), range(z), Region(0, 0, y, x))
                np.testing.assert_array_equal(pixels_read, expected)


@pytest.mark.parametrize(
    ("options", "mpp"),
    [
        ({"resolution": (40_000, 20_000), "resolutionunit": "CENTIMETER"}, (0.5, 0.25)),
        ({"resolution": (50_800, 50_800), "resolutionunit": "INCH"}, (0.5, 0.5)),
        ({"resolution": (72, 72), "resolutionunit": "INCH"}, None),
        ({"resolution": (4, 4), "resolutionunit": "NONE"}, None),
        ({"resolution": (4, 4), "imagej": True, "metadata": {"unit": "um"}}, (0.25, 0.25)),
        ({"resolution": (4, 4), "imagej": True, "metadata": {"unit": "\\u00B5m"}}, (0.25, 0.25)),
        ({"resolution": (4, 4), "imagej": True, "metadata": {"unit": "pixel"}}, None),
        (
            {"ome": True, "metadata": {"PhysicalSizeX": 250, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.5}},
            (0.5, 0.25),
        ),
        ({"ome": True, "metadata": {"PhysicalSizeX": 1, "PhysicalSizeXUnit": "pixel", "PhysicalSizeY": 1}}, None),
        ({"ome": True, "metadata": {"PhysicalSizeX": 0, "PhysicalSizeY": 0}}, None),
        ({"description": "Aperio Image Library v1\r\n|AppMag = 40|MPP = 0.25", "metadata": None}, (0.25, 0.25)),
        ({"description": "Aperio Image Library v1\r\n|AppMag = 40", "metadata": None, "tile": (16, 16)}, None),
    ],
)
def test_pixel_sizes_of_tiffs(tmp_path: Path, options: dict[str, Any], mpp: tuple[float, float] | None) -> None:
    slide = inspect_slide(
        write_tiff(tmp_path / ("a.ome.tif" if "ome" in options else "a.tif"), pixels(9, 9), "YX", **options).path
    )
    assert slide.mpp == (None if mpp is None else pytest.approx(mpp))
    replaced = inspect_slide(slide.path, SlideSettings(mpp=0.3))
    assert replaced.mpp == (0.3, 0.3)
    assert any("replaced" in warning for warning in replaced.warnings) == (mpp is not None)


def test_pixel_size_levels_and_names_of_zarr(made: dict[str, Made]) -> None:
    slide = inspect_slide(made["ome-zarr 0.5 cyx"].path)
    assert slide.mpp == (0.5, 0.5)
    assert [level.downsample for level in slide.levels] == [(1.0, 1.0), (2.0, 2.0)]
    group = zarr.open_group(slide.path)
    for labels, chosen in ((("a", "b", "Hoechst"), (2,)), (RGB, (0, 1, 2)), (("c", "d", "e"), (0,))):
        omero = {"channels": [{"label": label, "color": color} for label, color in zip(labels, "FGB", strict=True)]}
        group.attrs["ome"] = {**group.attrs["ome"], "omero": omero}
        slide = inspect_slide(made["ome-zarr 0.5 cyx"].path)
        assert (slide.channel_names, slide.channels) == (labels, chosen)


def test_rgb_of_bioformats2raw(tmp_path: Path) -> None:
    """Three samples in one channel are colours; three channels of the same colours aren't; without metadata colours decide."""
    group = zarr.create_group(tmp_path / "a.zarr", zarr_format=2, attributes={"bioformats2raw.layout": 3})
    image = zarr.open_group(write_zarr(tmp_path / "a.zarr/0", "cyx", {"c": 3, "y": 40, "x": 50}, "0.4").path)
    for level in ("0", "1"):
        old = image[level]
        image.create_array(level, shape=old.shape, chunks=old.chunks, dtype="uint8", overwrite=True)
    image.attrs["omero"] = {"channels": [{"label": f"Channel {i}", "color": color} for i, color in enumerate(COLOURS)]}
    assert inspect_slide(tmp_path / "a.zarr").is_rgb
    (tmp_path / "a.zarr/OME").mkdir()
    digests = {inspect_slide(tmp_path / "a.zarr").identity.digest}
    for samples, names in ((3, ()), (1, ("DAPI", "FITC", "Cy5"))):
        channels = "".join(f'<Channel SamplesPerPixel="{samples}" Name="{name}"/>' for name in names or ("",))
        (tmp_path / "a.zarr/OME/METADATA.ome.xml").write_text(
            f'<OME xmlns="o"><Image><Pixels SizeX="50" SizeY="40" SizeC="3" SizeT="1" SizeZ="1" PhysicalSizeX="0.5"'
            f' PhysicalSizeY="0.5">{channels}</Pixels></Image></OME>'
        )
        slide = inspect_slide(tmp_path / "a.zarr")
        assert (slide.is_rgb, slide.channel_names, slide.mpp) == (samples == 3, names or RGB, (0.5, 0.5))
        assert slide.identity.digest not in digests
        digests.add(slide.identity.digest)
        inner = inspect_slide(tmp_path / "a.zarr/0")
        assert inner.is_rgb == slide.is_rgb
        assert inner.identity.digest not in digests
        digests.add(inner.identity.digest)
    assert group.attrs["bioformats2raw.layout"] == 3


def test_identity_follows_content(made: dict[str, Made]) -> None:
    for path, touched in ((made["stack"].path, made["stack"].path), (made["ome-zarr 0.4 zyx"].path, "0/.zarray")):
        before = inspect_slide(path).identity
        assert inspect_slide(path).identity == before
        with (path / touched).open("ab") as stream:
            stream.write(b" ")
        after = inspect_slide(path).identity
        assert (after.path, after.size) == (str(path.resolve()), before.size + 1)
        assert after.digest != before.digest
        assert after.modified > before.modified


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_identity_follows_chunks_that_arrive_later(tmp_path: Path, version: str) -> None:
    """Else a run over half a copy would be taken for one over the whole."""
    path = write_zarr(tmp_path / "a.zarr", "yx", {"y": 60, "x": 70}, version, n_levels=1).path
    whole = inspect_slide(path)
    chunk = path / ("0/c/1/1" if version == "0.5" else "0/1.1")
    content = chunk.read_bytes()
    chunk.unlink()
    half = inspect_slide(path)
    assert any("1 of 4 chunks" in warning for warning in half.warnings)
    assert half.identity.digest != whole.identity.digest
    assert half.identity == inspect_slide(path).identity
    chunk.write_bytes(content)
    assert inspect_slide(path) == whole
