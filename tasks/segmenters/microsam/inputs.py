"""Choose what SAM sees as red, green and blue: channels or stains of a slide, converted to 8 bit.

    check_inputs(settings, slide)   -> plan      what `segmenter.inputs` names, or an error, from facts alone
    ranges(sample, plan)            -> params    slide-wide ranges, once per slide
    compose(image, params)          -> pixels    per block: (y, x, 3) uint8
    pick(image, params)             -> pixels    per block, for `scaling: tile`: channels as they are

Plan and params are mappings that JSON can hold. Each pixel of `compose` depends only on that pixel of the image and on the
params, to the bit, so blocks agree wherever they overlap. Therefore all arithmetic goes value by value: of 8 and 16 bit by a
table of all values, which is also fastest, and never by a matrix product, whose rounding may depend on its shape.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from slidesam.tasks.errors import SegmenterError
from slidesam.tasks.pixels.percentiles import common_window, contrast_range, percentile_range
from slidesam.tasks.pixels.stains import STAINS, Term, Vector, find_stain_weights, make_density, use_table
from slidesam.tasks.settings.methods import MicroSam

if TYPE_CHECKING:
    from slidesam.tasks.slides.facts import Slide

__all__ = ["check_inputs", "compose", "intensity_range", "pick", "ranges", "resolve", "to_rgb8"]

Plan = dict[str, Any]

_PERCENTILES = (0.1, 99.9)
# Pixels that are computed together: few enough to stay in a processor's cache.
_STRIP = 2**17
_MAX_LISTED = 12


def check_inputs(settings: MicroSam, slide: Slide) -> Plan:
    """Find what the settings let SAM see, from the slide's facts alone: for planning, before any pixel is read.

    Args:
        settings: Of these, `inputs`, `stains` and `scaling` are used.
        slide: Its name, channels and whether it is red, green and blue.

    Returns:
        The result of `resolve`; {} if `inputs` is empty.

    Raises:
        SegmenterError: As for `resolve`, or an input needs slide-wide ranges under `scaling: tile`.
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
    """Find the channels and stains that names stand for.

    Args:
        inputs: One to three entries: a channel's name or number, a stain's name, or several of these joined by +. Case
            doesn't matter. A name that contains a + is recognised if it is a whole entry.
        stains: The user's stain vectors, name → optical density in red, green and blue, of any length.
        slide: Its name, channels and whether it is red, green and blue.

    Returns:
        "n_channels" that images have, "is_rgb", and "inputs": per entry a list of terms. A term has "name" and either
        "channel", a place among the image's channels, or "channels" (of red, green and blue) with the "weights" of their
        optical densities.

    Raises:
        SegmenterError: A name is unknown, a channel isn't chosen, stains meet a slide that isn't red, green and blue, or
            their vectors can't be told apart.
    """
    user_stains = {name.strip().lower(): vector for name, vector in stains.items()}
    for name in user_stains:
        if _channel(name, slide) is not None:
            raise SegmenterError(
                f"setting segmenter.stains: {slide.name} has a channel {name}; give the stain another name"
            )
    entries = [_split(entry, slide) for entry in inputs]
    stain_names = dict.fromkeys(name for entry in entries for name in entry if _channel(name, slide) is None)
    for name in stain_names:
        if name not in user_stains and name not in STAINS:
            raise _make_unknown_error(name, user_stains, slide)
    stain_terms = find_stain_weights(tuple(stain_names), user_stains, slide) if stain_names else {}

    def term(name: str) -> Term:
        channel = _channel(name, slide)
        return {"name": name, "channel": channel} if channel is not None else {"name": name, **stain_terms[name]}

    return {
        "n_channels": len(slide.channels),
        "is_rgb": slide.is_rgb,
        "inputs": [[term(name) for name in entry] for entry in entries],
    }


def ranges(sample: NDArray[Any], plan: Mapping[str, Any]) -> Plan:
    """Find the slide-wide ranges of all channels and stains in a plan.

    A channel gets the range of `intensity_range`. A stain gets the percentiles 0.1 and 99.9 of its density, so that up to a
    thousandth of the slide (pen marks, folds) has no influence.

    Args:
        sample: (y, x[, c]) pixels of the slide, any numeric dtype, with all channels that it chose.
        plan: The result of `resolve`.

    Returns:
        The plan, with "low" and "high" in each term, and "white", the level of clear glass, if there are stains.

    Raises:
        SegmenterError: The sample has another number of channels than the plan.
    """
    planes = _all_channels(sample, plan)
    white = _white_of_finite(planes) if any("weights" in term for entry in plan["inputs"] for term in entry) else None

    def ranged(term: Term) -> Term:
        if "weights" in term:
            # A stain that is absent stays dark: its few pixels aren't stretched.
            low, high = _percentiles(make_density(term, planes.dtype, white or 1.0)(planes))
        else:
            low, high = _find_range(planes, term["channel"], plan["is_rgb"])
        return {**term, "low": low, "high": high}

    full_plan: Plan = {**plan, "inputs": [[ranged(term) for term in entry] for entry in plan["inputs"]]}
    return full_plan if white is None else full_plan | {"white": white}


