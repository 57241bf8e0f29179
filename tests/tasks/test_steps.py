"""Steps without a cluster: what is redone after a change or damage, coarse overviews of large slides, odd pixels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from skimage.data import immunohistochemistry

from slidesam.tasks import steps
from slidesam.tasks.errors import OutputError, SegmenterError
from slidesam.tasks.pixels import plan as image_plan
from slidesam.tasks.pixels import pyramid, sample
from slidesam.tasks.plan import plan_run
from slidesam.tasks.report.provenance import read_finished
from slidesam.tasks.run.marks import find_mark
from slidesam.tasks.run.run import Run
from slidesam.tasks.settings.parse import make_settings
from slidesam.tasks.slides.inspect import inspect_slide
from slidesam.tasks.slides.reader import SlideReader
from tests.support.serial import BACKWARDS, EXECUTOR, segment_serially, stitch_serially, write_image_serially
from tests.support.slides import write_numbered_slide

FUNCTION = {
    "segmenter.kind": "function",
    "segmenter.target": "tests.support.faults:bright_pieces",
    "blocks.block_shape": 64,
    "blocks.halo": 16,
}


def planned(slide: Path, output: Path, **changes: object) -> Run:
    return plan_run(
        slide,
        output,
        make_settings(overrides=FUNCTION | {key.replace("__", "."): value for key, value in changes.items()}),
    )


@pytest.mark.parametrize(
    ("change", "redone"),
    [
        ({"blocks__halo": 32}, {"segment", "stitch", "export"}),
        ({"slide__mpp": 0.5}, {"segment", "stitch", "export"}),
        ({"segmenter__options": {"seconds": 0}}, {"segment", "stitch", "export"}),
        ({"segmenter__target": "tests.support.faults:wrong_shape"}, {"segment", "stitch", "export"}),
        ({"stitch__min_iou": 0.5}, {"stitch", "export"}),
        ({"image__codec": "lz4"}, {"image", "export"}),
        ({"run__retries": 7}, set()),
    ],
)
def test_a_changed_setting_redoes_its_stage_and_those_after_it(change: dict, redone: set, tmp_path: Path) -> None:
    slide = write_numbered_slide(tmp_path / "s.tif")
    before, after = (planned(slide, tmp_path, **settings).fingerprints for settings in ({}, change))
    assert {stage for stage in before if before[stage] != after[stage]} == redone


def test_a_changed_file_is_another_slide(tmp_path: Path) -> None:
    slide = write_numbered_slide(tmp_path / "s.tif")
    before = planned(slide, tmp_path).fingerprints
    write_numbered_slide(slide, 3, 4)
    assert planned(slide, tmp_path).fingerprints["segment"] != before["segment"]


@pytest.mark.parametrize("damage", ["empty", "none", "cut", "of another block"])
def test_what_is_damaged_counts_as_not_done(damage: str, tmp_path: Path) -> None:
    slide = write_numbered_slide(tmp_path / "s.tif")
    whole = segment_serially(slide, tmp_path / "out", FUNCTION)
    run = planned(slide, tmp_path / "out")
    assert find_mark(run, 4) is not None
    block, other = run.segment_folder.block(4), run.segment_folder.block(5)
    contents = {"empty": b"", "cut": block.read_bytes()[:-1], "of another block": other.read_bytes()}
    block.unlink() if damage == "none" else block.write_bytes(contents[damage])
    assert find_mark(run, 4) is None
    np.testing.assert_array_equal(segment_serially(slide, tmp_path / "out", FUNCTION), whole)
    assert find_mark(run, 4) is not None


def test_a_store_holds_one_slide(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
    first = write_numbered_slide(tmp_path / "x" / "s.tif")
    second = write_numbered_slide(tmp_path / "y" / "s.tif", 4, 5)
    segment_serially(first, tmp_path / "out", FUNCTION)
    with pytest.raises(OutputError, match=r"holds results of .*x/s\.tif"):
        segment_serially(second, tmp_path / "out", FUNCTION | {"output.label": "other"})
    assert read_finished(planned(first, tmp_path / "out")) is not None
    # The same file with other pixels: its old labels would lie on a grid that isn't the image's any more.
    write_numbered_slide(first, 4, 5)
    with pytest.raises(OutputError, match=r"holds labels .*cells.* choose another output folder"):
        segment_serially(first, tmp_path / "out", FUNCTION | {"output.label": "other"})
    assert segment_serially(first, tmp_path / "out", FUNCTION).shape == (256, 320)


def test_every_file_of_the_labels_is_the_same_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_plan, "_GROUP_SIDE", 64)
    slide = write_numbered_slide(tmp_path / "s.tif", 5, 6)
    files = []
    for folder, executor, step in (("one", EXECUTOR, 1), ("two", BACKWARDS, -1)):
        run = planned(slide, tmp_path / folder)
        blocks = range(len(run.grid))[::step]
        write_image_serially(run)
        steps.prepare_slide.fn(run)
        steps.segment_blocks.fn(run, blocks)
        assert stitch_serially(run, executor) == 30
        labels = run.store / "labels"
        files.append({path.relative_to(labels): path.read_bytes() for path in labels.rglob("*") if path.is_file()})
    assert files[0] == files[1]
    assert len(files[0]) > 30


class TestLargeSlides:
    """Slides past the size up to which the overview is level 0, tried with small ones."""

    @pytest.fixture(autouse=True)
    def _small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pyramid, "OVERVIEW_SIDE", 100)
        monkeypatch.setattr(sample, "_MOST_SAMPLES", 9)
        monkeypatch.setattr(sample, "_SAMPLE_SIDE", 32)

    @pytest.mark.parametrize(("levels", "factor"), [(1, 8), (3, 2)])
    def test_overview_is_at_true_scale(self, levels: int, factor: int, tmp_path: Path) -> None:
        image = immunohistochemistry()[:, :470]
        slide = tmp_path / "s.ome.tif"
        size = {
            "PhysicalSizeX": 0.5,
            "PhysicalSizeXUnit": "µm",
            "PhysicalSizeY": 0.5,
            "PhysicalSizeYUnit": "µm",
            "axes": "YXS",
        }
        with tifffile.TiffWriter(slide, ome=True) as tiff:
            tiff.write(image, subifds=levels - 1, metadata=size, tile=(64, 64), photometric="rgb")
            base = image
            for _ in range(1, levels):
                base = np.moveaxis(pyramid.halve(np.moveaxis(base, 2, 0)), 0, 2)
                tiff.write(base, subfiletype=1, tile=(64, 64), photometric="rgb")
        overrides = {
            "segmenter.kind": "watershed",
            "blocks.block_shape": 128,
            "blocks.halo": 32,
            "image.convert": "never",
        }
        labels = segment_serially(slide, tmp_path / "out", overrides)
        assert labels.shape == (512, 470)
        assert labels.max() > 50
        group = zarr.open_group(tmp_path / "out" / "s.ome.zarr", mode="r")
        scale = group.attrs["ome"]["multiscales"][0]["datasets"][0]["coordinateTransformations"][0]["scale"]
        coarse = np.moveaxis(np.asarray(group["0"][0, :, 0]), 0, -1)
        step = factor if levels == 1 else factor * 2 ** (levels - 1)
        assert scale[3:] == [0.5 * step] * 2
        assert coarse.shape == (-(-512 // step), -(-470 // step), 3)
        expected = base[: factor * 10, : factor * 10].reshape(10, factor, 10, factor, 3).mean(axis=(1, 3))
        # Each halving rounds.
        np.testing.assert_allclose(coarse[:10, :10], expected, atol=1.5)
        assert abs((coarse[:10, :10] - expected).mean()) < 0.1

    def test_the_sample_keeps_what_averaging_would_pale(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(1)
        image = rng.integers(90, 110, (640, 640)).astype(np.uint16)
        for y, x in rng.integers(0, 630, (60, 2)):
            image[y : y + 6, x : x + 6] = 5000
        tifffile.imwrite(tmp_path / "s.tif", image, tile=(64, 64))
        slide = inspect_slide(tmp_path / "s.tif")
        coarse = pyramid.read_overview(slide, (0,))
        assert coarse.shape == (80, 80, 1)
        with SlideReader(slide) as reader:
            found, again = (sample.sample_slide(slide.shape, coarse, reader) for _ in range(2))
        assert found.shape == (96, 96, 1)
        assert found.max() == 5000
        assert coarse.max() < 4500
        np.testing.assert_array_equal(found, again)


@pytest.mark.parametrize("kind", ["bool", "uint64", "nan", "int8", "float64"])
def test_odd_pixels(kind: str, tmp_path: Path) -> None:
    image = np.zeros((96, 128), np.float32)
    image[20:40, 20:40], image[60:80, 70:90] = 1, 1
    dtype = {"nan": np.float32}.get(kind) or np.dtype(kind)
    image = (image * (1 if kind == "bool" else 100)).astype(dtype)
    if kind == "nan":
        image[0, 0], image[50, 50] = np.nan, np.inf
    tifffile.imwrite(tmp_path / "s.tif", image, photometric="minisblack")
    overrides = {"segmenter.kind": "watershed", "segmenter.diameter": 20, "blocks.block_shape": 64, "blocks.halo": 32}
    labels = segment_serially(tmp_path / "s.tif", tmp_path / "out", overrides)
    assert labels.max() == 2
    store = tmp_path / "out" / "s.ome.zarr"
    text = (store / "zarr.json").read_text()
    json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


class Bad:
    def __init__(self, fail=False):
        if fail:
            raise ValueError("no good")

    def prepare(self, sample, slide):
        return {"a": np.float32(1)}

    def segment(self, image, params):
        return np.zeros(image.shape[:2], int)


class Useless:
    pass


@pytest.mark.parametrize(
    ("target", "options", "words"),
    [
        ("tests.nowhere:f", {}, "can't be found"),
        ("tests.support.faults:nothing", {}, "can't be imported"),
        ("tests.tasks.test_steps:Bad", {}, "JSON can't hold"),
        ("tests.tasks.test_steps:Bad", {"fail": True}, "can't be made with segmenter.options .*no good"),
        ("tests.tasks.test_steps:Useless", {}, "without prepare and segment"),
        ("tests.support.faults:bright_pieces", {"nope": 1}, "can't be called .*nope"),
        ("tests.support.faults:os", {}, "neither a function nor a class"),
    ],
)
def test_bad_functions_are_refused_before_any_block(target: str, options: dict, words: str, tmp_path: Path) -> None:
    slide = write_numbered_slide(tmp_path / "s.tif")
    overrides = FUNCTION | {"segmenter.target": target, "segmenter.options": options}
    with pytest.raises(SegmenterError, match=words):
        segment_serially(slide, tmp_path / "out", overrides)
    assert not list(tmp_path.glob("out/.slidesam/*/*/segment-*/blocks"))


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int32", "uint64", "float32", "float64"])
@pytest.mark.parametrize("shape", [(6, 8), (5, 7), (1, 1), (1, 6)])
def test_halving_averages_what_there_is(dtype: str, shape: tuple[int, int]) -> None:
    low = -100 if np.dtype(dtype).kind == "i" else 0
    image = np.random.default_rng(0).integers(low, 127, (2, *shape)).astype(dtype)
    found = pyramid.halve(image)
    assert found.shape == (2, -(-shape[0] // 2), -(-shape[1] // 2))
    assert found.dtype == image.dtype
    for y, x in np.ndindex(found.shape[1:]):
        mean = image[:, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].astype(float).mean(axis=(1, 2))
        expected = mean if np.dtype(dtype).kind == "f" else np.rint(mean)
        np.testing.assert_array_equal(found[:, y, x], expected.astype(dtype))


def test_places_of_the_overlay_are_where_objects_cross(tmp_path: Path) -> None:
    from slidesam.tasks.grid import BlockGrid
    from slidesam.tasks.report.overlay import choose_details

    labels = zarr.create_array(
        store=zarr.storage.MemoryStore(), shape=(1, 1, 1, 2048, 2048), chunks=(1, 1, 1, 512, 512), dtype="uint32"
    )
    for number in range(5):
        labels[0, 0, 0, 1024 - 60 + 30 * number : 1024 - 40 + 30 * number, 1536 - 5 : 1536 + 5] = number + 1
    places = choose_details(BlockGrid((2048, 2048), (512, 512), 64), labels)
    assert places[0].objects_at_seam == 5
    assert places[0].region[:2] == (1024 - 192, 1536 - 192)


def test_what_the_list_of_labels_says_isnt_believed_over_levels_that_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_plan, "_GROUP_SIDE", 256)
    slide = tmp_path / "s.tif"
    pixels = np.random.default_rng(0).integers(0, 250, (600, 600)).astype(np.uint8)
    tifffile.imwrite(slide, pixels, tile=(128, 128))
    run = planned(slide, tmp_path / "out")
    write_image_serially(run)
    steps.prepare_slide.fn(run)
    steps.segment_blocks.fn(run, range(len(run.grid)))
    assert stitch_serially(run)
    level = zarr.open_array(run.paths.label_image / "1", mode="r+")
    labels = np.asarray(level)
    assert labels.any()
    # Another run may have put back the name of a label image that was removed, and is being made again.
    level[:] = 0
    run.paint_folder.whole_mark.unlink(missing_ok=True)
    stitch_serially(run)
    np.testing.assert_array_equal(level, labels)
    # A finished one isn't written again.
    shards = [path for path in (run.paths.label_image / "1" / "c").rglob("*") if path.is_file()]
    times = [path.stat().st_mtime_ns for path in shards]
    stitch_serially(run)
    assert [path.stat().st_mtime_ns for path in shards] == times
