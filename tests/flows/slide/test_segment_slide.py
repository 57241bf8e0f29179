"""The flow on a real Prefect server and a real local cluster: results, retries, failures, and what is not done twice."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import ome_zarr_models
import pytest
import zarr

from slidesam.tasks.errors import BlockFailures, OutputError, SegmenterError, SlideError
from slidesam.tasks.settings.parse import make_settings
from tests.support.prefect_fixtures import THIRD_PARTY_WARNINGS
from tests.support.serial import segment_serially
from tests.support.slides import write_numbered_slide

pytestmark = [pytest.mark.slow, *(pytest.mark.filterwarnings(warning) for warning in THIRD_PARTY_WARNINGS)]

CMU1_SETTINGS = {"segmenter.kind": "watershed", "blocks.block_shape": 512, "blocks.halo": 64}


def segment(cluster, slide: Path, output: Path, overrides: dict, reporter=None) -> dict:
    from slidesam.flows.progress.reporters import SilentReporter
    from slidesam.flows.slide.segment_slide import segment_slide_in
    from slidesam.flows.slide.session import Session

    session = Session(cluster=cluster, reporter=reporter or SilentReporter(), is_cluster_shared=True)
    return segment_slide_in(session, slide, output, make_settings(overrides=overrides))


def labels_of(output: Path, name: str, label: str = "cells") -> np.ndarray:
    return np.asarray(zarr.open_array(output / f"{name}.ome.zarr" / "labels" / label / "0", mode="r")[0, 0, 0])


def faulty(log: Path, **options) -> dict:
    """Settings of a slide in blocks of 64 px, segmented by a function that keeps a log and may fail."""
    return {
        "segmenter.kind": "function",
        "segmenter.target": "tests.support.faults:bright_pieces",
        "segmenter.options": {"log": str(log), **options},
        "blocks.block_shape": 64,
        "blocks.halo": 0,
        "run.retry_delay": 0.1,
        # What comes after the labels has its own tests.
        "output.formats": [],
    }


def task_runs(slide: str, n_blocks: int = 9) -> dict[str, tuple[str, int]]:
    """State and run count of a slide's block tasks by name, once the server has recorded that all ended."""
    import time

    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName
    from prefect.client.schemas.sorting import TaskRunSort

    these = FlowRunFilter(name=FlowRunFilterName(any_=[f"segment blocks of {slide}"]))
    deadline = time.monotonic() + 90
    while True:
        with get_client(sync_client=True) as client:
            runs = [
                run
                for run in client.read_task_runs(flow_run_filter=these, sort=TaskRunSort.NAME_ASC, limit=200)
                if run.name.startswith("block")
            ]
        if len(runs) == n_blocks and all(run.state and run.state.is_final() for run in runs):
            return {run.name: (run.state_name, run.run_count) for run in runs}
        assert time.monotonic() < deadline, [(run.name, run.state_name, run.run_count) for run in runs]
        time.sleep(0.3)


NAME = "CMU-1-Small-Region"


def test_real_slide_gives_valid_ome_zarr_at_the_slides_scale(cmu1_result: Path) -> None:
    root = zarr.open_group(cmu1_result / f"{NAME}.ome.zarr", mode="r")
    image, label = ome_zarr_models.open_ome_zarr(root), ome_zarr_models.open_ome_zarr(root["labels/cells"])
    assert type(image).__module__.startswith("ome_zarr_models.v05")
    assert type(label).__name__ == "ImageLabel"
    for group in (image, label):
        multiscale = group.ome_attributes.multiscales[0]
        assert [axis.name for axis in multiscale.axes] == list("tczyx")
        assert multiscale.axes[4].unit == "micrometer"
        assert list(multiscale.datasets[0].coordinateTransformations[0].scale)[3:] == [0.499, 0.499]
    assert type(ome_zarr_models.open_ome_zarr(root["labels"])).__name__ == "Labels"


def test_ids_are_one_to_n_without_gaps(cmu1_result: Path) -> None:
    ids = np.unique(labels_of(cmu1_result, NAME))
    facts = json.loads((cmu1_result / f"{NAME}.cells.run.json").read_text())
    np.testing.assert_array_equal(ids, np.arange(facts["objects"] + 1))
    assert facts["objects"] > 1000
    assert facts["status"] == "finished"


def test_coarser_levels_are_every_other_label(cmu1_result: Path) -> None:
    group = zarr.open_group(cmu1_result / f"{NAME}.ome.zarr" / "labels" / "cells", mode="r")
    finest = np.asarray(group["0"][0, 0, 0])
    assert len(list(group.array_keys())) == 4
    for level in range(1, 4):
        np.testing.assert_array_equal(np.asarray(group[str(level)][0, 0, 0]), finest[:: 2**level, :: 2**level])


