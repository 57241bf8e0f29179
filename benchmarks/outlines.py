"""Outlines of labels and their text: seconds and memory, beside rasterio's polygons and json.dumps on the same labels.

Best of several turns in one process on one thread; compiled loops are loaded before the clock starts. rasterio gives dictionaries
with floating-point coordinates, in which an object of several parts comes several times. json.dumps writes the very features that
our text holds, object by object. Memory is the peak above what the process has with the labels loaded.

    make outlines        (or: .venv/bin/python -m benchmarks.outlines --side 2048 --turns 5)
"""

from __future__ import annotations

import argparse
import ctypes
import json
import time
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rasterio.features import shapes
from rich.console import Console
from rich.table import Table
from scipy.spatial import cKDTree
from shapely import from_wkb, is_valid

from slidesam.tasks.export.geojson import FeatureClasses, encode_features
from slidesam.tasks.export.outlines import Outlines, trace_outlines
from slidesam.tasks.export.shapes import encode_polygons, simplify_outlines
from tests.support.memory import measure_peak

Labels = NDArray[np.uint32]
# 3025 cells in 2048².
SPACING = 2048 / 55
N_MEASUREMENTS = 20
SEED = 20
TOLERANCES = (0.0, 1.0, 2.0, 5.0)


class Text(NamedTuple):
    """What is written beside the outlines of some objects."""

    ids: list[str]
    names: list[str]
    values: NDArray[np.float64]
    classes: FeatureClasses


class Figures(NamedTuple):
    """What one case took.

    Attributes:
        objects: How many objects it has.
        points: Points of their rings.
        size: Bytes of their text.
        seconds: Best time of each part.
        tracing: Peak memory of tracing, in bytes a pixel.
        writing: Peak memory of writing, in bytes of text.
    """

    objects: int
    points: int
    size: int
    seconds: dict[str, float]
    tracing: float
    writing: float


def confluent(side: int, rng: np.random.Generator) -> Labels:
    """Cells that touch on all sides, no background."""
    count = round(side / SPACING)
    corners = np.stack(np.meshgrid(*2 * [np.arange(count)], indexing="ij"), -1).reshape(-1, 2)
    seeds = (corners + rng.uniform(0.08, 0.92, corners.shape)) * side / count
    pixels = np.stack(np.mgrid[:side, :side], -1).reshape(-1, 2)
    _, nearest = cKDTree(seeds).query(pixels, workers=2)
    return (nearest.reshape(side, side) + 1).astype(np.uint32)


