"""How little blocks change what is found: mosaics of real images in blocks, against the same image in one block.

Two slides are segmented by the command line of the version that `--slidesam` names: 30 fluorescence images of cultured nuclei,
many of which touch, and the mosaic of tissue patches. Of each object that one block finds, and of the objects found in blocks:

as whole   share that comes back at an IoU of at least 0.9
count      objects more or less than in one block
merged     pairs that one block tells apart, of both of which one object holds more than half
split      pairs of objects more than half of each of which lies in one object of the one block

    .venv/bin/python -m benchmarks.mosaics [--slidesam OLD/.venv/bin/slidesam] [--blocks 1024 512 256] [--diameter 8]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tifffile
import zarr
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from skimage.io import imread

from benchmarks.same_results import SHARED, run_slidesam
from slidesam.tasks.compare.scores import match_arrays

TISSUE = SHARED / "mosaic_he" / "dsb_he_mosaic_2560x3200.tif"
NUCLEI = SHARED / "nuclei_cc0"
# Of the fluorescence images of this size the first ones by name.
TILE, ROWS, COLUMNS = (520, 696), 5, 6
HALO = 64
# Holds either slide.
ONE_BLOCK = 4352
SAME = 0.9


class Comparison(NamedTuple):
    """Objects found in blocks beside those of one block.

    Attributes:
        objects: Found in blocks.
        same: Share of the one block's objects that come back at an IoU of at least `SAME`.
        more: How many more objects there are in blocks.
        merged: Pairs of the one block's objects that are one in blocks.
        split: Pairs of objects in blocks that are one in the one block.
    """

    objects: int
    same: float
    more: int
    merged: int
    split: int


def compare(found: NDArray[np.integer], whole: NDArray[np.integer]) -> Comparison:
    """Compare two label images of one shape, 0 = background."""
    matches = match_arrays(found, whole)
    score = matches.score(SAME)
    objects, expected = score.matched + score.only_found, score.matched + score.only_true
    return Comparison(objects, score.matched / expected, objects - expected, matches.merged_pairs, matches.split_pairs)


def tile_fluorescence() -> NDArray[np.uint8]:
    """Return the mosaic of fluorescence images, (2600, 4176)."""
    rows = json.loads((NUCLEI / "index.json").read_text())
    names = sorted(row["id"] for row in rows if row["kind"] == "fluo" and (row["height"], row["width"]) == TILE)
    tiles = [imread(NUCLEI / f"{name}.png") for name in names[: ROWS * COLUMNS]]
    grey = [tile if tile.ndim == 2 else tile[..., :3].mean(axis=2).astype(np.uint8) for tile in tiles]
    return np.block([grey[row * COLUMNS : (row + 1) * COLUMNS] for row in range(ROWS)])


def segment(slidesam: Path, slide: Path, block: int, diameter: float, output: Path) -> NDArray[np.integer]:
    """Segment a slide in blocks of a size; return level 0 of its labels."""
    settings = {
        "segmenter.diameter": diameter,
        "blocks.block_shape": block,
        "blocks.halo": HALO,
        "blocks.tissue": "off",
    }
    options = [option for name, value in settings.items() for option in ("--set", f"{name}={value}")]
    run_slidesam(slidesam, "segment", slide, "--output", output, "--segmenter", "watershed", *options)
    (labels,) = output.glob("*.ome.zarr/labels/cells")
    return np.asarray(zarr.open_array(labels / "0", mode="r")).squeeze()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slidesam", type=Path, default=Path(sys.executable).with_name("slidesam"))
    parser.add_argument("--blocks", type=int, nargs="+", default=[1024, 512, 256], help="sides in pixels")
    parser.add_argument("--diameter", type=float, default=8, help="of the objects, in pixels (default: %(default)s)")
    arguments = parser.parse_args()
    table = Table(title=f"watershed, diameter {arguments.diameter:g} px, halo {HALO} px", box=None)
    for column in ("mosaic", "block", "objects", "as whole", "count", "merged", "split"):
        table.add_column(column, justify="left" if column == "mosaic" else "right")
    with tempfile.TemporaryDirectory() as scratch:
        fluorescence = Path(scratch) / "fluorescence.tif"
        tifffile.imwrite(fluorescence, tile_fluorescence(), photometric="minisblack", tile=(256, 256))
        for slide in (fluorescence, TISSUE):
            whole = segment(arguments.slidesam, slide, ONE_BLOCK, arguments.diameter, Path(scratch) / slide.stem / "1")
            table.add_row(slide.stem, "one", f"{np.unique(whole).size - 1}")
            for block in arguments.blocks:
                output = Path(scratch) / slide.stem / str(block)
                result = compare(segment(arguments.slidesam, slide, block, arguments.diameter, output), whole)
                table.add_row(
                    slide.stem,
                    f"{block}",
                    f"{result.objects}",
                    f"{result.same:.4f}",
                    f"{result.more:+d}",
                    f"{result.merged}",
                    f"{result.split}",
                )
    Console().print(table)


if __name__ == "__main__":
    main()
