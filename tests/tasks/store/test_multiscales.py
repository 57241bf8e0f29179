"""Where the store says that pixels lie: each level of a ramp has at each pixel the value of the place that is stated for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import ome_zarr_models
import pytest
import tifffile
import zarr

from slidesam.attempts import run_stages
from slidesam.open_results import open_result
from slidesam.tasks.pixels import plan as image_plan
from slidesam.tasks.pixels import pyramid
from slidesam.tasks.pixels.pyramid import halve_labels
from slidesam.tasks.plan import plan_run
from slidesam.tasks.settings.parse import make_settings
from slidesam.tasks.settings.sections import ImageSettings
from slidesam.tasks.store.multiscales import level_transformations, place_averages, place_samples, read_places
from slidesam.tasks.store.ome_zarr import create_label, create_store, finish_label, write_image_metadata
from tests.support.serial import EXECUTOR, write_image_serially

SHAPE = (600, 1000)


def ramps() -> np.ndarray:
    """Two channels: the row and the column of each pixel."""
    return np.stack(np.indices(SHAPE)).astype(np.float32)


def stated_places(path: Path, name: str, mpp: float) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Per level of an image in a store: its plane (c, y, x), and the stated rows and columns of its pixels in level 0."""
    root = zarr.open_group(path, mode="r")
    group = root[name] if name else root
    attributes = group.attrs.asdict()
    multiscale = attributes.get("ome", attributes)["multiscales"][0]
    levels = []
    for dataset in multiscale["datasets"]:
        scale, *rest = dataset["coordinateTransformations"]
        start = rest[0]["translation"] if rest else [0.0] * 5
        plane = np.asarray(group[dataset["path"]][0, :, 0])
        rows, columns = (
            (np.arange(size) * scale["scale"][axis] + start[axis]) / mpp
            for axis, size in zip((3, 4), plane.shape[1:], strict=True)
        )
        levels.append((plane, rows, columns))
    return levels


@pytest.mark.parametrize("version", ["0.5", "0.4"])
@pytest.mark.parametrize("way", ["always", "never"])
@pytest.mark.parametrize("mpp", [0.25, None])
def test_the_pixels_of_an_image_lie_where_it_is_stated(
    way: str, version: str, mpp: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_plan, "SHARD_SIDE", 256)
    monkeypatch.setattr(image_plan, "_SMALLEST_LEVEL", 100)
    monkeypatch.setattr(pyramid, "OVERVIEW_SIDE", 300)
    slide = tmp_path / "s.ome.tif"
    tifffile.imwrite(slide, ramps(), tile=(64, 64), ome=True, metadata={"axes": "CYX"})
    overrides = {
        "segmenter.kind": "watershed",
        "image.convert": way,
        "image.rechunk": "never",
        "image.ome_zarr": version,
    }
    run = plan_run(slide, tmp_path / "out", make_settings(overrides=overrides | ({"slide.mpp": mpp} if mpp else {})))
    write_image_serially(run)
    levels = stated_places(run.store, "", mpp or 1.0)
    assert len(levels) == {"always": 5, "never": 3}[way]
    for plane, rows, columns in levels:
        # The last pixel may average fewer than the others do.
        np.testing.assert_allclose(plane[0, :-1], np.repeat(rows[:-1, None], columns.size, 1), atol=1e-3)
        np.testing.assert_allclose(plane[1, :, :-1], np.repeat(columns[None, :-1], rows.size, 0), atol=1e-3)
    assert type(ome_zarr_models.open_ome_zarr(zarr.open_group(run.store, mode="r"))).__name__ == "Image"


@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_the_pixels_of_labels_lie_where_it_is_stated(version: str, tmp_path: Path) -> None:
    image = ImageSettings(ome_zarr=version)
    root = create_store(tmp_path / "s.ome.zarr", image, tmp_path / "s.tif")
    create_label(root, "cells", SHAPE, (256, 256), np.dtype(np.uint32), image)
    group = root["labels/cells"]
    labels = ramps()[1].astype(np.uint32)
    for level in range(len(list(group.array_keys()))):
        group[str(level)][0, 0, 0] = labels
        labels = halve_labels(labels)
    finish_label(root, "cells", (0.25, 0.25))
    levels = stated_places(tmp_path / "s.ome.zarr", "labels/cells", 0.25)
    assert len(levels) == 2
    for plane, _, columns in levels:
        np.testing.assert_array_equal(plane[0, 0], columns)


@pytest.mark.parametrize("way", ["always", "never"])
def test_a_result_tells_where_the_pixels_of_its_levels_lie(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_plan, "SHARD_SIDE", 256)
    level = ramps()[:, :300, :600]
    with tifffile.TiffWriter(tmp_path / "s.tif") as tiff:
        for number in range(3):
            tiff.write(level[1], subfiletype=int(number > 0), tile=(64, 64), photometric="minisblack")
            level = pyramid.halve(level)
    overrides = {"segmenter.kind": "watershed", "blocks.block_shape": 512, "image.convert": way, "slide.mpp": 0.25}
    run_stages(
        plan_run(tmp_path / "s.tif", tmp_path / "out", make_settings(overrides=overrides)), EXECUTOR, lambda: None
    )
    result = open_result(tmp_path / "out")
    assert len(result.image.levels) == {"always": 2, "never": 3}[way]
    for image in result.image.levels:
        columns = image.place.first[1] + image.place.step[1] * np.arange(image.shape[1])
        np.testing.assert_allclose(image[3, :, 0], columns, atol=1e-3)
    assert [labels.place for labels in result.labels.levels] == [place_samples((1.0, 1.0)), place_samples((2.0, 2.0))]


def test_places_are_read_as_they_were_written(tmp_path: Path) -> None:
    group = zarr.create_group(tmp_path / "s.ome.zarr")
    levels = [place_averages((1.0, 1.0)), place_averages((4.0, 2.0))]
    write_image_metadata(group, "s", levels, (0.5, 0.25), None, (100.0, -7.0))
    group = zarr.open_group(tmp_path / "s.ome.zarr")
    assert read_places(group, (0.5, 0.25), (100.0, -7.0), place_samples) == levels
    # An older version stated no translations.
    write_image_metadata(group, "s", [place_samples(level.step) for level in levels], (0.5, 0.25), None)
    group = zarr.open_group(tmp_path / "s.ome.zarr")
    assert read_places(group, (0.5, 0.25), (0.0, 0.0), place_averages) == levels


def test_what_the_slide_states_is_added() -> None:
    levels = [place_averages((1.0, 1.0)), place_averages((4.0, 2.0)), place_samples((4.0, 4.0))]
    assert level_transformations(levels, (0.5, 0.25), (100.0, -7.0)) == [
        ([1, 1, 1, 0.5, 0.25], [0, 0, 0, 100, -7]),
        ([1, 1, 1, 2.0, 0.5], [0, 0, 0, 100.75, -6.875]),
        ([1, 1, 1, 2.0, 1.0], [0, 0, 0, 100, -7]),
    ]


def test_levels_that_all_begin_at_zero_have_no_translation() -> None:
    levels = [place_samples((2.0**level, 2.0**level)) for level in range(3)]
    assert {translation for _, translation in level_transformations(levels, None)} == {None}
