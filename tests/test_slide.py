"""Reading slides: what a file says of itself, any region at any level, and every way in which a file can be broken."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from slidesam.tasks.config import SlideSettings
from slidesam.tasks.errors import SettingsError, SlideError
from slidesam.tasks.grid import Region
from slidesam.tasks.slide import Slide, SlideReader, open_slide, slide_name
from zarr.codecs import BloscCodec

RGB = ("red", "green", "blue")
RNG = np.random.default_rng(0)


def pixels(*shape: int, dtype: str = "uint16") -> NDArray[Any]:
    if dtype == "bool":
        return RNG.random(shape) > 0.5
    return RNG.integers(0, 250, shape).astype(dtype)


# --- Generated slides: name → path and the pixels of each level as (t, c, z, y, x). Tiles don't divide the sizes evenly.


class Made(NamedTuple):
    path: Path
    levels: list[NDArray[Any]]


def tczyx(image: NDArray[Any], axes: str) -> NDArray[Any]:
    """Any axes → TCZYX, samples after channels."""
    axes, missing = axes.lower(), [axis for axis in "tcszyx" if axis not in axes.lower()]
    image = image.reshape(image.shape + (1,) * len(missing))
    image = image.transpose([(axes + "".join(missing)).index(axis) for axis in "tcszyx"])
    return image.reshape(image.shape[0], image.shape[1] * image.shape[2], *image.shape[3:])


def write_tiff(
    path: Path, image: NDArray[Any], axes: str, expected: NDArray[Any] | None = None, **options: Any
) -> Made:
    tifffile.imwrite(path, image, **options)
    return Made(path, [tczyx(image, axes) if expected is None else expected])


def write_pyramid(path: Path, axes: str, sizes: dict[str, int], subifds: bool = True) -> Made:
    """OME-TIFF with SubIFDs, or a generic pyramid of pages."""
    image = pixels(*(sizes[axis] for axis in axes))
    step = tuple(slice(None, None, 2) if axis in "YX" else slice(None) for axis in axes)
    levels = [image, image[step], image[step][step]]
    options: dict[str, Any] = {
        "tile": (32, 48),
        "compression": "zlib",
        "photometric": "rgb" if "S" in axes else "minisblack",
    }
    with tifffile.TiffWriter(path, ome=subifds) as writer:
        first = {"subifds": 2, "metadata": {"axes": axes}} if subifds else {"metadata": None}
        writer.write(levels[0], **first, **options)
        for level in levels[1:]:
            writer.write(level, subfiletype=1, metadata=None, **options)
    return Made(path, [tczyx(level, axes) for level in levels])


def write_zarr(
    path: Path, axes: str, sizes: dict[str, int], version: str = "0.5", n_levels: int = 2, **options: Any
) -> Made:
    """OME-Zarr with chunks that don't divide the image."""
    image = pixels(*(sizes[axis] for axis in axes))
    step = tuple(slice(None, None, 2) if axis in "yx" else slice(None) for axis in axes)
    kinds = {"t": "time", "c": "channel"}
    metadata: dict[str, Any] = {
        "axes": [{"name": axis, "type": kinds.get(axis, "space")} for axis in axes],
        "datasets": [],
    }
    for axis in metadata["axes"]:
        axis |= {"unit": "nanometer"} if axis["name"] in "yx" else {}
    group = zarr.create_group(path, zarr_format=3 if version == "0.5" else 2)
    levels = []
    for level in range(n_levels):
        chunks = tuple({"y": 33, "x": 40}.get(axis, 2) for axis in axes)
        shards = (
            tuple(2 * side for side in chunks) if options.pop("sharded", False) or (level and version == "0.5") else None
        )
        array = group.create_array(
            str(level), shape=image.shape, dtype=image.dtype, chunks=chunks, shards=shards, **options
        )
        array[...] = image
        levels.append(tczyx(image, axes))
        scale = [500.0 * 2**level if axis in "yx" else 1.0 for axis in axes]
        metadata["datasets"].append(
            {"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": scale}]}
        )
        image = image[step]
    ome = {"version": version, "multiscales": [metadata if version == "0.5" else {"version": version, **metadata}]}
    group.attrs.update({"ome": ome} if version == "0.5" else ome)
    return Made(path, levels)


