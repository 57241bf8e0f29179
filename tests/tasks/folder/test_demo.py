"""What the demo segments, and with what."""

from __future__ import annotations

from pathlib import Path

import pytest

from slidesam.tasks.errors import SettingsError
from slidesam.tasks.folder.demo import choose_demo_slide, demo_settings, make_demo_slide
from slidesam.tasks.plan import plan_run
from tests.support.weights_mirror import NEEDS_MICROSAM


@NEEDS_MICROSAM
def test_micro_sam_needs_no_download_and_sees_whole_fields_with_seams_in_them(tmp_path: Path) -> None:
    demo = choose_demo_slide("micro-sam")
    make_demo_slide(tmp_path / demo.name, demo.side, demo.zoom)
    run = plan_run(tmp_path / demo.name, tmp_path / "out", demo_settings("micro-sam"))
    assert run.segmenter_identity.startswith("nuclei-small sha256:")
    assert len(list(run.grid)) == 4
    assert {run.grid.input_tile(block).shape for block in run.grid} == {(1024, 1024)}


def test_watershed_has_a_larger_slide() -> None:
    assert choose_demo_slide("watershed") == ("demo.ome.tif", 4096, 1)
    assert demo_settings("watershed").segmenter.kind == "watershed"


def test_other_segmenters_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"no settings for segmenter cellpose: use --segmenter micro-sam or"):
        demo_settings("cellpose")
