"""Seconds and peak memory of one block, per segmenter: what local workers are sized by.

Each row is a process of its own that segments one block of the demo's picture twice, the second time measured. "kept" is a
process that keeps memory which it has freed (as the workers of the local cluster do) instead of giving it back to the system.

    .venv/bin/python -m benchmarks.block [--checkpoint FILE] [--side 2048] [--threads 2]

Without --checkpoint a ViT-B with random weights is made (400 MB, in a temporary folder); time doesn't depend on the encoder's
weights, but the decoder's watershed takes longer with more objects.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

from rich.console import Console
from rich.table import Table

KEPT = {"MALLOC_MMAP_THRESHOLD_": str(2**35), "MALLOC_TRIM_THRESHOLD_": str(2**35)}
SEGMENTERS = {
    "watershed": {"kind": "watershed"},
    "micro-sam AIS": {"kind": "micro-sam", "mode": "ais", "device": "cpu"},
    "micro-sam AMG, 8 points a side": {
        "kind": "micro-sam",
        "mode": "amg",
        "device": "cpu",
        "options": {"points_per_side": 8},
    },
}


def measure(settings: dict, side: int) -> dict[str, float]:
    """Seconds and GiB of one block, in this process."""
    from slidesam.tasks.config import make_settings
    from slidesam.tasks.demo import demo_image
    from slidesam.tasks.segmenters import load_segmenter, segmenter_identity

    chosen = make_settings({"segmenter": settings}).segmenter
    segmenter = load_segmenter(chosen.model_dump_json(), True, segmenter_identity(chosen, True))
    image = demo_image(side)
    params = segmenter.prepare(image, SimpleNamespace(mpp=(0.5, 0.5)))  # type: ignore[arg-type]
    segmenter.segment(image, params)
    started = time.perf_counter()
    labels = segmenter.segment(image, params)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"seconds": seconds, "peak": peak, "objects": int(labels.max())}


def in_own_process(settings: dict, side: int, threads: int, environment: dict[str, str]) -> dict[str, float]:
    """`measure` in a fresh process."""
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "benchmarks.block",
        "--measure",
        json.dumps(settings),
        "--side",
        str(side),
    ]
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), **environment}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=env)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--side", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(json.loads(arguments.measure), arguments.side)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = arguments.checkpoint or Path(scratch) / "vit_b.pt"
        if not checkpoint.exists():
            subprocess.run(
                [sys.executable, "-W", "ignore", "-m", "tests.microsam_checkpoint", str(checkpoint)], check=True
            )
        table = Table(title=f"one block of {arguments.side} px, {arguments.threads} threads, CPU", box=None)
        for column in ("segmenter", "memory", "seconds", "ratio", "peak GiB", "objects"):
            table.add_column(column, justify="left" if column in ("segmenter", "memory") else "right")
        for name, settings in SEGMENTERS.items():
            weights = {"checkpoint": str(checkpoint)} if settings["kind"] == "micro-sam" else {}
            rows = {
                words: in_own_process(settings | weights, arguments.side, arguments.threads, environment)
                for words, environment in (("given back", {}), ("kept", KEPT))
            }
            for words, row in rows.items():
                ratio = row["seconds"] / rows["given back"]["seconds"]
                table.add_row(
                    name, words, f"{row['seconds']:.1f}", f"{ratio:.2f}", f"{row['peak']:.1f}", f"{row['objects']}"
                )
        Console().print(table)


if __name__ == "__main__":
    main()
