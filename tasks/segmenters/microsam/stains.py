"""How much of each stain a pixel of red, green and blue holds: colour deconvolution, value by value.

A stain's amount is the slide's optical density, unmixed into stains by the inverse of the matrix of their vectors (colour
deconvolution). The vectors of hematoxylin, eosin and dab are those of skimage.color.rgb_from_hed. With vectors of one's own the
matrix has these and what else `inputs` names, and is completed by vectors at right angles to them (the cross product, as
skimage's hdx and QuPath have it): what the stains don't explain is left there.

References:
    Ruifrok & Johnston, Quantification of histochemical staining by color deconvolution, Anal Quant Cytol Histol 23 (2001).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from slidesam.tasks.errors import SegmenterError

if TYPE_CHECKING:
    from slidesam.tasks.slides.facts import Slide

Term = Mapping[str, Any]
Vector = tuple[float, float, float]

STAINS: Mapping[str, Vector] = {
    "hematoxylin": (0.65, 0.70, 0.29),
    "eosin": (0.07, 0.99, 0.11),
    "dab": (0.27, 0.57, 0.78),
}
"""Optical density in red, green and blue, of Ruifrok & Johnston."""

# Light counts as no less than this share of white, as 8 bit can tell it, so that black is dense and not endlessly so.
_LEAST_LIGHT = 1 / 255
# Volume between stain vectors of length 1 below which they can't be told apart (hematoxylin, eosin and DAB: 0.38).
_LEAST_VOLUME = 0.05


def unmixing(named: Sequence[str], own: Mapping[str, Vector], slide: Slide) -> dict[str, Term]:
    """For each stain of the matrix, where red, green and blue are and how much of their densities it is."""
    if not {0, 1, 2} <= set(slide.channels) or not slide.is_rgb:
        cure = "set slide.channels: auto" if slide.is_rgb else "name its channels instead"
        raise SegmenterError(
            f"setting segmenter.inputs: {named[0]} is a stain, which is made of red, green and blue, and {slide.name} "
            f"doesn't have these, or not all are chosen: {cure}"
        )
    vectors = {**{name: STAINS[name] for name in named if name not in own}, **own} if own else dict(STAINS)
    if len(vectors) > 3:
        raise SegmenterError(
            f"setting segmenter.stains: three colours tell three stains apart, and these are {', '.join(vectors)}"
        )
    weights = np.linalg.inv(_completed(vectors))
    channels = [slide.channels.index(colour) for colour in range(3)]
    return {name: {"channels": channels, "weights": weights[:, at].tolist()} for at, name in enumerate(vectors)}


def _completed(vectors: Mapping[str, Vector]) -> NDArray[np.float64]:
    """(3, 3), a stain's vector of length 1 per row, then vectors at right angles to all before them.

    Raises:
        SegmenterError: A vector is zero or not a number, or several are nearly alike.
    """
    rows = np.array(list(vectors.values()), np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    is_usable = bool(np.isfinite(lengths).all() and lengths.min() > 0)
    if is_usable:
        rows /= lengths
        if len(rows) == 1:  # at right angles to it, whichever: what it is the density of doesn't depend on the choice
            away = np.cross(rows[0], np.eye(3)[np.abs(rows[0]).argmin()])
            rows = np.vstack([rows, away / np.linalg.norm(away)])
        if len(rows) == 2:
            across = np.cross(rows[0], rows[1])
            rows = np.vstack([rows, across / max(float(np.linalg.norm(across)), 1e-9)])
        is_usable = abs(np.linalg.det(rows)) >= _LEAST_VOLUME
    if not is_usable:
        raise SegmenterError(
            f"setting segmenter.stains: the vectors of {', '.join(vectors)} can't be unmixed: give each stain three "
            "densities, not all zero, and different colours"
        )
    return rows


def density_of(term: Term, dtype: DTypeLike, white: float) -> Callable[[NDArray[Any]], NDArray[np.float32]]:
    """What makes the (y, x) float32 density of a stain, at least 0, from (y, x, 3) pixels of this type."""
    parts = [
        (channel, tabled(functools.partial(_weighted_density, weight=weight, white=white), dtype))
        for channel, weight in zip(term["channels"], term["weights"], strict=True)
    ]

    def density(planes: NDArray[Any]) -> NDArray[np.float32]:
        total: NDArray[np.float32] = functools.reduce(np.add, (part(planes[..., channel]) for channel, part in parts))
        return np.maximum(total, 0, out=total)

    return density


def _weighted_density(values: NDArray[Any], weight: float, white: float) -> NDArray[np.float32]:
    """Optical density, natural logarithm, of one colour, times its weight in a stain."""
    light = np.clip(values.astype(np.float64) / white, _LEAST_LIGHT, 1.0)
    weighted: NDArray[np.float32] = (-weight * np.log(light)).astype(np.float32)
    return weighted


def tabled(
    function: Callable[[NDArray[Any]], NDArray[Any]], dtype: DTypeLike
) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """The same function of single values, by a table of all that an integer type of 8 or 16 bits can hold."""
    dtype = np.dtype(dtype)
    if dtype.kind not in "iu" or dtype.itemsize > 2:
        return function
    bits = np.dtype(f"u{dtype.itemsize}")
    table = function(np.arange(2 ** (8 * dtype.itemsize), dtype=bits).view(dtype))
    return lambda values: table[values.view(bits)]
