"""Make a slide to try slidesam on, from the histology picture in scikit-image, so that no download is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile
from numpy.typing import NDArray
from skimage import data
from skimage.transform import resize

from slidesam.tasks.errors import SettingsError
from slidesam.tasks.segmenters.microsam.shipped import NUCLEI_SMALL
from slidesam.tasks.settings.parse import make_settings
from slidesam.tasks.settings.sections import Settings

_MPP = 0.5
_BLOCK, _HALO = 768, 128


class DemoSlide(NamedTuple):
    """A slide to make: its file's name, its side in pixels, and how much the picture is enlarged."""

    name: str
    side: int
    zoom: float


def choose_demo_slide(kind: str) -> DemoSlide:
    """Choose the demo's slide for a segmenter: micro-sam takes a quarter of a minute for each of four blocks.

    The picture is enlarged for it, because nuclei-small was trained with nuclei of some 20 px.
    """
    return (
        DemoSlide("demo-small.ome.tif", 2 * _BLOCK, 1.5) if kind == "micro-sam" else DemoSlide("demo.ome.tif", 4096, 1)
    )


def demo_settings(kind: str) -> Settings:
    """Make the settings of the demo, for `segmenter.kind` micro-sam or watershed.

    micro-sam has the model that slidesam ships, blocks that fill one of its fields with their halo, and hematoxylin as its only
    input: the picture's brown stain would hide the nuclei.

    Raises:
        SettingsError: Another kind is given, which needs settings of its own.
    """
    if kind not in ("micro-sam", "watershed"):
        raise SettingsError(
            f"the demo has no settings for segmenter {kind}: use --segmenter micro-sam or --segmenter watershed"
        )
    overrides: dict[str, object] = {"segmenter.kind": kind, "output.label": "nuclei"}
    if kind == "micro-sam":
        overrides |= {"segmenter.model": NUCLEI_SMALL, "segmenter.inputs": ["hematoxylin"]}
        overrides |= {"blocks.block_shape": _BLOCK, "blocks.halo": _HALO}
    else:
        overrides |= {"blocks.block_shape": 1024, "blocks.halo": 64}
    return make_settings(overrides=overrides)


def make_demo_slide(path: Path, side: int, zoom: float = 1) -> None:
    """Write a pyramidal, tiled OME-TIFF with a pixel size.

    Args:
        path: The file to write.
        side: Height and width in pixels.
        zoom: How much the picture is enlarged.
    """
    image = demo_image(round(side / zoom))
    if zoom != 1:
        image = (255 * resize(image, (side, side), order=3)).clip(0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    metadata = {
        "axes": "YXS",
        "PhysicalSizeX": _MPP / zoom,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": _MPP / zoom,
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