def make_all(folder: Path) -> Iterator[tuple[str, Made]]:
    sizes = {"T": 2, "C": 3, "Z": 2, "Y": 101, "X": 130, "S": 3}
    small = {axis.lower(): size for axis, size in sizes.items()}
    rgb, grey = pixels(101, 130, 3, dtype="uint8"), pixels(101, 130)
    for name, options in {
        "plain": {}, "strips": {"rowsperstrip": 7, "compression": "lzw"}, "big-endian": {"byteorder": ">", "rowsperstrip": 9},
        "tiles": {"tile": (32, 48)}, "bigtiff": {"bigtiff": True, "compression": "zstd", "predictor": True},
    }.items():  # fmt: skip
        yield f"grey {name}", write_tiff(folder / f"grey {name}.tif", grey, "YX", **options)
        yield f"rgb {name}", write_tiff(folder / f"rgb {name}.tif", rgb, "YXS", photometric="rgb", **options)
    separate = {"photometric": "rgb", "planarconfig": "separate"}
    yield "rgb separate", write_tiff(folder / "separate.tif", np.moveaxis(rgb, 2, 0), "SYX", tile=(16, 16), **separate)
    rgba = np.dstack([rgb, rgb[..., :1]])
    yield (
        "rgba",
        write_tiff(folder / "rgba.tif", rgba, "", tczyx(rgb, "YXS"), photometric="rgb", extrasamples=["unassalpha"]),
    )
    yield "stack", write_tiff(folder / "stack.tif", pixels(5, 60, 70, dtype="float32"), "ZYX", compression="zlib")
    bits = pixels(60, 71, dtype="bool")
    yield "bits", write_tiff(folder / "bits.tif", bits, "YX")
    hyper = pixels(2, 2, 3, 40, 50)
    yield "imagej", write_tiff(folder / "imagej.tif", hyper, "TZCYX", imagej=True, metadata={"axes": "TZCYX"})
    for axes in ("CYX", "TCZYX", "ZCTYX", "CTZYX", "YXS", "ZYXS"):
        yield f"ome-tiff {axes}", write_pyramid(folder / f"{axes}.ome.tif", axes, sizes)
    yield "generic pyramid", write_pyramid(folder / "generic.tif", "YX", sizes, subifds=False)
    yield "generic rgb pyramid", write_pyramid(folder / "generic rgb.tif", "YXS", sizes, subifds=False)
    for axes, version in itertools.product(("yx", "cyx", "zyx", "tczyx", "yxc"), ("0.4", "0.5")):
        yield f"ome-zarr {version} {axes}", write_zarr(folder / f"{axes}{version}.ome.zarr", axes, small, version)
    yield "ome-zarr sharded", write_zarr(folder / "sharded.zarr", "czyx", small, sharded=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    return dict(make_all(tmp_path_factory.mktemp("slides")))


def test_any_region_of_any_format_is_what_was_written(made: dict[str, Made]) -> None:
    opened = {name: open_slide(each.path) for name, each in made.items()}
    for name, slide in opened.items():
        shapes = [level.shape for level in made[name].levels]
        assert [(slide.size_t, slide.size_c, slide.size_z), slide.dtype] == [
            shapes[0][:3],
            made[name].levels[0].dtype,
        ], name
        assert [level.shape for level in slide.levels] == [shape[3:] for shape in shapes], name
        assert slide.is_rgb == any(word in name for word in ("rgb", "YXS")), name
        assert Slide.model_validate_json(slide.model_dump_json()) == slide
    readers = {name: SlideReader(slide) for name, slide in opened.items()}

    @settings(max_examples=400, deadline=None)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(made)))
        level = data.draw(st.integers(0, len(made[name].levels) - 1))
        whole = made[name].levels[level]
        (_, size_c, _, height, width) = whole.shape
        ys, xs = (
            sorted(data.draw(st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True))) for n in (height, width)
        )
        channels = data.draw(st.none() | st.lists(st.integers(0, size_c - 1), min_size=1, max_size=4))
        region = Region(ys[0], xs[0], ys[1], xs[1])
        image = readers[name].read(region, level, channels)
        chosen = list(opened[name].channels) if channels is None else channels
        np.testing.assert_array_equal(image, whole[0, chosen, 0][(slice(None), *region.slices)].transpose(1, 2, 0))
        assert image.dtype == whole.dtype
        assert image.flags.c_contiguous
        index = tuple(data.draw(st.integers(-n, n - 1) | st.slices(n)) for n in whole.shape[:3])
        view = readers[name].tczyx(level)
        np.testing.assert_array_equal(view[(*index, *region.slices)], whole[(*index, *region.slices)])
        assert (view.shape, view.dtype) == (whole.shape, whole.dtype)

    check()
    for reader in readers.values():
        reader.close()


