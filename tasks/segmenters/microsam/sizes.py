"""Choose sizes that suit SAM, whose encoder scales every image to 1024 × 1024 px. docs/segmentation.md explains why."""

from __future__ import annotations

from slidesam.tasks.errors import SettingsError
from slidesam.tasks.settings.methods import MicroSam
from slidesam.tasks.settings.sections import BlockSettings
from slidesam.tasks.settings.types import Pair

NATIVE = 1024
_WIDEST_HALO = 256
# Relative scaling that is worth a warning: SAM was trained with objects of all sizes, so a few per cent don't matter.
_WARN_FROM = 0.1


def with_tiles(segmenter: MicroSam, blocks: BlockSettings, outer_shape: Pair) -> MicroSam:
    """Replace `tile_shape: auto` and `tile_halo: auto` by numbers.

    A tile with its overlap has SAM's size. So only tiles at a block's edge are scaled, where micro-sam cuts them off. The overlap
    is the blocks' halo: both must be as wide as an object.

    Args:
        segmenter: The segmenter's settings.
        blocks: How the slide is cut.
        outer_shape: Height and width of a block's input tile, in pixels.

    Raises:
        SettingsError: The overlap leaves no room for a tile.

    Example:
        >>> settings = with_tiles(MicroSam(), BlockSettings(), (2304, 2304))
        >>> settings.tile_shape, settings.tile_halo
        ((768, 768), (128, 128))
        >>> with_tiles(MicroSam(), BlockSettings(), (1024, 1024)).tile_shape
        'off'
    """
    shape, halo = segmenter.tile_shape, segmenter.tile_halo
    if shape == "off" or (shape == "auto" and max(outer_shape) <= NATIVE):
        return segmenter.model_copy(update={"tile_shape": "off", "tile_halo": "auto"})
    if shape == "auto":
        overlap = (min(blocks.halo, _WIDEST_HALO),) * 2 if halo == "auto" else halo
        if not isinstance(overlap, tuple) or NATIVE - 2 * max(overlap) < 16:
            raise SettingsError(
                f"setting segmenter.tile_halo: {halo} on both sides leaves no room in SAM's {NATIVE} px: "
                f"{NATIVE // 4} at most, or give segmenter.tile_shape too"
            )
        tile = (NATIVE - 2 * overlap[0], NATIVE - 2 * overlap[1])
        return segmenter.model_copy(update={"tile_shape": tile, "tile_halo": overlap})
    if halo == "auto" and isinstance(shape, tuple):
        return segmenter.model_copy(update={"tile_halo": (shape[0] // 4, shape[1] // 4)})
    return segmenter


def explain_sizes(segmenter: MicroSam, outer_shape: Pair) -> tuple[str, str | None]:
    """Describe what SAM sees, with a warning if it is scaled.

    Args:
        segmenter: As `with_tiles` returns it.
        outer_shape: Height and width of a block's input tile, in pixels.

    Example:
        >>> explain_sizes(MicroSam(tile_shape="off"), (2304, 2304))[1]
        'SAM takes 1024 px, so that blocks of 2304 px are shrunk to 0.44 of their size and small objects with them: segmenter.tile_shape auto avoids that'
    """  # noqa: E501
    shape, halo = segmenter.tile_shape, segmenter.tile_halo
    if isinstance(shape, str) or isinstance(halo, str):
        description, input_shape, unit = f"blocks of {_px(outer_shape)} as a whole", outer_shape, "blocks"
    else:
        input_shape = (min(shape[0] + 2 * halo[0], outer_shape[0]), min(shape[1] + 2 * halo[1], outer_shape[1]))
        description, unit = f"tiles of {_px(shape)}, {_px(input_shape)} with their overlap", "tiles"
    scale = NATIVE / max(input_shape)
    if abs(scale - 1) < _WARN_FROM:
        return f"SAM sees {description}", None
    verb = "shrunk" if scale < 1 else "enlarged"
    effect = "and small objects with them" if scale < 1 else "which costs time, not detail"
    cure = (
        "segmenter.tile_shape auto avoids that"
        if scale < 1 or unit == "tiles"
        else f"blocks.block_shape and twice blocks.halo of {NATIVE} px avoid that"
    )
    warning = (
        f"SAM takes {NATIVE} px, so that {unit} of {max(input_shape)} px are {verb} to {scale:.2g} of their size "
        f"{effect}: {cure}"
    )
    return f"SAM sees {description}, scaled by {scale:.2g}", warning


def _px(shape: Pair) -> str:
    return f"{shape[1]} × {shape[0]} px"
