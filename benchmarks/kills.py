"""kill -9 of everything at random moments, the same command again each time: equal results, and nothing finished is done twice.

The command, its server and its workers are killed together. What was computed is counted from a log that the segmenter writes,
what was finished from the done-marks at each kill.
tests/flows/slide/test_faults.py kills a single worker, and a Dask scheduler of its own.

    make kills        (or: .venv/bin/python -m benchmarks.kills --kills 20)
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import tifffile
import yaml
from numpy.typing import NDArray
from rich.console import Console
from scipy import ndimage

SIDE, BLOCK = 3584, 512


def pieces(image: NDArray[Any], log: str) -> NDArray[np.int32]:
    """Connected bright pieces; writes a line per block: what tells it from others, a hash of its pixels."""
    time.sleep(0.1)
    with os.fdopen(os.open(log, os.O_APPEND | os.O_CREAT | os.O_WRONLY), "w") as stream:
        stream.write(hashlib.sha1(np.ascontiguousarray(image), usedforsecurity=False).hexdigest() + "\n")
    labels: NDArray[np.int32] = ndimage.label(image > 150)[0].astype(np.int32)
    return labels


def make(path: Path, seed: int) -> Path:
    """A grey slide of blobs, in tiles."""
    rng = np.random.default_rng(seed)
    image = (ndimage.gaussian_filter(rng.random((SIDE, SIDE), np.float32), 4) - 0.5) * 3000 + 120
    tifffile.imwrite(path, np.clip(image, 0, 255).astype(np.uint8), tile=(256, 256), compression="zlib")
    return path


def command(slide: Path, output: Path, settings: Path, scheduler: str | None = None) -> list[str]:
    """The command as a person gives it."""
    where = ["--workers", "2"] if scheduler is None else ["--scheduler", scheduler]
    return [
        str(Path(sys.executable).with_name("slidesam")), "segment", str(slide), "-o", str(output),
        "--settings", str(settings), *where,
    ]  # fmt: skip


def start(words: list[str], home: Path) -> subprocess.Popen[bytes]:
    """Starts it as a process group of its own."""
    environment = {**os.environ, "PREFECT_HOME": str(home), "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    return subprocess.Popen(
        words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the command and to all that it started, which is more than its group: the server has its own."""
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGKILL)
    for each in family:
        try:
            each.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()


def marks(output: Path) -> int:
    """Blocks with a done-mark."""
    return len(list(output.glob(".slidesam/*/*/segment-*/marks/[0-9]*.json")))


def stage_of(output: Path) -> str:
    """Which stage a killed run was at, from what lies there."""
    for pattern, name in (
        ("*.run.json", "finished"), (".slidesam/*/*/paint-*/marks/*", "paint"), (".slidesam/*/*/stitch-*", "match"),
        (".slidesam/*/*/segment-*/marks/*", "segment"), (".slidesam/*/*/segment-*", "prepare"),
        (".slidesam/*/.image/convert-*/marks/*", "convert"), (".slidesam", "plan"),
    ):  # fmt: skip
        if any(output.glob(pattern)):
            return name
    return "start"


def digest(output: Path) -> str:
    """Hash of all label and image files, and their names."""
    found = hashlib.sha256()
    for path in sorted(output.glob("*.ome.zarr/**/*")):
        if path.is_file() and ".partial" not in path.name:
            found.update(str(path.relative_to(output)).encode() + b"\0" + path.read_bytes())
    return found.hexdigest()


def main() -> None:
    """Runs, kills, runs again, and compares."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    console, chance = Console(highlight=False), random.Random(chosen.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        slide, log = make(folder / "slide.tif", chosen.seed), folder / "log"
        settings = folder / "settings.yaml"
        settings.write_text(yaml.safe_dump({
            "segmenter": {"kind": "function", "target": "benchmarks.kills:pieces", "options": {"log": str(log)}},
            "blocks": {"block_shape": BLOCK, "halo": 32, "blocks_per_task": 4},
        }))  # fmt: skip
        n_blocks = (-(-SIDE // BLOCK)) ** 2
        began = time.monotonic()
        process = start(command(slide, folder / "whole", settings), folder / "home")
        _, words = process.communicate()
        if process.returncode:
            raise SystemExit(words.decode())
        length = time.monotonic() - began
        expected = digest(folder / "whole")
        console.print(f"undisturbed: {length:.0f} s, {n_blocks} blocks, {len(log.read_text().splitlines())} computed")

        log.unlink()
        output, killed = folder / "out", 0
        where: list[str] = []
        again = 0
        while True:
            before = marks(output)
            computed = len(log.read_text().splitlines()) if log.exists() else 0
            process = start(command(slide, output, settings), folder / "home")
            # In its first seconds it only starts its server.
            wait = chance.uniform(8, length) if killed < chosen.kills else None
            try:
                _, words = process.communicate(timeout=wait)
            except subprocess.TimeoutExpired:
                kill_all(process)
                killed += 1
                where.append(stage_of(output))
            now = len(log.read_text().splitlines()) if log.exists() else 0
            # Blocks that were computed without a mark may be computed again: at most one per worker and kill.
            again += max(0, now - computed - (marks(output) - before))
            if process.returncode == 0 and killed >= chosen.kills:
                break
            if process.returncode == 0:
                # It finished between two kills: from the start again, so that kills meet all stages.
                if digest(output) != expected:
                    raise SystemExit("the result differs")
                subprocess.run(["rm", "-rf", str(output)], check=True)
                log.unlink()
            elif process.returncode > 0:
                raise SystemExit(words.decode())
        lines = log.read_text().splitlines()
        twice = len(lines) - len(set(lines))
        same = digest(output) == expected
        stages = {stage: where.count(stage) for stage in dict.fromkeys(where)}
        facts = json.loads(next(output.glob("*.run.json")).read_text())
        console.print(f"{killed} kills of the whole group, at: {stages}")
        console.print(f"finished with {facts['objects']} objects; files equal to the undisturbed run's: {same}")
        console.print(
            f"computed without leaving a mark over all kills: {again} (at most {2 * killed}: what two workers were at); "
            f"in the last slide {len(lines)} computations of {len(set(lines))} blocks, {twice} again"
        )
        if not same or again > 2 * killed:
            raise SystemExit("FAILED")


if __name__ == "__main__":
    main()
