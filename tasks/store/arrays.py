"""The arrays of a store: their metadata, and writing and reading them as whole shards. Damage to either is found.

Each chunk's last codec is crc32c (Zarr v3), so that a flipped bit is an error for whoever reads it. Zarr v2 has no such codec:
there the list of files (`file_list`) alone tells.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import google_crc32c
import numpy as np
import zarr
import zarrs  # noqa: F401 (zarr finds it once it is imported)
from numcodecs import Blosc
from numpy.typing import NDArray
from zarr.abc.codec import BytesBytesCodec
from zarr.codecs import BloscCodec, Crc32cCodec, ShardingCodec
from zarr.core.buffer import Buffer
from zarr.core.metadata import ArrayV3Metadata
from zarr.storage import MemoryStore

from slidesam.tasks.errors import DamagedError
from slidesam.tasks.grid import Region
from slidesam.tasks.pixels.plan import largest_divisor
from slidesam.tasks.run.files import write_atomic
from slidesam.tasks.settings.sections import ImageSettings
from slidesam.tasks.store.multiscales import AXES

# Compression levels. With bits shuffled zstd's level 3 takes 1.4 times as long and saves 1 % (benchmarks/raw_limit.py --clevel).
CODECS: dict[Any, int] = {"zstd": 1, "lz4": 5}
FORMATS = {"0.5": 3, "0.4": 2}
# zarr's codecs in Rust. One thread: a worker computes one task at a time, and with more threads the bytes of shards differ.
FAST = {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline", "threading.max_workers": 1}
# What ends each chunk and the index of a shard, and what stands in an index for a chunk without any value.
_CHECKSUM_BYTES, _NO_CHUNK = 4, 2**64 - 1
# How these codecs report errors of the operating system.
_SYSTEM_ERROR = re.compile(r"os error (\d+)")


def chunk_side(shard: int, max_side: int) -> int:
    """Return the largest divisor of a shard's side that is at most `max_side`.

    Example:
        >>> chunk_side(2048, 512), chunk_side(720, 512)
        (512, 360)
    """
    return largest_divisor(shard, max_side)


class ArrayPlan(NamedTuple):
    """An array to create.

    Attributes:
        name: Its name, the level's number.
        shape: TCZYX.
        dtype: Type of the pixels.
        shard: Height and width of the region that one task writes.
        channels_per_shard: How many channels one task writes; None = all.
        shuffle: How Blosc orders values: by bits for pixels; by bytes for ids, which is faster and smaller for them.
    """

    name: str
    shape: tuple[int, int, int, int, int]
    dtype: np.dtype[Any]
    shard: tuple[int, int]
    channels_per_shard: int | None = None
    shuffle: Literal["shuffle", "bitshuffle"] = "bitshuffle"


def write_array_metadata(folder: Path, plans: Sequence[ArrayPlan], image: ImageSettings) -> bool:
    """Write the metadata of arrays, unless it is there and as it should be; what the arrays hold stays.

    Shards have the given height and width and hold all channels. In Zarr v2, chunks are files.

    Args:
        folder: The group that they are in.
        plans: The arrays.
        image: Codec and size of the chunks, and which Zarr.

    Returns:
        Whether a file was written.

    Raises:
        OutputError: A file can't be written.
    """
    files: dict[str, Buffer] = {}
    group = zarr.create_group(MemoryStore(files), zarr_format=FORMATS[image.ome_zarr])  # type: ignore[arg-type]
    for plan in plans:
        _create_array(group, plan, image)
    wanted = {folder / path: value.to_bytes() for path, value in files.items() if "/" in path}
    differing = [path for path, data in wanted.items() if not path.is_file() or path.read_bytes() != data]
    for path in differing:
        write_atomic(path, wanted[path])
    return bool(differing)


def _create_array(group: zarr.Group, plan: ArrayPlan, image: ImageSettings) -> None:
    height, width = plan.shard
    chunks = (1, 1, 1, chunk_side(height, image.chunk_shape), chunk_side(width, image.chunk_shape))
    codec = CODECS.get(image.codec)
    if group.metadata.zarr_format == 2:
        shuffle = getattr(Blosc, plan.shuffle.upper())
        group.create_array(
            plan.name, shape=plan.shape, chunks=chunks, dtype=plan.dtype,
            compressors=None if codec is None else Blosc(cname=image.codec, clevel=codec, shuffle=shuffle),
            chunk_key_encoding={"name": "v2", "separator": "/"},
        )  # fmt: skip
        return
    compressors: list[BytesBytesCodec] = []
    if codec is not None and image.codec != "none":
        compressors = [BloscCodec(cname=image.codec, clevel=codec, shuffle=plan.shuffle)]
    # Last, so that it vouches for the bytes as they lie on the disk.
    compressors.append(Crc32cCodec())
    group.create_array(
        plan.name, shape=plan.shape, shards=(1, plan.channels_per_shard or plan.shape[1], 1, height, width),
        chunks=chunks, dtype=plan.dtype, compressors=compressors, dimension_names=AXES,
    )  # fmt: skip


def write_planes(array: zarr.Array[Any], region: Region, pixels: NDArray[Any], first: int = 0) -> None:
    """Write (c, y, x) pixels, from channel `first` on, to a region of a TCZYX array's first time point and focal plane."""
    array[(0, slice(first, first + pixels.shape[0]), 0, *region.slices)] = pixels


