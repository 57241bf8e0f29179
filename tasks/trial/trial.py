"""Try settings on a few regions of a slide: what each choice finds, how long it takes, and what the whole slide would take.

1. `run_trial`       inspects the slide, chooses regions, and tries one pixel size after the other
2. `_try_scale`      samples the slide once per pixel size, as a run does, and lists the choices
3. `_try_choice`     segments each region with one choice

Nothing of a run is written. Pixels come from the slide itself: at its own pixel size they are those of a run. At another they may
differ by rounding, where a run would first write the slide as a pyramid and read a coarser level of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.pixels.pyramid import overview_step, read_overview
from slidesam.tasks.pixels.sample import sample_slide
from slidesam.tasks.plan import describe_run
from slidesam.tasks.report.overlay import display_channels
from slidesam.tasks.run.records import Params
from slidesam.tasks.run.run import Run
from slidesam.tasks.segment.prepare import find_blocks, load_run_segmenter, measure_sample
from slidesam.tasks.segmenters.base import Segmenter
from slidesam.tasks.settings.sections import Settings
from slidesam.tasks.slides.decimation import mark_decimated
from slidesam.tasks.slides.facts import Slide
from slidesam.tasks.slides.inspect import inspect_slide
from slidesam.tasks.slides.reader import PixelReader
from slidesam.tasks.store.readers import open_pixels
from slidesam.tasks.trial.choices import TARGET, Changes, change_settings, choose_scales, combine
from slidesam.tasks.trial.picture import RegionPicture, draw_outlines, draw_places, draw_region
from slidesam.tasks.trial.regions import TrialRegion, choose_trial_regions, place_given_regions
from slidesam.tasks.trial.window import Window, place_window, segment_window

Report = Callable[[str], None]


@dataclass(frozen=True)
class RegionResult:
    """What a choice finds in a region.

    Attributes:
        count: Objects whose centre lies in the region.
        diameter: Median diameter of these, of a circle of their area, in segmented pixels; None = there are none.
        seconds: What segmenting the region with its surroundings takes, with all that other choices share.
        outlines: Transparent PNG as a data URI.
    """

    count: int
    diameter: float | None
    seconds: float
    outlines: str


@dataclass(frozen=True)
class ChoiceResult:
    """What was tried, and what it gave.

    Attributes:
        changes: Settings that differ from those given.
        mpp: Size of segmented pixels in µm; None = unknown.
        sights: One per region.
        slide_seconds: What segmenting the whole slide would take one worker like this process.
    """

    changes: Changes
    mpp: float | None
    sights: tuple[RegionResult, ...]
    slide_seconds: float


@dataclass(frozen=True)
class Trial:
    """All that a trial found.

    Attributes:
        slide: The slide.
        segmenter: What segmented, with versions.
        device: Where it computed.
        regions: Where it looked.
        pictures: The regions' pixels.
        places: The slide with the regions, a JPEG as a data URI.
        results: One per choice.
        notes: What a person should know, one sentence each.
        seconds: How long all took.
    """

    slide: Slide
    segmenter: str
    device: str
    regions: tuple[TrialRegion, ...]
    pictures: tuple[RegionPicture, ...]
    places: str
    results: tuple[ChoiceResult, ...]
    notes: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class _Scene:
    """What all choices share."""

    slide: Slide
    overview: NDArray[Any]
    regions: tuple[TrialRegion, ...]
    pictures: tuple[RegionPicture, ...]
    allowed: Collection[str]
    report: Report


def run_trial(
    path: Path,
    settings: Settings,
    allowed: Collection[str] = (),
    *,
    corners: Sequence[tuple[int, int]] = (),
    side: int = 512,
    grid: Mapping[str, Sequence[Any]] | None = None,
    report: Report = lambda _: None,
) -> Trial:
    """Try settings on a few regions of a slide.

    Args:
        path: The slide.
        settings: From which the choices differ.
        allowed: Code that the person allows the segmenter to load.
        corners: Row and column of level 0 of the regions' upper left corners; empty = three are chosen.
        side: Height and width of a region in pixels of level 0.
        grid: Values to combine, by the settings' dotted names; None = those that the segmenter suggests, at usual pixel sizes.
        report: Called with what is done next.

    Raises:
        SlideError: The slide can't be read.
        SettingsError: A setting or a corner doesn't suit the slide.
        SegmenterError: The segmenter can't be made, or fails.
    """
    start_time = time.perf_counter()
    facts = mark_decimated(inspect_slide(path, settings.slide))
    # In place: nothing is converted for a trial.
    settings = change_settings(settings, {"image.convert": "never", "image.rechunk": "never"})
    report("reading the slide")
    overview = read_overview(facts, facts.channels)
    blocks_run = describe_run(facts, path.parent, settings, allowed)
    tissue = find_blocks(blocks_run, overview)[1]
    regions = tuple(
        place_given_regions(facts, corners, side) if corners else choose_trial_regions(facts, overview, tissue, side)
    )
    channels = display_channels(facts)
    display = overview if channels == facts.channels else read_overview(facts, channels)
    pictures = tuple(draw_region(facts, channels, display, region) for _, region in regions)
    scene = _Scene(facts, overview, regions, pictures, allowed, report)
    scales = list(grid[TARGET]) if grid and TARGET in grid else choose_scales(facts, settings)
    results: list[ChoiceResult] = []
    device, notes = "", list(facts.warnings)
    for scale in scales:
        device = _try_scale(scene, settings, scale, grid, results, notes)
    if facts.mpp is None and TARGET not in (grid or {}):
        notes.append("the slide's pixel size isn't known, so no other was tried: --set slide.mpp=... gives it")
    return Trial(
        facts,
        blocks_run.segmenter_identity,
        device,
        regions,
        pictures,
        draw_places(facts, display, overview_step(facts), regions),
        tuple(results),
        tuple(dict.fromkeys(notes)),
        time.perf_counter() - start_time,
    )


def _try_scale(
    scene: _Scene,
    settings: Settings,
    scale: float | None,
    grid: Mapping[str, Sequence[Any]] | None,
    results: list[ChoiceResult],
    notes: list[str],
) -> str:
    """Try all choices at one pixel size, and return the device."""
    scale_changes: Changes = {} if scale == settings.slide.target_mpp else {TARGET: scale}
    at_scale = change_settings(settings, scale_changes)
    run = describe_run(scene.slide, scene.slide.path.parent, at_scale, scene.allowed)
    scene.report(_name_scale(run))
    segmenter = load_run_segmenter(run)
    with closing(open_pixels(run)) as reader:
        sample = sample_slide(run.segmented_grid.shape, scene.overview, reader)
        shared = measure_sample(run, segmenter, scene.overview, sample)
        notes += shared.warnings
        grids = [grid] if grid else segmenter.suggest_trials(shared.params)
        given = settings.model_dump()
        choices = combine([{name: grid[name] for name in grid if name != TARGET} for grid in grids], given)
        for number, changes in enumerate(choices, 1):
            scene.report(f"{_name_scale(run)}: choice {number} of {len(choices)}")
            chosen = change_settings(at_scale, changes)
            choice_run = describe_run(scene.slide, scene.slide.path.parent, chosen, scene.allowed)
            variant, params = segmenter.vary(choice_run.settings.segmenter), shared
            if variant is None:
                variant = load_run_segmenter(choice_run)
                params = measure_sample(choice_run, variant, scene.overview, sample)
            results.append(_try_choice(scene, choice_run, variant, params, reader, scale_changes | changes))
    return segmenter.device


def _try_choice(
    scene: _Scene, run: Run, segmenter: Segmenter, shared: Params, reader: PixelReader, changes: Changes
) -> ChoiceResult:
    """Segment each region with one choice."""
    fill = np.asarray(shared.fill, run.slide.dtype)
    sights, paces = [], []
    for (_, region), picture in zip(scene.regions, scene.pictures, strict=True):
        window = place_window(run, region)
        start_time = time.perf_counter()
        labels = segment_window(run, reader, window, segmenter, shared.params, fill)
        seconds = time.perf_counter() - start_time + segmenter.reused_seconds
        count, diameter = _measure(labels, window)
        outlines = draw_outlines(labels, window, region, run.scale, picture)
        sights.append(RegionResult(count, diameter, seconds, outlines))
        paces.append(seconds / segmenter.measure_work(window.outer.shape))
    blocks, _ = find_blocks(run, scene.overview)
    n_blocks = len(run.grid) if blocks is None else len(blocks)
    # The median: the first region may take longer, because it compiles and loads what others use.
    per_block = float(np.median(paces)) * segmenter.measure_work(run.segmented_grid.outer_shape)
    mpp = run.segmented_slide.mpp
    return ChoiceResult(changes, None if mpp is None else sum(mpp) / 2, tuple(sights), per_block * n_blocks)


def _measure(labels: NDArray[np.uint32], window: Window) -> tuple[int, float | None]:
    """Count the objects whose centre lies in the view, and return their median diameter in pixels."""
    from skimage.measure import regionprops_table

    y0, x0, y1, x1 = window.view.relative_to(window.outer)
    table = regionprops_table(labels.astype(np.int64), properties=("centroid", "equivalent_diameter_area"))
    y, x = table["centroid-0"], table["centroid-1"]
    diameters = table["equivalent_diameter_area"][(y >= y0) & (y < y1) & (x >= x0) & (x < x1)]
    return int(diameters.size), float(np.median(diameters)) if diameters.size else None


def _name_scale(run: Run) -> str:
    mpp = run.segmented_slide.mpp
    return "segmenting" if mpp is None else f"segmenting at {mpp[1]:.3g} µm per pixel"
