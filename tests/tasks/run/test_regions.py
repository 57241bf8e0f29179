"""A run on regions of interest: only the blocks that see them, the same objects as in the whole slide, one name per object."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from slidesam.flows.slide import order
from slidesam.tasks.errors import SettingsError
from slidesam.tasks.grid import BlockGrid
from slidesam.tasks.plan import explain, plan_run
from slidesam.tasks.run.marks import list_blocks
from slidesam.tasks.run.regions import keep_regions
from slidesam.tasks.run.run import Run
from slidesam.tasks.settings.parse import make_settings
from tests.support.serial import EXECUTOR, segment_serially
from tests.support.slides import write_blobs

SIDE, BLOCK, HALO = 768, 128, 32
SETTINGS = {
    "segmenter.kind": "watershed",
    "segmenter.diameter": 16,
    "blocks.block_shape": BLOCK,
    "blocks.halo": HALO,
    "blocks.tissue": "off",
    "output.formats": ["table"],
}
# Drawn by hand: no side follows a block's.
RING = [[130, 140], [330, 150], [300, 345], [180, 310], [130, 140]]
FAR = [[600, 610], [700, 600], [690, 700], [600, 610]]


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_blobs(tmp_path_factory.mktemp("regions") / "blobs.tif", SIDE)


@pytest.fixture
def regions(tmp_path: Path) -> Path:
    path = tmp_path / "regions.geojson"
    _write(path, RING, FAR)
    return path


def _write(path: Path, *rings: list[list[int]]) -> None:
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": {"name": f"ROI {number}"},
        }
        for number, ring in enumerate(rings, 1)
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))


def _plan(slide: Path, output: Path, region: Path | str | None) -> Run:
    changes = {} if region is None else {"blocks.region": str(region)}
    return plan_run(slide, output, make_settings(overrides=SETTINGS | changes))


def _segment(slide: Path, output: Path, region: Path | str | None) -> tuple[Run, np.ndarray]:
    changes = {} if region is None else {"blocks.region": str(region)}
    labels = segment_serially(slide, output, SETTINGS | changes)
    run = _plan(slide, output, region)
    order.export_objects(run, EXECUTOR)
    return run, labels


def _read_table(run: Run) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = pq.read_table(run.paths.objects("parquet")).to_pydict()
    return columns


def test_only_needed_blocks_are_computed_and_counts_are_those_of_the_whole_slide(
    slide: Path, regions: Path, tmp_path: Path
) -> None:
    whole, whole_labels = _segment(slide, tmp_path / "whole", None)
    run, labels = _segment(slide, tmp_path / "part", regions)
    computed = run.segment_folder.list_results()
    boxes = {"ROI 1": (130, 140, 330, 345), "ROI 2": (600, 600, 700, 700)}
    for block in BlockGrid((SIDE, SIDE), (BLOCK, BLOCK), HALO):
        outer = block.outer
        may_see = any(
            outer.x0 <= x1 and x0 <= outer.x1 and outer.y0 <= y1 and y0 <= outer.y1 for x0, y0, x1, y1 in boxes.values()
        )
        assert may_see or block.block_id not in computed
    assert sorted(computed) == list_blocks(run)
    assert len(computed) < len(whole.grid) / 2
    table, whole_table = _read_table(run), _read_table(whole)
    assert "region" not in whole_table
    named = _regions_of(whole_table)
    for name in boxes:
        found = {(y, x, area) for y, x, area, region in _rows(table) if region == name}
        expected = {row for row, region in zip(_places(whole_table), named, strict=True) if region == name}
        assert found == expected
        assert found
    inside = np.isin(labels, [label for label, name in zip(table["label"], table["region"], strict=True) if name])
    assert ((labels > 0) == (whole_labels > 0))[inside].all()


def _rows(table: dict[str, list[Any]]) -> list[tuple[Any, ...]]:
    return list(zip(*(table[name] for name in ("centroid-0", "centroid-1", "area", "region")), strict=True))


def _places(table: dict[str, list[Any]]) -> list[tuple[Any, ...]]:
    return list(zip(*(table[name] for name in ("centroid-0", "centroid-1", "area")), strict=True))


def _regions_of(table: dict[str, list[Any]]) -> list[str]:
    """Point in polygon by crossings, as an oracle."""
    names = []
    for y, x in zip(table["centroid-0"], table["centroid-1"], strict=True):
        hits = [name for name, ring in (("ROI 1", RING), ("ROI 2", FAR)) if _holds(ring, x + 0.5, y + 0.5)]
        names.append(hits[0] if hits else "")
    return names


def _holds(ring: list[list[int]], x: float, y: float) -> bool:
    crossings = 0
    for (x0, y0), (x1, y1) in pairwise(ring):
        crossings += (y0 > y) != (y1 > y) and x < x0 + (y - y0) * (x1 - x0) / (y1 - y0)
    return crossings % 2 == 1


def test_blocks_serve_other_regions_and_the_whole_slide(slide: Path, regions: Path, tmp_path: Path) -> None:
    run, _ = _segment(slide, tmp_path / "out", "100, 100, 200, 200")
    done = {block: run.segment_folder.block(block).stat().st_mtime_ns for block in run.segment_folder.list_results()}
    assert "segment: 0 of" not in " ".join(explain(_plan(slide, tmp_path / "out", regions)))
    segmented, labels = _segment(slide, tmp_path / "out", None)
    assert segmented.segment_folder == run.segment_folder
    assert {block: run.segment_folder.block(block).stat().st_mtime_ns for block in done} == done
    np.testing.assert_array_equal(labels, segment_serially(slide, tmp_path / "whole", SETTINGS))


def test_a_copy_of_the_regions_stays(slide: Path, regions: Path, tmp_path: Path) -> None:
    run = _plan(slide, tmp_path / "out", regions)
    _write(regions, FAR)
    with pytest.raises(SettingsError, match="changed since the run began"):
        keep_regions(run)
    _write(regions, RING, FAR)
    keep_regions(run)
    regions.unlink()
    _segment_planned(run)
    assert sorted(run.segment_folder.list_results()) == list_blocks(run)


def _segment_planned(run: Run) -> None:
    order.write_image(run, EXECUTOR)
    order.segment_missing_blocks(run, EXECUTOR)


def test_other_regions_are_another_result(slide: Path, regions: Path, tmp_path: Path) -> None:
    run = _plan(slide, tmp_path / "out", regions)
    assert _plan(slide, tmp_path / "out", None).fingerprints["segment"] == run.fingerprints["segment"]
    stitched = {run.fingerprints["stitch"], _plan(slide, tmp_path / "out", None).fingerprints["stitch"]}
    _write(regions, FAR)
    stitched.add(_plan(slide, tmp_path / "out", regions).fingerprints["stitch"])
    assert len(stitched) == 3
