"""Choose sizes at which a model sees objects as it did in training (`fields`), and say what it sees."""

from __future__ import annotations

import math

from slidesam.tasks.errors import SettingsError
from slidesam.tasks.segmenters.microsam.fields import NATIVE, Field, find_field
from slidesam.tasks.segmenters.microsam.tiles import EvenTiling
from slidesam.tasks.settings.methods import MicroSam
from slidesam.tasks.settings.types import Pair

# Relative difference of scales that is worth a warning.
_WARN_FROM = 0.1
# Options of micro-sam's APG that do nothing, or end with an error, where the image is cut into tiles.
_UNTILED_OPTIONS = ("mask_threshold", "refine_with_box_prompts")


def with_tiles(segmenter: MicroSam, model: str, outer_shape: Pair) -> MicroSam:
    """Replace `field`, `tile_shape` and `tile_halo` that are `auto` by numbers.

    Args:
        segmenter: The segmenter's settings.
        model: The model's name in micro-sam's registry.
        outer_shape: Height and width of a block's input tile, in pixels.

    Raises:
        SettingsError: The sizes contradict each other, or an option doesn't work on tiles.

    Example:
        >>> settings = with_tiles(MicroSam(), "vit_b_lm", (2304, 2304))
        >>> settings.field, settings.tile_shape, settings.tile_halo
        (512, (384, 384), (64, 64))
        >>> with_tiles(MicroSam(), "vit_b_lm", (320, 320)).tile_shape
        'off'
    """
    shape, field = segmenter.tile_shape, segmenter.field
    if isinstance(shape, tuple):
        return _checked(_with_given_tiles(segmenter, shape))
    side = find_field(segmenter, model).side if field == "auto" else field
    if shape == "off" and field == "auto":
        side = max(outer_shape)
    if max(outer_shape) <= side:
        return segmenter.model_copy(update={"field": side, "tile_shape": "off", "tile_halo": "auto"})
    if shape == "off":
        raise SettingsError(
            f"setting segmenter.field: {side} px are less than a block with its halo, {max(outer_shape)} px: leave out "
            "segmenter.tile_shape off, or take smaller blocks"
        )
    halo = (side // 8,) * 2 if segmenter.tile_halo == "auto" else segmenter.tile_halo
    if not isinstance(halo, tuple) or side - 2 * max(halo) < 16:
        raise SettingsError(
            f"setting segmenter.tile_halo: {halo} on both sides leaves no room in a field of {side} px: {side // 4} at "
            "most, or give segmenter.field too"
        )
    tile = (side - 2 * halo[0], side - 2 * halo[1])
    return _checked(segmenter.model_copy(update={"field": side, "tile_shape": tile, "tile_halo": halo}))


def suggest_blocks(segmenter: MicroSam, model: str, usual: tuple[Pair, int]) -> tuple[Pair, int]:
    """Choose blocks and halo for which every pixel of a slide lies in the same tile, whatever the number of tiles in a block.

    A network's answer hangs on where its field begins. Blocks of whole tiles, with a halo that is the tiles' overlap, cut a slide
    as one block would be cut.

    Args:
        segmenter: The segmenter's settings.
        model: The model's name in micro-sam's registry.
        usual: Height and width of a block, and halo, in pixels, for a segmenter without even tiles.

    Returns:
        The fewest whole tiles that are no smaller than the usual block, and the tiles' overlap; or the usual sizes.

    Example:
        >>> suggest_blocks(MicroSam(), "vit_b_lm", ((2048, 2048), 128))
        ((2304, 2304), 64)
        >>> suggest_blocks(MicroSam(), "nuclei-small", ((2048, 2048), 128))
        ((2304, 2304), 128)
        >>> suggest_blocks(MicroSam(tiling="micro-sam"), "vit_b_lm", ((2048, 2048), 128))
        ((2048, 2048), 128)
    """
    if segmenter.tiling != "even" or segmenter.tile_shape == "off":
        return usual
    # For a block as large as can be, so that it is cut into tiles.
    tiled = with_tiles(segmenter, model, (8 * NATIVE, 8 * NATIVE))
    if not isinstance(tiled.tile_shape, tuple) or not isinstance(tiled.tile_halo, tuple):
        return usual
    shape = _round_up(usual[0][0], tiled.tile_shape[0]), _round_up(usual[0][1], tiled.tile_shape[1])
    return shape if max(shape) <= 2 * max(usual[0]) else usual[0], max(tiled.tile_halo)


def _round_up(side: int, tile: int) -> int:
    """Return the smallest multiple of a tile, and of 16 px, that is no smaller than a side."""
    unit = math.lcm(tile, 16)
    return -(-side // unit) * unit


def _with_given_tiles(segmenter: MicroSam, shape: Pair) -> MicroSam:
    halo = segmenter.tile_halo if isinstance(segmenter.tile_halo, tuple) else (shape[0] // 4, shape[1] // 4)
    side = max(shape[0] + 2 * halo[0], shape[1] + 2 * halo[1])
    if segmenter.field not in ("auto", side):
        raise SettingsError(
            f"setting segmenter.field: {segmenter.field} px, but a tile with its overlap has {side} px: leave out "
            "segmenter.field, or segmenter.tile_shape"
        )
    return segmenter.model_copy(update={"field": side, "tile_halo": halo})


def _checked(segmenter: MicroSam) -> MicroSam:
    if segmenter.mode == "apg":
        for option in _UNTILED_OPTIONS:
            if segmenter.options.get(option):
                raise SettingsError(
                    f"setting segmenter.options.{option}: micro-sam's APG doesn't support it on tiles: leave it out, or take "
                    "segmenter.tile_shape off with smaller blocks"
                )
    return segmenter


def explain_sizes(
    segmenter: MicroSam,
    model: str,
    outer_shape: Pair,
    mpp: tuple[float, float] | None = None,
    block_shape: Pair | None = None,
) -> tuple[str, list[str]]:
    """Describe what SAM sees, with warnings where that isn't what the model was trained on.

    Args:
        segmenter: As `with_tiles` returns it.
        model: The model's name in micro-sam's registry.
        outer_shape: Height and width of a block's input tile, in pixels.
        mpp: Pixel size of what is segmented, in µm (y, x); None = unknown.
        block_shape: Height and width of the blocks where there are several, in pixels.

    Example:
        >>> explain_sizes(with_tiles(MicroSam(), "vit_b_lm", (2304, 2304)), "vit_b_lm", (2304, 2304))
        ('SAM sees 36 tiles a block of 512 px, enlarged 2 times', [])
    """
    # Without tiles micro-sam's own way enlarges a block as a whole.
    is_whole = segmenter.tile_shape == "off" and segmenter.tiling == "micro-sam"
    side = max(outer_shape) if is_whole or segmenter.field == "auto" else segmenter.field
    known = find_field(segmenter, model)
    return f"SAM sees {_describe_tiles(segmenter, outer_shape)}{_describe_scale(side)}", [
        *_warn_of_field(side, known),
        *_warn_of_small_blocks(segmenter, side, outer_shape),
        *_warn_of_parts(segmenter, block_shape),
        *_warn_of_pixels(model, known, mpp),
    ]


def _describe_tiles(segmenter: MicroSam, outer_shape: Pair) -> str:
    shape, halo = segmenter.tile_shape, segmenter.tile_halo
    if isinstance(shape, str) or isinstance(halo, str):
        return f"blocks of {outer_shape[1]} × {outer_shape[0]} px as a whole"
    sizes = (
        f"{shape[1] + 2 * halo[1]} px"
        if shape[0] + 2 * halo[0] == shape[1] + 2 * halo[1]
        else (f"{shape[1] + 2 * halo[1]} × {shape[0] + 2 * halo[0]} px")
    )
    if segmenter.tiling == "even":
        return f"{EvenTiling(outer_shape, shape, halo).number_of_blocks} tiles a block of {sizes}"
    count = -(-outer_shape[0] // shape[0]) * -(-outer_shape[1] // shape[1])
    return f"{count} tiles a block of {sizes}, fewer at its rim, where micro-sam cuts them off"


def _describe_scale(side: int) -> str:
    scale = NATIVE / side
    if abs(scale - 1) < 0.005:
        return ""
    return f", enlarged {scale:.3g} times" if scale > 1 else f", shrunk to {scale:.2g} of their size"


def _warn_of_field(side: int, known: Field) -> list[str]:
    """Warn where objects look smaller or larger to the model than in training."""
    ratio = known.side / side
    if abs(ratio - 1) < _WARN_FROM:
        return []
    return [
        f"the model was trained on squares of {known.side} px, and these have {side}: it sees objects at {ratio:.2g} times the "
        f"size that suits it; leave out segmenter.field and segmenter.tile_shape"
    ]


def _warn_of_small_blocks(segmenter: MicroSam, side: int, outer_shape: Pair) -> list[str]:
    """Warn where blocks don't fill the field: micro-sam's decoder normalises by what is in it, the filling too."""
    if segmenter.mode == "amg" or min(outer_shape) >= side:
        return []
    return [
        f"blocks of {min(outer_shape)} px with their halo don't fill the field of {side} px, and the decoder normalises by all "
        "that is in it, so objects at seams differ more: take larger blocks (blocks.block_shape)"
    ]


def _warn_of_parts(segmenter: MicroSam, block_shape: Pair | None) -> list[str]:
    """Warn where blocks aren't whole tiles, as `suggest_blocks` chooses them."""
    tile = segmenter.tile_shape
    if segmenter.tiling != "even" or block_shape is None or not isinstance(tile, tuple):
        return []
    pairs = zip(block_shape, tile, strict=True)
    found = next(((block, side) for block, side in pairs if block % side), None)
    if found is None:
        return []
    block, side = found
    whole = " or ".join(str(n * side) for n in (block // side, block // side + 1) if n and n * side % 16 == 0)
    return [
        f"blocks of {block} px aren't whole tiles of {side} px, so that some objects hang on where blocks lie: "
        f"leave out blocks.block_shape{f', or take {whole} px' if whole else ''}"
    ]


def _warn_of_pixels(model: str, known: Field, mpp: tuple[float, float] | None) -> list[str]:
    """Warn where the slide's pixels are smaller or larger than those of the training images."""
    if known.mpp is None or mpp is None or known.mpp[0] <= min(mpp) <= max(mpp) <= known.mpp[1]:
        return []
    low, high = known.mpp
    return [
        f"{model} was trained on pixels of {low:g} to {high:g} µm, and these have {max(mpp):.3g}: set slide.target_mpp: "
        f"{low if max(mpp) < low else high:.2g}" + ("" if max(mpp) < low else ", or take a finer slide")
    ]
