"""Results from Python: labels, pixels, objects and settings of finished runs, and what is said of unfinished ones."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas
import pytest
import tifffile
from skimage.measure import regionprops

import slidesam
from slidesam.tasks.folder.demo import demo_image

SETTINGS = {"segmenter.kind": "watershed", "blocks.block_shape": 256, "blocks.halo": 48, "slide.mpp": 0.5}


@pytest.fixture(scope="module", params=["never", "always"])
def result(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> slidesam.Result:
    folder = tmp_path_factory.mktemp("slide")
    tifffile.imwrite(folder / "s.tif", demo_image(600), tile=(256, 256), photometric="rgb")
    settings = SETTINGS | {"image.convert": request.param}
    return slidesam.segment(folder / "s.tif", folder / "out", settings, progress=False)


def test_labels_and_pixels_lie_on_the_slide_s_grid(result: slidesam.Result) -> None:
    assert result.labels.shape == (600, 600)
    assert result.image.shape == (600, 600, 3)
    np.testing.assert_array_equal(result.image[250:300, 590:], demo_image(600)[250:300, 590:])
    np.testing.assert_array_equal(result.labels.levels[1][:, :], result.labels[::2, ::2])


def test_objects_are_those_of_the_label_image(result: slidesam.Result) -> None:
    objects, expected = result.objects, regionprops(result.labels[:, :])
    assert len(objects) == result.run["objects"] == len(expected) > 50
    np.testing.assert_array_equal(objects["id"], [region.label for region in expected])
    np.testing.assert_array_equal(objects["area"], [region.area for region in expected])
    boxes = np.stack([objects[name] for name in ("y0", "x0", "y1", "x1")], axis=1)
    np.testing.assert_array_equal(boxes, [region.bbox for region in expected])
    centroids = np.stack([objects["y"], objects["x"]], axis=1)
    np.testing.assert_allclose(centroids, [region.centroid for region in expected])
    assert list(pandas.DataFrame(objects).columns) == ["id", "area", "y", "x", "y0", "x0", "y1", "x1"]


def test_objects_are_the_same_once_the_work_folder_is_cleaned(result: slidesam.Result, tmp_path: Path) -> None:
    shutil.copytree(result.store.parent, tmp_path / "out", ignore=shutil.ignore_patterns(".slidesam"))
    cleaned = slidesam.open_result(tmp_path / "out")
    np.testing.assert_array_equal(cleaned.objects, result.objects)


def test_it_says_how_it_was_made(result: slidesam.Result) -> None:
    assert result.settings.blocks.halo == 48
    assert result.run["versions"]["slidesam"] == slidesam.__version__
    assert result.overlay.is_file()
    assert result.slide.shape == (600, 600)
    assert str(result.store) in repr(result)


def test_it_is_opened_by_folder_store_and_record(result: slidesam.Result) -> None:
    output = result.store.parent
    for path in (output, result.store, output / "s.cells.run.json"):
        assert slidesam.open_result(path).run == slidesam.open_result(str(path), label="cells").run == result.run


def test_several_results_are_told_apart(result: slidesam.Result, tmp_path: Path) -> None:
    slidesam.segment(result.slide.path, tmp_path, SETTINGS, progress=False)
    other = slidesam.segment(result.slide.path, tmp_path, SETTINGS | {"output.label": "nuclei"}, progress=False)
    with pytest.raises(slidesam.OutputError, match=r"2 results \(s.ome.zarr \(cells\), s.ome.zarr \(nuclei\)\)"):
        slidesam.open_result(other.store)
    assert slidesam.open_result(other.store, label="nuclei").label == "nuclei"


def test_what_has_no_result_is_said(tmp_path: Path) -> None:
    with pytest.raises(slidesam.OutputError, match="isn't there"):
        slidesam.open_result(tmp_path / "none")
    with pytest.raises(slidesam.OutputError, match="segment a slide into this folder first"):
        slidesam.open_result(tmp_path)


def test_a_label_image_that_was_begun_again_is_not_opened(result: slidesam.Result, tmp_path: Path) -> None:
    shutil.copytree(result.store.parent, tmp_path / "out", ignore=shutil.ignore_patterns(".slidesam"))
    shutil.rmtree(tmp_path / "out" / "s.ome.zarr" / "labels")
    with pytest.raises(slidesam.OutputError, match="no finished label image cells"):
        slidesam.open_result(tmp_path / "out")


def test_a_result_that_was_replaced_is_not_mixed_with_the_new_one(result: slidesam.Result, tmp_path: Path) -> None:
    first = slidesam.segment(result.slide.path, tmp_path, SETTINGS, progress=False)
    second = slidesam.segment(result.slide.path, tmp_path, SETTINGS | {"stitch.min_iou": 0.6}, progress=False)
    assert len(second.objects) == second.run["objects"]
    with pytest.raises(slidesam.OutputError, match="was segmented again with other settings"):
        _ = first.labels


@pytest.mark.parametrize("folder", ["", "0", "labels", "labels/cells", "labels/cells/1"])
@pytest.mark.parametrize("damage", [b"", b'{"zarr_format": 3, "node_type": "array", "a": "\xff"}', b"{}", b"flip"])
def test_damaged_metadata_is_said_in_words(folder: str, damage: bytes, copy: Path) -> None:
    path = copy / "s.ome.zarr" / folder / "zarr.json"
    opened = slidesam.open_result(copy)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"5", b"4", 1) if damage == b"flip" else damage)
    try:
        # The list of labels isn't in a list of files: it changes with other labels.
        if damage != b"flip" or folder != "labels":
            with pytest.raises(slidesam.OutputError, match="damaged"):
                slidesam.open_result(copy)
        if damage != b"flip" and folder.startswith("labels/"):
            with pytest.raises(slidesam.OutputError, match="damaged"):
                _ = opened.labels[:, :]
    finally:
        path.write_bytes(whole)


@pytest.fixture(scope="module")
def copy(result: slidesam.Result, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(result.store.parent, tmp_path_factory.mktemp("copy") / "out"))
