"""Segmenters: pixels of one outer region in, local labels out.

A segmenter decides from what it is given and from `params`, which are the same for every block of a slide; so two blocks that
read the same pixels agree on them.

    prepare(sample, slide)   -> params      once per slide, from a sample of it: a JSON mapping (thresholds, ranges, ...)
    segment(image, params)   -> labels      per block: (y, x[, c]) of the grid's `outer_shape` -> (y, x) integers, 0 = background
    begin(image, params)     -> rest        optional: the device's part of `segment`; rest() -> labels

This module must stay light: torch, TensorFlow and what runs on them are imported by the worker that segments, when it makes
its segmenter.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from slidesam.tasks.errors import SegmenterError
from slidesam.tasks.settings.methods import Cellpose, Function, MicroSam, SegmenterSettings, StarDist, Watershed

if TYPE_CHECKING:
    from slidesam.tasks.slides.facts import Slide

Params = Mapping[str, Any]


class Segmenter(Protocol):
    """What a segmentation method has to offer."""

    def prepare(self, sample: NDArray[Any], slide: Slide) -> dict[str, Any]:
        """Slide-wide parameters.

        Args:
            sample: (y, x[, c]) pixels of the slide at full resolution, with the channels that `segment` will get: all of
                it, or many places of a large one put together. Its pixels count, not where they lie.
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


@runtime_checkable
class InTwoParts(Segmenter, Protocol):
    """A method that computes on a device first and on the host then, so that the device can go on with the next block."""

    def begin(self, image: NDArray[Any], params: Params) -> Callable[[], NDArray[np.integer[Any]]]:
        """The device's part of `segment`.

        Args:
            image: As `segment` takes it.
            params: What `prepare` returned.

        Returns:
            A function that returns the labels. It is called once, in another thread perhaps, while `begin` is at the next
            block: so it keeps to itself what it needs.
        """


@lru_cache(maxsize=1)
def load_segmenter(settings_json: str, is_rgb: bool, identity: str) -> Segmenter:
    """The segmenter of these settings, made once per process: the one state that workers keep between blocks.

    Args:
        settings_json: JSON of the segmenter settings (hashable, unlike the settings with their options).
        is_rgb: Whether the slide is red, green and blue, on which the automatic choices rest.
        identity: What `segmenter_identity` said when the run was planned.

    Raises:
        SegmenterError: The segmenter can't be made, or is another one by now, or here.
    """
    settings: SegmenterSettings = TypeAdapter[SegmenterSettings](SegmenterSettings).validate_json(settings_json)
    here = segmenter_identity(settings, is_rgb)
    if here != identity:
        raise SegmenterError(
            f"the segmenter isn't the one that the run was planned with ({here} here, {identity} planned)",
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


def segmenter_identity(settings: SegmenterSettings, is_rgb: bool) -> str:
    """What pixels depend on beside the settings: weights or source by their hash, and the versions of what computes.

    Light: neither torch nor TensorFlow nor the method itself is imported.

    Raises:
        SegmenterError: The weights or the function aren't there; the message says how to get them.
    """
    packages: tuple[str, ...]
    match settings:
        case MicroSam():
            from slidesam.tasks.segmenters.microsam.segmenter import model_identity

            identity, packages = model_identity(settings, is_rgb), ("micro-sam", "torch")
        case Watershed():
            identity, packages = "watershed", ("scikit-image", "scipy")
        case Cellpose():
            from slidesam.tasks.segmenters import cellpose

            identity, packages = cellpose.model_identity(settings), ("cellpose", "torch")
        case StarDist():
            from slidesam.tasks.segmenters import stardist

            identity, packages = stardist.model_identity(settings), stardist.packages()
        case Function():
            from slidesam.tasks.segmenters.function import source_identity

            identity, packages = source_identity(settings), ("numpy", *_package_of(settings))
    # imagecodecs decides what a compressed tile's pixels are.
    versions = (f"{name} {package_version(name)}" for name in (*packages, "imagecodecs", "slidesam"))
    return ", ".join((identity, *versions))


def _package_of(settings: Function) -> tuple[str, ...]:
    """The package that a function is from, if one is installed that is named like its module."""
    name = settings.target.partition(":")[0].partition(".")[0]
    return (name,) if package_version(name) else ()


def jsonable_params(params: object) -> dict[str, Any]:
    """What `prepare` returned, if it is a mapping that JSON holds as it is.

    Raises:
        SegmenterError: It isn't: NumPy numbers and arrays, for example, have to be made numbers and lists.
    """
    try:
        text = json.dumps(params, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise SegmenterError(f"the segmenter's prepare returned what JSON can't hold ({error})") from error
    if not isinstance(params, Mapping):
        raise SegmenterError(f"the segmenter's prepare returned {type(params).__name__}: it must be a mapping")
    kept: dict[str, Any] = json.loads(text)
    return kept


def package_version(package: str) -> str | None:
    """Version of an installed package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