def open_levels(group: Path, ome_zarr: str) -> list[zarr.Array[Any]]:
    """Open the levels 0..n of an image or label image, to read them and to write whole shards.

    Reading and writing labels by zarrs takes half of zarr's time (`make stitching-speed`, rows "raw").
    """
    names = sorted((path.name for path in group.iterdir() if path.name.isdigit()), key=int)
    return [open_level(group / name, ome_zarr) for name in names]


def open_level(path: Path, ome_zarr: str) -> zarr.Array[Any]:
    """Open one level of an image or label image, as `open_levels` does."""
    with zarr.config.set(FAST if ome_zarr == "0.5" else {}):
        return zarr.open_array(path, mode="r+")


def write_shards(array: zarr.Array[Any], region: Region, pixels: NDArray[Any]) -> None:
    """Write pixels as whole shards of the first plane: (c, y, x), all channels, or (y, x) of the only one.

    Raises:
        OSError: The disk is full, or permission is missing.
    """
    # zarrs writes in place. Shards that a killed process left half-written can't be read, and zarrs reads the shards
    # at the far edge before it writes them.
    remove_shards(array, region)
    try:
        array[(0, slice(None) if pixels.ndim == 3 else 0, 0, *region.slices)] = pixels
    except RuntimeError as error:
        _raise_system_error(error)
        raise


def read_region(array: zarr.Array[Any], region: Region, channel: int | slice = 0) -> NDArray[Any]:
    """Read a region of the first plane: (y, x) of one channel, (c, y, x) of several.

    Raises:
        DamagedError: A shard is damaged, and removed, so that it counts as not written.
        OSError: The system doesn't let it be read.
    """
    damaged = find_damaged_shards(array, region, channel)
    if not damaged:
        try:
            return np.asarray(array[(0, channel, 0, *region.slices)])
        except (RuntimeError, ValueError) as error:
            _raise_system_error(error)
            damaged = [path for path in shard_paths(array, region) if not _is_readable(array, path, region)]
    for path in damaged:
        path.unlink(missing_ok=True)
    raise DamagedError(
        f"{(damaged or [_array_folder(array)])[0]} is damaged and was removed", "run the same command again"
    )


def find_damaged_shards(array: zarr.Array[Any], region: Region, channel: int | slice = 0) -> list[Path]:
    """Find the shards of a region of the first plane in which a chunk, or the index, differs from its checksum.

    zarrs compares no checksum where it decodes a part of a chunk, and a chunk at the array's edge is always a part. zarr's own
    codecs do, but take an empty shard for zeros. Comparing takes a hundredth of the time of decoding.

    Returns:
        Shards that exist; none of an array without checksums.

    References:
        https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/index.html#binary-shard-format
    """
    sharding = array.metadata.codecs[0] if isinstance(array.metadata, ArrayV3Metadata) else None
    if not isinstance(sharding, ShardingCodec) or not isinstance(sharding.codecs[-1], Crc32cCodec):
        return []
    return [path for path in shard_paths(array, region) if not _is_sound(array, path, region, channel)]


