"""How fast a TIFF slide could be converted to a sharded OME-Zarr pyramid on this machine: what conversion is measured against.

Plain processes that do what has to be done and nothing else: decode every tile of level 0, write every shard of every level, with
the codec, chunks and shards of a real conversion. Further levels take every other pixel, which is the cheapest that can be
written there. No checks, no averaging, no marks, no metadata of OME, no scheduler; processes are started, have imported
everything and have written once before the clock starts.

    .venv/bin/python -m benchmarks.raw_limit SLIDE OUT [--processes 2] [--shard 4096] [--chunk 512] [--codec zstd]
"""

from __future__ import annotations

import argparse
import itertools
import math
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import imagecodecs
import numpy as np
import tifffile
import zarr
import zarrs  # noqa: F401 (zarr finds it once it is imported)
from numcodecs import Blosc, blosc
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from zarr.codecs import BloscCodec

from slidesam.tasks.store.arrays import CODECS

# What a process has freed it keeps, instead of fetching it anew for each chunk: zarr takes 5 % less.
_KEPT = {"MALLOC_MMAP_THRESHOLD_": str(2**35), "MALLOC_TRIM_THRESHOLD_": str(2**35)}
_SMALLEST_SHARD = 256
_START_SECONDS = 120
_EMPTY = 2**64 - 1  # offset and size of a chunk that a shard doesn't have
STAGES = ("decode", "shrink", "write")
_ROWS = {
    "decoding alone": ("zarr", STAGES[:1]),
    "writing alone": ("zarr", STAGES[1:]),
    "writing alone, by zarrs": ("zarrs", STAGES[1:]),
    "writing alone, without zarr": ("direct", STAGES[1:]),
    "all": ("zarr", STAGES),
    "all, without zarr": ("direct", STAGES),
}


class Job(NamedTuple):
    """What all processes are told.

    Attributes:
        slide: The TIFF file.
        out: The Zarr group.
        shard: Side of a shard of level 0.
        levels: Number of levels.
        writer: "zarr", "zarrs" (its codecs in Rust, one thread), or "direct": shards put together without zarr.
        stages: Which of `STAGES` to do.
    """

    slide: Path
    out: Path
    shard: int
    levels: int
    writer: str
    stages: Sequence[str]


def raw_convert(
    slide: Path, out: Path, processes: int, shard: int, chunk: int, levels: int | None = None, *,
    codec: str = "zstd", writer: str = "zarr", stages: Sequence[str] = STAGES, spent: dict[str, float] | None = None,
    clevel: int | None = None,
) -> float:  # fmt: skip
    """Converts level 0 of a tiled TIFF of RGB.

    Args:
        slide: The file.
        out: The Zarr group, made anew.
        processes: Their number.
        shard: Side of a shard of level 0; it halves from level to level.
        chunk: Side of a chunk.
        levels: Number of levels; by default until shards are 256 px, or a level fits into 512 px.
        codec: Of the chunks: zstd or lz4.
        writer: "zarr", "zarrs" (its codecs in Rust, one thread), or "direct": shards put together without zarr.
        clevel: Compression level; by default that of a conversion.
        stages: What to do of "decode", "shrink" and "write"; without decoding, all squares are the first.
        spent: Takes the CPU seconds of each stage, added up over the processes.

    Returns:
        Seconds from the start of the first square to the end of the last.
    """
    with tifffile.TiffFile(slide) as tiff:
        page: Any = tiff.pages.first
        shape = page.imagelength, page.imagewidth
    _create(out, shape, shard, chunk, levels or _level_count(shape, shard), codec, clevel)
    n_levels = sum(1 for _ in zarr.open_group(out, mode="r").array_keys())
    job = Job(slide, out, shard, n_levels, writer, stages)
    spawn = multiprocessing.get_context("spawn")
    counter, barrier = spawn.Value("q", 0), spawn.Barrier(processes + 1, timeout=_START_SECONDS)
    with (
        _environment(_KEPT),
        ProcessPoolExecutor(processes, spawn, _start, (job, counter, barrier)) as pool,
    ):
        working = [pool.submit(_work) for _ in range(processes)]
        barrier.wait()
        started = time.perf_counter()
        found = [each.result() for each in working]
        seconds = time.perf_counter() - started
    for stage in STAGES if spent is not None else ():
        spent[stage] = sum(each[stage] for each in found)
    return seconds


def _level_count(shape: tuple[int, int], shard: int) -> int:
    """As many as `slidesam.tasks.store.ome_zarr` has a block's task write."""
    count = 1
    while shard % 2**count == 0 and shard >> count >= _SMALLEST_SHARD and max(shape) > 512 << (count - 1):
        count += 1
    return count


