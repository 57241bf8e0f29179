"""What isn't in a file wasn't scanned: it reads as background, is counted and said, and never decides about tissue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from numpy.typing import NDArray

from slidesam.tasks.grid import BlockGrid, Region
from slidesam.tasks.pixels.plan import pyramid_levels
from slidesam.tasks.pixels.pyramid import overview_level, read_overview
from slidesam.tasks.pixels.tissue import blocks_with_tissue, find_tissue
from slidesam.tasks.run.run import Run
from slidesam.tasks.settings.sections import Settings
from slidesam.tasks.slides.inspect import inspect_slide
from slidesam.tasks.slides.reader import SlideReader
from tests.support.made_slides import write_zarr

APERIO = "Aperio Image Library v11.0.0\r\n{1}x{0} [0,0 {1}x{0}] (64x64) JPEG/RGB Q=70|AppMag = 20|MPP = 0.5"
RGB_TILES: dict[str, Any] = {"photometric": "rgb", "tile": (64, 64), "metadata": None}


def remove_tiles(path: Path, page: int, tiles: list[int], which: str = "both", subifd: int | None = None) -> Path:
    """Set offset or size of tiles (or strips) to zero, as sparse files have it."""
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        target = tiff.pages[page] if subifd is None else tiff.pages[page].pages[subifd]
        noun = "Tile" if target.is_tiled else "Strip"
        for name in [f"{noun}Offsets", f"{noun}ByteCounts"][slice(which == "size", 1 if which == "offset" else 2)]:
            numbers = list(target.tags[name].value)
            for tile in tiles:
                numbers[tile] = 0
            target.tags[name].overwrite(numbers)
    return path


def bright_field(height: int = 256, width: int = 320, dtype: str = "uint8", white: float = 255) -> NDArray[Any]:
    image = np.random.default_rng(0).uniform(0.2, 0.9, (height, width, 3)) * white
    return image.astype(dtype)


def read_level(path: Path, level: int = 0) -> NDArray[Any]:
    slide = inspect_slide(path)
    with SlideReader(slide) as reader:
        return reader.read(Region(0, 0, *slide.levels[level].shape), level, range(slide.size_c))


@pytest.mark.parametrize("which", ["both", "offset", "size"])
@pytest.mark.parametrize(
    ("image", "options", "background"),
    [
        (bright_field(), RGB_TILES, 255),
        (bright_field(), RGB_TILES | {"compression": "zlib", "predictor": True}, 255),
        (bright_field(), RGB_TILES | {"description": APERIO.format(256, 320)}, 255),
        (bright_field(), RGB_TILES | {"planarconfig": "separate"}, 255),
        (bright_field(), {"photometric": "rgb", "bigtiff": True, "rowsperstrip": 64, "metadata": None}, 255),
        (bright_field(), {"photometric": "rgb", "tile": (64, 64), "ome": True}, 255),
        (bright_field(dtype="uint16", white=65535), RGB_TILES, 65535),
        (bright_field(dtype="float32", white=1), RGB_TILES, 1),
        (bright_field(), RGB_TILES | {"extratags": [(42113, 2, 0, "0", True)]}, 255),
        (bright_field(), RGB_TILES | {"extratags": [(42113, 2, 0, "240", True)]}, 240),
        (bright_field()[..., 0], {"tile": (64, 64), "metadata": None}, 0),
        (bright_field(dtype="float32")[..., 0], {"tile": (64, 64), "extratags": [(42113, 2, 0, "-3.4e38", True)]}, 0),
        (bright_field(dtype="float32")[..., 0], {"tile": (64, 64), "extratags": [(42113, 2, 0, "nan", True)]}, 0),
        (bright_field(dtype="uint16")[..., 0], {"tile": (64, 64), "extratags": [(42113, 2, 0, "7", True)]}, 7),
        (bright_field(dtype="uint16")[..., 0], {"tile": (64, 64), "extratags": [(42113, 2, 0, "-9999", True)]}, 0),
    ],
)
def test_missing_tiles_are_background_and_said(
    tmp_path: Path, image: NDArray[Any], options: dict[str, Any], background: float, which: str
) -> None:
    samples_apart = options.get("planarconfig") == "separate"
    path = tmp_path / ("a.ome.tif" if "ome" in options else "a.tif")
    tifffile.imwrite(path, np.moveaxis(image, 2, 0) if samples_apart else image, **options)
    is_tiled = "tile" in options
    per_plane = 20 if is_tiled else 4
    remove_tiles(path, 0, [1, 21, 41] if samples_apart else [1], which)
    expected = image.reshape(*image.shape[:2], -1).copy()
    expected[slice(0, 64) if is_tiled else slice(64, 128), slice(64, 128) if is_tiled else slice(None)] = background
    np.testing.assert_array_equal(read_level(path), expected)
    slide = inspect_slide(path)
    count = "3 of 60" if samples_apart else f"1 of {per_plane}"
    said = f"{count} {'tiles' if is_tiled else 'strips'} of level 0 aren't there and are read as background"
    assert any(said in warning for warning in slide.warnings), slide.warnings
    assert slide.has_gaps


def write_svs(path: Path, image: NDArray[Any], factor: int = 2) -> Path:
    """Level 0, a thumbnail, level 1."""
    description = APERIO.format(*image.shape)
    with tifffile.TiffWriter(path) as writer:
        writer.write(image, description=description, **RGB_TILES)
        writer.write(image[::16, ::16].copy(), description="Aperio Image Library v11\r\nthumb", photometric="rgb")
        writer.write(image[::factor, ::factor].copy(), description=f"{description} -> 2", **RGB_TILES)
    return path


def test_a_level_with_a_hole_of_its_own_decides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells under a tile that is missing in the coarse level only are found: the finer level is asked."""
    monkeypatch.setattr("slidesam.tasks.pixels.pyramid.OVERVIEW_SIDE", 256)
    image = np.full((512, 512, 3), 243, np.uint8)
    image[40:60, 40:60] = 90, 60, 140
    image[300:320, 300:320] = 90, 60, 140
    path = write_svs(tmp_path / "a.svs", image)
    whole = inspect_slide(path)
    assert not whole.has_gaps
    assert [level.is_whole for level in whole.levels] == [True, True]
    remove_tiles(path, 2, [0])
    slide = inspect_slide(path)
    assert [level.is_whole for level in slide.levels] == [True, False]
    assert any("1 of 16 tiles of level 1 aren't there" in warning for warning in slide.warnings), slide.warnings
    assert slide.identity.digest != whole.identity.digest
    assert (overview_level(whole), overview_level(slide)) == ((1, 0), (0, 1))
    mask = find_tissue(read_overview(slide, (0, 1, 2)), is_rgb=True)
    assert set(blocks_with_tissue(mask, BlockGrid((512, 512), (128, 128), 0))) == {0, 10}
    np.testing.assert_array_equal(read_level(path, 1)[:64, :64], np.full((64, 64, 3), 255))


