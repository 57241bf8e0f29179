"""How well `watershed` finds nuclei, and how little blocks change that.

For each image with known outlines: F1 at IoU 0.5 of the whole image and of blocks, objects found, and how many objects of the
whole image come back from the blocks at IoU 1 and at 0.9. The same steps as a real run, in this process.

    .venv/bin/python -m benchmarks.accuracy [--data ../shared/data] [--blocks 256 512 1024]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import tifffile
from rich.console import Console
from rich.table import Table
from skimage.io import imread

import slidesam
from tests.support.same import score

HALO = 64
# Pixel sizes are unknown for these images, so the diameter is in pixels: the truth's median one.
DIAMETER = 18


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


def main() -> None:
    """Prints the table."""
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
    Console().print(table)


if __name__ == "__main__":
    main()
