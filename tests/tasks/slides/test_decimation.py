"""Coarse levels that take single pixels are told from averages, and tissue isn't looked for on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from numpy.typing import NDArray
from PIL import Image
from skimage.data import immunohistochemistry
from skimage.transform import resize

from slidesam.attempts import run_stages
from slidesam.tasks.errors import SlideAwayError, SlideError, SlideGoneError
from slidesam.tasks.grid import Region
from slidesam.tasks.pixels import plan as image_plan
from slidesam.tasks.pixels import pyramid
from slidesam.tasks.pixels.pyramid import overview_level
from slidesam.tasks.pixels.tissue import blocks_with_tissue, find_tissue
from slidesam.tasks.plan import explain, plan_run
from slidesam.tasks.run.run import Run
from slidesam.tasks.segment.prepare import prepare_run
from slidesam.tasks.settings.parse import make_settings
from slidesam.tasks.slides import decimation
from slidesam.tasks.slides.decimation import mark_decimated
from slidesam.tasks.slides.inspect import inspect_slide
from slidesam.tasks.slides.reader import SlideReader
from slidesam.tasks.store.image import is_shown
from slidesam.tasks.store.ome_zarr import listed_labels
from tests.support.serial import EXECUTOR, segment_serially, write_image_serially

Levels = list[NDArray]


def resized(image: NDArray, factor: int, method: Image.Resampling, *, is_up: bool = False) -> NDArray:
    size = [(-(-side // factor) if is_up else side // factor) for side in image.shape[1::-1]]
    return np.asarray(Image.fromarray(image).resize((size[0], size[1]), method))


def block_mean(image: NDArray, factor: int) -> NDArray:
    height, width = (side // factor * factor for side in image.shape[:2])
    blocks = image[:height, :width].reshape(height // factor, factor, width // factor, factor, -1)
    return blocks.mean(axis=(1, 3)).reshape(height // factor, width // factor, *image.shape[2:])


DECIMATIONS: dict[str, Callable[[NDArray, int], NDArray]] = {
    "every n-th pixel": lambda image, factor: image[::factor, ::factor],
    "the last of n": lambda image, factor: image[factor - 1 :: factor, factor - 1 :: factor],
    "nearest, rounded down": lambda image, factor: resized(image, factor, Image.Resampling.NEAREST),
    "nearest, rounded up": lambda image, factor: resized(image, factor, Image.Resampling.NEAREST, is_up=True),
    "nearest of scikit-image": lambda image, factor: resize(
        image, [-(-side // factor) for side in image.shape[:2]], order=0, preserve_range=True, anti_aliasing=False
    ).astype(image.dtype),
}
AVERAGES: dict[str, Callable[[NDArray, int], NDArray]] = {
    "rounded": lambda image, factor: np.rint(block_mean(image, factor)).astype(image.dtype),
    "rounded down": lambda image, factor: block_mean(image, factor).astype(image.dtype),
    **{
        f"{method.name} {'up' if is_up else 'down'}": (
            lambda image, factor, method=method, is_up=is_up: resized(image, factor, method, is_up=is_up)
        )
        for method in (
            Image.Resampling.BOX,
            Image.Resampling.BILINEAR,
            Image.Resampling.BICUBIC,
            Image.Resampling.LANCZOS,
        )
        for is_up in (False, True)
    },
    "smoothed first": lambda image, factor: resize(
        image, [side // factor for side in image.shape[:2]], preserve_range=True, anti_aliasing=True
    ).astype(image.dtype),
}


def make_levels(image: NDArray, reduce: Callable[[NDArray, int], NDArray], factor: int, n_levels: int = 3) -> Levels:
    levels = [image]
    while len(levels) < n_levels:
        levels.append(np.ascontiguousarray(reduce(levels[-1], factor)))
    return levels


def write_tiff(path: Path, levels: Levels, **options: object) -> Path:
    kind = {"photometric": "rgb"} if levels[0].ndim == 3 else {"photometric": "minisblack"}
    with tifffile.TiffWriter(path) as tiff:
        for number, level in enumerate(levels):
            tiff.write(level, subfiletype=int(number > 0), tile=(64, 64), metadata=None, **kind, **options)
    return path


def write_zarr(path: Path, levels: Levels) -> Path:
    group = zarr.create_group(path)
    datasets = []
    for number, level in enumerate(levels):
        group.create_array(str(number), shape=level.shape, chunks=(100, 120), dtype=level.dtype)[...] = level
        scale = [round(of / to, 1) for of, to in zip(levels[0].shape, level.shape, strict=True)]
        datasets.append({"path": str(number), "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    axes = [{"name": name, "type": "space"} for name in "yx"]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    return path


def are_averaged(path: Path) -> list[bool]:
    return [level.is_averaged for level in mark_decimated(inspect_slide(path)).levels]


def cells(shape: tuple[int, int], side: int = 6, background: float = 100.0, noise: float = 3.0) -> NDArray[np.uint16]:
    """A bright cell of some pixels in each square of 128 pixels, anywhere in it."""
    rng = np.random.default_rng(0)
    image = background + noise * rng.standard_normal(shape)
    for y in range(0, shape[0], 128):
        for x in range(0, shape[1], 128):
            dy, dx = rng.integers(0, 128 - side, 2)
            image[y + dy : y + dy + side, x + dx : x + dx + side] += 3000
    return np.clip(image, 0, None).astype(np.uint16)


TISSUE = immunohistochemistry()[:499, :487]


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("method", DECIMATIONS)
def test_decimated_levels_are_found(method: str, factor: int, tmp_path: Path) -> None:
    for name, image in {"tissue": TISSUE, "cells": cells((700, 611))}.items():
        levels = make_levels(image, DECIMATIONS[method], factor)
        path = write_tiff(tmp_path / f"{name}.tif", levels, compression="zlib")
        assert are_averaged(path) == [True, False, False], name


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("method", AVERAGES)
def test_averaged_levels_stay_in_use(method: str, factor: int, tmp_path: Path) -> None:
    for name, image in {"tissue": TISSUE, "cells": cells((700, 611)), "no noise": cells((700, 611), noise=0)}.items():
        levels = make_levels(image, AVERAGES[method], factor)
        path = write_tiff(tmp_path / f"{name}.tif", levels, compression="zlib")
        assert are_averaged(path) == [True, True, True], name


@pytest.mark.parametrize(("quality", "factor"), [(95, 2), (95, 4), (85, 2), (75, 2), (75, 4), (50, 4)])
def test_lossy_compression_hides_neither(quality: int, factor: int, tmp_path: Path) -> None:
    options = {"compression": "jpeg", "compressionargs": {"level": quality}}
    for name, reduce, expected in (
        ("decimated", DECIMATIONS["every n-th pixel"], False),
        ("averaged", AVERAGES["rounded"], True),
    ):
        path = write_tiff(tmp_path / f"{name}.tif", make_levels(TISSUE, reduce, factor), **options)
        assert are_averaged(path) == [True, expected, expected], name


def test_interpolation_without_averaging_is_found(tmp_path: Path) -> None:
    def interpolate(image: NDArray, factor: int) -> NDArray:
        size = [side // factor for side in image.shape[:2]]
        return resize(image, size, order=1, preserve_range=True, anti_aliasing=False).astype(image.dtype)

    path = write_tiff(tmp_path / "s.tif", make_levels(TISSUE, interpolate, 4, 2))
    assert are_averaged(path) == [True, False]


def test_from_the_first_decimated_level_on_none_is_used(tmp_path: Path) -> None:
    mean = AVERAGES["rounded"](TISSUE, 2)
    levels = [TISSUE, mean, mean[::2, ::2], AVERAGES["rounded"](mean[::2, ::2], 2)]
    assert are_averaged(write_tiff(tmp_path / "s.tif", levels)) == [True, True, False, False]


@pytest.mark.parametrize("image", [np.zeros((300, 300), np.uint8), np.full((300, 300), 7, np.float32)])
def test_where_all_pixels_are_alike_nothing_is_marked(image: NDArray, tmp_path: Path) -> None:
    assert are_averaged(write_zarr(tmp_path / "s.ome.zarr", [image, image[::2, ::2]])) == [True, True]


def test_a_coarse_level_on_which_all_cells_vanished_is_marked(tmp_path: Path) -> None:
    image = np.zeros((512, 512), np.uint16)
    image[33:39, 65:71] = image[201:207, 401:407] = 500
    levels = [image, image[::16, ::16]]
    assert not levels[1].any()
    assert are_averaged(write_zarr(tmp_path / "s.ome.zarr", levels)) == [True, False]


def test_a_level_that_cant_be_decoded_is_left_to_whoever_reads_it(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "s.tif", make_levels(TISSUE, DECIMATIONS["every n-th pixel"], 2), compression="zlib")
    with tifffile.TiffFile(path) as tiff:
        offsets = tiff.pages[2].dataoffsets
    with path.open("r+b") as file:
        for offset in offsets:
            file.seek(offset)
            file.write(b"\xff" * 16)
    assert are_averaged(path) == [True, True, True]


NO_DATA = [np.nan, np.inf, -3.4e38, 1e38]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("value", NO_DATA)
@pytest.mark.parametrize("share", [0.0005, 0.05, "half", "frame"])
def test_pixels_without_data_hide_neither(share: float | str, value: float, dtype: str, tmp_path: Path) -> None:
    image = cells((700, 611)).astype(dtype)
    with np.errstate(over="ignore"):
        if share == "half":
            image[:, :300] = value
        elif share == "frame":
            image[:16], image[:, -16:] = value, value
        else:
            image[np.random.default_rng(1).random(image.shape) < share] = value
        for name, reduce, expected in (
            ("decimated", DECIMATIONS["every n-th pixel"], False),
            ("averaged", block_mean, True),
        ):
            levels = [level.astype(dtype) for level in make_levels(image, reduce, 2)]
            assert are_averaged(write_zarr(tmp_path / f"{name}.ome.zarr", levels)) == [True, expected, expected], name


def test_where_no_pixel_holds_data_nothing_is_marked(tmp_path: Path) -> None:
    image = np.full((300, 300), -3.4e38, np.float32)
    image[:, :150] = np.nan
    assert are_averaged(write_zarr(tmp_path / "s.ome.zarr", [image, image[::2, ::2]])) == [True, True]


@pytest.mark.parametrize("nuclei", [1, 2, 3, 7])
@pytest.mark.parametrize("reduce", ["decimated", "averaged"])
def test_levels_are_judged_whichever_channels_are_chosen(reduce: str, nuclei: int, tmp_path: Path) -> None:
    path = write_channels(tmp_path / "s.ome.zarr", nuclei, reduce)
    unused = {
        channel: planned(path, tmp_path / "out", slide__channels=[channel]).slide.unused_levels
        for channel in (0, nuclei)
    }
    assert unused == dict.fromkeys((0, nuclei), (1,) if reduce == "decimated" else ())


def test_labels_of_other_channels_share_a_store(tmp_path: Path) -> None:
    path = write_channels(tmp_path / "s.ome.zarr", 1, "decimated")
    for label, channel in (("empty", 0), ("nuclei", 1)):
        settings = {"segmenter.kind": "watershed", "slide.channels": [channel], "output.label": label}
        segment_serially(path, tmp_path / "out", settings | {"image.convert": "never"})
    run = planned(path, tmp_path / "out")
    assert listed_labels(zarr.open_group(run.store, mode="r")) == ["empty", "nuclei"]


def test_an_image_made_of_other_levels_is_made_again_under_its_labels(tmp_path: Path) -> None:
    path = write_channels(tmp_path / "s.ome.zarr", 0, "decimated")
    first, second = (planned(path, tmp_path / "out", output__label=label, image__convert="never") for label in "ab")
    # As an earlier version judged that looked at other channels.
    all_levels = tuple(level.model_copy(update={"is_averaged": True}) for level in first.slide.levels)
    older = first.model_copy(update={"slide": first.slide.model_copy(update={"levels": all_levels})})
    assert older.slide.unused_levels == ()
    run_stages(older, EXECUTOR, check=lambda: None)
    assert not is_shown(second)
    run_stages(second, EXECUTOR, check=lambda: None)
    assert is_shown(second)
    assert listed_labels(zarr.open_group(second.store, mode="r")) == ["a", "b"]


def write_channels(path: Path, nuclei: int, reduce: str) -> Path:
    """Write a slide of eight channels, constant but for one with cells."""
    image = np.full((8, 400, 400), 5, np.uint16)
    image[nuclei] = cells((400, 400))
    coarse = image[:, ::2, ::2] if reduce == "decimated" else np.stack([block_mean(plane, 2) for plane in image])
    group, datasets = zarr.create_group(path), []
    for number, level in enumerate([image, np.rint(coarse).astype(np.uint16)]):
        array = group.create_array(str(number), shape=level.shape, chunks=(1, 100, 100), dtype=level.dtype)
        array[...] = level
        scale = [1.0, *[2.0**number] * 2]
        datasets.append({"path": str(number), "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    axes = [{"name": "c", "type": "channel"}, *({"name": name, "type": "space"} for name in "yx")]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    return path


def test_no_block_with_a_cell_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyramid, "OVERVIEW_SIDE", 128)
    image = cells((1024, 2048), side=5)
    slides = {
        "decimated": write_zarr(tmp_path / "d.ome.zarr", [image, image[::4, ::4], image[::16, ::16]]),
        "averaged": write_zarr(tmp_path / "a.ome.zarr", make_levels(image, AVERAGES["rounded"], 4)),
    }
    n_blocks = {}
    for name, slide in slides.items():
        run = planned(slide, tmp_path / "out")
        write_image_serially(run)
        blocks = prepare_run(run).blocks
        n_blocks[name] = len(run.grid) if blocks is None else len(blocks)
    assert n_blocks == {"decimated": 128, "averaged": 128}
    # On the decimated level itself most of them can't be seen.
    with SlideReader(inspect_slide(slides["decimated"])) as reader:
        level = Region(0, 0, *reader.slide.levels[2].shape)
        coarse = find_tissue(reader.read(level, 2), is_rgb=False)
    assert len(blocks_with_tissue(coarse, run.grid)) < 64


def planned(slide: Path, output: Path, **changes: object) -> Run:
    overrides = {"segmenter.kind": "watershed", "blocks.block_shape": 128, "blocks.halo": 8}
    overrides |= {key.replace("__", "."): value for key, value in changes.items()}
    return plan_run(slide, output, make_settings(overrides=overrides))


def test_decimated_levels_arent_copied_nor_segmented_and_that_is_said(tmp_path: Path) -> None:
    slide = write_tiff(tmp_path / "s.tif", make_levels(TISSUE, DECIMATIONS["every n-th pixel"], 2))
    run = planned(slide, tmp_path / "out", image__convert="never", slide__mpp=0.25, slide__target_mpp=1.0)
    assert run.segmented_level == 0
    assert [level.source_level for level in planned(slide, tmp_path / "out").image_plan.levels] == [None]
    assert overview_level(run.slide)[0] == 0
    assert "image: coarse levels (1, 2) take single pixels, no averages: they aren't used" in explain(run)


@pytest.mark.parametrize("kind", ["decimated", "averaged"])
def test_labels_are_the_same_converted_and_in_place(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyramid, "OVERVIEW_SIDE", 100)
    monkeypatch.setattr(image_plan, "_SMALLEST_LEVEL", 50)
    reduce = {"decimated": DECIMATIONS["every n-th pixel"], "averaged": AVERAGES["rounded"]}[kind]
    slide = write_tiff(tmp_path / "s.tif", make_levels(TISSUE, reduce, 2, 4))
    settings = {"segmenter.kind": "watershed", "blocks.block_shape": 256, "blocks.halo": 16}
    always, never = (
        segment_serially(slide, tmp_path / way, settings | {"image.convert": way}) for way in ("always", "never")
    )
    assert always.max() > 50
    np.testing.assert_array_equal(always, never)


RATIOS = {
    "1.6": (0.625, 0.625),
    "2.6": (1 / 2.6, 1 / 2.6),
    "y only": (0.5, 1),
    "x only": (1, 0.25),
    "2 x 3": (1 / 2, 1 / 3),
    "4 x 2": (1 / 4, 1 / 2),
    "1.125 x 3": (1 / 1.125, 1 / 3),
}


@pytest.mark.parametrize("ratio", RATIOS)
def test_levels_of_any_ratio(ratio: str, tmp_path: Path) -> None:
    for name, image in {"tissue": TISSUE[..., 1], "cells": cells((700, 611)), "even": cells((720, 600))}.items():
        height, width = (round(size * share) for size, share in zip(image.shape, RATIOS[ratio], strict=True))
        for method in (Image.Resampling.NEAREST, Image.Resampling.BOX, Image.Resampling.LANCZOS):
            coarse = np.asarray(Image.fromarray(image).resize((width, height), method))
            path = write_zarr(tmp_path / f"{name} {method.name}.ome.zarr", [image, coarse])
            assert are_averaged(path) == [True, method is not Image.Resampling.NEAREST], (name, method)


@pytest.mark.parametrize("kind", [SlideAwayError, SlideGoneError])
def test_a_passing_error_marks_nothing_but_is_raised(
    kind: type[SlideError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> NDArray:
        raise kind("the server doesn't answer")

    slide = inspect_slide(write_tiff(tmp_path / "s.tif", make_levels(TISSUE, DECIMATIONS["every n-th pixel"], 2)))
    monkeypatch.setattr(SlideReader, "read_planes", fail)
    with pytest.raises(kind):
        mark_decimated(slide)


def test_a_strip_as_large_as_its_level_is_decoded_once_per_level_and_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decimation, "_WHOLE_SIDE", 64)
    image = cells((1200, 1100))
    with tifffile.TiffWriter(tmp_path / "s.tif") as tiff:
        for number, level in enumerate((image, image[::2, ::2])):
            tiff.write(level, subfiletype=int(number > 0), rowsperstrip=len(level), metadata=None, compression="zlib")
    read, regions = SlideReader.read_planes, []

    def count(reader: SlideReader, region: Region, *others: object) -> NDArray:
        regions.append(region)
        return read(reader, region, *others)

    monkeypatch.setattr(SlideReader, "read_planes", count)
    assert are_averaged(tmp_path / "s.tif") == [True, False]
    assert regions == [Region(0, 0, 600, 550), Region(0, 0, 1200, 1100)]
