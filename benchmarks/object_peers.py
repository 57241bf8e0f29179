"""What other tools take to measure and to outline a part of finished labels, and to read all outlines as a stream.

Runs in the environment of the peers, without slidesam: `benchmarks/objects.py` calls it with a store and a GeoJSON file.
"""

from __future__ import annotations

import gzip
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import ijson
import numpy as np
import zarr
from numpy.typing import NDArray
from rasterio.features import shapes
from skimage.measure import regionprops_table

# Of the labels that are measured and outlined; large enough that what surrounds the loops doesn't count.
SIDE = 2048
MEASURED = (
    "label", "centroid", "bbox", "area", "perimeter", "axis_major_length", "axis_minor_length", "eccentricity", "orientation",
    "solidity", "intensity_mean", "intensity_std", "intensity_min", "intensity_max", "intensity_median",
)  # fmt: skip


def main() -> None:
    """Print a line for each tool."""
    store, outlines = Path(sys.argv[1]), Path(sys.argv[2])
    print(read_as_stream(outlines))
    labels = np.asarray(zarr.open_array(store / "labels/cells/0", mode="r")[0, 0, 0, :SIDE, :SIDE]).astype(np.int32)
    image = np.moveaxis(np.asarray(zarr.open_array(store / "0", mode="r")[0, :, 0, :SIDE, :SIDE]), 0, -1)
    # As many channels as are measured of a bright-field slide: two stains beside the colours.
    pixels = np.concatenate([image, image[..., :2].astype(np.float64)], axis=-1)
    count = np.unique(labels).size
    for name, call in {
        "scikit-image, regionprops_table": lambda: regionprops_table(labels, pixels, properties=MEASURED),
        "rasterio, shapes": lambda: list(shapes(labels, mask=labels > 0, connectivity=4)),
        "OpenCV, findContours of each object (not pixel-exact)": lambda: find_contours(labels),
    }.items():
        start_time = time.perf_counter()
        call()
        microseconds = 1e6 * (time.perf_counter() - start_time) / count
        print(f"{name}: {microseconds:.0f} us per object, on {count:,} of them")


def find_contours(labels: NDArray[np.int32]) -> list[Any]:
    """Outline each object in its box."""
    found = []
    for table in [regionprops_table(labels, properties=("label", "bbox"))]:
        for label, y0, x0, y1, x1 in zip(*table.values(), strict=True):
            mask = (labels[y0:y1, x0:x1] == label).astype(np.uint8)
            found.append(cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=(int(x0), int(y0))))
    return found


def read_as_stream(path: Path) -> str:
    """Read all features one by one, and say how much memory that took."""
    start_time, count, points = time.perf_counter(), 0, 0
    with gzip.open(path) as file:
        for feature in ijson.items(file, "features.item"):
            count += 1
            points += len(feature["geometry"]["coordinates"][0])
    seconds = time.perf_counter() - start_time
    return f"ijson: {count:,} features as a stream in {seconds:.0f} s, at most {peak_memory():.0f} MiB in the process"


def peak_memory() -> float:
    """Return the most that this process had resident, in MiB; `getrusage` would count the process that started it, too."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


if __name__ == "__main__":
    main()
