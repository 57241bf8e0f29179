"""Make a slide to try slidesam on, from the histology picture in scikit-image, so that no download is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from skimage import data

from slidesam.tasks.settings.parse import make_settings
from slidesam.tasks.settings.sections import Settings

_SIDE = 4096
_MPP = 0.5
_BLOCK, _HALO = 1024, 64


def demo_settings() -> Settings:
    """Make the settings of the demo: nuclei by watershed, in sixteen blocks."""
    return make_settings(
        overrides={
            "segmenter.kind": "watershed",
            "blocks.block_shape": _BLOCK,
            "blocks.halo": _HALO,
            "output.label": "nuclei",
        }
    )


def make_demo_slide(path: Path, side: int = _SIDE) -> None:
    """Write a pyramidal, tiled OME-TIFF with a pixel size.

    Args:
        path: The file to write.
        side: Height and width in pixels.
    """
    image = demo_image(side)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    metadata = {
        "axes": "YXS",
        "PhysicalSizeX": _MPP,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": _MPP,
        "PhysicalSizeYUnit": "µm",
    }
    options: dict[str, Any] = {
        "tile": (256, 256),
        "photometric": "rgb",
        "compression": "jpeg",
        "compressionargs": {"level": 90},
    }
    with tifffile.TiffWriter(partial, bigtiff=True, ome=True) as tiff:
        tiff.write(image, subifds=2, metadata=metadata, **options)
        for _ in range(2):
            image = np.ascontiguousarray(image[::2, ::2])
            tiff.write(image, subfiletype=1, **options)
    partial.replace(path)


def demo_image(side: int) -> NDArray[np.uint8]:
    """Make a (side, side, 3) mosaic of the picture, rotated and reflected so that tissue continues across every joint.

    The picture is reflected at its edges, which joins its copies without a step, and a square of that is rotated by 90°. No
    joint lies on a seam of the demo's blocks, so that objects lie across every seam.
    """
    # Crop the picture: the period of the pattern then doesn't divide the blocks, and every seam looks different.
    picture = data.immunohistochemistry()[:471, :493]
    unit = np.concatenate([picture, picture[:, ::-1]], axis=1)
    unit = np.concatenate([unit, unit[::-1]], axis=0)
    repeats = -(-side // unit.shape[0]) + 1
    plane = np.tile(unit, (repeats, repeats, 1))[149 : 149 + side, 211 : 211 + side]
    square = (slice(side // 14, side // 14 + side // 3), slice(side // 2 + 90, side // 2 + 90 + side // 3))
    plane[square] = np.rot90(plane[square])
    return np.ascontiguousarray(plane)