def test_settings_choose_plane_and_channels(made: dict[str, Made]) -> None:
    whole = made["imagej"].levels[0]
    slide = open_slide(made["imagej"].path, SlideSettings(t=1, z=1, channels=(2, "channel 0")))
    with SlideReader(slide) as reader:
        np.testing.assert_array_equal(
            reader.read(Region(3, 4, 30, 40)), np.moveaxis(whole[1, [2, 0], 1, 3:30, 4:40], 0, 2)
        )
        for wrong in (Region(0, 0, 41, 9), Region(5, 5, 5, 9), Region(-1, 0, 4, 4)):
            with pytest.raises(IndexError):
                reader.read(wrong)


def test_threads_may_share_a_reader(made: dict[str, Made]) -> None:
    with SlideReader(open_slide(made["ome-tiff YXS"].path)) as reader, ThreadPoolExecutor(4) as pool:
        read = list(pool.map(lambda y: reader.read(Region(y, 0, y + 40, 130)), list(range(60)) * 4))
    for y, image in zip(list(range(60)) * 4, read, strict=True):
        np.testing.assert_array_equal(image, made["ome-tiff YXS"].levels[0][0, :, 0, y : y + 40].transpose(1, 2, 0))


def test_only_what_a_region_touches_is_read(tmp_path: Path) -> None:
    slide = open_slide(write_tiff(tmp_path / "a.tif", pixels(64, 96), "YX", tile=(32, 32), compression="zlib").path)
    with tifffile.TiffFile(slide.path) as tiff:
        offset = tiff.pages.first.dataoffsets[4]
    with slide.path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(b"\0" * 40)
    with SlideReader(slide) as reader:
        reader.read(Region(0, 0, 32, 96))
        reader.read(Region(32, 64, 64, 96))
        with pytest.raises(SlideError, match=r"^a\.tif: level 0, rows 30-40, columns 40-50 can't be decoded \("):
            reader.read(Region(30, 40, 40, 50))


# --- What files say of themselves.