def test_blocks_and_pyramids_arent_made_from_a_level_with_a_hole(tmp_path: Path) -> None:
    path = write_svs(tmp_path / "a.svs", bright_field(1024, 1024))
    settings = Settings.model_validate(
        {
            "slide": {"target_mpp": 1.25},
            "image": {"convert": "never", "rechunk": "never"},
            "blocks": {"block_shape": 512, "halo": 16},
        }
    )
    chosen = []
    for _ in range(2):
        slide = inspect_slide(path)
        run = Run(slide=slide, output=tmp_path, settings=settings, segmenter_identity="")
        chosen.append((run.segmented_level, [level.source_level for level in pyramid_levels(slide, in_memory=1)]))
        remove_tiles(path, 2, [0])
    assert chosen == [(1, [None, 1]), (0, [None, None])]


def test_a_hole_over_holes_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What wasn't scanned is missing at every level: nothing is lost by asking the coarse one."""
    monkeypatch.setattr("slidesam.tasks.pixels.pyramid.OVERVIEW_SIDE", 256)
    path = write_svs(tmp_path / "a.svs", bright_field(512, 512))
    remove_tiles(path, 0, [0, 1, 8, 9])
    remove_tiles(path, 2, [0])
    slide = inspect_slide(path)
    assert [level.is_whole for level in slide.levels] == [True, True]
    assert overview_level(slide) == (1, 0)
    remove_tiles(path, 2, [0, 5])
    assert [level.is_whole for level in inspect_slide(path).levels] == [True, False]