def _create(
    out: Path, shape: tuple[int, int], shard: int, chunk: int, levels: int, codec: str, clevel: int | None = None
) -> None:
    shutil.rmtree(out, ignore_errors=True)
    group = zarr.create_group(out, zarr_format=3)
    for level in range(levels):
        side = shard >> level
        inner = next(each for each in range(min(chunk, side), 0, -1) if side % each == 0)
        group.create_array(
            str(level), shape=(1, 3, 1, *(-(-each // 2**level) for each in shape)), dtype=np.uint8,
            shards=(1, 3, 1, side, side), chunks=(1, 1, 1, inner, inner),
            compressors=[BloscCodec(cname=codec, clevel=clevel or CODECS[codec], shuffle="bitshuffle")],
        )  # fmt: skip


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class _Converter:
    """One process's work.

    Args:
        job: What to do.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        with tifffile.TiffFile(job.slide) as tiff:
            page: Any = tiff.pages.first
            self._decode = _decoder(page)
            self._offsets, self._sizes = page.dataoffsets, page.databytecounts
            self._tile, self._shape = (page.tilelength, page.tilewidth), (page.imagelength, page.imagewidth)
        self._file = os.open(job.slide, os.O_RDONLY)
        group = zarr.open_group(job.out, mode="r+")
        fast = {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline", "threading.max_workers": 1}
        with zarr.config.set(fast if job.writer == "zarrs" else {}):
            arrays: list[Any] = [group[str(level)] for level in range(job.levels)]
            # Looking for empty chunks would take a fifth of the time of writing. Inside, as this opens them anew.
            self._arrays = [each.with_config({"write_empty_chunks": True}) for each in arrays]
        self._pixels = np.zeros((3, job.shard, job.shard), np.uint8)
        self._band = np.empty((self._tile[0], job.shard, 3), np.uint8)
        self._read(self._pixels[:, : self._shape[0], : self._shape[1]], 0, 0)
        self.spent = dict.fromkeys(STAGES, 0.0)

    @property
    def n_squares(self) -> int:
        """Number of squares."""
        return math.prod(self._grid)

    @property
    def _grid(self) -> tuple[int, int]:
        rows, columns = (-(-each // self._job.shard) for each in self._shape)
        return rows, columns

    def convert(self, number: int) -> None:
        """Does a square, all levels of it."""
        row, column = divmod(number, self._grid[1])
        height, width = (
            min(self._job.shard, each - at * self._job.shard)
            for each, at in zip(self._shape, (row, column), strict=True)
        )
        pixels = self._pixels[:, :height, :width]
        if "decode" in self._job.stages:
            with self._timed("decode"):
                self._read(pixels, row * self._job.shard, column * self._job.shard)
        for level, array in enumerate(self._arrays):
            if level and "shrink" in self._job.stages:
                with self._timed("shrink"):
                    pixels = pixels[:, ::2, ::2].copy()
            if "write" in self._job.stages:
                with self._timed("write"):
                    self._write(array, level, row, column, pixels)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.process_time()
        yield
        self.spent[stage] += time.process_time() - started

    def _read(self, out: NDArray[np.uint8], top: int, left: int) -> None:
        """Decodes all tiles that a square touches, a row of them at a time.

        To part the channels of long rows takes half the time that it takes tile by tile.
        """
        side = self._tile[0]
        for row in range(top // side, -(-(top + out.shape[1]) // side)):
            self._read_band(self._band[:, : out.shape[2]], row, left)
            y = row * side - top
            band = out[:, max(y, 0) : y + side]
            for channel in range(3):
                band[channel] = self._band[max(-y, 0) :, : out.shape[2], channel][: band.shape[1]]

    def _read_band(self, out: NDArray[np.uint8], row: int, left: int) -> None:
        side = self._tile[1]
        per_row = -(-self._shape[1] // side)
        for column in range(left // side, -(-(left + out.shape[1]) // side)):
            index = row * per_row + column
            tile = self._decode(os.pread(self._file, self._sizes[index], self._offsets[index]), index)
            x = column * side - left
            window = out[:, max(x, 0) : x + side]
            window[: tile.shape[0]] = tile[:, max(-x, 0) :][:, : window.shape[1]]

    def _write(self, array: Any, level: int, row: int, column: int, pixels: NDArray[np.uint8]) -> None:
        if self._job.writer == "direct":
            _write_shard(array, self._job.out / str(level) / f"c/0/0/0/{row}/{column}", pixels)
            return
        side = self._job.shard >> level
        y, x = row * side, column * side
        array[0, :, 0, y : y + pixels.shape[1], x : x + pixels.shape[2]] = pixels


def _decoder(page: Any) -> Callable[[bytes, int], NDArray[np.uint8]]:
    """What decodes a tile of a page, given its bytes and number."""
    tables = page.jpegtables
    if page.compression != tifffile.COMPRESSION.JPEG:
        return lambda data, index: page.decode(data, index)[0][0]
    colours = tifffile.tifffile.jpeg_decode_colorspace(
        page.photometric, page.planarconfig, page.extrasamples, page.is_jfif
    )
    shape = page.tilelength, page.tilewidth, 3
    # As tifffile does it, but into a place that doesn't start at a multiple of 32 bytes: where it does, libjpeg-turbo writes
    # past the cache, and takes half as long again.
    memory = np.empty(math.prod(shape) + 64, np.uint8)
    start = -memory.ctypes.data % 32 + 16
    out = memory[start : start + math.prod(shape)].reshape(shape)

    def decode(data: bytes, _: int) -> NDArray[np.uint8]:
        imagecodecs.jpeg8_decode(data, tables=tables, colorspace=colours[0], outcolorspace=colours[1], out=out)
        return out

    return decode


def _write_shard(array: Any, path: Path, pixels: NDArray[np.uint8]) -> None:
    """Writes one shard: its chunks one after the other, then where each is."""
    chunk, per_side = array.chunks[3], array.shards[3] // array.chunks[3]
    codec = array.compressors[0]
    encoder = Blosc(codec.cname.value, clevel=codec.clevel, shuffle=Blosc.BITSHUFFLE)
    index = np.full((3, per_side, per_side, 2), _EMPTY, "<u8")
    padded = np.zeros((chunk, chunk), np.uint8)
    parts, at = [], 0
    for channel, y, x in np.ndindex(3, -(-pixels.shape[1] // chunk), -(-pixels.shape[2] // chunk)):
        plane = pixels[channel, y * chunk : (y + 1) * chunk, x * chunk : (x + 1) * chunk]
        if plane.shape != padded.shape:
            padded[...] = 0
        padded[: plane.shape[0], : plane.shape[1]] = plane
        parts.append(encoder.encode(padded))
        index[channel, y, x] = at, len(parts[-1])
        at += len(parts[-1])
    table = index.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        stream.writelines([*parts, table, google_crc32c.value(table).to_bytes(4, "little")])


_converter: _Converter | None = None
_shared: Any = None


def _start(job: Job, counter: Any, barrier: Any) -> None:
    """Gets a process ready: all that is done once is done here."""
    global _converter, _shared
    blosc.use_threads = False
    try:
        with tempfile.TemporaryDirectory() as scratch:
            _create(Path(scratch) / "0.zarr", (64, 64), 512, 256, 1, "zstd")
            array: Any = zarr.open_array(Path(scratch) / "0.zarr" / "0")
            array[:] = 1
        _converter, _shared = _Converter(job), (counter, barrier)
    except BaseException:
        barrier.abort()  # or the others would wait
        raise


def _work() -> dict[str, float]:
    """Does squares in turn until there are none left."""
    assert _converter is not None
    counter, barrier = _shared
    barrier.wait()
    while True:
        with counter.get_lock():
            number = counter.value
            counter.value += 1
        if number >= _converter.n_squares:
            return _converter.spent
        _converter.convert(number)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--shard", type=int, default=4096)
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--codec", default="zstd")
    parser.add_argument("--clevel", type=int, help="compression level; by default that of a conversion")
    parser.add_argument("--repeats", type=int, default=3, help="the fastest of these is shown")
    arguments = parser.parse_args()
    best = _measured(arguments)
    with tifffile.TiffFile(arguments.slide) as tiff:
        page: Any = tiff.pages.first
        size = page.imagelength * page.imagewidth * 3 / 1e6
    title = f"{arguments.slide.name}, {size:.0f} MB of pixels at level 0, {arguments.processes} processes"
    table = Table(title=title, box=None)
    for column in ("what", "seconds", "MB/s", *(f"CPU s {stage}" for stage in STAGES)):
        table.add_column(column, justify="left" if column == "what" else "right")
    for what, (seconds, spent) in best.items():
        table.add_row(what, f"{seconds:.2f}", f"{size / seconds:.0f}", *(f"{spent[stage]:.2f}" for stage in STAGES))
    Console().print(table)


def _measured(arguments: argparse.Namespace) -> dict[str, tuple[float, dict[str, float]]]:
    """Seconds, and CPU seconds of each stage, of the fastest of several runs, which take turns."""
    best: dict[str, tuple[float, dict[str, float]]] = {}
    for _, (what, (writer, stages)) in itertools.product(range(arguments.repeats), _ROWS.items()):
        spent: dict[str, float] = {}
        seconds = raw_convert(
            arguments.slide, arguments.out, arguments.processes, arguments.shard, arguments.chunk,
            codec=arguments.codec, writer=writer, stages=stages, spent=spent, clevel=arguments.clevel,
        )  # fmt: skip
        best[what] = min(best.get(what, (math.inf, spent)), (seconds, spent), key=lambda pair: pair[0])
    return best


if __name__ == "__main__":
    main()
