"""Describe a pyramid's levels as OME-Zarr does: how large their pixels are, and where the centres of the pixels lie.

A level's `scale` is the size of its pixels and its `translation` the position of the centre of the first one
(https://ngff.openmicroscopy.org/0.5/#multiscale-md). Levels that average d × d pixels lie (d - 1) / 2 pixels of level 0 further
than levels that take every d-th pixel, so that the scale alone doesn't place them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import zarr

AXES = ("t", "c", "z", "y", "x")
_TYPES = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}
Pixel = tuple[float, float]


class LevelPlace(NamedTuple):
    """Where a level's pixels lie, in pixels of the slide's level 0 along y and x, of which the first has its centre at 0.

    Attributes:
        step: From the centre of a pixel to that of the next.
        first: The centre of the first pixel.
    """

    step: Pixel
    first: Pixel

    @property
    def corner(self) -> Pixel:
        """Where its first pixel begins, in pixels of level 0 of which the first begins at 0."""
        return self.first[0] + (1 - self.step[0]) / 2, self.first[1] + (1 - self.step[1]) / 2


def place_averages(step: Pixel) -> LevelPlace:
    """Place a level whose pixels are averages of the pixels of level 0 that they cover.

    Example:
        >>> place_averages((1.0, 1.0)).first, place_averages((8.0, 8.0)).first
        ((0.0, 0.0), (3.5, 3.5))
    """
    return LevelPlace(step, ((step[0] - 1) / 2, (step[1] - 1) / 2))


def place_samples(step: Pixel) -> LevelPlace:
    """Place a level that takes the first pixel out of each `step`, as label levels do."""
    return LevelPlace(step, (0.0, 0.0))


def level_transformations(
    levels: Sequence[LevelPlace], mpp: Pixel | None, origin: Pixel = (0.0, 0.0)
) -> list[tuple[list[float], list[float] | None]]:
    """Return scale and translation (t, c, z, y, x) of each level.

    Args:
        levels: The levels, finest first.
        mpp: Height and width of a pixel of level 0 in µm; None where unknown, then all numbers are pixels.
        origin: Where the slide itself says that the centre of its first pixel lies, along y and x, in the same unit.

    Returns:
        No translations (None) if all are 0.
    """
    pixel = mpp or (1.0, 1.0)
    scales = [[1.0, 1.0, 1.0, *_multiply(pixel, level.step)] for level in levels]
    starts = [[at + more for at, more in zip(origin, _multiply(pixel, level.first), strict=True)] for level in levels]
    if not any(at for start in starts for at in start):
        return [(scale, None) for scale in scales]
    return [(scale, [0.0, 0.0, 0.0, *start]) for scale, start in zip(scales, starts, strict=True)]


def _multiply(a: Pixel, b: Pixel) -> list[float]:
    return [a[0] * b[0], a[1] * b[1]]


def read_places(
    group: zarr.Group, mpp: Pixel | None, origin: Pixel, without: Callable[[Pixel], LevelPlace]
) -> list[LevelPlace]:
    """Read where an image or label image says that the pixels of its levels lie.

    Args:
        group: The image or label image.
        mpp: See `level_transformations`.
        origin: See `level_transformations`.
        without: Places a level for which no translation is stated, by its step: version 0.1.0 stated none.
    """
    attributes: dict[str, Any] = group.attrs.asdict()
    pixel, places = mpp or (1.0, 1.0), []
    for dataset in attributes.get("ome", attributes)["multiscales"][0]["datasets"]:
        scale, *rest = dataset["coordinateTransformations"]
        y, x = (size / of for size, of in zip(scale["scale"][-2:], pixel, strict=True))
        place = without((y, x))
        if rest:
            start_y, start_x = rest[0]["translation"][-2:]
            place = LevelPlace((y, x), ((start_y - origin[0]) / pixel[0], (start_x - origin[1]) / pixel[1]))
        places.append(place)
    return places


def make_multiscale(
    group: zarr.Group, name: str, levels: Sequence[LevelPlace], mpp: Pixel | None, origin: Pixel = (0.0, 0.0)
) -> dict[str, Any]:
    """Make the entry of `multiscales` that describes a group's arrays 0..n, in the version of its Zarr format.

    Args:
        group: The image or label image.
        name: Its name.
        levels: See `level_transformations`.
        mpp: See `level_transformations`.
        origin: See `level_transformations`.
    """
    # Imported here: these modules take 0.15 s to load, and most processes write no metadata.
    from ome_zarr_models.v04 import axes as axes04
    from ome_zarr_models.v04 import multiscales as v04
    from ome_zarr_models.v05 import axes as axes05
    from ome_zarr_models.v05 import multiscales as v05

    module, axis = (v05, axes05.Axis) if group.metadata.zarr_format == 3 else (v04, axes04.Axis)
    unit = "micrometer" if mpp else None
    axes = [axis(name=a, type=_TYPES[a], **({"unit": unit} if unit and a in "yx" else {})) for a in AXES]
    datasets = tuple(
        module.Dataset.build(path=str(number), scale=scale, translation=translation)
        for number, (scale, translation) in enumerate(level_transformations(levels, mpp, origin))
    )
    multiscale = module.Multiscale(axes=axes, datasets=datasets, name=name)
    values: dict[str, Any] = multiscale.model_dump(exclude_none=True, mode="json")
    if group.metadata.zarr_format == 2:
        values["version"] = "0.4"
    return values
