"""Measure objects: the columns of the object table that follow from labels and pixels.

Names and definitions are those of scikit-image's `regionprops_table`, but channels go by name. Nothing here knows slides, blocks
or files. Each object is measured whole, from a window that holds all of its pixels, and its columns don't depend on the window:
they have the same bits wherever it is cut.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.export.intensity_kernels import STATISTICS, measure_intensities
from slidesam.tasks.export.shape_kernels import (
    group_runs,
    measure_ellipses,
    measure_hulls,
    measure_moments,
    measure_perimeters,
)

_SHAPE = {
    "centroid-0": "Mean row of the object's pixels, counted from 0 at the centre of the first row, in pixels.",
    "centroid-1": "Mean column of the object's pixels, counted from 0 at the centre of the first column, in pixels.",
    "bbox-0": "First row of the bounding box, in pixels.",
    "bbox-1": "First column of the bounding box, in pixels.",
    "bbox-2": "Row after the last one of the bounding box, in pixels.",
    "bbox-3": "Column after the last one of the bounding box, in pixels.",
    "area": "Number of the object's pixels, in square pixels.",
    "perimeter": "Length of the lines through the centres of the border pixels (those with one of four neighbours outside of "
    "the object), borders of holes included, in pixels.",
    "axis_major_length": "Major axis of the ellipse with the same second moments as the object's pixels, in pixels.",
    "axis_minor_length": "Minor axis of the ellipse with the same second moments as the object's pixels, in pixels.",
    "eccentricity": "Eccentricity of that ellipse, from 0 (circle) to 1 (line), without unit.",
    "orientation": "Angle between the rows' axis (downwards) and the major axis, counter-clockwise, from -pi/2 to pi/2, in "
    "radians.",
    "solidity": "Area divided by the number of pixels in the convex hull, without unit.",
    "circularity": "4 pi area / perimeter^2, 0.9 to 1 for discs, missing where the perimeter is 0, without unit.",
}
_INTENSITY = {
    "mean": "Mean of {channel} over the object's pixels, in the image's own values.",
    "std": "Standard deviation of {channel} over the object's pixels (divided by their number), in the image's own values.",
    "min": "Least value of {channel} in the object, in the image's own values.",
    "max": "Greatest value of {channel} in the object, in the image's own values.",
    "median": "Median of {channel} over the object's pixels, in the image's own values.",
}


def list_columns(channels: Sequence[str]) -> dict[str, str]:
    """List the columns that `measure_objects` makes, each with its definition and unit.

    Example:
        >>> list_columns(["DAPI"])["intensity_min-DAPI"]
        "Least value of DAPI in the object, in the image's own values."
    """
    intensities = {
        _intensity_column(statistic, channel): _INTENSITY[statistic].format(channel=channel)
        for channel in channels
        for statistic in STATISTICS
    }
    return _SHAPE | intensities


def _intensity_column(statistic: str, channel: str) -> str:
    return f"intensity_{statistic}-{channel}"


def measure_objects(
    labels: NDArray[np.uint32],
    pixels: NDArray[Any] | Sequence[NDArray[Any]],
    count: int,
    channels: Sequence[str],
    origin: tuple[int, int] = (0, 0),
) -> dict[str, NDArray[Any]]:
    """Measure all objects of a window.

    Args:
        labels: (y, x), ids 1..count, 0 = nothing. An object may be in several parts.
        pixels: (y, x, c) of any real dtype, or several such arrays, whose channels are counted through: stains, which are
            floats, beside colours of 8 bit, which are measured faster as such. Values that aren't finite don't count in their
            channel.
        count: The largest id that may occur.
        channels: The names of all channels, all different.
        origin: Row and column of the slide where the window begins. Added here to sums of integers, it gives centroids on the
            slide the same bits from each window, which it wouldn't if it were added to the window's centroids.

    Returns:
        The columns of `list_columns`, each (count,): boxes and area int64, all else float64. Of an id that is absent area and
        box are 0, and all else is NaN.

    Raises:
        ValueError: A label is larger than count, or the shapes or names don't belong together.

    Example:
        >>> labels = np.array([[1, 1, 1], [0, 0, 2]], np.uint32)
        >>> table = measure_objects(labels, np.arange(6, dtype=np.uint8).reshape(2, 3, 1), 2, ["DAPI"], origin=(10, 0))
        >>> table["area"].tolist(), table["centroid-0"].tolist(), table["intensity_mean-DAPI"].tolist()
        ([3, 1], [10.0, 11.0], [1.0, 5.0])
    """
    images = [pixels] if isinstance(pixels, np.ndarray) else list(pixels)
    shapes = [image.shape for image in images]
    expected = [(*labels.shape, shape[-1]) for shape in shapes]
    if shapes != expected or sum(shape[-1] for shape in shapes) != len(channels) or len(set(channels)) != len(channels):
        raise ValueError(f"labels of {labels.shape}, pixels of {shapes} and channels {channels} don't fit together")
    labels = np.ascontiguousarray(labels, np.uint32)
    runs = group_runs(labels, count)
    boxes, sums, moments = measure_moments(runs)
    area = sums[:, 0]
    perimeter = np.where(area > 0, measure_perimeters(labels, count), np.nan)
    on_slide = np.where(area[:, None] > 0, boxes + np.array([*origin, *origin]), 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        centroids = (sums[:, 1:] + area[:, None] * on_slide[:, :2]) / area[:, None]
        solidity = area / measure_hulls(runs, boxes)
        circularity = np.where(perimeter > 0, 4 * math.pi * area / perimeter**2, np.nan)
    intensities = np.concatenate([measure_intensities(runs, image) for image in images], axis=1)
    columns = [
        *centroids.T, *on_slide.T, area, perimeter, *measure_ellipses(sums, moments).T, solidity, circularity,
        *intensities.reshape(len(area), len(channels) * len(STATISTICS)).T,
    ]  # fmt: skip
    return {name: np.ascontiguousarray(column) for name, column in zip(list_columns(channels), columns, strict=True)}
