"""`slidesam compare` and `slidesam.compare`: every kind of truth, the files, and what doesn't fit."""

from __future__ import annotations

import csv
import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

import slidesam
from slidesam.flows.cli.app import app
from slidesam.flows.slide import order
from slidesam.tasks.errors import SlidesamError
from slidesam.tasks.plan import plan_run
from slidesam.tasks.settings.parse import make_settings
from tests.support.command_line import PIECES, run_and_read
from tests.support.serial import EXECUTOR, segment_serially
from tests.support.slides import write_numbered_slide


def run_compare(*arguments: object) -> str:
    return run_and_read("compare", *arguments)


def error_of(*arguments: object) -> str:
    error = CliRunner().invoke(app, ["compare", *map(str, arguments)]).exception
    assert isinstance(error, SlidesamError)
    assert "\n" not in str(error)
    return str(error)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine squares of 20 px on a slide of 192 px, segmented twice; and another slide of four."""
    folder = tmp_path_factory.mktemp("compare")
    slide = write_numbered_slide(folder / "s.tif")
    segment_serially(slide, folder / "out", PIECES)
    order.export_objects(plan_run(slide, folder / "out", make_settings(overrides=PIECES)), EXECUTOR)
    segment_serially(slide, folder / "out", PIECES | {"output.label": "again"})
    other = write_numbered_slide(folder / "small.tif", 2, 2)
    segment_serially(other, folder / "out", PIECES)
    return folder / "out" / "s.ome.zarr"


@pytest.fixture(scope="module")
def labels(store: Path) -> NDArray[np.uint32]:
    return np.asarray(slidesam.open_result(store, "cells").labels[:, :])


@pytest.fixture(scope="module")
def truth(labels: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """The first object is cut in two, the second one lies beside, the third and fourth are one, and there is one more."""
    true = labels.astype(np.uint32)
    rows, columns = (np.flatnonzero((labels == 1).any(axis=axis)) for axis in (1, 0))
    true[rows[0] : rows[-1] + 1, columns[0] : columns[0] + 8] = 20
    true[true == 2] = 0
    true[100:110, 110:120] = 0
    true[20:40, 60:70] = 2
    true[true == 4] = 3
    true[0:5, 0:5] = 30
    return true


def test_another_result_of_the_slide_is_compared(store: Path) -> None:
    words = run_compare(store, store, "--label", "cells")
    assert words.startswith("result s.ome.zarr (cells): 9 objects truth s.ome.zarr (again): 9 objects")
    assert "0.95 9 0 0 1.000 1.000 1.000 1.000 panoptic quality 1.000 = mean IoU of matches 1.000 × F1 1.000" in words
    opened = slidesam.open_result(store, "again")
    assert slidesam.compare(opened, store, truth_label="cells").f1 == 1.0
    assert slidesam.compare(opened, slidesam.open_result(store, "cells")).panoptic_quality == 1.0


@pytest.mark.parametrize("kind", ["tiff", "npy", "ome-zarr", "not-ours", "zarr", "outlines", "qupath"])
def test_each_kind_of_truth_says_the_same(store: Path, labels: NDArray[np.uint32], tmp_path: Path, kind: str) -> None:
    expected = slidesam.compare(store, labels, label="cells")
    path = tmp_path / "truth.tif"
    if kind == "tiff":
        tifffile.imwrite(path, labels.astype(np.int32), compression="zlib", rowsperstrip=7)
    elif kind == "npy":
        path = tmp_path / "truth.npy"
        np.save(path, labels.astype(np.int64))
    elif kind == "ome-zarr":
        path = store / "labels" / "again"
    elif kind == "not-ours":
        path = tmp_path / "truth.ome.zarr"
        shutil.copytree(store / "labels" / "again", path)
    elif kind == "zarr":
        path = tmp_path / "truth.zarr"
        zarr.create_array(path, data=labels[None].astype(np.uint16), chunks=(1, 50, 50))
    else:
        path = store.parent / "s.cells.objects.geojson.gz"
        if kind == "qupath":
            content = json.loads(gzip.decompress(path.read_bytes()))
            path = tmp_path / "truth.geojson"
            path.write_text(json.dumps(content["features"], indent=2))
    compared = slidesam.compare(store, path, label="cells")
    assert compared.scores == expected.scores
    assert compared.matches.iou.tolist() == [1.0] * 9
    assert compared.notes == ()


def test_numbers_pairs_and_picture_are_written(store: Path, truth: NDArray[np.uint32], tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "truth.tif", truth)
    regions = tmp_path / "regions.geojson"
    left = {"type": "Polygon", "coordinates": [[[0, 0], [64, 0], [64, 192], [0, 192], [0, 0]]]}
    regions.write_text(json.dumps({"type": "Feature", "geometry": left, "properties": {"name": "left"}}))
    out = tmp_path / "out"
    out.mkdir()
    words = run_compare(store, tmp_path / "truth.tif", "--label", "cells", "--regions", regions, "--output", out)
    # Of the one that is cut 12 of 20 columns match, of the two that are one the first.
    assert "result s.ome.zarr (cells): 9 objects truth truth.tif: 10 objects" in words
    files = sorted(path.name for path in out.iterdir())
    assert files == [f"s.cells.compare.{suffix}" for suffix in ("csv", "json", "png")]
    content = json.loads((out / files[1]).read_text())
    score = content["scores"][0]
    assert [score["matched"], score["only_in_result"], score["only_in_truth"]] == [7, 2, 3]
    assert score["f1"] == pytest.approx(14 / 19)
    assert {key for key in content if key in ("merged_pairs", "split_pairs")} <= set(content["definitions"])
    assert content["regions"] == [
        {"name": "left", "objects": 3, "true_objects": 4, "matched": 2, "true_matched": 2, "f1": pytest.approx(4 / 7)}
    ]
    assert "left 3 2 4 2 0.571" in words
    rows = list(csv.DictReader((out / files[0]).read_text().splitlines()))
    assert [row["iou"] for row in rows if row["result"] and row["truth"]].count("1.0000") == 5
    assert len([row for row in rows if not row["truth"]]) == 2
    assert len([row for row in rows if not row["result"]]) == 3
    picture = np.asarray(Image.open(out / files[2]))
    for colour in ((0, 158, 115), (230, 120, 0), (0, 114, 178)):
        assert (picture == colour).all(axis=2).sum() > 300
    before = [path.read_bytes() for path in sorted(out.iterdir())]
    run_compare(store, tmp_path / "truth.tif", "--label", "cells", "--regions", regions, "--output", out)
    assert [path.read_bytes() for path in sorted(out.iterdir())] == before


def test_the_picture_is_drawn_without_the_slide(store: Path, truth: NDArray[np.uint32], tmp_path: Path) -> None:
    slide = store.parents[1] / "s.tif"
    moved = slide.rename(tmp_path / "s.tif")
    try:
        slidesam.compare(store, truth, label="cells", output=tmp_path / "x")
    finally:
        moved.rename(slide)
    assert (tmp_path / "x.png").exists()


def test_what_does_not_fit_is_refused_with_what_to_do(store: Path, labels: NDArray[np.uint32], tmp_path: Path) -> None:
    def save(name: str, array: NDArray) -> Path:
        np.save(tmp_path / name, array)
        return tmp_path / name

    def refused(truth: object, *options: str) -> str:
        return error_of(store, truth, "--label", "cells", *options)

    assert "has several label images, again, cells: choose one with --label" in error_of(store, store)
    other = store.parent / "small.ome.zarr"
    assert "small.tif: compare results of one slide" in refused(other)
    assert "no finished label image 'none'" in refused(store, "--truth-label", "none")
    half = save("half.npy", labels[::2, ::2])
    assert "half.npy has 96 × 96 px (height × width), the result 192 × 192: enlarge it 2 times" in refused(half)
    assert "another slide, cropped or turned" in refused(save("cut.npy", labels[:-9]))
    assert "number the objects first" in refused(save("mask.npy", labels > 0))
    assert "labels from -1 to 9: number its objects from 1 on" in refused(
        save("minus.npy", labels.astype(int) - (labels == 0))
    )
    assert "an array of 3 dimensions" in refused(save("deep.npy", labels[None]))
    objects = save("objects.npy", np.array([None]))
    assert "can't be read" in refused(objects)
    assert "isn't there: give a label image" in refused(tmp_path / "none.tif")
    (tmp_path / "text.tif").write_text("no image")
    assert "can't be read as a label image" in refused(tmp_path / "text.tif")
    tifffile.imwrite(tmp_path / "rgb.tif", np.zeros((192, 192, 3), np.uint8), photometric="rgb")
    assert "3 channels" in refused(tmp_path / "rgb.tif")
    assert "is no label image" in refused(tmp_path)
    assert f"give {store / 'labels' / 'again'}" in refused(store / "labels")
    noted = run_compare(store, save("one.npy", (labels > 0).astype(np.uint8)), "--label", "cells")
    assert "note: one.npy has one object" not in noted
    apart = run_compare(store, save("apart.npy", np.where(labels == 0, 1, 0)), "--label", "cells")
    assert "note: no object of apart.npy shares a pixel with the result" in apart


def test_an_unfinished_or_damaged_result_is_refused(store: Path, labels: NDArray[np.uint32], tmp_path: Path) -> None:
    output = shutil.copytree(store.parent, tmp_path / "out")
    copied = output / store.name
    shard = next(path for path in (copied / "labels" / "cells" / "0" / "c").rglob("*") if path.is_file())
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 1
    shard.write_bytes(data)
    assert "is damaged: `slidesam verify --repair`" in error_of(copied, copied, "--label", "cells")
    assert shard.exists()
    shutil.rmtree(copied / "labels" / "cells")
    assert "finished label image cells" in error_of(copied, copied, "--label", "cells")
    # What is left of a run that isn't finished is neither taken for labels nor is the image.
    for record in output.glob("*.run.json"):
        record.rename(record.with_suffix(".away"))
    assert "is no label image (ValueError: it is an image): give" in error_of(store, copied, "--label", "cells")
    group = json.loads((copied / "labels" / "zarr.json").read_text())
    group["attributes"]["ome"]["labels"] = []
    (copied / "labels" / "zarr.json").write_text(json.dumps(group))
    unfinished = copied / "labels" / "again"
    assert "isn't listed as finished" in error_of(store, unfinished, "--label", "cells")
    (output / "s.again.run.away").rename(output / "s.again.run.json")
    assert "has no finished label image 'cells', only again" in error_of(copied, copied, "--label", "cells")
