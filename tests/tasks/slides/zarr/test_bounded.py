"""Chunks of a Zarr array that would become far larger than the array says, and files that are no chunks."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numcodecs
import numpy as np
import pytest
import zarr

from slidesam.tasks.errors import SlideAwayError, SlideError
from slidesam.tasks.grid import Region
from slidesam.tasks.slides.inspect import inspect_slide
from slidesam.tasks.slides.reader import SlideReader
from tests.support.memory import measure_peak

BOMB = 2**27
SIDE = 256
PIXELS = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE)).astype(np.uint8)


def streamed_zstd(data: bytes) -> bytes:
    """A frame that doesn't say how much it holds, after one that holds nothing."""
    ends = imagecodecs.zstd_encode(b"")
    return ends + imagecodecs.zstd_encode(data)


COMPRESSORS: dict[str, Any] = {
    "zstd": numcodecs.Zstd(1), "gzip": numcodecs.GZip(1), "zlib": numcodecs.Zlib(1), "bz2": numcodecs.BZ2(1),
    "lzma": numcodecs.LZMA(preset=0), "lz4": numcodecs.LZ4(), "blosc": numcodecs.Blosc("lz4", 1),
}  # fmt: skip


def write_v2(folder: Path, compressor: Any, pixels: np.ndarray = PIXELS, filters: Any = None) -> Path:
    """An image of one chunk, as OME-Zarr 0.4 has it."""
    array = folder / "0"
    array.mkdir(parents=True)
    (folder / ".zgroup").write_text('{"zarr_format": 2}')
    axes = [{"name": name, "type": "space"} for name in "yx"]
    scale = [{"type": "scale", "scale": [1, 1]}]
    datasets = [{"path": "0", "coordinateTransformations": scale}]
    multiscales = [{"version": "0.4", "axes": axes, "datasets": datasets}]
    (folder / ".zattrs").write_text(json.dumps({"multiscales": multiscales}))
    config = None if compressor is None else compressor.get_config()
    metadata = {
        "zarr_format": 2, "shape": [SIDE, SIDE], "chunks": [SIDE, SIDE], "dtype": "|u1", "compressor": config,
        "filters": filters, "fill_value": 0, "order": "C", "dimension_separator": ".",
    }  # fmt: skip
    (array / ".zarray").write_text(json.dumps(metadata))
    data = pixels.tobytes() if compressor is None else compressor.encode(pixels)
    (array / "0.0").write_bytes(data)
    return folder


