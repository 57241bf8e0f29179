"""A slide with tissue and without objects ends with a warning that names likely causes; one without tissue doesn't."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from slidesam.flows.cli.tables import status_table
from slidesam.flows.many.cohort_page import as_markdown, row_here
from slidesam.flows.progress.page_text import result_markdown
from slidesam.run_slides import segment
from slidesam.tasks.plan import plan_run
from slidesam.tasks.report.nothing_found import warn_if_nothing_found
from slidesam.tasks.report.provenance import read_finished
from slidesam.tasks.run.records import Params, Provenance, State
from slidesam.tasks.run.status import read_states
from slidesam.tasks.segmenters import jsonable_params
from slidesam.tasks.settings.parse import make_settings
from slidesam.tasks.slides.listing import Listed
from tests.support.serial import segment_serially

WATERSHED = {"segmenter.kind": "watershed", "blocks.block_shape": 128, "blocks.halo": 16}
TOO_BRIGHT = WATERSHED | {"segmenter.threshold": 60000.0}


def write_slide(path: Path, image: np.ndarray, mpp: float | None = 0.5, **options: Any) -> Path:
    resolution = {} if mpp is None else {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, image, metadata=None, **resolution, **options)
    return path


def tissue(shape: tuple[int, int] = (200, 300)) -> np.ndarray:
    image = np.random.default_rng(0).integers(90, 110, shape).astype(np.uint16)
    image[40:160:40, 40:260:40] = 3000
    return image


def run_slide(path: Path, output: Path, overrides: dict) -> tuple[str, ...]:
    """Segment a slide and return the warnings of its result."""
    segment_serially(path, output, overrides)
    record = read_finished(plan_run(path, output, make_settings(overrides=overrides)))
    assert record is not None
    assert record.objects == 0
    return record.warnings


class TestWords:
    def test_of_fluorescence(self, tmp_path: Path) -> None:
        slide = write_slide(tmp_path / "s.tif", tissue(), photometric="minisblack")
        (words,) = run_slide(slide, tmp_path / "out", TOO_BRIGHT)
        assert words.startswith("no cells were found in 6 blocks that hold tissue; likely causes: scale (")
        assert "it saw pixels of 0.5 µm as the file says; segmenter.diameter means objects 16 px wide" in words
        assert "channel (it saw channel 0, 1 of 1, bright objects: slide.channels); contrast (threshold 60000)" in words
        assert words.endswith("see s.cells.overlay.png")

    def test_of_a_stained_slide_whose_pixel_size_is_unknown(self, tmp_path: Path) -> None:
        image = np.full((200, 300, 3), 243, np.uint8)
        image[50:150, 50:250] = 228, 178, 205
        slide = write_slide(tmp_path / "s.tif", image, None, photometric="rgb")
        (words,) = run_slide(slide, tmp_path / "out", WATERSHED | {"segmenter.threshold": 0.99})
        assert "of unknown size (slide.mpp states it)" in words
        assert "stain (it saw hematoxylin in red, green and blue)" in words

    def test_of_another_pixel_size(self, tmp_path: Path) -> None:
        slide = write_slide(tmp_path / "s.tif", tissue(), 0.5, photometric="minisblack")
        (words,) = run_slide(slide, tmp_path / "out", TOO_BRIGHT | {"slide.target_mpp": 2.0, "slide.mpp": 1.0})
        assert "pixels of 2 µm; segmenter.diameter means objects 4 px wide" in words

    @pytest.mark.parametrize(
        ("params", "shown"),
        [
            ({"threshold": 0.25}, "threshold 0.25"),
            ({"low": [0, 1.5], "high": [7, 9]}, "low 0/1.5, high 7/9"),
            ({"low": [0] * 9}, "low 0/0/0/0/..."),
            ({"low": None, "high": True, "threshold": "otsu"}, "its own scaling"),
            ({"low": {"DAPI": 3}, "high": [[9], "max"], "threshold": 10**400}, "its own scaling"),
        ],
    )
    def test_of_any_parameters(self, params: dict, shown: str, tmp_path: Path) -> None:
        slide = write_slide(tmp_path / "s.tif", tissue(), photometric="minisblack")
        run_slide(slide, tmp_path / "out", TOO_BRIGHT)
        run = plan_run(slide, tmp_path / "out", make_settings(overrides=TOO_BRIGHT))
        (words,) = warn_if_nothing_found(run, Params(params=jsonable_params(params)), 0)
        assert f"contrast ({shown}); see" in words


@pytest.mark.parametrize("options", [{}, {"blocks.tissue": "off"}])
@pytest.mark.parametrize("value", [0, 400, 65535])
def test_a_slide_without_tissue_has_no_such_warning(value: int, options: dict, tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "s.tif", np.full((200, 300), value, np.uint16), photometric="minisblack")
    assert run_slide(slide, tmp_path / "out", WATERSHED | options) == ()


@pytest.mark.parametrize("options", [{}, {"blocks.tissue": "off"}])
def test_glass_beside_what_was_not_scanned_has_no_such_warning(options: dict, tmp_path: Path) -> None:
    glass = np.random.default_rng(0).normal(225, 1, (256, 384, 3)).astype(np.uint8)
    slide = write_slide(tmp_path / "s.tif", glass, photometric="rgb", tile=(64, 64), compression="zlib")
    with tifffile.TiffFile(slide, mode="r+") as tiff:
        for name in ("TileOffsets", "TileByteCounts"):
            tag = tiff.pages[0].tags[name]
            tag.overwrite([0 if number % 6 < 3 else value for number, value in enumerate(tag.value)])
    assert run_slide(slide, tmp_path / "out", WATERSHED | options | {"segmenter.threshold": 0.99}) == ()


def test_with_tissue_all_blocks_may_be_asked_for(tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "s.tif", tissue(), photometric="minisblack")
    assert len(run_slide(slide, tmp_path / "out", TOO_BRIGHT | {"blocks.tissue": "off"})) == 1


def test_a_slide_without_data_says_so(tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "s.tif", np.full((200, 300), np.nan, np.float32), photometric="minisblack")
    (words,) = run_slide(slide, tmp_path / "out", WATERSHED)
    assert words.startswith("none of its pixels holds data: they are NaN")


def test_absurd_values_are_told_and_no_others(tmp_path: Path) -> None:
    image = tissue().astype(np.float32)
    image[:50], image[50:60] = -3.4e38, np.nan
    slide = write_slide(tmp_path / "s.tif", image, photometric="minisblack")
    segment_serially(slide, tmp_path / "out", WATERSHED)
    record = read_finished(plan_run(slide, tmp_path / "out", make_settings(overrides=WATERSHED)))
    assert record.objects > 0
    assert record.warnings == (
        "25 % of the sampled values are beyond 1e+30: they are taken for no data, as background",
    )


def test_it_is_shown_wherever_results_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    slide = write_slide(tmp_path / "s.tif", tissue(), photometric="minisblack")
    result = segment(slide, tmp_path / "out", settings=TOO_BRIGHT)
    record = Provenance.model_validate(result.run)
    (words,) = record.warnings
    assert words in caplog.text
    (state,) = read_states(tmp_path / "out")
    assert state.state.warnings == (words,)
    shown = [part.plain for part in status_table([state], Path()).renderables[1:]]
    assert shown == [f"\nnote: s: {words}"]
    settings = make_settings(overrides=TOO_BRIGHT)
    row = row_here(Listed(slide, settings), tmp_path / "out", None, 1.0)
    assert row.warning == words
    assert "likely causes" in as_markdown([row])
    run = plan_run(slide, tmp_path / "out", settings)
    assert "**Note:** no cells were found" in result_markdown(run, record)


def test_records_without_warnings_are_read() -> None:
    assert Params.model_validate({"params": {}}).has_tissue is None
    assert State.model_validate({"status": "finished"}).warnings == ()
