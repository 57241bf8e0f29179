"""What benchmarks/seams counts: blocks without a halo are the guide's way, and blocks with one are the whole image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from skimage.draw import disk

from benchmarks.guide.report import Report
from benchmarks.seams import GUIDE, OURS, WHOLE, Mosaic, draw, measure, tables

SETTINGS = {"segmenter.kind": "watershed", "segmenter.diameter": 14, "blocks.tissue": "off", "blocks.halo": 32}
ABOUT = {
    "shape": [128, 128], "image": "discs", "device": "CPU", "cores": 2, "memory_gib": 1, "threads": 2, "mode": "watershed",
    "weights": "none", "scaling": "slide", "options": {}, "settings": {}, "versions": {}, "date": "2026-11-27",
}  # fmt: skip


def test_three_ways_are_counted_beside_the_one_block_and_the_truth(tmp_path: Path) -> None:
    truth = np.zeros((128, 128), np.int64)
    # The first lies across an edge of blocks of 64 px, the second across their corner; the last isn't in the image.
    for number, centre in enumerate([(30, 63.5), (63.5, 63.5), (100, 20), (100, 100)], 1):
        truth[disk(centre, 7)] = number
    image = np.where((truth > 0) & (truth < 4), 200, 10).astype(np.uint8)
    report = Report(tmp_path, "objects", ABOUT)
    measure(Mosaic("discs, made", image, truth), [64], None, SETTINGS, report)
    found = {row["way"]: row for row in report.rows}
    assert [found[way]["objects"] for way in (WHOLE, GUIDE, OURS)] == [3, 2 + 4 + 1, 3]
    assert [found[way]["false"] for way in (WHOLE, GUIDE, OURS)] == [0, 6, 0]
    assert [found[way]["missed"] for way in (WHOLE, GUIDE, OURS)] == [1, 3, 1]
    assert (found[OURS]["same"], found[OURS]["more"], found[GUIDE]["more"]) == (1.0, 0, 4)
    assert tables(report.rows)[0].rows[1][:4] == ["64", GUIDE, 7, "+133.33"]
    draw(report.rows, ABOUT, tmp_path)
    assert (tmp_path / "objects.png").stat().st_size > 10_000
    # Rows that are there aren't measured again.
    before = list(report.rows)
    measure(Mosaic("discs, made", image[:1], truth), [64], None, SETTINGS, report)
    assert report.rows == before
