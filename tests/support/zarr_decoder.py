"""Decode small Zarr arrays chunk by chunk with imagecodecs, after the specifications of version 2 and 3; zarr isn't used."""

from __future__ import annotations

import itertools
import json
import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

MISSING = 2**64 - 1  # offset of a chunk that isn't in its shard
_DECODERS = {
    "blosc": imagecodecs.blosc_decode, "zstd": imagecodecs.zstd_decode, "gzip": imagecodecs.gzip_decode,
    "zlib": imagecodecs.zlib_decode, "lz4": imagecodecs.lz4_decode, "bz2": imagecodecs.bz2_decode,
}  # fmt: skip


def read_zarr(folder: Path) -> NDArray[Any]:
    """Read a whole array, of version 2 or 3."""
    if (folder / "zarr.json").is_file():
        return _read_v3(folder, json.loads((folder / "zarr.json").read_text()))
    return _read_v2(folder, json.loads((folder / ".zarray").read_text()))


def _read_v2(folder: Path, meta: dict[str, Any]) -> NDArray[Any]:
    separator, shape, chunks = meta.get("dimension_separator", "."), meta["shape"], meta["chunks"]
    out = np.full(shape, meta["fill_value"] or 0, np.dtype(meta["dtype"]).newbyteorder("="))
    for index in _grid(shape, chunks):
        file = folder / separator.join(map(str, index))
        if file.is_file():
            data = file.read_bytes()
            for codec in filter(None, [meta["compressor"]]):
                data = _DECODERS[codec["id"]](data)
            _paste(out, index, np.frombuffer(data, meta["dtype"]).reshape(chunks, order=meta["order"]))
    return out


def _read_v3(folder: Path, meta: dict[str, Any]) -> NDArray[Any]:
    shape, chunks = meta["shape"], meta["chunk_grid"]["configuration"]["chunk_shape"]
    encoding = meta["chunk_key_encoding"]
    separator = encoding.get("configuration", {}).get("separator", "/" if encoding["name"] == "default" else ".")
    out = np.full(shape, meta["fill_value"] or 0, meta["data_type"])
    for index in _grid(shape, chunks):
        key = separator.join(map(str, index))
        file = folder / (f"c{separator}{key}" if encoding["name"] == "default" else key)
        if file.is_file():
            _paste(out, index, _decode_v3(file.read_bytes(), meta["codecs"], chunks, out.dtype, out.flat[0] * 0))
    return out


def _decode_v3(
    data: bytes, codecs: Sequence[dict[str, Any]], shape: Sequence[int], dtype: Any, fill: Any
) -> NDArray[Any]:
    """Undo codecs from the last to the first."""
    array: NDArray[Any] | None = None
    stored = list(shape)
    for codec in codecs:
        if codec["name"] == "transpose":
            stored = [stored[axis] for axis in codec["configuration"]["order"]]
    for codec in reversed(codecs):
        settings = codec.get("configuration", {})
        if codec["name"] == "crc32c":
            data = data[:-4]
        elif codec["name"] == "bytes":
            order = ">" if settings.get("endian") == "big" else "<"
            array = np.frombuffer(data, np.dtype(dtype).newbyteorder(order)).reshape(stored)
        elif codec["name"] == "sharding_indexed":
            array = _decode_shard(data, settings, stored, dtype, fill)
        elif codec["name"] == "transpose":
            assert array is not None
            array = array.transpose(np.argsort(settings["order"]))
        else:
            data = _DECODERS[codec["name"]](data)
    assert array is not None
    return array


def _decode_shard(data: bytes, settings: dict[str, Any], shape: Sequence[int], dtype: Any, fill: Any) -> NDArray[Any]:
    chunks = settings["chunk_shape"]
    count = math.prod(size // chunk for size, chunk in zip(shape, chunks, strict=True))
    has_check = any(codec["name"] == "crc32c" for codec in settings["index_codecs"])
    length = 16 * count + 4 * has_check
    index = data[:length] if settings.get("index_location") == "start" else data[-length:]
    places = struct.unpack(f"<{2 * count}Q", index[: 16 * count])
    out = np.full(shape, fill, dtype)
    for number, position in enumerate(_grid(shape, chunks)):
        offset, size = places[2 * number : 2 * number + 2]
        if offset != MISSING:
            _paste(out, position, _decode_v3(data[offset : offset + size], settings["codecs"], chunks, dtype, fill))
    return out


def _grid(shape: Sequence[int], chunks: Sequence[int]) -> list[tuple[int, ...]]:
    return list(itertools.product(*(range(-(-size // chunk)) for size, chunk in zip(shape, chunks, strict=True))))


def _paste(out: NDArray[Any], index: tuple[int, ...], chunk: NDArray[Any]) -> None:
    place = tuple(slice(number * size, (number + 1) * size) for number, size in zip(index, chunk.shape, strict=True))
    target = out[place]
    target[...] = chunk[tuple(slice(0, size) for size in target.shape)]
