"""Many tiny slides in one command: memory of each process, CPU seconds and the database per slide, and what is left afterwards.

A slide is four blocks whose computing takes a few milliseconds, so that nearly all that is measured is overhead. Memory is the
process's own (unique set size), since pages that it shares with others say nothing about growth.

    make soak        (or: .venv/bin/python -m benchmarks.soak --slides 60)
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import tifffile
import yaml
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy import ndimage

BLOCK = 128
# Goals: seconds of wall time per slide beyond computing, and MiB per slide by which a process grows in the second half.
MOST_SECONDS, MOST_GROWTH = 1.0, 0.1


def bright_pieces(image: NDArray[Any]) -> NDArray[np.int32]:
    """Label connected bright pieces."""
    labels: NDArray[np.int32] = ndimage.label(image > 150)[0].astype(np.int32)
    return labels


@dataclass(frozen=True)
class Sample:
    """How things stand after some slides.

    Attributes:
        slides: Number of finished slides.
        seconds: Since the command's start.
        memory: MiB of each process's own memory, by role.
        cpu: CPU seconds so far, by role.
        files: Open files of the flow's process.
        database: MB of Prefect's database.
    """

    slides: int
    seconds: float
    memory: dict[str, float]
    cpu: dict[str, float]
    files: int
    database: float


def write_slides(folder: Path, number: int) -> Path:
    """Write grey slides of four blocks each."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for k in range(number):
        image = (ndimage.gaussian_filter(rng.random((2 * BLOCK, 2 * BLOCK), np.float32), 4) - 0.5) * 3000 + 120
        tifffile.imwrite(
            folder / f"{k:04}.tif", np.clip(image, 0, 255).astype(np.uint8), tile=(128, 128), compression="zlib"
        )
    return folder


def role_of(process: psutil.Process, flow: int) -> str | None:
    """Return what a process of the command does; None if it isn't one of those that live as long as the command."""
    try:
        words = " ".join(process.cmdline())
    except psutil.Error:
        return None
    if process.pid == flow:
        return "flow"
    if "prefect" in words.split("--multiprocessing")[0]:
        return "server"
    return "worker" if "spawn_main" in words else None


def take_sample(flow: psutil.Process, slides: int, start: float, home: Path) -> Sample:
    """Measure all processes of the command."""
    memory: dict[str, float] = {}
    cpu: dict[str, float] = {}
    for process in [flow, *flow.children(recursive=True)]:
        role = role_of(process, flow.pid)
        if role is None:
            continue
        try:
            times, unique = process.cpu_times(), process.memory_full_info().uss
        except psutil.Error:
            continue
        # Of several workers the largest counts: each has its share of the slides.
        memory[role] = max(memory.get(role, 0.0), unique / 2**20)
        cpu[role] = cpu.get(role, 0.0) + times.user + times.system
    database = sum(path.stat().st_size for path in home.glob("prefect.db*")) / 1e6
    return Sample(slides, time.monotonic() - start, memory, cpu, flow.num_fds(), database)


def run_command(folder: Path, slides: Path, workers: int) -> tuple[list[Sample], int]:
    """Run the command on all slides; sample after each slide; return the samples and its exit code."""
    settings = folder / "settings.yaml"
    settings.write_text(yaml.safe_dump({
        "segmenter": {"kind": "function", "target": "benchmarks.soak:bright_pieces"},
        "blocks": {"block_shape": BLOCK, "halo": 16},
    }))  # fmt: skip
    (temporary := folder / "tmp").mkdir()
    environment = {
        **os.environ, "PREFECT_HOME": str(folder / "home"), "TMPDIR": str(temporary),
        "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
    }  # fmt: skip
    command = [
        str(Path(sys.executable).with_name("slidesam")), "segment", str(slides), "-o", str(folder / "out"),
        "--settings", str(settings), "--workers", str(workers), "--allow", "benchmarks.soak:bright_pieces",
    ]  # fmt: skip
    start, samples = time.monotonic(), list[Sample]()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        flow = psutil.Process(process.pid)
        while process.poll() is None:
            finished = len(list((folder / "out").glob("*.run.json")))
            if finished > (samples[-1].slides if samples else 0):
                try:
                    samples.append(take_sample(flow, finished, start, folder / "home"))
                except psutil.Error:
                    continue
            time.sleep(0.25)
    return samples, process.returncode


