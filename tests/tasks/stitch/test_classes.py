"""Classes of objects: from the votes of blocks' pixels to the table, whatever the blocks, their order and damage."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
import zarr
from scipy import ndimage

from slidesam.flows.slide import order
from slidesam.tasks import steps
from slidesam.tasks.errors import OutputError
from slidesam.tasks.plan import plan_run
from slidesam.tasks.run.array_files import load_arrays
from slidesam.tasks.run.marks import list_blocks
from slidesam.tasks.run.run import Run
from slidesam.tasks.segment import loop, prepare
from slidesam.tasks.segmenters.base import Segmenter
from slidesam.tasks.segmenters.votes import PATHO_SAM_CLASSES, ClassifiedLabels, Votes, has_classes, name_classes
from slidesam.tasks.settings.methods import MicroSam
from slidesam.tasks.settings.parse import make_settings
from slidesam.tasks.stitch import batches, class_table
from slidesam.tasks.stitch.class_table import read_classes
from slidesam.tasks.store.verify import check_result, take_back
from tests.support.qupath_schema import read_collection
from tests.support.serial import BACKWARDS, EXECUTOR, stitch_serially, write_image_serially
from tests.tasks.export.test_files import with_output

SHAPE = (300, 340)
COUNT = 6
SETTINGS = {
    "segmenter.kind": "watershed",
    "blocks.block_shape": 64,
    "blocks.halo": 24,
    "blocks.tissue": "off",
    "image.convert": "never",
}


class PixelVotes(Segmenter):
    """Labels pieces that aren't 0; a pixel's value less one is the class that it votes for."""

    def __init__(self, has_votes: bool) -> None:
        self.has_votes = has_votes

    def prepare(self, sample, slide):
        return {}

    def segment(self, image, params):
        return ndimage.label(image)[0]

    def begin(self, image, params):
        votes = Votes(np.maximum(image, 1).astype(np.uint32) - 1, np.eye(COUNT))
        labels = self.segment(image, params)
        return lambda: ClassifiedLabels(labels, votes) if self.has_votes else labels


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """(y, x) uint8: pieces of all shapes across all seams, some wider than the halo, whose pixels are of several classes."""
    random = np.random.default_rng(5)
    noise = ndimage.gaussian_filter(random.normal(size=SHAPE), 5)
    patches = ndimage.zoom(random.choice(COUNT, (30, 34), p=[0.5, 0.1, 0.1, 0.1, 0.1, 0.1]), 10, order=0)
    return np.where(noise > np.quantile(noise, 0.7), 1 + patches, 0).astype(np.uint8)


@pytest.fixture(scope="module")
def slide(pixels: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slide") / "s.tif"
    tifffile.imwrite(path, pixels, tile=(64, 64))
    return path


@pytest.fixture(scope="module", autouse=True)
def pixel_votes() -> Iterator[None]:
    """The network is stood in for; all that becomes of its votes is real."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (loop, prepare):
            patch.setattr(module, "load_run_segmenter", lambda run: PixelVotes(has_classes(run.settings.segmenter)))
        yield


