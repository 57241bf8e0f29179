"""A slide to try things on: made from the histology picture that scikit-image ships, so that nothing has to be fetched."""

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
    """Nuclei by watershed, in sixteen blocks of the made slide."""
    return make_settings(
        overrides={
            "segmenter.kind": "watershed",
            "blocks.block_shape": _BLOCK,
            "blocks.halo": _HALO,
            "output.label": "nuclei",
        }
    )


def make_demo_slide(path: Path, side: int = _SIDE) -> None:
    """Writes a pyramidal, tiled OME-TIFF with a pixel size.

    Args:
        path: Where to.
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
    """A (side, side, 3) mosaic of the picture, turned and reflected so that tissue goes on across every joint.

    The picture is reflected at its edges, which joins it to itself without a step, and a square of that is turned by 90°. No
    joint falls on a seam of the demo's blocks, so that objects lie across every seam.
    """
    # Cropped, so that the pattern's period isn't a divisor of the blocks and every seam looks different.
    picture = data.immunohistochemistry()[:471, :493]
    unit = np.concatenate([picture, picture[:, ::-1]], axis=1)
    unit = np.concatenate([unit, unit[::-1]], axis=0)
    repeats = -(-side // unit.shape[0]) + 1
    plane = np.tile(unit, (repeats, repeats, 1))[149 : 149 + side, 211 : 211 + side]
    turned = (slice(side // 14, side // 14 + side // 3), slice(side // 2 + 90, side // 2 + 90 + side // 3))
    plane[turned] = np.rot90(plane[turned])
    return np.ascontiguousarray(plane)
