"""What `slidesam inspect` shows of a slide."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import numpy as np
import tifffile
from rich.console import Console

from slidesam.flows.cli.tables import slide_table
from slidesam.tasks.settings.parse import make_settings
from slidesam.tasks.slides.inspect import inspect_slide


def test_the_pixel_size_is_shown_with_where_it_comes_from(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((40, 60), np.uint8), resolution=(20_000, 40_000), resolutionunit=3)
    for overrides, words in (
        ({}, "0.5 × 0.25 µm (resolution tags)"),
        ({"slide.mpp": 0.4}, "0.4 × 0.4 µm (setting slide.mpp)"),
    ):
        settings = make_settings(overrides={"segmenter.kind": "watershed", **overrides})
        console = Console(file=StringIO(), width=200)
        console.print(slide_table(inspect_slide(path, settings.slide), settings, None))
        assert words in console.file.getvalue()  # type: ignore[attr-defined]


def test_blocks_that_see_a_region_are_counted_and_planned(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((400, 600), np.uint8))
    overrides = {"segmenter.kind": "watershed", "blocks.block_shape": 64, "blocks.halo": 0}
    settings = make_settings(overrides=overrides | {"blocks.region": "70, 10, 50, 80"})
    console = Console(file=StringIO(), width=200)
    console.print(slide_table(inspect_slide(path, settings.slide), settings, tmp_path / "out"))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "2 of them see a region of 70, 10, 50, 80" in shown
    assert "segment: only the 2 of 70 blocks" in shown
