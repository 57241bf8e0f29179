"""What SAM sees as red, green and blue: which channels or stains of a slide, and how they become 8 bit.

    check_inputs(settings, slide)   -> plan      what `segmenter.inputs` names, or an error; from facts alone
    ranges(sample, plan)            -> params    slide-wide ranges, once per slide
    compose(image, params)          -> pixels    per block: (y, x, 3) uint8
    pick(image, params)             -> pixels    per block, for `scaling: tile`: channels as they are

Plan and params are mappings that JSON holds. A pixel that `compose` makes depends on that pixel of the image and on the params
alone, to the bit, so blocks agree wherever they overlap. For that all arithmetic goes value by value: of 8 and 16 bit by a
table of all values, which is also fastest, and without a product of matrices, whose rounding may change with their shape.

A stain's amount is the slide's optical density, unmixed into stains by the inverse of the matrix of their vectors (colour
deconvolution). The vectors of hematoxylin, eosin and dab are those of skimage.color.rgb_from_hed. With vectors of one's own the
matrix has these and what else `inputs` names, and is completed by vectors at right angles to them (the cross product, as
skimage's hdx and QuPath have it): what the stains don't explain is left there.

References:
    Ruifrok & Johnston, Quantification of histochemical staining by color deconvolution, Anal Quant Cytol Histol 23 (2001).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from slidesam.tasks.errors import SegmenterError
from slidesam.tasks.pixels.percentiles import percentile_range
from slidesam.tasks.settings.methods import MicroSam

if TYPE_CHECKING:
    from slidesam.tasks.slides.facts import Slide

__all__ = ["STAINS", "check_inputs", "compose", "intensity_range", "pick", "ranges", "resolve", "to_rgb8"]

Plan = dict[str, Any]
Term = Mapping[str, Any]
Vector = tuple[float, float, float]

STAINS: Mapping[str, Vector] = {
    "hematoxylin": (0.65, 0.70, 0.29),
    "eosin": (0.07, 0.99, 0.11),
    "dab": (0.27, 0.57, 0.78),
}
"""Optical density in red, green and blue, of Ruifrok & Johnston."""

_PERCENTILES = (0.1, 99.9)
# Light counts as no less than this share of white, as 8 bit can tell it, so that black is dense and not endlessly so.
_LEAST_LIGHT = 1 / 255
# Volume between stain vectors of length 1 below which they can't be told apart (hematoxylin, eosin and DAB: 0.38).
_LEAST_VOLUME = 0.05
# Pixels that are computed at a time: few enough to stay in a processor's cache.
_STRIP = 2**17
_SHOWN = 12


def check_inputs(settings: MicroSam, slide: Slide) -> Plan:
    """What the settings let SAM see, found from the slide's facts alone: for planning, before any pixel is read.

    Args:
        settings: `inputs`, `stains` and `scaling` count.
        slide: Its name, channels and whether it is red, green and blue.

    Returns:
        What `resolve` returns; {} where `inputs` is empty.

    Raises:
        SegmenterError: As `resolve`; or an input that needs slide-wide ranges meets `scaling: tile`.
    """
    if not settings.inputs:
        return {}
    plan = resolve(settings.inputs, settings.stains, slide)
    for entry, terms in zip(settings.inputs, plan["inputs"], strict=True):
        if settings.scaling == "tile" and (len(terms) > 1 or "weights" in terms[0]):
            raise SegmenterError(
                f"setting segmenter.inputs: {entry} is made with ranges of the whole slide, which segmenter.scaling: tile "
                "leaves out: set segmenter.scaling: slide, or name single channels"
            )
    return plan


def resolve(inputs: Sequence[str], stains: Mapping[str, Vector], slide: Slide) -> Plan:
    """Finds the channels and stains that names stand for.

    Args:
        inputs: One to three entries: a channel's name or number, a stain's name, or several of these joined by +. Case
            doesn't matter. A name that holds a + itself is taken whole where it is an entry of its own.
        stains: Stain vectors of one's own, name → optical density in red, green and blue, of any length.
        slide: Its name, channels and whether it is red, green and blue.

    Returns:
        "n_channels" that images have, "is_rgb", and "inputs": per entry a list of terms. A term has "name" and either
        "channel", a place among the image's channels, or "channels" (of red, green and blue) with the "weights" of their
        optical densities.

    Raises:
        SegmenterError: A name is unknown, a channel isn't chosen, stains meet a slide that isn't red, green and blue, or
            their vectors can't be told apart.
    """
    own = {name.strip().lower(): vector for name, vector in stains.items()}
    for name in own:
        if _channel(name, slide) is not None:
            raise SegmenterError(
                f"setting segmenter.stains: {slide.name} has a channel {name}; give the stain another name"
            )
    entries = [_split(entry, slide) for entry in inputs]
    named = dict.fromkeys(name for entry in entries for name in entry if _channel(name, slide) is None)
    for name in named:
        if name not in own and name not in STAINS:
            raise _unknown(name, own, slide)
    unmixing = _unmixing(tuple(named), own, slide) if named else {}

    def term(name: str) -> Term:
        channel = _channel(name, slide)
        return {"name": name, "channel": channel} if channel is not None else {"name": name, **unmixing[name]}

    return {
        "n_channels": len(slide.channels),
        "is_rgb": slide.is_rgb,
        "inputs": [[term(name) for name in entry] for entry in entries],
    }


def ranges(sample: NDArray[Any], plan: Mapping[str, Any]) -> Plan:
    """Slide-wide ranges of all that a plan names.

    A channel has the range that `intensity_range` gives it. A stain has percentiles 0.1 and 99.9 of its density, so that
    up to a thousandth of the slide (pens, folds) doesn't decide.

    Args:
        sample: (y, x[, c]) pixels of the slide, any numeric dtype, with all channels that it chose.
        plan: What `resolve` returned.

    Returns:
        The plan, with "low" and "high" in each term, and "white", the level of clear glass, where there are stains.

    Raises:
        SegmenterError: The sample has another number of channels than the plan.
    """
    planes = _all_channels(sample, plan)
    white = _white_level(planes) if any("weights" in term for entry in plan["inputs"] for term in entry) else None

    def ranged(term: Term) -> Term:
        if "weights" in term:
            low, high = percentile_range(_density_of(term, planes.dtype, white or 1.0)(planes), _PERCENTILES)
        elif _is_rgb8(planes, plan["is_rgb"]):
            channels = np.moveaxis(planes, -1, 0)
            low, high = 0.0, max(percentile_range(channel, _PERCENTILES)[1] for channel in channels)
        else:
            low, high = percentile_range(planes[..., term["channel"]], _PERCENTILES)
        return {**term, "low": low, "high": _above(low, high)}

    made: Plan = {**plan, "inputs": [[ranged(term) for term in entry] for entry in plan["inputs"]]}
    return made if white is None else made | {"white": white}


def compose(image: NDArray[Any], params: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Pixels as SAM's encoder takes them: each of the image's pixels by itself, by fixed ranges.

    Each term becomes 8 bit by its own range; of the terms of one entry the brightest counts. A stain is the brighter the
    denser it is.

    Args:
        image: (y, x[, c]) any numeric dtype.
        params: What `ranges` returned; or `intensity_range`, for `to_rgb8`.

    Returns:
        (y, x, 3) uint8. One entry is repeated, after two comes a zero channel; NaN is 0.

    Raises:
        SegmenterError: The params are for another number of channels.
    """
    if "inputs" not in params:
        return to_rgb8(image, params)
    planes = _all_channels(image, params)
    white = params.get("white", 1.0)
    entries = [[_to_8bit(term, planes.dtype, white) for term in terms] for terms in params["inputs"]]
    rgb = np.zeros((*planes.shape[:2], 3), np.uint8)
    for rows in _strips(planes.shape):
        strip = planes[rows]
        for channel, makers in enumerate(entries):
            brightest = functools.reduce(np.maximum, (make(strip) for make in makers))
            rgb[rows, :, slice(channel, channel + 1) if len(entries) > 1 else slice(None)] = brightest[..., None]
    return rgb


