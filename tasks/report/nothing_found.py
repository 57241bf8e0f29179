"""Word the warning about a slide with tissue in which no object was found, with the likely causes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from slidesam.tasks.run.marks import list_blocks
from slidesam.tasks.run.records import Params
from slidesam.tasks.run.run import Run
from slidesam.tasks.settings.methods import Cellpose, MicroSam, Watershed

# Pixel sizes of the tissue images that micro-sam's histopathology models were trained on (Griebel et al., PathoSAM, 2025).
_TISSUE_MODELS = "0.25 to 0.5 µm"
# Diameter in pixels that Cellpose scales objects to.
_CELLPOSE_PIXELS = 30
_MOST_CHANNELS = 4


def warn_if_nothing_found(run: Run, params: Params, objects: int) -> tuple[str, ...]:
    """Warn if there are no objects though there is tissue.

    Args:
        run: The run, all of whose blocks are segmented.
        params: What its blocks shared.
        objects: Number of objects.

    Returns:
        One sentence, or nothing.
    """
    if objects or params.has_tissue is False or not (n_blocks := len(list_blocks(run))):
        return ()
    blocks = "1 block that holds" if n_blocks == 1 else f"{n_blocks:,} blocks that hold"
    causes = "; ".join((_describe_scale(run), _describe_channels(run), _describe_range(params.params)))
    return (f"no {run.label} were found in {blocks} tissue; likely causes: {causes}; see {run.paths.overlay.name}",)


def _describe_scale(run: Run) -> str:
    """Say which size of pixels the segmenter saw, and what it expects."""
    mpp = run.segmented_slide.mpp
    seen = "of unknown size (slide.mpp states it)" if mpp is None else f"of {mpp[1]:.3g} µm"
    if mpp is not None and run.settings.slide.mpp is None:
        seen += " as the file says"
    return f"scale (it saw pixels {seen}; {_describe_expectation(run, 1.0 if mpp is None else mpp[0])})"


def _describe_expectation(run: Run, mpp: float) -> str:
    segmenter = run.settings.segmenter
    match segmenter:
        case Watershed():
            pixels = segmenter.diameter / mpp
            return f"segmenter.diameter means objects {pixels:.3g} px wide"
        case Cellpose():
            pixels = segmenter.diameter or _CELLPOSE_PIXELS
            return f"cellpose expects objects {pixels:.3g} px wide (segmenter.diameter)"
        case MicroSam() if "histopathology" in run.segmenter_identity.partition(" ")[0]:
            return f"this model was trained at {_TISSUE_MODELS} (slide.target_mpp)"
    return "models expect objects as wide as those that they were trained on (slide.target_mpp)"


def _describe_channels(run: Run) -> str:
    """Say which channels the segmenter saw; of a stained slide, which stain."""
    slide, segmenter = run.slide, run.settings.segmenter
    if isinstance(segmenter, MicroSam) and segmenter.inputs:
        return f"channel or stain (it saw {', '.join(segmenter.inputs)}: segmenter.inputs)"
    if slide.is_rgb:
        is_hematoxylin = isinstance(segmenter, Watershed) and segmenter.signal in ("auto", "hematoxylin")
        return f"stain (it saw {'hematoxylin in ' if is_hematoxylin else ''}red, green and blue)"
    names = [slide.channel_names[channel] for channel in slide.channels]
    shown = ", ".join(names[:_MOST_CHANNELS]) + (", ..." if len(names) > _MOST_CHANNELS else "")
    looks = ""
    if isinstance(segmenter, Watershed):
        looks = f", {'dark' if segmenter.signal == 'dark' else 'bright'} objects"
    return f"channel (it saw {shown}, {len(names)} of {slide.size_c}{looks}: slide.channels)"


def _describe_range(params: Mapping[str, Any]) -> str:
    """Say by which values the segmenter judged the pixels."""
    values = {name: _format(params.get(name)) for name in ("low", "high", "threshold")}
    return f"contrast ({', '.join(f'{name} {value}' for name, value in values.items() if value) or 'its own scaling'})"


def _format(value: object) -> str:
    """Format a number, or the first of some; nothing for whatever else a user's `prepare` may have returned."""
    if isinstance(value, list):
        numbers = [_format_number(number) for number in value]
        return "/".join(numbers[:_MOST_CHANNELS] + ["..."] * (len(numbers) > _MOST_CHANNELS)) if all(numbers) else ""
    return _format_number(value)


def _format_number(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    # JSON has integers that are too large for a float.
    return f"{value:.6g}" if abs(value) < sys.float_info.max else ""
