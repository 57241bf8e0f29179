"""How many files a slide leaves, while it runs and when it is finished: counted on a run, and by its plan for larger slides.

A made slide of glass with tissue in one corner is sparse (all its glass is one tile), so that it is small and quickly read. It
is converted whole; a mask has only the corner segmented. What the other blocks would leave is counted from the plan, which a run
with all blocks (`--all`, of a small slide) shows to be right.

    make file-count        (or: .venv/bin/python -m benchmarks.file_count --side 100000 --corner 6144)
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from rich.console import Console
from rich.table import Table

import slidesam
from benchmarks.big_slide import make_slide
from slidesam.tasks.pixels.plan import group_levels, level_shapes
from slidesam.tasks.plan import plan_run
from slidesam.tasks.run.run import Run
from slidesam.tasks.settings.parse import make_settings
from slidesam.tasks.stitch.batches import block_batches

_TILE, _GLASS, _MPP_RESOLUTION = 256, 243, (20_000.0, 20_000.0)
_POLL_SECONDS = 0.5


def make_sparse_slide(path: Path, side: int, corner: int) -> Path:
    """A pyramidal TIFF of glass, with tissue in its first `corner` rows and columns."""
    if path.exists():
        return path
    tissue = make_slide(path.with_name(f"corner-{corner}.tif"), corner)
    glass = bytes(imagecodecs.jpeg8_encode(np.full((_TILE, _TILE, 3), _GLASS, np.uint8), 90))
    with tifffile.TiffFile(tissue) as source, tifffile.TiffWriter(path, bigtiff=True) as tiff:
        levels = [source.pages[0], *source.pages[0].pages]
        sides = [side]
        while sides[-1] > 2000:
            sides.append(sides[-1] // 4)
        for level, length in enumerate(sides):
            pixels = levels[level].asarray() if level < len(levels) else np.zeros((0, 0, 3), np.uint8)
            tiff.write(
                _tiles(length, pixels, glass), shape=(length, length, 3), dtype=np.uint8, tile=(_TILE, _TILE),
                photometric="rgb", compression="jpeg", metadata=None, resolution=_MPP_RESOLUTION,
                resolutionunit="CENTIMETER", **({"subfiletype": 1} if level else {"subifds": len(sides) - 1}),
            )  # fmt: skip
    return path


def _tiles(side: int, pixels: np.ndarray, glass: bytes) -> Iterator[bytes]:
    for y in range(0, side, _TILE):
        for x in range(0, side, _TILE):
            part = pixels[y : y + _TILE, x : x + _TILE]
            yield glass if part.shape[:2] != (_TILE, _TILE) else bytes(imagecodecs.jpeg8_encode(part, 90))


def planned_files(run: Run) -> dict[str, int]:
    """Count the files of a run all of whose blocks have objects, from its plan."""
    plan, label_levels = run.image_plan, level_shapes(run.grid.shape)
    tiles = sum(len(plan.grid(0 if level < plan.in_memory else level)) for level in range(len(plan.levels)))
    written = group_levels(run.group_shape, len(label_levels))
    shards = 0
    for level, shape in enumerate(label_levels):
        side = [edge >> level if level < written else edge for edge in run.group_shape]
        shards += -(-shape[0] // side[0]) * -(-shape[1] // side[1])
    return {
        # A file of metadata for each level and for the group; the list of files.
        "image": tiles + len(plan.levels) + 2,
        # The same, the list of labels, the picture and run.json.
        "labels": shards + len(label_levels) + 5,
        "blocks": len(run.grid),
        "batches": 2 * len(block_batches(run)),
    }


class Peak(threading.Thread):
    """Counts the files of a folder again and again.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self._folder, self._is_over, self.most = folder, threading.Event(), 0

    def run(self) -> None:
        """Count until `end`."""
        while not self._is_over.wait(_POLL_SECONDS):
            self.most = max(self.most, count_files(self._folder))

    def end(self) -> int:
        """Return the largest number of files that was seen."""
        self._is_over.set()
        self.join()
        return max(self.most, count_files(self._folder))


def count_files(folder: Path) -> int:
    """Count the files in a folder."""
    return sum(len(files) for _, _, files in os.walk(folder))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=100_000)
    parser.add_argument("--corner", type=int, default=6144)
    parser.add_argument("--all", action="store_true", help="segment all blocks, of a slide of tissue")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "slidesam-benchmark")
    chosen = parser.parse_args()
    out = chosen.folder / f"files-{chosen.side}"
    shutil.rmtree(out, ignore_errors=True)
    settings: dict[str, object] = {"segmenter.kind": "watershed"}
    if chosen.all:
        slide = make_slide(chosen.folder / f"slide-{chosen.side}.tif", chosen.side)
        settings["blocks.tissue"] = "off"
    else:
        slide = make_sparse_slide(chosen.folder / f"sparse-{chosen.side}.tif", chosen.side, chosen.corner)
        mask = np.zeros((1000, 1000), np.uint8)
        mask[: 1000 * chosen.corner // chosen.side, : 1000 * chosen.corner // chosen.side] = 255
        tifffile.imwrite(chosen.folder / "mask.tif", mask)
        settings["blocks.tissue"] = str(chosen.folder / "mask.tif")
    peak = Peak(out)
    peak.start()
    slidesam.segment(slide, out, settings, progress=False)
    most, left = peak.end(), count_files(out)
    run = plan_run(slide, out, make_settings(overrides=settings))
    counted = {
        "image": count_files(out) - count_files(out / ".slidesam") - count_labels(run),
        "labels": count_labels(run),
        "blocks": count_files(run.segment_folder.path / "blocks"),
        "batches": count_files(run.stitch_folder.path / "overlaps") + count_files(run.paint_folder.path / "measures"),
    }
    planned = planned_files(run)
    fixed = left - sum(counted.values())
    table = Table(title=f"{chosen.side} × {chosen.side} px, {len(run.grid)} blocks, default settings")
    for column in ("files", "counted", "planned, all blocks with objects"):
        table.add_column(column, justify="left" if column == "files" else "right")
    for name, number in planned.items():
        table.add_row(name, f"{counted[name]:,}", f"{number:,}")
    table.add_row("others of the work folder", f"{fixed:,}", f"{fixed:,}")
    table.add_row("finished", f"{left:,}", f"{sum(planned.values()) + fixed:,}")
    table.add_row("most, while it ran", f"{most:,}", "")
    Console().print(table)


def count_labels(run: Run) -> int:
    """Count the files of the label image, with what lies beside the store."""
    beside = (run.paths.provenance, run.paths.overlay, run.paths.file_list, run.store / "labels" / "zarr.json")
    return count_files(run.paths.label_image) + sum(path.exists() for path in beside)


if __name__ == "__main__":
    main()
