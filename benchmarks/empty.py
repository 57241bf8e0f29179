"""What leaving out background saves: a made slide of which a twentieth is tissue, segmented with `blocks.tissue` auto and off.

The command as a person gives it, conversion and start-up included; the objects that only one of the two found are counted.

    make empty        (or: .venv/bin/python -m benchmarks.empty --side 12288)
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.big_slide import make_empty_slide


def run(slide: Path, output: Path, tissue: str, block: int) -> tuple[float, dict[str, Any], NDArray[np.bool_]]:
    """Seconds, provenance, and where objects are."""
    shutil.rmtree(output, ignore_errors=True)
    command = [
        str(Path(sys.executable).with_name("slidesam")), "segment", str(slide), "-o", str(output), "--segmenter", "watershed",
        "--workers", "2", "--set", f"blocks.tissue={tissue}", "--set", f"blocks.block_shape={block}",
    ]  # fmt: skip
    started = time.perf_counter()
    subprocess.run(
        command, check=True, env={**os.environ, "PREFECT_HOME": str(output.parent / "prefect")}, capture_output=True
    )
    seconds = time.perf_counter() - started
    facts = json.loads(next(output.glob("*.run.json")).read_text())
    labels = zarr.open_array(next(output.glob("*.ome.zarr")) / "labels" / "cells" / "0", mode="r")
    return seconds, facts, np.asarray(labels[0, 0, 0]) > 0


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=12_288)
    parser.add_argument("--block", type=int, default=1024)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "slidesam-benchmark")
    chosen = parser.parse_args()
    slide = make_empty_slide(chosen.folder / f"empty-{chosen.side}.tif", chosen.side)
    table = Table(title=f"{chosen.side} px, 5 % tissue, blocks of {chosen.block} px, 2 workers, watershed")
    for column in ("tissue", "blocks", "all s", "segmenting CPU s", "objects"):
        table.add_column(column, justify="left" if column == "tissue" else "right")
    found = {}
    for tissue in ("off", "auto"):
        seconds, facts, found[tissue] = run(slide, chosen.folder / "out", tissue, chosen.block)
        kept = facts["blocks"] - len(facts["blocks_without_tissue"])
        spent = facts["task_seconds"]["segment"]
        table.add_row(tissue, f"{kept} of {facts['blocks']}", f"{seconds:.1f}", f"{spent:.1f}", f"{facts['objects']:,}")
    Console().print(table)
    lost = np.count_nonzero(found["off"] & ~found["auto"])
    Console().print(f"object pixels that only `off` has: {lost} of {np.count_nonzero(found['off'])}")


if __name__ == "__main__":
    main()
