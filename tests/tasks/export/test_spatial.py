"""The SpatialData folder of a real run, without the package (that reads it in `make spatialdata`): arrays, shapes and table."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import anndata
import geopandas
import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
import zarr
from numpy.typing import NDArray

import slidesam
from slidesam.flows.slide import order
from slidesam.tasks.errors import OutputError, SettingsError
from slidesam.tasks.export.files import missing_formats
from slidesam.tasks.pixels import pyramid
from slidesam.tasks.plan import plan_run
from slidesam.tasks.run.folders import replacing_folder
from slidesam.tasks.run.run import Run
from slidesam.tasks.settings.parse import make_settings
from slidesam.tasks.stitch.label_image import prepare_label_image
from slidesam.tasks.store.verify import check_objects, check_result, take_back
from tests.support.serial import EXECUTOR, segment_serially
from tests.tasks.export.test_files import SETTINGS, read_bytes, result, run, small_tiles, with_output

__all__ = ["result", "run", "small_tiles"]


@pytest.fixture
def written(run: Run) -> Run:
    asking = with_output(run, formats=("table", "spatialdata"))
    order.export_objects(asking, EXECUTOR)
    assert missing_formats(asking) == []
    return asking


def test_arrays_are_those_of_the_store_under_fewer_axes(written: Run, result: tuple[Path, NDArray[Any]]) -> None:
    folder = written.paths.spatialdata
    root = zarr.open_group(folder, mode="r")
    np.testing.assert_array_equal(root["labels/cells/0"][:], result[1])
    store = zarr.open_group(written.store, mode="r")
    np.testing.assert_array_equal(root["images/image/1"][:], store["1"][0, :, 0])
    shard = folder / "labels/cells/0/c/0/0"
    assert shard.samefile(written.paths.label_image / "0/c/0/0/0/0/0")
    ome = root["labels/cells"].attrs["ome"]
    assert [axis["name"] for axis in ome["multiscales"][0]["axes"]] == ["y", "x"]
    assert [each["type"] for each in ome["multiscales"][0]["coordinateTransformations"]] == ["identity"]
    listed = {str(path.relative_to(written.output)) for path in folder.rglob("*") if path.is_file()}
    units = json.loads(written.paths.objects("json").read_text())["units"]
    assert set(units["spatialdata"]) == listed
    assert not check_objects(written.paths).damages


def test_an_image_that_is_coarser_than_the_slide_is_placed_by_its_scale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pyramid, "OVERVIEW_SIDE", 200)
    pixels = np.full((512, 768, 3), 230, np.uint8)
    pixels[100:130, 200:240] = (120, 60, 130)
    tifffile.imwrite(tmp_path / "rgb.tif", pixels, tile=(128, 128), photometric="rgb")
    settings = SETTINGS | {"blocks.block_shape": 256, "image.convert": "never"}
    labels = segment_serially(tmp_path / "rgb.tif", tmp_path / "out", settings)
    run = plan_run(tmp_path / "rgb.tif", tmp_path / "out", make_settings(overrides=settings))
    order.export_objects(with_output(run, formats=("spatialdata",)), EXECUTOR)
    root = zarr.open_group(run.paths.spatialdata, mode="r")
    np.testing.assert_array_equal(root["labels/cells/0"][:], labels)
    content = root["images/image"].attrs["ome"]
    (step,) = content["multiscales"][0]["coordinateTransformations"]
    assert root["images/image/0"].shape == (3, 128, 192)
    assert (step["type"], step["scale"]) == ("scale", [1.0, 4.0, 4.0])
    assert len(content["omero"]["channels"]) == 3


@pytest.mark.filterwarnings("ignore")
def test_the_table_belongs_to_the_labels(written: Run) -> None:
    folder = written.paths.spatialdata
    found = anndata.read_zarr(folder / "tables/table")
    table = pq.read_table(written.paths.objects("parquet"))
    target = {"region": "cells", "region_key": "element", "instance_key": "label"}
    assert found.uns["spatialdata_attrs"] == target
    assert dict(zarr.open_group(folder / "tables/table", mode="r").attrs).items() >= target.items()
    assert set(found.obs["element"]) == {"cells"}
    assert found.obs["label"].tolist() == table["label"].to_pylist()
    np.testing.assert_array_equal(found[:, "area"].X[:, 0], table["area"].to_numpy())
    shapes = geopandas.read_parquet(folder / "shapes/outlines/shapes.parquet")
    assert shapes.index.tolist() == table["label"].to_pylist()
    assert shapes.geometry.area.tolist() == table["area"].to_pylist()
    assert list(shapes.columns) == ["geometry"]


def test_without_hard_links_files_are_copied(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asking = with_output(run, formats=("spatialdata",))
    order.export_objects(asking, EXECUTOR)
    expected = {name: data for name, data in read_bytes(run).items() if "spatialdata" in name}
    shutil.rmtree(run.paths.spatialdata)

    link = os.link

    def refuse(source: Path, target: Path) -> None:
        # Zarr links files of its own.
        if run.store in Path(source).parents:
            raise OSError(errno.EPERM, "no links here")
        link(source, target)

    monkeypatch.setattr(os, "link", refuse)
    order.export_objects(asking, EXECUTOR)
    assert {name: data for name, data in read_bytes(run).items() if "spatialdata" in name} == expected
    assert (run.paths.spatialdata / "labels/cells/0/c/0/0").stat().st_nlink == 1


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "a.zarr"
    for text in ("one", "two"):
        with replacing_folder(target) as beside:
            (beside / "inner").mkdir()
            (beside / "inner" / text).write_text(text)
            assert not (target / "inner" / text).exists()
    assert [path.name for path in (target / "inner").iterdir()] == ["two"]
    with pytest.raises(OutputError, match="No space left"):
        fill_the_disk(target)
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]
    assert [path.name for path in (target / "inner").iterdir()] == ["two"]


def fill_the_disk(target: Path) -> None:
    with replacing_folder(target) as beside:
        (beside / "three").write_text("three")
        raise OSError(errno.ENOSPC, "No space left on device")


def test_damage_to_a_file_of_both_is_found_in_both(written: Run) -> None:
    expected = read_bytes_of_folder(written)
    shard = written.paths.spatialdata / "labels/cells/0/c/0/0"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    found = [check_result(written.paths, "whole"), check_objects(written.paths)]
    in_store = written.paths.label_image / "0/c/0/0/0/0/0"
    assert [[damage.path for damage in each.damages] for each in found] == [[in_store], [shard]]
    for each in found:
        take_back(each)
    settings = SETTINGS | {"blocks.block_shape": 256, "output.formats": ["table", "spatialdata"]}
    slidesam.segment(written.slide.path, written.output, settings, progress=False)
    assert read_bytes_of_folder(written) == expected
    assert shard.samefile(in_store)


def read_bytes_of_folder(run: Run) -> dict[str, bytes]:
    folder = run.paths.spatialdata
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_labels_that_are_painted_again_withdraw_the_folder(written: Run) -> None:
    shutil.rmtree(written.paint_folder.path)
    prepare_label_image(written, 3)
    assert not written.paths.spatialdata.exists()
    assert not list(written.output.glob(".trash-*"))


def test_an_older_ome_zarr_is_refused_when_planning(run: Run, tmp_path: Path) -> None:
    wanted = make_settings(overrides=SETTINGS | {"image.ome_zarr": "0.4", "output.formats": ["spatialdata"]})
    with pytest.raises(SettingsError, match=r"spatialdata links the arrays of OME-Zarr 0\.5"):
        plan_run(run.slide.path, tmp_path / "new", wanted)
    assert not (tmp_path / "new").exists()
