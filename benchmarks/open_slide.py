"""What opening a slide takes in the process that computes a block: seconds and system calls.

    make open-slide     # or: python -m benchmarks.open_slide [SLIDE ...]; needs strace, and for the first slide ../shared/data

Three steps, each in a process of its own that has imported everything and read small slides before, so that neither
imports nor the start of Zarr's event loop count:

    inspect         what planning a run does once
    reopen          what each task does first, with the facts that came with it
    read one block  the outer region of a block of 1024 px in the middle of the slide, as `segment_blocks` reads it, with the
                    file in the page cache

Milliseconds are medians of five processes. System calls are those of all threads during the step, in one more process under
`strace -f`: with Zarr, the waiting of its threads for each other varies. Message: bytes of the facts as they travel with each
task.
"""

from __future__ import annotations

import json
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tifffile
import zarr

from slidesam.tasks.grid import BlockGrid
from slidesam.tasks.slides.inspect import inspect_slide
from slidesam.tasks.slides.reader import SlideReader

SVS = Path("../shared/data/svs_cmu1_small/CMU-1-Small-Region.svs")
STEPS = ("inspect", "reopen", "read one block")
MARK = "/begin-or-end-of-a-step"  # a file that isn't there: asking for it shows in the log of system calls
CHUNKS, CHUNK = (50, 100), 64  # 5000 chunks


def main() -> None:
    """Measure and print the table."""
    with tempfile.TemporaryDirectory() as folder:
        slides = [Path(name) for name in sys.argv[1:]] or [SVS, make_zarr(Path(folder) / "5000 chunks.ome.zarr")]
        warm_up = [make_zarr(Path(folder) / "small.ome.zarr", (2, 2)), Path(folder) / "small.tif"]
        tifffile.imwrite(warm_up[1], np.zeros((64, 64, 3), np.uint8), tile=(32, 32), compression="jpeg")
        print(f"{'slide':<28}{'step':<18}{'ms':>8}{'system calls':>14}{'message':>9}")
        for slide in filter(Path.exists, slides):
            for step in STEPS:
                runs = [json.loads(run_step(slide, warm_up, step)) for _ in range(5)]
                milliseconds = 1000 * statistics.median(run["seconds"] for run in runs)
                calls, message = count_calls(slide, warm_up, step), runs[0]["message"]
                print(f"{slide.name:<28}{step:<18}{milliseconds:>8.1f}{calls:>14}{message:>9}", flush=True)


def make_zarr(path: Path, chunks: tuple[int, int] = CHUNKS) -> Path:
    """Make an OME-Zarr 0.4 with this many chunks in a single level, a file each."""
    group = zarr.create_group(path, zarr_format=2)
    shape = (chunks[0] * CHUNK, chunks[1] * CHUNK)
    group.create_array("0", shape=shape, chunks=(CHUNK, CHUNK), dtype="uint8")[...] = np.random.default_rng(0).integers(
        1, 255, shape, np.uint8
    )
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "yx"]
    scale = [{"type": "scale", "scale": [0.5, 0.5]}]
    datasets = [{"path": "0", "coordinateTransformations": scale}]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]
    return path


def run_step(slide: Path, warm_up: list[Path], step: str, *wrapper: str) -> str:
    """Run a step in a process of its own and return what it prints."""
    facts = Path(tempfile.gettempdir()) / "open_slide.pickle"
    facts.write_bytes(pickle.dumps([inspect_slide(path) for path in (slide, *warm_up)]))
    command = [*wrapper, sys.executable, "-m", "benchmarks.open_slide", "--step", step, str(facts)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def count_calls(slide: Path, warm_up: list[Path], step: str) -> int:
    """Count the system calls between the beginning and the end of a step."""
    with tempfile.NamedTemporaryFile("r") as log:
        run_step(slide, warm_up, step, "strace", "-f", "-o", log.name)
        calls = [line for line in log if "resumed>" not in line]
    marks = [number for number, line in enumerate(calls) if MARK in line]
    return marks[1] - marks[0] - 1


def step_here(step: str, facts: Path) -> None:
    """Run a step in this process and print its seconds and the size of the facts."""
    slide, *warm_up = pickle.loads(facts.read_bytes())
    block = BlockGrid(slide.shape, (1024, 1024), 128)
    outer = block[len(block) // 2].outer
    for small in warm_up:
        with SlideReader(small) as reader:
            reader.read(BlockGrid(small.shape, small.shape, 0)[0].inner)
    open_reader = SlideReader(slide) if step == "read one block" else None
    Path(MARK).exists()
    started = time.perf_counter()
    if open_reader is not None:
        open_reader.read(outer)
    elif step == "reopen":
        open_reader = SlideReader(slide)
    else:
        inspect_slide(slide.path)
    seconds = time.perf_counter() - started
    Path(MARK).exists()
    if open_reader is not None:
        open_reader.close()
    print(json.dumps({"seconds": seconds, "message": len(pickle.dumps(slide))}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--step"]:
        step_here(sys.argv[2], Path(sys.argv[3]))
    else:
        main()