@pytest.mark.parametrize(
    ("path", "format", "n_series", "tcz", "dtype", "shapes", "mpp", "names", "chosen"),
    [
        ("svs_cmu1_small/CMU-1-Small-Region.svs", "Aperio SVS", 4, (1, 3, 1), "uint8", [(2967, 2220)], 0.499, RGB, (0, 1, 2)),
        ("tiff_pyramid_generic/small.svs", "Aperio SVS", 2, (1, 3, 1), "uint8", [(16, 16)], 0.499, RGB, (0, 1, 2)),
        ("he_instanseg/HE_example.tif", "OME-TIFF", 1, (1, 3, 1), "uint8", [(1484, 1380)], 0.5001, RGB, (0, 1, 2)),
        ("ometiff_pyramid/2048x2048_ome6_tiled.ome.tif", "OME-TIFF", 1, (1, 3, 1), "uint16", [(2048, 2048), (1024, 1024)], None, 3, (0,)),
        ("ometiff_pyramid/xy_12bit__plant.ome.tiff", "OME-TIFF", 1, (1, 1, 1), "uint16", [(512, 512), (256, 256)], 2.4859, ("CH2",), (0,)),
        ("ometiff_nd/4D-series.ome.tif", "OME-TIFF", 1, (7, 1, 5), "int8", [(167, 439)], None, 1, (0,)),
        ("ometiff_nd/multi-channel-z-series.ome.tif", "OME-TIFF", 1, (1, 3, 5), "int8", [(167, 439)], None, 3, (0,)),
        ("fluo_instanseg/Fluorescence_example.tif", "ImageJ TIFF", 1, (1, 2, 1), "uint8", [(450, 450)], None, 2, (0,)),
        ("stardist_images/img3d.tif", "TIFF", 1, (1, 1, 31), "uint16", [(61, 57)], None, 1, (0,)),
        ("tiff_pyramid_generic/rgba_geotiff.tiff", "TIFF", 1, (1, 3, 1), "uint8", [(600, 600), (300, 300)], None, RGB, (0, 1, 2)),
        ("tiff_pyramid_generic/rgb_geotiff.tiff", "TIFF", 1, (1, 3, 1), "uint16", [(256, 256)], None, RGB, (0, 1, 2)),
        ("tiff_pyramid_generic/test_orient6.tif", "TIFF", 1, (1, 1, 1), "uint8", [(180, 120), (90, 60), (45, 30)], None, 1, (0,)),
        ("ngff_fiji_5d/5d_dataset_v4.ome.zarr", "OME-Zarr 0.4", 1, (4, 3, 16), "uint8", [(64, 64), (32, 32)], None, ("lynEGFP", "NLStdTomato", "lynEGFP"), (0,)),
        ("ngff_fiji_5d/5d_dataset_v5.ome.zarr", "OME-Zarr 0.5", 1, (4, 3, 16), "uint8", [(64, 64), (32, 32)], None, ("lynEGFP", "NLStdTomato", "lynEGFP"), (0,)),
        ("ngff_tubhiswt/tubhiswt4D_sub.zarr", "OME-Zarr 0.4", 1, (3, 1, 2), "uint8", [(512, 512), (256, 256), (128, 128)], 1.0, ("channel_0",), (0,)),
        ("zarr_bf2raw/bf2raw.zarr", "bioformats2raw Zarr 0.4", 2, (1, 1, 1), "uint8", [(8, 8)], None, ("Channel 0",), (0,)),
        ("zarr_bf2raw/bf2raw.zarr/1", "bioformats2raw Zarr 0.4", 1, (1, 1, 1), "uint8", [(8, 8)], None, ("Channel 0",), (0,)),
        ("zarr_bf2raw/hcs.zarr/A/1/0", "OME-Zarr 0.4", 1, (1, 3, 1), "uint8", [(64, 64)], 1.0, ("Name", "Channel 1", "Channel 2"), (0,)),
        ("zarr_bf2raw_old/bioformats-zarr", "bioformats2raw Zarr 0.1", 1, (1, 3, 1), "int8", [(167, 439), (83, 219)], None, 3, (0,)),
    ],
)  # fmt: skip
def test_real_files(shared_data, path, format, n_series, tcz, dtype, shapes, mpp, names, chosen) -> None:
    slide = open_slide(shared_data / path)
    assert (slide.format, slide.n_series, slide.dtype) == (format, n_series, dtype)
    assert (slide.size_t, slide.size_c, slide.size_z) == tcz
    assert [level.shape for level in slide.levels] == shapes
    assert slide.mpp == (None if mpp is None else pytest.approx((mpp, mpp), rel=1e-4))
    assert slide.channel_names == (names if isinstance(names, tuple) else tuple(f"channel {i}" for i in range(names)))
    assert slide.channels == chosen
    assert any("pixel size isn't known" in warning for warning in slide.warnings) == (mpp is None)
    assert any("orientation" in warning for warning in slide.warnings) == ("orient" in path)
    if not (shared_data / path).is_dir():
        with SlideReader(slide) as reader, tifffile.TiffFile(shared_data / path) as tiff:
            axes = tiff.series[0].axes.replace("Q", "Z")
            for level in range(len(shapes)):
                expected = tczyx(tiff.series[0].levels[level].asarray(), axes)
                np.testing.assert_array_equal(reader.tczyx(level)[...], expected[:, : slide.size_c])


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
    ],
)
def test_pixel_sizes_of_tiffs(tmp_path: Path, options: dict[str, Any], mpp: tuple[float, float] | None) -> None:
    slide = open_slide(
        write_tiff(tmp_path / ("a.ome.tif" if "ome" in options else "a.tif"), pixels(9, 9), "YX", **options).path
    )
    assert slide.mpp == (None if mpp is None else pytest.approx(mpp))
    replaced = open_slide(slide.path, SlideSettings(mpp=0.3))
    assert replaced.mpp == (0.3, 0.3)
    assert any("replaced" in warning for warning in replaced.warnings) == (mpp is not None)


