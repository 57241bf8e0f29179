"""A trial on slides whose objects are known: counts, sizes, times, the page and its table."""

from __future__ import annotations

import base64
import csv
import io
import re
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from slidesam.tasks.errors import SettingsError
from slidesam.tasks.grid import Region
from slidesam.tasks.plan import describe_run, plan_run
from slidesam.tasks.segment.prepare import prepare_run
from slidesam.tasks.settings.parse import make_settings
from slidesam.tasks.slides.inspect import inspect_slide
from slidesam.tasks.trial import trial as trial_module
from slidesam.tasks.trial.page import make_page, make_table, write_trial
from slidesam.tasks.trial.picture import draw_outlines, draw_region
from slidesam.tasks.trial.trial import Trial, run_trial
from slidesam.tasks.trial.window import place_window
from tests.support.serial import write_image_serially

WATERSHED = {"segmenter.kind": "watershed", "segmenter.diameter": 8, "slide.mpp": 0.5, "blocks.block_shape": 128}


def write_discs(path: Path, pitch: int = 32) -> Path:
    """Bright discs, 16 px wide, on a dark ground of 512 × 384 px: one every `pitch` pixels."""
    y, x = np.ogrid[:512, :384]
    distance = np.hypot(y % pitch - pitch / 2, x % pitch - pitch / 2)
    rng = np.random.default_rng(0)
    image = np.where(distance < 8, 2000, 100) + rng.integers(0, 20, (512, 384))
    tifffile.imwrite(path, image.astype(np.uint16), tile=(64, 64))
    return path


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    slide = write_discs(tmp_path_factory.mktemp("trial") / "<discs>.tif")
    return run_trial(slide, make_settings(overrides=WATERSHED), corners=[(0, 0), (128, 64)], side=128)


def decode(uri: str) -> NDArray[np.uint8]:
    picture = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    return np.asarray(picture.convert("RGBA"))


def test_objects_are_counted_and_measured(trial: Trial) -> None:
    assert [region for _, region in trial.regions] == [Region(0, 0, 128, 128), Region(128, 64, 256, 192)]
    (given, *others) = trial.results
    assert given.changes == {}
    for sight in given.sights:
        # Four by four, and those that the edge cuts aren't more: their centres lie outside.
        assert sight.count == 16
        assert sight.diameter == pytest.approx(16, abs=1.5)
        assert 0 < sight.seconds < 30
    assert given.mpp == 0.5
    assert len(others) == 8
    assert {name for result in others for name in result.changes} == {"segmenter.threshold", "segmenter.diameter"}
    assert trial.device == "cpu"


def test_outlines_lie_around_the_objects(trial: Trial) -> None:
    outlines = decode(trial.results[0].sights[0].outlines)
    zoom = trial.pictures[0].zoom
    assert outlines.shape == (128 * zoom, 128 * zoom, 4)
    is_drawn = outlines[..., 3] > 0
    y, x = (np.argwhere(is_drawn).T + 0.5) / zoom
    distance = np.hypot(y % 32 - 16, x % 32 - 16)
    assert is_drawn.any()
    assert distance.min() > 5.5
    assert distance.max() < 10
    assert decode(trial.pictures[0].uri).shape == outlines.shape


def test_the_whole_slide_is_estimated_from_its_blocks(tmp_path: Path) -> None:
    slide = write_discs(tmp_path / "s.tif")
    settings = make_settings(overrides=WATERSHED | {"blocks.tissue": "off"})
    trial = run_trial(slide, settings, corners=[(0, 0)], side=128, grid={"segmenter.diameter": [8]})
    run = describe_run(inspect_slide(slide, settings.slide), tmp_path, settings)
    (sight,) = trial.results[0].sights
    # 4 × 3 blocks, and each is as large as the window.
    assert place_window(run, Region(0, 0, 128, 128)).outer.shape == run.grid.outer_shape
    assert trial.results[0].slide_seconds == pytest.approx(12 * sight.seconds)


def test_parameters_are_those_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slide, seen = write_discs(tmp_path / "s.tif"), []
    segment = trial_module.segment_window
    monkeypatch.setattr(trial_module, "segment_window", lambda *args: (seen.append(args[4:]), segment(*args))[1])
    settings = make_settings(overrides=WATERSHED)
    run_trial(slide, settings, corners=[(0, 0)], side=64, grid={"segmenter.diameter": [8]})
    run = plan_run(slide, tmp_path / "out", settings)
    write_image_serially(run)
    shared = prepare_run(run)
    ((params, fill),) = seen
    assert (params, tuple(fill)) == (shared.params, shared.fill)


