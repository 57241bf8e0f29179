"""The overview of slides that have no coarse level: seconds, and how often each chunk of the slide is decoded for it.

Made slides of one level: JPEG tiles of 256 px in a TIFF; in OME-Zarr, chunks of 4096 px of all colours, and chunks of 2048 px of
eight channels. What is timed is the store's image of a slide that is read in place, in one process, the cache warm.

    .venv/bin/python -m benchmarks.overview [--side 20000]
"""

from __future__ import annotations

import argparse
import math
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from benchmarks.big_slide import make_slide
from slidesam.tasks.grid import Region
from slidesam.tasks.plan import plan_run
from slidesam.tasks.run.run import Run
from slidesam.tasks.settings.parse import make_settings
from slidesam.tasks.slides.reader import SlideReader
from slidesam.tasks.store.image import publish_image

_SETTINGS = {"segmenter.kind": "watershed", "image.convert": "never", "image.rechunk": "never"}


def make_chunks(path: Path, pixels: SlideReader, side: int, channels: int, chunk: int) -> Path:
    """Write an OME-Zarr of one level from the pixels of another slide, one chunk for all channels."""
    if (path / "0").is_dir() and zarr.open_group(path, mode="r").attrs.get("ome"):
        return path
    shutil.rmtree(path, ignore_errors=True)
    group = zarr.create_group(path)
    dtype = np.uint8 if channels == 3 else np.uint16
    array: Any = group.create_array("0", shape=(channels, side, side), chunks=(channels, chunk, chunk), dtype=dtype)
    for y in range(0, side, chunk):
        for x in range(0, side, chunk):
            region = Region(y, x, min(y + chunk, side), min(x + chunk, side))
            colours = pixels.read_planes(region).astype(dtype)
            array[(slice(None), *region.slices)] = colours[np.arange(channels) % 3]
    names = ("red", "green", "blue") if channels == 3 else [f"stain {number}" for number in range(channels)]
    axes = [{"name": "c", "type": "channel"}, *({"name": name, "type": "space"} for name in "yx")]
    datasets = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1.0, 1.0, 1.0]}]}]
    omero = {"channels": [{"label": name, "color": "FFFFFF", "window": {}} for name in names]}
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}], "omero": omero}
    return path


def plan(slide: Path, output: Path) -> Run:
    """Plan a run that takes the slide for one of a single level."""
    shutil.rmtree(output, ignore_errors=True)
    run = plan_run(slide, output, make_settings(overrides=_SETTINGS))
    return run.model_copy(update={"slide": run.slide.model_copy(update={"levels": run.slide.levels[:1]})})


def count_decodes(run: Run) -> float:
    """Count how often a chunk of the slide is decoded for the store's image, on average."""
    counter: Counter[tuple[int, int, int]] = Counter()
    plain_fetch = SlideReader.fetch
    _, of_channels, _, *sides = run.slide.levels[0].chunks

    def fetch(reader: SlideReader, level: int, ts: range, cs: Any, zs: range, region: Region) -> Any:
        rows, columns = (
            range(start // side, -(-stop // side))
            for start, stop, side in zip(region[:2], region[2:], sides, strict=True)
        )
        for layer in {channel // of_channels for channel in cs}:
            counter.update((layer, row, column) for row in rows for column in columns)
        return np.zeros((1, len(cs), 1, *region.shape), reader.slide.dtype)

    SlideReader.fetch = fetch  # type: ignore[method-assign]
    try:
        publish_image(run)
    finally:
        SlideReader.fetch = plain_fetch  # type: ignore[method-assign]
    return counter.total() / len(counter)


def main() -> None:
    """Print a line for each slide."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=20_000)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "slidesam-benchmark")
    chosen = parser.parse_args()
    side = chosen.side
    jpeg = make_slide(chosen.folder / f"slide-{side}.tif", side)
    with SlideReader(plan(jpeg, chosen.folder / "out").slide) as pixels:
        colours = make_chunks(chosen.folder / f"colours-{side}.ome.zarr", pixels, side, 3, 4096)
        stains = make_chunks(chosen.folder / f"stains-{side // 2}.ome.zarr", pixels, side // 2, 8, 2048)
    print(f"{'slide of one level':40} {'decodes per chunk':>18} {'s':>7}")
    for name, slide in (
        ("JPEG tiles of 256 px", jpeg),
        ("chunks of 4096 px", colours),
        ("chunks of 8 channels", stains),
    ):
        run = plan(slide, chosen.folder / "out")
        times = []
        for _ in range(3):
            shutil.rmtree(run.store, ignore_errors=True)
            started = time.perf_counter()
            publish_image(run)
            times.append(time.perf_counter() - started)
        shutil.rmtree(run.store)
        size = f"{math.isqrt(math.prod(run.slide.shape))} px"
        print(f"{f'{name}, {size}':40} {count_decodes(run):18.1f} {sorted(times)[1]:7.1f}")


if __name__ == "__main__":
    main()