def pick(image: NDArray[Any], params: Mapping[str, Any]) -> NDArray[Any]:
    """Channels as they are, for micro-sam's own way to 8 bit, which takes one, two or three.

    Args:
        image: (y, x[, c]) any dtype.
        params: What `resolve` returned for single channels; without "inputs" the first three are meant.

    Returns:
        (y, x) for one channel, else (y, x, c), in the image's dtype.

    Raises:
        SegmenterError: The params are for another number of channels.
    """
    if "inputs" not in params:
        return image if image.ndim == 2 else image[..., :3]
    channels = [terms[0]["channel"] for terms in params["inputs"]]
    return _all_channels(image, params)[..., channels[0] if len(channels) == 1 else channels]


def intensity_range(sample: NDArray[Any], is_rgb: bool) -> dict[str, list[float]]:
    """The intensities that become 0 and 255 on the whole slide.

    - 8 bit red, green and blue: 0 and the 99.9th percentile of the brightest channel, one range for all three. Such
      pixels were made for the eye, and micro-sam's own training takes 8 bit as it is (`training.util.require_8bit`); a
      range per channel would shift the stains' colours.
    - All else: percentiles 0.1 and 99.9 of each channel, so that a few hot or dead pixels don't decide.

    Args:
        sample: (y, x[, c]) pixels of the slide, any numeric dtype; NaN and infinity are left out.
        is_rgb: Whether the channels are red, green and blue.

    Returns:
        {"low": [...], "high": [...]}, one number for each of the first three channels; high > low on a blank slide too.

    Example:
        >>> intensity_range(np.full((4, 4), 7), is_rgb=False)
        {'low': [7.0], 'high': [8.0]}
    """
    planes = _first_three(sample)
    ends = [percentile_range(channel, _PERCENTILES) for channel in np.moveaxis(planes, -1, 0)]
    if _is_rgb8(planes, is_rgb):
        ends = [(0.0, max(top for _, top in ends))] * len(ends)
    return {"low": [low for low, _ in ends], "high": [_above(low, high) for low, high in ends]}


