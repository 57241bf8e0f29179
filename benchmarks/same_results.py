"""Compare the results of two versions of slidesam, number by number: labels, image, blocks, tables of objects.

Three slides are segmented by the command line of the version that `--slidesam` names: the demo slide, and with the data folder
CMU-1 and the mosaic of tissue nuclei, both in blocks of 256 px. Each result is reduced to a digest per kind of array: of its
numbers, not of its files, whose codecs and cuts may change.

    .venv/bin/python -m benchmarks.same_results --slidesam OLD/.venv/bin/slidesam --write old.txt
    .venv/bin/python -m benchmarks.same_results --compare old.txt
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from slidesam.tasks.folder.demo import make_demo_slide
from slidesam.tasks.run.array_files import load_arrays

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
SLIDES = {
    "CMU-1": SHARED / "svs_cmu1_small" / "CMU-1-Small-Region.svs",
    "mosaic_he": SHARED / "mosaic_he" / "dsb_he_mosaic_2560x3200.tif",
}
BLOCKS = ["--segmenter", "watershed", "--set", "blocks.block_shape=256", "--set", "blocks.halo=64"]
DEMO = [
    *("--segmenter", "watershed", "--set", "output.label=nuclei"),
    *("--set", "blocks.block_shape=1024", "--set", "blocks.halo=64"),
]
# What is compared: kind -> pattern below the output folder. Paths are the product's interface, so they are spelt here.
KINDS = {
    "labels": "*.ome.zarr/labels/*/[0-9]*",
    "image": "*.ome.zarr/[0-9]*",
    "blocks": ".slidesam/*/*/segment-*/blocks/*",
    "tissue": ".slidesam/*/*/segment-*/tissue.*",
    "numbering": ".slidesam/*/*/stitch-*/numbering.*",
    "measures": ".slidesam/*/*/paint-*/measures/*",
}
FINGERPRINTED = ".slidesam/*/*/*-*/"


def run_slidesam(slidesam: Path, *arguments: object) -> None:
    """Run a command of a version of slidesam.

    Raises:
        subprocess.CalledProcessError: The command fails.
    """
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "PREFECT_HOME": home, "PYTHONPATH": ""}
        subprocess.run([slidesam, *map(str, arguments)], env=environment, check=True, stdout=subprocess.DEVNULL)


def digest(output: Path, pattern: str) -> str:
    """Return the number of arrays of a pattern and the digest of their paths (without fingerprints) and numbers."""
    paths = sorted((without_fingerprint(path.relative_to(output)), path) for path in output.glob(pattern))
    content = hashlib.blake2b(digest_size=16)
    for name, path in paths:
        for part, array in read_numbers(path):
            content.update(f"{name}\0{part}\0{array.dtype.str}\0{array.shape}\0".encode())
            content.update(np.ascontiguousarray(array))
    return f"{len(paths)} {content.hexdigest()}"


def read_numbers(path: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    """Read the arrays of a file of arrays, or the one of a Zarr array's folder."""
    if path.is_dir():
        yield "", np.asarray(zarr.open_array(path, mode="r")[:])
    else:
        yield from load_arrays(path).items()


def without_fingerprint(path: Path) -> str:
    """Return a path whose stage folders have lost their fingerprint, which depends on where the slide lies and on its age."""
    return "/".join(
        part.split("-")[0] if part.startswith(("segment-", "stitch-", "paint-")) else part for part in path.parts
    )


def digests(slidesam: Path, name: str, folder: Path) -> dict[str, str]:
    """Segment one slide and return its digests by kind; the fingerprints where the slide is a file that stays."""
    if name == "demo":
        # Not by the command `demo`, whose slide and segmenter have changed.
        make_demo_slide(folder / "demo.ome.tif", 4096)
        run_slidesam(slidesam, "segment", folder / "demo.ome.tif", "--output", folder, *DEMO)
    else:
        run_slidesam(slidesam, "segment", SLIDES[name], "--output", folder, *BLOCKS)
    result = {f"{name} · {kind}": digest(folder, pattern) for kind, pattern in KINDS.items()}
    if name != "demo":
        stages = sorted(path.name for path in folder.glob(FINGERPRINTED) if not path.parent.name.startswith("."))
        result[f"{name} · fingerprints"] = " ".join(stages)
    return result


def main() -> int:
    """Segment the slides, then write or compare the digests; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slidesam", type=Path, default=Path(sys.executable).with_name("slidesam"))
    parser.add_argument("--only", choices=["demo", *SLIDES], help="one slide instead of all")
    parser.add_argument("--write", type=Path, help="file for the digests")
    parser.add_argument("--compare", type=Path, help="file of digests that another version wrote")
    arguments = parser.parse_args()
    names = [arguments.only] if arguments.only else ["demo", *(name for name, path in SLIDES.items() if path.exists())]
    results: dict[str, str] = {}
    for name in names:
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            results |= digests(arguments.slidesam, name, Path(folder) / "out")
        print(f"{name}: {time.perf_counter() - started:.1f} s", flush=True)
    lines = [f"{kind}\t{value}" for kind, value in results.items()]
    if arguments.write:
        arguments.write.write_text("\n".join(lines) + "\n")
    if not arguments.compare:
        print("\n".join(lines))
        return 0
    expected = dict(line.split("\t") for line in arguments.compare.read_text().splitlines())
    differing = [kind for kind, value in results.items() if expected.get(kind) != value]
    for kind, value in results.items():
        print(f"{'equal ' if kind not in differing else 'DIFFERS'} {kind}: {value}")
    return 1 if differing else 0


if __name__ == "__main__":
    raise SystemExit(main())