def _is_sound(array: zarr.Array[Any], path: Path, region: Region, channel: int | slice) -> bool:
    """Whether the chunks of a shard that lie in a region, and its index, have their checksums; also where there is no shard."""
    shards, chunks = array.shards or array.chunks, array.chunks
    c, _, y, x = (int(part) for part in path.parts[-4:])
    inside = Region(y * shards[3], x * shards[4], (y + 1) * shards[3], (x + 1) * shards[4]) & region
    channels = (
        slice(None) if isinstance(channel, slice) else slice(channel - c * shards[1], channel - c * shards[1] + 1)
    )
    if channels.start is not None and not 0 <= channels.start < shards[1]:
        return True
    rows = slice((inside.y0 - y * shards[3]) // chunks[3], -(-(inside.y1 - y * shards[3]) // chunks[3]))
    columns = slice((inside.x0 - x * shards[4]) // chunks[4], -(-(inside.x1 - x * shards[4]) // chunks[4]))
    grid = (shards[1] // chunks[1], shards[3] // chunks[3], shards[4] // chunks[4])
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return True
    try:
        size, length = os.fstat(descriptor).st_size, 16 * math.prod(grid) + _CHECKSUM_BYTES
        if size < length or not _has_checksum(data := os.pread(descriptor, length, size - length)):
            return False
        index = np.frombuffer(data[:-_CHECKSUM_BYTES], "<u8").reshape(*grid, 2)[channels, rows, columns].reshape(-1, 2)
        return all(
            start + n_bytes <= size and _has_checksum(os.pread(descriptor, n_bytes, start))
            for start, n_bytes in index.tolist()
            if start != _NO_CHUNK
        )
    finally:
        os.close(descriptor)


def _has_checksum(data: bytes) -> bool:
    """Whether data ends with the crc32c of what comes before."""
    expected = int.from_bytes(data[-_CHECKSUM_BYTES:], "little")
    return len(data) > _CHECKSUM_BYTES and bool(google_crc32c.value(data[:-_CHECKSUM_BYTES]) == expected)


def read_whole(array: zarr.Array[Any], region: Region, channel: int | slice = 0) -> NDArray[Any]:
    """Read a region of an array all of whose shards were written, as `read_region`: a shard that is gone would read as zeros.

    Raises:
        DamagedError: A shard is gone, or damaged and removed.
    """
    for path in shard_paths(array, region):
        if not path.exists():
            raise DamagedError(f"{path} is gone", "run the same command again")
    return read_region(array, region, channel)


def _is_readable(array: zarr.Array[Any], path: Path, region: Region) -> bool:
    """Whether a shard can be read, as far as it lies in a region."""
    _, step_c, _, step_y, step_x = array.shards or array.chunks
    c, _, y, x = (int(part) for part in path.parts[-4:])
    shard = Region(y * step_y, x * step_x, (y + 1) * step_y, (x + 1) * step_x) & region
    try:
        _ = array[(0, slice(c * step_c, (c + 1) * step_c), 0, *shard.slices)]
    except (RuntimeError, ValueError):
        return False
    return True


def _raise_system_error(error: Exception) -> None:
    """Raise the system's error that a codec reports in its own words, if it is one."""
    number = _SYSTEM_ERROR.search(str(error))
    if number is not None:
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def _array_folder(array: zarr.Array[Any]) -> Path:
    return Path(str(array.store_path.store).removeprefix("file://")) / array.path


def remove_shards(array: zarr.Array[Any], region: Region) -> None:
    """Remove the shards (in Zarr v2, the chunks) of a region of the first plane."""
    for path in shard_paths(array, region):
        path.unlink(missing_ok=True)


def shard_paths(array: zarr.Array[Any], region: Region) -> list[Path]:
    """List where the shards (in Zarr v2, the chunks) of a region of the first plane lie, whether they exist or not."""
    step_c, _, step_y, step_x = (array.shards or array.chunks)[1:]
    folder = _array_folder(array) / ("c" if array.shards else "")
    return [
        folder / "0" / str(channel) / "0" / str(y) / str(x)
        for channel in range(-(-array.shape[1] // step_c))
        for y in range(region.y0 // step_y, -(-region.y1 // step_y))
        for x in range(region.x0 // step_x, -(-region.x1 // step_x))
    ]
