"""Compute how much of each stain a pixel of red, green and blue holds: colour deconvolution, value by value.

The inverse of the matrix of stain vectors unmixes the slide's optical density into stains. The vectors of hematoxylin, eosin and
dab are those of skimage.color.rgb_from_hed. With a user's own vectors the matrix holds these and the other stains that `inputs`
names. Vectors at right angles to them complete it (the cross product, as in skimage's hdx and in QuPath): they take up what the
stains don't explain.

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

# Least light, as a fraction of white: what 8 bit can tell apart, so that black has a finite density.
_MIN_LIGHT = 1 / 255
# Least volume between stain vectors of length 1 that can be told apart (hematoxylin, eosin and DAB: 0.38).
_MIN_VOLUME = 0.05


def find_stain_weights(names: Sequence[str], user_stains: Mapping[str, Vector], slide: Slide) -> dict[str, Term]:
    """Find the weights of red, green and blue in each stain of the matrix.

    Args:
        names: The stains that `segmenter.inputs` names.
        user_stains: The user's stain vectors, by lower-case names.
        slide: Its name, channels and whether it is red, green and blue.

    Returns:
        For each stain the "channels" of red, green and blue, and the "weights" of their optical densities.

    Raises:
        SegmenterError: The slide isn't red, green and blue, or the vectors can't be told apart.
    """
    if not {0, 1, 2} <= set(slide.channels) or not slide.is_rgb:
        cure = "set slide.channels: auto" if slide.is_rgb else "name its channels instead"
        raise SegmenterError(
            f"setting segmenter.inputs: {names[0]} is a stain, which is made of red, green and blue, and {slide.name} "
            f"doesn't have these, or not all are chosen: {cure}"
        )
    vectors = (
        {**{name: STAINS[name] for name in names if name not in user_stains}, **user_stains}
        if user_stains
        else dict(STAINS)
    )
    if len(vectors) > 3:
        raise SegmenterError(
            f"setting segmenter.stains: three colours tell three stains apart, and these are {', '.join(vectors)}"
        )
    weights = np.linalg.inv(_complete_matrix(vectors))
    channels = [slide.channels.index(colour) for colour in range(3)]
    return {name: {"channels": channels, "weights": weights[:, at].tolist()} for at, name in enumerate(vectors)}


def _complete_matrix(vectors: Mapping[str, Vector]) -> NDArray[np.float64]:
    """Make the (3, 3) matrix of stain vectors of length 1, one per row, completed by vectors at right angles to them.

    Raises:
        SegmenterError: A vector is zero or not a number, or several are nearly alike.
    """
    rows = np.array(list(vectors.values()), np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    is_usable = bool(np.isfinite(lengths).all() and lengths.min() > 0)
    if is_usable:
        rows /= lengths
        if len(rows) == 1:  # any vector at right angles: the stain's amount doesn't depend on the choice
            normal = np.cross(rows[0], np.eye(3)[np.abs(rows[0]).argmin()])
            rows = np.vstack([rows, normal / np.linalg.norm(normal)])
        if len(rows) == 2:
            normal = np.cross(rows[0], rows[1])
            rows = np.vstack([rows, normal / max(float(np.linalg.norm(normal)), 1e-9)])
        is_usable = abs(np.linalg.det(rows)) >= _MIN_VOLUME
    if not is_usable:
        raise SegmenterError(
            f"setting segmenter.stains: the vectors of {', '.join(vectors)} can't be unmixed: give each stain three "
            "densities, not all zero, and different colours"
        )
    return rows


def unmix_stains(pixels: NDArray[Any], white: float = 255.0) -> NDArray[np.float32]:
    """Compute the optical density (natural logarithm) of hematoxylin and of eosin, with DAB as the third stain.

    Args:
        pixels: (y, x, 3) red, green and blue.
        white: The level of clear glass; 255 is that of 8 bit.

    Returns:
        (y, x, 2) float32, at least 0.

    Example:
        >>> unmix_stains(np.array([[[120, 100, 180]]], np.uint8)).astype(float).round(2).tolist()
        [[[1.14, 0.14]]]
    """
    weights = np.linalg.inv(_complete_matrix(STAINS))
    stains = [list(STAINS).index(name) for name in ("hematoxylin", "eosin")]
    terms = [{"channels": range(3), "weights": weights[:, stain].tolist()} for stain in stains]
    return np.stack([make_density(term, pixels.dtype, white)(pixels) for term in terms], axis=-1)


def make_density(term: Term, dtype: DTypeLike, white: float) -> Callable[[NDArray[Any]], NDArray[np.float32]]:
    """Make the function that computes a stain's (y, x) float32 density, at least 0, from (y, x, 3) pixels of this type."""
    parts = [
        (channel, use_table(functools.partial(_weighted_density, weight=weight, white=white), dtype))
        for channel, weight in zip(term["channels"], term["weights"], strict=True)
    ]

    def density(planes: NDArray[Any]) -> NDArray[np.float32]:
        total: NDArray[np.float32] = functools.reduce(np.add, (part(planes[..., channel]) for channel, part in parts))
        return np.maximum(total, 0, out=total)

    return density


def _weighted_density(values: NDArray[Any], weight: float, white: float) -> NDArray[np.float32]:
    """Compute the optical density (natural logarithm) of one colour, times its weight in a stain."""
    light = np.clip(values.astype(np.float64) / white, _MIN_LIGHT, 1.0)
    weighted: NDArray[np.float32] = (-weight * np.log(light)).astype(np.float32)
    return weighted


def use_table(
    function: Callable[[NDArray[Any]], NDArray[Any]], dtype: DTypeLike
) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Replace a function of single values by a table of all values of the type, if it is an integer of 8 or 16 bits."""
    dtype = np.dtype(dtype)
    if dtype.kind not in "iu" or dtype.itemsize > 2:
        return function
    bits = np.dtype(f"u{dtype.itemsize}")
    table = function(np.arange(2 ** (8 * dtype.itemsize), dtype=bits).view(dtype))
    return lambda values: table[values.view(bits)]
