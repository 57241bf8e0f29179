"""Seconds and peak memory of one block, per segmenter: what local workers are sized by.

Each row is a process of its own that segments one block of the demo's picture twice, the second time measured. "kept" is a
process that keeps memory which it has freed (as the workers of the local cluster do) instead of giving it back to the system.

    .venv/bin/python -m benchmarks.block [--checkpoint FILE] [--sides 1024 2048] [--threads 2] [--only AIS] [--kept]

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
from itertools import product
from pathlib import Path
from types import SimpleNamespace

from rich.console import Console
from rich.table import Table

KEPT = {"MALLOC_MMAP_THRESHOLD_": str(2**35), "MALLOC_TRIM_THRESHOLD_": str(2**35)}
SEGMENTERS = {
    "watershed": {"kind": "watershed"},
    "micro-sam AIS": {"kind": "micro-sam", "mode": "ais", "device": "cpu"},
    # With random weights these let tens of prompts through, not thousands.
    "micro-sam APG": {
        "kind": "micro-sam",
        "mode": "apg",
        "device": "cpu",
        "options": {"foreground_threshold": 0.8, "center_distance_threshold": 0.15, "boundary_distance_threshold": 0.4},
    },
    "micro-sam AMG, 8 points a side": {
        "kind": "micro-sam",
        "mode": "amg",
        "device": "cpu",
        "options": {"points_per_side": 8},
    },
    # micro-sam's default.
    "micro-sam AMG, 32 points a side": {"kind": "micro-sam", "mode": "amg", "device": "cpu"},
}


def measure(settings: dict, side: int) -> dict[str, float]:
    """Seconds and GiB of one block, in this process: what its segmenter sees, tiled as a run does it."""
    from slidesam.tasks.folder.demo import demo_image
    from slidesam.tasks.segmenters import load_segmenter, segmenter_identity
    from slidesam.tasks.segmenters.microsam.sizes import with_tiles
    from slidesam.tasks.segmenters.microsam.weights import choose_model
    from slidesam.tasks.settings.methods import MicroSam
    from slidesam.tasks.settings.parse import make_settings

    whole = make_settings({"segmenter": settings})
    seen = side + 2 * whole.blocks.halo
    chosen = whole.segmenter
    if isinstance(chosen, MicroSam):
        chosen = with_tiles(chosen, choose_model(chosen, is_rgb=True), (seen, seen))
    segmenter = load_segmenter(chosen.model_dump_json(), True, segmenter_identity(chosen, True))
    image = demo_image(seen)
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
        "--sides",
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
    parser.add_argument("--sides", type=int, nargs="+", default=[1024, 2048], help="of blocks in pixels, without halo")
    parser.add_argument("--kept", action="store_true", help="only processes that keep memory, as local workers do")
    parser.add_argument("--only", default="", help="segmenters whose name has this")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(json.loads(arguments.measure), arguments.sides[0])))
        return
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = arguments.checkpoint or Path(scratch) / "vit_b.pt"
        if not checkpoint.exists():
            subprocess.run(
                [sys.executable, "-W", "ignore", "-m", "tests.support.microsam_checkpoint", str(checkpoint)], check=True
            )
        table = Table(title=f"one block, {arguments.threads} threads, CPU", box=None)
        for column in ("segmenter", "block px", "memory", "seconds", "ratio", "peak GiB", "objects"):
            table.add_column(column, justify="left" if column in ("segmenter", "memory") else "right")
        for name, side in product([name for name in SEGMENTERS if arguments.only in name], arguments.sides):
            settings = SEGMENTERS[name]
            weights = {"checkpoint": str(checkpoint)} if settings["kind"] == "micro-sam" else {}
            first = None
            for words, environment in (("given back", {}), ("kept", KEPT))[arguments.kept :]:
                row = in_own_process(settings | weights, side, arguments.threads, environment)
                first = first or row["seconds"]
                numbers = (
                    f"{row['seconds']:.1f}",
                    f"{row['seconds'] / first:.2f}",
                    f"{row['peak']:.1f}",
                    f"{row['objects']:.0f}",
                )
                table.add_row(name, str(side), words, *numbers)
                print(name, side, words, *numbers, file=sys.stderr)
        Console().print(table)


if __name__ == "__main__":
    main()
