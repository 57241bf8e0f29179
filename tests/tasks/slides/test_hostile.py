"""Every way in which a slide can be broken: it reads, or it is refused in one line that names it; nothing else, and soon."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from zarr.codecs import BloscCodec

from slidesam.tasks.errors import SettingsError, SlideError
from slidesam.tasks.grid import Region
from slidesam.tasks.settings.sections import SlideSettings
from slidesam.tasks.slides.inspect import inspect_slide
from slidesam.tasks.slides.reader import SlideReader
from tests.support import ROOT
from tests.support.made_slides import Made, make_all, pixels, write_tiff, write_zarr


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    return dict(make_all(tmp_path_factory.mktemp("slides")))


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
        (256, 10**6, "truncated: "),
        (322, 2**20, "GiB each"),
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
            inspect_slide(path)
        message = str(caught.value)
        assert path.name in message
        assert words in message, message
        assert "\n" not in message
        assert ";" in message
    assert capfd.readouterr() == ("", "")


def test_multi_file_ome_tiff_is_refused(shared_data: Path) -> None:
    with pytest.raises(SlideError, match=r"multifile-Z2.* several files .*companion.* bfconvert"):
        inspect_slide(shared_data / "ometiff_multifile/multifile-Z2.ome.tiff")


@pytest.mark.parametrize(
    "wrong", [{"series": 1}, {"t": 2}, {"z": 2}, {"channels": ("DAPI",)}, {"channels": (3,)}, {"channels": ()}]
)
def test_settings_out_of_range(made: dict[str, Made], wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=f"^setting slide.{next(iter(wrong))}: "):
        inspect_slide(made["imagej"].path, SlideSettings(**wrong))


@pytest.mark.parametrize("kind", ["other shape", "same shape", "older", "in place", "grown"])
def test_tiff_changed_since_inspection(tmp_path: Path, kind: str) -> None:
    path = write_tiff(tmp_path / "a.tif", pixels(60, 70), "YX").path
    slide = inspect_slide(path)
    SlideReader(slide).close()
    if kind == "in place":
        with path.open("r+b") as stream:
            stream.seek(-1, os.SEEK_END)
            stream.write(b"x")
    elif kind == "grown":
        with path.open("ab") as stream:
            stream.write(b"x")
        os.utime(path, ns=(slide.identity.modified, slide.identity.modified))
    else:
        other = write_tiff(tmp_path / "b.tif", pixels(60, 71 if kind == "other shape" else 70), "YX").path
        if kind == "older":
            os.utime(other, ns=(1, 1))
        other.replace(path)
    if kind in ("in place", "same shape"):
        os.utime(path, ns=(slide.identity.modified + 1,) * 2)  # whatever the clock's ticks
    with pytest.raises(SlideError) as caught:
        SlideReader(slide)
    assert str(caught.value) == "a.tif: changed since the run was planned; run the same command again"


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_zarr_changed_since_inspection(tmp_path: Path, version: str) -> None:
    sizes = {"y": 60, "x": 70}
    path = write_zarr(tmp_path / "a.zarr", "yx", sizes, version).path
    first = inspect_slide(path)
    SlideReader(first).close()
    shutil.rmtree(path)
    write_zarr(path, "yx", sizes, version)
    second = inspect_slide(path)
    # Of several files, one that is neither the newest nor of another size.
    metadata = path / ("0/zarr.json" if version == "0.5" else "0/.zarray")
    assert second.identity.size == first.identity.size
    os.utime(metadata, ns=(1, 1))
    assert inspect_slide(path).identity.modified == second.identity.modified
    for slide in (first, second):
        with pytest.raises(SlideError) as caught:
            SlideReader(slide)
        assert str(caught.value) == "a.zarr: changed since the run was planned; run the same command again"
    SlideReader(inspect_slide(path)).close()


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_blosc_chunk_cut_short_is_an_error(tmp_path: Path, version: str) -> None:
    """Blosc's decoder reads on past the end of such a chunk and returns what lies in memory there."""
    codec = {"compressors": BloscCodec()} if version == "0.5" else {}
    slide = inspect_slide(write_zarr(tmp_path / "a.zarr", "yx", {"y": 30, "x": 40}, version, n_levels=1, **codec).path)
    chunk = slide.path / ("0/c/0/0" if version == "0.5" else "0/0.0")
    for size in (0, 5, 100, chunk.stat().st_size - 1):
        os.truncate(chunk, size)
        with SlideReader(slide) as reader, pytest.raises(SlideError, match="can't be decoded"):
            reader.read(Region(0, 0, 30, 40))
    chunk.unlink()
    assert any("1 of 1 chunks" in warning for warning in inspect_slide(slide.path).warnings)


# --- Files that are broken in ways nobody thought of. In a process of their own, whose memory is bounded.

READ_EVERYTHING = """
import json, resource, sys, time
import numpy, tifffile, zarr, imagecodecs
from pathlib import Path
from slidesam.tasks.errors import SlideError
from slidesam.tasks.grid import BlockGrid
from slidesam.tasks.slides.inspect import inspect_slide
from slidesam.tasks.slides.reader import SlideReader

pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 4 * 2**30,) * 2)
for path in sys.stdin.read().splitlines():
    start, told, read = time.monotonic(), [], 0
    try:
        slide = inspect_slide(path)
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
    assert "tifffile" not in done.stderr, done.stderr
    return {path: read for path, _, read, _ in results}


def test_hostile_files(shared_data: Path) -> None:
    folders = [shared_data / name for name in ("hostile_tiff", "hostile_zarr", "derived_hostile")]
    paths = [path for folder in folders for path in sorted(folder.iterdir()) if path.suffix != ".md"]
    paths += sorted((shared_data / "hostile_zarr/broken_v05.ome.zarr").glob("*/*/*"))
    read = assert_readable_or_refused(paths)
    assert read[str(shared_data / "hostile_tiff/pillow_hopper_bigtiff.tif")] == 1


def test_truncated_anywhere(made: dict[str, Made], tmp_path: Path, request: pytest.FixtureRequest) -> None:
    sources = [made["ome-tiff TCZYX"].path, made["rgb tiles"].path, made["generic pyramid"].path]
    data = ROOT.parent / "shared/data/svs_cmu1_small/CMU-1-Small-Region.svs"
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
