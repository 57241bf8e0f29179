"""Slides and pictures for tests of what SAM is shown."""

from __future__ import annotations

from typing import Any

import numpy as np
from skimage.data import immunohistochemistry

from slidesam.tasks.segmenters.microsam.inputs import compose, ranges, resolve
from slidesam.tasks.slides.facts import Slide

NAMES = ("DAPI", "CD3", "CD8", "CD4+", "AF")

FAST_RED = (0.21, 0.85, 0.48)


def a_slide(channels: tuple[int, ...] = (0, 1, 2), names: tuple[str, ...] = NAMES, is_rgb: bool = False) -> Slide:
    return Slide.model_construct(name="s1", channels=channels, channel_names=names, is_rgb=is_rgb)


def rgb_slide(channels: tuple[int, ...] = (0, 1, 2)) -> Slide:
    return a_slide(channels, ("red", "green", "blue"), is_rgb=True)


def composed(image: np.ndarray, *inputs: str, slide: Slide | None = None, **stains: Any) -> np.ndarray:
    slide = slide or (rgb_slide() if image.dtype == np.uint8 else a_slide())
    return compose(image, ranges(image, resolve(inputs, stains, slide)))


def rgb_block() -> np.ndarray:
    return immunohistochemistry()[:256, :256]
