"""Small slides of every kind, written with tifffile and zarr, and what their pixels are. Tiles don't divide them evenly."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile
import zarr
from numpy.typing import NDArray

RNG = np.random.default_rng(0)


def pixels(*shape: int, dtype: str = "uint16") -> NDArray[Any]:
    if dtype == "bool":
        return RNG.random(shape) > 0.5
    return RNG.integers(0, 250, shape).astype(dtype)


class Made(NamedTuple):
    path: Path
    levels: list[NDArray[Any]]


def tczyx(image: NDArray[Any], axes: str) -> NDArray[Any]:
    """Any axes → TCZYX, samples after channels."""
    axes, missing = axes.lower(), [axis for axis in "tcszyx" if axis not in axes.lower()]
    image = image.reshape(image.shape + (1,) * len(missing))
    image = image.transpose([(axes + "".join(missing)).index(axis) for axis in "tcszyx"])
    return image.reshape(image.shape[0], image.shape[1] * image.shape[2], *image.shape[3:])


def over_white(rgba: NDArray[Any]) -> NDArray[Any]:
    """Lay (t, c, z, y, x) red, green, blue and alpha of 8 bits over white."""
    share = rgba[:, 3:] / 255
    return np.rint(rgba[:, :3] * share + 255 * (1 - share)).astype(np.uint8)


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
    path: Path, axes: str, sizes: dict[str, int], version: str = "0.5", n_levels: int = 2, dtype: str = "uint16",
    **options: Any,
) -> Made:  # fmt: skip
    """OME-Zarr with chunks that don't divide the image."""
    image = pixels(*(sizes[axis] for axis in axes), dtype=dtype)
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
            tuple(2 * side for side in chunks)
            if options.pop("sharded", False) or (level and version == "0.5")
            else None
        )
        array = group.create_array(
            str(level), shape=image.shape, dtype=image.dtype, chunks=chunks, shards=shards, **options
        )
        array[...] = image
        levels.append(tczyx(image, axes).astype("uint8" if dtype == "bool" else image.dtype.newbyteorder("=")))
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
    expected = over_white(tczyx(rgba, "YXS"))
    yield "rgba", write_tiff(folder / "rgba.tif", rgba, "", expected, photometric="rgb", extrasamples=["unassalpha"])
    yield "stack", write_tiff(folder / "stack.tif", pixels(5, 60, 70, dtype="float32"), "ZYX", compression="zlib")
    bits = pixels(60, 71, dtype="bool")
    for kind, options in {"": {}, " tiles": {"tile": (32, 48), "compression": "zlib"}}.items():  # handed out as 0 and 1
        expected = tczyx(bits, "YX").astype("uint8")
        yield f"bits{kind}", write_tiff(folder / f"bits{kind}.tif", bits, "YX", expected, **options)
    for dtype, byteorder in itertools.product(("uint64", "int64", "uint32", "float64"), "<>"):
        for kind, options in {"": {}, " tiles": {"tile": (32, 48), "compression": "zlib"}}.items():
            name = f"{dtype}{kind} {'little' if byteorder == '<' else 'big'}-endian"
            yield (
                name,
                write_tiff(folder / f"{name}.tif", pixels(60, 71, dtype=dtype), "YX", byteorder=byteorder, **options),
            )
    hyper = pixels(2, 2, 3, 40, 50)
    yield "imagej", write_tiff(folder / "imagej.tif", hyper, "TZCYX", imagej=True, metadata={"axes": "TZCYX"})
    for axes in ("CYX", "TCZYX", "ZCTYX", "CTZYX", "YXS", "ZYXS"):
        yield f"ome-tiff {axes}", write_pyramid(folder / f"{axes}.ome.tif", axes, sizes)
    yield "generic pyramid", write_pyramid(folder / "generic.tif", "YX", sizes, subifds=False)
    yield "generic rgb pyramid", write_pyramid(folder / "generic rgb.tif", "YXS", sizes, subifds=False)
    for axes, version in itertools.product(("yx", "cyx", "zyx", "tczyx", "yxc"), ("0.4", "0.5")):
        yield f"ome-zarr {version} {axes}", write_zarr(folder / f"{axes}{version}.ome.zarr", axes, small, version)
    for version, dtype in (("0.4", ">u2"), ("0.4", ">u8"), ("0.5", "uint64"), ("0.4", "bool"), ("0.5", "bool")):
        name = f"{version} {dtype.replace('>', 'big-endian ')}"
        yield f"ome-zarr {name}", write_zarr(folder / f"{name}.ome.zarr", "yx", small, version, dtype=dtype)
    yield "ome-zarr sharded", write_zarr(folder / "sharded.zarr", "czyx", small, sharded=True)
