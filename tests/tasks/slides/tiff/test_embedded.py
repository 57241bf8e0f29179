"""Tiles whose own header says another size than the file."""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile

from slidesam.tasks.errors import SlideAwayError, SlideError
from slidesam.tasks.grid import Region
from slidesam.tasks.slides.inspect import inspect_slide
from slidesam.tasks.slides.reader import SlideReader
from slidesam.tasks.slides.tiff.embedded import check_embedded_size, find_frame_header
from tests.support.memory import measure_peak

SIDE, LARGE = 64, 2500
PIXELS = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3)).astype(np.uint8)
HUGE = np.broadcast_to(np.uint8(7), (LARGE, LARGE, 3))

ENCODERS = {
    "jpeg": (7, imagecodecs.jpeg8_encode), "jpeg2000": (34712, imagecodecs.jpeg2k_encode),
    "jpegxr": (34934, imagecodecs.jpegxr_encode), "png": (34933, imagecodecs.png_encode),
    "webp": (50001, imagecodecs.webp_encode), "jpegxl": (50002, partial(imagecodecs.jpegxl_encode, effort=1)),
    "lerc": (34887, imagecodecs.lerc_encode),
}  # fmt: skip
BYTES = {
    "zlib": (8, imagecodecs.zlib_encode), "deflate": (32946, imagecodecs.zlib_encode), "zstd": (50000, imagecodecs.zstd_encode),
    "lzma": (34925, imagecodecs.lzma_encode), "lzw": (5, imagecodecs.lzw_encode),
    "packbits": (32773, lambda data: b"\x81\x07" * (len(data) // 128)),
}  # fmt: skip


@pytest.fixture(scope="module")
def bombs() -> dict[str, bytes]:
    """Tiles of 2500 × 2500 pixels of one colour, 19 MB each when decoded."""
    whole = np.ascontiguousarray(HUGE)
    whole_tiles = {name: bytes(encode(whole)) for name, (_, encode) in ENCODERS.items()}
    return whole_tiles | {name: bytes(encode(whole.tobytes())) for name, (_, encode) in BYTES.items()}


def write(path: Path, compression: int, tile: bytes) -> Path:
    tifffile.imwrite(
        path,
        iter([tile]),
        shape=PIXELS.shape,
        dtype="u1",
        photometric="rgb",
        tile=(SIDE, SIDE),
        compression=compression,
    )
    return path


def read(path: Path) -> np.ndarray:
    with SlideReader(inspect_slide(path)) as reader:
        return reader.read(Region(0, 0, SIDE, SIDE))


def check_bounded(path: Path, *, is_refused: bool) -> None:
    slide = inspect_slide(path)
    with SlideReader(slide) as reader:

        def read_or_refuse() -> None:
            # The file is at fault: no automation tries it again.
            with pytest.raises(SlideError) if is_refused else suppress(SlideError) as raised:
                reader.read(Region(0, 0, SIDE, SIDE))
            assert raised is None or not isinstance(raised.value, SlideAwayError)

        assert measure_peak(read_or_refuse) < 2**23


@pytest.mark.parametrize("name", ENCODERS)
def test_a_tile_that_says_it_is_larger_is_refused_before_it_is_decoded(
    name: str, bombs: dict[str, bytes], tmp_path: Path
) -> None:
    compression, encode = ENCODERS[name]
    assert read(write(tmp_path / "whole.tif", compression, bytes(encode(PIXELS)))).shape == PIXELS.shape
    check_bounded(write(tmp_path / "bomb.tif", compression, bombs[name]), is_refused=True)


@pytest.mark.parametrize("name", BYTES)
def test_a_tile_that_grows_takes_no_more_than_its_size(name: str, bombs: dict[str, bytes], tmp_path: Path) -> None:
    check_bounded(write(tmp_path / "bomb.tif", BYTES[name][0], bombs[name]), is_refused=False)


@pytest.mark.parametrize(
    "stray",
    [b"\0", b"abc", b"\xff\xff", b"\xff\0", b"\xff\xd0", b"\xff\x01", b"\xff\xfe\0\x04ab", b"\0\xff\xe5\0\x02\0"],
)
def test_stray_bytes_hide_no_size_of_a_jpeg(stray: bytes, bombs: dict[str, bytes]) -> None:
    jpeg = bombs["jpeg"]
    for position in (2, find_frame_header(jpeg)):
        assert position is not None
        hidden = jpeg[:position] + stray + jpeg[position:]
        with pytest.raises(ValueError, match=f"a tile of 64 × 64 pixels says that it has {LARGE} × {LARGE}"):
            check_embedded_size(7, hidden, SIDE, SIDE)


@pytest.mark.parametrize("compress", [imagecodecs.zlib_encode, imagecodecs.zstd_encode])
def test_compression_hides_no_size_of_lerc(
    compress: Callable[[bytes], bytes], bombs: dict[str, bytes], tmp_path: Path
) -> None:
    whole = bytes(compress(imagecodecs.lerc_encode(PIXELS)))
    np.testing.assert_array_equal(read(write(tmp_path / "whole.tif", 34887, whole)), PIXELS)
    check_bounded(write(tmp_path / "bomb.tif", 34887, bytes(compress(bombs["lerc"]))), is_refused=True)
    # Much of nothing, before any header.
    zeros = bytes(compress(bytes(2**25)))
    assert measure_peak(lambda: refuse_lerc(zeros, "needs more than 8388608 bytes")) < 2**24


def test_the_first_version_of_lerc_states_its_size_too() -> None:
    refuse_lerc(struct.pack("<10siiiid", b"CntZImage ", 11, 8, 9000, 8000, 0.5), "says that it has 9000 × 8000")


def refuse_lerc(tile: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_embedded_size(34887, tile, SIDE, SIDE)


def test_frames_and_layers_count() -> None:
    frames = bytes(imagecodecs.jpegxl_encode(np.zeros((40, SIDE, SIDE, 3), np.uint8)))
    layers = bytes(imagecodecs.jpegxl_encode(np.zeros((SIDE, SIDE, 500), np.uint8), photometric="gray"))
    bands = bytes(imagecodecs.lerc_encode(np.zeros((SIDE, SIDE), np.uint8))) * 2000
    for compression, tile in ((50002, frames), (50002, layers), (34887, bands)):
        with pytest.raises(ValueError, match=r"says that it has 64 × (64|500) in \d+ layers"):
            check_embedded_size(compression, tile, SIDE, SIDE)


@pytest.mark.parametrize("name", ENCODERS)
def test_sizes_are_read_as_encoders_write_them(name: str) -> None:
    compression, encode = ENCODERS[name]
    for shape in ((SIDE, SIDE, 3), (100, 300, 3), (250, 250, 3), (256, 128, 3), (1023, 517, 3)):
        tile = bytes(encode(np.zeros(shape, np.uint8)))
        check_embedded_size(compression, tile, *shape[:2])
    with pytest.raises(ValueError, match="says that it has 1023 × 517"):
        check_embedded_size(compression, tile, 8, 8)
