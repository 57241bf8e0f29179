"""Segmenters: pixels of one outer region in, local labels out.

A segmenter decides from what it is given and from `params`, which are the same for every block of a slide; so two blocks that
read the same pixels agree on them.

    prepare(overview, slide) -> params      once per slide, from a coarse level: a JSON mapping (thresholds, ranges, ...)
    segment(image, params)   -> labels      per block: (y, x[, c]) of the grid's `outer_shape` -> (y, x) integers, 0 = background

This module must stay light: torch and micro_sam are imported by the worker that segments, when it makes its segmenter.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.config import Function, MicroSam, SegmenterSettings, Watershed

if TYPE_CHECKING:
    from slidesam.tasks.slide import Slide

Params = Mapping[str, Any]


class Segmenter(Protocol):
    """What a segmentation method has to offer."""

    def prepare(self, overview: NDArray[Any], slide: Slide) -> dict[str, Any]:
        """Slide-wide parameters.

        Args:
            overview: (y, x[, c]) coarse image of the slide, with the channels that `segment` will get.
            slide: Facts on the slide (pixel size, channels, dtype).

        Returns:
            Mapping that JSON can hold, given to each `segment`.
        """

    def segment(self, image: NDArray[Any], params: Params) -> NDArray[np.integer[Any]]:
        """Labels of one block.

        Args:
            image: (y, x[, c]) pixels of the outer region in the slide's dtype; (y, x) where one channel was chosen.
            params: What `prepare` returned.

        Returns:
            (y, x) integers, one positive number per object, 0 = background.
        """


@lru_cache(maxsize=1)
def load_segmenter(settings_json: str, is_rgb: bool) -> Segmenter:
    """The segmenter of these settings, made once per process: the one state that workers keep between blocks.

    Args:
        settings_json: JSON of the segmenter settings (hashable, unlike the settings with their options).
        is_rgb: Whether the slide is red, green and blue, on which the automatic choices rest.

    Raises:
        SegmenterError: The segmenter can't be made.
    """
    from pydantic import TypeAdapter

    settings: SegmenterSettings = TypeAdapter[SegmenterSettings](SegmenterSettings).validate_json(settings_json)
    match settings:
        case MicroSam():
            from slidesam.tasks.segmenters.microsam import MicroSamSegmenter

            return MicroSamSegmenter(settings, is_rgb)
        case Watershed():
            from slidesam.tasks.segmenters.watershed import WatershedSegmenter

            return WatershedSegmenter(settings, is_rgb)
        case Function():
            from slidesam.tasks.segmenters.function import load_function

            return load_function(settings)


def segmenter_identity(settings: SegmenterSettings, is_rgb: bool) -> str:
    """What pixels depend on beside the settings: the hash of a model's weights, or of a function's source.

    Light: neither torch nor micro_sam is imported.

    Raises:
        SegmenterError: The weights or the function aren't there; the message says how to get them.
    """
    match settings:
        case MicroSam():
            from slidesam.tasks.segmenters.microsam import model_identity

            return model_identity(settings, is_rgb)
        case Watershed():
            return f"scikit-image {importlib.metadata.version('scikit-image')}"
        case Function():
            from slidesam.tasks.segmenters.function import source_identity

            return source_identity(settings)
