"""Bounds what a chunk of a Zarr array may cost: bytes of its file, and memory of decoding it.

The libraries' decoders give whatever a chunk says that it holds: two megabytes can become gigabytes before anybody compares the
size with the array's. So an array is opened with its compressors replaced, in its metadata, by one that is told the most that a
chunk can hold, and with a store that looks at a file before it reads it. Codecs that nobody has bounded are refused by name.

1. `bound_codecs` replaces the compressors in an array's metadata, also inside shards.
2. `CheckedStore` refuses what is no regular file, or is too large, before it is opened.
"""

from __future__ import annotations

import asyncio
import bz2
import lzma
import math
import os
import stat
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, Self, cast

import imagecodecs
import numcodecs
import numpy as np
from numcodecs.abc import Codec
from zarr.abc.codec import BytesBytesCodec
from zarr.abc.store import ByteRequest
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.registry import register_codec
from zarr.storage import LocalStore, WrapperStore

from slidesam.tasks.slides.zarr.metadata import METADATA_FILES, is_below

NAME = "slidesam.bounded"
# Filters can make numbers up to eight times as wide; a compressor inside another adds some bytes.
_WIDER, _MORE = 8, 2**20
# Codecs that make no more of their input than they are given, or eight times as much (packbits).
_HARMLESS = {
    "adler32", "astype", "bitround", "bytes", "crc32", "crc32c", "delta", "endian", "fixedscaleoffset", "fletcher32",
    "jenkins_lookup3", "packbits", "quantize", "shuffle", "transpose",
}  # fmt: skip


class TooLargeError(ValueError):
    """A chunk holds more than its array says."""


class _Stream(Protocol):
    """A decompressor of the standard library."""

    @property
    def unused_data(self) -> bytes: ...

    @property
    def eof(self) -> bool: ...

    def decompress(self, data: memoryview | bytes, max_length: int, /) -> bytes: ...


def _inflate(data: memoryview | bytes, limit: int, make: Callable[[], _Stream]) -> bytes:
    """Decompress one or several streams that follow each other."""
    parts, n_bytes = [], 0
    while data:
        stream = make()
        part = stream.decompress(data, limit - n_bytes + 1)
        n_bytes += len(part)
        if n_bytes > limit:
            raise TooLargeError(f"a chunk holds more than {limit} bytes")
        if not stream.eof:
            raise ValueError("a chunk is cut short")
        parts.append(part)
        data = stream.unused_data
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _decode_zstd(data: memoryview, limit: int, options: Mapping[str, Any]) -> bytes:
    # Memory for the most that a chunk can hold is only taken if it holds more than a decoded chunk.
    for most in (_find_size(limit), limit):
        try:
            return bytes(imagecodecs.zstd_decode(cast(bytes, data), out=most))
        except imagecodecs.ZstdError as error:
            if "too small" not in str(error):
                raise
    raise TooLargeError(f"a chunk holds more than {limit} bytes")


def _decode_lzma(data: memoryview, limit: int, options: Mapping[str, Any]) -> bytes:
    kind, filters = int(options.get("format", lzma.FORMAT_XZ)), options.get("filters")
    is_raw = kind == lzma.FORMAT_RAW
    return _inflate(data, limit, lambda: lzma.LZMADecompressor(kind, filters=filters if is_raw else None))


def _decode_blosc(data: memoryview, limit: int, options: Mapping[str, Any]) -> bytes:
    """Decode a chunk of Blosc, whose decoder reads past the end of an incomplete chunk."""
    decoded, encoded = int.from_bytes(data[4:8], "little"), int.from_bytes(data[12:16], "little")
    if len(data) < 16 or encoded > len(data):
        raise ValueError(f"a chunk has {len(data)} bytes instead of {encoded}")
    _check_size(decoded, limit)
    return bytes(numcodecs.blosc.decompress(data))


def _decode_lz4(data: memoryview, limit: int, options: Mapping[str, Any]) -> bytes:
    _check_size(int.from_bytes(data[:4], "little"), limit)
    return bytes(numcodecs.LZ4().decode(data))


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise TooLargeError(f"a chunk says that it holds {size} bytes, more than {limit}")


_DECODERS: dict[str, Callable[[memoryview, int, Mapping[str, Any]], bytes]] = {
    "blosc": _decode_blosc,
    "bz2": lambda data, limit, _: _inflate(data, limit, bz2.BZ2Decompressor),
    # With either header.
    "gzip": lambda data, limit, _: _inflate(data, limit, lambda: zlib.decompressobj(zlib.MAX_WBITS | 32)),
    "lz4": _decode_lz4,
    "lzma": _decode_lzma,
    "zlib": lambda data, limit, _: _inflate(data, limit, lambda: zlib.decompressobj(zlib.MAX_WBITS | 32)),
    "zstd": _decode_zstd,
}


