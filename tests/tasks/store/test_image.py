"""The image in the store: whose it is, and what is believed over it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr

from slidesam.attempts import run_stages
from slidesam.open_results import open_result
from slidesam.tasks import steps
from slidesam.tasks.errors import OutputError
from slidesam.tasks.plan import plan_run
from slidesam.tasks.report.provenance import read_finished
from slidesam.tasks.run import run as run_module
from slidesam.tasks.run.run import Run
from slidesam.tasks.settings.parse import make_settings
from slidesam.tasks.store import ome_zarr
from slidesam.tasks.store.image import is_shown
from tests.support.serial import EXECUTOR, write_image_serially

WATERSHED = {"segmenter.kind": "watershed", "blocks.block_shape": 256, "blocks.halo": 16}


def write_slide(path: Path, seed: int = 0) -> Path:
    """Write an OME-TIFF of two focal planes."""
    planes = np.random.default_rng(seed).integers(1, 250, (2, 300, 300)).astype(np.uint8)
    tifffile.imwrite(path, planes, tile=(64, 64), ome=True, metadata={"axes": "ZYX"})
    return path


def write_channels(path: Path, is_bright: bool = False) -> Path:
    """Write an OME-TIFF of three unnamed channels, which may be colours."""
    low, high = (200, 250) if is_bright else (1, 60)
    pixels = np.random.default_rng(0).integers(low, high, (3, 300, 300)).astype(np.uint8)
    tifffile.imwrite(path, pixels, tile=(64, 64), photometric="minisblack", ome=True, metadata={"axes": "CYX"})
    return path


def planned(slide: Path, **changes: object) -> Run:
    overrides = WATERSHED | {key.replace("__", "."): value for key, value in changes.items()}
    return plan_run(slide, slide.parent / "out", make_settings(overrides=overrides))


def finish(run: Run) -> None:
    run_stages(run, EXECUTOR, check=lambda: None)


def stop_after_image(run: Run) -> None:
    """Do what a run does that is killed once its image is there."""
    write_image_serially(run)


def stop_in_image(run: Run) -> None:
    """Do what a run does that is killed before it converts its first tile."""
    steps.ready_image.fn(run)


def level0(run: Run) -> np.ndarray:
    return np.asarray(zarr.open_array(run.store / "0", mode="r")[0, 0, 0])


IN_PLACE = {"image__convert": "never", "image__rechunk": "never"}


@pytest.mark.parametrize(
    ("first", "second", "stop"),
    [
        ({"slide__z": 0}, {"slide__z": 1}, stop_after_image),
        ({"slide__z": 0}, {"slide__z": 1}, stop_in_image),
        ({"slide__z": 0} | IN_PLACE, {"slide__z": 1} | IN_PLACE, stop_after_image),
        ({"slide__mpp": 0.5}, {"slide__mpp": 0.25}, stop_after_image),
        ({"slide__mpp": 0.5} | IN_PLACE, {"slide__mpp": 0.25} | IN_PLACE, stop_after_image),
        (IN_PLACE, {"image__convert": "always"}, stop_in_image),
        ({}, {"image__chunk_shape": 128}, stop_in_image),
    ],
)
def test_a_finished_run_isnt_believed_over_another_image(
    first: dict, second: dict, stop: object, tmp_path: Path
) -> None:
    slide = write_slide(tmp_path / "s.ome.tif")
    run = planned(slide, **first)
    finish(run)
    labels, image = np.asarray(zarr.open_array(run.paths.label_image / "0", mode="r")[0, 0, 0]), level0(run)
    assert read_finished(run) is not None

    stop(planned(slide, **second))
    assert read_finished(planned(slide, **first)) is None

    finish(planned(slide, **first))
    assert read_finished(planned(slide, **first)) is not None
    np.testing.assert_array_equal(level0(run), image)
    np.testing.assert_array_equal(zarr.open_array(run.paths.label_image / "0", mode="r")[0, 0, 0], labels)


@pytest.mark.parametrize("options", [{}, IN_PLACE])
@pytest.mark.parametrize("change", [{"slide__pages": "channels", "slide__channels": 0}, {"slide__rgb": True}])
def test_another_meaning_of_pages_or_channels_is_another_image(options: dict, change: dict, tmp_path: Path) -> None:
    pages = np.random.default_rng(0).integers(1, 250, (2, 3, 300, 300)).astype(np.uint8)
    pages = pages[:, 0] if "slide__pages" in change else pages[0]
    axes = {} if "slide__pages" in change else {"ome": True, "metadata": {"axes": "CYX"}}
    slide = tmp_path / ("s.ome.tif" if axes else "s.tif")
    tifffile.imwrite(slide, pages, tile=(64, 64), photometric="minisblack", **axes)
    finish(planned(slide, **options))
    other = planned(slide, **change, **options)
    assert read_finished(other) is None
    assert not is_shown(other)
    finish(other)
    assert zarr.open_array(other.store / "0", mode="r").shape[1] == other.slide.size_c
    assert read_finished(other) is not None
    assert read_finished(planned(slide, **options)) is None


def test_a_slide_that_was_replaced_for_a_while_is_shown_again(tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "s.ome.tif")
    kept = shutil.copy2(slide, tmp_path / "kept.tif")
    run = planned(slide)
    finish(run)
    image = level0(run)
    write_slide(slide, seed=1)
    stop_after_image(planned(slide))
    assert not (level0(run) == image).all()
    Path(kept).replace(slide)
    again = planned(slide)
    assert again.fingerprints == run.fingerprints
    assert read_finished(again) is None
    finish(again)
    np.testing.assert_array_equal(level0(again), image)


@pytest.mark.parametrize("options", [{}, IN_PLACE])
@pytest.mark.parametrize("stop", [stop_in_image, stop_after_image])
def test_labels_arent_listed_over_the_image_of_another_plane(options: dict, stop: object, tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "s.ome.tif")
    finish(planned(slide, **options))
    other = planned(slide, slide__z=1, **options)
    stop(other)
    assert not ome_zarr.is_finished(other.store, other.label)
    assert not other.paths.provenance.exists()
    assert not other.paths.overlay.exists()
    with pytest.raises(OutputError, match="no finished result"):
        open_result(tmp_path / "out")
    finish(other)
    assert read_finished(other) is not None


def test_labels_of_the_same_plane_stay_listed_while_the_image_is_made_again(tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "s.ome.tif")
    finish(planned(slide, **IN_PLACE))
    converted = planned(slide, image__convert="always", output__label="b")
    stop_in_image(converted)
    assert ome_zarr.is_finished(converted.store, "cells")
    stop_after_image(converted)
    # A pyramid of the same plane serves as well as an overview.
    assert read_finished(planned(slide, **IN_PLACE)) is not None


ALWAYS = {"image__convert": "always", "image__rechunk": "never"}


@pytest.mark.parametrize("change", [{"image__codec": "lz4"}, {"slide__rgb": True}])
def test_labels_of_other_image_settings_arent_made_again_in_turn(change: dict, tmp_path: Path) -> None:
    slide = write_channels(tmp_path / "s.ome.tif")
    finish(planned(slide, output__label="a", **ALWAYS))
    finish(planned(slide, output__label="b", **ALWAYS, **change))
    for run in (planned(slide, output__label="a", **ALWAYS), planned(slide, output__label="b", **ALWAYS, **change)):
        assert read_finished(run) is not None


def test_a_run_that_converts_isnt_finished_over_an_overview(tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "s.ome.tif")
    run = planned(slide, **ALWAYS)
    finish(run)
    root = zarr.open_group(run.store, mode="r+")
    root.attrs["slidesam_image"] = {**root.attrs["slidesam_image"], "converted": None}
    assert read_finished(run) is None


@pytest.mark.parametrize(
    ("options", "cause"), [(IN_PLACE, "work format"), (IN_PLACE, "imagecodecs"), (ALWAYS, "work format")]
)
def test_the_image_of_another_version_decides_nothing(
    options: dict, cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slide = write_slide(tmp_path / "s.ome.tif")
    older = planned(slide, **options)
    finish(older)
    image, n_objects = level0(older), read_finished(older).objects
    assert n_objects
    # What an earlier version might have read.
    zarr.open_array(older.store / "0", mode="r+")[:] = 0
    if cause == "work format":
        monkeypatch.setattr(run_module, "_WORK_FORMAT", 1000)
    else:
        monkeypatch.setattr(run_module, "read_versions", lambda _: {"imagecodecs": "1000"})
    run, sibling = planned(slide, **options), planned(slide, output__label="b", **options)
    assert not is_shown(run)
    finish(sibling)
    np.testing.assert_array_equal(level0(run), image)
    assert read_finished(sibling).objects == n_objects
    assert ome_zarr.is_finished(run.store, older.label)
    finish(run)
    assert read_finished(run).objects == n_objects
    assert read_finished(sibling) is not None


@pytest.mark.parametrize("options", [IN_PLACE, ALWAYS])
@pytest.mark.parametrize(("is_bright", "setting"), [(True, True), (True, False), (False, True)])
def test_colours_that_are_set_refuse_no_other_label(
    options: dict, is_bright: bool, setting: bool, tmp_path: Path
) -> None:
    slide = write_channels(tmp_path / "s.ome.tif", is_bright)
    first, second = planned(slide, **options), planned(slide, slide__rgb=setting, output__label="b", **options)
    assert (first.slide.is_rgb, second.slide.is_rgb) == (is_bright, setting)
    finish(first)
    # The image is written again only if it shows other colours.
    assert is_shown(second) == (is_bright == setting)
    finish(second)
    assert is_shown(second)
    assert read_finished(first) is not None
    assert read_finished(second) is not None
    if is_bright == setting:
        assert second.fingerprints["image"] == first.fingerprints["image"]
        assert second.fingerprints["segment"] == first.fingerprints["segment"]


def test_labels_arent_listed_where_the_image_was_replaced_meanwhile(tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "s.ome.tif")
    run = planned(slide)
    finish(run)
    ome_zarr.remove_label(zarr.open_group(run.store, mode="r+"), run.label)
    run.paths.provenance.unlink()
    write_image_serially(planned(slide, slide__z=1))
    with pytest.raises(OutputError, match="was taken away or replaced"):
        steps.export_slide.fn(run, 0, {})
    assert not ome_zarr.is_finished(run.store, run.label)


def test_a_result_gives_no_pixels_of_another_image(tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "s.ome.tif")
    run = planned(slide)
    finish(run)
    result = open_result(tmp_path / "out")
    write_image_serially(planned(slide, slide__z=1))
    with pytest.raises(OutputError, match="another image by now"):
        _ = result.image


@pytest.mark.parametrize("damage", ["record", "levels"])
def test_a_store_without_its_image_is_none(damage: str, tmp_path: Path) -> None:
    run = planned(write_slide(tmp_path / "s.ome.tif"))
    finish(run)
    if damage == "record":
        root = zarr.open_group(run.store, mode="r+")
        root.attrs["slidesam_image"] = {"ready": True}
    else:
        shutil.rmtree(run.store / "0")
    assert not is_shown(run)
    assert read_finished(run) is None
