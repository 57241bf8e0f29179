"""Stitching on disk: the same bytes however the work is cut up, ordered, interrupted or repeated."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from scipy import ndimage
from skimage.measure import regionprops_table

from slidesam.tasks import steps
from slidesam.tasks.errors import DamagedError, OutputError
from slidesam.tasks.pixels import plan as image_plan
from slidesam.tasks.plan import plan_run
from slidesam.tasks.run import marks
from slidesam.tasks.run.array_files import load_arrays
from slidesam.tasks.run.marks import list_blocks
from slidesam.tasks.run.run import Run
from slidesam.tasks.segment import loop
from slidesam.tasks.settings.parse import make_settings
from slidesam.tasks.stitch import batches
from slidesam.tasks.stitch.batches import block_batches, is_compared, is_painted, paint_batch
from slidesam.tasks.stitch.label_image import list_label_files
from tests.support.same import assert_same_segmentation
from tests.support.serial import BACKWARDS, EXECUTOR, segment_serially, stitch_serially, write_image_serially

SETTINGS = {
    "segmenter.kind": "function",
    "segmenter.target": "tests.support.faults:bright_pieces",
    "blocks.block_shape": 64,
    "blocks.halo": 24,
    "blocks.tissue": "off",
    "image.convert": "never",
}
SHAPE = (300, 340)


@pytest.fixture(scope="module")
def blobs() -> np.ndarray:
    """(y, x) bool: pieces of all shapes across all seams, some wider than the halo."""
    noise = ndimage.gaussian_filter(np.random.default_rng(5).normal(size=SHAPE), 5)
    return noise > np.quantile(noise, 0.7)


@pytest.fixture(scope="module")
def slide(blobs: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slide") / "s.tif"
    tifffile.imwrite(path, blobs.astype(np.uint8) * 200, tile=(64, 64))
    return path


def planned(slide: Path, output: Path, **changes: object) -> Run:
    return plan_run(slide, output, make_settings(overrides=SETTINGS | changes))


def segmented(slide: Path, output: Path, **changes: object) -> Run:
    """A run all of whose blocks are segmented."""
    run = planned(slide, output, **changes)
    write_image_serially(run)
    steps.prepare_slide.fn(run)
    steps.segment_blocks.fn(run, list_blocks(run))
    return run


def label_files(run: Run) -> dict[str, bytes]:
    """Every file of the label image."""
    folder = run.paths.label_image
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def level_0(run: Run) -> np.ndarray:
    return np.asarray(zarr.open_array(run.paths.label_image / "0", mode="r")[0, 0, 0])


@pytest.mark.parametrize("changes", [{}, {"blocks.halo": 5}, {"blocks.halo": 70}, {"image.ome_zarr": "0.4"}])
def test_blocks_add_up_to_the_whole(changes: dict, slide: Path, blobs: np.ndarray, tmp_path: Path) -> None:
    labels = segment_serially(slide, tmp_path, SETTINGS | changes)
    assert_same_segmentation(labels, ndimage.label(blobs)[0])


@pytest.mark.parametrize(("group_side", "counts"), [(64, (30, 9, 1)), (128, (9, 9, 1))])
def test_the_same_bytes_in_batches_of_any_size_in_any_order(
    group_side: int, counts: tuple[int, ...], slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_plan, "_GROUP_SIDE", group_side)
    files = []
    for number, (pixels, executor) in enumerate(((1, EXECUTOR), (4 * 64 * 64, BACKWARDS), (2**30, EXECUTOR))):
        monkeypatch.setattr(batches, "_SMALLEST_TASK", pixels)
        monkeypatch.setattr(batches, "_TASK_PIXELS", pixels)
        run = segmented(slide, tmp_path / str(number))
        assert len(block_batches(run)) == counts[number]
        stitch_serially(run, executor)
        files.append(label_files(run))
    assert files[0] == files[1] == files[2]
    assert len(files[0]) > counts[0]


def test_painting_again_over_what_is_there_gives_the_same_bytes(
    slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_plan, "_GROUP_SIDE", 64)
    run = segmented(slide, tmp_path)
    objects = stitch_serially(run)
    files = label_files(run)
    shards = sorted((run.paths.label_image / "0" / "c").rglob("*/[0-9]"))
    shards = [path for path in shards if path.is_file()]
    # A finished one; one that a killed task left: a shard cut, one not begun, one of something else.
    for damage in (lambda: None, lambda: _half_paint(shards)):
        for measures in run.paint_folder.measures("").parent.iterdir():
            measures.unlink()
        damage()
        for batch in block_batches(run)[::-1]:
            steps.paint_blocks.fn(run, batch)
        steps.export_slide.fn(run, objects, {})
        assert label_files(run) == files


def _half_paint(shards: list[Path]) -> None:
    shards[0].write_bytes(shards[0].read_bytes()[:100])
    shards[1].unlink()
    shards[2].write_bytes(shards[3].read_bytes())


def test_an_object_is_painted_where_its_other_block_was_left_out(tmp_path: Path) -> None:
    image = np.zeros((64, 192), np.uint8)
    # Reaches 10 px into the second block, and no further than the first one sees.
    image[20:40, 40:74] = 200
    tifffile.imwrite(tmp_path / "s.tif", image, tile=(64, 64))
    # Tissue where the first block alone looks.
    tissue = np.zeros(image.shape, np.uint8)
    tissue[:, :38] = 255
    tifffile.imwrite(tmp_path / "tissue.tif", tissue)
    settings = SETTINGS | {"blocks.tissue": str(tmp_path / "tissue.tif")}
    labels = segment_serially(tmp_path / "s.tif", tmp_path / "out", settings)
    assert list_blocks(plan_run(tmp_path / "s.tif", tmp_path / "out", make_settings(overrides=settings))) == (0,)
    np.testing.assert_array_equal(labels, (image > 0).astype(int))


def test_what_a_window_of_coarser_pixels_cuts_is_painted_whole(tmp_path: Path) -> None:
    # One pixel that the segmenter leaves empty at its window's edge is four of the slide.
    image = np.zeros((256, 512), np.uint8)
    image[100:120, 112:368] = 200
    tifffile.imwrite(tmp_path / "s.tif", image, tile=(64, 64))
    settings = {"segmenter.target": "tests.support.faults:bright_pieces_clear_of_the_edge"}
    scale = {"slide.mpp": 0.25, "slide.target_mpp": 1.0}
    labels = segment_serially(tmp_path / "s.tif", tmp_path / "out", SETTINGS | settings | scale)
    np.testing.assert_array_equal(labels, (image > 0).astype(int))


def test_no_object_at_all(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "s.tif", np.zeros((130, 130), np.uint8), tile=(64, 64))
    assert not segment_serially(tmp_path / "s.tif", tmp_path / "out", SETTINGS).any()


def test_measurements_of_the_parts_add_up(slide: Path, tmp_path: Path) -> None:
    run = segmented(slide, tmp_path)
    objects = stitch_serially(run)
    parts = np.concatenate([load_arrays(path)["measures"] for path in run.paint_folder.measures("").parent.iterdir()])
    known = regionprops_table(level_0(run), properties=("label", "area", "centroid", "bbox"))
    assert known["label"].size == objects
    for row, number in enumerate(known["label"]):
        mine = parts[parts[:, 0] == number]
        area = mine[:, 1].sum()
        assert area == known["area"][row]
        np.testing.assert_allclose(mine[:, 2:4].sum(0) / area, [known[f"centroid-{axis}"][row] for axis in (0, 1)])
        box = [*mine[:, 4:6].min(0), *mine[:, 6:8].max(0)]
        assert box == [known[f"bbox-{side}"][row] for side in range(4)]


def test_blocks_without_objects_between_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "_SMALLEST_TASK", 1)
    monkeypatch.setattr(batches, "_TASK_PIXELS", 1)
    monkeypatch.setattr(image_plan, "_GROUP_SIDE", 64)
    image = np.zeros((128, 256), np.uint8)
    # The second and the last column of blocks see nothing.
    image[20:100, 10:30] = image[20:100, 150:160] = 200
    tifffile.imwrite(tmp_path / "s.tif", image, tile=(64, 64))
    settings = SETTINGS | {"blocks.halo": 16}
    labels = segment_serially(tmp_path / "s.tif", tmp_path / "out", settings)
    assert_same_segmentation(labels, ndimage.label(image)[0])


def test_a_shard_of_an_upper_level_that_a_kill_cut_is_written_anew(
    blobs: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_plan, "_GROUP_SIDE", 256)
    tifffile.imwrite(tmp_path / "s.tif", np.tile(blobs, (3, 3)).astype(np.uint8), tile=(64, 64))
    run = segmented(tmp_path / "s.tif", tmp_path / "out", **{"blocks.block_shape": 256})
    objects = stitch_serially(run)
    files = label_files(run)
    labels = run.store / "labels"
    upper = max((labels / run.label).glob("[1-9]/c/0/0/0/0/0"))
    upper.write_bytes(upper.read_bytes()[:-5])
    # What the kill left: nothing listed, no provenance, no word that all levels are filled.
    run.paint_folder.whole_mark.unlink()
    (labels / "zarr.json").write_text((labels / "zarr.json").read_text().replace(f'"{run.label}"', ""))
    steps.export_slide.fn(run, objects, {})
    assert label_files(run) == files


def test_upper_levels_follow_blocks_that_are_painted_anew(slide: Path, tmp_path: Path) -> None:
    run = segmented(slide, tmp_path)
    stitch_serially(run)
    assert run.paint_folder.whole_mark.exists()
    paint_batch(run, next(iter(block_batches(run))))
    assert not run.paint_folder.whole_mark.exists()


def test_a_block_segmented_anew_is_compared_and_painted_anew(slide: Path, tmp_path: Path) -> None:
    run = segmented(slide, tmp_path)
    stitch_serially(run)
    run.segment_folder.block(7).unlink()
    steps.segment_blocks.fn(run, [7])
    assert not any(is_compared(run, batch) or is_painted(run, batch) for batch in block_batches(run))
    assert not run.stitch_folder.resolved.exists()


def test_nothing_that_was_made_of_old_blocks_is_believed_if_it_cannot_be_removed(
    slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = segmented(slide, tmp_path)
    stitch_serially(run)
    run.segment_folder.block(7).unlink()
    steps_in_order: list[str] = []
    save_block, sync = loop.save_block, marks.sync_folders
    monkeypatch.setattr(marks.shutil, "rmtree", lambda *_, **__: None)
    monkeypatch.setattr(marks, "sync_folders", lambda paths: steps_in_order.append("forgotten") or sync(paths))
    monkeypatch.setattr(loop, "save_block", lambda *args: steps_in_order.append("saved") or save_block(*args))
    steps.segment_blocks.fn(run, [7])
    assert not any(is_compared(run, batch) or is_painted(run, batch) for batch in block_batches(run))
    # The names have left the disk before the block is replaced.
    assert steps_in_order == ["forgotten", "forgotten", "saved"]


def test_no_block_is_segmented_anew_while_what_was_made_of_it_stays(
    slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = segmented(slide, tmp_path)
    stitch_serially(run)
    run.segment_folder.block(7).unlink()

    def refuse(path: Path, target: Path) -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OutputError, match=r"stitch-\w+ can't be written \(Permission denied\)"):
        steps.segment_blocks.fn(run, [7])
    assert not run.segment_folder.block(7).exists()


@pytest.mark.parametrize("lost", ["measures", "upper levels"])
def test_no_list_leaves_out_what_was_painted(lost: str, slide: Path, tmp_path: Path) -> None:
    run = segmented(slide, tmp_path)
    stitch_serially(run)
    listed, name = run.paths.file_list.read_bytes(), batches.batch_name(block_batches(run)[0])
    mark = run.paint_folder.measures(name) if lost == "measures" else run.paint_folder.whole_mark
    mark.write_bytes(mark.read_bytes()[:-9])
    with pytest.raises(DamagedError, match=f"{mark.name} is damaged or gone: run the same command again"):
        list_label_files(run)
    stitch_serially(run)
    assert run.paths.file_list.read_bytes() == listed


def test_what_a_task_of_an_earlier_attempt_writes_late_is_not_believed(
    slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = segmented(slide, tmp_path / "out")
    objects, expected = stitch_serially(run), level_0(run)
    late = [run.stitch_folder.overlaps("").parent, run.paint_folder.measures("").parent]
    for number, folder in enumerate(late):
        shutil.copytree(folder, tmp_path / str(number))
    begin_outer = loop.begin_outer

    def begin_reversed(*arguments: object) -> Callable[[], np.ndarray]:
        """Number a block's objects the other way round, as another device may."""
        labels = begin_outer(*arguments)()
        return lambda: np.where(labels, labels.max() + 1 - labels, 0).astype(labels.dtype)

    monkeypatch.setattr(loop, "begin_outer", begin_reversed)
    run.segment_folder.block(7).unlink()
    steps.segment_blocks.fn(run, [7])
    # Overlaps before the objects are numbered; measures when batches are being painted.
    shutil.copytree(tmp_path / "0", late[0])
    steps.resolve_objects.fn(run)
    shutil.copytree(tmp_path / "1", late[1])
    assert not any(is_painted(run, batch) for batch in block_batches(run))
    assert stitch_serially(run) == objects
    assert_same_segmentation(level_0(run), expected)
    # Overlaps once the objects are numbered.
    shutil.copytree(tmp_path / "0", late[0], dirs_exist_ok=True)
    assert stitch_serially(run) == objects
    assert_same_segmentation(level_0(run), expected)
