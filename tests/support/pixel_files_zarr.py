"""Files of the pixel oracle that are OME-Zarr: by ome-zarr-py, by zarr, and by hand."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import numcodecs
import numpy as np
import zarr
from numpy.typing import NDArray

from tests.support.pixel_files import Combination, Pixels, noise

SIZES = {"t": 1, "c": 2, "z": 1, "y": 61, "x": 83}
CHUNKS = {"t": 1, "c": 1, "z": 1, "y": 32, "x": 48}
KINDS = {"t": "time", "c": "channel"}
BY_OWN_DECODER = "zarr by hand"


def combinations() -> Iterator[Combination]:
    """Yield all OME-Zarr folders."""
    yield from _by_ome_zarr_py()
    yield from _by_zarr()
    yield from _nested_by_zarr()
    yield from _by_hand()


def _images(axes: str, dtype: str = "uint16") -> list[NDArray[Any]]:
    image = noise(*(SIZES[axis] for axis in axes), dtype=dtype)
    step = tuple(slice(None, None, 2) if axis in "yx" else slice(None) for axis in axes)
    return [image, image[step]]


def _planes(axes: str, image: NDArray[Any]) -> Pixels:
    """Return the first time point and focal plane, (c, y, x)."""
    first = tuple(0 if axis in "tz" else slice(None) for axis in axes)
    rest = "".join(axis for axis in axes if axis not in "tz")
    image = image[first]
    moved = image[None] if "c" not in rest else np.moveaxis(image, rest.index("c"), 0)
    return moved.astype("uint8") if moved.dtype == bool else moved.astype(moved.dtype.newbyteorder("="))


def _row(
    writer: str, version: str, compression: str, depth: str, axes: str, layout: str, write: Any, levels: Sequence[Any]
) -> Combination:
    made = tuple(_planes(axes, level) for level in levels)
    return Combination(
        writer,
        f"OME-Zarr {version}",
        compression,
        "channels",
        depth,
        f"axes {axes}, {layout}",
        write,
        made,
        BY_OWN_DECODER,
    )


def _by_ome_zarr_py() -> Iterator[Combination]:
    for version in ("0.4", "0.5"):
        for axes in ("yx", "cyx", "czyx", "tczyx"):
            for dtype in ("uint8", "uint16", "float32"):
                levels = _images(axes, dtype)
                for layout in ("chunks", *(("shards",) if version == "0.5" else ())):
                    write = _ome_zarr_py(levels, axes, version, layout == "shards")
                    yield _row("ome-zarr-py", version, "its default", dtype, axes, layout, write, levels)


def _ome_zarr_py(levels: list[NDArray[Any]], axes: str, version: str, is_sharded: bool) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        import dask

        # A client that another test left behind in Dask's settings must not be asked.
        with warnings.catch_warnings(), dask.config.set(scheduler="synchronous"):
            warnings.simplefilter("ignore")
            from ome_zarr.format import FormatV04, FormatV05
            from ome_zarr.writer import write_multiscale

            chunks = tuple(CHUNKS[axis] for axis in axes)
            options: dict[str, Any] = {"chunks": chunks}
            if is_sharded:
                options["shards"] = tuple(
                    size * (2 if axis in "yx" else 1) for size, axis in zip(chunks, axes, strict=True)
                )
            group = zarr.open_group(path, mode="w", zarr_format=3 if version == "0.5" else 2)
            write_multiscale(
                levels,
                group,
                fmt=FormatV05() if version == "0.5" else FormatV04(),
                axes=list(axes),
                storage_options=options,
            )

    return write


def _metadata(axes: str, version: str, count: int) -> dict[str, Any]:
    """Return the attributes of an image of OME-Zarr 0.4 or 0.5."""
    scales = ([float(2**level) if axis in "yx" else 1.0 for axis in axes] for level in range(count))
    multiscales = {
        "axes": [{"name": axis, "type": KINDS.get(axis, "space")} for axis in axes],
        "datasets": [
            {"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": scale}]}
            for level, scale in enumerate(scales)
        ],
    }
    if version == "0.5":
        return {"ome": {"version": version, "multiscales": [multiscales]}}
    return {"multiscales": [{"version": version, **multiscales}]}


def _by_zarr() -> Iterator[Combination]:
    from zarr import codecs

    v3: dict[str, dict[str, Any]] = {
        "none": {"compressors": None}, "zstd": {"compressors": codecs.ZstdCodec()}, "gzip": {"compressors": codecs.GzipCodec()},
        "blosc": {"compressors": codecs.BloscCodec(cname="lz4", shuffle="shuffle")},
        "zstd with checksum": {"compressors": [codecs.ZstdCodec(), codecs.Crc32cCodec()]},
        "big-endian bytes": {"serializer": codecs.BytesCodec(endian="big"), "compressors": None},
    }  # fmt: skip
    for dtype in ("uint8", "uint16", "int16", "uint32", "float32", "float64", "bool"):
        for words, options in v3.items():
            if dtype != "uint16" and words not in ("zstd", "blosc"):
                continue
            yield _zarr_row("0.5", words, dtype, "cyx", "chunks", options)
            yield _zarr_row("0.5", words, dtype, "cyx", "shards", {**options, "shards": (2, 64, 96)})
    yield _zarr_row("0.5", "zstd", "uint16", "yxc", "chunks", {"filters": [codecs.TransposeCodec(order=(2, 0, 1))]})
    yield _zarr_row(
        "0.5",
        "zstd",
        "uint16",
        "cyx",
        "chunks, separator .",
        {"chunk_key_encoding": {"name": "default", "separator": "."}},
    )
    yield _zarr_row(
        "0.5",
        "zstd",
        "uint16",
        "cyx",
        "chunks, names as in version 2",
        {"chunk_key_encoding": {"name": "v2", "separator": "/"}},
    )
    v2: dict[str, Any] = {
        "none": None, "blosc": numcodecs.Blosc(), "zstd": numcodecs.Zstd(), "gzip": numcodecs.GZip(), "zlib": numcodecs.Zlib(),
    }  # fmt: skip
    for words, compressor in v2.items():
        for dtype in ("uint8", ">u2", "<f4"):
            yield _zarr_row("0.4", words, dtype, "cyx", "chunks", {"compressors": compressor})
    yield _zarr_row("0.4", "zlib", "uint16", "cyx", "chunks, order F", {"compressors": numcodecs.Zlib(), "order": "F"})
    yield _zarr_row(
        "0.4", "zlib", "uint16", "cyx", "chunks, separator .",
        {"compressors": numcodecs.Zlib(), "chunk_key_encoding": {"name": "v2", "separator": "."}},
    )  # fmt: skip


def _nested_by_zarr() -> Iterator[Combination]:
    """Yield chunks in shards in shards, and other layouts that no converter writes by itself."""
    from zarr import codecs

    numbers, inner, outer = codecs.BytesCodec(), (1, 32, 48), {"chunks": (2, 64, 96), "compressors": None}
    for layout, serializer in {
        "shards, index first": codecs.ShardingCodec(
            chunk_shape=inner, index_location="start", codecs=[numbers, codecs.ZstdCodec()]
        ),
        "shards in shards": codecs.ShardingCodec(
            chunk_shape=(1, 64, 96), codecs=[codecs.ShardingCodec(chunk_shape=inner, codecs=[numbers, codecs.GzipCodec()])]
        ),
        "shards of transposed chunks": codecs.ShardingCodec(
            chunk_shape=inner, codecs=[codecs.TransposeCodec(order=(2, 1, 0)), numbers, codecs.ZstdCodec()]
        ),
    }.items():  # fmt: skip
        yield _zarr_row("0.5", "inside shards", "uint16", "cyx", layout, {**outer, "serializer": serializer})
    for chunks in ((1, 7, 7), (2, 512, 512), (2, 61, 1)):
        yield _zarr_row("0.5", "zstd", "uint16", "cyx", f"chunks of {chunks}", {"chunks": chunks})
    for dtype in ("float16", "int8", "int64", "uint64", ">i2", ">f8"):
        yield _zarr_row("0.5", "zstd", dtype, "cyx", "chunks, further types", {})
        yield _zarr_row(
            "0.4",
            "blosc",
            dtype,
            "cyx",
            "chunks, further types",
            {"compressors": numcodecs.Blosc(cname="zstd", shuffle=2)},
        )


def _zarr_row(
    version: str, compression: str, dtype: str, axes: str, layout: str, options: dict[str, Any]
) -> Combination:
    levels = [level.astype(dtype) for level in _images(axes, np.dtype(dtype).newbyteorder("=").name)]

    def write(path: Path) -> None:
        group = zarr.create_group(
            path, zarr_format=3 if version == "0.5" else 2, attributes=_metadata(axes, version, len(levels))
        )
        sizes = {"chunks": tuple(CHUNKS[axis] for axis in axes), **options}
        encoding = (
            {}
            if version == "0.5" or "chunk_key_encoding" in options
            else {"chunk_key_encoding": {"name": "v2", "separator": "/"}}
        )
        for number, level in enumerate(levels):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                array = group.create_array(str(number), shape=level.shape, dtype=level.dtype, **encoding, **sizes)
            array[...] = level

    depth = ("big-endian " if dtype[0] == ">" else "") + np.dtype(dtype).name
    return _row("zarr", version, compression, depth, axes, layout, write, levels)


def _by_hand() -> Iterator[Combination]:
    for name, encode in (("none", bytes), ("zlib", imagecodecs.zlib_encode), ("zstd", imagecodecs.zstd_encode)):
        for dtype in ("|u1", "<u2", ">u2", ">f4"):
            for order in "CF":
                levels = [level.astype(dtype) for level in _images("yx", np.dtype(dtype).newbyteorder("=").name)]
                depth = ("big-endian " if dtype[0] == ">" else "") + np.dtype(dtype).name
                yield _row(
                    "by hand",
                    "0.4",
                    name,
                    depth,
                    "yx",
                    f"chunks, order {order}",
                    _v2_by_hand(levels, name, encode, order),
                    levels,
                )


def _v2_by_hand(
    levels: list[NDArray[Any]], name: str, encode: Callable[[bytes], bytes], order: str
) -> Callable[[Path], object]:
    chunk = (32, 48)

    def write(path: Path) -> None:
        path.mkdir()
        (path / ".zgroup").write_text('{"zarr_format": 2}')
        (path / ".zattrs").write_text(json.dumps(_metadata("yx", "0.4", len(levels))))
        for number, level in enumerate(levels):
            folder = path / str(number)
            folder.mkdir()
            (folder / ".zarray").write_text(json.dumps({
                "zarr_format": 2, "shape": level.shape, "chunks": chunk, "dtype": level.dtype.str, "order": order,
                "filters": None,
                "fill_value": 0, "compressor": None if name == "none" else {"id": name, "level": 1}, "dimension_separator": ".",
            }))  # fmt: skip
            padded = np.pad(level, [(0, -size % side) for size, side in zip(level.shape, chunk, strict=True)])
            for y in range(padded.shape[0] // chunk[0]):
                for x in range(padded.shape[1] // chunk[1]):
                    part = padded[y * chunk[0] :, x * chunk[1] :][: chunk[0], : chunk[1]]
                    (folder / f"{y}.{x}").write_bytes(encode(part.tobytes(order=order)))

    return write