def test_pixel_size_levels_and_names_of_zarr(made: dict[str, Made]) -> None:
    slide = open_slide(made["ome-zarr 0.5 cyx"].path)
    assert slide.mpp == (0.5, 0.5)
    assert [level.downsample for level in slide.levels] == [(1.0, 1.0), (2.0, 2.0)]
    group = zarr.open_group(slide.path)
    for labels, chosen in ((("a", "b", "Hoechst"), (2,)), (RGB, (0, 1, 2)), (("c", "d", "e"), (0,))):
        omero = {"channels": [{"label": label, "color": color} for label, color in zip(labels, "FGB", strict=True)]}
        group.attrs["ome"] = {**group.attrs["ome"], "omero": omero}
        slide = open_slide(made["ome-zarr 0.5 cyx"].path)
        assert (slide.channel_names, slide.channels) == (labels, chosen)


@pytest.mark.parametrize(
    ("path", "name"),
    [("x/CMU-1.svs", "CMU-1"), ("a.b.OME.TIF", "a.b"), ("s.ome.zarr/", "s"), (".svs", "svs"), ("/", "slide"), ("..", None),
     ("p.zarr/A/1/0", "p_A_1_0"), ("new\nline.tif", "new_line"), ("v1.2", "v1.2"), ("...tif", "tif")],
)  # fmt: skip
def test_names(path: str, name: str | None) -> None:
    assert slide_name(path) == name or (name is None and slide_name(path))


@given(st.text(min_size=1))
def test_names_can_be_file_names(text: str) -> None:
    name = slide_name(text.replace("\0", "x"))
    assert name.strip("._ ")
    assert not set("/\\\n\0") & set(name)


def test_identity_follows_content(made: dict[str, Made]) -> None:
    for path, touched in ((made["stack"].path, made["stack"].path), (made["ome-zarr 0.4 zyx"].path, "0/.zarray")):
        before = open_slide(path).identity
        assert open_slide(path).identity == before
        with (path / touched).open("ab") as stream:
            stream.write(b" ")
        after = open_slide(path).identity
        assert (after.path, after.size) == (str(path.resolve()), before.size + 1)
        assert after.digest != before.digest
        assert after.modified > before.modified


# --- What is refused, and in which words.