def find_leftovers(folder: Path) -> list[str]:
    """List what a finished command should not have left: processes, temporary and partial files, locks, start-marks."""
    found = [f"process {process.pid}" for process in processes_of(folder)]
    # Dask's two locks are shared by all that use Dask on a machine.
    found += [str(p) for p in (folder / "tmp").rglob("*") if p.is_file() and p.parent.name != "dask-scratch-space"]
    for pattern in ("*.partial*", "*.tmp", "lock.json", "starts/*", "*.break*", "*.pem"):
        found += [str(path) for path in (folder / "out").rglob(pattern)]
    return found


def processes_of(folder: Path) -> list[psutil.Process]:
    """List the processes whose Prefect is at home in a folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("PREFECT_HOME") == str(folder / "home"):
                found.append(process)
        except psutil.Error:
            continue
    return found


def growth(samples: list[Sample], role: str) -> float:
    """Return MiB per slide by which a role's memory grew over the second half, as the slope of a line through it."""
    half = [sample for sample in samples if sample.slides >= samples[-1].slides / 2 and role in sample.memory]
    slides = [float(sample.slides) for sample in half]
    return float(np.polyfit(slides, [sample.memory[role] for sample in half], 1)[0]) if len(half) > 2 else 0.0


def make_table(samples: list[Sample], every: int) -> Table:
    """Make the table of some of the samples."""
    table = Table()
    roles = ("flow", "server", "worker")
    for column in (
        "slides",
        "s",
        *(f"{role} MiB" for role in roles),
        *(f"{role} CPU-s" for role in roles),
        "fds",
        "db MB",
    ):
        table.add_column(column, justify="right")
    following = 1
    for sample in samples:
        if sample.slides < following and sample is not samples[-1]:
            continue
        following = sample.slides - sample.slides % every + every
        table.add_row(
            str(sample.slides), f"{sample.seconds:.0f}", *(f"{sample.memory.get(role, 0):.0f}" for role in roles),
            *(f"{sample.cpu.get(role, 0):.1f}" for role in roles), str(sample.files), f"{sample.database:.1f}",
        )  # fmt: skip
    return table


def main() -> None:
    """Runs the command, prints the table, and fails if something grows or is left."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slides", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    chosen = parser.parse_args()
    console = Console(highlight=False, width=130)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        samples, code = run_command(folder, write_slides(folder / "slides", chosen.slides), chosen.workers)
        if code or len(samples) < 2:
            raise SystemExit((folder / "log").read_text()[-4000:])
        console.print(make_table(samples, max(1, chosen.slides // 10)))
        first, last = samples[0], samples[-1]
        number = last.slides - first.slides
        seconds = (last.seconds - first.seconds) / number
        cpu = ", ".join(f"{role} {(last.cpu[role] - first.cpu[role]) / number:.2f}" for role in last.cpu)
        grown = {role: growth(samples, role) for role in last.memory}
        leftovers = find_leftovers(folder)
        console.print(f"per slide after the first: {seconds:.2f} s; CPU seconds: {cpu}")
        console.print(
            "growth per slide in the second half, MiB: " + ", ".join(f"{k} {v:.2f}" for k, v in grown.items())
        )
        console.print(
            f"database per slide: {(last.database - first.database) / number:.2f} MB; left over: {len(leftovers)}"
        )
        for leftover in leftovers:
            console.print(f"  {leftover}")
        if seconds > MOST_SECONDS or max(grown.values()) > MOST_GROWTH or leftovers:
            raise SystemExit("FAILED")


if __name__ == "__main__":
    main()
