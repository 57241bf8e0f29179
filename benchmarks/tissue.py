"""How many blocks the tissue mask leaves out, and what that costs.

For each image, for overviews as coarse as those of larger slides: the share of blocks that are kept, and where outlines are known
how many true objects lie wholly or partly in blocks that are left out.

    .venv/bin/python -m benchmarks.tissue [--data ../shared/data] [--blocks 64 128 256] [--halo 16] [--coarser 1 4 16]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tifffile
from rich.console import Console
from rich.table import Table
from skimage.io import imread

from slidesam.tasks.grid import BlockGrid
from slidesam.tasks.pixels.pyramid import halve
from slidesam.tasks.pixels.tissue import blocks_with_tissue, find_tissue


class Case(NamedTuple):
    """An image with, where they are known, the labels of its objects."""

    name: str
    image: np.ndarray
    is_rgb: bool
    truth: np.ndarray | None


def cases(data: Path) -> Iterator[Case]:
    """All images, (y, x, c), and labels (y, x)."""
    yield Case("svs_cmu1_small", tifffile.imread(data / "svs_cmu1_small" / "CMU-1-Small-Region.svs"), True, None)
    yield Case("he_instanseg", tifffile.imread(data / "he_instanseg" / "HE_example.tif"), True, None)
    yield Case("stardist histo", imread(data / "stardist_images" / "histo.jpg"), True, None)
    mosaic = data / "mosaic_he"
    truth = tifffile.imread(mosaic / "dsb_he_mosaic_labels.tif")
    yield Case("mosaic_he", tifffile.imread(mosaic / "dsb_he_mosaic_2560x3200.tif"), True, truth)
    yield from dsb2018(data / "dsb2018_he_256x320", is_rgb=True)
    yield from dsb2018(data / "dsb2018_fluo", is_rgb=False)
    nuclei = data / "stardist_images"
    yield Case("stardist 2-D", grey(nuclei / "img2d.tif"), False, tifffile.imread(nuclei / "mask2d.tif"))
    yield Case(
        "stardist 3-D, a plane", grey(nuclei / "img3d.tif", 15), False, tifffile.imread(nuclei / "mask3d.tif")[15]
    )
    channels = tifffile.imread(data / "fluo_instanseg" / "Fluorescence_example.tif")
    yield Case("fluo_instanseg", np.moveaxis(channels, 0, -1), False, None)
    yield Case("12 bit plant", grey(data / "ometiff_pyramid" / "xy_12bit__plant.ome.tiff"), False, None)


def dsb2018(folder: Path, *, is_rgb: bool) -> Iterator[Case]:
    """The images of a folder with their labels."""
    for path in sorted(folder.glob("*_image.png")):
        name = path.name.removesuffix("_image.png")
        channels = slice(3) if is_rgb else slice(1)
        yield Case(name, imread(path)[..., channels], is_rgb, tifffile.imread(path.with_name(f"{name}_labels.tif")))


def grey(path: Path, plane: int | None = None) -> np.ndarray:
    """A TIFF of one channel, (y, x, 1)."""
    image = tifffile.imread(path)
    return (image if plane is None else image[plane])[..., None]


def coarser(image: np.ndarray, factor: int) -> np.ndarray:
    """A (y, x, c) image averaged over squares of `factor` pixels, a power of two."""
    while factor > 1:
        image, factor = np.moveaxis(halve(np.moveaxis(image, -1, 0)), 0, -1), factor // 2
    return image


def cut_objects(truth: np.ndarray, grid: BlockGrid, kept: list[int]) -> int:
    """How many objects have pixels in the inner region of a block that is left out."""
    left_out = set(range(len(grid))) - set(kept)
    cut = [np.unique(truth[grid[block_id].inner.slices]) for block_id in left_out]
    return np.setdiff1d(np.concatenate(cut), [0]).size if cut else 0


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--blocks", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--halo", type=int, default=16)
    parser.add_argument("--coarser", type=int, nargs="+", default=[1, 4, 16])
    arguments = parser.parse_args()
    table = Table(title=f"tissue mask, halo {arguments.halo} px", box=None)
    for column in (
        "image",
        "overview",
        "mask",
        *(f"blocks of {block}" for block in arguments.blocks),
        "objects",
        "cut",
    ):
        table.add_column(column, justify="left" if column == "image" else "right", no_wrap=True)
    for case in cases(arguments.data):
        for factor in arguments.coarser:
            mask = find_tissue(coarser(case.image, factor), is_rgb=case.is_rgb)
            shares, cuts = [], []
            for block in arguments.blocks:
                grid = BlockGrid(case.image.shape[:2], (block, block), arguments.halo)
                kept = blocks_with_tissue(mask, grid)
                shares.append(f"{len(kept) / len(grid):.0%}")
                cuts.append("" if case.truth is None else str(cut_objects(case.truth, grid, kept)))
            objects = "" if case.truth is None else str(np.unique(case.truth).size - 1)
            table.add_row(case.name, f"1:{factor}", f"{mask.mean():.0%}", *shares, objects, " ".join(cuts))
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
