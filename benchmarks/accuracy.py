"""How well `watershed` finds nuclei, and how little blocks change that.

For each image with known outlines: F1 at IoU 0.5 of the whole image and of blocks, objects found, and how many objects of the
whole image come back from the blocks at IoU 1 and at 0.9. The same steps as a real run, in this process.

A second table has F1 at IoU 0.5 for other diameters, and for Otsu's threshold on the optical density instead of the share of
light, each image in one piece.

    .venv/bin/python -m benchmarks.accuracy [--data ../shared/data] [--blocks 256 512 1024]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import tifffile
from rich.console import Console
from rich.table import Table
from skimage.io import imread

import slidesam
from slidesam.tasks.segmenters import watershed
from slidesam.tasks.settings.methods import Watershed
from tests.support.same import score

HALO = 64
# Pixel sizes are unknown for these images, so the diameter is in pixels: the truth's median one.
DIAMETER = 18
# 8 is the default: 8 µm, which are pixels where the pixel size is unknown.
OTHER_DIAMETERS = (8, 12, 18, 24)


def images(data: Path) -> list[tuple[str, np.ndarray, np.ndarray, tuple[int, ...]]]:
    """Name, pixels, truth and block sizes of each image."""
    mosaic = data / "mosaic_he"
    truth = tifffile.imread(mosaic / "dsb_he_mosaic_labels.tif")
    found = [("mosaic_he", tifffile.imread(mosaic / "dsb_he_mosaic_2560x3200.tif"), truth, (256, 512, 1024))]
    for path in sorted((data / "dsb2018_he_256x320").glob("*_image.png")):
        outlines = tifffile.imread(path.with_name(path.name.replace("_image.png", "_labels.tif")))
        found.append((path.name.removesuffix("_image.png"), imread(path)[..., :3], outlines, (128,)))
    return found


def run(image: np.ndarray, block: int, folder: Path) -> np.ndarray:
    """Labels of an image in blocks of a size."""
    slide = folder / "image.tif"
    if not slide.exists():
        tifffile.imwrite(slide, image, photometric="rgb", tile=(256, 256))
    overrides = {
        "segmenter.kind": "watershed",
        "segmenter.diameter": DIAMETER,
        "blocks.block_shape": block,
        "blocks.halo": HALO,
    }
    return np.asarray(slidesam.segment(slide, folder / str(block), overrides, progress=False).labels)


class OnDensity(watershed.WatershedSegmenter):
    """`watershed` with its threshold on the optical density of hematoxylin."""

    def _signal(self, image: np.ndarray, white: float) -> np.ndarray:
        density = watershed._offset_density(image, white)
        return np.asarray(density @ watershed.hed_from_rgb[:, 0].astype(np.float32))


def score_in_one_piece(image: np.ndarray, truth: np.ndarray, diameter: float, kind: type[Any]) -> str:
    """F1 at IoU 0.5 of an image of unknown pixel size, and the number of objects found."""
    segmenter = kind(Watershed(kind="watershed", diameter=diameter), True)
    labels = segmenter.segment(image, segmenter.prepare(image, SimpleNamespace(mpp=None)))
    return f"{score(labels, truth):.3f} ({np.unique(labels).size - 1})"


def compare_diameters(data: Path) -> Table:
    """F1 of each image by diameter and signal."""
    found = images(data)
    table = Table(title="in one piece: F1 at IoU 0.5 (objects found)", box=None)
    for column in ("threshold on", "diameter", *(name for name, *_ in found)):
        table.add_column(column, justify="left" if column == "threshold on" else "right")
    for words, kind in (("share of light", watershed.WatershedSegmenter), ("density", OnDensity)):
        for diameter in OTHER_DIAMETERS:
            scores = (score_in_one_piece(image, truth, diameter, kind) for _, image, truth, _ in found)
            table.add_row(words, f"{diameter}", *scores)
    return table


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    arguments = parser.parse_args()
    table = Table(title=f"watershed, diameter {DIAMETER} px, halo {HALO} px", box=None)
    for column in ("image", "block", "truth", "found", "F1 at IoU 0.5", "as whole: IoU 1", "IoU 0.9"):
        table.add_column(column, justify="left" if column == "image" else "right")
    for name, image, truth, blocks in images(arguments.data):
        with tempfile.TemporaryDirectory() as scratch:
            whole = run(image, 4096, Path(scratch))
            rows = [("whole", whole), *((str(block), run(image, block, Path(scratch))) for block in blocks)]
        for block, labels in rows:
            same = (
                ("", "")
                if block == "whole"
                else (f"{score(labels, whole, 0.9999):.4f}", f"{score(labels, whole, 0.9):.4f}")
            )
            table.add_row(
                name, block, f"{np.unique(truth).size - 1}", f"{labels.max()}", f"{score(labels, truth):.3f}", *same
            )
    Console(width=150).print(table)
    Console(width=150).print(compare_diameters(arguments.data))


if __name__ == "__main__":
    main()
