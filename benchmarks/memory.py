"""Peak memory of every process of a run, for slides of two sizes: it has to depend on the block, not on the slide.

The command as a person gives it: converting, rechunking (where asked for), segmenting with `watershed`, stitching and exporting,
on a made pyramidal TIFF. Memory as the kernel's high-water mark of each process.

    make memory        (or: .venv/bin/python -m benchmarks.memory --sides 10000 20000)
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.big_slide import make_slide
from benchmarks.peaks import PeakMemory

WAYS = {
    "convert": ["--set", "image.convert=always"],
    "rechunk": ["--set", "image.convert=never", "--set", "image.rechunk=always"],
}


def peaks_of(slide: Path, output: Path, way: str, block: int) -> tuple[dict[str, float], float]:
    """Largest peak in MiB by role, and seconds."""
    shutil.rmtree(output, ignore_errors=True)
    command = [
        str(Path(sys.executable).with_name("slidesam")), "segment", str(slide), "-o", str(output), "--segmenter",
        "watershed", "--workers", "2", "--set", f"blocks.block_shape={block}", *WAYS[way],
    ]  # fmt: skip
    environment = {**os.environ, "PREFECT_HOME": str(output.parent / "prefect")}
    started = time.perf_counter()
    with (
        subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process,
        PeakMemory(process.pid) as peaks,
    ):
        process.wait()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    largest: dict[str, float] = {}
    for peak in peaks.table():
        largest[peak.role] = max(largest.get(peak.role, 0.0), peak.mib)
    return largest, time.perf_counter() - started


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sides", type=int, nargs="+", default=[10_000, 20_000])
    parser.add_argument("--block", type=int, default=2048)
    parser.add_argument("--ways", nargs="+", choices=sorted(WAYS), default=sorted(WAYS))
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "slidesam-benchmark")
    chosen = parser.parse_args()
    console = Console()
    for way in chosen.ways:
        found = {}
        for side in chosen.sides:
            slide = make_slide(chosen.folder / f"slide-{side}.tif", side)
            found[side] = peaks_of(slide, chosen.folder / "out", way, chosen.block)
        table = Table(title=f"{way}, segment, stitch: peak MiB per process, block {chosen.block}")
        for column in ("process", *(f"{side} px" for side in chosen.sides), "last / first"):
            table.add_column(column, justify="left" if column == "process" else "right")
        for role in sorted({role for peaks, _ in found.values() for role in peaks}):
            values = [found[side][0].get(role, 0.0) for side in chosen.sides]
            table.add_row(role, *(f"{value:.0f}" for value in values), f"{values[-1] / max(values[0], 1):.2f}")
        table.add_row("(seconds)", *(f"{found[side][1]:.0f}" for side in chosen.sides), "")
        console.print(table)


if __name__ == "__main__":
    main()