def write_v3(folder: Path, codecs: Any, shards: tuple[int, int] | None = None) -> Path:
    """An image of one chunk, as OME-Zarr 0.5 has it."""
    group = zarr.create_group(folder, zarr_format=3)
    axes = [{"name": name, "type": "space"} for name in "yx"]
    datasets = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1, 1]}]}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    chunks = (SIDE // 4, SIDE // 4) if shards else (SIDE, SIDE)
    array = group.create_array("0", shape=(SIDE, SIDE), chunks=chunks, shards=shards, dtype="u1", compressors=codecs)
    array[:] = PIXELS
    return folder


def read(path: Path) -> np.ndarray:
    slide = inspect_slide(path)
    with SlideReader(slide) as reader:
        return reader.read(Region(0, 0, SIDE, SIDE))[..., 0]


def check_refused(path: Path, words: str = "holds more than|holds .* more than") -> None:
    slide = inspect_slide(path)
    with SlideReader(slide) as reader:

        def refuse() -> None:
            with pytest.raises(SlideError, match=words) as raised:
                reader.read(Region(0, 0, SIDE, SIDE))
            # The file is at fault: no automation tries it again.
            assert not isinstance(raised.value, SlideAwayError)

        assert measure_peak(refuse) < 2**26


@pytest.mark.parametrize("name", COMPRESSORS)
def test_a_chunk_that_grows_is_refused_whatever_compresses_it(name: str, tmp_path: Path) -> None:
    compressor = COMPRESSORS[name]
    path = write_v2(tmp_path / "whole.zarr", compressor)
    assert (read(path) == PIXELS).all()
    bomb = compressor.encode(np.zeros(BOMB, np.uint8))
    (path / "0" / "0.0").write_bytes(bomb)
    check_refused(path)


@pytest.mark.parametrize("kind", ["two frames", "streamed gzip", "a filter"])
def test_a_chunk_that_hides_how_it_grows(kind: str, tmp_path: Path) -> None:
    name = "gzip" if "gzip" in kind else "zstd"
    filters = [{"id": "shuffle", "elementsize": 4}] if kind == "a filter" else None
    path = write_v2(tmp_path / "bomb.zarr", COMPRESSORS[name], filters=filters)
    bomb = (
        streamed_zstd(bytes(BOMB))
        if name == "zstd"
        else zlib.compress(b"", wbits=31) + zlib.compress(bytes(BOMB), wbits=31)
    )
    (path / "0" / "0.0").write_bytes(bomb)
    check_refused(path)


@pytest.mark.parametrize("shards", [None, (SIDE, SIDE)])
@pytest.mark.parametrize("name", ["zstd", "gzip", "blosc"])
def test_a_chunk_of_zarr_3_that_grows(name: str, shards: tuple[int, int] | None, tmp_path: Path) -> None:
    codecs = {"zstd": zarr.codecs.ZstdCodec(), "gzip": zarr.codecs.GzipCodec(), "blosc": zarr.codecs.BloscCodec()}
    path = write_v3(tmp_path / "whole.zarr", codecs[name], shards)
    assert (read(path) == PIXELS).all()
    bomb = bytes(COMPRESSORS[name].encode(np.zeros(BOMB, np.uint8)))
    file = path / "0" / "c" / "0" / "0"
    if shards is None:
        file.write_bytes(bomb)
    else:
        index = np.full((16, 2), 2**64 - 1, "<u8")
        index[0] = 0, len(bomb)
        ends = index.tobytes()
        file.write_bytes(bomb + ends + np.uint32(_crc32c(ends)).astype("<u4").tobytes())
    check_refused(path)


def _crc32c(data: bytes) -> int:
    import google_crc32c

    return int(google_crc32c.value(data))


def test_a_huge_file_isnt_read(tmp_path: Path) -> None:
    path = write_v2(tmp_path / "huge.zarr", None)
    os.truncate(path / "0" / "0.0", 2**34)
    check_refused(path, "has 17179869184 bytes")


@pytest.mark.timeout(20)
def test_what_is_no_regular_file_isnt_waited_for(tmp_path: Path) -> None:
    path = write_v2(tmp_path / "pipe.zarr", None)
    (path / "0" / "0.0").unlink()
    os.mkfifo(path / "0" / "0.0")
    check_refused(path, "is no regular file")
    (path / "0" / "0.0").unlink()
    (path / "0" / "0.0").symlink_to("/dev/zero")
    check_refused(path, "is a link to outside the folder")


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    """Who sends a slide could get what only its reader may read, as pixels of the result."""
    secret = write_v2(tmp_path / "secret.zarr", None)
    for number, place in enumerate(("0/0.0", "0", "")):
        path = tmp_path / f"{number}"
        inner = shutil.copytree(secret, path / "slide.zarr")
        (path / "slide.zarr" / place).rename(tmp_path / f"moved{number}")
        (path / "slide.zarr" / place).symlink_to(secret / place)
        if place == "0/0.0":
            check_refused(inner, "is a link to outside the folder")
        else:
            with pytest.raises(
                SlideError, match=f"{place or 'slide.zarr'}' in it is a link to outside the folder; copy"
            ):
                inspect_slide(path)
    chunks = write_v3(tmp_path / "v3.zarr", "auto") / "0" / "c"
    chunks.rename(tmp_path / "c")
    chunks.symlink_to(tmp_path / "c")
    check_refused(tmp_path / "v3.zarr", "is a link to outside the folder")
    # Others are links to inside, and a link that somebody gives.
    whole = shutil.copytree(secret, tmp_path / "whole.zarr")
    (whole / "0").rename(whole / "level")
    (whole / "0").symlink_to("level")
    (whole / "0" / "0.0").rename(whole / "0" / "pixels")
    (whole / "0" / "0.0").symlink_to("pixels")
    (tmp_path / "given.zarr").symlink_to(whole)
    np.testing.assert_array_equal(read(tmp_path / "given.zarr"), PIXELS)


def test_an_unknown_codec_is_refused_by_name(tmp_path: Path) -> None:
    path = write_v2(tmp_path / "pickled.zarr", None)
    metadata = json.loads((path / "0" / ".zarray").read_text()) | {"compressor": {"id": "base64"}}
    (path / "0" / ".zarray").write_text(json.dumps(metadata))
    with pytest.raises(SlideError, match="stored by codec 'base64', which slidesam doesn't read"):
        inspect_slide(path)