def test_other_pixel_sizes_are_tried_where_they_are_known(tmp_path: Path) -> None:
    slide = write_discs(tmp_path / "s.tif")
    settings = make_settings(overrides=WATERSHED)
    sizes = {"slide.target_mpp": [None, 1.0], "segmenter.diameter": [8]}
    at_own, at_other = run_trial(slide, settings, corners=[(64, 64)], side=128, grid=sizes).results
    assert (at_own.mpp, at_other.mpp) == (0.5, pytest.approx(1.0, rel=0.01))
    assert at_other.changes == {"slide.target_mpp": 1.0}
    assert at_own.sights[0].count == at_other.sights[0].count == 16
    # In pixels half as wide, in µm the same.
    assert at_other.sights[0].diameter * at_other.mpp == pytest.approx(at_own.sights[0].diameter * 0.5, rel=0.15)
    unknown = run_trial(slide, make_settings(overrides=WATERSHED | {"slide.mpp": None}), corners=[(0, 0)], side=64)
    assert {result.mpp for result in unknown.results} == {None}
    assert any("--set slide.mpp=" in note for note in unknown.notes)


def test_outlines_of_other_pixel_sizes_lie_where_the_objects_are(tmp_path: Path) -> None:
    slide = write_discs(tmp_path / "s.tif")
    facts = inspect_slide(slide, make_settings(overrides=WATERSHED).slide)
    settings = make_settings(overrides=WATERSHED | {"slide.target_mpp": 1.0})
    run, region = describe_run(facts, tmp_path, settings), Region(64, 96, 192, 224)
    window = place_window(run, region)
    picture = draw_region(facts, (0,), np.zeros((4, 4, 1), np.uint16), region)
    labels = np.zeros(window.outer.shape, np.uint32)
    factor_y, factor_x = run.scale.factor
    # One object: rows 96 to 128 and columns 128 to 160 of level 0.
    y0, x0 = round(96 / factor_y) - window.outer.y0, round(128 / factor_x) - window.outer.x0
    labels[y0 : y0 + 16, x0 : x0 + 16] = 1
    drawn = decode(draw_outlines(labels, window, region, run.scale, picture))[..., 3] > 0
    y, x = np.argwhere(drawn).T / picture.zoom
    assert (y.min() + 64, y.max() + 64) == (pytest.approx(96, abs=1.5), pytest.approx(128, abs=1.5))
    assert (x.min() + 96, x.max() + 96) == (pytest.approx(128, abs=1.5), pytest.approx(160, abs=1.5))


def test_the_page_needs_no_other_file_and_escapes_names(trial: Trial) -> None:
    page = make_page(trial, ["--segmenter", "watershed"])
    assert re.findall(r"(?:src|href)=\"(?!data:|#)[^\"]*|url\((?!data:)[^)]*|https?:", page) == []
    assert "<discs>" not in page
    assert "&lt;discs&gt;" in page
    assert page.count("<figure>") == 9 * 2
    # Each region's pixels are there once.
    assert page.count("data:image/jpeg") == 2 + 1
    assert "--segmenter watershed --set segmenter.diameter=6" in page


def test_the_table_has_a_row_for_each_choice_and_region(trial: Trial) -> None:
    rows = list(csv.DictReader(io.StringIO(make_table(trial))))
    assert len(rows) == 9 * 2
    first = rows[0]
    assert (first["choice"], first["settings"], first["region"], first["objects"]) == ("1", "", "given", "16")
    assert float(first["median_diameter_um"]) == pytest.approx(float(first["median_diameter_px"]) / 2, abs=0.01)
    # 16 in 64 µm × 64 µm.
    assert float(first["objects_per_mm2"]) == pytest.approx(16 / 0.064**2, rel=0.001)


def test_page_and_table_are_written_beside_each_other(trial: Trial, tmp_path: Path) -> None:
    table = write_trial(trial, tmp_path / "a.try.html")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.try.csv", "a.try.html"]
    assert table.read_text() == make_table(trial)


def test_an_unknown_setting_is_named(tmp_path: Path) -> None:
    slide = write_discs(tmp_path / "s.tif")
    with pytest.raises(SettingsError, match=r"unknown setting segmenter\.diametre: did you mean segmenter.diameter"):
        run_trial(slide, make_settings(overrides=WATERSHED), grid={"segmenter.diametre": [8]})