@pytest.fixture(scope="module")
def run(slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run with classes."""
    return finished(planned(slide, tmp_path_factory.mktemp("run")))


def planned(slide: Path, output: Path, segmenter: MicroSam | None = None, **changes: object) -> Run:
    """A run; its weights aren't looked for."""
    run = plan_run(slide, output, make_settings(overrides=SETTINGS | changes))
    if segmenter is None:
        segmenter = MicroSam(classes="semantic")
    return run.model_copy(update={"settings": run.settings.model_copy(update={"segmenter": segmenter})})


def finished(run: Run, executor=EXECUTOR) -> Run:
    write_image_serially(run)
    steps.prepare_slide.fn(run)
    for block_id in list_blocks(run)[:: 1 if executor is EXECUTOR else -1]:
        steps.segment_blocks.fn(run, [block_id])
    stitch_serially(run, executor)
    return run


def level_0(run: Run) -> np.ndarray:
    return np.asarray(zarr.open_array(run.paths.label_image / "0", mode="r")[0, 0, 0])


def count(labels: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """(objects, classes) pixels of the whole image."""
    counts = np.zeros((labels.max() + 1, COUNT), int)
    np.add.at(counts, (labels[labels > 0], pixels[labels > 0] - 1), 1)
    return counts[1:]


def image_label(run: Run) -> dict:
    return json.loads((run.paths.label_image / "zarr.json").read_text())["attributes"]["ome"]["image-label"]


def test_objects_across_seams_get_the_class_of_all_their_pixels(run: Run, pixels: np.ndarray) -> None:
    counts = count(level_0(run), pixels)
    table = read_classes(run.paths.classes)
    assert table["object"].tolist() == list(range(1, len(counts) + 1))
    expected = np.where(counts[:, 1:].any(axis=1), 1 + counts[:, 1:].argmax(axis=1), 0)
    assert table["class"].tolist() == [PATHO_SAM_CLASSES[number] for number in expected]
    probability = counts[np.arange(len(counts)), expected] / counts.sum(axis=1)
    np.testing.assert_allclose(table["probability"], probability, atol=5e-5)
    # All cases are there: wide objects in fragments, every class, background in most pixels and in all.
    assert json.loads(run.stitch_folder.resolved.read_text())["seams"]["wide"] >= 3
    assert set(table["class"]) == set(PATHO_SAM_CLASSES)
    wins = counts.argmax(axis=1) == 0
    assert (wins & (table["class"] != "background")).sum() > 10
    assert table["probability"][wins & (table["class"] != "background")].max() <= 0.5
    assert set(table["probability"][table["class"] == "background"]) == {1.0}


def test_table_and_outlines_tell_the_classes(run: Run) -> None:
    # The blocks are drawn: there is no model whose input a report could show.
    run = with_output(run, formats=("table", "outlines"))
    order.export_objects(run, EXECUTOR)
    table = read_classes(run.paths.classes)
    written = pq.read_table(run.paths.objects("parquet"))
    assert written["class"].to_pylist() == table["class"].tolist()
    assert written["class_probability"].to_pylist() == table["probability"].tolist()
    colours = {entry["label-value"]: entry["rgba"][:3] for entry in image_label(run)["colors"]}
    expected = sorted((row["class"], tuple(colours[row["object"]])) for row in table)
    features = read_collection(gzip.decompress(run.paths.objects("geojson.gz").read_bytes()))["features"]
    shown = [feature["properties"]["classification"] for feature in features]
    assert sorted((each["name"], tuple(each["color"])) for each in shown) == expected


def test_colours_and_properties_of_the_label_image_tell_the_classes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from ome_zarr_models.v05.image_label import ImageLabel

    table, described = read_classes(run.paths.classes), image_label(run)
    assert described["properties"][0] == {"label-value": 0, "class": "none", "probability": 0.0}
    assert [(entry["label-value"], entry["class"], entry["probability"]) for entry in described["properties"][1:]] == [
        tuple(row) for row in table.tolist()
    ]
    colours = {entry["label-value"]: tuple(entry["rgba"]) for entry in described["colors"]}
    assert colours.pop(0) == (0, 0, 0, 0)
    kinds = {(name, colours[value]) for value, name, _ in table.tolist()}
    assert len(kinds) == 6
    assert ("neoplastic", (255, 0, 0, 255)) in kinds
    ImageLabel.from_zarr(zarr.open_group(run.paths.label_image, mode="r"))
    # Of many objects the table alone tells.
    monkeypatch.setattr(class_table, "_MOST_COLOURED", 3)
    assert class_table.write_classes(run) == {}
    assert read_classes(run.paths.classes).tolist() == table.tolist()


def test_the_same_bytes_in_any_order_and_batches(slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = []
    for number, executor in enumerate((EXECUTOR, BACKWARDS)):
        monkeypatch.setattr(batches, "_SMALLEST_TASK", (2**30, 1)[number])
        run = finished(planned(slide, tmp_path / str(number)), executor)
        files.append([run.paths.classes.read_bytes(), (run.paths.label_image / "zarr.json").read_bytes()])
    assert files[0] == files[1]


def test_at_another_pixel_size_the_pixels_of_level_0_vote(slide: Path, tmp_path: Path) -> None:
    run = finished(planned(slide, tmp_path, **{"slide.mpp": 0.25, "slide.target_mpp": 0.5}))
    measures = run.paint_folder.measures("").parent.iterdir()
    counted = sum(load_arrays(path)["votes"].sum(axis=0) for path in measures)
    # No two objects claim a pixel.
    np.testing.assert_array_equal(counted.sum(), (level_0(run) > 0).sum())
    assert (counted > 0).sum() == COUNT


def test_a_damaged_table_is_found_and_made_again(run: Run, tmp_path: Path) -> None:
    whole = run.paths.classes.read_bytes()
    assert not check_result(run.paths, "whole").damages
    cut = tmp_path / "cut.classes.csv"
    cut.write_text("object,class,probability\n1,dead\n")
    with pytest.raises(OutputError, match=r"cut.classes.csv is damaged .*slidesam verify --repair"):
        read_classes(cut)
    run.paths.classes.write_bytes(whole[:-2] + b"7\n")
    finding = check_result(run.paths, "whole")
    assert [damage.path for damage in finding.damages] == [run.paths.classes]
    take_back(finding)
    assert not run.paths.classes.exists()
    stitch_serially(run)
    assert run.paths.classes.read_bytes() == whole


def test_without_classes_there_is_no_table_and_nothing_else_changes(slide: Path, tmp_path: Path) -> None:
    planned_with = planned(slide, tmp_path)
    planned_with.paths.output.mkdir(exist_ok=True)
    planned_with.paths.classes.write_text("of a run with classes, whose labels this one replaces")
    run = finished(planned(slide, tmp_path, MicroSam(classes="off", class_file="unused", class_names=("a",))))
    assert not run.paths.classes.exists()
    with pytest.raises(OutputError, match=r"classes.csv isn't there: the run gave its objects no classes"):
        read_classes(run.paths.classes)
    assert "properties" not in image_label(run)
    assert "classes" not in json.loads(run.paths.file_list.read_text())["units"]
    assert "votes" not in load_arrays(run.segment_folder.block(7))
    assert run.fingerprints == planned(slide, tmp_path, MicroSam()).fingerprints != planned_with.fingerprints
    causes = run.causes["segment"].keys() | run.causes["export"].keys()
    assert not [key for key in causes if "class" in key]


def test_classes_without_names_are_numbers() -> None:
    assert name_classes(MicroSam(classes="objects"), 2) == ("background", "1")
    assert name_classes(MicroSam(classes="semantic"), 6) == PATHO_SAM_CLASSES