def ragged(side: int, rng: np.random.Generator) -> Labels:
    """The same cells with every tenth pixel given to another cell or to background: holes and parts everywhere."""
    cells = confluent(side, rng)
    return np.where(rng.random(cells.shape) < 0.1, np.roll(cells, side // 2) * (rng.random(cells.shape) < 0.5), cells)


def noise(side: int, rng: np.random.Generator) -> Labels:
    """One object on a random half of the pixels: the most points that there can be, nearly."""
    return (rng.random((side, side)) < 0.5).astype(np.uint32)


CASES: dict[str, Callable[[int, np.random.Generator], Labels]] = {
    "confluent": confluent, "ragged": ragged, "noise, one object": noise
}  # fmt: skip


def describe(count: int, rng: np.random.Generator) -> Text:
    """Twenty measurements of every object, of the sizes that they have in practice, and one of three classes."""
    values = rng.random((count, N_MEASUREMENTS)) * 10.0 ** rng.integers(-2, 5, N_MEASUREMENTS)
    ids = [str(uuid.uuid5(uuid.NAMESPACE_OID, str(number))) for number in range(count)]
    named = [("Tumor", (200, 0, 0)), ("Stroma", (150, 200, 150)), ("Immune cells", (160, 90, 160))]
    names = [f"Mean of channel {number}" for number in range(N_MEASUREMENTS)]
    return Text(ids, names, values, FeatureClasses(named, rng.integers(0, 3, count)))


def time_best(turns: int, call: Callable[[], Any]) -> float:
    """Seconds of the fastest turn."""
    best = float("inf")
    for _ in range(turns):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def peak_of(call: Callable[[], Any]) -> int:
    """The most memory that a call takes, in bytes (Linux with glibc)."""
    # What was freed before, and is kept, would serve the call without being seen.
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return measure_peak(call)


def measure(labels: Labels, turns: int, rng: np.random.Generator) -> Figures:
    """All figures of one case."""
    count = int(labels.max())
    text = describe(count, rng)

    def encode(outlines: Outlines) -> bytes:
        return encode_features(outlines, (0, 0), *text)

    encode(trace_outlines(labels[:64, :64].copy(), count))
    tracing = peak_of(lambda: trace_outlines(labels, count))
    outlines = trace_outlines(labels, count)
    writing = peak_of(lambda: encode(outlines))
    features = encode(outlines)
    of_rasterio = labels.astype(np.int32)
    is_object = labels > 0
    seconds = {
        "trace": time_best(turns, lambda: trace_outlines(labels, count)),
        "write": time_best(turns, lambda: encode(outlines)),
        "shapes": time_best(turns, lambda: list(shapes(of_rasterio, mask=is_object, connectivity=4))),
    }
    parsed = json.loads(b"[" + features + b"]")
    seconds["dumps"] = time_best(turns, lambda: [json.dumps(feature, separators=(",", ":")) for feature in parsed])
    objects = int(np.unique(outlines.ring_objects).size)
    figures = tracing / labels.size, writing / len(features)
    return Figures(objects, len(outlines.points), len(features), seconds, *figures)


def measure_simplified(labels: Labels, tolerance: float, turns: int, rng: np.random.Generator) -> list[str]:
    """Points, seconds and bytes of outlines with a tolerance, as a row."""
    count = int(labels.max())
    text, exact = describe(count, rng), trace_outlines(labels, count)
    outlines = simplify_outlines(exact, tolerance)
    polygons = encode_polygons(outlines, (0, 0))
    assert is_valid(from_wkb(polygons.texts)).all()
    objects = len(polygons.texts)
    return [
        f"{tolerance:g}",
        str(len(outlines.points)),
        f"{time_best(turns, lambda: simplify_outlines(exact, tolerance)):.3f}",
        f"{time_best(turns, lambda: encode_features(outlines, (0, 0), *text)):.3f}",
        f"{time_best(turns, lambda: encode_polygons(outlines, (0, 0))):.3f}",
        f"{len(encode_features(outlines, (0, 0), *text)) / objects:.0f}",
        f"{sum(map(len, polygons.texts)) / objects:.0f}",
    ]


def main() -> None:
    """Print one row for each case."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--side", type=int, default=2048)
    parser.add_argument("--turns", type=int, default=5)
    chosen = parser.parse_args()
    table = Table(
        *("case", "objects", "points", "trace: s", "text: s", "rasterio: s", "json.dumps: s", "bytes an object"),
        *("peak of tracing: bytes a pixel", "of text: × its size"),
    )
    for name, make in CASES.items():
        rng = np.random.default_rng(SEED)
        figures = measure(make(chosen.side, rng), chosen.turns, rng)
        table.add_row(
            name,
            str(figures.objects),
            str(figures.points),
            *(f"{figures.seconds[part]:.3f}" for part in ("trace", "write", "shapes", "dumps")),
            f"{figures.size / figures.objects:.0f}",
            f"{figures.tracing:.1f}",
            f"{figures.writing:.1f}",
        )
    console = Console(width=150)
    console.print(f"{chosen.side}², best of {chosen.turns}; {N_MEASUREMENTS} measurements and a class each")
    console.print(table)
    console.print("with fewer points; all polygons are valid by shapely")
    simplified = Table(
        *("case", "tolerance: px", "points", "simplify: s", "text: s", "WKB: s"),
        *("text: bytes an object", "WKB: bytes an object"),
    )
    for name in ("confluent", "ragged"):
        labels = CASES[name](chosen.side, np.random.default_rng(SEED))
        for tolerance in TOLERANCES:
            row = measure_simplified(labels, tolerance, min(chosen.turns, 3), np.random.default_rng(SEED))
            simplified.add_row(name, *row)
    console.print(simplified)


if __name__ == "__main__":
    main()