def test_image_shows_the_source(cmu1_result: Path, cmu1: Path) -> None:
    import tifffile

    image = zarr.open_array(cmu1_result / f"{NAME}.ome.zarr" / "0", mode="r")
    np.testing.assert_array_equal(np.moveaxis(np.asarray(image[0, :, 0]), 0, -1), tifffile.imread(cmu1))


def test_overlay_is_a_picture(cmu1_result: Path) -> None:
    from PIL import Image

    with Image.open(cmu1_result / f"{NAME}.cells.overlay.png") as picture:
        assert picture.width > 1000
        assert len(picture.convert("RGB").getcolors(maxcolors=2**24)) > 1000


@pytest.mark.parametrize(
    "way",
    [
        {"image.convert": "never", "image.rechunk": "never", "blocks.blocks_per_task": 7},
        {"image.convert": "never", "image.rechunk": "always", "blocks.blocks_per_task": 1},
    ],
)
def test_same_bytes_with_one_worker_in_reverse_order(
    way: dict, cmu1: Path, cmu1_result: Path, prefect_server, tmp_path: Path
) -> None:
    from slidesam.flows.cluster.cluster import LocalProfile, open_cluster
    from slidesam.flows.slide.session import Session
    from slidesam.flows.slide.stages import image_stage, segment_stage, stitch_stage
    from slidesam.tasks.plan import plan_run

    run = plan_run(cmu1, tmp_path, make_settings(overrides=CMU1_SETTINGS | way))
    with open_cluster(LocalProfile(workers=1)) as cluster:
        runner = cluster.workers().task_runner()
        session = Session(cluster=cluster)
        image_stage.with_options(task_runner=runner)(run, session)
        seconds = segment_stage.with_options(task_runner=runner)(run, session, list(range(len(run.grid)))[::-1])
        stitch_stage.with_options(task_runner=runner)(run, session, seconds)
    np.testing.assert_array_equal(labels_of(tmp_path, NAME), labels_of(cmu1_result, NAME))


def test_same_bytes_without_any_cluster(cmu1: Path, cmu1_result: Path, tmp_path: Path) -> None:
    np.testing.assert_array_equal(segment_serially(cmu1, tmp_path, CMU1_SETTINGS), labels_of(cmu1_result, NAME))


def test_a_slide_of_few_blocks_is_one_flow_run_of_few_tasks(two_workers, tmp_path: Path) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName

    slide = write_numbered_slide(tmp_path / "tiny.tif", 2, 2)
    assert segment(two_workers, slide, tmp_path / "out", faulty(tmp_path / "log")).objects == 4
    with get_client(sync_client=True) as client:
        these = FlowRunFilter(name=FlowRunFilterName(like_="tiny"))
        runs, tasks = client.read_flow_runs(flow_run_filter=these), client.read_task_runs(flow_run_filter=these)
    assert [run.name for run in runs] == ["tiny · function"]
    # Image, preparing, four blocks, stitching, objects; the server has perhaps not recorded all yet.
    assert len(tasks) <= 8


def test_second_call_does_nothing(two_workers, cmu1: Path, cmu1_result: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in cmu1_result.rglob("*") if path.is_file()}
    segment(two_workers, cmu1, cmu1_result, CMU1_SETTINGS)
    assert {path: path.stat().st_mtime_ns for path in cmu1_result.rglob("*") if path.is_file()} == before


def test_a_block_that_fails_once_is_retried_and_the_slide_finishes(two_workers, tmp_path: Path) -> None:
    log = tmp_path / "log"
    slide = write_numbered_slide(tmp_path / "once.tif")
    facts = segment(two_workers, slide, tmp_path / "out", faulty(log, fail_on=5, times=1))
    assert facts.objects == 9
    lines = log.read_text().splitlines()
    assert sorted(lines) == sorted([f"{k} done" for k in range(1, 10)] + ["5 failed"])
    runs = task_runs("once")
    assert runs.pop("block 4 (row 1, column 1)") == ("Completed", 2)
    assert set(runs.values()) == {("Completed", 1)}


def test_a_block_that_always_fails_is_named_and_costs_no_other(two_workers, tmp_path: Path) -> None:
    log, output = tmp_path / "log", tmp_path / "out"
    slide = write_numbered_slide(tmp_path / "always.tif")
    with pytest.raises(
        BlockFailures, match=r"always: 1 of 9 blocks failed.*block 4: RuntimeError: made to fail"
    ) as caught:
        segment(two_workers, slide, output, faulty(log, fail_on=5, times=3))
    assert caught.value.block_ids == (4,)
    assert not (output / "always.cells.run.json").exists()
    assert not (output / "always.ome.zarr" / "labels").exists()
    # Once the cause is gone (it failed three times) the same command does that block, and no other, again.
    assert segment(two_workers, slide, output, faulty(log, fail_on=5, times=3)).objects == 9
    assert sorted(log.read_text().splitlines()) == sorted([f"{k} done" for k in range(1, 10)] + ["5 failed"] * 3)


