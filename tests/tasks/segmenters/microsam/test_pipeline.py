"""The real micro-sam through the real pipeline: each block's labels are those of micro-sam alone, in a process of its own."""

from __future__ import annotations

import json
from pathlib import Path

import fastremap
import numpy as np
import pytest
import tifffile
from skimage.data import immunohistochemistry

from slidesam.tasks.labels.results import BlockResults
from slidesam.tasks.settings.parse import make_settings
from tests.support.microsam_fixtures import MICROSAM_MARKS, alone
from tests.support.microsam_small import use_small_networks
from tests.support.prefect_fixtures import THIRD_PARTY_WARNINGS

pytestmark = [*MICROSAM_MARKS, *(pytest.mark.filterwarnings(warning) for warning in THIRD_PARTY_WARNINGS)]

# One thread: with two, on a loaded machine, torch was seen to differ by a pixel in 73 728.
BLOCK, HALO, THREADS = 256, 32, 1
# One: tests/tasks/segmenters/microsam/test_segmenter.py compares the others without the pipeline around them.
CASES: dict[str, tuple[str, dict]] = {"ais": ("slide", {})}


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """Two blocks beside each other."""
    return immunohistochemistry()[:BLOCK, : 2 * BLOCK]


def input_tiles(image: np.ndarray) -> list[np.ndarray]:
    """What each block's segmenter must be shown: the block and its halo, background where the slide ends."""
    background = np.percentile(image, 99, axis=(0, 1), method="nearest")
    padded = np.empty((BLOCK + 2 * HALO, 2 * BLOCK + 2 * HALO, 3), np.uint8)
    padded[:] = background
    padded[HALO:-HALO, HALO:-HALO] = image
    return [padded[:, : BLOCK + 2 * HALO], padded[:, BLOCK:]]


@pytest.fixture(scope="module")
def reference(image, microsam_checkpoint: Path, tmp_path_factory) -> dict[str, list[np.ndarray]]:
    """micro-sam's own labels of both input tiles, for each case."""
    folder = tmp_path_factory.mktemp("alone")
    top = float(np.percentile(image, 99.9, axis=(0, 1)).max())
    listed = []
    for mode, (scaling, options) in CASES.items():
        for number, tile in enumerate(input_tiles(image)):
            path = folder / f"{mode}{number}.npy"
            np.save(path, tile)
            case = {
                "checkpoint": str(microsam_checkpoint),
                "mode": mode,
                "image": str(path),
                "labels": str(path) + ".labels.npy",
            }
            case["init_options"] = {key: options[key] for key in options if key == "points_per_side"}
            case["generate_options"] = {key: options[key] for key in options if key != "points_per_side"}
            if scaling == "slide":
                case["range"] = {"low": [0.0] * 3, "high": [top] * 3}
            listed.append(case)
    (folder / "cases.json").write_text(json.dumps(listed))
    alone("reference", folder / "cases.json")
    return {mode: [np.load(folder / f"{mode}{number}.npy.labels.npy") for number in range(2)] for mode in CASES}


@pytest.mark.parametrize("mode", CASES)
def test_each_blocks_labels_are_micro_sams(
    mode, image, reference, microsam_checkpoint, prefect_server, tmp_path
) -> None:

    from slidesam.flows.cluster.cluster import LocalProfile, open_cluster
    from slidesam.flows.slide.segment_slide import segment_slide_in
    from slidesam.flows.slide.session import Session
    from slidesam.tasks.plan import plan_run

    scaling, options = CASES[mode]
    slide = tmp_path / "ihc.tif"
    tifffile.imwrite(slide, image, photometric="rgb")
    overrides = {
        "checkpoint": str(microsam_checkpoint),
        "mode": mode,
        "scaling": scaling,
        "tiling": "micro-sam",
        "options": options,
        "device": "cpu",
    }
    settings = make_settings(
        overrides={f"segmenter.{key}": value for key, value in overrides.items()}
        | {"blocks.block_shape": BLOCK, "blocks.halo": HALO}
    )
    where = LocalProfile(workers=1, threads=THREADS)
    with open_cluster(where) as cluster:
        with cluster.workers().connect() as client:
            client.run(use_small_networks)
        facts = segment_slide_in(Session(cluster=cluster), slide, tmp_path / "out", settings)
    assert (facts.segmenter.devices, facts.segmenter.threads) == (("cpu",), (str(THREADS),))
    run = plan_run(slide, tmp_path / "out", settings)
    for block, theirs in zip(run.grid, reference[mode], strict=True):
        ours = BlockResults(run).read(block, block.outer)
        on_slide = np.ascontiguousarray(theirs[block.outer.relative_to(run.grid.input_tile(block)).slices])
        expected, _ = fastremap.renumber(on_slide, preserve_zero=True)
        print(f"{mode}, {scaling}: block {block.block_id} has {ours.max()} objects")
        assert ours.max() >= 10
        np.testing.assert_array_equal(ours, expected)
