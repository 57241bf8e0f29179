"""Make the segmenter that the settings name, and identify it for the fingerprint.

This module must stay light: torch, TensorFlow and what runs on them are imported when a worker makes its segmenter.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any

from pydantic import TypeAdapter

from slidesam.tasks.errors import SegmenterError
from slidesam.tasks.segmenters.allowed import permit
from slidesam.tasks.segmenters.base import Segmenter
from slidesam.tasks.segmenters.packages import describe_differences, describe_versions
from slidesam.tasks.settings.methods import Cellpose, Function, MicroSam, SegmenterSettings, StarDist, Watershed


@lru_cache(maxsize=1)
def load_segmenter(settings_json: str, is_rgb: bool, identity: str, permitted: tuple[str, ...] = ()) -> Segmenter:
    """Load the segmenter of these settings; a worker process keeps it between blocks.

    Args:
        settings_json: JSON of the segmenter settings (hashable, unlike the settings with their options).
        is_rgb: Whether the slide is red, green and blue, which decides the automatic choices.
        identity: What `segmenter_identity` returned when the run was planned.
        permitted: What `permit` returned when the run was planned.

    Raises:
        SegmenterError: The segmenter can't be made, or isn't the one that the run was planned with.
    """
    settings: SegmenterSettings = TypeAdapter[SegmenterSettings](SegmenterSettings).validate_json(settings_json)
    current = segmenter_identity(settings, is_rgb, permitted)
    if current != identity:
        raise SegmenterError(
            f"the segmenter isn't the one that the run was planned with: {describe_differences(identity, current)} here",
            "give workers the same files and versions, then run the same command again",
        )
    match settings:
        case MicroSam():
            from slidesam.tasks.segmenters.microsam.segmenter import MicroSamSegmenter

            return MicroSamSegmenter(settings, is_rgb)
        case Watershed():
            from slidesam.tasks.segmenters.watershed import WatershedSegmenter

            return WatershedSegmenter(settings, is_rgb)
        case Cellpose():
            from slidesam.tasks.segmenters.cellpose import CellposeSegmenter

            return CellposeSegmenter(settings)
        case StarDist():
            from slidesam.tasks.segmenters.stardist import StarDistSegmenter

            return StarDistSegmenter(settings, is_rgb)
        case Function():
            from slidesam.tasks.segmenters.function import load_function

            return load_function(settings)


def segmenter_identity(settings: SegmenterSettings, is_rgb: bool, allowed: Collection[str] = ()) -> str:
    """Identify what labels depend on beside the settings: the hash of weights or source, and the versions of packages.

    Neither torch nor TensorFlow nor the method itself is imported (but the packages that its module is in).

    Args:
        settings: The segmenter's settings.
        is_rgb: Whether the slide is red, green and blue.
        allowed: Code that the person allows, beside what entry points and the site do.

    Raises:
        SegmenterError: The weights or the function are missing or not allowed; the message says how to get them.
    """
    permit(settings, allowed)
    match settings:
        case MicroSam():
            from slidesam.tasks.segmenters.microsam.class_files import identify_classes
            from slidesam.tasks.segmenters.microsam.weights import identify_model

            identity = identify_model(settings, is_rgb) + identify_classes(settings, is_rgb)
        case Watershed():
            identity = "watershed"
        case Cellpose():
            from slidesam.tasks.segmenters.cellpose import identify_cellpose_weights

            identity = identify_cellpose_weights(settings)
        case StarDist():
            from slidesam.tasks.segmenters.stardist import identify_stardist_model

            identity = identify_stardist_model(settings)
        case Function():
            from slidesam.tasks.segmenters.function import identify_source

            identity = identify_source(settings)
    return ", ".join((identity, *describe_versions(settings)))


def jsonable_params(params: object) -> dict[str, Any]:
    """Return the parameters from `prepare` as JSON holds them.

    Raises:
        SegmenterError: They are no mapping that JSON can hold: NumPy numbers and arrays, for example, must be converted.
    """
    try:
        text = json.dumps(params, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise SegmenterError(f"the segmenter's prepare returned what JSON can't hold ({error})") from error
    if not isinstance(params, Mapping):
        raise SegmenterError(f"the segmenter's prepare returned {type(params).__name__}: it must be a mapping")
    parsed: dict[str, Any] = json.loads(text)
    return parsed