def compose(image: NDArray[Any], params: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Convert pixels to what SAM's encoder takes, each by itself, by fixed ranges.

    Each term becomes 8 bit by its own range; of the terms of one entry the brightest is used. A denser stain is brighter.

    Args:
        image: (y, x[, c]) any numeric dtype.
        params: The result of `ranges`, or of `intensity_range` for `to_rgb8`.

    Returns:
        (y, x, 3) uint8. A single entry is repeated, two are followed by a zero channel; NaN becomes 0.

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
    """Pick channels without changing them, for micro-sam's own conversion to 8 bit, which takes one, two or three.

    Args:
        image: (y, x[, c]) any dtype.
        params: The result of `resolve` for single channels; without "inputs" the first three are taken.

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
    """Find the intensities that become 0 and 255 on the whole slide.

    - Red, green and blue: 0 (of floats the lowest value, if it is negative) and the 99.9th percentile of the brightest
      channel, one range for all three. micro-sam's training doesn't change 8 bit (`training.util.require_8bit`), and 16 bit
      and floats should look the same. A range per channel would shift the stains' colours.
    - All others: percentiles 0.1 and 99.9 of each channel, so that a few hot or dead pixels have no influence. Of a channel
      that is nearly all background, the range reaches to what isn't.

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
    n_channels = planes.shape[-1]
    # Of colours it is the same for all.
    ends = [_find_range(planes, channel, is_rgb) for channel in range(1 if is_rgb else n_channels)]
    ends = ends * n_channels if is_rgb else ends
    return {"low": [low for low, _ in ends], "high": [high for _, high in ends]}


def to_rgb8(image: NDArray[Any], params: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Convert pixels to what SAM's encoder takes, by a fixed range; channels are filled up to three as in micro-sam.

    Args:
        image: (y, x[, c]) any numeric dtype. One channel is repeated, two are followed by a zero channel, only three are used.
        params: "low" and "high" from `intensity_range`.

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
    text = entry.strip().lower()
    return [text] if _channel(text, slide) is not None else [part.strip() for part in text.split("+")]


def _channel(name: str, slide: Slide) -> int | None:
    """Find the index, among the slide's chosen channels, of the one with this name, else with this number."""
    names = [slide.channel_names[channel].strip().lower() for channel in slide.channels]
    if name in names:
        return names.index(name)
    numbers = [str(channel) for channel in slide.channels]
    return numbers.index(name) if name in numbers else None


def _make_unknown_error(name: str, user_stains: Mapping[str, Vector], slide: Slide) -> SegmenterError:
    channels = [f"{channel} {slide.channel_names[channel]}" for channel in slide.channels]
    available = "channels " + ", ".join(channels[:_MAX_LISTED]) + (", ..." if len(channels) > _MAX_LISTED else "")
    if slide.is_rgb:
        available += ", and stains " + ", ".join({**STAINS, **user_stains})
    channel_names = [channel_name.strip().lower() for channel_name in slide.channel_names]
    if name in channel_names or (name.isdecimal() and int(name) < len(channel_names)):
        return SegmenterError(
            f"setting segmenter.inputs: channel {name!r} of {slide.name} isn't chosen: add it to slide.channels "
            f"(chosen are {available})"
        )
    return SegmenterError(f"setting segmenter.inputs: {slide.name} has no {name!r}; it has {available}")


def _white_of_finite(planes: NDArray[Any]) -> float:
    """Find the value of clear glass: the maximum of 8 bit, else the slide's brightest, because 16 bits may hold fewer."""
    if planes.dtype == np.uint8:
        return 255.0
    return max(percentile_range(planes, _PERCENTILES)[1], float(np.finfo(np.float32).tiny))


def _find_range(planes: NDArray[Any], channel: int, is_rgb: bool) -> tuple[float, float]:
    """Find the range of a channel; of colours, that of all."""
    if not is_rgb:
        return contrast_range(planes[..., channel], _PERCENTILES)
    return common_window([_percentiles(plane) for plane in np.moveaxis(planes, -1, 0)])[0]


def _percentiles(values: NDArray[Any]) -> tuple[float, float]:
    low, high = percentile_range(values, _PERCENTILES)
    return low, high if high > low else low + 1.0


def _to_8bit(term: Term, dtype: DTypeLike, white: float) -> Callable[[NDArray[Any]], NDArray[np.uint8]]:
    """Make the function that computes one term, (y, x) uint8, from (y, x, c) pixels of this type."""
    scale = functools.partial(_scale, low=term["low"], high=term["high"])
    if "weights" in term:
        density = make_density(term, dtype, white)
        return lambda planes: scale(density(planes))
    scale_by_table = use_table(scale, dtype)
    return lambda planes: scale_by_table(planes[..., term["channel"]])


def _scale(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    scaled = np.clip((values.astype(np.float64) - low) / (high - low), 0, 1)
    rounded: NDArray[np.uint8] = np.rint(np.nan_to_num(scaled) * 255).astype(np.uint8)
    return rounded


def _strips(shape: tuple[int, ...]) -> Iterator[slice]:
    height = max(1, _STRIP // max(1, shape[1]))
    return (slice(start, start + height) for start in range(0, shape[0], height))


def _first_three(image: NDArray[Any]) -> NDArray[Any]:
    return image[..., None] if image.ndim == 2 else image[..., :3]


def _all_channels(image: NDArray[Any], plan: Mapping[str, Any]) -> NDArray[Any]:
    """Return the image as (y, x, c).

    Raises:
        SegmenterError: c isn't the plan's number of channels.
    """
    planes = image[..., None] if image.ndim == 2 else image
    if planes.shape[-1] != plan["n_channels"]:
        raise SegmenterError(
            f"segmenter.inputs were found for {plan['n_channels']} channels, but the block has {planes.shape[-1]}"
        )
    return planes
