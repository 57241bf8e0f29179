"""What the files of the objects add to a run: seconds of each stage, and the share of what is written after the labels.

A real slide (../shared/data, left out where that is absent) and a made one, with the watershed, which is the quickest segmenter:
with any other the share is smaller. Two workers of one thread, without Prefect's engine.

    make export-share        (or: .venv/bin/python -m benchmarks.export_share --side 20000)
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

from dask.distributed import Client
from rich.console import Console
from rich.table import Table

import slidesam
from benchmarks.big_slide import make_slide

REAL_SLIDE = Path(__file__).resolve().parents[2] / "shared" / "data" / "svs_cmu1_small" / "CMU-1-Small-Region.svs"
SETTINGS = {"segmenter.kind": "watershed"}
EXPORTS = ("finding objects", "describing objects")


class Clock:
    """Note when each stage is first heard of."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.begins: dict[str, float] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Be told of progress."""
        self.begins.setdefault(stage, time.perf_counter() - self.start)


def measure(slide: Path, output: Path, client: Client) -> tuple[int, float, float]:
    """Return the number of objects, the seconds of the whole run, and those from the first file of the objects on."""
    clock = Clock()
    result = slidesam.segment(slide, output, SETTINGS, client=client, progress=clock)
    seconds = time.perf_counter() - clock.start
    begin = min(clock.begins[stage] for stage in EXPORTS if stage in clock.begins)
    return len(result.objects), seconds, seconds - begin


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=20_000, help="side of the made slide in pixels")
    parser.add_argument("--folder", type=Path, help="where the made slide and the results stay; default: nowhere")
    chosen = parser.parse_args()
    table = Table("slide", "objects", "run, s", "table, outlines, report: s", "share")
    with (
        tempfile.TemporaryDirectory() as folder,
        Client(n_workers=2, threads_per_worker=1, memory_limit=0, dashboard_address=None) as client,
    ):
        place = chosen.folder or Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        slides = [REAL_SLIDE] if REAL_SLIDE.exists() else []
        slides.append(make_slide(place / f"made-{chosen.side}.tif", chosen.side))
        for slide in slides:
            # Once before, so that compiled loops are there.
            output = Path(tempfile.mkdtemp(dir=place))
            if slide == slides[0]:
                measure(slide, output / "warm", client)
            objects, seconds, exports = measure(slide, output, client)
            table.add_row(slide.stem, f"{objects:,}", f"{seconds:.1f}", f"{exports:.1f}", f"{exports / seconds:.0%}")
            print(f"{slide.stem}: {objects} objects, {seconds:.1f} s, of which exports {exports:.1f} s", flush=True)
    console = Console(highlight=False, width=110)
    console.print(table)
    console.print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