def refusals(folder: Path) -> Iterator[tuple[Path, str]]:
    yield folder / "missing.svs", "isn't there"
    for name, content, words in (
        ("empty.tif", b"", "empty"), ("text.svs", b"hello, I am text", "isn't a TIFF"), ("png.tif", b"\x89PNG\r\n", "PNG"),
        ("pointer.tif", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"), ("header.tif", b"II*\0\x08\0\0\0", ""),
    ):  # fmt: skip
        (folder / name).write_bytes(content)
        yield folder / name, words
    (folder / "folder").mkdir()
    yield folder / "folder", "without Zarr metadata"
    for name in ("two/a.zarr", "two/b.zarr"):
        zarr.create_group(folder / name)
    yield folder / "two", "several Zarr folders (a.zarr, b.zarr)"
    yield folder / "two/a.zarr", "no OME-Zarr metadata"
    zarr.create_group(folder / "p.zarr", attributes={"ome": {"plate": {"wells": [{"path": "B/3"}]}}})
    yield folder / "p.zarr", "such as p.zarr/B/3/0"
    yield write_tiff(folder / "complex.tif", pixels(8, 8).astype("complex64"), "YX").path, "not real numbers"
    loop = write_tiff(folder / "loop.tif", pixels(200, 8, 8), "ZYX", photometric="minisblack", metadata=None).path
    with tifffile.TiffFile(loop) as tiff:
        last, first = tiff.pages[199], tiff.pages[1]
    data = bytearray(loop.read_bytes())
    end = last.offset + 2 + 12 * len(last.tags)
    data[end : end + 4] = first.offset.to_bytes(4, "little")
    loop.write_bytes(data)
    yield loop, "circle"
    for tag, value, words in (
        (256, 10**9, "declares 1000000000 × 1000000000 pixels"),
        (256, 0, "empty"),
        (322, 0, "tiles of"),
    ):
        lie = write_tiff(folder / f"lie{tag}{value}.tif", pixels(64, 64), "YX", tile=(32, 32), compression="zlib").path
        with tifffile.TiffFile(lie, mode="r+b") as tiff:
            for each in (tag, tag + 1):
                tiff.pages.first.tags[each].overwrite(value, dtype="I")
        yield lie, words
    for name, shape, chunks, words in (
        ("wide", 10**9, 64, "declares"),
        ("chunk", 10**5, 10**5, "GiB"),
        ("dust", 999, 1, "small"),
    ):
        group = zarr.open_group(write_zarr(folder / f"{name}.zarr", "yx", {"y": 4, "x": 4}, n_levels=1).path)
        group.create_array("0", shape=(shape, shape), chunks=(chunks, chunks), dtype="uint8", overwrite=True)
        yield folder / f"{name}.zarr", words
    outside = write_zarr(folder / "outside.zarr", "yx", {"y": 9, "x": 9}, n_levels=1).path
    (outside / "zarr.json").write_text((outside / "zarr.json").read_text().replace('"path": "0"', '"path": "../two"'))
    yield outside, "outside the folder"


def test_refusals_say_what_is_wrong(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for path, words in refusals(tmp_path):
        with pytest.raises(SlideError) as caught:
            open_slide(path)
        message = str(caught.value)
        assert path.name in message
        assert words in message, message
        assert "\n" not in message
        assert ";" in message
    assert capfd.readouterr() == ("", "")


def test_multi_file_ome_tiff_is_refused(shared_data: Path) -> None:
    with pytest.raises(SlideError, match=r"multifile-Z2.* several files .*companion.* bfconvert"):
        open_slide(shared_data / "ometiff_multifile/multifile-Z2.ome.tiff")


@pytest.mark.parametrize(
    "wrong", [{"series": 1}, {"t": 2}, {"z": 2}, {"channels": ("DAPI",)}, {"channels": (3,)}, {"channels": ()}]
)
def test_settings_out_of_range(made: dict[str, Made], wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=f"^setting slide.{next(iter(wrong))}: "):
        open_slide(made["imagej"].path, SlideSettings(**wrong))


def test_file_changed_since_inspection(made: dict[str, Made], tmp_path: Path) -> None:
    slide = open_slide(made["stack"].path)
    other = write_tiff(tmp_path / "b.tif", pixels(5, 60, 71, dtype="float32"), "ZYX").path
    with pytest.raises(SlideError, match=r"^b\.tif: has changed"):
        SlideReader(slide.model_copy(update={"path": other}))


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_blosc_chunk_cut_short_is_an_error(tmp_path: Path, version: str) -> None:
    """Blosc's decoder reads on past the end of such a chunk and returns what lies in memory there."""
    codec = {"compressors": BloscCodec()} if version == "0.5" else {}
    slide = open_slide(write_zarr(tmp_path / "a.zarr", "yx", {"y": 30, "x": 40}, version, n_levels=1, **codec).path)
    chunk = slide.path / ("0/c/0/0" if version == "0.5" else "0/0.0")
    for size in (0, 5, 100, chunk.stat().st_size - 1):
        os.truncate(chunk, size)
        with SlideReader(slide) as reader, pytest.raises(SlideError, match="can't be decoded"):
            reader.read(Region(0, 0, 30, 40))
    chunk.unlink()
    assert any("1 of 1 chunks" in warning for warning in open_slide(slide.path).warnings)


# --- Files that are broken in ways nobody thought of. In a process of their own, whose memory is bounded.

READ_EVERYTHING = """
import json, resource, sys, time
import numpy, tifffile, zarr, imagecodecs
from pathlib import Path
from slidesam.tasks.errors import SlideError
from slidesam.tasks.grid import BlockGrid
from slidesam.tasks.slide import SlideReader, open_slide

pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 4 * 2**30,) * 2)
for path in sys.stdin.read().splitlines():
    start, told, read = time.monotonic(), [], 0
    try:
        slide = open_slide(path)
        with SlideReader(slide) as reader:
            for level in range(len(slide.levels)):
                for block in list(BlockGrid(slide.levels[level].shape, (512, 512), 0))[:100]:
                    try:
                        reader.read(block.inner, level)
                        read += 1
                    except SlideError as error:
                        told.append(str(error))
    except SlideError as error:
        told.append(str(error))
    except BaseException as error:
        told.append(f"{type(error).__name__} ESCAPED: {error}")
    print(json.dumps([path, told[:3], read, time.monotonic() - start]), flush=True)
"""


def assert_readable_or_refused(paths: list[Path]) -> dict[str, int]:
    """Each file opens and reads, or is refused in one line with its name; returns the number of blocks read."""
    names = "\n".join(str(path) for path in paths)
    done = subprocess.run(
        [sys.executable, "-c", READ_EVERYTHING], input=names, capture_output=True, text=True, timeout=120
    )
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [result[0] for result in results] == [str(path) for path in paths], done.stderr[-2000:]
    for path, told, _, seconds in results:
        for message in told:
            assert Path(path).name in message, message
            assert "ESCAPED" not in message, message
            assert "\n" not in message
        assert seconds < 5, path
    assert done.stderr.replace("Task was destroyed but it is pending!", "") == "" or "zarr" in done.stderr, done.stderr
    return {path: read for path, _, read, _ in results}


def test_hostile_files(shared_data: Path) -> None:
    folders = [shared_data / name for name in ("hostile_tiff", "hostile_zarr", "derived_hostile")]
    paths = [path for folder in folders for path in sorted(folder.iterdir()) if path.suffix != ".md"]
    paths += sorted((shared_data / "hostile_zarr/broken_v05.ome.zarr").glob("*/*/*"))
    read = assert_readable_or_refused(paths)
    assert read[str(shared_data / "hostile_tiff/pillow_hopper_bigtiff.tif")] == 1


def test_truncated_anywhere(made: dict[str, Made], tmp_path: Path, request: pytest.FixtureRequest) -> None:
    sources = [made["ome-tiff TCZYX"].path, made["rgb tiles"].path, made["generic pyramid"].path]
    data = Path(__file__).parents[2] / "shared/data/svs_cmu1_small/CMU-1-Small-Region.svs"
    sources += [data] if data.is_file() else []
    cut: list[Path] = []
    for source in sources:
        content = source.read_bytes()
        for size in np.linspace(0, len(content) - 1, 50 if source == data else 25, dtype=int):
            cut.append(tmp_path / f"{size}{source.name}")
            cut[-1].write_bytes(content[:size])
    read = assert_readable_or_refused(cut)
    assert not any(read[str(path)] for path in cut if path.stat().st_size < 64)


def test_flipped_bytes(made: dict[str, Made], tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    paths: list[Path] = []
    for name in ("ome-tiff CYX", "rgb strips", "rgb separate", "imagej", "bits", "generic rgb pyramid"):
        content = np.frombuffer(made[name].path.read_bytes(), np.uint8)
        for number in range(60):
            broken = content.copy()
            broken[rng.integers(0, min(600, len(broken)), rng.integers(1, 6))] = rng.choice([0, 1, 127, 255])
            paths.append(tmp_path / f"{number} {made[name].path.name}")
            paths[-1].write_bytes(broken.tobytes())
    assert_readable_or_refused(paths)
