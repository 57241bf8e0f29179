"""The guide's measurements repeated (benchmarks/guide): that what is counted is what it says, not how fast anything is."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from benchmarks.guide import figures, plots, stopwatch
from benchmarks.guide.__main__ import main, parse
from benchmarks.guide.about import about
from benchmarks.guide.case import Case, default_image, tiling_of, write_image
from benchmarks.guide.figures import GUIDE, OURS, SEQUENTIAL
from benchmarks.guide.report import Report
from benchmarks.guide.seams import count, guides_way, measure, tables
from benchmarks.guide.sequential import Job
from tests.support.microsam_fixtures import MICROSAM_MARKS
from tests.support.prefect_fixtures import THIRD_PARTY_WARNINGS


def with_micro_sam(test):
    """Runs the real micro-sam, and Prefect; more than half a minute each, so only where SLIDESAM_TEST_GUIDE is set."""
    for mark in (*MICROSAM_MARKS, *(pytest.mark.filterwarnings(warning) for warning in THIRD_PARTY_WARNINGS)):
        test = mark(test)
    test.__test__ = bool(os.environ.get("SLIDESAM_TEST_GUIDE"))
    return test


def a_case(folder: Path, image: np.ndarray) -> Case:
    array, slide = write_image(folder, image)
    return Case(
        folder=folder, image=array, slide=slide, name="a picture", shape=image.shape[:2], mode="ais", model="vit_b",
        checkpoint=None, weights="none", device="cpu", threads=2, mpp=0.5,
    )  # fmt: skip


class Pieces:
    """A segmenter that decides locally."""

    def segment(self, image, params):
        return ndimage.label(image > 0)[0]


def test_the_guides_way_cuts_objects_at_chunk_edges() -> None:
    image = np.zeros((64, 64), np.uint8)
    image[10:20, 25:40] = 1  # across one edge
    image[28:36, 28:36] = 1  # across a corner
    image[50:60, 5:15] = 1
    labels = guides_way(image, 32, Pieces(), {})
    assert count(labels) == 2 + 4 + 1
    assert ((labels > 0) == (image > 0)).all()
    assert count(guides_way(image, 64, Pieces(), {})) == 3


@pytest.mark.parametrize("fitted", [True, False])
@pytest.mark.parametrize(("chunk", "tile"), [(256, 256), (1024, 512), (4096, 256), (96, 64), (2048, 768)])
def test_tiles_cover_the_window(chunk, tile, fitted) -> None:
    tiling = tiling_of(chunk, tile, fitted)
    window = chunk + 2 * tiling.halo
    across = round(tiling.passes**0.5)
    if fitted:
        assert across == max(1, chunk // tile)
    if tiling.tile is not None:
        assert (across - 1) * tiling.tile < window <= across * tiling.tile


def test_encoder_passes_of_micro_sam() -> None:
    assert Job(256, 64).passes((1024, 600)) == 4 * 3
    assert Job(256, 64, chunk=512).passes((1024, 600)) == 2 * (4 + 2)


def test_what_is_compared_is_measured_in_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order, times = [], iter([3.0, 1.0, 7.0, 2.0, 5.0, 6.0])

    def facts(who: str) -> dict:
        order.append(who)
        return {
            "import": 1.0,
            "load": 0.0,
            "segment": next(times),
            "whole": 9.0,
            "objects": 4,
            "passes": 1,
            "busy": 1.0,
        }

    def sequential(case, jobs, take) -> None:
        for job in jobs:
            take(job, facts("alone"))

    monkeypatch.setattr(figures, "run_sequential", sequential)
    monkeypatch.setattr(figures, "run_ours", lambda *_: facts("ours"))
    case, plan = a_case(tmp_path, np.zeros((64, 64), np.uint8)), figures.Plan([64], [64], [1], 64, 1, True, rounds=3)
    report = Report(tmp_path / "out", "figures", about(case))
    figures.measure(case, plan, report)
    assert order == ["alone", "ours"] * 3
    assert [(row["method"], row["segment"]) for row in report.rows] == [(SEQUENTIAL, 5.0), (OURS, 2.0)]
    below = figures.tables(report, plan)[0].below
    assert below.endswith(
        "medians of 3, in turns; segmenting took micro-sam alone 3.0 to 7.0 s; slidesam 1 × 2 1.0 to 6.0 s"
    )
    figures.measure(case, plan, report)
    assert len(order) == 6


def test_seams(tmp_path: Path) -> None:
    image = default_image(512)[0]
    case = a_case(tmp_path, image)
    report = Report(tmp_path / "out", "seams", about(case))
    measure(case.slide, image, (128, 256), case.mpp, tmp_path / "work", report)
    for row in report.rows:
        assert row["guide"] > 1.03 * row["whole"]
        assert abs(row["ours"] - row["one_block"]) <= 0.01 * row["one_block"]
        assert row["ours_same"] > max(row["guide_same"], 0.99)
    few, many = (report.find(chunk=chunk)["guide"] for chunk in (256, 128))
    assert many > few
    report.show(tables(report))
    assert "false objects" in (tmp_path / "out" / "seams.txt").read_text()
    again = Report(tmp_path / "out", "seams", about(case), resume=True)
    assert again.rows == json.loads(json.dumps(report.rows))
    measure(case.slide, image, (128, 256), case.mpp, tmp_path / "nowhere", again)
    assert not (tmp_path / "nowhere").exists()


def figure_rows() -> list[dict]:
    timed = {"import": 5.0, "load": 2.0, "passes": 16, "busy": 0.9}
    rows = []
    for tile in (256, 512, 1024):
        rows.append({"method": SEQUENTIAL, "tile": tile, "chunk": None, "workers": 1, "threads": 2} | timed)
        rows += [
            {"method": method, "tile": tile, "chunk": chunk, "workers": workers, "threads": 1} | timed
            for chunk in (1024, 2048, 4096)
            for method, workers in ((GUIDE, 1), (OURS, 2), (OURS, 4))
        ]
    for row in rows:
        row["segment"] = 3e6 / row["tile"] ** 2 / row["workers"]
        row["whole"] = row["segment"] + 20
        row["objects"] = 12000 + 7 * row["tile"] + (row["method"] == GUIDE) * 4096 * 300 // (row["chunk"] or 4096)
    return rows


ROWS = {
    "figures": figure_rows(),
    "seams": [
        {"chunk": chunk, "whole": 21000, "guide": 21000 + 700000 // chunk, "one_block": 20990, "ours": 20991}
        for chunk in (512, 1024, 2048)
    ],
    "memory": [
        {"method": method, "blocks": blocks, "shape": [4096, 4096 * blocks], "peak": peak * blocks**power}
        for method, peak, power in ((SEQUENTIAL, 6000.0, 0.8), (OURS, 6400.0, 0.0))
        for blocks in (1, 4)
    ],
    "profile": [
        {"kind": "encoder", "precision": "float32", "batch": 1, "seconds": 4.2, "flops": 7.4e11, "tflops": 0.18},
        *(
            {
                "kind": "stages", "mode": mode, "busy": None,
                "seconds": {"read": 0.02, "rest": 0.1, "encoder": 4.2, "decoder": 2.0, "post-processing": 0.6, "write": 0.01},
            }
            for mode in ("ais", "amg")
        ),
        *(
            {"kind": kind, "mode": mode, "workers": workers, "seconds_per_tile": 7 / workers}
            for mode in ("ais", "amg")
            for kind, workers in (("sequential", 1), ("workers", 1), ("workers", 2), ("workers", 4), ("workers", 8))
        ),
    ],
}  # fmt: skip
SIZES = {
    "figures": {"chunk": 1024, "chunks": [1024, 2048, 4096], "workers": [1, 2, 4], "most": 4},
    "memory": {"block": 4096, "tile": 1024, "workers": 1},
}


@pytest.mark.parametrize(("part", "pictures"), [("figures", 4), ("seams", 1), ("memory", 1), ("profile", 1)])
def test_plots(part, pictures, tmp_path: Path) -> None:
    case = a_case(tmp_path, np.zeros((4096, 16), np.uint8))
    report = Report(tmp_path, part, about(case, **SIZES.get(part, {})))
    report.rows = ROWS[part]
    report.save()
    main(["--replot", str(report.path)])
    drawn = sorted(tmp_path.glob("*.png"))
    assert len(drawn) == pictures
    for path in drawn:
        with Image.open(path) as picture:
            assert picture.width >= 1000
            assert len(picture.convert("RGB").getcolors(10**6) or ()) > 20


def test_values_stand_on_bars() -> None:
    assert [plots.seconds(value) for value in (0.01234, 3.14159, 1234.5)] == ["0.0123", "3.14", "1,234"]


def test_time_inside_counts_for_the_inner(monkeypatch) -> None:
    clock = iter([0.0, 1.0, 4.0, 10.0])
    monkeypatch.setattr(stopwatch, "synchronize", lambda: None)
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: next(clock))
    watch = stopwatch.Stopwatch()
    inner = watch.wrapped("decoder", lambda owner: None)
    outer = watch.wrapped("post-processing", lambda owner: inner(owner))
    outer(None)
    assert watch.take() == ({"decoder": 3.0, "post-processing": 7.0}, {"decoder": 1, "post-processing": 1})


def test_presets() -> None:
    assert parse([]).parts == ["figures", "seams"]
    assert (parse(["--small"]).side, parse(["--small", "--side", "512"]).side) == (1024, 512)
    assert parse(["--profile", "--device", "cuda"]).workers == [1, 2, 4, 8]


def run_small(checkpoint: Path, folder: Path, *words: object) -> list[dict]:
    chosen = ["--small-networks", "--checkpoint", checkpoint, "--out", folder / "out", "--folder", folder, *words]
    main([str(word) for word in chosen])
    (path,) = (folder / "out").glob("*.json")
    return json.loads(path.read_text())["rows"]


@with_micro_sam
def test_figures_with_small_networks(microsam_checkpoint: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "two-blocks.npy", default_image(256)[0][:128])
    words = ("--figures", tmp_path / "two-blocks.npy", "--tiles", 128, "--chunks", 128, "--workers", 1, "--chunk", 128)
    rows = run_small(microsam_checkpoint, tmp_path, *words)
    assert [row["method"] for row in rows] == [SEQUENTIAL, GUIDE, OURS]
    assert [row["passes"] for row in rows] == [2, 2, 2]
    for row in rows:
        assert row["objects"] > 0
        assert 0 < row["segment"] < row["whole"]
    assert len(list((tmp_path / "out").glob("*.png"))) == 4


@with_micro_sam
def test_profile_with_small_networks(microsam_checkpoint: Path, tmp_path: Path) -> None:
    words = ("--profile", "--side", 512, "--workers", 1, "--modes", "ais", "--repeats", 1)
    rows = run_small(microsam_checkpoint, tmp_path, *words)
    assert [row["kind"] for row in rows] == ["encoder", "sequential", "workers", "stages"]
    encoder, _, workers, stages = rows
    assert encoder["flops"] > 1e11
    assert (workers["tiles"], len(workers["digests"])) == (1, 1)
    assert set(stages["seconds"]) == {"read", "rest", "encoder", "decoder", "post-processing", "write"}