@dataclass(frozen=True)
class BoundedCodec(BytesBytesCodec):
    """A compressor of Zarr v3 that decodes no more than it is told.

    Attributes:
        codec: Name of the compressor.
        options: Its configuration.
        limit: Most bytes that a chunk can hold.
    """

    codec: str
    options: dict[str, Any]
    limit: int
    is_fixed_size = False

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Make it from its part of the metadata."""
        return cls(**data["configuration"])

    def to_dict(self) -> dict[str, Any]:
        """Return its part of the metadata."""
        return {"name": NAME, "configuration": {"codec": self.codec, "options": self.options, "limit": self.limit}}

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        encoded: Any = chunk_bytes.as_numpy_array()
        data = await asyncio.to_thread(_DECODERS[self.codec], memoryview(encoded), self.limit, self.options)
        return chunk_spec.prototype.buffer.from_bytes(data)

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        """Refuse: the size isn't known."""
        raise NotImplementedError


class BoundedCompressor(Codec):  # type: ignore[misc]
    """The same for Zarr v2."""

    codec_id = NAME

    def __init__(self, codec: str, options: dict[str, Any], limit: int) -> None:
        self.codec, self.options, self.limit = codec, options, limit

    def encode(self, buf: Any) -> Any:
        """Refuse: slides are never written."""
        raise NotImplementedError

    def decode(self, buf: Any, out: Any = None) -> Any:
        """Decode a chunk."""
        encoded: Any = np.asarray(buf).view(np.uint8)
        data = _DECODERS[self.codec](memoryview(encoded), self.limit, self.options)
        return numcodecs.compat.ndarray_copy(np.frombuffer(data, np.uint8), out) if out is not None else data


register_codec(NAME, BoundedCodec)
numcodecs.register_codec(BoundedCompressor)


def bound_codecs(metadata: Mapping[str, Any], chunk_bytes: int, itemsize: int) -> dict[str, Any]:
    """Return an array's metadata with bounded compressors.

    Args:
        metadata: As Zarr stores them.
        chunk_bytes: Size of a decoded chunk, or of a shard.
        itemsize: Bytes of a pixel.

    Raises:
        ValueError: There is a codec that can't be bounded.
    """
    limit = find_limit(chunk_bytes)
    if metadata.get("zarr_format") == 2:
        filters = metadata.get("filters") or []
        return {
            **metadata,
            "compressor": _bound_v2(metadata.get("compressor"), limit),
            "filters": [_bound_v2(each, limit) for each in filters] or None,
        }
    return {**metadata, "codecs": [_bound_v3(codec, limit, itemsize) for codec in metadata.get("codecs", ())]}


def find_limit(chunk_bytes: int) -> int:
    """Return the most bytes that a chunk of this size can take, encoded or between two of its codecs."""
    return _WIDER * chunk_bytes + _MORE


def _find_size(limit: int) -> int:
    return (limit - _MORE) // _WIDER


def _bound_v2(codec: Any, limit: int) -> Any:
    if not isinstance(codec, Mapping):
        return codec
    options = {key: value for key, value in codec.items() if key != "id"}
    name = str(codec.get("id"))
    _check_codec(name)
    return {"id": NAME, "codec": name, "options": options, "limit": limit} if name in _DECODERS else codec


def _bound_v3(codec: Any, limit: int, itemsize: int) -> Any:
    if not isinstance(codec, Mapping):
        _check_codec(str(codec))
        return _bound_v3({"name": codec}, limit, itemsize) if codec in _DECODERS else codec
    stated, options = str(codec.get("name")), dict(codec.get("configuration") or {})
    if stated == "sharding_indexed":
        inner = find_limit(math.prod(options.get("chunk_shape", ())) * itemsize)
        bounded = [_bound_v3(each, inner, itemsize) for each in options.get("codecs", ())]
        return {**codec, "configuration": {**options, "codecs": bounded}}
    name = stated.removeprefix("numcodecs.")
    _check_codec(name)
    if name not in _DECODERS:
        return codec
    return {"name": NAME, "configuration": {"codec": name, "options": options, "limit": limit}}


def _check_codec(name: str) -> None:
    if name not in _DECODERS and name not in _HARMLESS:
        raise ValueError(f"its chunks are stored by codec {name!r}, which slidesam doesn't read")


class CheckedStore(WrapperStore[LocalStore]):
    """Looks at a chunk's file before it is read: a pipe would be waited for without end, and a huge file fill the memory.

    A link out of the folder would bring what only this user can read into a result.

    Args:
        store: The files.
        limit: Most bytes of a file.
    """

    def __init__(self, store: LocalStore, limit: int) -> None:
        super().__init__(store)
        self._limit, self._folder = limit, os.path.realpath(store.root)
        # Resolving links takes longer than looking at a file, and a folder has many files.
        self._is_inside = cache(lambda folder: is_below(folder / "any", self._folder))

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Read a file, or part of it; None if it isn't there.

        Raises:
            ValueError: It is no regular file, too large, or a link to outside the folder.
        """
        if key.rpartition("/")[2] not in METADATA_FILES:
            path = self._store.root / key
            try:
                status = path.lstat()
                is_link = stat.S_ISLNK(status.st_mode)
                status = path.stat() if is_link else status
            except (FileNotFoundError, NotADirectoryError):
                return None
            if not self._is_inside(path.parent) or (is_link and not is_below(path, self._folder)):
                raise ValueError(f"chunk {key} is a link to outside the folder")
            if not stat.S_ISREG(status.st_mode):
                raise ValueError(f"chunk {key} is no regular file")
            if status.st_size > self._limit:
                raise TooLargeError(f"chunk {key} has {status.st_size} bytes, more than {self._limit}")
        return await super().get(key, prototype, byte_range)