def test_what_is_no_label_image_is_not_tried_again(two_workers, tmp_path: Path) -> None:
    slide = write_numbered_slide(tmp_path / "wrong.tif")
    overrides = {
        "segmenter.kind": "function",
        "segmenter.target": "tests.support.faults:wrong_shape",
        "blocks.block_shape": 64,
    }
    with pytest.raises(BlockFailures, match="it must keep"):
        segment(two_workers, slide, tmp_path / "out", overrides)
    assert set(task_runs("wrong").values()) == {("Failed", 1)}


def test_a_changed_stitch_setting_segments_nothing_again(two_workers, tmp_path: Path) -> None:
    log = tmp_path / "log"
    slide = write_numbered_slide(tmp_path / "slide.tif")
    segment(two_workers, slide, tmp_path / "out", faulty(log))
    segment(two_workers, slide, tmp_path / "out", faulty(log) | {"stitch.min_iou": 0.5})
    assert len(log.read_text().splitlines()) == 9


def test_labels_of_two_names_live_side_by_side_and_a_second_run_replaces_its_own(two_workers, tmp_path: Path) -> None:
    log, output = tmp_path / "log", tmp_path / "out"
    slide = write_numbered_slide(tmp_path / "slide.tif")
    segment(two_workers, slide, output, faulty(log))
    segment(two_workers, slide, output, faulty(log) | {"output.label": "other"})
    segment(two_workers, slide, output, faulty(log) | {"blocks.block_shape": 128})
    root = zarr.open_group(output / "slide.ome.zarr", mode="r")
    assert root["labels"].attrs["ome"]["labels"] == ["cells", "other"]
    # Shards are groups of blocks, up to 4096 pixels a side; their shape is that of larger slides too.
    assert root["labels/cells/0"].shards[3:] == (4096, 4096)
    records = {path.name: json.loads(path.read_text()) for path in output.glob("*.run.json")}
    shapes = {name: record["settings"]["blocks"]["block_shape"] for name, record in records.items()}
    assert shapes == {"slide.cells.run.json": [128, 128], "slide.other.run.json": [64, 64]}
    np.testing.assert_array_equal(labels_of(output, "slide") > 0, labels_of(output, "slide", "other") > 0)


@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_both_versions_of_ome_zarr(two_workers, tmp_path: Path, version: str) -> None:
    slide = write_numbered_slide(tmp_path / "slide.tif")
    segment(two_workers, slide, tmp_path / "out", faulty(tmp_path / "log") | {"image.ome_zarr": version})
    root = zarr.open_group(tmp_path / "out" / "slide.ome.zarr", mode="r")
    assert root.metadata.zarr_format == {"0.5": 3, "0.4": 2}[version]
    for group in (root, root["labels/cells"]):
        assert f"v{version.replace('.', '')}" in type(ome_zarr_models.open_ome_zarr(group)).__module__
    assert labels_of(tmp_path / "out", "slide").max() == 9


def test_bad_slide_leaves_nothing_that_looks_finished(two_workers, tmp_path: Path) -> None:
    (tmp_path / "bad.tif").write_bytes(b"")
    with pytest.raises(SlideError, match=r"bad\.tif"):
        segment(two_workers, tmp_path / "bad.tif", tmp_path / "out", {"segmenter.kind": "watershed"})
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("bad*"))


def test_missing_weights_stop_the_run_before_any_block(two_workers, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("MICROSAM_CACHEDIR", str(tmp_path / "no-weights"))
    slide = write_numbered_slide(tmp_path / "slide.tif")
    with pytest.raises(SegmenterError, match="vit_b_lm"):
        segment(two_workers, slide, tmp_path / "out", {})
    assert not (tmp_path / "out" / "slide.ome.zarr").exists()


def test_a_store_of_somebody_else_is_left_alone(two_workers, tmp_path: Path) -> None:
    slide = write_numbered_slide(tmp_path / "slide.tif")
    theirs = tmp_path / "out" / "slide.ome.zarr"
    zarr.create_group(theirs, attributes={"theirs": True})
    with pytest.raises(OutputError, match="wasn't made by slidesam"):
        segment(two_workers, slide, tmp_path / "out", faulty(tmp_path / "log"))
    assert dict(zarr.open_group(theirs, mode="r").attrs) == {"theirs": True}


def test_workers_have_a_folder_for_temporary_files_that_others_cannot_enter(two_workers) -> None:
    with two_workers.workers().connect() as client:
        folders = client.run(lambda dask_worker: dask_worker.local_directory)
    own = f"slidesam-{os.getuid()}"
    assert len(folders) == 2
    assert all(own in Path(folder).parts for folder in folders.values())