def to_rgb8(image: NDArray[Any], params: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Pixels as SAM's encoder takes them, by a fixed range; channels are filled up to three as micro-sam does.

    Args:
        image: (y, x[, c]) any numeric dtype. One channel is repeated, after two comes a zero one, only three are used.
        params: "low" and "high" as `intensity_range` returns them.

    Returns:
        (y, x, 3) uint8: low and below become 0, high and above 255, NaN 0.

    Raises:
        SegmenterError: The range is for another number of channels.

    Example:
        >>> to_rgb8(np.array([[0, 100, 150, 300]]), {"low": [100.0], "high": [200.0]})[0, :, 0].tolist()
        [0, 0, 128, 255]
    """
    planes = _first_three(image)
    low, high = params.get("low", ()), params.get("high", ())
    n_channels = planes.shape[-1]
    if not len(low) == len(high) == n_channels:
        raise SegmenterError(f"the slide's intensity range is for {len(low)} channels, but the block has {n_channels}")
    terms = [{"channel": at, "low": ends[0], "high": ends[1]} for at, ends in enumerate(zip(low, high, strict=True))]
    plan = {"n_channels": n_channels, "inputs": [[term] for term in terms]}
    return compose(planes, plan)


def _split(entry: str, slide: Slide) -> list[str]:
    whole = entry.strip().lower()
    return [whole] if _channel(whole, slide) is not None else [part.strip() for part in whole.split("+")]


def _channel(name: str, slide: Slide) -> int | None:
    """Place among the slide's chosen channels of the one with this name, else of the one with this number."""
    names = [slide.channel_names[channel].strip().lower() for channel in slide.channels]
    if name in names:
        return names.index(name)
    numbers = [str(channel) for channel in slide.channels]
    return numbers.index(name) if name in numbers else None


def _unknown(name: str, own: Mapping[str, Vector], slide: Slide) -> SegmenterError:
    shown = [f"{channel} {slide.channel_names[channel]}" for channel in slide.channels]
    has = "channels " + ", ".join(shown[:_SHOWN]) + (", ..." if len(shown) > _SHOWN else "")
    if slide.is_rgb:
        has += ", and stains " + ", ".join({**STAINS, **own})
    others = [other.strip().lower() for other in slide.channel_names]
    if name in others or (name.isdecimal() and int(name) < len(others)):
        return SegmenterError(
            f"setting segmenter.inputs: channel {name!r} of {slide.name} isn't chosen: add it to slide.channels "
            f"(chosen are {has})"
        )
    return SegmenterError(f"setting segmenter.inputs: {slide.name} has no {name!r}; it has {has}")


def _unmixing(named: Sequence[str], own: Mapping[str, Vector], slide: Slide) -> dict[str, Term]:
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


def _white_level(planes: NDArray[Any]) -> float:
    """Value of clear glass: the top of 8 bit, else the slide's brightest, since 16 bits may hold fewer."""
    if planes.dtype == np.uint8:
        return 255.0
    return max(percentile_range(planes, _PERCENTILES)[1], float(np.finfo(np.float32).tiny))


def _above(low: float, high: float) -> float:
    return high if high > low else low + 1.0


def _is_rgb8(planes: NDArray[Any], is_rgb: bool) -> bool:
    return is_rgb and planes.dtype == np.uint8


def _to_8bit(term: Term, dtype: DTypeLike, white: float) -> Callable[[NDArray[Any]], NDArray[np.uint8]]:
    """What makes (y, x) uint8 of one term from (y, x, c) pixels of this type."""
    scale = functools.partial(_scaled, low=term["low"], high=term["high"])
    if "weights" in term:
        density = _density_of(term, dtype, white)
        return lambda planes: scale(density(planes))
    scale_by_table = _tabled(scale, dtype)
    return lambda planes: scale_by_table(planes[..., term["channel"]])


def _density_of(term: Term, dtype: DTypeLike, white: float) -> Callable[[NDArray[Any]], NDArray[np.float32]]:
    """What makes the (y, x) float32 density of a stain, at least 0, from (y, x, 3) pixels of this type."""
    parts = [
        (channel, _tabled(functools.partial(_weighted_density, weight=weight, white=white), dtype))
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


def _scaled(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    scaled = np.clip((values.astype(np.float64) - low) / (high - low), 0, 1)
    rounded: NDArray[np.uint8] = np.rint(np.nan_to_num(scaled) * 255).astype(np.uint8)
    return rounded


def _tabled(
    function: Callable[[NDArray[Any]], NDArray[Any]], dtype: DTypeLike
) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """The same function of single values, by a table of all that an integer type of 8 or 16 bits can hold."""
    dtype = np.dtype(dtype)
    if dtype.kind not in "iu" or dtype.itemsize > 2:
        return function
    bits = np.dtype(f"u{dtype.itemsize}")
    table = function(np.arange(2 ** (8 * dtype.itemsize), dtype=bits).view(dtype))
    return lambda values: table[values.view(bits)]


def _strips(shape: tuple[int, ...]) -> Iterator[slice]:
    height = max(1, _STRIP // max(1, shape[1]))
    return (slice(start, start + height) for start in range(0, shape[0], height))


def _first_three(image: NDArray[Any]) -> NDArray[Any]:
    return image[..., None] if image.ndim == 2 else image[..., :3]


def _all_channels(image: NDArray[Any], plan: Mapping[str, Any]) -> NDArray[Any]:
    """The image as (y, x, c).

    Raises:
        SegmenterError: c isn't what the plan is for.
    """
    planes = image[..., None] if image.ndim == 2 else image
    if planes.shape[-1] != plan["n_channels"]:
        raise SegmenterError(
            f"segmenter.inputs were found for {plan['n_channels']} channels, but the block has {planes.shape[-1]}"
        )
    return planes
