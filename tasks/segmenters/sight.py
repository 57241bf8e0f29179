"""What a segmenter looks at, as a picture: pixels after what it does to each of them by the ranges of the whole slide."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.segmenters.microsam.inputs import compose
from slidesam.tasks.segmenters.normalize import normalize
from slidesam.tasks.settings.methods import Cellpose, Function, MicroSam, SegmenterSettings, StarDist, Watershed


def show_input(
    segmenter: SegmenterSettings, image: NDArray[Any], params: Mapping[str, Any], *, is_rgb: bool
) -> NDArray[np.uint8] | None:
    """Show pixels as a segmenter sees them. No model is loaded.

    Args:
        segmenter: Its settings.
        image: (y, x, c) segmented pixels, without missing data.
        params: What its `prepare` found for the slide.
        is_rgb: Whether the slide is red, green and blue.

    Returns:
        (y, x, 3) 8 bit; None where it gets the pixels as they are, or scales each image by itself.
    """
    match segmenter:
        case MicroSam():
            return compose(image, params) if segmenter.scaling == "slide" else None
        case Watershed():
            from slidesam.tasks.segmenters.watershed import WatershedSegmenter

            planes = image[..., 0] if image.shape[2] == 1 else image
            signal = WatershedSegmenter(segmenter, is_rgb).find_signal(planes, params["white"])
            return _to_grey(signal)
        case Cellpose() | StarDist():
            return _fill(normalize(image[..., : len(params["low"])], params)) if "low" in params else None
        case Function():
            return None


def _to_grey(signal: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Stretch a signal over the greys."""
    low, high = float(signal.min()), float(signal.max())
    return _fill((signal[..., None] - low) / max(high - low, 1e-12))


def _fill(planes: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Turn (y, x, c) values from 0 to 1 into 8 bit, and fill one or two channels up to three, as the pictures of slides are."""
    shown = np.zeros((*planes.shape[:2], 3), np.uint8)
    channels = slice(None) if planes.shape[2] == 1 else slice(planes.shape[2])
    shown[..., channels] = np.clip(planes, 0, 1) * 255
    return shown