@pytest.mark.parametrize("size", [(500, 470), (641, 333)])
def test_levels_whose_size_is_rounded_are_compared_all_the_same(tmp_path: Path, size: tuple[int, int]) -> None:
    image = bright_field(*size)
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(image, subifds=1, **RGB_TILES)
        writer.write(image[: size[0] // 4 * 4 : 4, : size[1] // 4 * 4 : 4].copy(), subfiletype=1, **RGB_TILES)
    columns = -(-size[1] // 64)
    remove_tiles(path, 0, [y * columns + x for y in range(4) for x in range(4)])
    remove_tiles(path, 0, [0], subifd=0)
    assert [level.is_whole for level in inspect_slide(path).levels] == [True, True]


def test_a_coarse_level_without_any_data_is_left_out(tmp_path: Path) -> None:
    path = write_svs(tmp_path / "a.svs", bright_field())
    remove_tiles(path, 2, list(range(6)))
    slide = inspect_slide(path)
    assert [level.shape for level in slide.levels] == [(256, 320)]
    assert any("level 1 holds no data and isn't used" in warning for warning in slide.warnings)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("is_rgb", [True, False])
def test_missing_chunks_are_background(tmp_path: Path, version: str, is_rgb: bool) -> None:
    """Missing files of chunks, and in version 0.5 (level 1) chunks that a shard leaves out."""
    made = write_zarr(tmp_path / "a.zarr", "cyx", {"c": 3, "y": 66, "x": 80}, version, dtype="uint8")
    group = zarr.open_group(made.path, mode="r+")
    names = ("red", "green", "blue") if is_rgb else ("DAPI", "b", "c")
    omero = {"channels": [{"label": name, "color": "FFFFFF"} for name in names]}
    group.attrs.update({"ome": {**group.attrs["ome"], "omero": omero}} if version == "0.5" else {"omero": omero})
    zarr.open_array(made.path / "1", mode="r+")[:, :33, :] = 0  # is left out, being equal to the fill value
    (made.path / ("0/c/0/0/1" if version == "0.5" else "0/0.0.1")).unlink()
    background = 255 if is_rgb else 0
    expected = np.moveaxis(made.levels[0][0, :, 0], 0, 2).copy()
    expected[:33, 40:80, :2] = background
    np.testing.assert_array_equal(read_level(made.path), expected)
    assert (read_level(made.path, 1)[:33] == background).all()
    assert inspect_slide(made.path).has_gaps


def test_a_shard_may_leave_chunks_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which chunks a shard lacks isn't known without reading it, as where there are too many files to list."""
    sizes = {"y": 66, "x": 80}
    assert not inspect_slide(write_zarr(tmp_path / "a.zarr", "yx", sizes, n_levels=1).path).has_gaps
    assert inspect_slide(write_zarr(tmp_path / "b.zarr", "yx", sizes, n_levels=1, sharded=True).path).has_gaps
    monkeypatch.setattr("slidesam.tasks.slides.zarr.levels.MAX_COUNTED_CHUNKS", 1)
    assert inspect_slide(tmp_path / "a.zarr").has_gaps


def write_rgb_zarr(path: Path, version: str, dtype: str, fill: Any, **options: Any) -> Path:
    """(3, 64, 96) pixels in chunks (3, 32, 32) without those at [0, 32:64] and [32:64, 64:96]."""
    group = zarr.create_group(path, zarr_format=3 if version == "0.5" else 2)
    sizes = {"shape": (3, 64, 96), "chunks": (3, 32, 32), "dtype": dtype, "fill_value": fill}
    array = group.create_array("0", **sizes, **options)
    for y, x in ((0, 0), (0, 64), (32, 0), (32, 32)):
        array[:, y : y + 32, x : x + 32] = 1
    axes = [{"name": name, "type": "channel" if name == "c" else "space"} for name in "cyx"]
    entry = {"version": version, "axes": axes, "datasets": [{"path": "0"}]}
    omero = {"channels": [{"label": name, "color": "FFFFFF"} for name in ("red", "green", "blue")]}
    ome = {"version": version, "multiscales": [entry], "omero": omero}
    group.attrs.update({"ome": ome} if version == "0.5" else ome)
    return path


@pytest.mark.parametrize(
    ("version", "options"),
    [("0.4", {}), ("0.5", {}), ("0.5", {"shards": (3, 64, 96)})],
    ids=["0.4", "0.5", "chunks of a shard"],
)
@pytest.mark.parametrize(
    ("dtype", "fill", "background"),
    [
        ("uint8", 230, 230), ("uint8", 0, 255), ("uint8", None, 255), ("uint16", 4095, 4095), ("uint16", 0, 65535),
        ("float32", 0.9, 0.9), ("float32", float("nan"), 1), ("float64", -0.0, 1), ("float32", float("inf"), 1),
        ("float32", -3.4e38, 1),
    ],
)  # fmt: skip
def test_missing_chunks_have_the_value_that_the_store_states(
    tmp_path: Path, version: str, options: dict[str, Any], dtype: str, fill: Any, background: float
) -> None:
    path = write_rgb_zarr(tmp_path / "a.zarr", version, dtype, fill, **options)
    slide = inspect_slide(path)
    assert slide.is_rgb
    pixels = read_level(path)
    expected = np.ones_like(pixels)
    expected[:32, 32:64] = expected[32:, 64:] = background
    np.testing.assert_array_equal(pixels, expected)


def test_which_chunks_are_missing_identifies_a_slide(tmp_path: Path) -> None:
    """Two incomplete copies that lack equally many chunks, or the same chunks of another level, are different slides."""
    digests = {}
    for keys in ((), ("0/0.0.0",), ("0/0.0.1",), ("0/0.1.0",), ("1/0.0.0",), ("0/0.0.0", "1/0.0.0")):
        made = write_zarr(tmp_path / f"{len(digests)}" / "a.zarr", "cyx", {"c": 1, "y": 66, "x": 80}, "0.4")
        for key in keys:
            (made.path / key).unlink()
        digests[keys] = inspect_slide(made.path).identity.digest
    assert len(set(digests.values())) == len(digests), digests


def test_which_tiles_are_missing_identifies_a_slide(tmp_path: Path) -> None:
    """The tables lie in the middle of a large file, of which no bytes are compared."""
    image = np.random.default_rng(0).integers(1, 255, (2**11, 2**11), np.uint8)
    digests = set()
    for tile in (300, 301, 302):
        path = tmp_path / "a.tif"
        with tifffile.TiffWriter(path) as writer:
            for number in range(3):
                writer.write(image if number < 2 else image[:1024, :1024], tile=(64, 64), metadata=None)
        remove_tiles(path, 1, [tile])
        digests.add(inspect_slide(path).identity.digest)
    assert len(digests) == 3


def test_levels_share_the_value_that_the_finest_states(tmp_path: Path) -> None:
    """GDAL states it at level 0 only; a level that states its own keeps it."""
    stated = {"extratags": [(42113, 2, 0, "200", True)]}
    image = bright_field()
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(image, subifds=2, **RGB_TILES, **stated)
        writer.write(image[::2, ::2], subfiletype=1, **RGB_TILES)
        writer.write(image[::4, ::4], subfiletype=1, **RGB_TILES | {"extratags": [(42113, 2, 0, "100", True)]})
    remove_tiles(tmp_path / "a.tif", 0, [0, 1, 5, 6])
    for subifd in (0, 1):
        remove_tiles(tmp_path / "a.tif", 0, [0], subifd=subifd)
    for level, value in enumerate((200, 200, 100)):
        assert (read_level(tmp_path / "a.tif", level)[:64, :64] == value).all()


def test_what_is_no_data_at_level_0_is_none_at_coarser_ones(tmp_path: Path) -> None:
    image = np.ones((64, 64), np.float32)
    image[:32] = -9999
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(image, subifds=1, metadata=None, extratags=[(42113, 2, 0, "-9999", True)])
        writer.write(image[::2, ::2], subfiletype=1, metadata=None)
    assert np.isnan(read_level(tmp_path / "a.tif", 1)[:16]).all()


def test_sentences_number_levels_as_the_file_does(tmp_path: Path) -> None:
    path, tiles = tmp_path / "a.ome.tif", {"tile": (64, 64), "metadata": None, "subfiletype": 1}
    image = bright_field(dtype="uint16", white=65535)[..., 0]
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(image, subifds=2, tile=(64, 64), metadata={"axes": "YX"})
        writer.write((image[::2, ::2] >> 8).astype(np.uint8), **tiles)
        writer.write(image[::4, ::4], **tiles)
    remove_tiles(path, 0, [1], subifd=1)
    warnings = " ".join(inspect_slide(path).warnings)
    assert "level 1 holds another kind" in warnings
    assert "1 of 2 tiles of level 2 aren't there" in warnings
