"""What the viewer takes for a tile: milliseconds for image, outlines and density, and for the row of an object.

    make view-tiles     # or: .venv/bin/python -m benchmarks.view_tiles --side 20000, or with the path of a result

A made slide (benchmarks/big_slide.py) whose objects touch each other (benchmarks/objects.py), or a result of yours. Tiles are
drawn at random places, none of them twice, one after the other, with the store in the page cache; the answer is a compressed
picture, as the browser gets it. Milliseconds are the median and the 95th percentile.
"""

from __future__ import annotations

import argparse
import math
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from starlette.testclient import TestClient

import slidesam
from benchmarks.big_slide import make_slide
from benchmarks.objects import TARGET, workers
from slidesam.flows.cli.finished import finished_runs
from slidesam.tasks.view.app import make_app
from slidesam.tasks.view.image_tiles import TILE
from slidesam.tasks.view.outline_tiles import FINENESS
from slidesam.tasks.view.viewed import ViewedResult

TILES = 60


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", nargs="?", type=Path, help="a result, <name>.ome.zarr")
    parser.add_argument("--side", type=int, default=20_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(arguments.store or make_result(Path(folder), arguments.side))


def make_result(folder: Path, side: int) -> Path:
    """Segment a made slide; return the store."""
    settings = {
        "segmenter.kind": "function", "segmenter.target": TARGET, "blocks.block_shape": 2048, "blocks.halo": 64,
        "blocks.tissue": "off", "run.verify": "none", "output.formats": ["table"],
    }  # fmt: skip
    slide = make_slide(folder / f"slide-{side}.tif", side)
    with workers() as client:
        return slidesam.segment(slide, folder / "out", settings, client=client, progress=False).store


def measure(store: Path) -> None:
    """Open a result, and ask for tiles and rows."""
    start = time.perf_counter()
    viewed = ViewedResult(store.parent, finished_runs(store))
    opened = time.perf_counter()
    label, (height, width) = next(iter(viewed.labels)), viewed.slide.shape
    client = TestClient(make_app(viewed, "token", print), base_url="http://127.0.0.1/token/")
    summary = client.get(f"labels/{label}/summary.json").json()
    counted = time.perf_counter()
    print(f"{width} × {height} px, {viewed.labels[label].objects:,} objects of {summary['diameter'] or 0:.0f} px")
    print(f"opened in {opened - start:.2f} s, objects counted in {counted - opened:.2f} s\n")
    print(f"{'':<34}{'tiles':>6}{'median ms':>11}{'95 %':>8}{'kB':>7}")
    random = np.random.default_rng(0)
    n_levels = math.ceil(math.log2(max(height, width) / TILE)) + 1
    for level in range(n_levels):
        rows, columns = (math.ceil(size / TILE / 2**level) for size in (height, width))
        places = random.permutation(rows * columns)[:TILES]
        paths = [f"image/{level}/{place // columns}/{place % columns}.jpg" for place in places]
        report(f"image, 1 : {2**level}", client, paths)
    for level in range(n_levels + 2):
        scale = 2**level / FINENESS
        rows, columns = (math.ceil(size / TILE / scale) for size in (height, width))
        places = random.permutation(rows * columns)[:TILES]
        paths = [f"labels/{label}/outlines/{level}/{place // columns}/{place % columns}.png" for place in places]
        report(f"outlines, 1 : {scale:g}", client, paths)
    report("density, first time", client, [f"labels/{label}/density.png"])
    report("density, again", client, [f"labels/{label}/density.png"] * 10)
    numbers = random.integers(1, viewed.labels[label].objects, TILES)
    report("row of an object, by number", client, [f"labels/{label}/objects/{number}" for number in numbers])
    points = np.stack([random.integers(0, height, TILES), random.integers(0, width, TILES)], axis=1)
    report("row of an object, by a click", client, [f"labels/{label}/at/{y}/{x}" for y, x in points])
    print(f"\npeak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:.0f} MiB")


def report(name: str, client: TestClient, paths: list[str]) -> None:
    """Ask for each path and print what it took; the first tile of a kind doesn't count, as it loads what is needed."""
    seconds, sizes = [], []
    for path in paths[:1] * (len(paths) > 1) + paths:
        start = time.perf_counter()
        answer = client.get(path)
        seconds.append(time.perf_counter() - start)
        assert answer.status_code == 200, answer.text
        sizes.append(len(answer.content))
    timed = 1000 * np.array(seconds[1:] if len(paths) > 1 else seconds)
    print(
        f"{name:<34}{len(timed):>6}{np.median(timed):>11.1f}{np.percentile(timed, 95):>8.1f}{np.mean(sizes) / 1e3:>7.0f}"
    )


if __name__ == "__main__":
    main()
