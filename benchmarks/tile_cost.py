"""Seconds per tile of AIS on the CPU, by network and scale, beside micro-sam alone with as many tiles.

Networks of full size with random weights (`tests/support/microsam_checkpoint.py`), which cost what trained ones do. micro-sam
alone is its own function on an image of 2 x 2 tiles; slidesam takes the same image with `tiling: micro-sam`, and with even tiles
an image that has 2 x 2 of them. Turns of the three ways alternate, and the least of each counts.

    make tile-cost        (or: .venv/bin/python -m benchmarks.tile_cost --turns 2)
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from skimage.data import immunohistochemistry

from slidesam.tasks.segmenters.microsam.segmenter import MicroSamSegmenter
from slidesam.tasks.settings.methods import MicroSam
from tests.support.microsam_checkpoint import make_checkpoint

N_TILES = 4
OPTIONS = {"foreground_threshold": 0.7}


def make_image(side: int) -> NDArray[np.uint8]:
    """A square of scikit-image's histology picture, mirrored where it ends."""
    picture = immunohistochemistry()
    return np.ascontiguousarray(np.pad(picture, [(0, max(0, side - 512))] * 2 + [(0, 0)], mode="reflect")[:side, :side])


def measure(model: str, checkpoint: Path, field: int, turns: int) -> tuple[float, float, float]:
    """Return seconds per tile: of micro-sam alone, of slidesam with the same tiles, and with even ones."""
    tile, halo = field * 3 // 4, field // 8
    clipped, even = make_image(2 * tile), make_image(2 * tile + 2 * halo)
    theirs, same, ours = _theirs(model, checkpoint, clipped, tile, halo), *(
        _ours(model, checkpoint, image, tile, halo, tiling)
        for image, tiling in ((clipped, "micro-sam"), (even, "even"))
    )  # fmt: skip
    seconds = [[_time(way) for way in (theirs, same, ours)] for _ in range(turns)]
    found = np.min(seconds, axis=0) / N_TILES
    return float(found[0]), float(found[1]), float(found[2])


def _time(way: Callable[[], Any]) -> float:
    start_time = time.perf_counter()
    way()
    return time.perf_counter() - start_time


def _theirs(model: str, checkpoint: Path, image: NDArray[np.uint8], tile: int, halo: int) -> Callable[[], Any]:
    from micro_sam.automatic_segmentation import automatic_instance_segmentation, get_predictor_and_segmenter

    predictor, segmenter = get_predictor_and_segmenter(
        model, checkpoint=checkpoint, segmentation_mode="ais", is_tiled=True, device="cpu"
    )
    return lambda: automatic_instance_segmentation(
        predictor,
        segmenter,
        image,
        ndim=2,
        tile_shape=(tile, tile),
        halo=(halo, halo),
        verbose=False,
        n_threads=1,
        **OPTIONS,
    )


def _ours(
    model: str, checkpoint: Path, image: NDArray[np.uint8], tile: int, halo: int, tiling: str
) -> Callable[[], Any]:
    settings = MicroSam(
        model=model, checkpoint=str(checkpoint), mode="ais", device="cpu", scaling="tile", tiling=tiling,
        tile_shape=(tile, tile), tile_halo=(halo, halo), field=tile + 2 * halo, options=OPTIONS,
    )  # fmt: skip
    segmenter = MicroSamSegmenter(settings, is_rgb=True)
    return lambda: segmenter.segment(image, {})


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--models", nargs="+", default=["vit_t", "vit_b"])
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    table = Table(box=None)
    for column in (
        "model",
        "field px",
        "micro-sam alone, s/tile",
        "same tiles",
        "ratio",
        "even tiles",
        "ratio",
        "1024² px of slide, s",
    ):
        table.add_column(column, justify="right")
    with tempfile.TemporaryDirectory() as folder:
        for model in chosen.models:
            checkpoint = make_checkpoint(Path(folder) / f"{model}.pt", model=model)
            for field in (1024, 512):
                theirs, same, even = measure(model, checkpoint, field, chosen.turns)
                print(f"{model}, field {field}: {theirs:.2f}, {same:.2f}, {even:.2f} s a tile", flush=True)
                area = even * (1024 / (field * 3 / 4)) ** 2
                table.add_row(
                    model, str(field), f"{theirs:.2f}", f"{same:.2f}", f"{same / theirs:.2f}", f"{even:.2f}",
                    f"{even / theirs:.2f}", f"{area:.1f}",
                )  # fmt: skip
    console = Console(highlight=False, width=130)
    console.print(table)
    console.print(
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; blocks of whole tiles, without what their rims cost"
    )


if __name__ == "__main__":
    main()
