"""Conversion and rechunking: the same pixels whatever the way, each tile decoded once, what is lost made again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import ome_zarr_models
import pytest
import tifffile
import zarr
from numpy.typing import NDArray

from slidesam.tasks import steps
from slidesam.tasks.errors import DamagedError, OutputError, SettingsError
from slidesam.tasks.grid import Region
from slidesam.tasks.pixels import plan as image_plan
from slidesam.tasks.pixels import pyramid, sample
from slidesam.tasks.plan import explain, plan_run
from slidesam.tasks.run.lock import locked
from slidesam.tasks.run.records import FileList
from slidesam.tasks.run.run import Run
from slidesam.tasks.settings.parse import make_settings
from slidesam.tasks.slides.inspect import inspect_slide
from slidesam.tasks.slides.tiff.source import TiffSource
from slidesam.tasks.store import convert
from slidesam.tasks.store.readers import open_pixels
from tests.support.made_slides import Made, make_all, write_zarr
from tests.support.serial import segment_serially, write_image_serially

WATERSHED = {"segmenter.kind": "watershed", "blocks.block_shape": 64, "blocks.halo": 16}


def planned(path: Path, output: Path, **changes: object) -> Run:
    return plan_run(
        path, output, make_settings(overrides=WATERSHED | {k.replace("__", "."): v for k, v in changes.items()})
    )


def converted(path: Path, output: Path, **changes: object) -> Run:
    run = planned(path, output, image__convert="always", **changes)
    write_image_serially(run)
    return run


def plane_of(made: Made, level: int = 0) -> NDArray:
    """(c, y, x) of the first time point and focal plane."""
    return made.levels[level][0, :, 0]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    return dict(make_all(tmp_path_factory.mktemp("slides")))


def test_any_kind_of_slide_converts_and_rechunks_to_its_own_pixels(
    made: dict[str, Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that small slides have many tiles, several levels, and levels that no tile fills.
    monkeypatch.setattr(image_plan, "SHARD_SIDE", 64)
    monkeypatch.setattr(image_plan, "_SMALLEST_LEVEL", 20)
    monkeypatch.setattr(image_plan, "_SMALLEST_FILE", 32)
    for number, (name, each) in enumerate(made.items()):
        run = converted(each.path, tmp_path / f"c{number}")
        assert len(run.image_plan.grid(0)) > 1 or max(run.slide.shape) < 100, name
        group = zarr.open_group(run.store, mode="r")
        assert type(ome_zarr_models.open_ome_zarr(group)).__name__ == "Image", name
        expected = plane_of(each)
        for level, planned_level in enumerate(run.image_plan.levels):
            if level:
                own = planned_level.source_level
                expected = pyramid.halve(expected) if own is None else plane_of(each, own)
            found = np.asarray(group[str(level)][0, :, 0])
            np.testing.assert_array_equal(found, expected, f"{name}, level {level}")
        assert convert.is_ready(run)

        if number % 3:  # the same code with fewer channels and levels
            continue
        run = planned(each.path, tmp_path / f"r{number}", image__convert="never", image__rechunk="always")
        write_image_serially(run)
        found = open_pixels(run).read(Region(3, 5, 40, 50))
        expected = plane_of(each)[list(run.slide.channels), 3:40, 5:50]
        np.testing.assert_array_equal(np.moveaxis(found, -1, 0), expected, name)


def test_the_sources_own_levels_are_used_above_what_a_piece_fills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_plan, "SHARD_SIDE", 64)
    monkeypatch.setattr(image_plan, "_SMALLEST_LEVEL", 20)
    level = np.random.default_rng(0).integers(0, 255, (3, 101, 130)).astype(np.uint8)
    with tifffile.TiffWriter(tmp_path / "s.tif") as tiff:
        for number in range(3):
            tiff.write(np.moveaxis(level, 0, 2), subfiletype=int(number > 0), tile=(32, 48), photometric="rgb")
            level = pyramid.halve(level)
    run = planned(tmp_path / "s.tif", tmp_path)
    assert run.image_plan.in_memory == 1
    assert [level.source_level for level in run.image_plan.levels] == [None, 1, 2, None]


@pytest.mark.parametrize("levels", [1, 3])
def test_labels_of_slides_with_an_overview_are_equal_too(
    levels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from skimage.data import immunohistochemistry

    monkeypatch.setattr(pyramid, "OVERVIEW_SIDE", 100)
    monkeypatch.setattr(image_plan, "_SMALLEST_LEVEL", 50)
    monkeypatch.setattr(sample, "_MOST_SAMPLES", 9)
    monkeypatch.setattr(sample, "_SAMPLE_SIDE", 32)
    image = immunohistochemistry()[:, :470]
    with tifffile.TiffWriter(tmp_path / "s.tif") as tiff:
        for level in range(levels):
            tiff.write(image[:: 2**level, :: 2**level], subfiletype=int(level > 0), tile=(64, 64), photometric="rgb")
    settings = {"segmenter.kind": "watershed", "blocks.block_shape": 128, "blocks.halo": 32}
    always, never = (
        segment_serially(tmp_path / "s.tif", tmp_path / way, settings | {"image.convert": way})
        for way in ("always", "never")
    )
    assert always.max() > 50
    np.testing.assert_array_equal(always, never)


def test_each_tile_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_plan, "SHARD_SIDE", 256)
    image = np.random.default_rng(0).integers(0, 255, (700, 900, 3)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "s.tif", image, tile=(48, 80), photometric="rgb", compression="zlib")
    decoded = []
    plain = TiffSource._decode
    monkeypatch.setattr(TiffSource, "_decode", lambda *args: decoded.append(args[3].number) or plain(*args))
    run = converted(tmp_path / "s.tif", tmp_path / "out")
    assert run.image_plan.shard == (192, 160)
    assert sorted(decoded) == list(range(15 * 12))


@pytest.mark.parametrize("damage", ["no mark", "no shard", "no level"])
def test_what_is_lost_is_written_again_and_nothing_else(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    monkeypatch.setattr(image_plan, "SHARD_SIDE", 64)
    image = np.random.default_rng(0).integers(1, 255, (200, 200)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "s.tif", image, tile=(64, 64))
    run = planned(tmp_path / "s.tif", tmp_path / "out")
    steps.ready_image.fn(run)
    steps.write_tiles.fn(run, 0, range(10))
    assert convert.missing_tiles(run, 0) == list(range(10, 16))
    assert not convert.is_ready(run)
    if damage == "no mark":
        run.image_folder.mark("0-3").unlink()
    elif damage == "no shard":
        (run.store / "0" / "c" / "0" / "0" / "0" / "0" / "3").unlink()
    else:
        shutil.rmtree(run.store / "0")
    # The same command again comes first to what makes the arrays, if they aren't there.
    steps.ready_image.fn(run)
    again = [*range(16)] if damage == "no level" else [3, *range(10, 16)]
    assert convert.missing_tiles(run, 0) == again
    write_image_serially(run)
    np.testing.assert_array_equal(np.asarray(zarr.open_array(run.store / "0", mode="r")[0, 0, 0]), image)


@pytest.mark.parametrize("mode", ["convert", "rechunk"])
def test_no_list_leaves_out_a_tile_whose_mark_is_damaged(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_plan, "SHARD_SIDE", 64)
    tifffile.imwrite(tmp_path / "s.tif", np.full((130, 130), 7, np.uint8), tile=(64, 64))
    way = {"image__convert": "always"} if mode == "convert" else {"image__convert": "never", "image__rechunk": "always"}
    run = planned(tmp_path / "s.tif", tmp_path / "out", **way)
    assert run.image_plan.mode == mode
    steps.ready_image.fn(run)
    levels = convert.tiled_levels(run)
    for level in levels:
        steps.write_tiles.fn(run, level, range(len(run.image_plan.grid(level))))
    mark = run.image_folder.mark("0-5")
    mark.write_bytes(mark.read_bytes()[:-9])
    with pytest.raises(DamagedError, match=r"0-5\.json is damaged or gone: run the same command again"):
        convert.complete_image(run)
    assert not convert.is_ready(run)
    assert convert.missing_tiles(run, 0) == [5]
    write_image_serially(run)
    assert convert.is_ready(run)
    # Nor is a list believed that has left one out.
    path = run.paths.image.file_list if mode == "convert" else run.image_folder.pixels_mark
    listed = FileList.read(path)
    listed.model_copy(update={"units": {name: files for name, files in listed.units.items() if name != "0-5"}}).write(
        path
    )
    assert not convert.is_ready(run)
    assert convert.missing_tiles(run, 0) == [5]
    write_image_serially(run)
    assert FileList.read(path) == listed


def test_tiles_that_are_all_zero_are_written_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_plan, "SHARD_SIDE", 64)
    tifffile.imwrite(tmp_path / "s.tif", np.zeros((130, 130), np.uint8), tile=(64, 64))
    run = converted(tmp_path / "s.tif", tmp_path / "out")
    assert convert.missing_tiles(run, 0) == []
    (run.store / "0" / "c" / "0" / "0" / "0" / "1" / "2").unlink()
    assert convert.missing_tiles(run, 0) == [5]


def test_reading_in_place_leaves_a_converted_pyramid_where_it_is(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "s.tif", np.full((600, 700), 7, np.uint8), tile=(64, 64))
    first = converted(tmp_path / "s.tif", tmp_path / "out")
    run = planned(tmp_path / "s.tif", tmp_path / "out", image__convert="never", image__rechunk="never")
    assert convert.is_ready(run)
    assert convert.is_ready(first)
    # Another chunk shape is another pyramid.
    assert not convert.is_ready(planned(tmp_path / "s.tif", tmp_path / "out", image__chunk_shape=128))


def test_what_is_reused_and_why_is_said_in_a_line_each(tmp_path: Path) -> None:
    from tests.support.slides import write_numbered_slide

    slide, out = write_numbered_slide(tmp_path / "s.tif"), tmp_path / "out"
    assert explain(planned(slide, out)) == [
        "image: converts 1 tile (TIFF is converted unless image.convert is never)",
        "segment: from the start (nothing is there yet)",
        "stitch: from the start (nothing is there yet)",
    ]
    segment_serially(slide, out, WATERSHED)
    assert explain(planned(slide, out, stitch__min_iou=0.5)) == [
        "image: nothing to do (converted before)",
        "segment: 9 of 9 blocks are there (same slide, blocks and segmenter)",
        "stitch: anew (stitch.min_iou was 0.3, is 0.5)",
    ]
    assert explain(planned(slide, out, segmenter__diameter=12, blocks__halo=8))[1:] == [
        "segment: anew (blocks.halo was 16, is 8; segmenter.diameter was 8.0, is 12.0)",
        "stitch: anew (the blocks' labels are others)",
    ]
    assert explain(planned(slide, out, image__codec="lz4"))[0] == (
        "image: converts 1 tile (image.codec was zstd, is lz4)"
    )
    write_numbered_slide(slide, 3, 4)
    assert "slide changed" in explain(planned(slide, out))[0]


def test_channels_scale_and_windows_of_the_source_are_kept(tmp_path: Path) -> None:
    made = write_zarr(tmp_path / "s.ome.zarr", "cyx", {"c": 2, "y": 101, "x": 130})
    group = zarr.open_group(made.path, mode="r+")
    omero = {
        "channels": [
            {"label": "DNA", "color": "112233", "window": {"start": 5, "end": 77, "min": 0, "max": 99}},
            {"label": "actin", "color": "AABBCC", "window": {"start": 1, "end": 2, "min": 0, "max": 99}},
        ]
    }
    group.attrs["ome"] = {**group.attrs["ome"], "omero": omero}
    run = converted(made.path, tmp_path / "out")
    ome = zarr.open_group(run.store, mode="r").attrs["ome"]
    shown = [
        (each["label"], each["color"], each["window"]["start"], each["window"]["end"])
        for each in ome["omero"]["channels"]
    ]
    assert shown == [("DNA", "112233", 5, 77), ("actin", "AABBCC", 1, 2)]
    assert ome["multiscales"][0]["datasets"][0]["coordinateTransformations"][0]["scale"] == [1, 1, 1, 0.5, 0.5]
    assert inspect_slide(run.store).channel_names == ("DNA", "actin")


def stack(path: Path) -> Path:
    """A TIFF of two focal planes."""
    planes = np.random.default_rng(0).integers(1, 250, (2, 300, 300)).astype(np.uint8)
    tifffile.imwrite(path, planes, tile=(64, 64), ome=True, metadata={"axes": "ZYX"})
    return path


def test_an_image_that_another_labels_run_reads_isnt_taken_away(tmp_path: Path) -> None:
    slide, out = stack(tmp_path / "s.ome.tif"), tmp_path / "out"
    first = converted(slide, out)
    second = planned(slide, out, output__label="other", image__codec="lz4")
    with locked(first.paths.lock, "the first", target="s"):
        with pytest.raises(OutputError, match=r"cells reads it now, run by the first.*: wait for that"):
            steps.ready_image.fn(second)
        assert convert.is_ready(first)
    write_image_serially(second)
    # Whoever reads an image that is another by now is told, and gets no pixels of it.
    with pytest.raises(OutputError, match="was taken away or replaced"):
        open_pixels(first)


def test_another_plane_in_between_leaves_nothing_behind(tmp_path: Path) -> None:
    slide, out = stack(tmp_path / "s.ome.tif"), tmp_path / "out"
    expected = tifffile.imread(slide)
    converted(slide, out)
    between = planned(slide, out, image__convert="never", image__rechunk="never", slide__z=1)
    write_image_serially(between)
    again = planned(slide, out)
    assert not convert.is_ready(again)
    write_image_serially(again)
    np.testing.assert_array_equal(np.asarray(zarr.open_array(again.store / "0", mode="r")[0, 0, 0]), expected[0])


def test_a_stopped_conversion_and_reading_in_place_dont_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_plan, "SHARD_SIDE", 64)
    monkeypatch.setattr(pyramid, "OVERVIEW_SIDE", 200)
    monkeypatch.setattr(image_plan, "_SMALLEST_LEVEL", 100)
    slide, out = stack(tmp_path / "s.ome.tif"), tmp_path / "out"
    run = planned(slide, out)
    steps.ready_image.fn(run)
    steps.write_tiles.fn(run, 0, range(7))
    write_image_serially(planned(slide, out, image__convert="never", image__rechunk="never"))
    write_image_serially(run)
    found = np.asarray(zarr.open_array(run.store / "0", mode="r")[0, 0, 0])
    np.testing.assert_array_equal(found, tifffile.imread(slide)[0])


def test_labels_of_another_plane_are_refused_after_a_stopped_conversion_too(tmp_path: Path) -> None:
    slide, out = stack(tmp_path / "s.ome.tif"), tmp_path / "out"
    segment_serially(slide, out, WATERSHED)
    steps.ready_image.fn(planned(slide, out, output__label="b", image__codec="lz4"))
    with pytest.raises(OutputError, match=r"holds labels \(cells\)"):
        steps.ready_image.fn(planned(slide, out, output__label="c", slide__z=1))


def test_another_version_of_ome_zarr_is_refused_beside_the_first(tmp_path: Path) -> None:
    slide, out = stack(tmp_path / "s.ome.tif"), tmp_path / "out"
    in_place = {"image__convert": "never", "image__rechunk": "never"}
    write_image_serially(planned(slide, out, **in_place))
    with pytest.raises(OutputError, match=r"is not OME-Zarr 0\.4"):
        write_image_serially(planned(slide, out, image__ome_zarr="0.4", **in_place))


@pytest.mark.parametrize(
    ("shape", "options"), [((251, 1503), {"rowsperstrip": 3}), ((521, 1042), {"tile": (528, 528)})]
)
def test_chunks_have_a_sensible_size_whatever_the_source(shape: tuple, options: dict, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "s.tif", np.full(shape, 9, np.uint8), compression="zlib", **options)
    run = converted(tmp_path / "s.tif", tmp_path / "out")
    assert min(zarr.open_array(run.store / "0", mode="r").chunks[3:]) >= 128
    np.testing.assert_array_equal(np.asarray(zarr.open_array(run.store / "0", mode="r")[0, 0, 0]), np.full(shape, 9))


def test_a_mask_is_known_by_its_content(tmp_path: Path) -> None:
    from PIL import Image

    slide = stack(tmp_path / "s.ome.tif")
    prints = []
    for name in ("a.png", "b.png"):
        Image.fromarray(np.ones((30, 30), np.uint8)).save(tmp_path / name)
        prints.append(planned(slide, tmp_path / "out", blocks__tissue=str(tmp_path / name)).fingerprints["segment"])
    assert prints[0] == prints[1]


def test_a_mask_that_isnt_there_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "s.tif", np.zeros((64, 64), np.uint8))
    with pytest.raises(SettingsError, match=r"blocks\.tissue"):
        planned(tmp_path / "s.tif", tmp_path / "out", blocks__tissue=str(tmp_path / "mask.png"))
